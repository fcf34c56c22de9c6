# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""The house stays in order: who imports whom, what is installed, what tests reach for."""

import ast
import functools
import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from fnmatch import fnmatch
from pathlib import Path

import pytest

import stream_vlm_ros

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
MODULE = ROOT / "stream_vlm_ros"

# Imports point down only; rooms on one floor do not know each other.
FLOORS = [
    ("errors", "console", "machine", "forgotten"),
    ("setting", "processes", "owned", "progress", "plain_messages", "access"),
    ("config", "model_card"),
    ("engine",),
    ("history", "sources"),
    ("world",),
    ("factory",),
    ("session",),
    ("remote",),
    ("node", "client", "experiments"),
    ("web", "serve"),
    ("replay", "demo"),
    ("replay.live",),
    ("cli_experiment", "cli_node"),
    ("cli_web", "cli_serve"),
    ("cli", "launching"),
    ("demo.__main__", "web.__main__"),
]
FLOOR = {name: floor for floor, rooms in enumerate(FLOORS) for name in rooms}
# Where ROS may be imported.
ROS_ROOMS = (
    "processes.ros_process",
    "node",
    "client",
    "demo",
    "replay.live",
    "launching",
    "web.over_node",
)

ROS_MODULES = {
    "action_msgs",
    "builtin_interfaces",
    "cv_bridge",
    "diagnostic_msgs",
    "diagnostic_updater",
    "geometry_msgs",
    "launch",
    "launch_ros",
    "lifecycle_msgs",
    "rcl_interfaces",
    "rclpy",
    "rosgraph_msgs",
    "sensor_msgs",
    "std_msgs",
    "std_srvs",
    "stream_vlm",
}


def python_files():
    return sorted(MODULE.rglob("*.py"))


def imports(source: str, package: str):
    """Full names of the modules that a source text imports, anywhere in it.

    A module of ours that a string names counts, too: it is to be imported by that name.
    package: the dotted package the text belongs to, for relative imports.
    """
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parents, *([base] if base else [])])
            found.add(base)
            # "from stream_vlm_ros import node" names a package, too.
            found.update(f"{base}.{alias.name}" for alias in node.names)
        elif (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and re.fullmatch(r"stream_vlm_ros(\.\w+)+", node.value)
        ):
            found.add(node.value)
    return found


def room(name: str):
    """The room of a module's full name: "engine" for stream_vlm_ros.engine.cache."""
    parts = name.split(".")
    if parts[0] != "stream_vlm_ros" or len(parts) == 1:
        return None
    inner = ".".join(parts[1:3])  # a room within a room
    return inner if inner in FLOOR else parts[1]


def imports_upwards(own_room: str, imported: set):
    """Those of the imported names that a module of this room may not know."""
    return sorted(
        name
        for name in imported
        if (other := room(name)) in FLOOR and other != own_room and FLOOR[other] >= FLOOR[own_room]
    )


@functools.cache
def imports_of(path: Path):
    package = ".".join(path.relative_to(ROOT).parent.parts)
    return imports(path.read_text(), package)


def module_name(path: Path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def test_imports_point_one_way():
    wrong = {
        str(path.relative_to(ROOT)): upwards
        for path in python_files()
        if (own_room := room(module_name(path))) in FLOOR
        and (upwards := imports_upwards(own_room, imports_of(path)))
    }
    assert wrong == {}


@pytest.mark.parametrize(
    "name",
    [
        "client",
        "engine",
        "engine/attention",
        "engine/cache",
        "engine/inputs",
        "engine/model",
        "engine/saving",
        "history",
        "node",
        "remote",
        "serve",
        "session",
        "web",
    ],
)
def test_a_room_lists_its_files_at_its_door(name):
    door = ast.get_docstring(ast.parse((MODULE / name / "__init__.py").read_text()))
    listed = re.findall(r"^    (\w+) +\S", door, re.MULTILINE)
    files = {path.stem for path in (MODULE / name).glob("*.py")} - {"__init__", "__main__"}
    assert sorted(listed) == sorted(files)


def test_every_module_lives_in_a_known_room():
    rooms = {room(module_name(path)) for path in python_files()}
    assert rooms <= {*FLOOR, "__init__"}


@pytest.mark.parametrize(
    ("own_room", "line", "refused"),
    [
        ("engine", "from stream_vlm_ros.node import worker", True),
        ("engine", "from ..sources import frame", True),
        ("engine", "def f():\n    import stream_vlm_ros.history.store", True),
        ("engine", "from .cache import KVCacheManager", False),
        ("sources", "from stream_vlm_ros.history import store", True),
        ("sources", "from .. import errors", False),
        ("session", "from stream_vlm_ros.node import health", True),
        ("node", "from stream_vlm_ros import replay", True),
        ("node", "from stream_vlm_ros.sources import Frame", False),
        ("node", "from stream_vlm_ros.demo import client", True),
        ("node", "from stream_vlm_ros.factory import default_model", False),
        ("replay", "from .live import realtime", True),
        ("replay.live", "from stream_vlm_ros.replay import schedule", False),
        ("client", "from stream_vlm_ros.node import interfaces", True),
        ("cli", "from stream_vlm_ros.demo import client", False),
    ],
)
def test_the_rule_of_imports_sees_what_it_should(own_room, line, refused):
    imported = imports(line, f"stream_vlm_ros.{own_room}")
    assert bool(imports_upwards(own_room, imported)) == refused


def test_every_verb_is_typers_but_for_experiments_which_also_run_without_it():
    parsers = {room(module_name(path)) for path in python_files() if "argparse" in imports_of(path)}
    assert parsers == {"experiments", "cli_experiment"}


WEB_PACKAGES = {"nicegui", "fastapi", "uvicorn", "starlette", "socketio"}


def test_a_robot_can_do_without_the_packages_of_the_console():
    wrong, seen = {}, set()
    for path in python_files():
        found = {name.partition(".")[0] for name in imports_of(path)} & WEB_PACKAGES
        seen |= found
        if found and room(module_name(path)) not in ("web", "serve"):
            wrong[str(path.relative_to(ROOT))] = found
    assert wrong == {}
    assert {"nicegui", "fastapi", "uvicorn"} <= seen
    # What the page is over, and the door at which it may be refused, are of plain Python.
    plain = [
        f"stream_vlm_ros.web.{name}"
        for name in ("live_memory", "in_process", "apart", "pictures", "gate", "extra")
    ]
    code = f"import sys, importlib; [importlib.import_module(name) for name in {plain}]\n"
    code += f"import stream_vlm_ros.cli; print(sorted({WEB_PACKAGES} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.strip() == "[]"


def test_only_the_rooms_of_the_graph_import_ros():
    wrong = []
    for path in python_files():
        if f"{module_name(path)}.".startswith(tuple(f"stream_vlm_ros.{r}." for r in ROS_ROOMS)):
            continue
        used = {name.split(".")[0] for name in imports_of(path)} & ROS_MODULES
        wrong += [f"{path.relative_to(ROOT)} imports {name}" for name in sorted(used)]
    assert wrong == []


def test_the_engine_and_the_sources_load_no_ros():
    code = (
        "import sys, stream_vlm_ros.engine, stream_vlm_ros.sources\n"
        f"print(sorted(set(sys.modules) & {ROS_MODULES!r}))"
    )
    output = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    assert output.strip() == "[]"


# Private names that the tests reach for -----------------------------------------------------------

TESTS = ROOT / "test"
HELD = sorted({file.relative_to(TESTS).parts[0] for file in TESTS.rglob("*.py")})
MAX_REACHES = 9
ALLOWED = {
    # Logits of one question on two paths, for the engine's tests alone.
    "helpers/toy_qwen.py": ["_question_ids"],
}
# Private by their look, but read by scripts of the reference's users: they are promised.
PROMISED = {"_avg_chunk_tokens", "_extract_vision_segment", "_first_chunk_recorded"}
BY_NAME = ("setattr", "getattr", "hasattr", "delattr", "attrgetter", "patch", "object")


def is_private(name: str):
    return re.fullmatch(r"_(?!_)\w+", name) is not None


def is_own(node: ast.expr):
    return isinstance(node, ast.Name) and node.id in ("self", "cls")


@functools.cache
def own_private_names():
    """Private names that some file of the package defines: so torch's and the like are none."""
    found = set()
    for path in python_files():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                found.add(node.name)
            elif not isinstance(getattr(node, "ctx", None), ast.Store):
                continue
            elif isinstance(node, ast.Attribute) and is_own(node.value):
                found.add(node.attr)
            elif isinstance(node, ast.Name):
                found.add(node.id)
    return {name for name in found if is_private(name)} - PROMISED


def private_reaches(source: str, private: set):
    """Those of the names ``private`` that a source text takes from others than itself, in order.

    By attribute, by import, or as a string that names an attribute.
    """
    found = []
    for node in ast.walk(ast.parse(source)):
        names = []
        if isinstance(node, ast.Attribute):
            names = [] if is_own(node.value) else [node.attr]
        elif isinstance(node, ast.ImportFrom):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.Call):
            function = getattr(node.func, "attr", None) or getattr(node.func, "id", None)
            if function in BY_NAME:
                texts = [a.value for a in node.args if isinstance(a, ast.Constant)]
                names = [part for t in texts if isinstance(t, str) for part in t.split(".")]
        found += [(node.lineno, name) for name in names if name in private]
    return [name for _, name in sorted(found)]


def reaches_of(name: str):
    """File -> the private names that it reaches for, of a file or folder of tests."""
    path = TESTS / name
    files = sorted(path.rglob("*.py")) if path.is_dir() else [path]
    found = {
        str(file.relative_to(TESTS)): private_reaches(file.read_text(), own_private_names())
        for file in files
    }
    return {file: names for file, names in found.items() if names}


@pytest.mark.parametrize("name", HELD)
def test_tests_reach_through_public_names(name):
    allowed = {file: names for file, names in ALLOWED.items() if Path(file).parts[0] == name}
    assert reaches_of(name) == allowed


def test_the_exceptions_are_few():
    assert sum(map(len, ALLOWED.values())) <= MAX_REACHES


@pytest.mark.parametrize(
    ("line", "reached"),
    [
        ("engine._stream.reset()", ["_stream"]),
        ("from stream_vlm_ros.memory import _stream", ["_stream"]),
        ("monkeypatch.setattr(engine, '_stream', None)", ["_stream"]),
        ("monkeypatch.setattr('stream_vlm_ros.memory._stream', None)", ["_stream"]),
        ("super()._stream()", ["_stream"]),
        ("a, b = one._stream, one._worker", ["_stream", "_worker"]),
        ("self._stream = engine.stream", []),
        ("engine.stream.__len__()", []),
        ("torch._dynamo.reset()", []),
        ("print('_stream')", []),
    ],
)
def test_the_rule_of_private_names_sees_what_it_should(line, reached):
    assert private_reaches(line, {"_stream", "_worker"}) == reached


def test_the_version_is_the_same_everywhere():
    package = ElementTree.parse(ROOT / "package.xml").getroot()
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert package.findtext("version") == stream_vlm_ros.__version__
    # pip reads the module's own, so it cannot differ.
    assert pyproject["tool"]["setuptools"]["dynamic"]["version"] == {
        "attr": "stream_vlm_ros.__version__"
    }


def test_the_pip_name_is_not_that_of_the_interfaces():
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text())
    interfaces = ElementTree.parse(ROOT / "package.xml").getroot().findtext("name")
    name = re.sub(r"[-_.]+", "-", pyproject["project"]["name"])
    assert name != re.sub(r"[-_.]+", "-", interfaces)


def data_files():
    return sorted(
        path
        for path in MODULE.rglob("*")
        if path.is_file() and path.suffix not in (".py", ".pyc") and "__pycache__" not in path.parts
    )


def test_pip_installs_every_data_file():
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text())
    patterns = pyproject["tool"]["setuptools"]["package-data"]["*"]
    forgotten = [
        str(path.relative_to(ROOT))
        for path in data_files()
        if not any(fnmatch(path.name, pattern) for pattern in patterns)
    ]
    assert forgotten == []


def test_every_executable_has_its_module():
    cmake = (ROOT / "CMakeLists.txt").read_text()
    modules = re.findall(r"^install_executable\(\S+ (\S+)", cmake, re.MULTILINE)
    assert modules
    for module in modules:
        path = ROOT.joinpath(*module.split("."))
        file = path / "__main__.py" if path.is_dir() else path.with_suffix(".py")
        assert file.is_file(), f"{module}: there is no {file.relative_to(ROOT)}"
        assert file.name == "__main__.py" or 'if __name__ == "__main__":' in file.read_text()


built = pytest.mark.skipif(
    os.environ.get("STREAM_VLM_INSTALLED") != "1",
    reason="about the copy that colcon installed; make test runs it",
)


@built
def test_the_tests_import_the_installed_copy():
    imported = Path(stream_vlm_ros.__file__).resolve()
    assert imported.is_relative_to(ROOT / "install")
    assert str(ROOT) not in sys.path


@built
def test_the_installed_copy_is_complete_and_current():
    installed = Path(stream_vlm_ros.__file__).resolve().parent
    differing = [
        str(path.relative_to(MODULE))
        for path in [*python_files(), *data_files()]
        if not (copy := installed / path.relative_to(MODULE)).is_file()
        or copy.read_bytes() != path.read_bytes()
    ]
    left_over = [
        str(path.relative_to(installed))
        for path in installed.rglob("*.py")
        if not (MODULE / path.relative_to(installed)).is_file()
    ]
    assert (differing, left_over) == ([], [])

# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Whatever says what the package needs says the same: imports, requirements, package.xml, docs."""

import ast
import functools
import re
import sys
from pathlib import Path

import pytest
from catkin_pkg.package import parse_package
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]

# Requirement -> its key in rosdistro's rosdep/python.yaml; None: it has none there.
ROSDEP = {
    "av": None,
    "catkin_pkg": "python3-catkin-pkg-modules",
    "google-re2": None,
    "hypothesis": "python3-hypothesis",
    "jinja2": "python3-jinja2",
    "jsonschema": "python3-jsonschema",
    "junitparser": "python3-junitparser",
    "lz4": None,
    "matplotlib": "python3-matplotlib",
    "mcap": None,
    "numpy": "python3-numpy",
    "openai": None,
    "pillow": "python3-pil",
    "playwright": None,
    "pytest": "python3-pytest",
    "pytest-timeout": "python3-pytest-timeout",
    "pytest-xdist": "python3-pytest-xdist",
    "pyyaml": "python3-yaml",
    "rich": "python3-rich",
    "rosbags": "python3-rosbags-pip",
    "rosbags-image": None,
    "rosbags-image[opencv-headless]": "python3-opencv",
    "safetensors": None,
    "tokenizers": None,
    "torch": "python3-pytorch-pip",
    "transformers": "python3-transformers-pip",
    "typer": "python3-typer",
    "zstandard": None,
}

# Import name -> requirement, where they differ.
REQUIREMENT = {
    "PIL": "pillow",
    "re2": "google-re2",
    "cv2": "rosbags-image[opencv-headless]",
    "rosbags.image": "rosbags-image",
    "prometheus_client": "prometheus-client",
    "yaml": "pyyaml",
    "ray": "ray[serve]",
}
# Imported by others of our requirements: uvicorn speaks by it.
USED_BY_OTHERS = {"websockets"}
# The Makefile gives it to pytest.
USED_BY_MAKE = {"pytest-timeout", "pytest-xdist"}
# It comes with torch for a GPU, and is imported only where there is one.
BROUGHT = {"triton", "fa3_fwd_interface"}
# Declared and never imported: ros2 launch starts the launch files; two serve the interfaces; the
# types of poses are imported by the name that is published.
USED_WITHOUT_IMPORT = {"ros2launch", "rosidl_default_runtime", "action_msgs"}
USED_WITHOUT_IMPORT |= {"nav_msgs", "tf2_msgs"}


def required(*files):
    """The names in these files of requirements, with their extras."""
    return {
        re.match(r"[\w.-]+(\[[\w,-]+\])?", line).group()
        for file in files
        for line in (ROOT / "requirements" / f"{file}.txt").read_text().splitlines()
        if line and not line.startswith("#")
    }


@functools.cache
def imported(*folders):
    """What the Python files of these folders import of others, as {requirement: file}."""
    own = {*sys.stdlib_module_names, "stream_vlm", "stream_vlm_ros"}
    found = {}
    for path in sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module]
            for name in names:
                top = name.split(".")[0]
                if top not in own:
                    requirement = REQUIREMENT.get(name) or REQUIREMENT.get(top, top)
                    found.setdefault(requirement, str(path.relative_to(ROOT)))
    return found


@pytest.fixture(scope="module")
def package():
    """package.xml as ROS's own parser reads it."""
    return parse_package(str(ROOT))


def keys(dependencies):
    """The rosdep keys of Python packages among these dependencies."""
    return {each.name for each in dependencies if each.name.startswith("python3-")}


def ros_packages(dependencies):
    return {each.name for each in dependencies} - keys(dependencies)


def test_every_import_is_required_or_a_declared_ros_package(package):
    known = (
        required("runtime", "opencv", "web", "serve", "ray")
        | ros_packages(package.exec_depends)
        | BROUGHT
    )
    found = imported("stream_vlm_ros", "launch")
    assert {name: file for name, file in found.items() if name not in known} == {}


def test_no_named_tuple_has_another_base_which_python_3_10_refuses():
    """Such a module cannot be imported there, and linters told of 3.10 do not say so."""
    found = [
        f"{file.relative_to(ROOT)}: {node.name}"
        for file in (ROOT / "stream_vlm_ros").rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.ClassDef) and len(node.bases) > 1
        if any("NamedTuple" in ast.unparse(base) for base in node.bases)
    ]
    assert found == []


def test_the_server_takes_no_uvicorn_whose_insides_may_be_others():
    """It is built on them."""
    [line] = re.findall(r"^uvicorn.*", (ROOT / "requirements" / "serve.txt").read_text(), re.M)
    [tested] = re.findall(r"^uvicorn==(.*)", (ROOT / "constraints.txt").read_text(), re.M)
    major, minor, _ = map(int, tested.split("."))
    admitted = Requirement(line).specifier
    assert tested in admitted and f"{major}.{minor + 1}.0" not in admitted


def test_every_requirement_is_imported():
    found = imported("stream_vlm_ros", "launch")
    assert required("runtime", "opencv", "web", "serve", "ray") - set(found) <= USED_BY_OTHERS
    assert required("test") - set(imported("test")) == USED_BY_MAKE


def test_every_declared_ros_package_is_imported(package):
    found = {*imported("stream_vlm_ros", "launch"), *USED_WITHOUT_IMPORT}
    assert ros_packages(package.exec_depends) - found == set()


def test_rosdep_is_asked_for_every_requirement_that_it_knows(package):
    known = {ROSDEP[name] for name in required("runtime", "opencv")} - {None}
    assert keys(package.exec_depends) == known
    assert keys(package.test_depends) == {ROSDEP[name] for name in required("test")} - {None}


def test_requirements_without_a_key_are_named_where_a_user_looks():
    without = sorted(name for name in required("runtime", "opencv") if ROSDEP[name] is None)
    manifest = (ROOT / "package.xml").read_text()
    [named] = re.findall(r"No key, so pip alone brings them: (.*?)\.\s", manifest, re.DOTALL)
    assert re.split(r",\s+", named) == without
    page = (ROOT / "docs" / "installation.md").read_text()
    assert f"\npip install {' '.join(without)}\n" in page


@pytest.mark.parametrize("page", ["README.md", "docs/installation.md"])
def test_the_keys_to_skip_are_those_that_need_the_systems_pip(package, page):
    [skipped] = re.findall(r'--skip-keys \\\n *"(.*)"', (ROOT / page).read_text())
    with_pip = {key for key in keys(package.exec_depends) if key.endswith("-pip")}
    assert skipped.split() == sorted(with_pip)


def test_interfaces_use_the_packages_that_are_declared_for_them(package):
    used = {
        name
        for folder in ("msg", "srv", "action")
        for path in (ROOT / folder).iterdir()
        for name in re.findall(r"^(\w+)/\w+", path.read_text(), re.MULTILINE)
    }
    # action_msgs is what every action needs.
    assert ros_packages(package.build_depends) == used - {"stream_vlm"} | {"action_msgs"}

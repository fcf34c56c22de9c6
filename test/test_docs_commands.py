# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Every command printed in README, CONTRIBUTING and docs/ runs as printed.

Those of ``stream-vlm`` that take seconds are run, in this process, in a folder with small stand-ins
for videos, bags, weights and cameras. Longer ones are given to the command line's own parser. Of
others (make, ros2, python) targets, files, parameters and fields are looked up. What is not ours
is named in `NOT_OURS`, each with its reason; anything else is an error.
"""

import ast
import functools
import inspect
import json
import os
import re
import shlex
import shutil
import textwrap
import time
from collections.abc import Iterator
from datetime import datetime, timezone
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
import pytest
import yaml
from huggingface_hub.cli.hf import app as hf
from PIL import Image
from typer.main import get_command
from typer.testing import CliRunner

from stream_vlm_ros import cli_node
from stream_vlm_ros.cli import app
from stream_vlm_ros.config import NODE, Settings
from stream_vlm_ros.demo.settings import SourceSettings
from stream_vlm_ros.experiments import EXPERIMENTS
from stream_vlm_ros.experiments import command as experiments
from stream_vlm_ros.experiments.options import parser_of
from stream_vlm_ros.factory import build_engine, default_model, load_model
from stream_vlm_ros.launching.arguments import DemoArguments, NodeArguments, ReplayArguments

ROOT = Path(__file__).resolve().parents[1]
PAGES = ["README.md", "CONTRIBUTING.md", *sorted(f"docs/{p.name}" for p in ROOT.glob("docs/*.md"))]
MAKEFILE = (ROOT / "Makefile").read_text()

# What takes its place where a command is run; longest first.
STAND_INS = {
    "/path/to/Qwen2.5-VL-3B-Instruct": "model",
    "/models/Qwen2.5-VL-3B-Instruct": "model",
    "/data/kitchen.mp4": "kitchen.mp4",
    "/dev/video0": "kitchen.mp4",
    "drive.mcap": "drive.mp4",
    "noon.mcap": "noon.mp4",
    "--about 120 130": "--about 1 2",
    "--end 120": "--end 12",
    "--at 10": "--at 2",
    "--frame-store '~/frames'": "--frame-store own",  # that of the node keeps the node's clock
}
# Verbs that are run; the others take minutes, ROS or what they measure, and are only parsed.
RUN = ("ask", "replay", "info", "hardware", "history", "forget", "report", "demo-model questions")
WITH_ROS = {"--node", "--realtime", "--attach", "--cancel-after"}
NOT_OURS = {
    ".": "the shell's",
    "cd": "the shell's",
    "colcon": "of ROS, which is not here",
    "curl": "of the system; test/serve/test_page.py sends what it would",
    "export": "the shell's",
    "git": "fetches the repository",
    "haproxy": "of the system; test/serve/test_ray.py has it serve with that file",
    "modelscope": "another hub's program, which is not installed",
    "pip": "the network",
    "openssl": "of the system",
    "ray": "Ray's; it begins a cluster",
    "rosdep": "of ROS, which is not here",
    "serve": "Ray's; test/serve/test_ray.py deploys that file",
    "source": "the shell's",
    "ssh": "to another machine",
    "sudo": "changes the machine",
    "umask": "the shell's",
}
# Options in the text of other programs: CMake's, colcon's, docker's, hf's, pip's, ros2's, venv's.
OTHERS_OPTIONS = {
    *("--cmake-clean-cache", "--find-links", "--gpus", "--ipc", "--network", "--show-args"),
    *("--local-dir", "--shm-size", "--system-site-packages", "--user"),
}
OTHERS_PACKAGES = {"foxglove_bridge", "rviz2"}  # of ROS, which are not here
LAUNCH = {"stream_vlm": NodeArguments, "demo": DemoArguments, "replay": ReplayArguments}
NODES = {
    "stream_vlm_node": {n: r for n, r in Settings.table().items() if NODE in r.takers},
    "source_node": SourceSettings.table(),
}
MODULES = {
    "stream_vlm_ros.node": "stream_vlm_node",
    "stream_vlm_ros.demo.source_node": "source_node",
}
ENVIRONMENT = {
    "PIP_BREAK_SYSTEM_PACKAGES",
    "OMP_NUM_THREADS",
    "CUDA_VISIBLE_DEVICES",
}  # of others, set in front
THE_READERS = {"my_script.py"}  # stand for what the reader has


class Command(NamedTuple):
    """One simple command: its words, and the file that its output goes to."""

    words: list[str]
    output: str | None = None


# -- what a page prints ----------------------------------------------------------------------------


def blocks(page: str) -> Iterator[tuple[str, str]]:
    """(language, text) of each fenced block, and of each that is indented ("")."""
    fence = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
    for block in fence.finditer(page):
        yield block[1], block[2]
    for block in re.finditer(r"(?<=\n\n)(?: {4}.*\n|\n(?= {4}))+", fence.sub("", page)):
        yield "", block[0]


def printed(page: str) -> list[str]:
    """The lines of a page that are commands; of a block called bash these are all."""
    found = []
    for language, text in blocks(page):
        for line in re.sub(r"\\\n\s*", " ", text).splitlines():
            line = line.strip().removeprefix("$ ")
            first = re.sub(r"^([A-Z_]+=\S* )*", "", line).partition(" ")[0]
            known = first in {*PROGRAMS, *NOT_OURS}
            if (
                line
                and not line.startswith("#")
                and (language == "bash" or (not language and known))
            ):
                found.append(line)
    return found


def simple_commands(line: str) -> Iterator[Command]:
    line = re.sub(r"<[a-z ]+>", "PLACE", line)
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    words: list[str] = []
    output = None
    tokens = iter([*lexer, ";"])
    for token in tokens:
        if token == ">":
            output = next(tokens)
        elif token in ("&&", ";", "|", "||"):
            if words:
                yield Command(words, output)
            words, output = [], None
        else:
            words.append(token)


# -- programs --------------------------------------------------------------------------------------


def check(command: Command) -> None:
    """Run it, parse it, or look up what it names; AssertionError where that fails."""
    while re.fullmatch(r"[A-Z_]+=.*", command.words[0], re.DOTALL):
        name = command.words[0].partition("=")[0]
        known = re.search(rf"\b{name}\b", MAKEFILE) or name in ENVIRONMENT
        assert known, f"{name} is no variable of ours"
        command = Command(command.words[1:], command.output)
    program = command.words[0]
    if program in PROGRAMS:
        PROGRAMS[program](command)
    else:
        assert program in NOT_OURS, f"{program}: neither ours nor named in NOT_OURS"


def run_sh(command: Command) -> None:
    assert (ROOT / "tools/run.sh").is_file()
    check(Command(command.words[1:], command.output))


def stream_vlm(command: Command) -> None:
    words = command.words[1:]
    text = shlex.join(words)
    is_run = text.startswith(RUN) and not WITH_ROS & {word.partition("=")[0] for word in words}
    if not is_run:
        parse(words)
        return
    for printed_word, stand_in in STAND_INS.items():
        text = text.replace(printed_word, stand_in)
    result = CliRunner().invoke(app, shlex.split(text))
    assert result.exit_code == 0, result.output
    if command.output:
        Path(command.output).write_text(result.stdout)


def parse(words: list[str]) -> None:
    """By the command line's own parser, the verbs themselves doing nothing."""
    root = get_command(app)
    commands = [root]
    while commands:
        one = commands.pop()
        commands += getattr(one, "commands", {}).values()
        if not getattr(one, "commands", None):
            one.callback = lambda **_: None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiments, "run", lambda _: 0)  # which an experiment's verb finds late
        patch.setattr(
            cli_node, "ask_node", lambda *_: True
        )  # ask --node asks it in place of a verb
        status = root.main(words, prog_name="stream-vlm", standalone_mode=False)
    assert not status, f"exit status {status}"


def make(command: Command) -> None:
    for word in command.words[1:]:
        name, equals, value = word.partition("=")
        if not equals:
            assert re.search(rf"^{name}:", MAKEFILE, re.MULTILINE), f"make has no target {name}"
            continue
        assert f"$({name})" in MAKEFILE or f"${{{name}}}" in MAKEFILE, f"make takes no {name}"
        if name == "DEMO_ARGS":
            parse(["demo", *shlex.split(value)])


def python(command: Command) -> None:
    words = command.words[1:]
    if words[:1] == ["-m"]:
        module, *rest = words[1:]
        if module in MODULES:
            parameters(MODULES[module], rest)
        elif module == "stream_vlm_ros.demo":
            parse(["demo", *rest])
        elif module == "stream_vlm_ros.experiments":
            parser_of(rest[0]).parse_args(rest[1:])
        else:
            assert module == "venv", f"python -m {module} is not known here"
    elif words and words[0] not in THE_READERS:
        script = ROOT / words[0].removeprefix("src/stream_vlm/")
        assert script.is_file(), f"there is no {script}"
        for flag in re.findall(r"--[a-z-]+", shlex.join(words[1:])):
            assert f'"{flag}"' in script.read_text(), f"{script} takes no {flag}"


def parameters(node: str, words: list[str]) -> None:
    """Those that a node is given behind ``-p``, in their ranges."""
    for option, word in pairwise(words):
        if option == "-p":
            name, given, value = word.partition(":=")
            assert given and name in NODES[node], f"{node} has no parameter {name}"
            NODES[node][name].parsed(value)


def ros2(command: Command) -> None:
    _, group, *words = command.words
    if group in ("launch", "run") and words[0] in OTHERS_PACKAGES:
        return
    if group == "launch" and words[0] == "stream_vlm":
        assert (ROOT / "launch" / words[1]).is_file(), f"there is no launch file {words[1]}"
        known = LAUNCH[words[1].removesuffix(".launch.py")].table()
        for word in words[2:]:
            name = word.partition(":=")[0]
            assert name in known or word == "--show-args", f"{words[1]} takes no {name}"
    elif group == "run" and words[0] == "stream_vlm":
        parameters(words[1], words[2:])
    elif group in ("service", "action", "topic"):
        interface(group, [word for word in words if not word.startswith("-")], words)
    else:
        assert group in ("bag", "lifecycle", "node", "param"), f"ros2 {group} is not known here"


def interface(group: str, words: list[str], all_words: list[str]) -> None:
    """The name and the fields of one of our services, actions and topics."""
    _, *words = words
    if not words or not words[0].startswith("/stream_vlm/"):
        return
    name = words[0].rpartition("/")[2]
    file = "".join(part.capitalize() for part in name.split("_"))
    kind = {"service": "srv", "action": "action", "topic": "msg"}[group]
    path = ROOT / kind / f"{file}.{kind}"
    if group == "topic":
        assert path.is_file() or name == "answer", f"there is no topic {words[0]}"
        given = all_words[all_words.index("--field") + 1 :][:1] if "--field" in all_words else []
    elif not words[1].startswith("stream_vlm/"):
        return  # of another package
    else:
        assert words[1] == f"stream_vlm/{kind}/{file}", f"{words[0]} is no {words[1]}"
        given = list(yaml.safe_load(words[2]))
    request = path.read_text().partition("\n---")[0]
    fields = re.findall(r"^[\w/\[\]<>=]+ +(\w+)", request, re.MULTILINE)
    assert set(given) <= set(fields), f"{path.name} has no {set(given) - set(fields)}"


def hugging_face(command: Command) -> None:
    _, verb, *words = command.words
    hf.commands[verb].materialize().make_context(verb, words)


def docker(command: Command) -> None:
    """What runs in the container; the image is not built here."""
    words = command.words[1:]
    arguments = re.findall(r"^ARG (\w+)", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    for option, word in pairwise(words):
        if option == "--build-arg":
            assert word.partition("=")[0] in arguments
    if words[0] == "run" and (inside := words[words.index("stream_vlm") + 1 :]):
        check(Command(inside))
    elif words[0] == "exec":
        for inner in simple_commands(words[-1]):
            check(inner)


PROGRAMS = {
    "tools/run.sh": run_sh,
    "stream-vlm": stream_vlm,
    "make": make,
    "python": python,
    "python3": python,
    "ros2": ros2,
    "hf": hugging_face,
    "docker": docker,
}


# -- what a page mentions in its text --------------------------------------------------------------


@functools.cache
def options() -> dict[str, set[str]]:
    """The options of each verb."""
    found: dict[str, set[str]] = {}
    waiting = [("", get_command(app))]
    while waiting:
        name, one = waiting.pop()
        below = getattr(one, "commands", {})
        waiting += [(f"{name} {verb}".strip(), command) for verb, command in below.items()]
        found[name] = found.get(name, set()) | {
            o for p in one.params for o in (*p.opts, *p.secondary_opts)
        }
    for name in EXPERIMENTS:
        parser = parser_of(name)
        found[f"experiment {name}"] = set(re.findall(r"--[a-z-]+", parser.format_help()))
    return found


def check_mentions(page: str, known: dict[str, set[str]]) -> None:
    """Verbs and options that stand in the text: there are such."""
    fenced = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
    for span in re.findall(r"`([^`]+)`", fenced.sub("", page)):
        span = " ".join(span.split()).removeprefix("tools/run.sh ")
        flags = set(re.findall(r"(?<!\S)--[a-z][a-z-]+", span))
        if span.startswith("stream-vlm ") and re.match(r"[a-z]", span.split()[1]):
            one, two = [*span.split()[1:], ""][:2]
            verb = f"{one} {two}" if f"{one} {two}" in known else one
            assert verb in known, f"{span}: there is no such verb"
            assert flags <= known[verb], f"{span}: {flags - known[verb]}"
        elif span.startswith("--"):
            assert flags <= set().union(*known.values(), OTHERS_OPTIONS), f"{span}: no option"


# -- the tests -------------------------------------------------------------------------------------


def write_video(path: Path, seconds: int) -> None:
    """Four pictures a second, each with a little that moves."""
    with av.open(str(path), "w") as output:
        stream = output.add_stream("libx264", rate=4)
        stream.width = stream.height = 56
        stream.pix_fmt = "yuv420p"
        for index in range(4 * seconds):
            image = np.full((56, 56, 3), 40, np.uint8)
            image[index : index + 16, 8:24] = (200, 60, 8 * index)
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, 4)
            output.mux(stream.encode(frame))
        output.mux(stream.encode())


@pytest.fixture(scope="module", autouse=True)
def no_plots():
    """They take most of a short replay's time; replay/test_plots.py looks at them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("stream_vlm_ros.replay.rendering.plots_of", lambda runs, failed: [])
        yield


@pytest.fixture(scope="module")
def readers_folder(tmp_path_factory):
    """What the reader of the pages has, small."""
    folder = tmp_path_factory.mktemp("reader")
    for name, seconds in (("kitchen", 3), ("morning", 3), ("drive", 3), ("noon", 6)):
        write_video(folder / f"{name}.mp4", seconds)
    (folder / "frames").mkdir()
    for number in range(4):
        Image.new("RGB", (56, 56), (60 * number, 0, 90)).save(folder / f"frames/{number}.png")
    # Either is right, whatever the model says.
    question = {"text": "Is it day?", "at": 1, "choices": ["yes", "no"], "expect": ["yes", "no"]}
    for name in ("kitchen", "questions", "q", "drive"):
        (folder / f"{name}.yaml").write_text(json.dumps({"questions": [question]}))
    (folder / "my.yaml").write_text("/**: {ros__parameters: {sample_fps: 1.0}}")
    (folder / "model").symlink_to(default_model())
    home = folder / "home"
    home.mkdir()
    settings = Settings(history="auto", frame_store=str(home / "frames"), max_cache_tokens=300)
    engine = build_engine(settings, load_model(settings))
    picture = np.full((4, 56, 56, 3), 90, np.uint8)
    begin = datetime(2026, 11, 29, 10, 15, tzinfo=timezone.utc).timestamp()  # as docs/history.md
    for chunk in range(6):
        stamps = [begin + 2 * chunk + k / 2 for k in range(4)]
        engine.append_video_chunk(list(picture), timestamps=stamps)
    engine.close()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        arguments = "replay kitchen.mp4 --questions kitchen.yaml --out report-before"
        done = CliRunner().invoke(app, arguments.split())
    assert done.exit_code == 0, done.output
    shutil.copytree(folder / "report-before", folder / "report-after")
    return folder


@pytest.fixture
def here(readers_folder, tmp_path, monkeypatch):
    folder = tmp_path / "reader"
    shutil.copytree(readers_folder, folder, symlinks=True)
    score = re.search(r"```python\n(class .*?)```", (ROOT / "docs/memory.md").read_text(), re.S)
    (folder / "my_scores.py").write_text(score[1])
    monkeypatch.syspath_prepend(folder)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HOME", str(folder / "home"))
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield folder
    monkeypatch.undo()
    time.tzset()


@pytest.mark.parametrize("page", PAGES)
def test_every_command_of_a_page_is_one(page, here):
    for line in printed((ROOT / page).read_text()):
        for command in simple_commands(line):
            try:
                check(command)
            except (AssertionError, SystemExit, Exception) as error:
                raise AssertionError(f"{page}: {line}\n{error}") from error


def test_the_text_of_a_page_names_verbs_and_options_that_there_are():
    known = options()
    for page in PAGES:
        check_mentions((ROOT / page).read_text(), known)


@pytest.mark.parametrize(
    "text",
    ["`stream-vlm wacth`", "`stream-vlm ask --at 3 --dtipe x`", "`--dtipe`", "`--dtipe bfloat16`"],
)
def test_a_verb_or_an_option_that_there_is_not_is_seen_in_a_text(text):
    with pytest.raises(AssertionError, match=text.strip("`").split()[0]):
        check_mentions(f"So {text} does it.", options())


def test_the_pages_have_commands_of_each_program():
    lines = [line for page in PAGES for line in printed((ROOT / page).read_text())]
    programs = {command.words[0] for line in lines for command in simple_commands(line)}
    assert programs >= {*PROGRAMS, *NOT_OURS} - {"python3"}
    assert len(lines) > 100


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("stream-vlm ask kitchen.mp4 'Who?' --modle model", "No such option: --modle"),
        ("stream-vlm replay drive.mp4 --questions nowhere.yaml", "no question file nowhere.yaml"),
        ("stream-vlm rate drive.mcap --sise 1280x720", "No such option: --sise"),
        ("stream-vlm experiment sink --sorce my.mp4", "No such option: --sorce"),
        ("stream-vlm experiment snik", "No such command 'snik'"),
        ("stream-vlm wacth", "No such command 'wacth'"),
        ("make demmo", "no target demmo"),
        ("make demo DEMO_ARG='--seconds 3'", "takes no DEMO_ARG"),
        ("make demo DEMO_ARGS='--secnods 3'", "No such option: --secnods"),
        ("DEMO_SECOND=3 make demo", "DEMO_SECOND is no variable"),
        ("tools/run.sh python bench/gpu.py --outt x.json", "takes no --outt"),
        ("python bench/gqu.py", "there is no .*gqu.py"),
        (
            "python -m stream_vlm_ros.experiments native --shaep 3b",
            "arguments: --shaep",
        ),
        ("ros2 launch stream_vlm stream_vlm.launch.py imag:=/camera", "takes no imag"),
        ("ros2 launch stream_vlm stream.launch.py", "no launch file stream.launch.py"),
        (
            "ros2 run stream_vlm stream_vlm_node --ros-args -p max_cach_tokens:=3",
            "no parameter max_cach_tokens",
        ),
        (
            "ros2 run stream_vlm stream_vlm_node --ros-args -p engine:=steaming",
            "engine must be one of",
        ),
        ("ros2 run stream_vlm source_node --ros-args -p sourec:=drive.mp4", "no parameter sourec"),
        (
            "ros2 service call /stream_vlm/query stream_vlm/srv/Query \"{qquestion: 'What?'}\"",
            "Query.srv has no {'qquestion'}",
        ),
        (
            "ros2 service call /stream_vlm/qurey stream_vlm/srv/Query \"{question: 'What?'}\"",
            "/stream_vlm/qurey is no",
        ),
        (
            "ros2 topic echo /stream_vlm/cache_status --field level",
            "CacheStatus.msg has no {'level'}",
        ),
        (
            "hf download Qwen/Qwen2.5-VL-3B-Instruct --locale-dir here",
            "No such option '--locale-dir'",
        ),
        (
            "docker run --rm stream_vlm stream-vlm ask kitchen.mp4 'Who?' --modle model",
            "No such option: --modle",
        ),
        ("frobnicate now", "frobnicate: neither ours"),
    ],
)
def test_a_command_that_does_not_run_is_seen(line, told, here, capsys):
    with pytest.raises((AssertionError, SystemExit, Exception)) as fault:
        for command in simple_commands(line):
            check(command)
    assert re.search(told, f"{fault.value}{capsys.readouterr().err}")  # argparse prints its own
    assert os.getcwd() == str(here)


def test_a_shell_block_may_hold_nothing_unknown_and_output_is_no_command():
    page = "Text\n\n    $ stream-vlm info X\n    Folder    X\n\n```bash\nfrobnicate  # so\n```\n"
    assert printed(page) == ["frobnicate  # so", "stream-vlm info X"]


def test_the_notebook_runs_from_top_to_bottom(monkeypatch, capsys):
    """In this process, without Jupyter: its cells use nothing of it."""
    monkeypatch.setenv("MPLBACKEND", "agg")
    cells = json.loads((ROOT / "examples/first_questions.ipynb").read_text())["cells"]
    names: dict[str, object] = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), names)
    assert "What appeared first?" in capsys.readouterr().out


def python_blocks():
    found = []
    for page in PAGES:
        texts = [
            text for language, text in blocks((ROOT / page).read_text()) if language == "python"
        ]
        found += [pytest.param(textwrap.dedent(t), id=f"{page}-{n}") for n, t in enumerate(texts)]
    return found


def check_names(text: str) -> None:
    """Python that is not run: what it imports from here is there, what it calls of a node's client
    takes what it is given, and the messages have the fields that are read."""
    names: dict[str, Any] = {}
    nodes = [*ast.walk(ast.parse(text))]
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("stream_vlm_ros"):
            if node.module == "stream_vlm_ros.client":
                pytest.importorskip("stream_vlm.msg", reason="the client needs ROS")
            exec(ast.unparse(node), names)
    if "StreamVlmClient" not in names:
        return
    from stream_vlm.msg import Answer, PastAnswer

    kinds = {"memory": names["StreamVlmClient"], "answer": Answer, "past": PastAnswer}
    for node in nodes:
        match node:
            case ast.Call(func=ast.Attribute(value=ast.Name("memory"), attr=called)):
                given = {str(keyword.arg): None for keyword in node.keywords}
                method = getattr(kinds["memory"], called)
                method = kinds["memory"].stream if called == "ask" else method  # has its options
                inspect.signature(method).bind(None, *node.args, **given)
                if called == "set":
                    assert given.keys() <= NODES["stream_vlm_node"].keys(), f"no {[*given]}"
            case ast.Attribute(value=ast.Name(name), attr=read) if name in kinds:
                assert hasattr(kinds[name], read), f"{name} has no {read}"


@pytest.mark.parametrize("text", python_blocks())
def test_python_that_a_page_shows_uses_what_there_is(text):
    check_names(text)


@pytest.mark.parametrize(
    "wrong",
    [
        "await memory.aks('What?')",
        "await memory.ask('What?', thumbnials=1)",
        "await memory.set(sampel_fps=4)",
        "answer.txet",
    ],
)
def test_a_name_that_there_is_not_is_seen_in_python(wrong):
    text = f"from stream_vlm_ros.client import StreamVlmClient\nasync def main():\n    {wrong}"
    with pytest.raises((AssertionError, AttributeError, TypeError), match=r"aks|thumb|sampel|txet"):
        check_names(text)


def test_the_examples_of_the_python_page_run_one_after_the_other(here, capsys):
    page = (ROOT / "docs/python.md").read_text().replace("/models/Qwen2.5-VL-3B-Instruct", "model")
    names: dict[str, object] = {}
    for language, text in blocks(page):
        if language == "python":
            exec(text, names)
    assert capsys.readouterr().out.endswith("10\n")  # pictures of five seconds

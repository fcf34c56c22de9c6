# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""The whole system on one machine, for a newcomer: ``python -m stream_vlm_ros.demo``.

Starts a camera made of a video, the node, and a client that asks questions while the video runs,
each as a process of its own; ends by itself with a summary and exit status 0.
"""

from __future__ import annotations

from stream_vlm_ros.processes.ros_process import INTERRUPTED, end_quietly_on_signals, leave

if __name__ == "__main__":
    end_quietly_on_signals(INTERRUPTED)  # before the imports, which are slow

import argparse
import importlib.util
import os
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.text import Text

from stream_vlm_ros.config import NODE, Settings
from stream_vlm_ros.console import make_console
from stream_vlm_ros.demo.defaults import shown
from stream_vlm_ros.demo.settings import DEMO, NODE_NAME, DemoOptions
from stream_vlm_ros.errors import InvalidParameterError, StreamVlmError
from stream_vlm_ros.factory import default_model
from stream_vlm_ros.owned import check, mark
from stream_vlm_ros.processes.children import Processes, signals_as_ctrl_c, undisturbed
from stream_vlm_ros.processes.graph import own_graph, ros_arguments
from stream_vlm_ros.sources import Source, open_source, parse_size

LOGS = "logs of the demo"  # in the folder's mark
FAILED, UNUSABLE = 1, 2
SETTINGS = [row for row in Settings.table().values() if "demo" in row.verbs]


@dataclass(frozen=True)
class Options:
    """The command line, every value converted and checked."""

    demo: DemoOptions
    node: Settings
    questions: list[str]
    logs: str | None


def parse(arguments: list[str] | None = None) -> Options:
    """The command line; raises InvalidParameterError for the first value that is wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m stream_vlm_ros.demo",
        description="Run a camera made of a video, the node, and a client that asks questions.",
    )
    defaults = {row.name: row.written(row.default) for row in DemoOptions.table().values()}
    defaults["seconds"] = os.environ.get("DEMO_SECONDS") or defaults["seconds"]
    defaults |= {row.name: row.written(getattr(DEMO, row.name)) for row in SETTINGS}
    for row in (*DemoOptions.table().values(), *SETTINGS):
        default = defaults[row.name]
        parser.add_argument(
            *dict.fromkeys((row.option, f"--{row.name.replace('_', '-')}")),
            dest=row.name,
            default=default,
            metavar=row.name.rpartition("_")[2].upper(),
            help=(row.text + (f" ({default})" if default else "")).replace("%", "%%"),
        )
    add = parser.add_argument
    add("--question", action="append", default=[], help="Ask this instead (may be repeated).")
    add("--logs", metavar="FOLDER", help="Keep the logs of the processes there.")
    texts = vars(parser.parse_args(arguments))
    return Options(
        DemoOptions.parsed(texts),
        DEMO.changed({row.name: row.read(texts[row.name]) for row in SETTINGS}),
        texts["question"],
        texts["logs"],
    )


def main(arguments: list[str] | None = None) -> int:
    """Run the demo; 0 if everything held, else 1; 2 if it could not start; 130 after a signal."""
    try:
        with signals_as_ctrl_c():
            return _demo(arguments)
    except KeyboardInterrupt:
        return INTERRUPTED


def _demo(arguments: list[str] | None) -> int:
    console = make_console()
    try:
        options = parse(arguments)
        _check_installation()
        video = shown(options.demo.video, options.demo.model)
        source = open_source(video, size=parse_size(options.demo.size))
        logs = _log_folder(options.logs)
    except StreamVlmError as error:
        print(f"demo: {error}", file=sys.stderr)
        return UNUSABLE
    status = INTERRUPTED  # unless it comes to its end
    try:
        status = _run(options, video, source, logs, console)
    finally:
        with undisturbed():
            if options.logs is None and status in (0, INTERRUPTED):
                shutil.rmtree(logs, ignore_errors=True)
            elif status == FAILED:
                console.print(Text(f"The logs of the processes are in {logs}"), soft_wrap=True)
    return status


def _log_folder(named: str | None) -> Path:
    """The folder of the logs, made; one that the user named may hold other files, but no logs of
    anybody else's."""
    if named is None:
        return Path(tempfile.mkdtemp(prefix="stream_vlm_demo_"))
    logs = Path(named)
    check(logs, LOGS, ("*.log", "ros"), link=True)
    try:
        logs.mkdir(parents=True, exist_ok=True)
        mark(logs, LOGS)
    except OSError as error:
        raise InvalidParameterError(f"--logs {logs} cannot be used: {error}") from error
    return logs


def _check_installation() -> None:
    for name in ("rclpy", "stream_vlm"):
        if importlib.util.find_spec(name) is None:
            raise StreamVlmError(
                f"The Python module {name} is not there. Run the demo with 'make demo', or source "
                "ROS 2 and the workspace first (source install/setup.bash)."
            )


def _run(options: Options, video: str, source: Source, logs: Path, console: Console) -> int:
    """Start the three processes, wait for the client's end, and end the others."""
    model = Path(options.demo.model or default_model())
    _introduce(console, options, source, model)
    with own_graph(logs) as environment, Processes(logs, environment) as processes:
        processes.start("node", "stream_vlm_ros.node", *_node_arguments(options.node, model))
        processes.start("source", "stream_vlm_ros.demo.source_node", *_source(options, video))
        processes.start("client", "stream_vlm_ros.demo.client", *_client(options, video), log=False)
        reason = _watch(processes)
        stubborn = processes.stop()
        status = processes.status("client")
        if reason is None and stubborn:
            reason = f"did not end when asked: {', '.join(stubborn)}"
        for name in ("node", "source"):
            if reason is None and processes.status(name) != 0:
                reason = _ended_badly(processes, name)
    if reason is not None:
        console.print(Text(f"Failed: {reason}", style="red"), soft_wrap=True)
        return FAILED
    return 0 if status == 0 else FAILED


def _watch(processes: Processes) -> str | None:
    """Wait for the client; why the demo failed, if another process ended or told an error."""
    over = False
    while not over:
        over = processes.status("client") is not None
        for name in ("node", "source"):
            if processes.status(name) is not None:
                return _ended_badly(processes, name)
            error = processes.error_of(name)
            if error is not None:
                return f"the {name} says: {error}"
        time.sleep(0.2)
    return None


def _ended_badly(processes: Processes, name: str) -> str:
    tail = processes.tail_of(name)
    status = processes.status(name)
    return f"the {name} ended with status {status}; it said last:\n{tail}"


def _introduce(console: Console, options: Options, source: Source, model: Path) -> None:
    size = "{}x{}".format(*source.size) if source.size else "any size"
    rate = options.demo.rate or source.rate
    pace = f", {rate:.3g} images/s" if rate else ""
    settings = options.node
    bound = f"{settings.max_cache_tokens:,}" if settings.max_cache_tokens else "as many as fit:"
    rows = [
        ("Camera", f"{source.name}, {size}{pace}, published as sensor_msgs/Image"),
        (
            "Memory",
            f"{settings.sample_fps:g} frames/s in chunks of {settings.chunk_frames}, at most "
            f"{bound} tokens",
        ),
        ("Model", _said_of(model)),
        ("Client", f"asks for {options.demo.seconds:g} s while the video runs, then ends the demo"),
    ]
    console.print(Text("stream_vlm demo", style="bold"))
    for label, text in rows:
        console.print(Text(f"{label:<10}{text}"), soft_wrap=True)
    console.print()


def _said_of(model: Path) -> str:
    if model == default_model():
        return "the small one that comes with the package; it knows the drawn world alone"
    return str(model)


def _node_arguments(settings: Settings, model: Path) -> list[str]:
    return ros_arguments({**settings.changes(NODE), "model_path": str(model)})


def _source(options: Options, video: str) -> list[str]:
    return ros_arguments(
        {
            "source": video,
            "rate": options.demo.rate,
            "size": options.demo.size,
            "wait_for_subscriber": True,
        }
    )


def _client(options: Options, video: str) -> list[str]:
    parameters = {
        "source": video,
        "node": NODE_NAME,
        "seconds": options.demo.seconds,
        "count": options.demo.count,
        "sample_fps": options.node.sample_fps,
    }
    if options.questions:
        parameters["questions"] = options.questions
    return ros_arguments(parameters)


if __name__ == "__main__":
    leave(main())

# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""The whole system on one machine, for a newcomer: the verb ``stream-vlm demo``.

Starts a camera made of a video, the node, and a client that asks questions while the video runs,
each as a process of its own; ends by itself with a summary and exit status 0.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.text import Text

from stream_vlm_ros.config import NODE, Settings
from stream_vlm_ros.console import make_console
from stream_vlm_ros.demo.defaults import shown
from stream_vlm_ros.demo.settings import NODE_NAME, DemoOptions, check_checkpoint
from stream_vlm_ros.errors import InvalidParameterError
from stream_vlm_ros.factory import default_model, model_folder
from stream_vlm_ros.owned import check, mark, place_to_write
from stream_vlm_ros.processes.children import Processes, undisturbed
from stream_vlm_ros.processes.graph import check_ros, own_graph, ros_arguments
from stream_vlm_ros.sources import Source, open_source, parse_size

LOGS = "logs of the demo"  # in the folder's mark
FAILED = 1


def run_demo(
    options: DemoOptions, settings: Settings, questions: list[str], logs_folder: str | None
) -> int:
    """Run the demo; 0 if everything held, else 1.

    Raises StreamVlmError where it cannot start, KeyboardInterrupt after a signal; its processes are
    ended then, too.

    Args:
        settings: the node's.
        questions: to ask in place of those that suit the video.
        logs_folder: for the logs of the processes; else they are kept where it failed.
    """
    check_checkpoint(settings.model_path)
    check_ros()
    video = shown(options.video, settings.model_path)
    source = open_source(video, size=parse_size(options.size))
    logs = _log_folder(logs_folder)
    console = make_console()
    failed = False
    try:
        model = model_folder(settings)
        _introduce(console, options, settings, source, model)
        arguments = {
            "node": _node_arguments(settings, model),
            "source": _source(options, video),
            "client": _client(options, settings, questions, video),
        }
        failed = _run(arguments, logs, console) == FAILED
    finally:
        with undisturbed():
            if failed:
                console.print(Text(f"The logs of the processes are in {logs}"), soft_wrap=True)
            elif logs_folder is None:
                shutil.rmtree(logs, ignore_errors=True)
    return FAILED if failed else 0


def _log_folder(named: str | None) -> Path:
    """The folder of the logs, made; one that the user named may hold other files, but no logs of
    anybody else's."""
    if named is None:
        return Path(tempfile.mkdtemp(prefix="stream_vlm_demo_"))
    logs = place_to_write("--logs", named)
    check(logs, LOGS, ("*.log", "ros"), link=True)
    try:
        logs.mkdir(parents=True, exist_ok=True)
        mark(logs, LOGS)
    except OSError as error:
        raise InvalidParameterError(f"--logs {logs} cannot be used: {error}") from error
    return logs


def _run(arguments: dict[str, list[str]], logs: Path, console: Console) -> int:
    """Start the three processes, wait for the client's end, and end the others."""
    with own_graph(logs) as environment, Processes(logs, environment) as processes:
        processes.start("node", "stream_vlm_ros.node", *arguments["node"])
        processes.start("source", "stream_vlm_ros.demo.source_node", *arguments["source"])
        processes.start("client", "stream_vlm_ros.demo.client", *arguments["client"], log=False)
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


def _introduce(
    console: Console, options: DemoOptions, settings: Settings, source: Source, model: Path
) -> None:
    size = "{}x{}".format(*source.size) if source.size else "any size"
    rate = options.rate or source.rate
    pace = f", {rate:.3g} images/s" if rate else ""
    bound = f"{settings.max_cache_tokens:,}" if settings.max_cache_tokens else "as many as fit:"
    rows = [
        ("Camera", f"{source.name}, {size}{pace}, published as sensor_msgs/Image"),
        (
            "Memory",
            f"{settings.sample_fps:g} frames/s in chunks of {settings.chunk_frames}, at most "
            f"{bound} tokens",
        ),
        ("Model", _said_of(model)),
        ("Client", f"asks for {options.seconds:g} s while the video runs, then ends the demo"),
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


def _source(options: DemoOptions, video: str) -> list[str]:
    return ros_arguments(
        {
            "source": video,
            "rate": options.rate,
            "size": options.size,
            "wait_for_subscriber": True,
        }
    )


def _client(
    options: DemoOptions, settings: Settings, questions: list[str], video: str
) -> list[str]:
    parameters = {
        "source": video,
        "node": NODE_NAME,
        "seconds": options.seconds,
        "count": options.count,
        "sample_fps": settings.sample_fps,
    }
    if questions:
        parameters["questions"] = questions
    return ros_arguments(parameters)

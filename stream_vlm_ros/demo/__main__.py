"""The whole system on one machine, for a newcomer: ``python -m stream_vlm_ros.demo``.

Starts a camera made of a video, the node, and a client that asks questions while the video runs,
each as a process of its own; ends by itself with a summary and exit status 0.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.text import Text

from stream_vlm_ros.config import NODE, Settings
from stream_vlm_ros.console import make_console
from stream_vlm_ros.demo.defaults import default_source, default_video
from stream_vlm_ros.demo.settings import DEMO
from stream_vlm_ros.errors import InvalidParameterError, StreamVlmError
from stream_vlm_ros.factory import default_model
from stream_vlm_ros.owned import check, mark
from stream_vlm_ros.processes.children import Processes
from stream_vlm_ros.processes.graph import own_graph, ros_arguments
from stream_vlm_ros.sources import Source, open_source, parse_size

NODE_NAME = "stream_vlm"
LOGS = "logs of the demo"  # in the folder's mark
FAILED, UNUSABLE, INTERRUPTED = 1, 2, 130
SETTINGS = [row for row in Settings.table().values() if "demo" in row.verbs]


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m stream_vlm_ros.demo",
        description="Run a camera made of a video, the node, and a client that asks questions.",
    )
    seconds = os.environ.get("DEMO_SECONDS") or "40"  # a text, so that argparse checks it
    add = parser.add_argument
    add("--seconds", type=float, default=seconds, help="how long to ask (%(default)s)")
    shown = "a video, a folder of images, /dev/video0, world:SEED, or real: a short real video"
    add("--video", metavar="SOURCE", help=f"what the camera shows: {shown}")
    add("--size", help="scale the video to WIDTHxHEIGHT")
    add("--rate", type=float, default=0.0, help="images per second (the video's own)")
    add("--model", metavar="FOLDER", help="a Qwen2.5-VL checkpoint on this machine")
    add("--question", action="append", default=[], help="ask this instead (may be repeated)")
    add("--count", type=int, default=0, help="how many questions (one every few seconds)")
    for row in SETTINGS:
        default = getattr(DEMO, row.name)
        names = dict.fromkeys((row.option, f"--{row.name.replace('_', '-')}"))
        shown = f"{row.text} ({default})".replace("%", "%%")
        add(*names, dest=row.name, type=row.type, default=default, help=shown)
    add("--logs", metavar="FOLDER", help="keep the logs of the processes there")
    options = parser.parse_args(arguments)
    if not options.seconds >= 1:
        parser.error("--seconds must be at least 1")
    try:
        options.settings = DEMO.changed({row.name: getattr(options, row.name) for row in SETTINGS})
    except InvalidParameterError as refusal:
        parser.error(str(refusal))
    return options


def main(arguments: list[str] | None = None) -> int:
    """Run the demo; 0 if everything held, else 1; 2 if it could not start; 130 after Ctrl-C."""
    options = parse(arguments)
    console = make_console()
    signal.signal(signal.SIGTERM, lambda *_: _interrupt())
    signal.signal(signal.SIGINT, signal.default_int_handler)  # in a shell's background: ignored
    try:
        _check_installation()
        video = options.video or default_source(options.model)
        if video == "real":
            video = str(default_video())
        source = open_source(video, size=parse_size(options.size))
        logs = _log_folder(options.logs)
    except StreamVlmError as error:
        print(f"demo: {error}", file=sys.stderr)
        return UNUSABLE
    status = FAILED
    try:
        status = _run(options, video, source, logs, console)
    except KeyboardInterrupt:
        status = INTERRUPTED
    finally:
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


def _interrupt() -> None:
    raise KeyboardInterrupt


def _check_installation() -> None:
    for name in ("rclpy", "stream_vlm"):
        if importlib.util.find_spec(name) is None:
            raise StreamVlmError(
                f"The Python module {name} is not there. Run the demo with 'make demo', or source "
                "ROS 2 and the workspace first (source install/setup.bash)."
            )


def _run(options, video: str, source: Source, logs: Path, console: Console) -> int:
    """Start the three processes, wait for the client's end, and end the others."""
    model = options.model or default_model()
    _introduce(console, options, source, model)
    with own_graph(logs) as environment, Processes(logs, environment) as processes:
        processes.start("node", "stream_vlm_ros.node", *_node_arguments(options.settings, model))
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


def _introduce(console: Console, options, source: Source, model) -> None:
    size = "{}x{}".format(*source.size) if source.size else "any size"
    rate = options.rate or source.rate
    pace = f", {rate:.3g} images/s" if rate else ""
    settings = options.settings
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


def _said_of(model) -> str:
    if model == default_model():
        return "the small one that comes with the package; it knows the drawn world alone"
    return str(model)


def _node_arguments(settings: Settings, model) -> list[str]:
    return ros_arguments({**settings.changes(NODE), "model_path": str(model)})


def _source(options, video: str) -> list[str]:
    return ros_arguments(
        {
            "source": video,
            "rate": options.rate,
            "size": options.size or "",
            "wait_for_subscriber": True,
        }
    )


def _client(options, video: str) -> list[str]:
    parameters = {
        "source": video,
        "node": NODE_NAME,
        "seconds": options.seconds,
        "count": options.count,
        "sample_fps": options.sample_fps,
    }
    if options.question:
        parameters["questions"] = options.question
    return ros_arguments(parameters)


if __name__ == "__main__":
    sys.exit(main())

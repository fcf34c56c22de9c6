# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""The whole system on one machine, for a newcomer: the verb ``stream-vlm demo``.

Starts a camera made of a video, the node, and a client that asks questions while the video runs,
each as a process of its own; on a terminal, questions typed there follow, until Ctrl-C. It ends
with a summary, and exit status 0 if everything held.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from subprocess import DEVNULL

from rich.console import Console
from rich.table import Table
from rich.text import Text

from stream_vlm_ros.config import NODE, Settings
from stream_vlm_ros.console import make_console
from stream_vlm_ros.demo.console_process import ConsoleProcess
from stream_vlm_ros.demo.defaults import shown
from stream_vlm_ros.demo.prompt import Prompt, on_a_terminal
from stream_vlm_ros.demo.report import MARGIN
from stream_vlm_ros.demo.settings import NODE_NAME, DemoOptions, check_checkpoint
from stream_vlm_ros.errors import InvalidParameterError, runs_here
from stream_vlm_ros.factory import card_of, model_folder
from stream_vlm_ros.owned import check, mark, place_to_write
from stream_vlm_ros.processes.children import Processes, undisturbed
from stream_vlm_ros.processes.graph import check_ros, on_this_machine, own_graph, ros_arguments
from stream_vlm_ros.session.memory_keeper import usual_folder
from stream_vlm_ros.sources import Source, open_source, parse_size
from stream_vlm_ros.world.examiner import examples_for

LOGS = "logs of the demo"  # in the folder's mark
DOMAIN = 77  # of ROS: the same from run to run, where it is free
FAILED = 1
LOOK_AGAIN = 0.2  # s between two looks at the processes


def run_demo(
    options: DemoOptions, settings: Settings, questions: list[str], logs_folder: str | None
) -> int:
    """Run the demo; 0 if everything held, else 1.

    Raises StreamVlmError where it cannot start, KeyboardInterrupt after Ctrl-C or another signal,
    unless questions can be typed already: then that brings the summary. Its processes are ended
    each time.

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
    failed, typed = False, on_a_terminal()
    try:
        model = model_folder(settings)
        _introduce(console, options, settings, source, typed)
        arguments = {
            "node": _node_arguments(settings, model, options.web),
            "source": _source(options, video),
            "client": _client(options, settings, questions, video, typed),
        }
        with Prompt(examples_for(video)) if typed else nullcontext() as prompt:
            failed = _run(arguments, logs, console, prompt, options.web) == FAILED
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


def _run(
    arguments: dict[str, list[str]], logs: Path, console: Console, prompt: Prompt | None, web: bool
) -> int:
    """Start the processes, wait for the client's end, and end the others."""
    with own_graph(logs, DOMAIN) as environment, Processes(logs, environment) as processes:
        processes.start("node", "stream_vlm_ros.node", *arguments["node"])
        processes.start("source", "stream_vlm_ros.demo.source_node", *arguments["source"])
        processes.start(
            "client",
            "stream_vlm_ros.demo.client",
            *arguments["client"],
            log=False,
            stdin=prompt.far_end.fileno() if prompt else DEVNULL,
        )
        in_browser = ConsoleProcess(processes)
        if web:
            console.print(Text(f"{'Browser':<10}{in_browser.start()}"), soft_wrap=True)
        _say_how_to_reach_it(console, environment)
        reason = _watch(processes, prompt, lambda: _tell(console, in_browser.news()))
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


def _watch(
    processes: Processes, prompt: Prompt | None, meanwhile: Callable[[], None]
) -> str | None:
    """Wait for the client, and hand it what is typed; why the demo failed, if it did."""
    if prompt is not None:
        prompt.far_end.close()  # the client has it
    reason, over = None, False
    while reason is None and not over:
        try:
            over = processes.status("client") is not None
            reason = _trouble(processes)
            meanwhile()
            if prompt is None:
                time.sleep(LOOK_AGAIN)
            elif reason is not None:
                prompt.end()
            elif prompt.is_wanted(LOOK_AGAIN):
                prompt.pass_on(
                    lambda: _trouble(processes) or processes.status("client") is not None
                )
        except KeyboardInterrupt:
            if prompt is None or not prompt.open:
                raise
            prompt.end()
    return reason


def _tell(console: Console, words: str) -> None:
    if words:
        console.print(Text(words), soft_wrap=True)


def _trouble(processes: Processes) -> str | None:
    """Why the demo failed, if a process but the client ended or told an error."""
    for name in ("node", "source"):
        if processes.status(name) is not None:
            return _ended_badly(processes, name)
        error = processes.error_of(name)
        if error is not None:
            return f"the {name} says: {error}"
    return None


def _ended_badly(processes: Processes, name: str) -> str:
    tail = processes.tail_of(name)
    status = processes.status(name)
    return f"the {name} ended with status {status}; it said last:\n{tail}"


def _introduce(
    console: Console,
    options: DemoOptions,
    settings: Settings,
    source: Source,
    typed: bool,
) -> None:
    card = card_of(settings)
    size = "{}x{}".format(*source.size) if source.size else "any size"
    rate = options.rate or source.rate
    pace = f", {rate:.3g} images/s" if rate else ""
    bound = f"{settings.max_cache_tokens:,}" if settings.max_cache_tokens else "as many as fit:"
    then = "it is your turn; Ctrl-C ends the demo" if typed else "ends the demo"
    rows = [
        ("Camera", f"{source.name}, {size}{pace}, published as sensor_msgs/Image"),
        (
            "Memory",
            f"{settings.sample_fps:g} frames/s in chunks of {settings.chunk_frames}, at most "
            f"{bound} tokens",
        ),
        ("Model", card.warning(source.name) or str(card)),
        ("Client", f"asks for {options.seconds:g} s, then {then}"),
    ]
    console.print(Text("stream_vlm demo", style="bold"))
    table = Table.grid()
    table.add_column(width=MARGIN)
    table.add_column(overflow="fold")
    for label, text in rows:
        table.add_row(Text(label), Text(text))
    console.print(table)


def _say_how_to_reach_it(console: Console, environment: dict[str, str]) -> None:
    """What to type in a second terminal."""
    domain = environment["ROS_DOMAIN_ID"]
    reach = " ".join(f"{name}={value}" for name, value in on_this_machine().items())
    lines = [
        f"ROS       domain {domain}, on this machine alone; from a second terminal, here:",
        f"    export ROS_DOMAIN_ID={domain} {reach}",
        "    " + runs_here("stream-vlm watch"),
        "    " + runs_here(f'stream-vlm ask --node /{NODE_NAME} "What do you see now?"'),
        "    " + runs_here("stream-vlm node list"),
    ]
    for line in lines:
        console.print(Text(line), soft_wrap=True)
    console.print()


def _node_arguments(settings: Settings, model: Path, web: bool) -> list[str]:
    saves = {"memory_folder": usual_folder()} if web else {}  # by the console's button alone
    return ros_arguments({**saves, **settings.changes(NODE), "model_path": str(model)})


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
    options: DemoOptions, settings: Settings, questions: list[str], video: str, typed: bool
) -> list[str]:
    parameters = {
        "source": video,
        "node": NODE_NAME,
        "seconds": options.seconds,
        "count": options.count,
        "sample_fps": settings.sample_fps,
        "typed": typed,
    }
    if questions:
        parameters["questions"] = questions
    return ros_arguments(parameters)

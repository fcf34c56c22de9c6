# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""``stream-vlm``: the engine from the command line, without ROS, and nodes that run.

Each verb is a few lines.
"""

from __future__ import annotations

import errno
import functools
import inspect
import json
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

# Ctrl-C during the slow imports below ends the process by the signal, without a traceback.
if (
    threading.current_thread() is threading.main_thread()
    and signal.getsignal(signal.SIGINT) is signal.default_int_handler
):
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text
from typer.core import TyperGroup

from stream_vlm_ros import __version__
from stream_vlm_ros.cli_experiment import ExperimentGroup
from stream_vlm_ros.cli_node import (
    NODE_OPTION,
    AskCommand,
    ask_node,
    check_about,
    choices_of,
    if_a_topic,
    node_app,
    questions_of,
    watch,
)
from stream_vlm_ros.cli_web import WebCommand
from stream_vlm_ros.config import Settings
from stream_vlm_ros.demo.settings import DEMO, DemoOptions
from stream_vlm_ros.processes.children import signals_as_ctrl_c
from stream_vlm_ros.serve.cluster import Cluster
from stream_vlm_ros.serve.options import Limits
from stream_vlm_ros.setting import Setting, SettingTable

if TYPE_CHECKING:
    from stream_vlm_ros.engine import SavedMemory

if (
    threading.current_thread() is threading.main_thread()
    and signal.getsignal(signal.SIGINT) is signal.SIG_DFL
):
    signal.signal(signal.SIGINT, signal.default_int_handler)

COMMAND = "stream_vlm command"  # where a verb finds all arguments, in its context
INCOMPLETE, UNUSABLE, INTERRUPTED = 1, 2, 130  # exit statuses
# What the system says of a place that the user named: no fault of ours.
REFUSALS = (errno.ENOSPC, errno.EDQUOT, errno.ENAMETOOLONG, errno.EACCES, errno.EROFS, errno.ELOOP)
ENGINE_HELP = (
    "streaming or delayed_batch, then settings, such as streaming,max_cache_tokens=4096 "
    "(docs/replay.md)."
)


class Verbs(TyperGroup):
    """Errors raised on purpose end a verb with one line on stderr and exit status 2."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        ctx.meta[COMMAND] = tuple(args)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        from stream_vlm_ros.console import print_anything, say_lines

        print_anything()
        try:
            with signals_as_ctrl_c():
                return super().invoke(ctx)
        except KeyboardInterrupt:
            raise typer.Exit(INTERRUPTED) from None
        except Exception as error:
            from stream_vlm_ros.errors import StreamVlmError

            refused = isinstance(error, OSError) and error.errno in REFUSALS
            if not isinstance(error, StreamVlmError) and not refused:
                raise
            say_lines(Console(highlight=False, stderr=True), f"stream-vlm: {error}")
            raise typer.Exit(UNUSABLE) from error


# What sources of one kind take; open_source says so where another kind is given them.
Topics = Annotated[
    list[str] | None, typer.Option(help="Image topic of a bag, or all; may be repeated.")
]
Stamps = Annotated[
    str | None, typer.Option(help="Time of a bag's images: header (default) or recorded.")
]
MaxTimeGap = Annotated[
    float | None,
    typer.Option(help="Of a bag: a longer gap in seconds is a time jump (default 3600)."),
]
FrameRate = Annotated[
    float | None,
    typer.Option(help="Images a second of a folder, instead of times in their names."),
]

app = typer.Typer(
    cls=Verbs,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    # Plain help: panels cut words off in a terminal of 80 columns.
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Visual memory for robots: ask in plain language what a camera has seen.",
)


def takes_settings(
    verb: str, defaults: SettingTable | None = None, parameter: str = "settings"
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a verb an option for each setting that names it, and hand them to it as ``parameter``.

    Args:
        defaults: of the table whose rows they are; without it those of `Settings`.
    """
    base = defaults or Settings()

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        rows = [row for row in base.table().values() if verb in row.verbs]

        def run(*given: Any, **named: Any) -> None:
            named[parameter] = base.changed({row.name: named.pop(row.name) for row in rows})
            function(*given, **named)

        # What typer reads to make a command.
        told: Any = functools.update_wrapper(run, function)
        del told.__wrapped__

        signature = inspect.signature(function, eval_str=True)
        parameters = [p for p in signature.parameters.values() if p.name != parameter]
        parameters += [_option(row, getattr(base, row.name)) for row in rows]
        told.__signature__ = signature.replace(parameters=parameters)
        told.__annotations__ = {p.name: p.annotation for p in parameters}
        return run

    return decorate


def _option(row: Setting, default: Any) -> inspect.Parameter:
    spelling = f"{row.option}/--no-{row.short}" if default is True else row.option
    option = typer.Option(
        spelling, help=row.text, show_default=default != "", envvar=row.environment or None
    )
    return inspect.Parameter(
        row.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=default,
        annotation=Annotated[row.type, option],
    )


def _check_model(settings: Settings) -> None:
    """What is quick comes first: a folder that is not there is told before the source is opened."""
    from stream_vlm_ros.errors import check_model_folder
    from stream_vlm_ros.factory import model_folder

    check_model_folder(model_folder(settings))


def _say_what_to_expect(settings: Settings, source: str, side: Console) -> None:
    """Before the answers of a model to pictures of which it knows nothing, by its own card."""
    from stream_vlm_ros.console import say
    from stream_vlm_ros.factory import card_of

    if warning := card_of(settings).warning(source):
        say(side, Text(f"{warning}. Choose another with --model"))


@app.callback(invoke_without_command=True)
def common(
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False,
) -> None:
    if version:
        print(f"stream-vlm {__version__}")
        raise typer.Exit


@app.command(cls=AskCommand)
@takes_settings("ask")
def ask(
    context: typer.Context,
    settings: Settings,
    video: Annotated[
        str,
        typer.Argument(
            metavar="VIDEO",
            help="A video, a bag, a folder of images, /dev/video0, rtsp://..., or world:SEED; - "
            "for none, with --load-memory. Left out with --node.",
        ),
    ] = "",
    questions: Annotated[
        list[str] | None, typer.Argument(metavar="QUESTIONS", help="One or more questions.")
    ] = None,
    node: Annotated[str | None, NODE_OPTION] = None,
    at: Annotated[
        float | None,
        typer.Option(help="Ask when the video has run for this many seconds, as in a replay."),
    ] = None,
    choice: Annotated[
        list[str] | None, typer.Option(help="A choice to pick from; give the option once for each.")
    ] = None,
    choices: Annotated[
        str | None, typer.Option(help="All choices at once, separated by commas.")
    ] = None,
    end: Annotated[
        float | None, typer.Option(min=0, help="End at this many seconds of the video, then ask.")
    ] = None,
    size: Annotated[
        str | None, typer.Option(help="Scale the pictures to WIDTHxHEIGHT first.")
    ] = None,
    topic: Annotated[str | None, typer.Option(help="Image topic of a bag.")] = None,
    stamps: Stamps = None,
    max_time_gap: MaxTimeGap = None,
    frame_rate: FrameRate = None,
    engine: Annotated[str | None, typer.Option(help=ENGINE_HELP)] = None,
    about: Annotated[
        tuple[float, float] | None,
        typer.Option(
            metavar="FROM TO",
            help="The seconds of the video the question is about; with --node stamps, or up to 0 "
            "those before its newest frame.",
        ),
    ] = None,
    source_name: Annotated[
        list[str] | None,
        typer.Option("--source", help="With --node: which of its memories is asked."),
    ] = None,
    cancel_after: Annotated[
        float | None, typer.Option(min=0, help="With --node: cancel an answer after these seconds.")
    ] = None,
    wait: Annotated[
        float, typer.Option(min=0.1, max=3600, help="With --node: seconds to wait for it.")
    ] = 10.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """Stream VIDEO through the memory, then ask it QUESTIONS.

    A camera has no end: stream-vlm ask /dev/video0 "What is on the table?" --at 10 --model FOLDER.

    Or ask a node that runs: stream-vlm ask --node "What is on the table?"
    """
    if node is not None:
        raise typer.Exit(0 if ask_node(node, wait, context.obj) else INCOMPLETE)
    asked, choice = questions_of(video, questions), choices_of(choice, choices)
    from stream_vlm_ros.console import bytes_text, say
    from stream_vlm_ros.errors import (
        InvalidParameterError,
        OutOfHorizonError,
        SourceNotFoundError,
        SourceUnreadableError,
    )
    from stream_vlm_ros.factory import card_of, load_engine
    from stream_vlm_ros.replay import feed
    from stream_vlm_ros.replay.feeding import Behind, Fed, loaded_until
    from stream_vlm_ros.replay.memories import RunMemory, check_free
    from stream_vlm_ros.replay.records import forgotten
    from stream_vlm_ros.replay.settings import changed
    from stream_vlm_ros.replay.terminal import Dialogue, WatchingBar, memory_text
    from stream_vlm_ros.sources import open_source, parse_size, without_secrets
    from stream_vlm_ros.sources.sampling import MAX_SECONDS

    if at is not None and not 0 < at <= MAX_SECONDS:
        raise InvalidParameterError(
            f"--at is {at:g} s; it must be above 0 and at most {MAX_SECONDS:.0f}."
        )
    if about is not None:
        check_about(about)
    out, side = Console(highlight=False), Console(highlight=False, stderr=True)
    settings = changed(settings, engine)
    _check_model(settings)
    if settings.save_memory:
        check_free(settings.save_memory)
    newest_ns = loaded_until(settings)
    source, place = None, without_secrets(video)
    if video != "-" or newest_ns is None:
        try:
            source = open_source(
                video,
                fps=settings.sample_fps or None,
                end=end,
                size=parse_size(size),
                max_decoded_megapixels=settings.max_decoded_megapixels,
                topics=None if topic is None else [topic],
                stamps=stamps,
                max_time_gap=max_time_gap,
                frame_rate=frame_rate,
            )
        except SourceNotFoundError as missing:
            raise SourceNotFoundError(f"{missing}{if_a_topic(video, asked[0])}") from None
        if source.endless and at is None:
            raise InvalidParameterError(f"{place} has no end; use --at SECONDS to say when to ask.")
    with side.status("Loading the model"):
        memories = RunMemory(settings, load_engine)
        context.call_on_close(memories.close)
        memory = memories.engine()
    if source is None:
        fed = Fed(first_ns=round(1e9 * (memory.get_cache_info().oldest_timestamp or 0.0)))
    else:
        frames = Behind(source, newest_ns)
        with WatchingBar(side, source, at) as bar:
            fed = feed(memory, frames, settings.chunk_frames, bar, at, settings.at_question)
        state = source.state
        told = [note for note in (state.damage, *state.notes, fed.note) if note]
        if not fed.frames:
            nothing = f"{place} gave no frames to ask about."
            raise SourceUnreadableError(" ".join([nothing, *told]))
        late = None if at is None else fed.asked_late(at, source, settings.sample_fps)
        for note in filter(None, [*told, frames.note, late]):
            say(side, Text(f"Note: {note}"))
    _say_what_to_expect(settings, video, side)
    dialogue = Dialogue(memory, None if as_json else out, (fed.first_ns or 0) / 1e9)

    def tell(saved: SavedMemory) -> None:
        text = f"Memory saved as {settings.save_memory}, {bytes_text(saved.bytes)}"
        side.print(Text(text, style="dim"), soft_wrap=True)

    with memories.saved_at_the_end(tell):
        try:
            answers = [
                dialogue.ask(question, choice, settings.max_new_tokens, fed.span(about))
                for question in asked
            ]
        except OutOfHorizonError as error:
            held = memory.get_cache_info()
            raise forgotten(about or (0.0, 0.0), held, fed.first_ns or 0) from error
        info = memory.get_cache_info()
        if as_json:
            name = source.name if source is not None else settings.load_memory
            who = {"source": name, "model": str(card_of(settings))}
            print(json.dumps({**who, "memory": info.as_dict(), "answers": answers}))
        else:
            say(out, Text(memory_text(info, fed), style="dim"))


@app.command()
@takes_settings("replay")
def replay(
    context: typer.Context,
    settings: Settings,
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="A rosbag, a video, a folder of images, rtsp://..., or world:SEED.",
        ),
    ],
    questions: Annotated[Path, typer.Option(help="File of timed questions (docs/replay.md).")],
    out: Annotated[str, typer.Option(metavar="FOLDER", help="Folder of the report.")] = "report",
    engine: Annotated[str | None, typer.Option(help=ENGINE_HELP)] = None,
    compare: Annotated[
        list[str] | None,
        typer.Option(help="A further run with changes: NAME:setting=value,... May be repeated."),
    ] = None,
    topic: Topics = None,
    stamps: Stamps = None,
    max_time_gap: MaxTimeGap = None,
    frame_rate: FrameRate = None,
    start: Annotated[float | None, typer.Option(min=0, help="Begin at this many seconds.")] = None,
    end: Annotated[float | None, typer.Option(min=0, help="End at this many seconds.")] = None,
    bag: Annotated[
        bool, typer.Option("--bag", help="Write images and answers into an MCAP bag.")
    ] = False,
    realtime: Annotated[
        bool,
        typer.Option("--realtime", help="Run through the node over DDS, at the source's own pace."),
    ] = False,
    attach: Annotated[
        str | None,
        typer.Option(
            help="Run in real time with this node, which is running already (such as /stream_vlm). "
            "SOURCE is what it sees: a recording with --play, or a camera's topic with --end."
        ),
    ] = None,
    play: Annotated[
        str | None,
        typer.Option(
            help="With --attach: the command that plays SOURCE, such as 'ros2 bag play drive "
            "--clock 100 --delay 2'."
        ),
    ] = None,
    fail_under: Annotated[
        float | None, typer.Option(help="Exit with status 1 below this accuracy, such as 0.8.")
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Do not resume an interrupted replay.")
    ] = False,
) -> None:
    """Replay SOURCE, ask timed questions, write a report.

    Nothing is dropped, unless it runs in real time.
    """
    side = Console(highlight=False, stderr=True)
    with side.status("Starting"):
        from stream_vlm_ros.console import make_console
        from stream_vlm_ros.owned import place_to_write
        from stream_vlm_ros.replay.command import run_job, settings_of
        from stream_vlm_ros.replay.job import ReplayJob
        from stream_vlm_ros.replay.live.realtime import realtime_run
        from stream_vlm_ros.replay.questions import load_questions

    if attach is None:  # a node that runs already has a model of its own
        _check_model(settings)
    job = ReplayJob(
        source,
        load_questions(questions),
        settings_of(settings, engine, compare or []),
        place_to_write("--out", out),
        {
            "topics": topic,
            "stamps": stamps,
            "max_time_gap": max_time_gap,
            "frame_rate": frame_rate,
            "start": start,
            "end": end,
        },
        resume=not fresh,
        bag=bag,
        run_live=realtime_run if realtime or attach else None,
        attach=attach,
        play=play,
        command=context.meta[COMMAND],
        console=side,
    )
    if attach is None:  # a node that runs already has a model of its own
        _say_what_to_expect(job.settings[0], source, side)
    raise typer.Exit(run_job(job, fail_under, make_console()))


@app.command()
@takes_settings("rate")
def rate(
    settings: Settings,
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="What the camera shows: a bag, a video, ...")
    ],
    engine: Annotated[str | None, typer.Option(help=ENGINE_HELP)] = None,
    size: Annotated[str | None, typer.Option(help="Scale the pictures to WIDTHxHEIGHT.")] = None,
    seconds: Annotated[float, typer.Option(min=1, max=3600, help="Length of a trial.")] = 5.0,
    highest: Annotated[float, typer.Option(min=1, max=10_000, help="Highest rate tried.")] = 120.0,
    loss: Annotated[float, typer.Option(min=0.001, max=1, help="Share that may be lost.")] = 0.05,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """Find the highest camera rate the node keeps up with.

    Images reach it over DDS, at rising rates.
    """
    from stream_vlm_ros.console import duration_text, make_console
    from stream_vlm_ros.progress import counted
    from stream_vlm_ros.replay.command import print_rate
    from stream_vlm_ros.replay.live.realtime import max_trials, probe_rate
    from stream_vlm_ros.replay.settings import changed
    from stream_vlm_ros.sources import open_source, parse_size

    settings = changed(settings, engine)
    _check_model(settings)
    options = {"size": parse_size(size)}
    open_source(source)  # what is wrong with it is told before anything starts
    trials = max_trials(highest)
    longest = duration_text(trials * max(seconds, 4.0))  # four pictures at least, at 1 image/s
    text = f"At most {trials} trials, {longest} in all"
    print(f"{text}, plus the time the node takes to start and settle.", file=sys.stderr)
    with counted(Console(stderr=True), "Trials", trials) as step:
        found = probe_rate(settings, source, options, seconds, highest, loss, step)
    if as_json:
        print(json.dumps(found))
    else:
        print_rate(found, make_console())


report_app = typer.Typer(no_args_is_help=True, help="Work with the reports of replays.")
app.add_typer(report_app, name="report")


@report_app.command()
def diff(
    a: Annotated[str, typer.Argument(metavar="A", help="A report: its folder or its JSON file.")],
    b: Annotated[str, typer.Argument(metavar="B", help="Another report.")],
    run_a: Annotated[str | None, typer.Option(help="Run of A; else the first.")] = None,
    run_b: Annotated[str | None, typer.Option(help="Run of B; else the first.")] = None,
    fail_on_regression: Annotated[
        bool,
        typer.Option(
            "--fail-on-regression",
            help="Exit with status 3 if a question that A answered right is not right in B.",
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """Compare two reports: what differs, and whether it may be chance."""
    with Console(stderr=True).status("Comparing"):
        from stream_vlm_ros.replay.command import REGRESSED, diff, print_diff, print_regressions

    difference = diff(a, b, run_a, run_b)
    if as_json:
        print(json.dumps(difference))
    else:
        print_diff(difference, Console(highlight=False))
    if fail_on_regression and difference["regressions"]:
        print_regressions(difference, Console(highlight=False, stderr=True))
        raise typer.Exit(REGRESSED)


@app.command()
@takes_settings("info")
def info(
    settings: Settings,
    model: Annotated[
        Path, typer.Argument(metavar="MODEL", help="Folder of a Qwen2.5-VL checkpoint.")
    ],
    size: Annotated[str, typer.Option(help="Size of the camera's pictures.")] = "640x480",
    max_cache_tokens: Annotated[
        list[int] | None, typer.Option(min=1, help="Show what this cap costs; may be repeated.")
    ] = None,
) -> None:
    """Show what checkpoint MODEL holds and its KV cache costs.

    The exit status is 1 if files are missing or broken.
    """
    side = Console(stderr=True)
    with side.status("Reading the checkpoint"):
        from stream_vlm_ros.replay.checkpoint import CheckpointInfo, PictureCost
        from stream_vlm_ros.sources import parse_size

        checkpoint = CheckpointInfo.read(model)
        cost = None  # how pictures are resized is not known without the file that says it
        if "preprocessor_config.json" not in checkpoint.missing:
            cost = PictureCost.of(
                checkpoint.folder,
                parse_size(size) or (640, 480),
                settings.sample_fps,
                settings.max_pixels,
            )
    out = Console(highlight=False)
    for label, text in [*checkpoint.rows(), *(cost.rows() if cost else [])]:
        out.print(Text(f"{label:<10}{text}"), soft_wrap=True)
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    held = [f"holds, at {settings.sample_fps:g} frames/s"] if cost else []
    for title in ("max_cache_tokens", "bfloat16", "float32", *held):
        table.add_column(title, justify="right")
    for cap in max_cache_tokens or [4096, 16384, 65536, 150_000]:
        table.add_row(*checkpoint.cap_row(cap, cost))
    out.print()
    out.print(table)
    out.print()
    out.print(
        Text(
            "The preset novelty with position_policy contiguous takes a third more: the keys of "
            "kept frames are stored twice."
        )
    )
    if checkpoint.missing or checkpoint.broken:
        raise typer.Exit(INCOMPLETE)
    with side.status("Looking at this machine"):
        plan = checkpoint.plan_here(settings.max_pixels)
    out.print(Text(plan))


@app.command()
@takes_settings("info")
def hardware(
    settings: Settings,
    size: Annotated[str, typer.Option(help="Size of the camera's pictures.")] = "640x480",
    max_cache_tokens: Annotated[
        list[int] | None, typer.Option(min=1, help="Show what this cap takes; may be repeated.")
    ] = None,
    memory: Annotated[
        list[float] | None,
        typer.Option(min=1, max=10_000, help="GB of a GPU, as it is sold; may be repeated."),
    ] = None,
    used: Annotated[
        float, typer.Option(min=0, max=10_000, help="GB of it that others take, and CUDA itself.")
    ] = 1.0,
) -> None:
    """Show what Qwen2.5-VL 3B and 7B take, and what fits a GPU.

    No weights are needed; the node does the same sum at its start.
    """
    from stream_vlm_ros.replay.hardware import CAPS, GIBIBYTES, Hardware
    from stream_vlm_ros.sources import parse_size

    shown = Hardware(parse_size(size) or (640, 480), settings)
    out = Console(highlight=False)
    for titles, *rows in (
        shown.by_cap(max_cache_tokens or CAPS),
        shown.by_device(memory or GIBIBYTES, used),
    ):
        table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
        for number, title in enumerate(titles):
            table.add_column(title, justify="right" if number else "left", no_wrap=True)
        for row in rows:
            table.add_row(*row)
        out.print(table)
        out.print()
    text = f"of video: {size} at {settings.sample_fps:g} frames/s; {used:g} GB taken by others"
    out.print(Text(text))


@app.command()
@takes_settings("history")
def history(
    settings: Settings,
    folder: Annotated[
        str,
        typer.Argument(
            metavar="FOLDER", help="The folder that was the frame_store of a node or a run."
        ),
    ],
    sentence: Annotated[str, typer.Argument(metavar="SENTENCE", help="What to look for.")],
    count: Annotated[int, typer.Option(min=1, max=1000, help="Show so many episodes.")] = 10,
    about: Annotated[
        tuple[str, str] | None,
        typer.Option(metavar="FROM TO", help="Look only there: seconds, or dates with times."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """Find SENTENCE in the history that is kept in FOLDER.

    When it fits best is told; nothing is asked. The model must be the same.
    """
    from stream_vlm_ros.console import time_text
    from stream_vlm_ros.errors import InvalidParameterError, OutOfHorizonError
    from stream_vlm_ros.history.folder import held_in
    from stream_vlm_ros.replay.kept import (
        find_folder,
        found_table,
        held_text,
        open_history,
        parse_stretch,
        searched_text,
    )  # fmt: skip

    if not sentence.strip():
        raise InvalidParameterError("The sentence is empty.")
    place = find_folder(folder)
    held = held_in(place)
    between = None
    if about is not None:
        names = "The first time of --about", "The second time of --about"
        between = parse_stretch(names, about, held.searched_reach)
    if held.searched_reach is None:
        earlier = f" of the present run, only {held_text(held)}, of earlier ones" * bool(
            held.frames
        )
        raise InvalidParameterError(f"{folder} holds no frames{earlier}: there is nothing to find.")
    out, side = Console(highlight=False), Console(highlight=False, stderr=True)
    side.print(Text(f"Searching {searched_text(held)}", style="dim"))
    with side.status("Loading the model"):
        engine = open_history(settings, place)
    try:
        episodes = engine.search(sentence, about=between, count=count)
        hit = engine.calibration.threshold
    except OutOfHorizonError:
        raise OutOfHorizonError(
            f"nothing lies from {' to '.join(about or ())} in what is searched: "
            f"{searched_text(held)}"
        ) from None
    finally:
        engine.close()
    if as_json:
        told = [{**one.as_dict(), "weak": one.score < hit} for one in episodes]
        print(json.dumps(told))
    elif episodes:
        if episodes[0].score < hit:
            out.print(f"Nothing scores {hit:g}, as what fits does. The nearest:")
        newest = held.searched_reach[1]
        out.print(found_table(episodes, hit, newest))
        out.print(Text(f"ago: before the newest frame, {time_text(newest)}", style="dim"))
    else:
        out.print("Nothing in the history fits.")


@app.command(context_settings={"ignore_unknown_options": True})  # -5 is a time
def forget(
    folder: Annotated[
        str,
        typer.Argument(
            metavar="FOLDER", help="The folder that was the frame_store of a node or a run."
        ),
    ],
    start: Annotated[
        str, typer.Argument(metavar="FROM", help="Seconds of the source, or a date with a time.")
    ],
    stop: Annotated[str, typer.Argument(metavar="TO", help="Likewise; it is erased, too.")],
) -> None:
    """Erase what is kept in FOLDER of a time, from FROM to TO.

    Pictures, the keys that find them, and poses; not while the node writes there. A time is 12.5
    or 2026-11-29T10:15, or as stream-vlm history prints it.
    """
    from stream_vlm_ros.console import plural, say
    from stream_vlm_ros.history.folder import Held, erase, held_in
    from stream_vlm_ros.replay.kept import find_folder, held_text, parse_stretch

    place = find_folder(folder)
    first, last = parse_stretch(("FROM", "TO"), (start, stop), held_in(place).reach)
    with Console(highlight=False, stderr=True).status("Erasing"):
        erased = erase(place, first, last)
    stays = held_text(Held(erased.left, erased.reach))
    poses = f" and {plural(erased.poses, 'pose')}" if erased.poses else ""
    if erased.frames or erased.poses:
        told = f"Erased {plural(erased.frames, 'frame')}{poses}.\nThe folder still holds {stays}."
    else:
        told = f"Nothing lies from {start} to {stop}.\nThe folder holds {stays}."
    say(Console(highlight=False), Text(told))


@app.command()
@takes_settings("demo", DEMO)
@takes_settings("demo", DemoOptions(), "options")
def demo(
    options: DemoOptions,
    settings: Settings,
    question: Annotated[
        list[str] | None, typer.Option(help="Ask this instead; may be repeated.")
    ] = None,
    logs: Annotated[
        str | None,
        typer.Option(metavar="FOLDER", help="Keep the logs of the processes there."),
    ] = None,
) -> None:
    """Run the whole ROS system on a video and ask it questions.

    A camera made of the video, the node, and a client that asks, each as a process of its own.
    """
    from stream_vlm_ros.demo.system import run_demo

    raise typer.Exit(run_demo(options, settings, question or [], logs))


@app.command(cls=WebCommand)
@takes_settings("web", DEMO)
def web(
    settings: Settings,
    node: Annotated[str | None, NODE_OPTION] = None,
    source: Annotated[
        list[str] | None,
        typer.Option(
            help="A video, a bag, a folder of images, /dev/video0, rtsp://..., or world: the drawn "
            "one, which is the default. May be repeated: a camera each. With --node: names of "
            "its cameras."
        ),
    ] = None,
    loop: Annotated[
        bool, typer.Option("--loop", help="Play a recording again at its end.")
    ] = False,
    size: Annotated[str | None, typer.Option(help="Scale the pictures to WIDTHxHEIGHT.")] = None,
    topic: Topics = None,
    stamps: Stamps = None,
    max_time_gap: MaxTimeGap = None,
    frame_rate: FrameRate = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = 8080,
    host: Annotated[
        str, typer.Option(help="Where to listen. Any but this machine's own needs a key.")
    ] = "127.0.0.1",
    key_file: Annotated[
        str,
        typer.Option(help="File of the key that a browser must be told; else STREAM_VLM_API_KEY."),
    ] = "",
) -> None:
    """See a memory at work in the browser, and ask it.

    Of a node that runs (--node), or of a source that is remembered here, without ROS.
    """
    from stream_vlm_ros.cli_web import access_to, check_installed
    from stream_vlm_ros.web.serving import of_node, serve

    access = access_to(host, port, key_file)
    check_installed()
    if node is not None:
        serve(of_node(node, source or []), access)
        return
    from stream_vlm_ros.cli_web import of_sources

    options = {
        "size": size,
        "topics": topic,
        "stamps": stamps,
        "max_time_gap": max_time_gap,
        "frame_rate": frame_rate,
    }
    serve(of_sources(source or [], settings, options, loop), access)


@app.command()
@takes_settings("serve")
@takes_settings("serve", Limits(), "limits")
@takes_settings("serve", Cluster(), "cluster")
def serve(
    settings: Settings,
    limits: Limits,
    cluster: Cluster,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = 8090,
    host: Annotated[
        str, typer.Option(help="Where to listen. Any but this machine's own needs a key.")
    ] = "127.0.0.1",
    key_file: Annotated[
        str,
        typer.Option(
            help="File of keys, one a line, each with its own sessions; else the one in "
            "STREAM_VLM_API_KEY."
        ),
    ] = "",
    ray: Annotated[
        bool, typer.Option("--ray", help="By replicas on a cluster of Ray's (docs/ray.md).")
    ] = False,
) -> None:
    """Serve memories of many cameras over the network.

    A robot connects with the node's setting engine: remote; whoever has the key asks over HTTP, as
    of OpenAI's API (docs/serving.md).
    """
    from stream_vlm_ros.cli_serve import serve_on_ray, serve_until_told
    from stream_vlm_ros.errors import InvalidParameterError

    if ray:
        serve_on_ray(settings, limits, cluster, host, port, key_file)
        return
    if given := cluster.changes():
        raise InvalidParameterError(f"{Cluster.table()[next(iter(given))].option} needs --ray")
    serve_until_told(settings, limits, host, port, key_file)


@app.command()
def calibrate(
    model: Annotated[
        Path, typer.Argument(metavar="MODEL", help="Folder of a Qwen2.5-VL checkpoint.")
    ],
    source: Annotated[
        str,
        typer.Argument(
            metavar="[SOURCE]",
            help="A rosbag, a video or a folder of images, with --questions; else the drawn world.",
        ),
    ] = "world",
    questions: Annotated[
        Path | None,
        typer.Option(help="File of questions that say when their evidence is (docs/history.md)."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="File to write; else history_calibration.json in MODEL.")
    ] = None,
    hours: Annotated[float, typer.Option(min=0.35, max=24, help="Of each drawn world.")] = 2.0,
    worlds: Annotated[int, typer.Option(min=1, help="How many are drawn.")] = 3,
    heads: Annotated[
        int, typer.Option(min=1, max=12, help="Heads that find together; each costs memory.")
    ] = 3,
    not_seen: Annotated[
        list[str] | None,
        typer.Option(
            help="A whole answer by which the model says that it does not see a thing; may be "
            "repeated."
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    max_pixels: Annotated[
        int, typer.Option(min=0, help="Larger pictures are reduced to this many pixels.")
    ] = 401_408,
    fps: Annotated[float, typer.Option(min=0, max=120, help="Frames a second of SOURCE.")] = 2.0,
    size: Annotated[str | None, typer.Option(help="Scale the pictures to WIDTHxHEIGHT.")] = None,
    max_cache_tokens: Annotated[
        int, typer.Option(min=0, help="Cap of the memory. 0: 70 grids, of a recording 16384.")
    ] = 0,
    chunk_frames: Annotated[int, typer.Option(min=2, max=64, help="Frames encoded together.")] = 16,
    key_gigabytes: Annotated[
        float, typer.Option(min=0, help="What keys may take. 0: half of what is free.")
    ] = 0.0,
    jobs: Annotated[int, typer.Option(min=0, help="Processes that draw. 0: by the cores.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """Find the heads that search MODEL's history.

    Footage with known answers goes through the engine, some minutes on a GPU, and a small file is
    written into MODEL (docs/history.md).
    """
    from stream_vlm_ros.replay.calibrate import (
        CalibrateOptions,
        print_calibration,
        run_calibration,
    )

    settings = Settings(
        model_path=str(model), device=device, max_pixels=max_pixels, sample_fps=fps,
        # Questions are read of all heads, which no recorded graph does.
        question_path="eager",
    )  # fmt: skip
    options = CalibrateOptions(
        source, questions, out, hours, worlds, jobs, heads, chunk_frames, key_gigabytes,
        max_cache_tokens, size, tuple(not_seen or ()),
    )  # fmt: skip
    side = Console(highlight=False, stderr=True)
    report, target = run_calibration(model, options, settings, side)
    if as_json:
        print(json.dumps(report.as_dict() | {"file": str(target)}))
    else:
        print_calibration(report, target, Console(highlight=False))


app.command()(watch)
app.add_typer(node_app, name="node")
app.add_typer(
    typer.Typer(cls=ExperimentGroup, no_args_is_help=True),
    name="experiment",
    help="Measure what the memory costs and keeps, with pass criteria.",
)

demo_model_app = typer.Typer(no_args_is_help=True, help="Work with the small model of the package.")
app.add_typer(demo_model_app, name="demo-model")


@demo_model_app.command()
def evaluate(
    model: Annotated[
        Path | None, typer.Option(help="Folder of the model; else the package's own.")
    ] = None,
    worlds: Annotated[int, typer.Option(min=0, help="Worlds for each setting.")] = 30,
    each: Annotated[
        int, typer.Option(min=0, help="Questions of each type at the end of a world.")
    ] = 2,
    spans: Annotated[str, typer.Option(help="Seconds of history, separated by commas.")] = (
        "15,30,64"
    ),
    layouts: Annotated[
        str, typer.Option(help="continuous, segmented, or both separated by a comma.")
    ] = "continuous",
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = "cpu",
    seed: Annotated[int, typer.Option(help="Seed of the first world.")] = 1_000_000,
    no_pairs: Annotated[
        bool, typer.Option("--no-pairs", help="Leave out the pairs of colours.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """Ask the small model about worlds it was not trained on."""
    from stream_vlm_ros.errors import InvalidParameterError
    from stream_vlm_ros.progress import counted
    from stream_vlm_ros.world.evaluate import MODEL, steps
    from stream_vlm_ros.world.evaluate import evaluate as run_evaluation

    try:
        seconds = [float(span) for span in spans.split(",")]
    except ValueError:
        raise InvalidParameterError(
            f"--spans must be seconds separated by commas, such as 15,30; got {spans!r}."
        ) from None
    total = steps(worlds, seconds, layouts.split(","), not no_pairs)
    with counted(Console(stderr=True), "Asking about drawn worlds", total) as step:
        report = run_evaluation(
            model or MODEL,
            worlds=worlds,
            each=each,
            spans=seconds,
            layouts=layouts.split(","),
            device=device,
            seed=seed,
            pairs=not no_pairs,
            say=(lambda table: None) if as_json else print,
            step=step,
        )
    if as_json:
        print(json.dumps(report, indent=1))


@demo_model_app.command()
@takes_settings("questions")
def questions(
    settings: Settings,
    world: Annotated[str, typer.Argument(metavar="WORLD", help="The drawn world, as world:SEED.")],
    end: Annotated[float, typer.Option(help="Seconds of the world.")] = 60.0,
    every: Annotated[float, typer.Option(help="Seconds between two questions.")] = 5.0,
) -> None:
    """Print a question file about a drawn world, for replay.

    It holds the right answers.
    """
    import yaml

    from stream_vlm_ros.world.question_file import question_file

    document = question_file(world, end, every, settings.sample_fps)
    print(yaml.safe_dump(document, sort_keys=False, width=100), end="")


def main() -> None:
    """The console script."""
    app(prog_name="stream-vlm")


if __name__ == "__main__":
    main()

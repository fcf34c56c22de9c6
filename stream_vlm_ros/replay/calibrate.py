# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""What the verb ``calibrate`` does and prints: `history.calibrating` on a world or a recording."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import TextColumn
from rich.table import Table
from rich.text import Text

from stream_vlm_ros import __version__
from stream_vlm_ros.config import Settings
from stream_vlm_ros.console import plural, printable
from stream_vlm_ros.engine.inputs.timestamps import SECOND
from stream_vlm_ros.errors import CalibrationError, InvalidParameterError, check_model_folder
from stream_vlm_ros.progress import TimeLeft, make_bar
from stream_vlm_ros.sources import Source, open_source, parse_size, without_secrets

from .questions import Question, QuestionSet, load_questions

if TYPE_CHECKING:
    from stream_vlm_ros.engine.inputs.frames import ImageSettings
    from stream_vlm_ros.history.calibrating import Film, Report
    from stream_vlm_ros.history.limits import Probe

WORLD = "world"  # the drawn one, as a source
RANKING_HOURS, MAX_RANKING_WORLDS = 0.4, 2
ROOM_FOR_TEXT = 32  # tokens before the first frame
# What the default memory holds of a usual checkpoint's: at 128 to 391 tokens a grid, 42 to 128.
MEMORY_GRIDS = 70
SCREEN = (640, 512)  # of which the world's pictures are reduced, as a camera's would be


@dataclass(frozen=True)
class CalibrateOptions:
    """What to calibrate on, and how.

    Attributes:
        source: ``world``, or what `open_source` takes.
        questions: a question file, for a recording.
        out: file to write; None: in the model's folder.
        hours, worlds: of the drawn world.
        jobs: processes that draw; 0: by the machine's cores.
        heads: that find together.
        chunk_frames: frames encoded together.
        key_gigabytes: that keys may take; 0: half of what is free.
        max_cache_tokens: of the memory while it streams; 0: `MEMORY_GRIDS` of the drawn world's
            grids, for a recording what ``ask`` has.
        size: pictures are scaled to it first, as ``WIDTHxHEIGHT``.
        not_seen: answers by which the model says that it does not see a thing.
    """

    source: str = WORLD
    questions: Path | None = None
    out: Path | None = None
    hours: float = 2.0
    worlds: int = 3
    jobs: int = 0
    heads: int = 3
    chunk_frames: int = 16
    key_gigabytes: float = 0.0
    max_cache_tokens: int = 0
    size: str | None = None
    not_seen: Sequence[str] = ()


class RecordingFilm:
    """A recording with a question file; what its questions' ``evidence`` names is what shows it.

    Args:
        source: gives frames from the start at each iteration.
        questions: those of the file.
        not_seen: what is expected of a question about something that is never shown.

    Raises:
        CalibrationError: no question has evidence before it is asked.
    """

    def __init__(
        self, source: Source, questions: Sequence[Question], not_seen: Sequence[str]
    ) -> None:
        self._source, self.name = source, printable(source.name)
        none = {answer.casefold() for answer in not_seen}
        self.left_out = 0
        self.probes: list[Probe] = []
        for question in questions:
            probe = _probe(question, none)
            if probe is None:
                self.left_out += 1
            else:
                self.probes.append(probe)
        if not any(probe.evidence for probe in self.probes):
            raise CalibrationError(
                "no question says by 'evidence' when that could be seen which answers it, and by "
                "'at' when it is asked, later: without it nothing can be calibrated "
                "(docs/history.md)"
            )

    def frames(self) -> Iterator[tuple[Any, float]]:
        first = None
        for frame in self._source:
            first = frame.stamp_ns if first is None else first
            yield frame.image, (frame.stamp_ns - first) / SECOND


def _probe(question: Question, none: set[str]) -> Probe | None:
    """What of a question is of use; None: nothing."""
    from stream_vlm_ros.history.limits import Probe

    at = float("inf") if question.at_end else question.at
    if at is None:  # asked again and again, or by a stamp
        return None
    evidence = tuple(stretch for stretch in sorted(question.evidence) if stretch[0] <= at)
    never = not question.evidence and bool({e.casefold() for e in question.expect} & none)
    if not evidence and not never:
        return None
    shown = tuple((first, min(last, at)) for first, last in evidence)
    return Probe(question.text, at, shown, shown, "all" if len(shown) > 1 else "newest")


def run_calibration(
    folder: Path, options: CalibrateOptions, settings: Settings, side: Console
) -> tuple[Report, Path]:
    """Calibrate a checkpoint, write the file, and give what came of it.

    Raises:
        CalibrationError, InvalidParameterError: with these options nothing can be calibrated.
        NotOursError: something other than a calibration is where the file is to be.
        And what loading a model or opening a source raises.
    """
    check_model_folder(folder)  # what is quick comes first
    _check(options)
    with side.status("Loading the engine"):
        from stream_vlm_ros.history.calibration import FILE_NAME, NOT_SEEN, check_free

    target = options.out or folder / FILE_NAME
    check_free(target)
    if not target.parent.is_dir():
        raise InvalidParameterError(f"There is no folder {target.parent} to write to.")
    not_seen = tuple(options.not_seen) or NOT_SEEN
    film = None
    if options.questions is not None:
        questions = load_questions(options.questions)
        film = _recording(options, settings, questions, not_seen)

    from stream_vlm_ros.factory import build_engine, load_model
    from stream_vlm_ros.history.calibrating import Watch, calibrate

    with contextlib.ExitStack() as stack:
        with side.status("Loading the model"):
            checkpoint = load_model(settings)
        notes: list[str] = []
        cap = options.max_cache_tokens
        if film is None:
            size = _drawn_size(options, settings, checkpoint.processor.image_settings)
            ranking, measuring, made = _worlds(options, size, stack)
            tokens = size[0] * size[1] // checkpoint.processor.image_settings.factor**2
            cap = cap or MEMORY_GRIDS * tokens + ROOM_FOR_TEXT
        else:
            if film.left_out:
                notes.append(
                    f"{plural(film.left_out, 'question')} without evidence before it is asked, or "
                    "without 'at', were left out"
                )
            ranking = measuring = [film]
            made = {"source": film.name, "questions_file": str(options.questions)}
        settings = dataclasses.replace(
            settings, max_cache_tokens=cap or settings.max_cache_tokens, fork_slack_tokens=0
        )
        engine: Any = build_engine(settings, checkpoint)
        room = int(options.key_gigabytes * 1e9) or None
        watch = Watch(engine, checkpoint.processor, options.chunk_frames, room)
        watch.notes += notes
        step = stack.enter_context(_progress(side))
        report = calibrate(
            watch,
            ranking,
            measuring,
            heads=options.heads,
            not_seen=not_seen,
            made_with={
                **made,
                "max_cache_tokens": settings.max_cache_tokens,
                "chunk_frames": options.chunk_frames,
                "date": datetime.date.today().isoformat(),
                "stream_vlm": __version__,
            },
            on_step=step,
        )
    report.calibration.save(target)
    return report, target


def _recording(
    options: CalibrateOptions,
    settings: Settings,
    questions: QuestionSet,
    not_seen: Sequence[str],
) -> RecordingFilm:
    source = open_source(
        options.source,
        fps=settings.sample_fps or None,
        size=parse_size(options.size),
        max_decoded_megapixels=settings.max_decoded_megapixels,
    )
    if source.endless:
        raise InvalidParameterError(
            f"{without_secrets(options.source)} has no end: name a recording."
        )
    return RecordingFilm(source, questions.questions, not_seen)


def _check(options: CalibrateOptions) -> None:
    from stream_vlm_ros.world.rare import CALIBRATION

    if not 1 <= options.worlds <= len(CALIBRATION):
        raise InvalidParameterError(
            f"--worlds is {options.worlds}: there are {len(CALIBRATION)} for calibration."
        )
    if options.source == WORLD and options.questions:
        raise InvalidParameterError(
            "--questions belongs to a recording: name it as SOURCE. The drawn world has questions "
            "of its own."
        )
    if options.source != WORLD and options.questions is None:
        raise InvalidParameterError(
            f"{without_secrets(options.source)} has no questions: give a file of questions with "
            "evidence by --questions (docs/history.md)."
        )


def _worlds(
    options: CalibrateOptions, size: tuple[int, int], stack: contextlib.ExitStack
) -> tuple[list[Film], list[Film], dict[str, Any]]:
    from stream_vlm_ros.world.rare import CALIBRATION
    from stream_vlm_ros.world.rare_film import RareFilm, drawing_processes

    jobs = options.jobs or max(1, min(16, (os.cpu_count() or 1) - 2))
    drawers = drawing_processes(jobs)
    if drawers is not None:
        stack.callback(drawers.shutdown, cancel_futures=True)
    seeds = list(CALIBRATION[: options.worlds])
    how: dict[str, Any] = {"size": size, "drawers": drawers, "jobs": jobs}
    measuring: list[Film] = [RareFilm(seed, options.hours, **how) for seed in seeds]
    ranking = measuring[:MAX_RANKING_WORLDS]
    if options.hours > RANKING_HOURS:
        some = seeds[:MAX_RANKING_WORLDS]
        ranking = [RareFilm(seed, RANKING_HOURS, **how) for seed in some]
    return ranking, measuring, {"source": WORLD, "seeds": seeds, "hours": options.hours}


def _drawn_size(
    options: CalibrateOptions, settings: Settings, images: ImageSettings
) -> tuple[int, int]:
    """Of the world's pictures: what a camera's would be reduced to, drawn so at once."""
    from stream_vlm_ros.engine.inputs.picture_sizes import smart_resize

    given = parse_size(options.size) or SCREEN
    height, width = smart_resize(
        given[1], given[0], images.factor, images.min_pixels, images.at_most(settings.max_pixels)
    )
    return width, height


@contextlib.contextmanager
def _progress(side: Console) -> Iterator[Any]:
    with make_bar(side, TextColumn("{task.completed:,.0f} grids"), TimeLeft()) as bar:
        task = bar.add_task("", total=None)
        yield lambda step, grids: bar.update(task, description=step.capitalize(), completed=grids)


def print_calibration(report: Report, target: Path, out: Console) -> None:
    """The heads and the limits, for a terminal of 80 columns."""
    calibration, limits = report.calibration, report.limits
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    for title in ("layer", "head", "queries", "average precision", "spread", ""):
        table.add_column(title, justify="left" if title in ("queries", "") else "right")
    for head in report.ranked:
        chosen = "taken" if head in calibration.heads else ""
        table.add_row(
            str(head.layer), str(head.head), head.place, f"{head.precision:.3f}",
            f"{head.spread:.2f}", chosen,
        )  # fmt: skip
    out.print(table)
    made = calibration.made_with
    rows = (
        ("Together", f"average precision {report.precision:.3f}"),
        ("Footage", f"{made['grids']:,} grids, {plural(made['questions'], 'question')}"),
        ("A hit", f"score at least {limits.threshold:g} and {limits.of_best:g} of the best"),
        ("Right", f"{_percent(limits.right)} of the questions name the right episode"),
        ("", f"({_percent(report.fallback)} without a calibration)"),
        ("Looks", f"score at least {limits.looks:g}: {_percent(limits.among)} have it among 4"),
        ("Ends", f"tail {limits.tail:g}: {_percent(limits.ends)} of the ends within 2 s"),
    )
    out.print()
    for label, text in rows:
        out.print(Text(f"{label:<10}{text}"), soft_wrap=True)
    for note in report.notes:
        out.print(Text(f"Note: {note}", style="yellow"))
    out.print(Text(f"Written: {target}"), soft_wrap=True)


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"

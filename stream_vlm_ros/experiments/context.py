# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Where an experiment works: its options, its model, its pictures, its record and its screen."""

from __future__ import annotations

import argparse
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from typing import Any

from rich.console import Console
from rich.progress import MofNCompleteColumn, TextColumn
from rich.table import Table as ScreenTable
from rich.text import Text

from stream_vlm_ros.config import AUTO
from stream_vlm_ros.engine import VideoStreamingInference
from stream_vlm_ros.errors import InvalidParameterError
from stream_vlm_ros.progress import TimeLeft, make_bar

from . import reference
from .dataset import Dataset
from .expected_counts import lengthened_system_prompt
from .model_under_test import ModelUnderTest
from .options import settle
from .peak_memory import PeakMemory, machine
from .pictures import (
    Pictures,
    WorldPictures,
    later_world,
    open_pictures,
    parse_size,
    seed_of,
)
from .record import MARKS, Record, Table

BOUNDS = ("min_pixels", "max_pixels")


class Context:
    """Given to an experiment's ``run``.

    Attributes:
        options: of the command line, checked, and settled as --as says.
        record: what is found goes here.
        screen: for people; the record is for machines.
        engine_options: of `VideoStreamingInference`, for every engine.
    """

    def __init__(
        self, options: argparse.Namespace, record: Record, screen: Console, **engine_options: Any
    ) -> None:
        self.options, self.record, self.screen = options, record, screen
        self.engine_options = engine_options
        settle(options)

    @cached_property
    def model(self) -> ModelUnderTest:
        """The model, loaded at first use."""
        options = self.options
        with self.screen.status("Loading the model"):
            model = ModelUnderTest.load(
                options.model,
                options.shape,
                options.processor,
                options.device,
                options.dtype,
                options.seed,
            )
        self.record.about.update(model=model.describe(), machine=machine(model.device))
        if model.random:
            self.record.note(
                "Random weights: lengths, memory and times are those of a trained model of this "
                "shape; answers are noise and are not judged."
            )
        return model

    @cached_property
    def not_judged(self) -> str:
        """Why answers about the source cannot be judged; "" where they can."""
        if self.model.random:
            return "random weights"
        return self.model.card.warning(self.options.source)

    @property
    def truth_is_known(self) -> bool:
        """Whether the source is a drawn world, and the model answers in its words."""
        return bool(self.model.card.knows_only and not self.not_judged and self.world())

    @property
    def question(self) -> str:
        """What to ask at the end of a stream."""
        usual = "What do you see now?" if self.truth_is_known else "Describe what you see."
        return self.options.question or usual

    def _tell_memory(self, cap: int | None, own: Collection[str]) -> None:
        """Say how the first engine works, but for what is the experiment's ``own``."""
        if "memory" in self.record.about:
            return
        options = self.options
        shares = {(0.0, 0.0): "sink and window alone", (AUTO, AUTO): "the preset novelty"}
        told: dict[str, Any] = {"as": f"the {options.as_}", "layout": options.layout}
        if "position_policy" not in own:
            told["positions"] = options.position_policy
        if "sampled_share" not in own:
            kept = shares[options.sampled_share, options.important_share]
            told["keeps"] = "all" if cap is None else kept
        if text := self._first_text(self.model):
            told["text tokens of the first chunk"] = text
        self.tell_memory(told)

    def tell_memory(self, told: dict[str, Any]) -> None:
        """Say on the screen and in the record what the memory is."""
        self.record.about["memory"] = told
        self.say(f"Memory: {', '.join(f'{name} {value}' for name, value in told.items())}")

    def _first_text(self, model: ModelUnderTest) -> int:
        """Text tokens that the first chunk is to have; 0: those of the model's own prompt."""
        options = self.options
        if options.first_text is not None:
            return int(options.first_text)
        if options.as_ == "product" or model.card.knows_only:  # it knows its own prompt alone
            return 0
        return reference.FIRST_TEXT.get(options.experiment, 0)

    @cached_property
    def system_prompt(self) -> str | None:
        """Of every engine; None: the chat template's own."""
        text = self._first_text(self.model)
        return lengthened_system_prompt(self.model.processor, text) if text else None

    @cached_property
    def peak_memory(self) -> PeakMemory:
        return PeakMemory(self.model.device)

    def engine(self, cap: int | None, **options: Any) -> VideoStreamingInference:
        """A new engine on the model, with the memory and the pixel bounds asked for.

        Of --cap 0 it is the cap that the first engine chose which the run is held against.

        Args:
            options: of `ModelUnderTest.engine`, in place of those asked for.
        """
        asked = {name: getattr(self.options, name) for name in (*reference.MEMORY, *BOUNDS)}
        asked |= {"system_prompt": self.system_prompt, **self.engine_options, **options}
        self._tell_memory(cap, options)
        engine = self.model.engine(cap, **asked)
        if cap == 0 and getattr(self.options, "cap", None) == 0:
            self.options.cap = int(engine.get_cache_info()["max_cache_tokens"])
            self.record.note(f"The cap is as large as fits: {self.options.cap:,} tokens.")
        return engine

    def compare_with_reference(self, run: Mapping[str, Any], **found: Any) -> bool:
        """Whether this run is of the reference's size; if it is not, a note says what differs.

        Args:
            run: the reference's, by the names of options, or of what is ``found``.
        """
        here = {
            **vars(self.options),
            **self.model.describe(),
            "source": self.record.about["source"]["size"],
            **found,
        }
        differing = [
            f"{name.replace('_', ' ')} {here[name]} (the reference: {value})"
            for name, value in {**reference.MODEL, **run}.items()
            if here[name] != value
        ]
        if differing:
            self.record.note(
                "The reference's figures are of another run, and not to be compared with these: "
                f"{', '.join(differing)}."
            )
        return not differing

    def pictures(
        self, frames: int | None = None, fps: float | None = None, repeat: int = 0
    ) -> Pictures:
        """The pictures asked for: ``frames`` of them at ``fps``; ``repeat``: another drawn world,
        so many seeds on."""
        options = self.options
        pictures = open_pictures(
            later_world(options.source, repeat),
            fps or options.fps,
            frames or options.frames,
            parse_size(options.size),
            self.model.device,
        )
        source = {
            "name": pictures.name,
            "size": "x".join(map(str, pictures.size)) if pictures.size else None,
        }
        self.record.about.setdefault("source", source)
        return pictures

    def whole(self, pictures: Pictures) -> Pictures:
        """The pictures, if the source has as many as were asked for: InvalidParameterError."""
        if pictures.expected < pictures.frames:
            raise InvalidParameterError(
                f"{pictures.name} is too short: it has {pictures.expected} frames at "
                f"{pictures.fps:g} frames/s, and {pictures.frames} are needed."
            )
        return pictures

    def note_end(self, pictures: Pictures, frames: int) -> None:
        """Note that the source ended after so many frames, where more were asked for."""
        if frames < pictures.frames:
            self.record.note(
                f"The source has {frames} frames at {pictures.fps:g} frames/s, of "
                f"{pictures.frames} asked for."
            )

    @contextmanager
    def progress(self, what: str, total: int | None) -> Iterator[Any]:
        """A bar on terminals; call what is yielded with a text after each step."""
        state_column = TextColumn("{task.fields[state]}", style="dim", markup=False)
        bar = make_bar(self.screen, MofNCompleteColumn(), TimeLeft(), state_column)
        task = bar.add_task(what, total=total, state="")
        said = time.monotonic()

        def step(state: str = "") -> None:
            nonlocal said
            bar.update(task, advance=1, state=state)
            if bar.disable and time.monotonic() - said > 15:  # a log: a line now and then
                said = time.monotonic()
                done = bar.tasks[task].completed
                self.say(f"{what}: {done:.0f}/{total or '?'} {state}")

        with bar:
            yield step

    def say(self, text: str) -> None:
        self.screen.print(Text(text), soft_wrap=True)

    def table(self, title: str, columns: list[str], rows: list[list[Any]]) -> None:
        """Show a table and keep it in the record."""
        rows = [[str(cell) for cell in row] for row in rows]
        self.record.tables.append(Table(title, columns, rows))
        # Above the table, not as its title: that would be folded to the table's width.
        self.screen.print(Text(f"\n{title}", style="italic"), soft_wrap=True)
        drawn = ScreenTable(box=None, pad_edge=False)
        for index, column in enumerate(columns):
            drawn.add_column(column, justify="left" if index == 0 else "right")
        for row in rows:
            drawn.add_row(*map(Text, row))
        self.screen.print(drawn)
        self.screen.print()

    def verdict(self) -> None:
        """Show the criteria and the notes."""
        for note in self.record.notes:
            self.screen.print(Text(f"Note: {note}", style="yellow"), soft_wrap=True)
        styles = {True: "green", False: "bold red", None: "dim"}
        for one in self.record.criteria:
            line = f"{MARKS[one.passed]} {one.name}: {one.found} (wanted: {one.wanted})"
            self.screen.print(Text(line, style=styles[one.passed]), soft_wrap=True)

    def append(
        self, engine: VideoStreamingInference, pictures: Pictures, chunk_frames: int, what: str
    ) -> Iterator[dict[str, Any]]:
        """Stream all pictures, chunk by chunk; each chunk's row goes to the record, too.

        A row: ``chunk`` (from 1), ``frames`` and ``end`` (seconds) so far, ``tokens``, ``evicted``,
        ``length``, ``cache_gib``, ``latency`` (seconds), and the peak memory.
        """
        total = -(-pictures.frames // chunk_frames)
        frames = 0
        with self.progress(what, total) as step:
            for number, chunk in enumerate(pictures.chunks(chunk_frames), start=1):
                result = engine.append_video_chunk(chunk.images, timestamps=chunk.stamps)
                frames += len(chunk.images)
                row = {
                    "chunk": number,
                    "frames": frames,
                    "end": chunk.stamps[-1],
                    "tokens": result["tokens"],
                    "evicted": result["evicted_tokens"],
                    "length": result["cache_length"],
                    "cache_gib": engine.get_cache_info()["cache_memory_gb"],
                    "latency": result["latency"],
                    "encode_latency": result["encode_latency"],
                    **self.peak_memory.read(),
                }
                self.record.add(run=what, **row)
                step(f"{row['length']:,} tokens, {row['latency']:.2f} s")
                yield row
        self.note_end(pictures, frames)

    def world(self) -> WorldPictures | None:
        """The drawn world whose truth is known, if that is the source."""
        pictures = self.pictures()
        return pictures if isinstance(pictures, WorldPictures) else None

    def judged(self, pictures: Pictures) -> WorldPictures | None:
        """The pictures, if answers about them can be judged: a trained model, a drawn world."""
        if isinstance(pictures, WorldPictures) and not self.model.random:
            return pictures
        return None

    def settled_pictures(
        self, step: int, frames: int | None = None, fps: float | None = None, repeat: int = 0
    ) -> Pictures:
        """As `pictures`; where answers are judged, at most as many, in steps of ``step``, as end
        while nothing has just come or gone."""
        pictures = self.pictures(frames, fps, repeat)
        world = self.judged(pictures)
        return self.pictures(Dataset.settled(world, step), fps, repeat) if world else pictures

    def share_right(self, engine: VideoStreamingInference, pictures: Pictures) -> float | None:
        """Of --questions about these pictures, all seen by the engine; None: not judged."""
        if (world := self.judged(pictures)) is None:
            return None
        options = self.options
        return Dataset(world, world.frames, options.seed, options.questions).share_right(engine)

    def note_unjudged(self) -> None:
        """Note that answers were not judged, and what that takes."""
        if not self.model.random and seed_of(self.options.source) is not None:
            self.record.note(
                "Answers were not judged: when they were asked for, something had just come or "
                "gone. Take another world:SEED, or another length."
            )
            return
        self.record.note(
            "Answers were not judged: that takes a trained model and a drawn world (--source "
            "world:SEED), whose truth is known."
        )

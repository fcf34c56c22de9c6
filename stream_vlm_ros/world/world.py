# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""The drawn world: what a small robot's camera might see, with the truth about it.

A world is a function of its seed. Coloured shapes and signs come, stay or move, and go, at most two
at a time, before a lit and textured backdrop that sways a little. `World.render` draws any moment
at any size, `World.visible` says what is there, and `World.frames` plays it like a camera.

Units: times in seconds from the start of the world; positions as fractions of the picture's width
and height; radii as a fraction of its shorter side.
"""

from __future__ import annotations

import bisect
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from stream_vlm_ros.engine.inputs.timestamps import SECOND

if TYPE_CHECKING:
    from stream_vlm_ros.world.draw import Painter

COLOURS = {
    "red": (205, 35, 40),
    "green": (40, 165, 60),
    "blue": (35, 75, 215),
    "yellow": (235, 215, 45),
    "purple": (140, 45, 175),
    "orange": (240, 130, 25),
    "white": (236, 236, 236),
    "black": (24, 24, 26),
}
KINDS = ("circle", "square", "triangle", "star", "cross", "ring")
SIGN = "sign"
SIGN_LETTERS = "ACEFHKLPTUXZ"
SIGN_DIGITS = "0123456789"
COLUMNS = {"left": 0.2, "": 0.5, "right": 0.8}
ROWS = {"top": 0.22, "": 0.5, "bottom": 0.78}
DIRECTIONS = ("to the left", "to the right", "up", "down")
MAX_AT_ONCE = 2
LONGEST_STAY = 8.0  # of a thing, in units of the world's time


def region_phrase(column: str, row: str) -> str:
    """Where a place is, in words: ("left", "top") gives "at the top left"."""
    if row:
        return f"at the {row} {column}".strip()
    return f"on the {column}" if column else "in the middle"


REGIONS = tuple(region_phrase(column, row) for row in ROWS for column in COLUMNS)


@dataclass(frozen=True)
class Thing:
    """What can be seen: a coloured shape, or a sign with a short text."""

    kind: str
    colour: str = ""
    text: str = ""

    @cached_property
    def name(self) -> str:
        """The thing in words without an article: "red circle", "sign"."""
        return f"{self.colour} {self.kind}".strip()

    @cached_property
    def phrase(self) -> str:
        """The thing in words with its article: "an orange ring"."""
        return f"{'an' if self.name[0] in 'aeiou' else 'a'} {self.name}"

    @property
    def is_sign(self) -> bool:
        """Whether it is a sign; signs have a text and no colour."""
        return self.kind == SIGN


SHAPES = tuple(Thing(kind, colour) for colour in COLOURS for kind in KINDS)


@dataclass(frozen=True)
class Sighting:
    """One stay of a thing, visible for start <= t < end, going straight from place to place."""

    thing: Thing
    start: float
    end: float
    origin: tuple[float, float]
    target: tuple[float, float]
    radius: float
    angle: float
    region: str
    last_region: str
    direction: str

    @property
    def moves(self) -> bool:
        """Whether it changes its place."""
        return bool(self.direction)

    def position(self, t: float) -> tuple[float, float]:
        """Its centre at time t, as fractions of width and height."""
        share = (t - self.start) / (self.end - self.start)
        (x0, y0), (x1, y1) = self.origin, self.target
        return x0 + share * (x1 - x0), y0 + share * (y1 - y0)


def _place(
    rng: random.Random,
    radius: float,
    others: list[Sighting],
    start: float,
    end: float,
    aspect: float,
    moving: bool,
) -> Sighting | None:
    """A straight way that keeps clear of the others at all times, or None."""
    wide, high = max(aspect, 1.0), max(1.0 / aspect, 1.0)
    for _ in range(12):
        columns, rows = list(COLUMNS), list(ROWS)
        column, row = rng.choice(columns), rng.choice(rows)
        last_column, last_row, direction = column, row, ""
        if moving:
            direction = rng.choice(DIRECTIONS)
            if direction == "to the left":
                column, last_column = "right", "left"
            elif direction == "to the right":
                column, last_column = "left", "right"
            elif direction == "up":
                row, last_row = "bottom", "top"
            else:
                row, last_row = "top", "bottom"
        dx, dy = rng.uniform(-0.06, 0.06), rng.uniform(-0.05, 0.05)
        origin = (COLUMNS[column] + dx, ROWS[row] + dy)
        target = (COLUMNS[last_column] + dx, ROWS[last_row] + dy)
        sighting = Sighting(
            Thing(""), start, end, origin, target, radius, 0.0,
            region_phrase(column, row), region_phrase(last_column, last_row), direction,
        )  # fmt: skip
        clear = True
        for other in others:
            stop = min(end, other.end)
            for step in range(9):
                t = start + (stop - start) * step / 8
                (x, y), (u, v) = sighting.position(t), other.position(t)
                apart = math.hypot((x - u) * wide, (y - v) * high)
                clear = clear and apart > radius + other.radius + 0.02
        if clear:
            return sighting
    return None


@dataclass(frozen=True)
class Visit:
    """A thing that is to come as soon as there is room from a time on, rather than by chance.

    Attributes:
        due: seconds from the start of the world, not before which it comes.
        moving: how likely it is to move while it is there.
        company: how likely the next thing is to come while it is still there.
    """

    thing: Thing
    due: float
    moving: float = 0.5
    company: float = 0.85


def sightings(
    rng: random.Random,
    pace: float = 1.0,
    aspect: float = 4 / 3,
    signs: float = 0.15,
    *,
    usual: Sequence[Thing] = SHAPES,
    visits: Sequence[Visit] = (),
) -> Iterator[Sighting]:
    """What happens in a world, in order of appearance, without end.

    `pace` is the length of the world's unit of time in seconds: a stay lasts 3 to 8 of it, and two
    things never appear within 1.5 of it. A tenth of the shapes were there before; `signs` is the
    share of signs. At most two things are visible at a time, and three others come before one comes
    again. What comes by chance is of ``usual`` (at least six, so that there is always one to take);
    ``visits``, by ``due``, come in its place when they are due, unless they are barred just then.
    """
    waiting = list(visits)
    start = 0.0 if rng.random() < 0.5 else rng.uniform(0.5, 3.0) * pace
    recent: list[Sighting] = []
    ends: list[float] = []
    known: list[Thing] = []
    latest: list[str] = []
    while True:
        end = start + rng.uniform(3.0, LONGEST_STAY) * pace
        others = [other for other in recent if other.end > start]
        barred = {other.thing.name for other in others} | set(latest)
        visit = next((v for v in waiting if v.due <= start and v.thing.name not in barred), None)
        while True:
            if visit is not None:
                waiting.remove(visit)
                thing = visit.thing
            elif rng.random() < signs:
                text = rng.choice(SIGN_LETTERS) + rng.choice(SIGN_DIGITS)
                thing = Thing(SIGN, text=text)
            elif known and rng.random() < 0.12:
                thing = rng.choice(known)
            else:
                thing = rng.choice(usual)
            if thing.name not in barred:
                break
        sighting, tries = None, 0
        while sighting is None:
            tries += 1
            if tries > 20:  # no room next to what is there: come after it has gone
                start, end, others = ends[-1], ends[-1] + end - start, []
            radius = rng.uniform(0.19, 0.22) if thing.is_sign else rng.uniform(0.13, 0.2)
            moving = rng.random() < (0.35 if visit is None else visit.moving)
            sighting = _place(rng, radius, others, start, end, aspect, moving)
        angle = 0.0 if thing.is_sign else rng.uniform(-0.3, 0.3)
        sighting = Sighting(
            thing, start, end, sighting.origin, sighting.target, radius, angle,
            sighting.region, sighting.last_region, sighting.direction,
        )  # fmt: skip
        yield sighting
        latest = [*latest[-2:], thing.name]  # so that none goes and comes between two frames
        if not thing.is_sign and visit is None:  # a visitor does not come again by chance
            known.append(thing)
        recent = [other for other in recent if other.end > start] + [sighting]
        ends = sorted(other.end for other in recent)
        free = ends[-MAX_AT_ONCE] + 0.3 * pace if len(ends) >= MAX_AT_ONCE else 0.0
        draw = rng.random()
        if draw < (0.35 if visit is None else visit.company):
            after = rng.uniform(start + 1.5 * pace, max(end - 1.5 * pace, start + 1.5 * pace))
        elif draw < 0.6:
            after = ends[-1] + rng.uniform(1.5, 4.0) * pace
        else:
            after = ends[-1] + rng.uniform(0.0, 0.5) * pace
        start = max(after, free, start + 1.5 * pace)


@dataclass(frozen=True)
class Backdrop:
    """The room behind the things, a muted wall and floor, as seen by a swaying camera.

    Four plane waves make the texture: rows of `waves` are (cycles a width, cycles a height, phase,
    strength). The light is cool on the left and warm on the right, and the floor is darker than
    the wall, as in one real room seen by one robot: that tells left from right.
    """

    base: tuple[float, float, float]
    tint: float
    horizon: float
    floor: float
    waves: tuple[tuple[float, float, float, float], ...]
    sway: tuple[float, float, float, float]  # strength and turns a second, across and along
    flicker: tuple[float, float]  # strength and turns a second
    noise: float  # standard deviation in grey levels

    @classmethod
    def draw(cls, rng: random.Random) -> Backdrop:
        """A backdrop at random."""
        grey = rng.uniform(95, 135)
        red, green, blue = (grey + rng.uniform(-14, 14) for _ in range(3))
        base = (red, green, blue)
        waves = tuple(
            (rng.uniform(-9, 9), rng.uniform(-9, 9), rng.uniform(0, 6.28), rng.uniform(1.5, 5.0))
            for _ in range(4)
        )
        sway = (rng.uniform(0, 0.015), rng.uniform(0.05, 0.4), rng.uniform(0, 0.015))
        return cls(
            base, rng.uniform(28, 40), rng.uniform(0.6, 0.7), rng.uniform(0.6, 0.75), waves,
            (*sway, rng.uniform(0.05, 0.4)), (rng.uniform(0, 0.06), rng.uniform(0.05, 0.5)),
            rng.uniform(0, 4),
        )  # fmt: skip

    def gain(self, t: float) -> float:
        """The brightness of the light at time t, in steps of 1/64 about 1."""
        strength, rate = self.flicker
        return 1.0 + round(64 * strength * math.sin(6.2832 * rate * t)) / 64

    def offset(self, t: float) -> tuple[float, float]:
        """How far the camera has swayed at time t, as fractions of width and height."""
        across, rate, along, other_rate = self.sway
        return (
            across * math.sin(6.2832 * rate * t),
            along * math.sin(6.2832 * other_rate * t + 1.0),
        )


MAX_SWAY = 0.015


class World:
    """A drawn world of one seed.

    Args:
        seed: any integer; equal seeds give equal worlds, pictures and truth.
        pace: seconds a unit of the world's time (see `sightings`); 1 suits 2 frames a second.
        aspect: width over height of the pictures.
        signs: the share of signs among the things.
    """

    def __init__(
        self, seed: int, *, pace: float = 1.0, aspect: float = 4 / 3, signs: float = 0.15
    ) -> None:
        self.seed = seed
        self.pace = pace
        self.aspect = aspect
        self.backdrop = Backdrop.draw(random.Random(f"backdrop {seed}"))
        self._coming = self._story(signs)
        self._sightings: list[Sighting] = []
        self._painter: Painter | None = None

    def _story(self, signs: float) -> Iterator[Sighting]:
        """What happens in it, without end."""
        return sightings(random.Random(f"things {self.seed}"), self.pace, self.aspect, signs)

    def sightings(self, until: float) -> list[Sighting]:
        """Every sighting that starts at or before `until` seconds, in order of appearance."""
        return self._sightings[: self._count(until)]

    def visible(self, t: float) -> list[Sighting]:
        """What is to be seen at time t, in order of appearance."""
        stop = self._count(t)
        first = bisect.bisect_left(
            self._sightings, t - LONGEST_STAY * self.pace, hi=stop, key=lambda one: one.start
        )
        return [sighting for sighting in self._sightings[first:stop] if t < sighting.end]

    def _count(self, until: float) -> int:
        """How many sightings start at or before `until`; as many are drawn, and one more."""
        while not self._sightings or self._sightings[-1].start <= until:
            self._sightings.append(next(self._coming))
        return bisect.bisect_right(self._sightings, until, key=lambda one: one.start)

    def render(self, t: float, width: int = 640, height: int = 480) -> np.ndarray:
        """The picture at time t: uint8 RGB, [height, width, 3]."""
        from stream_vlm_ros.world.draw import Painter

        if self._painter is None or self._painter.size != (width, height):
            self._painter = Painter(self.backdrop, width, height, self.seed)
        return self._painter.paint(t, self.visible(t))

    def frames(
        self,
        fps: float = 2.0,
        duration: float | None = None,
        *,
        width: int = 640,
        height: int = 480,
        start_ns: int = 0,
        source: str = "world",
    ) -> Iterator:
        """Play the world like a camera: `Frame`s at `fps`, stamped from `start_ns`, without end or
        for `duration` seconds."""
        from stream_vlm_ros.sources.frame import Frame

        index = 0
        while duration is None or index / fps < duration:
            t = index / fps
            stamp = start_ns + round(t * SECOND)
            yield Frame(stamp, self.render(t, width, height), source)
            index += 1

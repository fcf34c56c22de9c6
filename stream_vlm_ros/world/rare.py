# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Worlds with rare things, and questions about them whose age is chosen.

In a plain world every shape comes again within minutes, so that the last appearance of anything is
minutes old however long the world lasts. Here shapes are reserved: some come *once*, some several
times within one *window* of time and never outside it, some *never*. All others come and go as
usual around them. So a question can be asked about what was seen four hours ago and not since.

`RareWorld` is the world, `exam` its questions: each with the truth, its age, and its evidence, the
stretches of frames that decide it. Both are functions of the seed alone. Times are seconds from
the start of the world. The camera takes 2 frames a second; two of them are a grid, so grid ``n`` is
the frames at ``n`` and ``n + 0.5`` seconds.

Seeds: `CALIBRATION` and `MEASURING` have no world in common. Training's worlds are drawn from texts
that begin with "train", those of a `World` from "things SEED", those here from "rare SEED".
"""

from __future__ import annotations

import bisect
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from stream_vlm_ros.errors import InvalidParameterError
from stream_vlm_ros.world.questions import (
    DID_NOT_MOVE,
    NOT_SEEN,
    NOTHING,
    NUMBERS,
    Question,
    ago_phrases,
    fill,
    overlap,
)
from stream_vlm_ros.world.world import SHAPES, Sighting, Thing, Visit, World, sightings

CALIBRATION = range(7_000_000, 7_000_003)
MEASURING = range(8_000_000, 8_000_016)

STEP = 0.5  # seconds between two frames
FRAMES = 2  # of a grid
MIN_HOURS, MAX_HOURS = 0.1, 168.0
# How old what decides the answer may be, in seconds.
AGES = {
    "1-10 min": (60.0, 600.0),
    "10-60 min": (600.0, 3600.0),
    "1-3 h": (3600.0, 10_800.0),
    "3-6 h": (10_800.0, 21_600.0),
}
NEVER = "never"  # the age of what was not shown

RECALL = ("where_left", "direction", "together", "left_ago", "before", "after", "was_there")
COUNTED = ("how_many",)
HOLISTIC = ("first", "earlier", "later")

LATE = 30.0  # units of the world's time that a due thing comes late at most
_EARLY, _EARLY_SHARE = 0.75, 0.45  # so many of the rare things come in that share of the time
_WINDOW = 600.0
_APART = 45.0  # units of time between two visits of one thing
_USUAL = 16


class Stretch(NamedTuple):
    """Stamps of the first and of the last frame of a stretch of time."""

    first: float
    last: float


@dataclass(frozen=True)
class Rare:
    """A reserved thing: when it is to come, and within what its visits begin."""

    thing: Thing
    due: tuple[float, ...]
    window: Stretch

    @property
    def once(self) -> bool:
        return len(self.due) == 1


class RareWorld(World):
    """A drawn world in which some things are rare.

    Args:
        seed: any integer; equal arguments give equal worlds, pictures and truth.
        hours: how long it lasts. Three quarters of the rare things come in the first 45 % of it, so
            that at its end they are old.
        once: things that come once.
        repeated: things that come two or three times within a window of ten minutes at most.
        never: things that are reserved, but do not come.
        pace, aspect, signs: as for `World`.

    Raises:
        InvalidParameterError: too short, or too many are reserved.

    Attributes:
        rare: the things that come once or within a window, in the order in which they come first.
        never: the things that do not come.
        usual: the shapes that come and go by chance.
    """

    def __init__(
        self,
        seed: int,
        *,
        hours: float = 6.0,
        once: int = 20,
        repeated: int = 4,
        never: int = 8,
        pace: float = 1.0,
        aspect: float = 5 / 4,
        signs: float = 0.15,
    ) -> None:
        if not MIN_HOURS <= hours <= MAX_HOURS:
            raise InvalidParameterError(
                f"hours is {hours}: it must be from {MIN_HOURS:g} to {MAX_HOURS:g}"
            )
        if min(once, repeated, never) < 0 or once + repeated + never > len(SHAPES) - _USUAL:
            raise InvalidParameterError(
                f"{once}, {repeated} and {never} things are reserved: of {len(SHAPES)} shapes "
                f"{_USUAL} must be left to come as usual"
            )
        self.length = 3600.0 * hours
        if (once + repeated) * LATE * pace > 0.6 * self.length:
            raise InvalidParameterError(
                f"{once + repeated} rare things are too many for {self.length:.0f} s: each needs "
                f"{LATE * pace / 0.6:.0f} s"
            )
        rng = random.Random(f"rare {seed} {hours} {once} {repeated} {never}")
        shapes = list(SHAPES)
        rng.shuffle(shapes)
        count = once + repeated
        self.never = tuple(shapes[count : count + never])
        self.usual = tuple(shapes[count + never :])
        several = set(rng.sample(range(count), repeated))
        self.rare = tuple(
            self._plan(rng, thing, place, count, place in several, pace)
            for place, thing in enumerate(shapes[:count])
        )
        super().__init__(seed, pace=pace, aspect=aspect, signs=signs)

    def _plan(
        self, rng: random.Random, thing: Thing, place: int, total: int, several: bool, pace: float
    ) -> Rare:
        """When the rare thing number ``place`` of ``total`` comes."""
        early = math.ceil(_EARLY * total)
        share = _EARLY_SHARE * self.length
        if place < early:
            start, step, place_in = 0.0, share / early, place
        else:
            start, step = share, (self.length - share) / (total - early)
            place_in = place - early
        first = start + step * (place_in + rng.random())
        late = LATE * pace
        if not several:
            return Rare(thing, (first,), Stretch(first, first + late))
        apart = _APART * pace
        count = rng.choice((2, 3))
        span = min(_WINDOW, self.length / 8)
        due = [first]
        while len(due) < count:
            due.append(due[-1] + rng.uniform(apart, max(apart, span / (count - 1))))
        return Rare(thing, tuple(due), Stretch(first, due[-1] + late))

    def _story(self, signs: float) -> Iterator[Sighting]:
        visits = [Visit(rare.thing, due) for rare in self.rare for due in rare.due]
        visits.sort(key=lambda visit: visit.due)
        return sightings(
            random.Random(f"rare things {self.seed} {self.length}"), self.pace, self.aspect, signs,
            usual=self.usual, visits=visits,
        )  # fmt: skip

    @property
    def grids(self) -> int:
        """Whole grids that the camera takes."""
        return int(self.length / (STEP * FRAMES))

    def grid(self, number: int, width: int = 140, height: int = 112) -> np.ndarray:
        """The two pictures of a grid, uint8 RGB ``[2, height, width, 3]``; any, in any order.

        140x112 is what the small model's settings make of 640x480.
        """
        return np.stack([self.render(t, width, height) for t in grid_stamps(number)])

    def shown(self, name: str, now: float) -> list[Stretch]:
        """The stretches of frames up to ``now`` that show a thing, by its name."""
        found = (s for s in self.sightings(now) if s.thing.name == name)
        return [frames_of(s, now) for s in found]


def grid_stamps(number: int) -> tuple[float, ...]:
    """Stamps of a grid's frames."""
    return tuple(STEP * (FRAMES * number + frame) for frame in range(FRAMES))


def frames_of(sighting: Sighting, now: float = math.inf) -> Stretch:
    """Stamps of the first and of the last frame that show a sighting, up to ``now``."""
    first = math.ceil(sighting.start / STEP) * STEP
    last = (math.ceil(sighting.end / STEP) - 1) * STEP  # gone at its end
    return Stretch(first, min(last, now))


@dataclass(frozen=True)
class Asked:
    """A question of the exam, with its truth.

    Attributes:
        question: what is asked, the true answer and what else is accepted.
        type: by the world's type names.
        now: stamp of the newest frame when it is asked.
        things: names of what it is about.
        age: seconds since the last frame that shows what it is about; None: it was not shown, or
            the question is about all that was.
        band: that age by its name in `AGES`; `NEVER` where it was not shown, "" where it is about
            all.
        evidence: the stretches of frames, oldest first, that show what is asked about, of the
            appearance that counts.
        needed: the stretches that have to be looked at for the answer: with the neighbour that
            "before" asks for, for example.
    """

    question: Question
    type: str
    now: float
    things: tuple[str, ...]
    age: float | None
    band: str
    evidence: tuple[Stretch, ...]
    needed: tuple[Stretch, ...]


def band_of(age: float) -> str:
    """The name in `AGES` of an age; "" if it is in none."""
    return next((name for name, (low, high) in AGES.items() if low <= age < high), "")


class _Exam:
    """Makes the questions of one world."""

    def __init__(self, world: RareWorld) -> None:
        self.world = world
        self.story = world.sightings(world.length)
        self.starts = [s.start for s in self.story]

    @cached_property
    def by_name(self) -> dict[str, list[int]]:
        """Places in the story of everything that comes."""
        found: dict[str, list[int]] = {}
        for place, sighting in enumerate(self.story):
            found.setdefault(sighting.thing.name, []).append(place)
        return found

    def settled(self, now: float) -> bool:
        """Whether the last two frames show the same, each of it twice at least."""
        return self.world.visible(now) == self.world.visible(now - STEP)

    def moment(self, low: float, high: float) -> float | None:
        """The first settled end of a grid from ``low`` on, below ``high``; None: there is none."""
        number = math.ceil(low)
        while (now := grid_stamps(number)[-1]) < min(high, self.world.length):
            if now >= low and self.settled(now):
                return now
            number += 1
        return None

    def last_seen(self, rare: Rare) -> tuple[int, float] | None:
        """Where the last visit of a rare thing is in the story, and the stamp of its last frame."""
        places = self.by_name.get(rare.thing.name, [])
        if len(places) < len(rare.due):  # the world ended before
            return None
        return places[-1], frames_of(self.story[places[-1]]).last

    # -- recall ------------------------------------------------------------------------------

    def recall(self, rng: random.Random, rare: Rare, band: str) -> Iterator[Asked]:
        """One question of each type that has a clear answer, about ``rare`` at an age."""
        low, high = AGES[band]
        seen = self.last_seen(rare)
        if seen is None:
            return
        place, last = seen
        high = min(high, self.world.length - last)
        for type_ in RECALL:
            if high <= low:
                return
            age = math.exp(rng.uniform(math.log(low), math.log(high)))
            # Near the end there may be no settled moment left: an earlier one will do.
            now = self.moment(last + age, last + high) or self.moment(last + low, last + high)
            if now is None:
                return
            made = self.about(rng, type_, rare, place, now)
            if made is not None:
                question, needed = made
                evidence = (frames_of(self.story[place], now),)
                yield Asked(
                    question, type_, now, (rare.thing.name,), now - last, band, evidence, needed
                )

    def about(
        self, rng: random.Random, type_: str, rare: Rare, place: int, now: float
    ) -> tuple[Question, tuple[Stretch, ...]] | None:
        """A question about the last visit of a rare thing, and what must be seen to answer it."""
        sighting = self.story[place]
        thing, mine = sighting.thing, frames_of(sighting, now)
        needed: tuple[Stretch, ...] = (mine,)
        accepted: tuple[str, ...] = ()
        if type_ == "was_there":
            return Question(fill(rng, type_, a_thing=thing.phrase), "yes", type_), needed
        if type_ == "where_left":
            answer = sighting.last_region if sighting.moves else sighting.region
        elif type_ == "left_ago":
            answer, near, _ = ago_phrases(now - mine.last, STEP)
            accepted = tuple(sorted(near))
        elif not rare.once:  # which of its visits is meant?
            return None
        elif type_ == "direction":
            answer = sighting.direction or DID_NOT_MOVE
        elif type_ == "together":
            near_by = range(max(0, place - 4), min(len(self.story), place + 5))
            others = [self.story[k] for k in near_by if k != place]
            company = [other for other in others if overlap(sighting, other) > 0]
            # A glimpse of one is no company, and two are two answers.
            if len(company) > 1 or any(overlap(sighting, o) < 2 * STEP for o in company):
                return None
            answer = company[0].thing.phrase if company else NOTHING
        else:
            step = -1 if type_ == "before" else 1
            if not 0 <= place + step < len(self.story):
                return None
            other = self.story[place + step]
            theirs = frames_of(other, now)
            answer = other.thing.phrase
            # From the frame before the first of the two comes, so that what is there already is
            # known to be older, to the second frame of the other.
            first = min(mine.first, theirs.first) - STEP
            needed = (Stretch(max(0.0, first), max(mine.last, theirs.first + STEP)),)
        text = fill(rng, type_, thing=thing.name)
        return Question(text, answer, type_, accepted=accepted), needed

    # -- at a length of the stream -----------------------------------------------------------

    def moment_in(self, rng: random.Random, band: str) -> float | None:
        """When to ask at a length within ``band``, drawn evenly over its logarithm; None: never."""
        low, high = AGES[band]
        if low >= self.world.length:
            return None
        high = min(high, self.world.length)
        now = self.moment(math.exp(rng.uniform(math.log(low), math.log(high))), high)
        return now or self.moment(low, high)

    # -- what was not shown ------------------------------------------------------------------

    def never(self, rng: random.Random, thing: Thing, band: str) -> Iterator[Asked]:
        """Questions about a thing that did not come, at a length of the stream."""
        now = self.moment_in(rng, band)
        if now is None:
            return
        for type_ in ("was_there", rng.choice([t for t in RECALL if t != "was_there"])):
            if type_ == "was_there":
                question = Question(fill(rng, type_, a_thing=thing.phrase), "no", type_)
            else:
                question = Question(fill(rng, type_, thing=thing.name), NOT_SEEN, type_)
            yield Asked(question, type_, now, (thing.name,), None, NEVER, (), ())

    # -- counted and holistic ----------------------------------------------------------------

    def apart(self, rng: random.Random, band: str) -> Iterator[Asked]:
        """Questions that no single stretch of time decides, at a length of the stream."""
        now = self.moment_in(rng, band)
        if now is None:
            return
        seen = self.story[: bisect.bisect_right(self.starts, now)]
        first = frames_of(seen[0], now)
        yield Asked(
            Question(fill(rng, "first"), seen[0].thing.phrase, "first"), "first", now,
            (seen[0].thing.name,), now - first.last, band_of(now - first.last), (first,), (first,),
        )  # fmt: skip
        count = len({s.thing.name for s in seen if not s.thing.is_sign})
        if count < len(NUMBERS):
            question = Question(
                fill(rng, "how_many"), NUMBERS[count], "how_many", accepted=(str(count),)
            )
            yield Asked(question, "how_many", now, (), None, "", (), ())
        gone = []
        for rare in self.world.rare:
            place = self.last_seen(rare)
            if rare.once and place is not None and place[1] + AGES["1-10 min"][0] <= now:
                gone.append(self.story[place[0]])
        for type_ in ("earlier", "later"):
            if len(gone) < 2:
                return
            pair = sorted(rng.sample(gone, 2), key=lambda s: s.start)
            right = pair[0] if type_ == "earlier" else pair[1]
            names = [s.thing.phrase for s in pair]
            rng.shuffle(names)
            question = Question(
                fill(rng, type_, choices=" or ".join(names)), right.thing.phrase, type_
            )
            evidence = tuple(frames_of(s, now) for s in pair)
            age = now - evidence[0].last
            things = tuple(s.thing.name for s in pair)
            yield Asked(question, type_, now, things, age, band_of(age), evidence, evidence)


def exam(world: RareWorld) -> list[Asked]:
    """The questions of a world, by the time at which they are asked.

    About every rare thing at every age that it reaches, one question of each type that has a clear
    answer; about every thing that does not come, at every length, one "was there" and
    one other; and at three moments of every length those that are counted or about all.
    """
    maker = _Exam(world)
    rng = random.Random(f"rare exam {world.seed} {world.length}")
    made: list[Asked] = []
    for band in AGES:
        made += [asked for rare in world.rare for asked in maker.recall(rng, rare, band)]
        made += [asked for thing in world.never for asked in maker.never(rng, thing, band)]
        made += [asked for _ in range(3) for asked in maker.apart(rng, band)]
    return sorted(made, key=lambda asked: asked.now)

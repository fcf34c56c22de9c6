# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Training rows: one video and many questions on it, asked at many moments, in one sequence.

A row holds a prefix (system turn and video) and then questions one after another. Each question
sees the prefix up to the moment it is asked and itself, and its positions go on from there as
if nothing else followed: the same keys and the same positions as a question to a stream.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from stream_vlm_ros.world.draw import backdrop_row, thing_rows
from stream_vlm_ros.world.questions import History, ask
from stream_vlm_ros.world.tokenizer import build_tokenizer
from stream_vlm_ros.world.world import Backdrop, sightings

TOKENS_PER_SECOND = 2
# (rows, columns) of tokens a grid, the camera's aspect, share of the batches
GRIDS = (
    (4, 5, 4 / 3, 0.55), (3, 4, 4 / 3, 0.08), (3, 5, 16 / 9, 0.08), (4, 6, 16 / 9, 0.06),
    (4, 4, 1.0, 0.08), (5, 4, 3 / 4, 0.05), (5, 6, 4 / 3, 0.05), (4, 5, 1.2, 0.05),
)  # fmt: skip
WEIGHTS = {
    "now": 1.0, "ago": 2.5, "at": 1.2, "first": 1.0, "last": 1.0, "before": 4.0, "after": 4.0,
    "was_there": 4.0, "where": 3.5, "how_many": 2.0, "choice": 4.0, "direction": 1.5, "sign": 1.5,
    "left_ago": 1.5, "together": 1.5, "colour_of": 1.5, "shape_of": 1.5, "unknown": 0.7,
}  # fmt: skip


@dataclass(frozen=True)
class Size:
    """Room in a row: tokens for the prefix and for the questions, and most grids."""

    prefix: int
    questions: int
    grids: int

    @property
    def total(self) -> int:
        """Tokens a row."""
        return self.prefix + self.questions


SIZES = {
    "tiny": Size(64, 192, 2),
    "short": Size(256, 512, 12),
    "medium": Size(768, 768, 40),
    "long": Size(1408, 896, 70),
}


class Words:
    """The token ids that layouts are made of."""

    def __init__(self) -> None:
        self.tokenizer = build_tokenizer()
        self.end = self.tokenizer.token_to_id("<|im_end|>")
        self.video = self.tokenizer.token_to_id("<|video_pad|>")
        self.vision_end = self.tokenizer.token_to_id("<|vision_end|>")
        self.pad = self.tokenizer.token_to_id("<|endoftext|>")
        system = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        self.open_user = self.ids("<|im_start|>user\n")
        self.open_video = self.ids("<|im_start|>user\n<|vision_start|>")
        self.close_video = self.ids("<|vision_end|><|im_end|>\n")
        self.header = self.ids(system) + self.open_video
        self.answer = self.ids("<|im_end|>\n<|im_start|>assistant\n")

    @lru_cache(maxsize=20000)  # noqa: B019 - one instance a process
    def ids(self, text: str) -> list[int]:
        """Token ids of a text of ours, special tokens among them."""
        return self.tokenizer.encode(text, add_special_tokens=False).ids


class Prefix:
    """Token ids and positions of a stream under construction, by the trained rule."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.positions: list[tuple[int, int, int]] = []
        self.next = 0

    def text(self, ids: list[int]) -> None:
        """Append text: one position a token on all axes."""
        for index in ids:
            self.ids.append(index)
            self.positions.append((self.next,) * 3)
            self.next += 1

    def vision(self, video_id: int, steps: list[int], rows: int, columns: int, base: int) -> None:
        """Append grids of one segment that began at `base`; `steps` count from its first frame."""
        for step in steps:
            for row in range(rows):
                for column in range(columns):
                    self.ids.append(video_id)
                    self.positions.append((base + step, base + row, base + column))
        self.next = max(self.next, 1 + base + max(*steps, rows - 1, columns - 1))


def time_steps(seconds: list[float]) -> list[int]:
    """Positions on the time axis of grids at these seconds after the first frame."""
    return [int(TOKENS_PER_SECOND * second + 0.002) for second in seconds]


def draw_stamps(rng: random.Random, grids: int) -> tuple[list[float], float, bool, str]:
    """Frame times of `grids` grids: (seconds, the world's pace, stills, how the rate was drawn).

    Half are a camera sampled at 2 frames a second; the others other rates, irregular stamps, stills
    (each frame twice in its grid), and slow ones, up to a grid in 150 s, whose world is as slow.
    """
    draw = rng.random()
    if draw < 0.5:
        grid, kind = 1.0, "camera"
    elif draw < 0.7:
        grid, kind = 2.0 / rng.choice((4, 3, 2.5, 1.5, 1, 0.5)), "rate"
    elif draw < 0.8:
        grid, kind = rng.uniform(0.5, 2.0), "irregular"
    else:
        grid, kind = 4.0 * (150 / 4) ** rng.random(), "slow"
        if rng.random() < 0.5:
            grid = float(round(grid))
    pace = grid * rng.uniform(0.8, 1.3) if grid > 0.8 else grid * rng.uniform(1.0, 2.4)
    stills = rng.random() < (0.1 if kind != "camera" else 0.05)
    if stills:
        times = [index * grid for index in range(grids)]
    else:
        times = [index * grid / 2 for index in range(2 * grids)]
    if kind == "irregular":
        step = grid if stills else grid / 2
        times = [t + rng.uniform(-0.35, 0.35) * step for t in times]
        times = [t - times[0] for t in times]
    return times, pace, stills, kind


class RowMaker:
    """Makes batches of rows, each a function of the seed and its index alone."""

    def __init__(self, seed: str, mix, tokens: int, weights=None, grids=GRIDS, layout=None) -> None:
        """`mix` is the shares of row sizes, or a list of (first batch index, shares)."""
        self.seed, self.tokens, self.layout = seed, tokens, layout
        self.stages = [(0, mix)] if isinstance(mix, dict) else mix
        self.grids = grids
        self.weights = weights or WEIGHTS
        self.words: Words | None = None

    def batch(self, index: int) -> dict:
        """Batch `index`: numpy arrays and a few settings, see `row`."""
        if self.words is None:
            self.words = Words()
        rng = random.Random(f"{self.seed} {index}")
        mix = [shares for first, shares in self.stages if first <= index][-1]
        name = rng.choices(list(mix), list(mix.values()))[0]
        size = SIZES[name]
        rows, columns, aspect, _ = rng.choices(self.grids, [grid[3] for grid in self.grids])[0]
        layout = self.layout or ("segmented" if rng.random() < 0.2 else "continuous")
        chunk = rng.choice((1, 2, 2, 2, 3, 4)) if layout == "segmented" else 0
        room = size.prefix - len(self.words.header)
        if layout == "segmented":
            grids = (room - 24) // (rows * columns * chunk + 7) * chunk  # 24: an exchange
        else:
            grids = room // (rows * columns)
        grids = min(grids, size.grids)
        if grids < 1:
            layout, chunk, grids = "continuous", 0, room // (rows * columns)
        made = [
            self.row(rng, size, rows, columns, aspect, grids, chunk)
            for _ in range(self.tokens // size.total)
        ]
        batch = {key: np.stack([row[key] for row in made]) for key in made[0] if key != "types"}
        batch["types"] = [row["types"] for row in made]
        blur = rng.uniform(1.0, 1.7)
        return dict(
            batch, size=name, rows=rows, columns=columns, aspect=aspect, layout=layout, blur=blur
        )

    def row(self, rng, size: Size, rows, columns, aspect, grids, chunk) -> dict:
        """One video and its questions.

        Returns arrays, s = size.total, g = grids: ids, labels, asked (0 in the prefix, else the
        question's number), limit (how much of the prefix a token sees), vision (index of the
        vision token or -1), all [s]; positions [3, s]; backdrops [g, 2, 25], shapes
        [g, 2, 2, 8], signs [g, 2, 6], noise [1]; types, a list of the questions' types.
        """
        words = self.words
        times, pace, stills, _ = draw_stamps(rng, grids)
        signs = 0.15 if rng.random() < 0.8 else 0.4
        backdrop = Backdrop.draw(rng)
        seen = []
        for sighting in sightings(rng, pace, aspect, signs):
            if sighting.start > times[-1]:
                break
            seen.append(sighting)
        frames = (
            [(t, t) for t in times] if stills else list(zip(times[::2], times[1::2], strict=True))
        )
        steps = time_steps([frame[0] for frame in frames])
        prefix, moments = Prefix(), []  # moments: (grids seen, prefix tokens, next position)
        prefix.text(words.header)
        cell = rows * columns
        spare = (
            size.prefix - len(words.header) - grids * cell - 7 * (grids // chunk if chunk else 0)
        )
        if chunk:
            for first in range(0, grids, chunk):
                if first:
                    prefix.text(words.open_video)
                part = [step - steps[first] for step in steps[first : first + chunk]]
                prefix.vision(words.video, part, rows, columns, prefix.next)
                prefix.text(words.close_video)
                if rng.random() < 0.08:
                    spare -= self._exchange(rng, prefix, seen, times, first + chunk, stills, spare)
                moments.append((first + chunk, len(prefix.ids), prefix.next))
        else:
            base = prefix.next
            for index in range(grids):
                prefix.vision(words.video, steps[index : index + 1], rows, columns, base)
                moments.append((index + 1, len(prefix.ids), prefix.next))
        total = size.total
        ids = np.full(total, words.pad, np.int32)
        labels = np.full(total, -100, np.int32)
        asked = np.zeros(total, np.int32)
        limit = np.arange(1, total + 1, dtype=np.int32)
        positions = np.zeros((3, total), np.int32)
        used = len(prefix.ids)
        ids[:used] = prefix.ids
        positions[:, :used] = np.array(prefix.positions).T
        vision = np.full(total, -1, np.int32)
        vision[:used][ids[:used] == words.video] = np.arange(grids * cell)
        types = self._questions(
            rng,
            size,
            seen,
            times,
            stills,
            moments,
            bool(chunk),
            ids,
            labels,
            asked,
            limit,
            positions,
        )
        drawn = [[self._drawn(backdrop, seen, t, columns, rows) for t in frame] for frame in frames]
        return dict(
            ids=ids, labels=labels, asked=asked, limit=limit, positions=positions, vision=vision,
            backdrops=np.array([[a[0] for a in b] for b in drawn], np.float32),
            shapes=np.array([[a[1] for a in b] for b in drawn], np.float32),
            signs=np.array([[a[2] for a in b] for b in drawn], np.float32),
            noise=np.array([min(backdrop.noise, 2.0)], np.float32),
            types=types,
        )  # fmt: skip

    @staticmethod
    def _drawn(backdrop, seen, t, columns, rows):
        things = [s for s in seen if s.start <= t < s.end]
        return (backdrop_row(backdrop, t, columns * 28, rows * 28), *thing_rows(things, t))

    def _exchange(self, rng, prefix, seen, times, grids, stills, spare) -> int:
        history = History(seen, times[: grids if stills else 2 * grids])
        question = ask(rng, history, rng.choice(("now", "last", "was_there")))
        if question is None:
            return 0
        words = self.words
        tokens = [*words.open_user, *words.ids(question.text), *words.answer]
        tokens += [*words.ids(question.answer), *words.ids("<|im_end|>\n")]
        if len(tokens) > spare:
            return 0
        prefix.text(tokens)
        return len(tokens)

    def _questions(
        self, rng, size, seen, times, stills, moments, turn, ids, labels, asked, limit, positions
    ) -> list[str]:
        words = self.words
        picked = [moments[-1], *rng.sample(moments, min(6, len(moments)))]
        histories = []
        for grids, *_ in picked:
            history = History(seen, times[: grids if stills else 2 * grids])
            histories.append(history)
        ready = [index for index, history in enumerate(histories) if history.settled]
        names, weights = list(self.weights), list(self.weights.values())
        room, found, failures = size.questions, [], 0
        while failures < 12:
            type_ = rng.choices(names, weights)[0]
            if not ready:
                if found:
                    break
                type_, which = "unknown", 0
            else:
                late = ready[0] == 0 and rng.random() < 0.4
                which = 0 if late else rng.choice(ready)
            question = ask(rng, histories[which], type_)
            if question is None:
                failures += 1
                continue
            start = words.open_user if turn else [words.vision_end]
            if type_ == "unknown":  # too many different ones to remember
                text = words.tokenizer.encode(question.text, add_special_tokens=False).ids
            else:
                text = words.ids(question.text)
            head = [*start, *text, *words.answer]
            tail = [*words.ids(question.answer), words.end]
            if len(head) + len(tail) > room:
                failures += 4
                continue
            room -= len(head) + len(tail)
            found.append((which, type_, head, tail))
        found.sort(key=lambda one: picked[one[0]][1])  # alike limits side by side: sparser masks
        here, types = size.prefix, []
        for which, type_, head, tail in found:
            stop = here + len(head) + len(tail)
            _, seen_tokens, position = picked[which]
            ids[here:stop] = head + tail
            labels[here + len(head) - 1 : stop - 1] = tail
            types.append(type_)
            asked[here:stop] = len(types)
            limit[here:stop] = seen_tokens
            positions[:, here:stop] = np.arange(position, position + stop - here)
            here = stop
        return types

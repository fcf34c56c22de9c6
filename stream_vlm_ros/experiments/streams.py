# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Streams of drawn videos under one policy each, and what is asked of them."""

from __future__ import annotations

import hashlib
import math
import random
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from stream_vlm_ros.engine import StreamQwenModel
from stream_vlm_ros.engine.cache.eviction import AUTO, ImportanceScore
from stream_vlm_ros.engine.cache.named_score import score_by_name
from stream_vlm_ros.engine.inputs.frames import PatchGrid
from stream_vlm_ros.engine.inputs.picture_sizes import smart_resize
from stream_vlm_ros.errors import CapTooSmallError, InvalidParameterError

from .dataset import Item, grade, make_items
from .expected_counts import TextTokens
from .model_under_test import ModelUnderTest

LAST_FOUR, FULL = "last 4 frames", "full history"
DEFAULT = "+ importance, small window"
# Shares of the cap less the sink for sampled and for important frames.
SHARES = {
    "sink + window": (0.0, 0.0),
    "+ uniform": (0.5, 0.0),
    "+ importance": (0.0, 0.5),
    DEFAULT: (AUTO, AUTO),  # the preset novelty: 0 and 0.7 where there is room
    "+ both": (0.25, 0.25),
    "+ both, small window": (0.3, 0.4),
}
POLICIES = (LAST_FOUR, *SHARES, FULL)


def evicts(policy: str) -> bool:
    """Whether it forgets what does not fit. A policy of one's own, MODULE:NAME, does."""
    return policy not in (LAST_FOUR, FULL)


def shares_of(policy: str) -> tuple[float, float]:
    """Of a policy that evicts; an importance score of one's own has those of the default."""
    return SHARES.get(policy, SHARES[DEFAULT])


def check_policies(policies: Sequence[str]) -> None:
    """Raise InvalidParameterError for one that is neither ours nor the name of a score."""
    for policy in policies:
        if ":" not in policy and policy not in POLICIES:
            raise InvalidParameterError(
                f"There is no policy {policy!r}: there are {', '.join(map(repr, POLICIES))}, and "
                "importance scores of your own, as MODULE:NAME."
            )


def own_score(policy: str, model: ModelUnderTest) -> ImportanceScore | None:
    """The score that a policy names; None if it is one of ours. Raises InvalidParameterError."""
    if ":" not in policy:
        return None
    return score_by_name(policy, model.network.config.text_config.hidden_size)


@dataclass(frozen=True)
class Setting:
    """Videos of one kind.

    ``fps`` frames a second for ``seconds``; ``pace``: seconds a unit of the world's time, times a
    number of each world's own from 0.8 to 1.3; caps as shares of the whole history's tokens.
    """

    name: str
    fps: float
    seconds: float
    pace: float
    chunk_frames: int
    caps: tuple[float, ...]


SETTINGS = {
    "trained": Setting("trained", 0.2, 700.0, 10.0, 2, (0.1, 0.2, 0.3, 0.4, 0.5)),
    "camera": Setting("camera", 2.0, 600.0, 1.0, 4, (0.02, 0.05, 0.2)),
}


@dataclass(frozen=True)
class Task:
    """One stream: a video under one policy."""

    setting: str
    video: int
    policy: str
    layout: str
    positions: str
    cap_share: float

    @property
    def key(self) -> str:
        return "|".join(str(value) for value in asdict(self).values())


def stream(model: ModelUnderTest, options: Any, task: Task) -> dict[str, Any]:
    """Run one stream; its row.

    ``results`` holds [type, age in seconds or None, 1 if right] for each question; ``span`` the
    seconds that a window alone would hold under this cap.
    """
    video = draw_video(task.setting, task.video, options.seconds, *target_size(model, options))
    setting = video.setting
    moments = exam_of(video, options.moments, options.each, options.seed)
    if options.idle_hours:  # "... after the start" is another time then
        moments = [
            (end, [item for item in items if item.question.type != "at"]) for end, items in moments
        ]
    text = TextTokens.of(model.processor)
    around = text.close + text.turn if task.layout == "segmented" else 0
    depth = model.processor.image_settings.temporal_patch_size
    cell = video.frames[0].shape[0] * video.frames[0].shape[1] // 28**2
    chunk = -(-setting.chunk_frames // depth) * cell + around
    # The same bytes for both layouts: shares are of the continuous one's frames.
    history = -(-len(video.frames) // depth) * cell
    cap = math.floor(task.cap_share * history)
    sink = text.head + chunk
    row: dict[str, Any] = {
        "key": task.key,
        **asdict(task),
        "cap": cap if evicts(task.policy) else None,
        "history_tokens": history,
        "span": (cap - sink) / chunk * setting.chunk_frames / setting.fps,
        "results": [],
    }
    shared: dict[str, Any] = {"layout": task.layout, "position_policy": task.positions}
    begin = time.perf_counter()
    if task.policy == LAST_FOUR:
        row["span"] = 4 / setting.fps
        for end, items in moments:
            engine = model.engine(None, **shared)
            engine.append_video_chunk(
                video.frames[end - 4 : end], timestamps=video.stamps[end - 4 : end]
            )
            row["results"] += _asked(engine, items)
    elif task.policy == FULL and (options.idle_hours or history + text.head > options.max_full):
        row["left_out"] = "hours of history" if options.idle_hours else f"{history} tokens"
    else:
        if evicts(task.policy):
            sampled, important = shares_of(task.policy)
            shared |= {"sampled_share": sampled, "important_share": important}
            shared["importance"] = own_score(task.policy, model)
        engine = model.engine(cap if evicts(task.policy) else None, **shared)
        due = dict(moments)
        try:
            before = 3600.0 * options.idle_hours
            for minute in range(round(60 * options.idle_hours)):
                still = [
                    60.0 * (minute + n / setting.chunk_frames) for n in range(setting.chunk_frames)
                ]
                engine.append_video_chunk([video.frames[0]] * len(still), timestamps=still)
            for start in range(0, max(due), setting.chunk_frames):
                end = start + setting.chunk_frames
                stamps = [before + stamp for stamp in video.stamps[start:end]]
                engine.append_video_chunk(video.frames[start:end], timestamps=stamps)
                if end in due:
                    row["results"] += _asked(engine, due[end])
        except CapTooSmallError as error:
            row["results"], row["left_out"] = [], str(error)
        else:
            info = engine.get_cache_info()
            row["length"] = info["cache_seq_length"]
            row["grids_by_level"] = {
                name: level["grids"] for name, level in info["levels"].items() if level["grids"]
            }
    row["seconds"] = round(time.perf_counter() - begin, 3)
    return row


def _asked(engine: Any, items: list[Item]) -> list[list[Any]]:
    right = grade(engine, [item.question for item in items])
    return [
        [item.question.type, None if item.age is None else round(item.age, 2), int(good)]
        for item, good in zip(items, right, strict=True)
    ]


@contextmanager
def remembered_features(network: StreamQwenModel, most: int = 4096) -> Iterator[None]:
    """Within it, the vision tower computes each chunk once, whoever streams it.

    Exact: a chunk's features do not depend on anything before it.
    """
    seen: dict[bytes, torch.Tensor] = {}
    encode = network.encode_frames

    def remember(patches: PatchGrid, *options: Any) -> torch.Tensor:
        pixels = patches.pixel_values.contiguous().cpu().numpy()
        key = hashlib.blake2b(pixels.data, digest_size=16).digest()
        if key not in seen:
            if len(seen) >= most:
                seen.clear()
            seen[key] = encode(patches, *options)
        return seen[key]

    network.encode_frames = remember  # type: ignore[method-assign, assignment]  # till the end of it
    try:
        yield
    finally:
        del network.encode_frames


@dataclass(frozen=True)
class Video:
    """A drawn world as the camera saw it: small pictures and their times in seconds."""

    setting: Setting
    world: Any
    frames: list[np.ndarray]
    stamps: list[float]


@lru_cache(maxsize=2)
def draw_video(name: str, seed: int, seconds: float | None, width: int, height: int) -> Video:
    """The video of a seed, as 640x480 reduced to (width, height), which is what the model sees."""
    from PIL import Image

    from stream_vlm_ros.world.world import World

    setting = SETTINGS[name]
    pace = setting.pace * random.Random(f"pace {seed}").uniform(0.8, 1.3)
    world = World(seed, pace=pace, aspect=4 / 3)
    count = round((seconds or setting.seconds) * setting.fps)
    count -= count % setting.chunk_frames
    if count < 4:
        raise InvalidParameterError(f"A video of {count} frames is too short: raise --seconds.")
    stamps = [index / setting.fps for index in range(count)]
    frames = [
        np.asarray(
            Image.fromarray(world.render(stamp)).resize((width, height), Image.Resampling.BICUBIC)
        )
        for stamp in stamps
    ]
    return Video(setting, world, frames, stamps)


def target_size(model: ModelUnderTest, options: Any) -> tuple[int, int]:
    """(width, height) to which the model's settings reduce 640x480."""
    settings = model.processor.image_settings
    height, width = smart_resize(
        480, 640, settings.factor,
        options.min_pixels or settings.min_pixels, options.max_pixels or settings.max_pixels,
    )  # fmt: skip
    return width, height


def exam_of(video: Video, moments: int, each: int, seed: int) -> list[tuple[int, list[Item]]]:
    """(frames seen, questions) at evenly spaced moments, each put off while something changes."""
    size, total = video.setting.chunk_frames, len(video.frames)
    found: dict[int, list[Item]] = {}
    for number in range(1, moments + 1):
        end = max(4 + -4 % size, total * number // moments // size * size)
        while end > 4 and end not in found:
            items = make_items(video.world, video.stamps[:end], seed, each)
            if items:
                found[end] = items
                break
            end -= size
    return sorted(found.items())

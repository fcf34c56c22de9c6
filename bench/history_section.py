# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""The section ``history`` of bench/gpu.py: what looking back costs a stream of 640x480.

Heads are those of the fallback, since random weights find nothing: the costs are the same.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from itertools import count
from typing import Any

import numpy as np
import torch
from gpu_rig import Rig, milliseconds, summary, timed, watched

from stream_vlm_ros.config import NOVELTY
from stream_vlm_ros.engine import EvictionConfig
from stream_vlm_ros.engine.attention.base import Readout
from stream_vlm_ros.engine.cache.mrope import VisionSpan
from stream_vlm_ros.engine.cache.state import Change
from stream_vlm_ros.history.calibration import Calibration
from stream_vlm_ros.history.recall import RecallingInference

INDEX_BYTES = 4 * 10**9
HOURS = (1, 24)
FETCHED = 4096  # tokens
BARS = {"indexing": 0.01, "auto_1_h": 1.0, "auto_24_h": 10.0, "fetch": 110.0}


def measure(rig: Rig, bar: Any) -> dict[str, Any]:
    """Indexing, searching, and fetching pictures; in milliseconds."""
    calibration = Calibration.fallback(rig.model)
    never = dataclasses.replace(calibration, threshold=math.inf, looks=math.inf)
    engine = RecallingInference(
        rig.model, rig.processor, rig.device, EvictionConfig(min(rig.caps), **NOVELTY),
        calibration=never, index_bytes=INDEX_BYTES, max_history_tokens=FETCHED,
    )  # fmt: skip
    engine._end_ids = set()
    width, height = (112, 84) if rig.small else (640, 480)
    pictures = [_picture(width, height, seed) for seed in range(8)]
    append_next = append_to(pictures)

    def append() -> Any:
        return append_next(engine)

    grid = append()["grid"]
    for _ in range(4 if rig.small else 60):  # pictures to be fetched, and a warm engine
        append()
    chunks = [timed(append)[0] for _ in rig.count("chunks", 4 * rig.repeats)]
    with watched(engine.index, "draft") as drafting:
        for _ in rig.count("chunks with indexing", 4 * rig.repeats):
            append()
    with watched(engine._pictures, "add") as storing:
        for _ in rig.count("chunks with pictures", 2 * rig.repeats):
            append()
    found: dict[str, Any] = {
        "unit": "ms", "size": f"{width}x{height}", "grid": str(grid),
        "heads": str([head[:2] for head in calibration.heads]),
        "keys_kept": str(engine.index.heads), "index_bytes": INDEX_BYTES, "where": str(rig.device),
        "chunk": summary(chunks), "indexing": summary(drafting), "pictures": summary(storing),
    }  # fmt: skip
    share = found["indexing"]["median"] / found["chunk"]["median"]
    bars = [bar("indexing, of a chunk", share, "", BARS["indexing"])]

    question = rig.question(engine)
    engine.ask(question, 4)
    tokens = grid[1] * grid[2]
    for hours in (0.01,) if rig.small else HOURS:
        _fill(engine, round(3600 * hours), tokens, grid)
        engine.ask(question, 4)
        first = {mode: [] for mode in ("never", "auto")}
        said = {}
        for _ in rig.count(f"answers over {hours} h", 4 * rig.repeats):
            for mode, taken in first.items():
                told, metrics = engine.ask(question, 4, history=mode)
                taken.append(1e3 * metrics.ttft)
                said[mode] = told
        found[f"first_token_{hours}_h"] = {mode: summary(t) for mode, t in first.items()}
        found[f"same_answer_{hours}_h"] = said["never"] == said["auto"]
        added = float(np.median(first["auto"]) - np.median(first["never"]))
        held = engine._held
        found[f"held_{hours}_h"] = {"grids": held.grids, "bytes": held.nbytes}
        if f"auto_{hours}_h" in BARS:
            bars.append(
                bar(f"auto, {hours} h, nothing fetched", added, "ms", BARS[f"auto_{hours}_h"])
            )
        engine.cache_manager.amend("keys", lambda _: engine.index.clear())

    # What is kept as pictures fits, all of it: so as much is read as may be.
    engine.calibration = dataclasses.replace(calibration, threshold=-math.inf, looks=math.inf)
    engine.calibration = dataclasses.replace(engine.calibration, of_best=-math.inf, not_seen=())
    for _ in range(4 if rig.small else 40):
        append()
    engine.ask(question, 4, history="always")
    with watched(engine, "_shown") as loading:
        engine.ask(question, 4, history="always")
        engine.ask(question, 4, history="always")
    found["fetch_pictures_loaded"] = [round(taken, 2) for taken in loading]
    reader = engine._readers[0]
    with (
        watched(reader.model, "encode_frames") as seeing,
        watched(reader, "append_video_chunk") as reading,
    ):
        engine.ask(question, 4, history="always")
    found["fetch_seen"] = [round(taken, 2) for taken in seeing]
    found["fetch_read"] = [round(taken, 2) for taken in reading]
    fetched = _fetches(rig, engine, question)
    plain = milliseconds(lambda: engine.ask(question, 1, history="never"), 2 * rig.repeats)
    found |= {**fetched, "first_token_never": summary(plain)}
    bars.append(bar("fetching by pictures", found["fetch"]["median"], "ms", BARS["fetch"]))
    engine.close()
    found["features"] = remembered = _by_features(rig, calibration, append_to(pictures), question)
    bars.append(bar("fetching by features", remembered["fetch"]["median"], "ms", BARS["fetch"]))
    return found | {"bars": bars}


def _by_features(rig: Rig, calibration: Calibration, append: Any, question: str) -> dict[str, Any]:
    """The same fetch, of grids whose features the host holds; and what keeping them costs."""
    everything = dataclasses.replace(
        calibration, threshold=-math.inf, looks=math.inf, of_best=-math.inf, not_seen=()
    )
    engine = RecallingInference(
        rig.model, rig.processor, rig.device, EvictionConfig(min(rig.caps), **NOVELTY),
        calibration=everything, index_bytes=INDEX_BYTES, max_history_tokens=FETCHED,
        feature_bytes=2 * 10**9,
    )  # fmt: skip
    engine._end_ids = set()
    for _ in range(8 if rig.small else 100):
        append(engine)
    chunks = []
    with watched(engine._features, "add") as keeping:
        for _ in rig.count("chunks with features", 2 * rig.repeats):
            chunks.append(timed(lambda: append(engine))[0])
    engine.ask(question, 4, history="always")
    fetched = _fetches(rig, engine, question)
    held = engine._features.info()
    engine.close()
    return {
        "keeping": summary(keeping), "chunk": summary(chunks), "held_grids": held.grids,
        "held_bytes": held.bytes, **fetched,
    }  # fmt: skip


def _fetches(rig: Rig, engine: RecallingInference, question: str) -> dict[str, Any]:
    """What fetching takes, and the first token after it."""
    told = [
        engine.ask(question, 4, history="always")[1] for _ in rig.count("fetches", 3 * rig.repeats)
    ]
    return {
        "fetched_tokens": told[-1].fetched_tokens,
        "fetch": summary([1e3 * one.fetch_latency for one in told]),
        "first_token_fetched": summary([1e3 * one.ttft for one in told]),
    }


def append_to(pictures: list[np.ndarray]) -> Callable[[RecallingInference], Any]:
    """A function that gives an engine the next two seconds of a stream."""
    seconds = count(0.0, 2.0)

    def append(engine: RecallingInference) -> Any:
        at = next(seconds)
        frames = [pictures[int(2 * at + k) % len(pictures)] for k in range(4)]
        return engine.append_video_chunk(frames, timestamps=[at + 0.5 * k for k in range(4)])

    return append


def _picture(width: int, height: int, seed: int) -> np.ndarray:
    """Smooth colours, which a JPEG takes as much room for as for a room."""
    few = np.random.default_rng(seed).integers(0, 256, (15, 20, 3), dtype=np.uint8)
    large = few.repeat(-(-height // 15), 0).repeat(-(-width // 20), 1)
    return np.ascontiguousarray(large[:height, :width])


def _fill(engine: RecallingInference, grids: int, tokens: int, grid: Any) -> None:
    """Index so many grids of noise, a second each."""
    index, size = engine.index, engine.model.kv_shape.head_dim
    engine.cache_manager.amend("keys", lambda _: index.clear())
    options = {"device": engine.device, "dtype": engine.model.dtype}
    step = 64
    noise = {
        layer: torch.randn(len(heads), step * tokens, size, **options)
        for layer, heads in index.reads.items()
    }
    held = index.empty()
    for start in range(0, grids, step):
        some = min(step, grids - start)
        read = Readout(keys=index.reads)
        read._keys = {layer: [keys[:, : some * tokens]] for layer, keys in noise.items()}
        times = tuple(range(start, start + some))
        span = VisionSpan(times, tuple((t, t + 0.5) for t in times), *grid[1:], opens=start == 0)
        held = index.draft(held, Change((span,), start, (), read))
    engine.cache_manager.amend("keys", lambda _: held)

# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""A history over a day, and over processes that are killed: ``make history-proof``.

What a day would cost with a model is simulated: index and store alone see 24 hours of synthetic
keys and tiny pictures, the whole engine one hour with a toy model.
"""

from __future__ import annotations

import gc
import os
import random
import signal
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from key_streams import DIM, HEADS, Stream, drawn, index
from toy_qwen import chatter_model, toy_frames, toy_processor

from stream_vlm_ros.engine import EvictionConfig
from stream_vlm_ros.history.calibration import CalibratedHead, Calibration, model_hash
from stream_vlm_ros.history.index import KeyIndex
from stream_vlm_ros.history.recall import RecallingInference
from stream_vlm_ros.history.store import FrameStore

pytestmark = pytest.mark.slow

MIB = 1 << 20
GRID = 6  # tokens
KILLS = 100


class Footprint:
    """What this process takes, sampled while it works; bytes traced count all of Python's own."""

    def __init__(self):
        self._samples = []
        tracemalloc.start()

    def sample(self):
        gc.collect()
        status = Path("/proc/self/status").read_text()
        # What is not a file's: the keys are maps of files, whose bytes the index bounds.
        (own,) = (line.split()[1] for line in status.splitlines() if line.startswith("RssAnon"))
        self._samples.append((1024 * int(own), tracemalloc.get_traced_memory()[0]))

    def grown(self):
        """Bytes by which RSS and traced memory are higher in the second half than in the first.

        At most: what is taken for a moment and given back is so in both.
        """
        tracemalloc.stop()
        half = len(self._samples) // 2
        parts = [np.max(some, axis=0) for some in (self._samples[:half], self._samples[half:])]
        rss, traced = (parts[1] - parts[0]).tolist()
        return {"rss_grown_kib": rss // 1024, "traced_grown_kib": traced // 1024}


def assert_flat(grown):
    assert grown["rss_grown_kib"] <= 2048
    assert grown["traced_grown_kib"] <= 256


def fits_everything(model):
    heads = (CalibratedHead(0, 1, "last", 0.9, 1.0), CalibratedHead(1, 3, "words", 0.5, 2.0))
    return Calibration(
        heads=heads, threshold=-1e9, of_best=-1e9, looks=-1e9, tail=1.0, scale="fixed",
        not_seen=("not seen", "no"), grid_tokens=GRID, seconds_per_grid=1.0,
        model=model_hash(model),
    )  # fmt: skip


@pytest.fixture(scope="module")
def toy():
    model = chatter_model()
    return model, toy_processor(), fits_everything(model)


def engine_of(toy, store, **options):
    model, processor, calibration = toy
    config = EvictionConfig(130, sampled_share=0.0, important_share=0.0)
    return RecallingInference(
        model, processor, "cpu", config, calibration=calibration, store=store, **options
    )


# -- 24 hours --------------------------------------------------------------------------------------


def test_an_index_holds_a_day_within_its_bytes_and_memory_stays_flat(tmp_path, record_property):
    hours, chunk = 24, 20
    grids = hours * 3600
    most = 8 * MIB
    one = index(most, folder=tmp_path / "keys")
    held, stream = one.empty(), Stream()
    footprint = Footprint()
    for done in range(chunk, grids + 1, chunk):
        told, _ = stream.chunk(*[3] * chunk)
        held = one.draft(held, told)
        assert held.nbytes <= one.nbytes <= most
        if done % 1800 == 0 and done > 8 * 3600:  # it has been full for two hours
            footprint.sample()
    grown = footprint.grown()
    begun = time.perf_counter()
    found = one.search(held, drawn(1, len(HEADS), 2, DIM), range(len(HEADS)))
    seconds = time.perf_counter() - begun
    for name, value in {
        "grids": grids, "held": held.grids, "bytes": held.nbytes, "max_bytes": most,
        "hours_compared": "8 to 16, 16 to 24", **grown, "search_seconds": round(seconds, 4),
    }.items():  # fmt: skip
        record_property(name, value)
    assert int(found.spans.sum()) == grids, "all of the day is stood for"
    assert found.stamps[0, 0] == 100.0 and found.stamps[-1, 1] == 100.0 + grids - 0.5
    densest, rarest = np.percentile(found.spans, [5, 95])
    assert rarest <= 4 * densest, "about equally densely"
    assert_flat(grown)
    one.close()


def test_a_store_holds_a_day_within_its_bounds_and_memory_stays_flat(tmp_path, record_property):
    hours = 24
    frames = hours * 7200
    most, seconds = 96 * MIB, 6 * 3600.0
    store = FrameStore(tmp_path / "kept", max_bytes=most, max_seconds=seconds)
    pictures = toy_frames(64, 28, 28)
    footprint, largest = Footprint(), 0
    for number in range(frames):
        store.add(pictures[number % 64], 0.5 * number)
        largest = max(largest, store.bytes)
        if number % 3600 == 0 and number > frames // 3:
            footprint.sample()
    grown = footprint.grown()
    disk = sum(file.stat().st_blocks * 512 for file in (tmp_path / "kept").rglob("*"))
    for name, value in {
        "frames": frames, "held": len(store), "bytes": store.bytes, "max_bytes": most,
        "on_disk_mib": round(disk / MIB, 1), "hours_compared": "8 to 16, 16 to 24", **grown,
    }.items():  # fmt: skip
        record_property(name, value)
    assert largest <= most
    assert store.newest_frame.stamp - store.oldest_frame.stamp <= seconds
    assert_flat(grown)
    store.close()


def test_an_engine_streams_an_hour_in_flat_memory_and_answers_all_along(
    toy, tmp_path, record_property
):
    grids, chunk = 3600, 4
    store = FrameStore(tmp_path / "kept", max_bytes=8 * MIB)
    engine = engine_of(toy, store, index_bytes=MIB, max_history_tokens=64 * GRID)
    engine.warm_up()
    pictures = toy_frames(64)
    footprint, latencies = Footprint(), []
    for done in range(chunk, grids + 1, chunk):
        first = 2 * (done - chunk)
        engine.append_video_chunk(
            [pictures[(first + k) % 64] for k in range(2 * chunk)],
            timestamps=[0.5 * (first + k) for k in range(2 * chunk)],
        )
        if done % 60 == 0:
            _, metrics = engine.ask("Where was it last seen?", 4, history="always")
            assert metrics.fetched_tokens > 0
            latencies.append(metrics.latency)
        if done % 300 == 0:
            info = engine.get_cache_info()
            assert info.cache_seq_length <= info.max_cache_tokens
            for tier in info.tiers:
                assert tier.bytes <= tier.max_bytes, tier
        if done % 60 == 0 and done > grids // 3:
            footprint.sample()
    grown = footprint.grown()
    pictures_held, keys = engine.get_cache_info().tiers
    for name, value in {
        "grids": grids, "pictures_held": pictures_held.frames, "keys_held": keys.grids,
        "minutes_compared": "20 to 40, 40 to 60", **grown,
        "question_median_ms": round(1e3 * sorted(latencies)[len(latencies) // 2], 1),
    }.items():  # fmt: skip
        record_property(name, value)
    assert pictures_held.newest == keys.newest == grids - 0.5
    assert_flat(grown)
    engine.close()


# -- killed ----------------------------------------------------------------------------------------


def append_until_killed(toy, folder, told):
    """In a child: append, and tell the stamp of the last frame whenever an append has returned."""
    torch.set_num_threads(1)
    engine = engine_of(toy, FrameStore(folder))
    newest = engine.get_cache_info().tiers[0].newest
    number = 0 if newest is None else int(2 * newest) + 1
    number += number % 2  # a grid may have been cut in two
    while True:
        size = 2 * (1 + number // 2 % 3)
        engine.append_video_chunk(
            toy_frames(size, seed=number), timestamps=[0.5 * (number + k) for k in range(size)]
        )
        os.write(told, f"{number} {number + size - 1}\n".encode())
        number += size


def killed(toy, folder, seconds, opening):
    """The frames, by number, whose append returned in a child that is killed after a while.

    ``opening``: so long after its start, while it may still open what is there; else after its
    first append.
    """
    reads, told = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.close(reads)
            append_until_killed(toy, folder, told)
        finally:
            os._exit(1)
    os.close(told)
    with os.fdopen(reads) as lines:
        begun = "" if opening else lines.readline()
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        said = [begun, *lines.read().splitlines(keepends=True)]
    whole = [line.split() for line in said if line.endswith("\n")]
    return [n for first, last in whole for n in range(int(first), int(last) + 1)]


def test_what_was_appended_is_found_after_a_kill_at_any_of_100_moments(
    toy, tmp_path, record_property
):
    model, _, calibration = toy
    moments = random.Random("moments of a kill")
    folder = tmp_path / "kept"
    returned = set()
    for kill in range(KILLS):
        opening = kill % 4 == 3
        seconds = moments.uniform(0.0, 0.3 if opening else 0.08)
        appended = killed(toy, folder, seconds, opening)
        assert appended or opening
        returned |= set(appended)
        with_keys = KeyIndex(
            calibration.keys(model.config), model.kv_shape.head_dim, 256 * MIB, dtype=model.dtype,
            folder=folder / "keys", model=calibration.model,
        )  # fmt: skip
        held = with_keys.empty()
        heads = len(calibration.keys(model.config))
        found = with_keys.search(held, drawn(1, heads, 1, model.kv_shape.head_dim), range(heads))
        with_keys.close()
        starts = {int(2 * first) for first, _ in found.stamps}
        assert {number for number in returned if number % 2 == 0} <= starts, "keys are found"
        store = FrameStore(folder)
        kept = {int(2 * frame.stamp): frame for frame in store.between(0.0, 1e9)}
        assert returned <= set(kept), "pictures are found"
        for number in appended:
            assert store.load(kept[number]).shape == (56, 84, 3)
        store.close()
        if kill % 10 == 9:
            engine = engine_of(toy, FrameStore(folder))
            stamp = 0.5 * moments.choice(sorted(returned))
            _, metrics = engine.ask("Where was it last seen?", 2, about=(stamp, stamp))
            assert metrics.fetched_tokens > 0
            engine.close()
    record_property("kills", KILLS)
    record_property("frames_whose_append_returned", len(returned))
    record_property("frames_lost", 0)

# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Chunks in: what they become, what is refused, and what it costs over a long time."""

import dataclasses
import gc
import os
import statistics
from fractions import Fraction

import numpy as np
import pytest
import torch
from PIL import Image
from toy_qwen import SINK_AND_WINDOW

from stream_vlm_ros.engine import EvictionConfig, VideoStreamingInference
from stream_vlm_ros.engine.cache.manager import KVCacheManager
from stream_vlm_ros.errors import (
    DeviceUnavailableError,
    InvalidImageError,
    InvalidParameterError,
    InvalidTimestampError,
    ModelLoadError,
)


def grids_of(engine):
    """(tick, stamps) of every temporal grid in memory."""
    runs = engine.cache_manager.ledger.runs()
    return [(g.tick, g.stamps) for run in runs for g in getattr(run, "grids", ())]


def test_pil_numpy_and_torch_pictures_are_the_same_to_the_stream(toys, model, processor):
    frames = toys.frames(4)
    memories = []
    for kind in (
        lambda a: a,
        Image.fromarray,
        torch.from_numpy,
        lambda a: torch.from_numpy(a).permute(2, 0, 1),
        lambda a: a[:, ::-1][:, ::-1],  # not contiguous
    ):
        engine = VideoStreamingInference(model, processor)
        engine.append_video_chunk([kind(frame) for frame in frames], fps=2)
        memories.append(engine.cache_manager.gather())
    assert all(torch.equal(memories[0], memory) for memory in memories)


def test_an_odd_chunk_equals_the_chunk_with_its_last_frame_repeated(toys, model, processor):
    frames = toys.frames(3)
    odd, even = (VideoStreamingInference(model, processor) for _ in range(2))
    odd.append_video_chunk(frames, fps=2)
    even.append_video_chunk([*frames, frames[-1]], fps=2)
    assert torch.equal(odd.cache_manager.gather(), even.cache_manager.gather())
    assert odd.get_cache_info()["frames"] == 3  # what was seen, not what was padded
    assert odd.get_cache_info()["newest_timestamp"] == 1.0


def test_a_still_is_a_temporal_grid_of_its_own(toys, model, processor):
    frame = toys.frames(1)[0]
    still, pair = (VideoStreamingInference(model, processor) for _ in range(2))
    assert still.append_frame(frame, timestamp=5.0)["grid"] == (1, 2, 3)
    pair.append_video_chunk([frame, frame], timestamps=[5.0, 5.0])
    assert torch.equal(still.cache_manager.gather(), pair.cache_manager.gather())
    still.append_frame(frame)
    assert still.get_cache_info()["newest_timestamp"] == 6.0


@pytest.mark.parametrize("layout", ["continuous", "segmented"])
def test_rounding_of_time_does_not_add_up_over_chunks(toys, model, processor, layout):
    # 3 frames a second, 2 frames a grid: a grid lasts 2/3 s, which is 4/3 positions.
    engine = VideoStreamingInference(model, processor, layout=layout)
    for number in range(30):
        engine.append_video_chunk(toys.frames(2, 28, 28, seed=number), fps=3)
    ticks = [tick for tick, _ in grids_of(engine)]
    assert ticks == [4 * number // 3 for number in range(30)]


def test_any_start_of_time_is_the_same_stream(toys, model, processor):
    memories = []
    for start in (0.0, 1.7e9):
        engine = VideoStreamingInference(model, processor)
        for number in range(4):
            stamps = [start + number + part for part in (0.0, 0.25, 0.5, 0.75)]
            engine.append_video_chunk(toys.frames(4, seed=number), timestamps=stamps)
        memories.append(engine.cache_manager.gather())
        assert engine.get_cache_info()["oldest_timestamp"] == start
        assert engine.get_cache_info()["newest_timestamp"] == start + 3.75
    assert torch.equal(*memories)


def test_the_memory_says_which_times_it_holds(toys, model, processor):
    engine = VideoStreamingInference(
        model, processor, eviction_config=EvictionConfig(100, **SINK_AND_WINDOW)
    )
    for number in range(10):
        engine.append_video_chunk(toys.frames(4, seed=number), timestamps=[10.0 * number] * 4)
    # Sink: 57 tokens with the first chunk. Window: 43 tokens, the last three chunks of 12 and
    # seven tokens of the fourth last, of its second grid.
    info = engine.get_cache_info()
    assert info["time_spans"] == ((0.0, 0.0), (60.0, 90.0))
    assert info["oldest_timestamp"] == 0.0 and info["newest_timestamp"] == 90.0
    assert info["grids_in_memory"] == 2 + 2 * 3 + 2  # a grid cut through counts
    assert engine.ask("What?", 2)[1]["time_spans"] == info["time_spans"]


@pytest.mark.parametrize(
    ("frames", "words"),
    [
        ([], "no frames|empty"),
        ([np.zeros((0, 10, 3), np.uint8)], "empty"),
        ([np.zeros((10, 10, 3), np.float32)], "uint8"),
        ([np.zeros((10, 10, 2), np.uint8)], "channels|shape"),
        (["frame.png"], "path|text|str"),
        ([np.zeros((56, 56, 3), np.uint8), np.zeros((28, 56, 3), np.uint8)], "size"),
        ([np.zeros((1, 500, 3), np.uint8)], "200 times"),
        ([None], "NoneType|None"),
    ],
)
def test_a_bad_picture_is_refused_and_the_stream_goes_on(toys, model, processor, frames, words):
    engine = VideoStreamingInference(model, processor)
    engine.append_video_chunk(toys.frames(2), fps=2)
    before = engine.get_cache_info(), engine.cache_manager.gather()
    with pytest.raises(InvalidImageError, match=words):
        engine.append_video_chunk(frames, fps=2)
    assert engine.get_cache_info() == before[0]
    assert torch.equal(engine.cache_manager.gather(), before[1])
    engine.append_video_chunk(toys.frames(2), fps=2)


@pytest.mark.parametrize(
    ("time", "words"),
    [
        (dict(timestamps=[9.0, 11.0]), "backwards: a frame of 9.0+ s comes after one of 10.0+ s"),
        (dict(timestamps=[12.0003, 12.0001]), r"frame of 12.0001\d* s comes after one of 12.0003"),
        (dict(timestamps=[12.0, 11.0]), "backwards"),
        (dict(timestamps=[12.0]), "2 frames came with 1 time stamps"),
        (dict(timestamps=[12.0, float("nan")]), "not finite"),
        (dict(timestamps=["a", "b"]), "must be seconds"),
        (dict(fps=0), "fps must be a number above 0"),
        (dict(timestamps=5.0), "must be seconds"),
        (dict(timestamps=[10**400] * 2), "must be seconds"),
        (dict(timestamps=[11e9, 12e9]), r"1\.2e.10 s after the stream's first.*divide nanoseconds"),
        (dict(timestamps=[1e300, 1e300]), "time stamps are seconds"),
        (dict(fps=float("inf")), "fps must be"),
        (dict(fps=float("nan")), "fps must be"),
        (dict(fps=1e-320), "fps must be"),
        (dict(fps="2"), "fps must be"),
        (dict(fps=2, timestamps=[12.0, 13.0]), "either fps or timestamps"),
    ],
)
def test_a_bad_time_is_refused_and_the_stream_goes_on(toys, model, processor, time, words):
    engine = VideoStreamingInference(model, processor)
    engine.append_video_chunk(toys.frames(2), timestamps=[9.5, 10.0])
    before = engine.get_cache_info()
    with pytest.raises(InvalidTimestampError, match=words):
        engine.append_video_chunk(toys.frames(2), **time)
    assert engine.get_cache_info() == before
    engine.append_video_chunk(toys.frames(2), timestamps=[10.0, 12.0])


@pytest.mark.parametrize("fps", [2, 2.0, np.float32(2), np.int64(2), Fraction(4, 2)])
def test_a_rate_may_be_any_kind_of_number(toys, model, processor, fps):
    engine = VideoStreamingInference(model, processor)
    for number in range(2):
        engine.append_video_chunk(toys.frames(3, seed=number), fps=fps)
    assert engine.get_cache_info()["newest_timestamp"] == 2.5
    assert type(engine.get_cache_info()["newest_timestamp"]) is float


def test_a_bad_setting_is_refused_before_anything_is_taken(model, processor):
    with pytest.raises(InvalidParameterError, match="layout 'spiral' is unknown"):
        VideoStreamingInference(model, processor, layout="spiral")
    with pytest.raises(InvalidParameterError, match="position policy 'x' is unknown"):
        VideoStreamingInference(model, processor, position_policy="x")
    for device, words in [
        ("potato", "'potato' is not a device"),
        (3.5, "'3.5' is not a device"),
        ("mps", "device 'mps' is not supported"),
    ]:
        with pytest.raises(DeviceUnavailableError, match=words):
            VideoStreamingInference(model, processor, device=device)
    for option, words in [
        (dict(max_tail_tokens=0), "max_tail_tokens must be a whole number of at least 1, not 0"),
        (dict(fork_slack_tokens=-1), "fork_slack_tokens must be a whole number of at least 0"),
        (dict(min_pixels=-1), "min_pixels must be"),
        (dict(min_pixels=5000, max_pixels=4000), r"\(5000\) must not be above max_pixels \(4000\)"),
        (dict(eviction_config=100), "must be an EvictionConfig: 100"),
    ]:
        with pytest.raises(InvalidParameterError, match=words):
            VideoStreamingInference(model, processor, **option)
    with pytest.raises(InvalidParameterError, match="the model is a Linear: load it by StreamQwen"):
        VideoStreamingInference(torch.nn.Linear(1, 1), processor)


@pytest.mark.parametrize(
    ("name", "ours", "models"),
    [("patch_size", 16, 14), ("merge_size", 1, 2), ("temporal_patch_size", 1, 2)],
)
def test_a_processor_of_another_checkpoint_is_refused(model, processor, name, ours, models):
    settings = dataclasses.replace(processor.image_settings, **{name: ours})
    other = dataclasses.replace(processor, image_settings=settings)
    with pytest.raises(ModelLoadError, match=f"processor's {name} is {ours}, .* is {models}"):
        VideoStreamingInference(model, other)


def test_a_change_of_size_holds_from_the_next_chunk_on(toys, model, processor):
    engine = VideoStreamingInference(model, processor)

    def tokens_of_a_chunk():
        return engine.append_video_chunk(toys.frames(4, height=112, width=168))["grid"]

    assert tokens_of_a_chunk() == (2, 4, 6)
    before = engine.get_cache_info()["cache_seq_length"]
    engine.limit_pixels(56 * 84)
    assert tokens_of_a_chunk() == (2, 2, 3)
    assert engine.get_cache_info()["cache_seq_length"] == before + 2 * 2 * 3
    engine.limit_pixels(None)
    assert tokens_of_a_chunk() == (2, 4, 6)
    for bound in (783, 0.5):
        with pytest.raises(InvalidParameterError, match="pixels"):
            engine.limit_pixels(bound)
    with pytest.raises(InvalidParameterError, match=r"min_pixels \(784\) must not be above"):
        VideoStreamingInference(model, processor, max_pixels=783)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_is_not_there_is_said_in_words(model, processor):
    with pytest.raises(DeviceUnavailableError, match="there is no CUDA GPU to use"):
        VideoStreamingInference(model, processor, device="cuda")


def test_cache_memory_is_what_the_keys_and_values_take(toys, model, processor):
    engine = VideoStreamingInference(model, processor)
    engine.append_video_chunk(toys.frames(4), fps=2)
    memory = engine.cache_manager.gather()
    info = engine.get_cache_info()
    assert info["cache_memory_bytes"] == memory.numel() * memory.element_size()
    assert info["cache_memory_gb"] == info["cache_memory_bytes"] / 2**30 > 0
    assert info["reserved_memory_bytes"] >= info["cache_memory_bytes"]


def test_without_a_cap_the_memory_grows_past_its_first_buffer(toys, model, processor, monkeypatch):
    engine = VideoStreamingInference(model, processor)
    monkeypatch.setattr(KVCacheManager, "first_capacity", 60)
    small = VideoStreamingInference(model, processor)
    sizes = [one.cache_manager.memory.shape[3] for one in (engine, small)]
    assert sizes[1] == 60 < sizes[0]
    for number in range(6):
        for one in (engine, small):
            one.append_video_chunk(toys.frames(4, 280, 280, seed=number), fps=2)
    assert small.cache_manager.get_seq_length() == 6 * 200 + 45
    assert torch.equal(engine.cache_manager.gather(), small.cache_manager.gather())


def test_a_memory_that_cannot_grow_says_so_and_the_stream_goes_on(
    toys, model, processor, monkeypatch
):
    monkeypatch.setattr(KVCacheManager, "first_capacity", 60)
    engine = VideoStreamingInference(model, processor)
    manager = engine.cache_manager
    engine.append_video_chunk(toys.frames(4), fps=2)
    before = engine.get_cache_info(), manager.evictor.mark()
    plain_empty = torch.empty

    def empty(size, **options):
        if len(size) == 5:  # a stream's: [layers, 2, kv_heads, slots, head_dim]
            size = (*size[:3], 10**13, size[4])
        return plain_empty(size, **options)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "empty", empty)
        with pytest.raises(DeviceUnavailableError, match="which cpu cannot give: set max_cache_t"):
            engine.append_video_chunk(toys.frames(4), fps=2)
    assert (engine.get_cache_info(), manager.evictor.mark()) == before
    assert manager.memory.shape[3] == 60
    engine.append_video_chunk(toys.frames(4), fps=2)


def resident_bytes() -> int:
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="reads Linux's /proc")
def test_memory_is_flat_once_the_cap_is_reached(toys, model, processor):
    engine = VideoStreamingInference(
        model, processor, eviction_config=EvictionConfig(2000, **SINK_AND_WINDOW)
    )
    frames = [toys.frames(4, 140, 140, seed=number) for number in range(5)]  # 50 tokens each
    resident, reserved = [], []
    for number in range(300):
        engine.append_video_chunk(frames[number % 5], fps=2)
        if number % 20 == 0:
            engine.ask("What?", 3)
        if number >= 100:  # full since chunk 40
            gc.collect(0)
            resident.append(resident_bytes())
            reserved.append(engine.get_cache_info()["reserved_memory_bytes"])
    assert engine.get_cache_info()["cache_seq_length"] == 2000
    assert len(set(reserved)) == 1
    # A leak of one chunk's keys and values (50 tokens of 512 bytes and their features) would add
    # 200 x 38 kB = 7.6 MB. The allocator's own wandering stays far below.
    growth = statistics.median(resident[-50:]) - statistics.median(resident[:50])
    assert growth < 3e6

# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""A memory that does not fit is refused at the start, with the sum."""

import re

import pytest
import torch
from toy_qwen import SINK_AND_WINDOW

from stream_vlm_ros.config import NOVELTY
from stream_vlm_ros.engine import EvictionConfig, VideoStreamingInference, inference
from stream_vlm_ros.engine.cache.budget import LEFT_FREE, MemoryBudget, free_bytes
from stream_vlm_ros.engine.cache.buffer import KVShape
from stream_vlm_ros.errors import DeviceUnavailableError

# The toy: 2 layers x 2 (keys, values) x 2 heads x 16 numbers x 4 bytes.
TOKEN = 2 * 2 * 2 * 16 * 4


def build(model, processor, monkeypatch, free, cap=1_000_000, **options):
    monkeypatch.setattr(inference, "free_bytes", lambda device: free)
    return VideoStreamingInference(
        model,
        processor,
        "cpu",
        EvictionConfig(cap, **SINK_AND_WINDOW),
        max_pixels=56 * 56,
        **options,
    )


def test_the_refusal_says_what_takes_how_much_and_what_would_fit(model, processor, monkeypatch):
    free = 100_000_000
    with pytest.raises(DeviceUnavailableError) as refusal:
        build(model, processor, monkeypatch, free)
    words = str(refusal.value)
    assert f"1,000,000 tokens x {TOKEN} bytes = {1e6 * TOKEN / 1e9:.2f} GB" in words
    assert "0.10 GB are free" in words
    largest = int(re.search(r"max_cache_tokens to at most ([\d,]+)", words)[1].replace(",", ""))
    # What is left for tokens: 95 % of what is free, less some 0.5 MB of question and chunk.
    assert 0.98 < largest / (0.95 * free / TOKEN) < 1


def test_the_largest_cap_it_names_fits_and_one_more_does_not():
    budget = MemoryBudget(token=36_864, questions=75_497_472, chunk=800_000_000, slack=100)
    free = 8_000_000_000
    largest = budget.largest_cap(free)
    assert budget.needed(largest) <= free * (1 - LEFT_FREE) < budget.needed(largest + 1)
    budget.check(largest, free, torch.device("cpu"))
    with pytest.raises(DeviceUnavailableError, match=f"{largest:,}"):
        budget.check(largest + 1, free, torch.device("cpu"))


def test_where_not_even_one_token_fits_another_remedy_is_named():
    budget = MemoryBudget(token=36_864, questions=75_497_472, chunk=800_000_000)
    with pytest.raises(DeviceUnavailableError, match="smaller model"):
        budget.check(1000, 500_000_000, torch.device("cpu"))


def test_slack_and_keys_kept_twice_are_counted(model, processor, monkeypatch):
    caps = []
    for options in ({}, {"fork_slack_tokens": 1000}):
        with pytest.raises(DeviceUnavailableError) as refusal:
            build(model, processor, monkeypatch, 100_000_000, **options)
        caps.append(int(re.search(r"at most ([\d,]+)", str(refusal.value))[1].replace(",", "")))
    assert caps[0] - caps[1] == 1000
    twice = EvictionConfig(150_000, important_share=0.5)
    monkeypatch.setattr(inference, "free_bytes", lambda device: 100_000_000)
    for policy, fits in (("keep_gaps", True), ("contiguous", False)):  # 1.5 x 77 MB do not fit
        engine = lambda policy=policy: VideoStreamingInference(  # noqa: E731
            model, processor, "cpu", twice, position_policy=policy, max_pixels=56 * 56
        )
        if fits:
            engine()
        else:
            with pytest.raises(DeviceUnavailableError):
                engine()


def test_what_is_free_here_is_a_plausible_number():
    free = free_bytes(torch.device("cpu"))
    assert free is None or 10_000_000 < free < 2**50


GIB = 2**30


def system(root, groups, **files):
    """A faked file system: 64 GiB available, and the control groups of one process."""
    files = {"proc/meminfo": f"MemTotal: 1 kB\nMemAvailable: {64 * GIB // 1024} kB\n", **files}
    for name, text in {**files, "proc/self/cgroup": groups}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return free_bytes(torch.device("cpu"), root)


def version_2(group, limit, taken, inactive=0):
    """(`active_file` beside it is in use.)"""
    return {
        f"sys/fs/cgroup{group}/memory.max": f"{limit}\n",
        f"sys/fs/cgroup{group}/memory.current": f"{taken}\n",
        f"sys/fs/cgroup{group}/memory.stat": f"active_file {GIB}\ninactive_file {inactive}\n",
    }


def version_1(group, limit, taken, inactive=0):
    folder = f"sys/fs/cgroup/memory{group}"
    return {
        f"{folder}/memory.limit_in_bytes": f"{limit}\n",
        f"{folder}/memory.usage_in_bytes": f"{taken}\n",
        f"{folder}/memory.stat": f"inactive_file 7\ntotal_inactive_file {inactive}\n",
    }


UNLIMITED = 2**63 - 4096  # as version 1 says it


@pytest.mark.parametrize(
    ("groups", "files", "gib"),
    [
        ("0::/\n", {}, 64),
        ("", version_2("", 4 * GIB, 0), 64),  # a kernel without control groups
        ("0::/\n", version_2("", 4 * GIB, 3 * GIB), 1),  # a container sees its own as the root
        ("0::/a.slice/b\n", version_2("/a.slice/b", 8 * GIB, 3 * GIB, 2 * GIB), 7),
        ("0::/a/b\n", {**version_2("/a", 2 * GIB, 1), **version_2("/a/b", "max", 1)}, 2),
        ("0::/a/b\n", version_2("/other", 2 * GIB, 1), 64),
        ("0::/a\n", version_2("/a", 99 * GIB, GIB), 64),
        ("0::/a\n", version_2("/a", 2 * GIB, 3 * GIB), 0),
        ("0::/../../x\n", version_2("", 4 * GIB, GIB), 3),
        ("5:cpu,memory:/a\n0::/\n", version_1("/a", 4 * GIB, 3 * GIB, GIB), 2),
        ("5:memory:/docker/1f\n", version_1("", 4 * GIB, GIB), 3),  # the host's path
        ("5:memory:/a\n", version_1("/a", UNLIMITED, GIB), 64),
        ("5:cpu:/a\n", version_1("/a", 4 * GIB, GIB), 64),
    ],
)
def test_what_is_free_on_a_cpu_is_no_more_than_a_container_may_take(tmp_path, groups, files, gib):
    assert system(tmp_path, groups, **files) == pytest.approx(gib * GIB, abs=1)


def test_a_system_that_tells_nothing_is_said_so_and_a_limit_alone_is_taken(tmp_path):
    assert free_bytes(torch.device("cpu"), tmp_path) is None
    files = version_2("", 4 * GIB, GIB)
    assert system(tmp_path, "0::/\n", **files, **{"proc/meminfo": "MemTotal: 9 kB\n"}) == 3 * GIB


def test_a_memory_that_fits_is_not_refused_and_a_system_that_does_not_tell_is_trusted(
    model, processor, monkeypatch
):
    build(model, processor, monkeypatch, 1_000_000_000, cap=100_000)
    build(model, processor, monkeypatch, None, cap=100_000)


def test_the_sum_at_the_3b_shape_is_near_what_was_measured():
    """At 150,000 tokens and 1920x1080, 14.1 GiB at most were allocated, 7.0 of them weights."""
    text = type(
        "T", (), {"hidden_size": 2048, "intermediate_size": 11008,
                  "max_position_embeddings": 128_000},
    )  # fmt: skip
    vision = type(
        "V", (), {"hidden_size": 1280, "intermediate_size": 3420, "spatial_merge_size": 2,
                  "temporal_patch_size": 2, "patch_size": 14},
    )  # fmt: skip
    config = type("C", (), {"text_config": text, "vision_config": vision})
    shape = KVShape(layers=36, kv_heads=2, head_dim=128, dtype=torch.bfloat16)
    level_1 = EvictionConfig(150_000, **SINK_AND_WINDOW)
    budget = MemoryBudget.of(config, shape, 0, level_1, "contiguous", 1920 * 1080, 2048)
    assert budget.context == 128_000 - 2048
    assert budget.chunk_tokens == pytest.approx(5382, rel=0.02)
    assert budget.needed(150_000) / 2**30 + 7.0 == pytest.approx(14.1, abs=1.0)


CPU, GPU = torch.device("cpu"), torch.device("cuda:0")


@pytest.mark.parametrize(("device", "left"), [(GPU, 0.05), (CPU, 0.5)])
def test_an_automatic_cap_is_the_largest_that_fits_what_the_device_may_give(device, left):
    budget = MemoryBudget(36_864, 75_497_472, 800_000_000, 100, chunk_tokens=5382, context=10**9)
    free = 8_000_000_000
    cap, why = budget.automatic_cap(free, device)
    assert budget.needed(cap) <= free * (1 - left) < budget.needed(cap + 1)
    assert f"{left:.0%} of what is free" in why


def test_an_automatic_cap_does_not_outgrow_the_model_s_context():
    budget = MemoryBudget(36_864, 75_497_472, 800_000_000, chunk_tokens=5382, context=125_952)
    cap, why = budget.automatic_cap(80_000_000_000, GPU)
    assert cap == 125_952
    assert "context" in why and f"{budget.largest_cap(80_000_000_000):,} tokens would fit" in why


def test_a_context_smaller_than_what_must_be_held_does_not_bind():
    """A room for questions as long as the context, say, or a window that was asked for."""
    budget = MemoryBudget(36_864, 75_497_472, 800_000_000, chunk_tokens=5382, context=-900)
    assert budget.automatic_cap(80_000_000_000, GPU)[0] == 5383
    assert budget.automatic_cap(80_000_000_000, GPU, min_tokens=9000)[0] == 9001


@pytest.mark.parametrize("free", [1_000_000_000, 100, None])
def test_an_automatic_cap_below_one_chunk_or_of_an_unknown_device_is_refused(free):
    budget = MemoryBudget(36_864, 75_497_472, 800_000_000, chunk_tokens=5382, context=125_952)
    with pytest.raises(DeviceUnavailableError, match="max_cache_tokens is 0"):
        budget.automatic_cap(free, GPU)


def automatic(model, processor, monkeypatch, free, options=None, **config):
    monkeypatch.setattr(inference, "free_bytes", lambda device: free)
    return VideoStreamingInference(
        model,
        processor,
        "cpu",
        EvictionConfig(0, **{**NOVELTY, **config}),
        max_pixels=56 * 56,
        **options or {},
    )


def test_the_engine_takes_the_automatic_cap_at_its_start_and_holds_it(
    model, processor, toys, monkeypatch, caplog
):
    """The room for questions is 2,048 tokens of 512 bytes; the rest is the cap and a chunk."""
    with caplog.at_level("INFO"):
        engine = automatic(model, processor, monkeypatch, 4_000_000, **SINK_AND_WINDOW)
    cap = engine.get_cache_info()["max_cache_tokens"]
    weights = sum(weight.nbytes for weight in model.parameters())
    assert 0.4 < cap * TOKEN / (2_000_000 - 2048 * TOKEN) < 1
    plan = engine.memory_plan
    assert plan in caplog.text
    assert f"{cap:,} tokens x {TOKEN} bytes" in plan and "max_cache_tokens 0: " in plan
    assert f"weights {weights / 1e6:.1f} MB" in plan and "of 4.0 MB that are free" in plan
    reserved = engine.get_cache_info()["reserved_memory_bytes"]
    longest = engine.append_video_chunk(toys.frames(4, 56, 84), fps=2)["tokens"]  # with the head
    while not engine.append_video_chunk(toys.frames(4, 56, 84), fps=2)["evicted_tokens"]:
        pass
    info = engine.get_cache_info()
    assert info["cache_seq_length"] == cap
    assert info["reserved_memory_bytes"] - reserved == longest * TOKEN  # its tail


@pytest.mark.parametrize("layout", ["continuous", "segmented"])
def test_where_an_automatic_cap_is_found_the_first_chunk_fits_with_its_text(
    model, processor, toys, monkeypatch, layout
):
    """From where nothing fits upwards, 100 tokens' bytes at a time: the first engine serves."""
    options = {"layout": layout, "system_prompt": "You watch a robot's camera. " * 8}
    for free in range(2_100_000, 20_000_000, 100 * TOKEN):
        try:
            engine = automatic(model, processor, monkeypatch, free, options, **SINK_AND_WINDOW)
            break
        except DeviceUnavailableError:
            continue
    first = engine.append_video_chunk(toys.frames(4, 56, 56), fps=2)
    assert first["tokens"] > 2 * 4 + 100  # most of it text
    assert first["tokens"] < engine.get_cache_info()["max_cache_tokens"] < first["tokens"] + 150


@pytest.mark.parametrize("sink", [0, 4000, 9000])
def test_the_copy_of_a_sink_that_is_given_is_in_the_sum_whatever_the_cap(
    model, processor, monkeypatch, sink
):
    """Memory and copies, as taken, come to what the plan says: all but question and chunk."""
    engine = automatic(model, processor, monkeypatch, 20_000_000, sink_size=sink)
    cap = engine.get_cache_info()["max_cache_tokens"]
    assert sink < cap < 32768 - 2048  # as many as fit
    memory = re.search(r" = ([\d.]+) MB", engine.memory_plan)[1]
    copy = re.search(r"the sink once more ([\d.]+) MB", engine.memory_plan)
    planned = float(memory) + (float(copy[1]) if copy else 0.0)
    assert planned == pytest.approx(engine.cache_manager.stream_bytes / 1e6, rel=0.005)
    again = VideoStreamingInference(
        model, processor, "cpu", EvictionConfig.novelty(cap, sink_size=sink), max_pixels=56 * 56
    )
    assert again.memory_plan == engine.memory_plan.partition(". max_cache_tokens 0")[0]


def test_the_automatic_cap_leaves_the_context_room_for_a_question(model, processor, monkeypatch):
    engine = automatic(model, processor, monkeypatch, 10**12)
    assert engine.get_cache_info()["max_cache_tokens"] == 32768 - 2048


def test_a_window_larger_than_the_automatic_cap_is_refused(model, processor, monkeypatch):
    with pytest.raises(DeviceUnavailableError, match="not even"):
        automatic(model, processor, monkeypatch, 5_000_000, window_size=20_000)


def test_a_given_cap_tells_its_plan_too(model, processor, monkeypatch):
    engine = build(model, processor, monkeypatch, 1_000_000_000, cap=100_000)
    assert f"100,000 tokens x {TOKEN} bytes" in engine.memory_plan
    assert "max_cache_tokens 0" not in engine.memory_plan


def test_the_copy_of_long_lived_keys_is_taken_at_the_start(model, processor, toys):
    """The preset novelty: 70 % of the cap less the sink, and the sink, of keys alone."""
    engine = VideoStreamingInference(
        model, processor, "cpu", EvictionConfig.novelty(2000), max_pixels=56 * 56
    )
    manager = engine.cache_manager
    start = manager.reserved_bytes
    copies = manager.stream_bytes - 2000 * TOKEN
    assert 0.7 * 2000 * TOKEN / 2 <= copies <= 0.75 * 2000 * TOKEN / 2
    sizes = []
    for number in range(12):
        engine.append_video_chunk(toys.frames(4, 56, 84, seed=number), fps=2)
        sizes.append(manager.stream_bytes)
    assert engine.get_cache_info()["important_size"] > 0
    assert len(set(sizes)) == 1 and sizes[0] == 2000 * TOKEN + copies
    engine.reset()
    assert manager.stream_bytes == sizes[0]
    assert start > 0

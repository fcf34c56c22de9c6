"""A memory that does not fit is refused at the start, with the sum."""

import re

import pytest
import torch
from toy_qwen import SINK_AND_WINDOW

from stream_vlm_ros.engine import EvictionConfig, VideoStreamingInference, inference
from stream_vlm_ros.engine.budget import LEFT_FREE, MemoryBudget, free_bytes
from stream_vlm_ros.engine.errors import DeviceUnavailableError

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


def test_a_memory_that_fits_is_not_refused_and_a_system_that_does_not_tell_is_trusted(
    model, processor, monkeypatch
):
    build(model, processor, monkeypatch, 1_000_000_000, cap=100_000)
    build(model, processor, monkeypatch, None, cap=100_000)


def test_the_sum_at_the_3b_shape_is_near_what_was_measured():
    """At 150,000 tokens and 1920x1080, 14.1 GiB at most were allocated, 7.0 of them weights."""
    text = type("T", (), {"hidden_size": 2048, "intermediate_size": 11008})
    vision = type(
        "V", (), {"hidden_size": 1280, "intermediate_size": 3420, "spatial_merge_size": 2,
                  "temporal_patch_size": 2, "patch_size": 14},
    )  # fmt: skip
    config = type("C", (), {"text_config": text, "vision_config": vision})
    shape = type("S", (), {"bytes_per_token": 36_864})
    model = type("M", (), {"config": config, "kv_shape": shape, "dtype": torch.bfloat16})
    budget = MemoryBudget.of(model, 5382, 2048, 0, 1.0)
    assert budget.needed(150_000) / 2**30 + 7.0 == pytest.approx(14.1, abs=1.0)

# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""FlashAttention 3 for chunks: taken where it is and as long as it computes what it should.

On a CPU plain softmax attention stands for the kernels; test_kernels.py has those of captured
steps, and test_gpu.py runs the real ones.
"""

import logging

import pytest
import torch

from stream_vlm_ros.engine.attention import flash3
from stream_vlm_ros.engine.attention.flash3 import (
    Flash3Prefill,
    fastest_step_attention,
    most_splits,
    pays,
    runs_on,
)
from stream_vlm_ros.engine.attention.step import StepInputs, StepMemory, attend_step


def plain(query, key, value, scaling, causal=False):
    scores = query @ key.transpose(-1, -2) * scaling
    if causal:
        scores += torch.full(scores.shape[-2:], -torch.inf).triu(1)
    return scores.softmax(-1) @ value, scores.logsumexp(-1)


def wrong(*given):
    out, lse = plain(*given)
    return out.flip(-1), lse


def wrong_lse(*given):
    out, lse = plain(*given)
    return out, lse * 0.6931  # to another base


def failing(*_):
    raise RuntimeError("no kernel image is available")


def numbers(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize(
    ("kernel", "why"),
    [
        (plain, ""),
        (wrong, "differs"),
        (wrong_lse, "its log-sum-exp is"),
        (failing, "no kernel image"),
    ],
)
@pytest.mark.parametrize("causal", [False, True])
def test_a_kernel_that_is_wrong_or_fails_is_found_out_and_not_asked_again(
    caplog, kernel, why, causal
):
    prefill = Flash3Prefill(kernel, lambda device: True, min_rows=8)
    query, key, value = numbers(1, 2, 9, 16), numbers(1, 2, 9, 16), numbers(1, 2, 9, 16)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            if prefill.takes(query, causal):
                found = prefill.attend(query, key, value, 0.3, plain, causal)
                for one, other in zip(found, plain(query, key, value, 0.3, causal), strict=True):
                    assert torch.equal(one, other)
    assert prefill.takes(query, causal) == (not why)
    assert [why in record.getMessage() for record in caplog.records] == [True] * bool(why)


def test_it_is_for_many_queries_on_a_device_where_it_runs():
    there = Flash3Prefill(plain, lambda device: True, min_rows=8)
    assert there.takes(numbers(1, 2, 8, 16)) and not there.takes(numbers(1, 2, 7, 16))
    assert not Flash3Prefill(plain, lambda device: False, min_rows=8).takes(numbers(1, 2, 8, 16))


@pytest.mark.parametrize(
    ("heads", "kv_heads", "size", "requests", "most"),
    [
        (16, 2, 64, 1, 22),  # 33 queries or more: 3 tiles of each of 2 KV heads
        (16, 2, 32, 1, 33),  # 17: 2 tiles
        (28, 4, 64, 1, 16),  # 33 of 7 heads each: 2 tiles of each of 4
        (16, 2, 256, 1, 0),  # 129: 9 tiles keep the device busy in 7 splits
        (16, 2, 64, 2, 0),  # two requests keep it busy, or one of them is short
    ],
)
def test_the_keys_are_split_among_all_programs_also_where_half_of_a_step_is_padding(
    heads, kv_heads, size, requests, most
):
    assert most_splits(heads, kv_heads, size, requests, processors=132) == most


@pytest.mark.parametrize(
    ("size", "requests", "longest", "taken"),
    [
        (64, 1, 150_000, True),
        (16, 1, 150_000, True),
        (64, 1, 16_384, False),  # too few scores for five kernels
        (1, 1, 150_000, False),
        (1, 8, 150_000, False),  # decode of eight answers: as many scores, but one token of each
    ],
)
def test_it_takes_prompts_over_long_memories_and_no_decode_step(size, requests, longest, taken):
    memory = StepMemory(*torch.zeros(2, 1, 2, 2, 31, 16), requests=requests, longest=longest)
    assert pays(memory, StepInputs(size, memory)) == taken


def test_without_a_gpu_or_the_package_nothing_of_it_is_used(monkeypatch):
    cpu = torch.device("cpu")
    assert not runs_on(cpu)
    assert fastest_step_attention(attend_step, cpu, torch.bfloat16, (4, 2, 64)) is attend_step
    monkeypatch.setattr(flash3, "installed", lambda: False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    cuda = torch.device("cuda", 0)
    assert not runs_on(cuda)
    assert fastest_step_attention(attend_step, cuda, torch.bfloat16, (4, 2, 64)) is attend_step

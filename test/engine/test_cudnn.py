# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Many queries over a long past by a faster kernel, and by the other where that one fails.

On a CPU plain softmax attention stands for both kernels; test_gpu.py runs the real ones.
"""

import logging
import threading

import pytest
import torch

from stream_vlm_ros.engine.attention.base import merge_attn_states
from stream_vlm_ros.engine.attention.cudnn import CudnnPrefill
from stream_vlm_ros.engine.attention.sdpa import attend_many

SCALING = 0.3


def plain(query, key, value, scaling, causal=False):
    scores = query @ key.transpose(-1, -2) * scaling
    if causal:
        scores += torch.full(scores.shape[-2:], -torch.inf).triu(1)
    return scores.softmax(-1) @ value, scores.logsumexp(-1)


class Kernel:
    """Plain attention that notes how many tokens it was given, or does something else."""

    def __init__(self, instead=plain):
        self.instead, self.given = instead, []

    def __call__(self, query, key, value, scaling, causal=False):
        self.given.append(key.shape[2])
        return self.instead(query, key, value, scaling, causal)


def attend_long(query, key, value, scaling, prefill, other, causal=False):
    seen = attend_many(query, key, value, scaling, prefill, other, causal)
    return merge_attn_states(seen), torch.stack([lse for _, lse in seen]).logsumexp(0)


def tensors(rows, past, heads=2, size=8, dtype=torch.float32):
    noise = torch.Generator().manual_seed(rows + past)
    make = lambda length: torch.randn(1, heads, length, size, generator=noise).to(dtype)  # noqa: E731
    return make(rows), make(past), make(past)


def small(kernel, **changes):
    """As `CudnnPrefill` is, but for lengths that a test affords."""
    settings = {"blocks": (16,), "min_rows": 4, "max_plans": 8, "fast_on": lambda device: True}
    return CudnnPrefill(kernel, **{**settings, **changes})


@pytest.mark.parametrize(
    ("rows", "past", "fast"),
    [(4, 16, [16]), (4, 47, [32]), (9, 48, [48]), (4, 15, []), (3, 48, [])],
)
def test_whole_blocks_go_to_the_fast_kernel_and_the_union_is_exact(rows, past, fast):
    query, key, value = tensors(rows, past)
    quick, other = Kernel(), Kernel()
    for _ in range(2):  # the first call is also checked against the other kernel
        out, lse = attend_long(query, key, value, SCALING, prefill := small(quick), other)
    expected_out, expected_lse = plain(query, key, value, SCALING)
    torch.testing.assert_close(out, expected_out)
    torch.testing.assert_close(lse, expected_lse)
    assert quick.given == fast * 2
    assert prefill.verified.refused == {}


def test_what_whole_blocks_leave_goes_to_it_in_smaller_ones():
    query, key, value = tensors(6, 16 + 16 + 4 + 4 + 3)
    quick, other = Kernel(), Kernel()
    prefill = small(quick, blocks=(16, 4))
    for _ in range(2):
        out, lse = attend_long(query, key, value, SCALING, prefill, other)
    expected_out, expected_lse = plain(query, key, value, SCALING)
    torch.testing.assert_close(out, expected_out)
    torch.testing.assert_close(lse, expected_lse)
    assert quick.given == [32, 8] * 2
    assert other.given == [32, 3, 3]  # the first to hold the result against


def test_a_chunks_own_tokens_go_to_it_whole_if_there_are_enough():
    for rows, fast in ((6, [6, 6]), (3, [])):
        query, key, value = tensors(rows, rows)
        quick, other = Kernel(), Kernel()
        prefill = small(quick)
        for _ in range(2):
            out, lse = attend_long(query, key, value, SCALING, prefill, other, causal=True)
        expected_out, expected_lse = plain(query, key, value, SCALING, causal=True)
        torch.testing.assert_close(out, expected_out)
        torch.testing.assert_close(lse, expected_lse)
        assert quick.given == fast


def test_only_the_first_call_of_a_kind_is_checked():
    quick, other = Kernel(), Kernel()
    prefill = small(quick)
    for past in (32, 32, 48):
        attend_long(*tensors(5, past), SCALING, prefill, other)
    assert other.given == [32]
    attend_long(*tensors(5, 32, size=16), SCALING, prefill, other)
    assert other.given == [32, 32]


def broken(query, key, value, scaling, causal):
    raise RuntimeError("no plan for this shape")


def wrong_output(query, key, value, scaling, causal):
    out, lse = plain(query, key, value, scaling, causal)
    return out.flip(2), lse


def not_a_number(query, key, value, scaling, causal):
    out, lse = plain(query, key, value, scaling, causal)
    return out * torch.nan, lse


def wrong_sum(query, key, value, scaling, causal):
    out, lse = plain(query, key, value, scaling, causal)
    return out, lse / 0.6931


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        (broken, "no plan for this shape"),
        (wrong_output, "its result differs"),
        (not_a_number, "its result differs by nan"),
        (wrong_sum, "log-sum-exp differs"),
    ],
)
def test_a_kernel_that_fails_is_left_for_good_and_said_once(fault, why, caplog):
    quick = Kernel(fault)
    prefill = small(quick)
    with caplog.at_level(logging.WARNING):
        for past in (40, 40, 64):
            query, key, value = tensors(6, past)
            out, lse = attend_long(query, key, value, SCALING, prefill, plain)
            expected_out, expected_lse = plain(query, key, value, SCALING)
            torch.testing.assert_close(out, expected_out)
            torch.testing.assert_close(lse, expected_lse)
    assert len(quick.given) == 1
    assert len(caplog.records) == 1
    assert why in caplog.text and why in str(prefill.verified.refused)


def test_one_kind_that_fails_leaves_the_others_their_kernel():
    quick = Kernel(lambda q, *given: (broken if q.shape[3] == 8 else plain)(q, *given))
    prefill = small(quick)
    for size in (8, 16, 8, 16):
        attend_long(*tensors(6, 32, size=size), SCALING, prefill, plain)
    assert len(quick.given) == 3
    assert len(prefill.verified.refused) == 1


def test_running_out_of_memory_is_no_fault_of_the_kernel():
    def full(query, key, value, scaling, causal):
        raise torch.OutOfMemoryError("none left")

    prefill = small(Kernel(full))
    with pytest.raises(torch.OutOfMemoryError):
        attend_long(*tensors(6, 32), SCALING, prefill, plain)
    assert prefill.verified.refused == {}


def test_no_more_plans_are_made_than_allowed_and_that_is_said(caplog):
    """A scene that skips tokens has chunks of ever other lengths: each would cost a plan."""
    quick = Kernel()
    prefill = small(quick, max_plans=3)
    for rows in range(4, 12):
        attend_long(*tensors(rows, 32), SCALING, prefill, plain)
    assert len(quick.given) == 3
    assert [record.getMessage().startswith("chunks of 3 other") for record in caplog.records] == [1]
    attend_long(*tensors(4, 32), SCALING, prefill, plain)  # one that has its plan goes on
    assert len(quick.given) == 4


def test_a_thread_that_comes_after_others_has_plans_of_its_own():
    """A node that is configured anew has a new thread, and the old one's plans are gone."""
    quick = Kernel()
    prefill = small(quick, max_plans=3)

    def serve(fewest):
        for rows in range(fewest, fewest + 8):
            attend_long(*tensors(rows, 32), SCALING, prefill, plain)

    for fewest in (4, 12):
        thread = threading.Thread(target=serve, args=[fewest])
        thread.start()
        thread.join()
    assert len(quick.given) == 3 + 3


def test_a_memory_that_fills_needs_one_plan_for_each_count_of_blocks():
    quick = Kernel()
    prefill = small(quick)
    query, keys, values = tensors(5, 100)  # a buffer that fills
    for past in range(1, 100, 5):
        attend_long(query, keys[:, :, :past], values[:, :, :past], SCALING, prefill, plain)
    assert set(quick.given) == {16, 32, 48, 64, 80, 96}


def test_where_the_kernel_is_not_faster_it_is_not_tried():
    quick = Kernel()
    attend_long(*tensors(6, 32), SCALING, small(quick, fast_on=lambda device: False), plain)
    assert quick.given == []
    assert CudnnPrefill().pieces(*tensors(4096, 8192)[:2]) == []  # as it is: not on a CPU

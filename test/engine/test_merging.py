# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Attention over parts, merged by one kernel and by tensor operations.

The kernel runs as compiled on a GPU, elsewhere in Triton's interpreter: that is chosen before
Triton is first imported, and so this file is also a program that a test runs in a process of its
own.
"""

import itertools
import logging

import pytest
import torch

from stream_vlm_ros.engine.attention.base import Merger, merge_by_tensors

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
KV_HEADS, GROUPS, SIZE = 2, 3, 16


def seen(count, tokens, dtype=torch.float32):
    """Parts as the kernels of attention give them: in three orders of memory, some far apart."""
    noise = torch.Generator(DEVICE).manual_seed(count)
    options = {"generator": noise, "device": DEVICE}
    parts = []
    for number in range(count):
        order = [(0, 1, 2), (2, 0, 1), (1, 2, 0)][number % 3]
        sizes = [(KV_HEADS, GROUPS, tokens)[axis] for axis in order]
        out = torch.randn(1, *sizes, SIZE, **options).to(dtype)
        back = [1 + order.index(axis) for axis in range(3)]
        lse = 20 * torch.randn(1, KV_HEADS, GROUPS, tokens, **options) - 50 * number
        parts.append((out.permute(0, *back, 4), lse))
    return parts


def union(parts):
    """By the definition, in float64."""
    weights = torch.stack([lse.double() for _, lse in parts]).exp()
    weights /= weights.sum(0)
    return sum(w[..., None] * out.double() for w, (out, _) in zip(weights, parts, strict=True))


def test_tensor_operations_merge_by_the_definition():
    parts = seen(5, 40)
    assert (merge_by_tensors(parts) - union(parts)).abs().max() < 1e-5


def test_the_kernel_merges_by_the_definition(words_of_program):
    assert words_of_program(__file__) == ["equal"] * 8


def by_tensors(parts, out, lse):
    together = [(part.unsqueeze(0), of.unsqueeze(0)) for part, of in parts]
    out.copy_(merge_by_tensors(together)[0])
    lse.copy_(torch.stack([of for _, of in parts]).logsumexp(0))


@pytest.mark.parametrize("count", [2, 8, 9, 20])
def test_more_parts_than_the_kernel_takes_go_to_it_in_turns(count):
    parts = seen(count, 12)
    most = []

    def kernel(parts, out, lse):
        most.append(len(parts))
        by_tensors(parts, out, lse)

    merged = Merger(lambda: kernel).merge(parts)
    assert (merged - union(parts)).abs().max() < 1e-5
    assert max(most) <= Merger.MAX_PARTS and sum(most) == count + len(most) - 1


def wrong(parts, out, lse):
    by_tensors(parts, out, lse)
    out += 0.01


def broken(parts, out, lse):
    raise RuntimeError("no such processor")


@pytest.mark.parametrize(("kernel", "why"), [(wrong, "differs by"), (broken, "no such processor")])
def test_a_kernel_that_fails_is_left_for_good_and_said_once(kernel, why, caplog):
    tried = []

    def load():
        tried.append(1)
        return kernel

    merger = Merger(load)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert (merger.merge(seen(3, 12)) - union(seen(3, 12))).abs().max() < 1e-5
    assert len(tried) == len(caplog.records) == 1
    assert why in caplog.text and why in str(merger.verified.refused)


def test_a_batch_is_left_to_tensor_operations():
    batch = [(out.expand(2, -1, -1, -1, -1), lse.expand(2, -1, -1, -1)) for out, lse in seen(3, 12)]
    assert (Merger(lambda: wrong).merge(batch) - union(batch)).abs().max() < 1e-5


if __name__ == "__main__":
    tolerances = {torch.float32: 1e-5, torch.bfloat16: 3e-2}
    for dtype, (count, tokens) in itertools.product(
        tolerances, [(1, 1), (3, 33), (8, 64), (17, 70)]
    ):
        merger, parts = Merger(), seen(count, tokens, dtype)
        merged = merger.merge(parts)
        assert not merger.verified.refused, merger.verified.refused
        assert merged.dtype == dtype and merged.permute(0, 3, 1, 2, 4).is_contiguous()
        assert (merged - union(parts)).abs().max() <= tolerances[dtype]
        print("equal")

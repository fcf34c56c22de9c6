# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Keys of sink and kept grids in the buffer: rotated from the originals, as few as there can be."""

import functools
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from interrupts import Places

from stream_vlm_ros.engine.cache.buffer import KVBuffer, KVShape, Moved, Writing
from stream_vlm_ros.engine.cache.kept import SINK, Shifts
from stream_vlm_ros.engine.cache.mrope import ZERO, MultimodalRotary, Vec
from stream_vlm_ros.engine.cache.slots import Slots

AXES = [0, 0, 1, 2]
ROTARY = MultimodalRotary(100.0, AXES)
TOKENS = 3  # of a grid
OFFSETS = st.builds(Vec, *[st.integers(-50, 50)] * 3)


def buffer_of(grids, dtype=torch.float32):
    """A sink of two tokens and so many kept grids, as a first commit writes them."""
    count = 2 + TOKENS * grids
    slots = Slots(count + 5).appended(2).sealed(2, TOKENS * grids)
    for number in range(grids):
        slots = slots.appended(TOKENS).kept_oldest(number, TOKENS)
    shape = KVShape(layers=2, kv_heads=2, head_dim=8, dtype=dtype)
    buffer = KVBuffer(shape, slots.capacity, torch.device("cpu"), originals=count)
    kv = torch.randn(2, 2, 2, count, 8, generator=torch.Generator().manual_seed(0)).to(dtype)
    of_grids = dict.fromkeys(range(grids), True)
    moved = Moved(buffer.numbers(slots.own), kv[:, :, :, 2:], of_grids)
    buffer.write(Writing(kv[:, :, :, :2], [slice(0, 2)], moved, sealed=2))
    return buffer, slots, kv


def rotated(keys, offset):
    """Each pair of numbers as a complex one, rotated by its axis' positions, in float64."""
    pairs = torch.complex(keys[..., :4].double(), keys[..., 4:].double())
    frequencies = 100.0 ** (-torch.arange(4) / 4)
    angles = torch.tensor([offset[axis] for axis in AXES]).double() * frequencies.double()
    pairs = pairs * torch.exp(1j * angles)
    return torch.cat([pairs.real, pairs.imag], dim=-1)


def check(buffer, kv, shifts, frame, shared):
    """A query rotated by ``shared`` is as far from each key as one rotated by its own offset."""
    owners = [row for row, tokens in enumerate(shifts.tokens) for _ in range(tokens)]
    for at, row in enumerate(owners):
        further = shared.minus(Vec(*shifts.by[row]).minus(frame))
        expected = rotated(kv[:, 0, :, at], further)
        assert (buffer.data[:, 0, :, at].double() - expected).abs().max() < 1e-5
    assert torch.equal(buffer.data[:, 1, :, : len(owners)], kv[:, 1])


def layout(offsets):
    numbers = np.arange(SINK, SINK + len(offsets))
    return Shifts(numbers, np.where(numbers == SINK, 2, TOKENS), np.array(offsets))


@settings(max_examples=60)
@given(st.lists(st.tuples(st.lists(OFFSETS, min_size=5, max_size=5), OFFSETS), max_size=4))
def test_one_offset_of_a_query_sees_every_key_right(layouts):
    buffer, slots, kv = buffer_of(4)
    for offsets, frame in layouts:
        shifts = layout(offsets)
        check(buffer, kv, shifts, frame, buffer.rotate_base(ROTARY, slots, shifts, frame))


@pytest.mark.parametrize("moving", [[], [3], [0, 1], [2, 3]])
def test_keys_that_move_together_with_most_others_are_not_touched(moving):
    buffer, slots, _ = buffer_of(4)
    before = buffer.data.clone().view(torch.int32)  # bits: the free room may hold NaN
    gap = Vec(7, 0, 0)
    shifts = layout([ZERO.minus(gap) if number in moving else ZERO for number in range(SINK, 4)])
    shared = buffer.rotate_base(ROTARY, slots, shifts, Vec(5, 5, 5))
    assert shared == Vec(-5, -5, -5)
    changed = (buffer.data.view(torch.int32) != before).any(-1).any(0).any(0).any(0)
    expected = [2 + TOKENS * number + at for number in moving for at in range(TOKENS)]
    assert changed.nonzero()[:, 0].tolist() == expected


def test_keys_whose_rotation_was_interrupted_anywhere_are_rotated_again_for_any_layout():
    frame = ZERO
    layouts = [layout([Vec(3 * n % 5, n, 0) for n in range(first, first + 5)]) for first in (0, 7)]
    for at in range(3000):
        buffer, slots, kv = buffer_of(4)
        buffer.rotate_base(ROTARY, slots, layouts[0], frame)
        rotate = functools.partial(buffer.rotate_base, ROTARY, slots, layouts[1], frame)
        ended = Places(at).run(rotate)
        shared = buffer.rotate_base(ROTARY, slots, layouts[0], frame)
        check(buffer, kv, layouts[0], frame, shared)
        if ended:
            break
    assert 100 < at < 2999


def test_keys_do_not_drift_however_often_they_are_rotated():
    buffer, slots, kv = buffer_of(2, torch.bfloat16)
    steps = [Vec(13 * number, number, 2 * number) for number in range(1000)]
    for early, late in pairwise(steps):
        shifts = layout([ZERO, early, late])
        shared = buffer.rotate_base(ROTARY, slots, shifts, ZERO)
    for number, at in ((0, 2), (1, 5)):
        expected = rotated(kv[:, 0, :, at], shared.minus(Vec(*shifts.by[number + 1])))
        # One rounding to eight bits.
        assert (buffer.data[:, 0, :, at].double() - expected).abs().max() < 2**-8 * 4

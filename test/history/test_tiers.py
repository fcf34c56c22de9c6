# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""The features of a history, without an engine: what they say of themselves is always true."""

from __future__ import annotations

import sys

import pytest
import torch

from stream_vlm_ros.history import tiers
from stream_vlm_ros.history.tiers import FeatureTier

GRID_BYTES = 6 * 4


def add(tier, first, count=1):
    """Grids of a second each."""
    stamps = [(float(number), number + 0.5) for number in range(first, first + count)]
    tier.add(torch.arange(6.0 * count).reshape(count, 2, 3, 1), stamps)


def interrupted(call, at):
    """Whether the call ended before an interrupt at that one of its opcodes in the tier's file."""
    passed = 0

    def trace(frame, event, _):
        nonlocal passed
        if frame.f_code.co_filename != tiers.__file__:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            passed += 1
            if passed > at:
                raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
        return True
    except KeyboardInterrupt:
        return False
    finally:
        sys.settrace(before)


@pytest.mark.parametrize(
    "change",
    [
        lambda tier: add(tier, 4, 2),
        lambda tier: tier.let_go_before(2.0),
        lambda tier: tier.forget(1.0, 2.0),
    ],
    ids=["add", "let_go_before", "forget"],
)
def test_interrupted_at_any_place_features_are_as_before_or_as_after(change):
    def seen(tier):
        info = tier.info()
        assert info.bytes == info.grids * GRID_BYTES <= info.max_bytes
        whole = [second for second in range(8) if tier.between(second, 9.0) is not None]
        return info, whole

    def made():
        tier = FeatureTier(4 * GRID_BYTES)
        add(tier, 0, 4)
        return tier

    whole = made()
    before = seen(whole)
    change(whole)
    after = seen(whole)
    assert before != after
    for at in range(2000):
        tier = made()
        ended = interrupted(lambda tier=tier: change(tier), at)
        assert seen(tier) in (before, after)
        if ended:
            break
    assert ended and at > 20


def test_a_stamp_of_which_a_grid_was_let_go_is_not_held_whole():
    tier = FeatureTier(2 * GRID_BYTES)
    tier.add(torch.zeros(3, 2, 3, 1), [(5.0, 5.0), (5.0, 5.5), (6.0, 6.5)])
    assert tier.between(5.0, 6.5) is None
    assert [grid.stamp for grid in tier.between(5.25, 6.5)] == [5.0, 6.0]

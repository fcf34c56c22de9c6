# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""What is judged of the policies, from rows made by hand."""

from __future__ import annotations

import pytest

from stream_vlm_ros.experiments.accuracy import Streams, judge
from stream_vlm_ros.experiments.dataset import PERCEPTION, TYPES
from stream_vlm_ros.experiments.record import Record
from stream_vlm_ros.experiments.streams import DEFAULT, LAST_FOUR

RECALL = next(kind for kind in TYPES if kind not in PERCEPTION)
SPAN = 10.0  # seconds that a plain window holds: 50 s ago is 5 spans


def rows_of(policy, right):
    """Two videos, each asked ten times about what was seen 5 spans ago, ``right`` times rightly."""
    return [
        {
            "video": video, "setting": "trained", "policy": policy, "layout": "continuous",
            "positions": "contiguous", "cap": 100, "cap_share": 0.5, "span": SPAN,
            "results": [(RECALL, 5 * SPAN, index < right) for index in range(10)],
        }
        for video in (1, 2)
    ]  # fmt: skip


@pytest.mark.parametrize(("right", "passed"), [(8, True), (4, False)])
def test_the_default_is_judged_by_its_recall_of_what_is_old(tmp_path, right, passed):
    rows = [*rows_of("sink + window", 2), *rows_of(LAST_FOUR, 1), *rows_of(DEFAULT, right)]
    record = Record("policies", "Policies", tmp_path)
    streams = Streams("trained", rows, ("continuous", "contiguous"))
    judge(record, streams, True)
    (found,) = (
        one for one in record.criteria if DEFAULT in one.name and "over sink + window" in one.name
    )
    assert found.passed is passed  # 60 or 20 points more, of the 25 that are wanted
    assert found.found.startswith("+60.0" if passed else "+20.0")


def test_the_best_of_both_kinds_is_judged_beside_the_default(tmp_path):
    rows = [*rows_of("sink + window", 2), *rows_of(DEFAULT, 8), *rows_of("+ both", 5)]
    rows += rows_of("+ both, small window", 6)
    record = Record("policies", "Policies", tmp_path)
    streams = Streams("trained", rows, ("continuous", "contiguous"))
    judge(record, streams, True)
    found = {
        one.name.split("), ")[1]: one.passed for one in record.criteria if "5 spans" in one.name
    }
    assert found["+ both, small window over sink + window"] is True  # 40 points more
    assert found[f"{DEFAULT} over sink + window"] is True
    assert not any(name.startswith("+ both over") for name in found)


def test_perception_more_than_a_point_below_the_last_frames_and_no_gain_over_them_fail(tmp_path):
    now = [("now", 0.0, index < 8) for index in range(10)]
    better = [("now", 0.0, True)] * 10
    rows = [
        *({**row, "results": [*row["results"], *better]} for row in rows_of(LAST_FOUR, 2)),
        *({**row, "results": [*row["results"], *now]} for row in rows_of("sink + window", 1)),
        *({**row, "results": [*row["results"], *now]} for row in rows_of(DEFAULT, 2)),
    ]
    record = Record("policies", "Policies", tmp_path)
    judge(record, Streams("trained", rows, ("continuous", "contiguous")), True)
    found = {one.name: (one.passed, one.found) for one in record.criteria}
    passed, told = found[
        "trained: perception of no policy is below the last 4 frames' by more than a point"
    ]
    assert passed is False and told.startswith("-20.0 points")
    # 20 % right like the last frames: more than sink + window, yet not over both.
    passed, told = next(one for name, one in found.items() if name.endswith(f"over {LAST_FOUR}")
                        and DEFAULT in name)  # fmt: skip
    assert passed is False and told.startswith("+0.0 points")

# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""The report's plots can be read, however many groups and runs there are."""

from __future__ import annotations

from itertools import pairwise

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from stream_vlm_ros.replay.plots import draw_shares
from stream_vlm_ros.replay.summary import wilson


def run_of(name, groups):
    low, high = wilson(6, 10)
    share = {"judged": 10, "right": 6, "accuracy": 0.6, "low": low, "high": high}
    return {"name": name, "summary": {"by_type": dict.fromkeys(groups, share)}}


@pytest.mark.parametrize("groups", [2, 18])
@pytest.mark.parametrize("names", [("streaming",), ("streaming", "streaming,max_pixels=50176")])
def test_names_do_not_cover_each_other_and_the_legend_no_bars(groups, names):
    figure = Figure(figsize=(5.4, 2.9), layout="constrained")
    axes = figure.add_subplot()
    kinds = [f"type of question {number}" for number in range(groups)]
    assert draw_shares(axes, [run_of(name, kinds) for name in names], "by_type")
    FigureCanvasAgg(figure).draw()
    axis = axes.yaxis if groups > 6 else axes.xaxis
    boxes = [label.get_window_extent() for label in axis.get_ticklabels()]
    assert len(boxes) == groups
    assert not any(a.overlaps(b) for a, b in pairwise(boxes))
    assert len(figure.legends) == len(names) - 1 and axes.get_legend() is None
    for legend in figure.legends:
        assert not legend.get_window_extent().overlaps(axes.get_window_extent())

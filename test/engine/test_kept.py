# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""The grids kept for long, laid out as rows, against the trained rule token by token."""

import itertools

from amounts import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from stream_vlm_ros.engine.cache.ledger import PositionLedger
from stream_vlm_ros.engine.cache.mrope import TextSpan, VisionSpan, run_positions


def chunks():
    """Chunks: text before (0: none), a segment opened, ticks to the next grid, size."""
    return st.lists(
        st.tuples(
            st.sampled_from([0, 0, 2]),
            st.booleans(),
            st.lists(st.integers(0, 3), min_size=1, max_size=3),
            st.integers(1, 4),
            st.integers(1, 4),
        ),
        min_size=1,
        max_size=10,
    )


def appended(ledger, chunks):
    tick, number = 0, 0
    for text, opens, steps, height, width in chunks:
        if text:
            ledger.append([TextSpan(text)])
        ticks = []
        for step in steps:
            tick += step
            ticks.append(tick)
        stamps = tuple((number + at, number + at) for at in range(len(ticks)))
        number += len(ticks)
        ledger.append([VisionSpan(tuple(ticks), stamps, height, width, opens or bool(text))])


def trained(runs, step_after):
    """Positions by the trained rule, one token after the other; ``step_after``: by grid number."""
    positions, end, segment, before = [], 0, None, None
    for run in runs:
        if not hasattr(run, "grids"):
            positions += [(end + at,) * 3 for at in range(run.count)]
            end, segment = end + run.count, None
            continue
        cut = run.cut
        for grid in run.grids:
            stop = grid.count - (run.cut_end if grid is run.grids[-1] else 0)
            if run.segment != segment:
                segment, base, t = run.segment, end, end
            elif grid.number != before:
                t += step_after[before]
            before = grid.number
            places = [divmod(at, grid.width) for at in range(cut, stop)]
            positions += [(t, base + row, base + column) for row, column in places]
            end = max([end, *(axis + 1 for place in positions[-len(places) :] for axis in place)])
            cut = 0
    return positions


@settings(max_examples=examples(60))
@given(chunks=chunks(), sink=st.integers(1, 6), data=st.data())
def test_kept_grids_lie_where_the_trained_rule_puts_them_whatever_goes(chunks, sink, data):
    ledger = PositionLedger("contiguous")
    appended(ledger, chunks)
    grids = [grid for run in ledger.runs() for grid in getattr(run, "grids", ())]
    steps = {one.number: other.tick - one.tick for one, other in itertools.pairwise(grids)}
    ledger.seal_sink(min(sink, ledger.length))
    kept = []
    for _ in range(data.draw(st.integers(0, 12))):
        whole = ledger.oldest_whole_grid
        choices = ["forget"] * (ledger.window_length > 0) + ["drop"] * bool(kept)
        choices += ["keep"] * (whole is not None)
        if not choices:
            break
        match data.draw(st.sampled_from(choices)):
            case "forget":
                ledger.evict(ledger.oldest_piece)
            case "keep":
                ledger.keep_oldest()
                kept.append(whole.number)
            case "drop":
                kept.remove(gone := data.draw(st.sampled_from(kept)))
                assert ledger.drop_kept(gone).number == gone
        ledger.reindex()
        runs = list(ledger.runs())
        assert sum(run.count for run in runs) == ledger.length
        assert [run.grids[0].number for run in ledger.runs(["kept"])] == kept
        assert [number for number, _ in ledger.kept_offsets()] == kept
        # A run's shift is where its keys are less where they would be laid out.
        laid = [
            tuple((position - shift).tolist())
            for run in runs
            for position, shift in (
                (column, column.new_tensor(run.shift)) for column in run_positions(run).T
            )
        ]
        assert laid == trained(runs, steps)

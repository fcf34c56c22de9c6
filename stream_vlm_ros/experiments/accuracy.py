# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""What the streams' rows say: tables, criteria and plots by policy, cap, type of question and age.

Intervals are of 95 % by bootstrap over the videos: questions about one video are not independent.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np

from .context import Context
from .dataset import PERCEPTION, TYPES
from .options import LAYOUTS, POSITIONS
from .record import Record
from .streams import DEFAULT, FULL, LAST_FOUR, POLICIES, evicts, shares_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row = dict[str, Any]
Picked = Callable[[Row, str, "float | None"], bool]
AGES = ((0, 0.5), (0.5, 1), (1, 2.5), (2.5, 7.5), (7.5, math.inf))  # in spans of the window
FIVE_SPANS = (2.5, 7.5)
_DRAWS = 2000


def share(rows: Iterable[Row], picked: Picked) -> tuple[float, int]:
    """Points (0 to 100) of the questions picked, and how many they are."""
    right = [good for row in rows for type_, age, good in row["results"] if picked(row, type_, age)]
    return (100 * sum(right) / len(right) if right else math.nan), len(right)


def interval(
    rows: Iterable[Row], picked: Picked, less: Iterable[Row] = (), draws: int = _DRAWS
) -> tuple[float, float]:
    """95 % interval of `share` over resampled videos; of its difference to ``less``, if given.

    NaN with fewer than two videos.
    """
    counts = [_by_video(some, picked) for some in (rows, less)]
    videos = sorted(set(counts[0]) & set(counts[1]) if counts[1] else counts[0])
    if len(videos) < 2:
        return math.nan, math.nan
    drawn = np.random.default_rng(0).integers(len(videos), size=(draws, len(videos)))
    points = []
    for count in filter(None, counts):
        right, asked = np.array([count[video] for video in videos])[drawn].sum(1).T
        points.append(100 * right / np.maximum(asked, 1))
    found = points[0] - points[1] if len(points) == 2 else points[0]
    low, high = np.percentile(found, (2.5, 97.5))
    return float(low), float(high)


def _by_video(rows: Iterable[Row], picked: Picked) -> dict[int, tuple[int, int]]:
    """(right, asked) of each video in which there were such questions."""
    found: dict[int, tuple[int, int]] = {}
    for row in rows:
        good = [right for type_, age, right in row["results"] if picked(row, type_, age)]
        if good:
            before = found.get(row["video"], (0, 0))
            found[row["video"]] = before[0] + sum(good), before[1] + len(good)
    return found


def perception(row: Row, type_: str, age: float | None) -> bool:
    return type_ in PERCEPTION


def recall(row: Row, type_: str, age: float | None) -> bool:
    return type_ not in PERCEPTION


def of_type(name: str) -> Picked:
    return lambda row, type_, age: type_ == name


def aged(low: float, high: float, spans: dict[tuple, float]) -> Picked:
    """Recall whose evidence is this many windows old."""

    def picked(row: Row, type_: str, age: float | None) -> bool:
        if age is None or type_ in PERCEPTION:
            return False
        span = spans.get((row["setting"], row["layout"], row["cap_share"])) or row["span"]
        return low <= age / span < high

    return picked


@dataclass(frozen=True)
class Streams:
    """The rows of one setting.

    Attributes:
        first: the layout and the position policy that all videos were streamed with.
    """

    name: str
    rows: Sequence[Row]
    first: tuple[str, str]

    @property
    def caps(self) -> list[float]:
        return sorted({row["cap_share"] for row in self.rows if row["cap"] is not None})

    @property
    def policies(self) -> list[str]:
        there = {row["policy"] for row in self.rows}
        return [*(policy for policy in POLICIES if policy in there), *sorted(there - {*POLICIES})]

    @property
    def ours(self) -> list[str]:
        return [policy for policy in self.policies if evicts(policy)]

    @property
    def videos(self) -> set[int]:
        return {row["video"] for row in self.rows}

    @property
    def ways(self) -> list[tuple[str, str]]:
        """(layout, position policy) that there are."""
        there = {(r["layout"], r["positions"]) for r in self.rows if r["cap"] is not None}
        return [(a, b) for a in LAYOUTS for b in POSITIONS if (a, b) in there]

    @property
    def crossed(self) -> set[int]:
        """Videos that were streamed in all ways."""
        by_way = [
            {r["video"] for r in self.rows if (r["layout"], r["positions"]) == way}
            for way in self.ways
        ]
        return set.intersection(*by_way) if by_way else set()

    @property
    def spans(self) -> dict[tuple, float]:
        """Seconds that a window alone holds, by setting, layout and cap."""
        return {
            (self.name, row["layout"], row["cap_share"]): row["span"]
            for row in self.rows
            if row["cap"] is not None
        }

    def of(
        self, policy: str, cap: float | None = None, way: tuple[str, str] | None = None,
        videos: set[int] | None = None,
    ) -> list[Row]:  # fmt: skip
        """Rows of a policy, by default of all caps and of the first way.

        Those that evict nothing appear with every cap and every position policy.
        """
        layout, positions = way or self.first
        found = [
            row
            for row in self.rows
            if row["policy"] == policy
            and row["layout"] == layout
            and (videos is None or row["video"] in videos)
            and (row["cap"] is None or row["positions"] == positions)
            and (row["cap"] is None or cap is None or row["cap_share"] == cap)
        ]
        if not evicts(policy):
            caps = self.caps if cap is None else [cap]
            found = [dict(row, cap_share=one) for one in caps for row in found]
        return found


def report(context: Context, streams: list[Row]) -> None:
    """Tables, criteria and plots from the streams' rows."""
    record, options = context.record, context.options
    rows = [row for row in streams if row.get("results")]
    first = options.layouts[0], options.positions[0]
    for name in options.settings:
        mine = Streams(name, [row for row in rows if row["setting"] == name], first)
        if mine.rows:
            _report_setting(context, mine, name == "trained" and not context.model.random)
    left = {
        f"{row['setting']}, {row['policy']}, {row['layout']}, cap {row['cap_share']:.0%}": row[
            "left_out"
        ]
        for row in streams
        if "left_out" in row
    }
    for where, why in sorted(left.items()):
        record.note(f"Left out: {where}: {why}")


def _report_setting(context: Context, streams: Streams, judged: bool) -> None:
    record, name = context.record, streams.name
    caps, kept, spans = streams.caps, streams.policies, streams.spans
    asked = sum(len(row["results"]) for row in streams.rows)
    record.note(
        f"{name}: {len(streams.videos)} videos, {len(streams.rows)} streams, {asked:,} questions. "
        f"In brackets: 95 % by bootstrap over the videos. {', '.join(streams.first)}, where "
        "nothing else is said."
    )
    five = aged(*FIVE_SPANS, spans)
    for what, picked in (
        ("recall", recall),
        ("perception", perception),
        ("recall of what is 2.5 to 7.5 spans of a plain window old", five),
    ):
        context.table(
            f"{name}: {what}, points, by the cap",
            ["", *(f"{cap:.0%}" for cap in caps), "all"],
            [
                [policy, *(_points(streams.of(policy, cap), picked) for cap in (*caps, None))]
                for policy in kept
            ],
        )
    context.table(
        f"{name}: mean of perception and recall, points, by the cap",
        ["", *(f"{cap:.0%}" for cap in caps), "all"],
        [[p, *(f"{_mean(streams.of(p, cap)):.1f}" for cap in (*caps, None))] for p in kept],
    )
    crossed = streams.crossed
    if len(streams.ways) > 1 and crossed:
        for what, picked in (("recall", recall), ("perception", perception)):
            context.table(
                f"{name}: {what} by layout and position policy, points, all caps, "
                f"{len(crossed)} videos",
                ["", *(", ".join(way) for way in streams.ways)],
                [
                    [p, *(_points(streams.of(p, None, w, crossed), picked) for w in streams.ways)]
                    for p in kept
                ],
            )
    context.table(
        f"{name}: by type of question, points, all caps",
        ["", "questions", *kept],
        [
            [
                kind,
                f"{share(streams.of(kept[0]), of_type(kind))[1]:,}",
                *(f"{share(streams.of(p), of_type(kind))[0]:.1f}" for p in kept),
            ]
            for kind in TYPES
        ],
    )
    ages = {p: [share(streams.of(p), aged(low, high, spans)) for low, high in AGES] for p in kept}
    context.table(
        f"{name}: recall by the age of what answers, in spans of a plain window under the same "
        "cap, points (questions), all caps",
        ["", *(f"{low:g} to {high:g}" for low, high in AGES)],
        [
            [policy, *("–" if not n else f"{value:.1f} ({n:,})" for value, n in found)]
            for policy, found in ages.items()
        ],
    )
    by_cap = {
        what: {p: {f"{cap:g}": share(streams.of(p, cap), picked)[0] for cap in caps} for p in kept}
        for what, picked in (("recall", recall), ("perception", perception), ("old", five))
    }
    record.summary[name] = {
        "videos": len(streams.videos),
        "questions": asked,
        "by_age": {policy: [value for value, _ in found] for policy, found in ages.items()},
        **by_cap,
        "mean": {
            ", ".join((p, *way)): _mean(streams.of(p, None, way, crossed))
            for p in streams.ours
            for way in streams.ways
        },
    }
    judge(record, streams, judged)
    _plots(context, streams, ages)


def _points(rows: list[Row], picked: Picked) -> str:
    value, count = share(rows, picked)
    if not count:
        return "–"
    low, high = interval(rows, picked)
    return f"{value:.1f}" if math.isnan(low) else f"{value:.1f} ({low:.0f}–{high:.0f})"


def _mean(rows: list[Row]) -> float:
    """Of perception and recall, each cap counting alike."""
    caps = {row["cap_share"] for row in rows}
    found = [
        share([row for row in rows if row["cap_share"] == cap], picked)[0]
        for cap in caps
        for picked in (perception, recall)
    ]
    return statistics.mean(found) if found else math.nan


def judge(record: Record, streams: Streams, judged: bool) -> None:
    """Put to the record what the policies must hold; unless ``judged`` it is not decided."""
    name, ours = streams.name, streams.ours
    worst, where = math.inf, "nothing to compare"
    for cap in streams.caps:
        base = streams.of(LAST_FOUR, cap)
        for policy in ours:
            rows = streams.of(policy, cap)
            below = share(rows, perception)[0] - share(base, perception)[0]
            if below < worst:  # (never so for NaN)
                worst = below
                low, high = interval(rows, perception, less=base)
                where = f"{worst:+.1f} points ({policy}, cap {cap:.0%}; 95 %: {low:.1f}–{high:.1f})"
    record.check(
        f"{name}: perception of no policy is below the last 4 frames' by more than a point",
        worst >= -1 if judged and math.isfinite(worst) else None,
        where,
        ">= -1 point",
    )
    five = aged(*FIVE_SPANS, streams.spans)
    old = {policy: share(streams.of(policy), five)[0] for policy in streams.policies}
    both = [policy for policy in ours if min(shares_of(policy)) > 0 and not math.isnan(old[policy])]
    # The best of those that keep frames of both kinds, and the default, whatever it keeps.
    ways = [max(both, key=old.__getitem__, default=None), *(p for p in ours if p == DEFAULT)]
    for way, (than, least) in product(ways, (("sink + window", 25.0), (LAST_FOUR, None))):
        title = f"{name}: recall at 5 spans of the window (2.5 to 7.5), {way or 'both'} over {than}"
        if way is None or math.isnan(old.get(than, math.nan)):
            record.check(title, None, "nothing to compare", ">= 25 points")
            continue
        over = old[way] - old[than]
        low, high = interval(streams.of(way), five, less=streams.of(than))
        found = (
            f"{over:+.1f} points ({old[way]:.1f} and {old[than]:.1f}; 95 %: {low:.1f}–{high:.1f})"
        )
        window = old[way] - old.get("sink + window", math.nan)
        passed = over >= least if least is not None else over > window
        wanted = ">= 25 points" if least is not None else "more than over sink + window"
        record.check(title, passed if judged else None, found, wanted)
    means = {policy: _mean(streams.of(policy)) for policy in ours}
    if means and judged:
        best = sorted(means, key=means.__getitem__, reverse=True)
        texts = [f"{policy}: {means[policy]:.1f}" for policy in best]
        record.note(f"{name}: mean of perception and recall over all caps: {'; '.join(texts)}.")
    for layout in LAYOUTS:
        kept, closed = (layout, "keep_gaps"), (layout, "contiguous")
        if not {kept, closed} <= set(streams.ways) or not streams.crossed:
            continue
        rows, less = (
            [row for policy in ours for row in streams.of(policy, None, way, streams.crossed)]
            for way in (kept, closed)
        )
        better = share(rows, recall)[0] - share(less, recall)[0]
        low, high = interval(rows, recall, less=less)
        record.note(
            f"{name}, {layout}: recall with keep_gaps less that with contiguous: {better:+.1f} "
            f"points (95 %: {low:+.1f} to {high:+.1f})."
        )


_COLOURS = dict(zip(POLICIES, ("0.6", "C0", "C2", "C1", "C5", "C3", "C4", "0.2"), strict=True))


def _plots(context: Context, streams: Streams, ages: dict[str, list[tuple[float, int]]]) -> None:
    record, name, caps, kept = context.record, streams.name, streams.caps, streams.policies
    way = ", ".join(streams.first)

    def by_age(figure: Figure, axes: Axes) -> None:
        there = [at for at in range(len(AGES)) if any(found[at][1] for found in ages.values())]
        labels = [
            f"{low:g} to {high:g}" if high < math.inf else f"over {low:g}" for low, high in AGES
        ]
        for policy, found in ages.items():
            axes.plot(
                [labels[at] for at in there], [found[at][0] for at in there],
                "o-", label=policy, color=_COLOURS.get(policy),
            )  # fmt: skip
        axes.set(
            xlabel="age of what answers, in spans of a plain window under the same cap",
            ylabel="right, %", ylim=(0, 102), title=f"Recall by age, all caps ({name}; {way})",
        )  # fmt: skip
        figure.legend(loc="outside right upper")

    def by_cap(figure: Figure, axes: Axes) -> None:
        figure.delaxes(axes)
        for place, (what, picked) in enumerate((("Recall", recall), ("Perception", perception))):
            part = figure.add_subplot(1, 2, place + 1)
            for number, policy in enumerate(kept):
                rows = [streams.of(policy, cap) for cap in caps]
                values = [share(some, picked)[0] for some in rows]
                low, high = zip(*(interval(some, picked) for some in rows), strict=True)
                spread = np.abs(np.array([low, high]) - values)
                shift = 0.35 * (number - len(kept) / 2)  # so that the bars can be told apart
                part.errorbar(
                    [100 * cap + shift for cap in caps], values,
                    None if np.isnan(spread).any() else spread, fmt="o-", capsize=2, ms=4,
                    label=policy if place == 0 else None, color=_COLOURS.get(policy),
                )  # fmt: skip
            part.set(xlabel="cap, % of the history", ylabel="right, %", ylim=(0, 102), title=what)
            part.set_xticks([100 * cap for cap in caps])
        figure.suptitle(f"By cap ({name}; {way}); bars: 95 % over the videos")
        figure.legend(loc="outside right upper")

    def by_type(figure: Figure, axes: Axes) -> None:
        width = 0.8 / max(1, len(kept))
        for number, policy in enumerate(kept):
            values = [share(streams.of(policy), of_type(kind))[0] for kind in TYPES]
            places = [index + width * (number + 0.5) - 0.4 for index in range(len(TYPES))]
            axes.bar(places, values, width, label=policy, color=_COLOURS.get(policy))
        axes.set_xticks(range(len(TYPES)), TYPES, rotation=45, ha="right")
        axes.set(ylabel="right, %", ylim=(0, 102), title=f"By type, all caps ({name}; {way})")
        figure.legend(loc="outside right upper")

    def by_way(figure: Figure, axes: Axes) -> None:
        shown = [policy for policy in (*streams.ours, FULL) if policy in kept]
        for number, one in enumerate(streams.ways):
            values, spreads = [], []
            for policy in shown:
                rows = streams.of(policy, None, one, streams.crossed)
                values.append(share(rows, recall)[0])
                spreads.append(interval(rows, recall))
            spread = np.abs(np.array(spreads).T - values)
            places = [
                index + 0.2 * (number - (len(streams.ways) - 1) / 2) for index in range(len(shown))
            ]
            axes.bar(
                places, values, 0.19, label=", ".join(one),
                yerr=None if np.isnan(spread).any() else spread, capsize=2, ecolor="0.3",
            )  # fmt: skip
        axes.set_xticks(range(len(shown)), [policy.replace(", ", ",\n") for policy in shown])
        videos = f"{len(streams.crossed)} videos"
        axes.set(
            ylabel="recall right, %", ylim=(0, 102),
            title=f"By layout and position policy, all caps ({name}, {videos})",
        )  # fmt: skip
        figure.legend(loc="outside right upper")

    wanted = [("age", by_age, (9, 4.5)), ("cap", by_cap, (12, 4.8)), ("type", by_type, (13, 4.8))]
    if len(streams.ways) > 1 and streams.crossed:
        wanted.append(("layout", by_way, (11, 4.8)))
    for title, draw, size in wanted:
        record.plot(f"{name}-{title}", draw, size)

"""What the streams' rows say: tables, criteria and plots by policy, type of question and age."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable
from typing import Any

from .bench import Bench
from .exam import PERCEPTION, TYPES
from .streams import LAST_FOUR, LAYOUTS, POLICIES, POSITIONS, SHARES

Picked = Callable[[dict[str, Any], str, "float | None"], bool]
AGES = ((0, 0.5), (0.5, 1), (1, 2.5), (2.5, 7.5), (7.5, math.inf))  # in spans of the window


def share(rows: Iterable[dict[str, Any]], picked: Picked) -> tuple[float, int]:
    """Points (0 to 100) of the questions picked, and how many they are."""
    right = [good for row in rows for type_, age, good in row["results"] if picked(row, type_, age)]
    return (100 * sum(right) / len(right) if right else math.nan), len(right)


def perception(row: dict[str, Any], type_: str, age: float | None) -> bool:
    return type_ in PERCEPTION


def recall(row: dict[str, Any], type_: str, age: float | None) -> bool:
    return type_ not in PERCEPTION


def aged(low: float, high: float, spans: dict[tuple, float]) -> Picked:
    """Recall whose evidence is so many spans of the window old."""

    def picked(row: dict[str, Any], type_: str, age: float | None) -> bool:
        if age is None or type_ in PERCEPTION:
            return False
        span = spans.get((row["setting"], row["layout"], row["cap_share"])) or row["span"]
        return low <= age / span < high

    return picked


def report(bench: Bench, streams: list[dict[str, Any]]) -> None:
    """Tables, criteria and plots from the streams' rows."""
    record, options = bench.record, bench.options
    rows = [row for row in streams if row.get("results")]
    for name in options.settings:
        mine = [row for row in rows if row["setting"] == name]
        if mine:
            _report_setting(
                bench, name, mine, judged=name == "trained" and not bench.subject.random
            )
    left = {
        f"{row['setting']}, {row['policy']}, {row['layout']}, cap {row['cap_share']:.0%}": row[
            "left_out"
        ]
        for row in streams
        if "left_out" in row
    }
    for where, why in sorted(left.items()):
        record.note(f"Left out: {where}: {why}")


def _report_setting(bench: Bench, name: str, rows: list[dict[str, Any]], judged: bool) -> None:
    record = bench.record
    caps = sorted({row["cap_share"] for row in rows if row["cap"] is not None})
    videos = len({row["video"] for row in rows})
    asked = sum(len(row["results"]) for row in rows)
    record.note(f"{name}: {videos} videos, {len(rows)} streams, {asked:,} questions.")

    def of(policy: str, cap: float | None = None, **wanted: str) -> list[dict[str, Any]]:
        return [
            row
            for row in rows
            if row["policy"] == policy
            and (cap is None or row["cap"] is None or row["cap_share"] == cap)
            and all(
                row[k] == v or (k == "positions" and row["cap"] is None) for k, v in wanted.items()
            )
        ]

    def points(picked: Picked, some: list[dict[str, Any]]) -> str:
        value, count = share(some, picked)
        return "–" if not count else f"{value:.1f} ({count})"

    kept = [policy for policy in POLICIES if of(policy)]
    for what, picked in (("recall", recall), ("perception", perception)):
        bench.table(
            f"{name}: {what}, points (questions), all layouts and positions, by the cap",
            ["", *(f"{cap:.0%}" for cap in caps)],
            [[policy, *(points(picked, of(policy, cap)) for cap in caps)] for policy in kept],
        )
    variants = [(layout, positions) for layout in LAYOUTS for positions in POSITIONS]
    bench.table(
        f"{name}: recall by layout and position policy, mean of the caps",
        ["", *(f"{layout}, {positions}" for layout, positions in variants)],
        [
            [policy, *(points(recall, of(policy, layout=a, positions=b)) for a, b in variants)]
            for policy in kept
        ],
    )
    bench.table(
        f"{name}: by type of question, mean of caps, layouts and positions",
        ["", *kept],
        [
            [kind, *(points(lambda row, t, age, k=kind: t == k, of(policy)) for policy in kept)]
            for kind in TYPES
        ],
    )
    # Last four frames and full history have no cap: they stand beside each cap in turn.
    spans = {
        (name, row["layout"], row["cap_share"]): row["span"]
        for row in rows
        if row["cap"] is not None
    }

    def beside(policy: str, cap: float, **wanted: str) -> list[dict[str, Any]]:
        return [dict(row, cap_share=cap) for row in of(policy, cap, **wanted)]

    ages = {}
    for policy in kept:
        some = [row for cap in caps for row in beside(policy, cap)]
        ages[policy] = [share(some, aged(low, high, spans)) for low, high in AGES]
    bench.table(
        f"{name}: recall by the age of what answers, in spans of a plain window under the same cap",
        ["", *(f"{low:g} to {high:g}" for low, high in AGES)],
        [
            [policy, *("–" if not n else f"{value:.1f} ({n})" for value, n in found)]
            for policy, found in ages.items()
        ],
    )
    record.summary[name] = {
        "videos": videos,
        "questions": asked,
        "by_age": {policy: [value for value, _ in found] for policy, found in ages.items()},
        "recall": {
            policy: {f"{cap:g}": share(of(policy, cap), recall)[0] for cap in caps}
            for policy in kept
        },
        "perception": {
            policy: {f"{cap:g}": share(of(policy, cap), perception)[0] for cap in caps}
            for policy in kept
        },
    }
    _judge(bench, name, caps, kept, of, ages, judged)
    _plots(bench, name, caps, kept, of, ages)


def _judge(bench, name, caps, kept, of, ages, judged: bool) -> None:
    record = bench.record
    ours = [policy for policy in kept if policy in SHARES]
    worst, where = math.inf, "nothing to compare"
    for policy in ours:
        for layout in LAYOUTS:
            base, count = share(of(LAST_FOUR, layout=layout), perception)
            for positions in POSITIONS:
                mine, n = share(of(policy, layout=layout, positions=positions), perception)
                if n and count and mine - base < worst:
                    worst = mine - base
                    where = f"{worst:+.1f} points ({policy}, {layout}, {positions}; {n} questions)"
    known = judged and math.isfinite(worst)
    record.check(
        f"{name}: perception of no policy is below the last 4 frames' by more than a point",
        worst >= -1 if known else None,
        where,
        ">= -1 point",
    )
    at = AGES.index((2.5, 7.5))
    window, last = (
        ages[policy][at][0] if policy in ages else math.nan
        for policy in ("sink + window", LAST_FOUR)
    )
    way = max(
        (policy for policy in ages if policy.startswith("+ both")),
        key=lambda policy: ages[policy][at][0],
        default="+ both",
    )
    both = ages[way][at][0] if way in ages else math.nan
    known = judged and not any(map(math.isnan, (both, window, last)))
    record.check(
        f"{name}: recall at 5 spans of the window (2.5 to 7.5), {way} over sink + window",
        both - window >= 25 if known else None,
        f"{both - window:+.1f} points ({both:.1f} and {window:.1f})",
        ">= 25 points",
    )
    record.check(
        f"{name}: and over the last 4 frames by more",
        both - last > both - window if known else None,
        f"{both - last:+.1f} points ({last:.1f})",
        "> the line before",
    )
    means = {
        (policy, layout, positions): statistics.mean(
            share(some, picked)[0] for picked in (perception, recall)
        )
        for policy in ours
        for layout in LAYOUTS
        for positions in POSITIONS
        if (some := of(policy, layout=layout, positions=positions))
    }
    if means and judged:
        best = sorted(means, key=means.__getitem__, reverse=True)
        texts = [f"{', '.join(way)}: {means[way]:.1f}" for way in best[:4]]
        record.note(f"{name}: best on the mean of perception and recall: {'; '.join(texts)}.")
    record.summary[name]["mean"] = {", ".join(way): value for way, value in means.items()}


def _plots(bench, name, caps, kept, of, ages) -> None:
    record = bench.record
    colours = dict(zip(POLICIES, ("0.6", "C0", "C2", "C1", "C5", "C3", "C4", "0.2"), strict=True))

    def by_age(figure, axes):
        names = [f"{low:g}–{high:g}" if high < math.inf else f"> {low:g}" for low, high in AGES]
        for policy, found in ages.items():
            axes.plot(
                names, [value for value, _ in found], "o-", label=policy, color=colours[policy]
            )
        axes.set(xlabel="age of what answers, in spans of a plain window under the same cap",
                 ylabel="right, %", ylim=(0, 100), title=f"Recall by age ({name})")  # fmt: skip
        axes.legend()

    def by_cap(figure, axes):
        for policy in kept:
            for picked, style in ((recall, "o-"), (perception, "s:")):
                values = [share(of(policy, cap), picked)[0] for cap in caps]
                label = policy if picked is recall else None
                axes.plot(
                    [100 * cap for cap in caps], values, style, label=label, color=colours[policy]
                )
        axes.set(xlabel="cap, % of the history", ylabel="right, %", ylim=(0, 100),
                 title=f"Recall (solid) and perception (dotted) by cap ({name})")  # fmt: skip
        axes.legend()

    def by_type(figure, axes):
        width = 0.8 / max(1, len(kept))
        for number, policy in enumerate(kept):
            values = [share(of(policy), lambda row, t, age, k=kind: t == k)[0] for kind in TYPES]
            places = [index + width * number for index in range(len(TYPES))]
            axes.bar(places, values, width, label=policy, color=colours[policy])
        axes.set_xticks(
            [index + 0.4 for index in range(len(TYPES))], TYPES, rotation=45, ha="right"
        )
        axes.set(ylabel="right, %", ylim=(0, 100), title=f"By type of question ({name})")
        axes.legend(ncols=3, fontsize="small")

    def by_way(figure, axes):
        ways = [(layout, positions) for layout in LAYOUTS for positions in POSITIONS]
        ours = [policy for policy in kept if policy in SHARES]
        for number, (layout, positions) in enumerate(ways):
            values = [share(of(p, layout=layout, positions=positions), recall)[0] for p in ours]
            places = [index + 0.2 * number for index in range(len(ours))]
            axes.bar(places, values, 0.19, label=f"{layout}, {positions}")
        axes.set_xticks([index + 0.3 for index in range(len(ours))], ours)
        axes.set(ylabel="recall right, %", title=f"By layout and position policy ({name})")
        axes.legend()

    for title, draw, size in (
        ("age", by_age, (8, 4.5)), ("cap", by_cap, (8, 4.5)), ("type", by_type, (12, 4.5)),
        ("layout", by_way, (8, 4.5)),
    ):  # fmt: skip
        record.plot(f"{name}-{title}", draw, size)

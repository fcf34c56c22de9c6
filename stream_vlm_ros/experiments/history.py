# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Whether the engine answers, hours later, about what its memory has let go.

Worlds with rare things (stream_vlm_ros.world.rare) are streamed, two frames a second, through the
engine with a history as a user has it, and every question of their exam is asked when it is due.
Next to it: the same engine without a history, and memories that show the model other grids.

A world's results are kept in a file of its own, so an interrupted run resumes where it stopped, and
worlds may be shared out: --first 3 --worlds 1 measures the fourth alone. The report is of all
worlds in the folder that were measured in the same way.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from stream_vlm_ros.errors import InvalidParameterError
from stream_vlm_ros.owned import write_whole
from stream_vlm_ros.world.rare import AGES, COUNTED, HOLISTIC, MEASURING, NEVER, RECALL

from .context import Context
from .intervals import wilson
from .model_under_test import ModelUnderTest
from .record import Table

MEMORIES = (
    "history", "streaming", "oracle", "random", "uniform", "mean_keys", "other_question", "last_4",
)  # fmt: skip
_HEADS = ("oracle", "live", "rand.", "even", "mean", "other", "last 4")  # of the table
_WIDTHS = (7, 5, 6, 5, 5, 6, 7)
_COLUMNS = ("oracle", "streaming", "random", "uniform", "mean_keys", "other_question", "last_4")
_KIND = "a world of the history experiment"

# What is to be reached, as a share: of these types, at each age.
BARS = {
    ("where_left", "direction"): 0.90,
    ("together",): 0.85,
    ("left_ago",): 0.90,
    ("before", "after"): 0.70,
}
NEVER_BAR, EVIDENCE_BAR = 0.95, 0.90
CHANGED_BAR, UNCHANGED_BAR = 0.80, 0.10
MIN_ASKED, MIN_WORLDS, MIN_PRESENT = 150, 8, 1000


def run(context: Context) -> None:
    """Measure the worlds that were not measured yet, and report on all."""
    options, record = context.options, context.record
    _check(options)
    plan = _plan(context)
    record.folder.mkdir(parents=True, exist_ok=True)
    seeds = list(MEASURING[options.first : options.first + options.worlds])
    missing = [seed for seed in seeds if _earlier(_file(record.folder, seed), plan) is None]
    if not options.report:
        with context.progress("worlds", len(missing)) as step:
            for found in _measured(context, missing, plan):
                content = {"kind": _KIND, "plan": plan, **found}
                path = _file(record.folder, found["seed"])
                write_whole(path, (json.dumps(content) + "\n").encode())
                step(f"{found['seed']}: {found['seconds']['all']} s")
    every = (_earlier(_file(record.folder, seed), plan) for seed in MEASURING)
    worlds = [world for world in every if world is not None]
    if not worlds:
        raise InvalidParameterError(f"{record.folder}: no world was measured in this way yet.")
    report(context, worlds, plan)


def _check(options: argparse.Namespace) -> None:
    for name, least in (("worlds", 1), ("first", 0), ("jobs", 1), ("questions", 0),
                        ("index_megabytes", 1), ("moments", 0), ("taken", 0)):  # fmt: skip
        if getattr(options, name) < least:
            name = name.replace("_", "-")
            raise InvalidParameterError(f"--{name} must be at least {least}.")
    if options.chunk_frames < 2 or options.chunk_frames % 2:
        raise InvalidParameterError("--chunk-frames must be even, and at least 2.")
    if options.layout != "continuous":
        raise InvalidParameterError("--layout: the engine's own, continuous, is what is measured.")
    if options.first + options.worlds > len(MEASURING):
        raise InvalidParameterError(f"--first and --worlds: there are {len(MEASURING)} worlds.")


def _plan(context: Context) -> dict[str, Any]:
    from .history_world import Plan, calibration_of

    options = context.options
    calibration, digest = calibration_of(context.model)
    context.record.about["calibration"] = {
        "sha256": digest,
        "heads": "; ".join(f"layer {h.layer} head {h.head} {h.place}" for h in calibration.heads),
        "threshold": calibration.threshold,
        "of_best": calibration.of_best,
        "looks": calibration.looks,
        "tail": calibration.tail,
    }
    return Plan(
        hours=options.hours,
        once=options.once,
        repeated=options.repeated,
        never=options.never,
        chunk_frames=options.chunk_frames,
        history=options.history,
        read=options.read,
        index_megabytes=options.index_megabytes,
        questions=options.questions,
        moments=options.moments,
        taken=options.taken,
        controls=not options.no_controls,
        dtype=str(context.model.network.dtype).removeprefix("torch."),
        calibration=digest,
    )._asdict()


# -- measuring -----------------------------------------------------------------------------------


def _file(folder: Path, seed: int) -> Path:
    return folder / f"world-{seed}.json"


def _earlier(path: Path, plan: dict[str, Any]) -> dict[str, Any] | None:
    """What was measured of a world in this way; InvalidParameterError for a file not ours."""
    try:
        found = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or found.get("kind") != _KIND:
        raise InvalidParameterError(
            f"{path} is not what this experiment wrote: it is left as it is. Name another folder "
            "with --out."
        )
    return found if found["plan"] == plan else None


def _measured(context: Context, seeds: list[int], plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Worlds as they are ready."""
    from .history_world import Plan, WorldRun

    options = context.options
    if options.jobs == 1 or len(seeds) < 2:
        for seed in seeds:
            yield WorldRun(context.model, seed, Plan(**plan)).run()
        return
    jobs = min(options.jobs, len(seeds))
    # One core each; what torch itself starts is told by the environment.
    alone = {"OMP_NUM_THREADS": str(options.threads or 1), "TORCHINDUCTOR_COMPILE_THREADS": "1"}
    with _environment(alone), ProcessPoolExecutor(
        jobs, get_context("spawn"), _start, (options,)
    ) as pool:  # fmt: skip
        waiting = [pool.submit(_work, seed, plan) for seed in seeds]
        try:
            for done in as_completed(waiting):
                yield done.result()
        finally:
            for one in waiting:
                one.cancel()


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Within it the environment has these values, for processes that are started."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


_model: ModelUnderTest | None = None  # of a worker's process


def _start(options: argparse.Namespace) -> None:
    global _model
    import torch

    torch.set_num_threads(options.threads or 1)
    _model = ModelUnderTest.load(
        options.model, options.shape, options.processor, options.device, options.dtype, options.seed
    )


def _work(seed: int, plan: dict[str, Any]) -> dict[str, Any]:
    from .history_world import Plan, WorldRun

    assert _model is not None
    return WorldRun(_model, seed, Plan(**plan)).run()


# -- the report ----------------------------------------------------------------------------------

Row = dict[str, Any]


def share(rows: Sequence[Row], what: str = "right") -> Row:
    """How many are right, with the 95 % interval."""
    right = sum(bool(row[what]) for row in rows)
    low, high = wilson(right, len(rows))
    return {
        "right": round(right / len(rows), 4), "asked": len(rows), "low": round(low, 4),
        "high": round(high, 4),
    }  # fmt: skip


def report(context: Context, worlds: list[Row], plan: Row) -> None:
    """Rows, table and criteria of all worlds that were measured."""
    record = context.record
    every = [row for world in worlds for row in world["rows"]]
    told, named = [], []
    for type_ in (*RECALL, *COUNTED, *HOLISTIC):
        for band in (*AGES, NEVER, ""):
            for memory in MEMORIES:
                wanted = (type_, band, memory)
                mine = [r for r in every if (r["type"], r["band"], r["memory"]) == wanted]
                if not mine:
                    continue
                where = {"type": type_, "age": band or "all", "memory": memory}
                record.add(**where, **share(mine))
                if type_ == "left_ago" and band != NEVER:
                    told.append(where | share(mine, "told"))
                if memory == "history":
                    named.append(where | share(mine, "evidence"))
    record.summary.update(
        seeds=[world["seed"] for world in worlds],
        plan=plan,
        left_ago_told_by_the_model=told,
        true_episode_named=named,
        evidence_taken=_taken(worlds),
        present=_present(worlds),
        fetched=_fetched(every),
        latencies_ms=_latencies(worlds),
        tiers=worlds[0]["tiers"],
        seconds_a_world={
            name: round(statistics.mean(world["seconds"][name] for world in worlds), 1)
            for name in worlds[0]["seconds"]
        },
    )
    _table(context)
    _judge(context, worlds)


def _taken(worlds: list[Row]) -> Row:
    found = {}
    for name in ("evidence", "as much else"):
        mine = [row for world in worlds for row in world["taken"] if row["taken"] == name]
        if mine:
            changed = share(mine, "changed")
            found[name] = {"changed": changed.pop("right"), **changed,
                           "still_right": share(mine)["right"]}  # fmt: skip
    return found


def _present(worlds: list[Row]) -> Row:
    """Questions about now and last: right with a history and without."""
    mine = [row for world in worlds for row in world["perception"]]
    if not mine:
        return {}
    return {
        "asked": len(mine),
        "fetched": sum(row["fetched"] > 0 for row in mine),
        "identical": sum(row["same"] for row in mine),
        "identical_where_nothing_was_fetched": sum(
            row["same"] for row in mine if not row["fetched"]
        ),
        **{name: share(mine, name)["right"] for name in ("history", "streaming")},
        "by_type": {
            f"{type_}, {how}": {name: share(some, name)["right"]
                                for name in ("history", "streaming")} | {"asked": len(some)}
            for type_ in ("now", "last")
            for how in ("plain", "choices")
            if (some := [r for r in mine if (r["type"], r["asked"]) == (type_, how)])
        },
    }  # fmt: skip


def _fetched(rows: list[Row]) -> Row:
    mine = [row["fetched"] for row in rows if row["memory"] == "history"]
    read = [tokens for tokens in mine if tokens]
    return {
        "questions": len(mine), "fetched": len(read),
        "tokens_median": statistics.median(read) if read else 0, "tokens_max": max(read, default=0),
    }  # fmt: skip


def _latencies(worlds: list[Row]) -> Row:
    """Median and 95th percentile in milliseconds."""
    found = {}
    for name in dict.fromkeys(name for world in worlds for name in world["latencies"]):
        some = sorted(s for world in worlds for s in world["latencies"].get(name, ()))
        found[name] = {
            "median": round(1e3 * some[len(some) // 2], 2),
            "95 %": round(1e3 * some[min(len(some) - 1, int(0.95 * len(some)))], 2),
            "count": len(some),
        }
    return found


def _table(context: Context) -> None:
    """Per cent right, in 80 columns."""
    rows = context.record.rows
    cells = {(row["type"], row["age"], row["memory"]): row for row in rows}
    lines, kept = [], []
    lines.append(f"{'per cent right':20}{'n':>5}{'history':>11}{_cells(_HEADS)}")
    for type_, age in dict.fromkeys((row["type"], row["age"]) for row in rows):
        mine = cells[type_, age, "history"]
        interval = f"{100 * mine['low']:.0f}-{100 * mine['high']:.0f}"
        others = [cells.get((type_, age, memory)) for memory in _COLUMNS]
        texts = [f"{100 * one['right']:.0f}" if one else "-" for one in others]
        shown = f"{100 * mine['right']:.0f} {interval:>6}"
        lines.append(f"{type_:11}{age:9}{mine['asked']:5}{shown:>11}{_cells(texts)}")
        kept.append([type_, age, str(mine["asked"]), shown, *texts])
    context.record.tables.append(
        Table("Per cent right", ["type", "age", "asked", "history (95 %)", *_COLUMNS], kept)
    )
    for line in lines:
        context.say(line)
    context.say("")


def _cells(texts: Sequence[str]) -> str:
    return "".join(f"{text:>{width}}" for text, width in zip(texts, _WIDTHS, strict=True))


def _judge(context: Context, worlds: list[Row]) -> None:
    record = context.record
    summary, rows = record.summary, [row for row in record.rows if row["memory"] == "history"]
    check = record.check
    check("worlds", len(worlds) >= MIN_WORLDS, len(worlds), f">= {MIN_WORLDS}")
    for types, bar in BARS.items():
        for age in AGES:
            mine = [row for row in rows if row["type"] in types and row["age"] == age]
            if not mine:
                continue
            asked = sum(row["asked"] for row in mine)
            right = sum(row["right"] * row["asked"] for row in mine) / asked
            low, high = wilson(round(right * asked), asked)
            check(
                f"{' and '.join(types)}, {age}",
                right >= bar,
                f"{100 * right:.1f} % ({100 * low:.1f} to {100 * high:.1f}) of {asked}",
                f">= {100 * bar:g} %, of {MIN_ASKED} or more",
            )
    never = [row for row in rows if row["age"] == NEVER]
    if never:
        asked = sum(row["asked"] for row in never)
        right = sum(row["right"] * row["asked"] for row in never) / asked
        check("what was never shown is not seen", right >= NEVER_BAR,
              f"{100 * right:.1f} % of {asked}", f">= {100 * NEVER_BAR:g} %")  # fmt: skip
    named = [row for row in summary["true_episode_named"] if row["age"] in AGES]
    named = [row for row in named if row["type"] in RECALL]
    if named:
        asked = sum(row["asked"] for row in named)
        right = sum(row["right"] * row["asked"] for row in named) / asked
        check("the true episode is among those named", right >= EVIDENCE_BAR,
              f"{100 * right:.1f} % of {asked}", f">= {100 * EVIDENCE_BAR:g} %")  # fmt: skip
    for name, bar, sign in (
        ("evidence", CHANGED_BAR, ">="),
        ("as much else", UNCHANGED_BAR, "<="),
    ):
        if one := summary["evidence_taken"].get(name):
            passed = one["changed"] >= bar if sign == ">=" else one["changed"] <= bar
            check(f"answers that change with {name} taken away", passed,
                  f"{100 * one['changed']:.1f} % of {one['asked']}",
                  f"{sign} {100 * bar:g} %")  # fmt: skip
    if present := summary["present"]:
        less = 100 * (present["streaming"] - present["history"])
        check("perception, points below that without a history", less <= 1,
              f"{less:.2f} of {present['asked']}", "<= 1")  # fmt: skip
        idle = present["asked"] - present["fetched"]
        same = present["identical_where_nothing_was_fetched"]
        check("identical where nothing was fetched", same == idle, f"{same} of {idle}", "all")
        enough = present["asked"] >= MIN_PRESENT
        check("questions about the present", enough, present["asked"], f">= {MIN_PRESENT}")

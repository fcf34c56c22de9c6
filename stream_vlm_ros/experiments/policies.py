# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Which memory keeps what: eviction policies on long drawn videos whose truth is known.

Each policy watches the same videos with the same cap and is asked the same questions at the same
moments: the last four frames alone, sink + window, + uniform sampling, + importance, + both, each
under both position policies and in both layouts, and the full history; also importance scores of
your own, as MODULE:NAME, with the default's shares. Accuracy is given by type of question and by
the age of the evidence.

Settings: "trained" lies within the spans and rates the small model was trained on (a frame every
5 s, 700 s); "camera" is ten minutes at 2 frames/s, ten times the longest stream it was trained on.
An interrupted run resumes where it stopped.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import ExitStack
from multiprocessing import get_context
from typing import Any

from stream_vlm_ros.errors import InvalidParameterError

from .accuracy import report
from .context import Context
from .model_under_test import ModelUnderTest
from .record import Record
from .streams import (
    SETTINGS,
    SHARES,
    Task,
    check_policies,
    evicts,
    own_score,
    remembered_features,
    stream,
)


def run(context: Context) -> None:
    options, record = context.options, context.record
    begin = time.monotonic()
    check_policies(options.policies)
    if options.moments < 1:
        raise InvalidParameterError("--moments must be at least 1: nothing would be asked.")
    model = context.model
    record.about["source"] = {"name": f"{options.videos} drawn worlds a setting", "size": "640x480"}
    record.settings["conditions"] = conditions(options, model)
    earlier = [] if options.fresh else _earlier(record)
    wanted = all_tasks(options)
    there = {row["key"]: row["seconds"] for row in earlier}
    tasks = [task for task in wanted if task.key not in there]
    record.rows += earlier
    for policy in options.policies:  # before the first stream
        own_score(policy, model)
    if earlier:
        taken = [there[task.key] for task in wanted if task.key in there]
        context.say(f"{len(taken)} streams are there already, {len(tasks)} to go.")
        minutes = sum(taken) / 60
        record.note(f"{len(taken)} streams, {minutes:.0f} min of work, come from earlier runs.")
    left = 0
    with context.progress("streams", len(tasks)) as step:
        for row in _results(options, model, tasks, begin):
            if row is None:
                left += 1
                continue
            record.add(**row)
            step(f"{row['setting']} {row['video']} {row['policy']}")
    if left:
        record.note(f"{left} streams are left; run again to continue.")
    report(context, comparable(record, wanted))


def comparable(record: Record, wanted: list[Task]) -> list[dict[str, Any]]:
    """Rows of the videos that every wanted stream has seen; until there is one, all rows wanted.

    So all policies are compared on the same questions. What an earlier run had more stays in the
    record.
    """
    rows = {row["key"]: row for row in record.rows}
    missing = {(task.setting, task.video) for task in wanted if task.key not in rows}
    whole = [task for task in wanted if (task.setting, task.video) not in missing]
    if missing and whole:
        names = {(task.setting, task.video) for task in whole}
        record.note(f"Compared on {len(names)} videos; {len(missing)} are not complete yet.")
    elif missing:
        record.note(
            "No video is complete yet: the policies have not been asked the same questions."
        )
    return [rows[task.key] for task in whole or wanted if task.key in rows]


def conditions(options: argparse.Namespace, model: ModelUnderTest) -> str:
    """A digest of all that makes two runs' streams comparable."""
    weights = hashlib.sha256()
    for name, weight in model.network.state_dict().items():
        weights.update(name.encode())
        weights.update(weight.flatten()[:4096].float().cpu().numpy().tobytes())
    chosen: tuple[Any, ...] = (
        options.seconds,
        options.moments,
        options.each,
        options.seed,
        options.max_pixels,
    )
    if options.idle_hours:
        chosen += (options.idle_hours,)
    weights.update(repr((chosen, SETTINGS, SHARES, str(model.network.dtype))).encode())
    return weights.hexdigest()[:16]


def _earlier(record: Record) -> list[dict[str, Any]]:
    """Rows of an earlier run under the same conditions."""
    found = record.earlier
    if found.get("settings", {}).get("conditions") != record.settings["conditions"]:
        return []
    return [row for row in found.get("rows", []) if "key" in row]


def all_tasks(options: argparse.Namespace) -> list[Task]:
    """Every stream, video by video, so that a run broken off has whole videos."""
    found = []
    for name in options.settings:
        for number in range(options.videos):
            crossed = number < options.cross_videos
            layouts = options.layouts if crossed else options.layouts[:1]
            positions = options.positions if crossed else options.positions[:1]
            video = options.first_video + number
            for layout, policy in itertools.product(layouts, options.policies):
                if not evicts(policy):  # nothing is evicted: neither cap nor gaps
                    found.append(Task(name, video, policy, layout, "contiguous", 1.0))
                    continue
                caps = options.caps or SETTINGS[name].caps
                for policy_of_gaps, cap in itertools.product(positions, caps):
                    found.append(Task(name, video, policy, layout, policy_of_gaps, cap))
    return found


def _results(
    options: argparse.Namespace, model: ModelUnderTest, tasks: list[Task], begin: float
) -> Iterator[dict[str, Any] | None]:
    """Rows as they are ready; None for each task that time did not allow."""

    def late() -> bool:
        return options.minutes is not None and time.monotonic() - begin > 60 * options.minutes

    if options.workers <= 1:
        with remembered_features(model.network):
            for task in tasks:
                yield None if late() else stream(model, options, task)
        return
    # A worker takes some streams of one video at a time: its frames are drawn once.
    parts = [tasks[at : at + 8] for at in range(0, len(tasks), 8)]
    with ProcessPoolExecutor(
        options.workers, get_context("spawn"), _start_worker, (options,)
    ) as pool:
        running: dict[Any, int] = {}
        waiting = iter(parts)
        while True:
            while len(running) < options.workers + 1 and (part := next(waiting, None)):
                if late():
                    yield from [None] * len(part)
                    continue
                running[pool.submit(_work, part)] = len(part)
            if not running:
                return
            done = next(as_completed(running))
            del running[done]
            yield from done.result()


_features = ExitStack()  # for as long as the process lives
_worker: tuple[ModelUnderTest, argparse.Namespace] | None = None


def _start_worker(options: argparse.Namespace) -> None:
    global _worker
    import torch

    torch.set_num_threads(options.threads or 1)
    model = ModelUnderTest.load(
        options.model, options.shape, options.processor, options.device, options.dtype, options.seed
    )
    _features.enter_context(remembered_features(model.network))
    _worker = model, options


def _work(part: list[Task]) -> list[dict[str, Any]]:
    assert _worker is not None
    model, options = _worker
    return [stream(model, options, task) for task in part]

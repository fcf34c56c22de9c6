# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""A replay in real time: the actual node over DDS, played to at the source's own pace.

Two processes: the node, and a player that publishes images and ``/clock``, asks the questions at
their times, and notes what comes. What the closed loop cannot show is seen here: frames that are
lost under load, and questions that wait.
"""

from __future__ import annotations

import dataclasses
import json
import math
import shlex
import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from stream_vlm_ros import config
from stream_vlm_ros.config import Settings
from stream_vlm_ros.engine.inputs.timestamps import SECOND
from stream_vlm_ros.errors import StreamVlmError
from stream_vlm_ros.processes.children import Processes
from stream_vlm_ros.processes.graph import check_ros, own_graph, ros_arguments
from stream_vlm_ros.replay.questions import QuestionSet
from stream_vlm_ros.replay.records import (
    AnswerRecord,
    answered,
    closed_note,
    merged_of,
    refused,
    unanswered,
)
from stream_vlm_ros.replay.schedule import Ask, Schedule
from stream_vlm_ros.replay.settings import as_reported
from stream_vlm_ros.sources import Source

NODE = "/stream_vlm"
# What a node is given that runs for a replay alone.
_ALONE = {"use_sim_time": True, "max_questions": 64, "status_period": 0.2}
MAX_ASKS = 100_000  # of one run; all are written down before it begins


class RealtimeError(StreamVlmError):
    """The node, or the player, did not do its part; the message holds what it said."""

    code = "REALTIME"


def realtime_run(
    settings: Settings,
    questions: QuestionSet,
    spec: str,
    options: dict[str, Any],
    source: Source,
    attach: str | None = None,
    play: str | None = None,
    told: Callable[[float, int], None] = lambda seconds, answers: None,
) -> dict[str, Any]:
    """Play ``spec`` to the node and ask it; the run as a part of the report.

    After Ctrl-C it is what there is so far, with ``complete`` false; before the first frame that is
    nothing, and KeyboardInterrupt is left to pass.

    Args:
        source: the same, opened: its duration says how long to ask what is asked every so often.
        attach: name of a node that runs already, with the source played by somebody else; the time
            is then that of ``/clock``, and only the asking is done here.
        play: with ``attach``, the command that plays it; run when the node is ready.
        told: called now and then with the source's seconds and the number of answers so far.

    Raises RealtimeError, and what opening the source raises.
    """
    begin = time.perf_counter()
    asks = asks_of(questions, source, options)
    job = {
        "node": attach or NODE,
        "source": None if attach else spec,
        "play": _command(play) if play else None,
        "camera": next(iter(options.get("topics") or ()), source.name if source.live else ""),
        "end_ns": _offset(options.get("end"), options),
        "parameters": [*settings.values(config.NODE, config.REPLAY)] if attach else [],
        "options": {k: v for k, v in options.items() if v is not None},
        "asks": [_as_json(ask, settings, options) for ask in asks],
    }
    progress = Progress(told)
    events = _played(settings, job, attach is not None, progress)
    run = run_of(settings, questions, asks, events, time.perf_counter() - begin)
    if attach:  # that node has settings of its own
        run["settings"] |= _settings_of(events)
        if not settings.name:
            run["name"] = run["settings"]["name"] = run["settings"]["engine"]
    return run


def max_trials(highest: float) -> int:
    """How many rates are tried at most: those doubled from 1 image/s on, the highest, and then the
    five halvings that leave 5 % of an interval as wide as its lower end."""
    return math.ceil(math.log2(highest)) + 1 + 5


def probe_rate(
    settings: Settings,
    spec: str,
    options: dict[str, Any],
    seconds: float = 5.0,
    highest: float = 120.0,
    loss: float = 0.05,
    step: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """The highest camera rate that the node takes in with less than ``loss`` of the frames lost,
    every frame being wanted; and each trial. Pictures are the source's first. ``step`` is called
    after each trial."""
    every = dataclasses.replace(settings, sample_fps=0.0)
    options = {**options, "max_decoded_megapixels": settings.max_decoded_megapixels}
    job = {
        "node": NODE,
        "source": spec,
        "options": {k: v for k, v in options.items() if v is not None},
        "probe": {"seconds": seconds, "highest": highest, "loss": loss},
    }

    def told(event: dict[str, Any]) -> None:
        if event["event"] == "trial":
            step()

    events = _played(every, job, False, told)
    if "interrupted" in events[-1]:
        raise KeyboardInterrupt
    rates = [e["rate"] for e in events if e["event"] == "highest_rate"]
    trials = [{k: v for k, v in e.items() if k != "event"} for e in events if e["event"] == "trial"]
    return {
        "highest_rate": rates[-1] if rates else None,
        "loss_allowed": loss,
        "seconds_a_trial": seconds,
        "settings": as_reported(settings),
        "trials": trials,
    }


# -- processes ---------------------------------------------------------------------------------


def _played(
    settings: Settings,
    job: dict[str, Any],
    attached: bool,
    progress: Callable[[dict[str, Any]], None],
) -> list[dict[str, Any]]:
    """Start what is needed, wait for the player's end, and read what it noted.

    After Ctrl-C: what it noted until then, if it had begun.
    """
    check_ros()
    logs = Path(tempfile.mkdtemp(prefix="stream_vlm_replay_"))
    noted = Notes(logs / "result.jsonl", progress)
    job = {**job, "result": str(noted.path)}
    (logs / "job.json").write_text(json.dumps(job), encoding="utf-8")
    keep = True
    try:
        with ExitStack() as stack:
            stack.callback(noted.read)  # last of all: what was written at the end, too
            environment = {} if attached else stack.enter_context(own_graph(logs))
            processes = stack.enter_context(Processes(logs, environment))
            if not attached:
                arguments = ros_arguments(_node_parameters(settings))
                processes.start("node", "stream_vlm_ros.node", *arguments)
            processes.start(
                "player", "stream_vlm_ros.replay.live.player", str(logs / "job.json"), "--ros-args"
            )
            while processes.status("player") is None:
                if not attached and processes.status("node") is not None:
                    raise RealtimeError(f"the node ended: {processes.tail_of('node')}")
                if not attached and not noted.begun and (error := processes.error_of("node")):
                    raise RealtimeError(f"the node says: {error}")
                noted.read()
                time.sleep(0.1)
            if processes.status("player") != 0:
                said = processes.tail_of("player", 4) or "nothing"
                raise RealtimeError(f"the player ended with: {said} (logs: {logs})")
        keep = False
    except KeyboardInterrupt:
        keep = False
        if not noted.begun:
            raise
    finally:
        (logs / "job.json").unlink(missing_ok=True)  # an address in it may hold a password
        if not keep:
            shutil.rmtree(logs, ignore_errors=True)
    return noted.events


def _command(play: str) -> list[str]:
    """The words of the command that plays; raises RealtimeError where it cannot be run."""
    try:
        words = shlex.split(play)
    except ValueError as error:
        raise RealtimeError(f"--play {play}: {error}") from None
    if not words or shutil.which(words[0]) is None:
        raise RealtimeError(f"--play {play}: there is no program {words[0] if words else ''!r}")
    return words


class Notes:
    """The player's notes, read while they are written."""

    def __init__(self, path: Path, progress: Callable[[dict[str, Any]], None]) -> None:
        self.path, self._progress = path, progress
        self.events: list[dict[str, Any]] = []
        self.begun = False  # a frame was published, or a rate tried
        self._position = 0

    def read(self) -> None:
        """Take what is new; a line that is not finished is left for the next time."""
        if not self.path.exists():
            return
        with self.path.open(encoding="utf-8") as file:
            file.seek(self._position)
            while (line := file.readline()).endswith("\n"):
                self._position = file.tell()
                self.events.append(json.loads(line))
                self.begun = self.begun or self.events[-1]["event"] in ("origin", "trial")
                self._progress(self.events[-1])


class Progress:
    """Counts the answers, and tells them with the time of the newest frame."""

    def __init__(self, told: Callable[[float, int], None]) -> None:
        self._told, self._answers, self._origin_ns = told, 0, 0

    def __call__(self, event: dict[str, Any]) -> None:
        self._origin_ns = event["stamp_ns"] if event["event"] == "origin" else self._origin_ns
        self._answers += event["event"] == "answer"
        if event["event"] == "status" and event["frames"] and self._origin_ns:
            self._told((event["stamp_ns"] - self._origin_ns) / SECOND, self._answers)


def _node_parameters(settings: Settings) -> dict[str, Any]:
    return settings.values(config.NODE, config.REPLAY) | _ALONE


def _settings_of(events: list[dict[str, Any]]) -> dict[str, Any]:
    """The settings of a node that ran already, as it told them itself, but for what each question
    says."""
    told = next(event["values"] for event in events if event["event"] == "parameters")
    return {name: value for name, value in told.items() if name != "max_new_tokens"}


# -- what is asked, and what came ----------------------------------------------------------------


def asks_of(questions: QuestionSet, source: Source, options: dict[str, Any]) -> list[Ask]:
    """Every ask up to the source's end. Real time knows one camera: the first."""
    start = options.get("start") or 0.0
    end = options.get("end") or source.duration
    if end is None:
        raise RealtimeError(f"{source.name} does not say how long it is: use --end SECONDS.")
    # Stamps of the source's own time are placed by the first frame, which is read for it.
    origin = 0
    if any(q.at_stamp_ns is not None for q in questions.questions):
        first = next(iter(source), None)
        if first is None:
            raise RealtimeError(f"at_stamp needs a recording; {source.name} gives no frame here.")
        origin = first.stamp_ns - round(start * SECOND)
    schedule = Schedule(questions.questions, origin)
    count = schedule.count_until(round(end * SECOND))
    if count > MAX_ASKS:
        raise RealtimeError(
            f"{count:,} questions would be asked up to {end:,g} s, more than {MAX_ASKS:,}: give "
            "'until' to those with 'every', or --end SECONDS."
        )
    asks = list(schedule.until(round(end * SECOND)))
    return [
        dataclasses.replace(a, offset_ns=a.offset_ns - round(start * SECOND))
        if a.offset_ns is not None
        else a
        for a in asks
    ] + schedule.rest()


def _offset(seconds: float | None, options: dict[str, Any]) -> int | None:
    """Seconds from the beginning of the whole source as nanoseconds from where it is begun."""
    if seconds is None:
        return None
    return round((seconds - (options.get("start") or 0.0)) * SECOND)


def _as_json(ask: Ask, settings: Settings, options: dict[str, Any]) -> dict[str, Any]:
    question = ask.question
    about = question.about and [_offset(second, options) for second in question.about]
    return {
        "id": ask.id,
        "offset_ns": ask.offset_ns,
        "text": question.text,
        "choices": list(question.choices),
        "about_ns": about,
        "max_new_tokens": question.max_new_tokens or settings.max_new_tokens,
    }


def run_of(
    settings: Settings,
    questions: QuestionSet,
    asks: list[Ask],
    events: list[dict[str, Any]],
    wall: float,
) -> dict[str, Any]:
    """The run's part of the report, out of what the player noted."""
    by_kind: dict[str, list[dict[str, Any]]] = {}
    for event in events:
        by_kind.setdefault(event["event"], []).append(event)
    if "origin" not in by_kind:
        raise RealtimeError("the source gave no frame")
    origin = by_kind["origin"][0]
    origin_ns, camera = origin["stamp_ns"], origin["camera"]
    end = by_kind["end"][-1]
    read = by_kind.get("source", [{}])[-1]
    statuses = [s for s in by_kind.get("status", []) if s["frames"]]
    end_ns = max((s["stamp_ns"] for s in statuses), default=origin_ns) - origin_ns
    notes = list(read.get("notes", []))
    if statuses and statuses[-1]["closed_pauses"]:
        last = statuses[-1]
        notes.append(closed_note(last["closed_pauses"], last["closed_seconds"], camera))
    replies = {reply["id"]: reply for reply in by_kind.get("answer", [])}
    answers = [_answer(ask, replies.get(ask.id), camera, end_ns, origin_ns) for ask in asks]
    answers.sort(key=lambda answer: answer["at"])
    published = end["published"] or end.get("frames_received", 0)
    drops = {k.removeprefix("dropped_"): v for k, v in end.items() if k.startswith("dropped_")}
    # Of what was on its way when it was interrupted, nobody knows what became of it.
    cause = "interrupted" if "interrupted" in end else "transport"
    drops[cause] = max(0, published - end.get("frames_received", 0))
    drops["player_late"] = end["skipped"]
    drops["pending"] = end.get("frames_pending", 0)
    drops["unusable"] = read.get("unusable", 0)
    drops["unordered"] = read.get("unordered", 0)
    return {
        "name": settings.title,
        "settings": as_reported(settings),
        "complete": "interrupted" not in end,
        "frames": {
            "decoded": read.get("decoded", published),
            "ingested": end.get("frames_ingested", 0),
            "drops": drops,
        },
        "source": {"damage": read.get("damage"), "notes": notes},
        "memory": {},
        "answers": answers,
        "merged": merged_of(questions.questions, answers),
        "series": _series(statuses, camera, origin_ns),
        "times": {"wall": wall},
    }


def _answer(
    ask: Ask, reply: dict[str, Any] | None, camera: str, end_ns: int, origin_ns: int
) -> AnswerRecord:
    record = unanswered(ask, camera, end_ns, origin_ns)
    if reply is None:
        return record
    if reply["error_code"]:
        return refused(record, str(reply["error_code"]), reply["error_message"])
    seen = [[begin / SECOND, end / SECOND] for begin, end in reply["seen"]]
    keys = ("ttft", "latency", "waiting", "round_trip_latency", "prompt_tokens", "answer_tokens")
    others = ("fetched_tokens", "finish_reason", "cache_length")
    metrics = {key: reply[key] for key in (*keys, *others)}
    metrics["episodes"] = [
        {
            **episode,
            "start": episode["start"] / SECOND,
            "end": episode["end"] / SECOND,
            "stamps": [stamp / SECOND for stamp in episode["stamps"]],
        }
        for episode in reply["episodes"]
    ]
    if ask.question.choices:
        metrics |= {key: reply[key] for key in ("choice_index", "scores", "choice_tokens")}
    return answered(record, ask.question, reply["answer"], metrics, seen, origin_ns)


def _series(statuses: list[dict[str, Any]], camera: str, origin_ns: int) -> list[dict[str, Any]]:
    """The memory over time, an entry whenever frames had come in."""
    series, frames, evicted, closed = [], 0, 0, 0.0
    for status in statuses:
        if status["frames"] == frames:
            continue
        series.append(
            {
                "camera": camera,
                "at": (status["stamp_ns"] - origin_ns) / SECOND,
                "frames": status["frames"] - frames,
                "tokens": None,
                "evicted_tokens": status["evicted_tokens"] - evicted,
                "closed_seconds": status["closed_seconds"] - closed,
                "cache_length": status["length"],
                "memory_bytes": status["memory_bytes"],
                "times": {},
            }
        )
        frames, evicted = status["frames"], status["evicted_tokens"]
        closed = status["closed_seconds"]
    return series

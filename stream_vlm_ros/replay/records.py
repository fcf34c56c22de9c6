# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""An answer's record in the report, and what is derived from it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypedDict

from stream_vlm_ros.console import duration_text, plural
from stream_vlm_ros.engine.inputs.timestamps import SECOND
from stream_vlm_ros.errors import OutOfHorizonError

from .lines import merged_lines
from .questions import Question
from .schedule import Ask

if TYPE_CHECKING:
    from stream_vlm_ros.engine import CacheInfo


class AnswerError(TypedDict):
    """Why a question got no answer."""

    code: str
    message: str


class EpisodeRecord(TypedDict, total=False):
    """An episode that an answer rests on; ``thumbnails`` are paths in the report's folder."""

    start: float
    end: float
    score: float
    tier: str
    stamps: list[float]
    thumbnails: list[str]


class EvidencePicture(TypedDict):
    """A frame of a question's evidence: where its picture is, and its time."""

    path: str
    at: float


class Held(TypedDict):
    """What was held at a question besides ``seen``: the stretches of ``seen`` that are in the
    window, and those that the history reaches over."""

    window: list[list[float]]
    history: list[list[float]]


class _Asked(TypedDict):
    """What is known of a question before it is answered."""

    id: str
    question_id: str
    camera: str
    at: float
    stamp_ns: int | None
    question: str
    choices: list[str]
    expect: list[str]
    judge: str
    judge_options: dict[str, Any]
    type: str
    tags: list[str]
    about: list[float] | None
    evidence: list[list[float]]
    evidence_age: float | None
    extra: Any
    status: str
    answer: str | None
    right: bool | None


class AnswerRecord(_Asked, total=False):
    """One question and its answer, as the journal and the report hold it.

    Times are seconds from the source's first frame. ``status`` is ``answered``, ``error`` (then
    there is an ``error``) or ``not_reached``. ``right`` is None where nothing judges the answer.
    An answered question has ``seen``, ``evidence_in_memory``, ``episodes``, ``times`` and
    ``metrics``; where a history named episodes and evidence is known, ``evidence_named``; where its
    judge failed, a ``judge_error``. Of the closed loop it has ``held``, also with an error, and
    with evidence ``evidence_held``: `where_held`.
    """

    error: AnswerError
    seen: list[list[float]]
    evidence_in_memory: bool | None
    episodes: list[EpisodeRecord]
    evidence_named: bool
    evidence_pictures: list[EvidencePicture]
    held: Held
    evidence_held: str
    times: dict[str, float]
    metrics: dict[str, Any]
    judge_error: str
    thumbnail: str  # path in the report's folder, of the newest picture at the question


# Metrics that are reported on request (`Settings.token_logprobs`).
_OF_TOKENS = ("token_ids", "token_logprobs", "mean_scores")
_NOT_METRICS = ("time_spans", "oldest_timestamp", "newest_timestamp", "episodes")


def unanswered(ask: Ask, camera: str, end_ns: int, origin_ns: int | None) -> AnswerRecord:
    """What is known before an answer. ``end_ns`` is the time of what is asked at the end; times
    count from ``origin_ns``, the stamp of the source's first frame."""
    question = ask.question
    offset = end_ns if ask.offset_ns is None else ask.offset_ns
    at = offset / SECOND
    return {
        "id": ask.id,
        "question_id": question.id,
        "camera": camera,
        "at": at,
        "stamp_ns": None if origin_ns is None else origin_ns + offset,
        "question": question.text,
        "choices": list(question.choices),
        "expect": list(question.expect),
        "judge": question.judge.name,
        "judge_options": dict(question.judge.options),
        "type": question.type,
        "tags": list(question.tags),
        "about": None if question.about is None else list(question.about),
        "evidence": [list(stretch) for stretch in question.evidence],
        "evidence_age": evidence_age(question.evidence, at),
        "extra": question.extra,
        "status": "not_reached",
        "answer": None,
        "right": None,
    }


def answered(
    record: AnswerRecord,
    question: Question,
    answer: str,
    metrics: dict[str, Any],
    seen: Iterable[Sequence[float]],
    origin_ns: int,
    tokens: bool = False,
) -> AnswerRecord:
    """``record`` with the answer, judged.

    Args:
        seen: the stretches of time in memory, in the source's seconds, as those of the episodes
            are; in the record they count from its first frame.
        tokens: the metrics of its tokens are reported, too.
    """
    stretches = [[_since(begin, origin_ns), _since(end, origin_ns)] for begin, end in seen]
    record["status"], record["answer"] = "answered", answer
    record["right"] = _verdict(question, answer, record)
    record["seen"] = stretches
    record["evidence_in_memory"] = evidence_in_memory(question.evidence, stretches)
    record["episodes"] = [
        {
            **episode,
            "start": _since(episode["start"], origin_ns),
            "end": _since(episode["end"], origin_ns),
            "stamps": [_since(stamp, origin_ns) for stamp in episode["stamps"]],
        }
        for episode in metrics.get("episodes", ())
    ]
    if record["episodes"] and question.evidence:
        named = [(episode["start"], episode["end"]) for episode in record["episodes"]]
        record["evidence_named"] = bool(evidence_in_memory(question.evidence, named))
    record["times"] = {k: v for k, v in metrics.items() if is_time(k)}
    record["metrics"] = {
        k: v
        for k, v in metrics.items()
        if not is_time(k) and k not in _NOT_METRICS and (tokens or k not in _OF_TOKENS)
    }
    return record


def note_held(record: AnswerRecord, info: CacheInfo, origin_ns: int) -> None:
    """Note in ``record`` what is held, ``info``, when its question has been asked (the delayed
    batch engine encodes only then), and where its evidence is."""
    reach = history_reach(info)
    level = info.levels.get("window") if info.window_size else None
    window = () if level is None else level.time_spans

    def told(spans: Iterable[Sequence[float]]) -> list[list[float]]:
        return [[_since(begin, origin_ns), _since(end, origin_ns)] for begin, end in spans]

    record["seen"] = told(info.time_spans)
    record["held"] = {"window": told(window), "history": told([] if reach is None else [reach])}
    if where := where_held(record["evidence"], record["seen"], record["held"]):
        record["evidence_held"] = where


def where_held(
    evidence: Sequence[Sequence[float]], seen: Sequence[Sequence[float]], held: Held
) -> str | None:
    """Where any of the evidence was: in the ``window``, elsewhere in ``memory``, in the ``history``
    alone, or ``forgotten``; None without evidence."""
    places = (("window", held["window"]), ("memory", seen), ("history", held["history"]))
    found = (name for name, spans in places if evidence_in_memory(evidence, spans))
    return next(found, "forgotten") if evidence else None


def refused(record: AnswerRecord, code: str, message: str) -> AnswerRecord:
    """``record`` with the error that came instead of an answer."""
    record["status"], record["error"] = "error", {"code": code, "message": message}
    return record


def forgotten(about: Sequence[float], info: CacheInfo, origin_ns: int) -> OutOfHorizonError:
    """An engine's OutOfHorizonError told in seconds from the source's first frame.

    ``about`` counts from it, what the memory tells, in the source's own time.
    """

    def stretch(first: float, last: float) -> str:
        return f"{_since(first, origin_ns):.1f} to {_since(last, origin_ns):.1f} s"

    spans = info.time_spans
    held = [stretch(*span) for span in spans[:3]] or ["nothing"]
    if more := len(spans[3:]):
        held[-1] += f" and {more} more"
    words = f"in memory is {', '.join(held)}"
    if (reach := history_reach(info)) is not None:
        words += f"; the history holds {stretch(*reach)}"
    return OutOfHorizonError(f"nothing from {about[0]:g} to {about[1]:g} s is remembered; {words}")


def history_reach(info: CacheInfo) -> tuple[float, float] | None:
    """From when to when the history behind a memory reaches; None: there is none, or nothing."""
    tiers = [tier for tier in info.get("tiers", ()) if tier.oldest is not None]
    if not tiers:
        return None
    return min(tier.oldest for tier in tiers), max(tier.newest for tier in tiers)


def closed_note(pauses: int, seconds: float, camera: str) -> str:
    """That positions leave pauses out, so many seconds in all."""
    return (
        f"{camera}: {plural(pauses, 'pause')} between frames, {duration_text(seconds)} in all, "
        "left out for the model (max_pause); stamps stay true."
    )


def merged_of(
    questions: Iterable[Question], answers: Sequence[AnswerRecord]
) -> list[dict[str, Any]]:
    """For each question asked every so often with ``merge``: its lines, each once."""
    merged = []
    for question in questions:
        if question.merge_similarity is None:
            continue
        said = [
            (a["at"], text)
            for a in answers
            if a["question_id"] == question.id and (text := a["answer"]) is not None
        ]
        lines = merged_lines(said, question.merge_similarity)
        merged.append(
            {
                "question_id": question.id,
                "question": question.text,
                "answers": len(said),
                "lines": [line.as_dict() for line in lines],
            }
        )
    return merged


def is_time(metric: str) -> bool:
    """Whether a metric of an answer is a time that the machine took."""
    return metric in ("ttft", "waiting") or "latency" in metric


def evidence_age(evidence: Sequence[tuple[float, float]], at: float) -> float | None:
    """Seconds since the newest evidence ended; 0 while it can be seen; None without evidence."""
    ages = [max(0.0, at - end) for begin, end in evidence if begin <= at]
    return min(ages) if ages else None


def evidence_in_memory(
    evidence: Sequence[Sequence[float]], seen: Iterable[Sequence[float]]
) -> bool | None:
    """Whether any of the evidence lies in a stretch that the memory still holds."""
    if not evidence:
        return None
    return any(b <= end and begin <= e for begin, end in seen for b, e in evidence)


def _since(seconds: float, origin_ns: int) -> float:
    """A source's time as seconds from its first frame, to the microsecond."""
    return round(seconds - origin_ns / SECOND, 6)


def _verdict(question: Question, answer: str, record: AnswerRecord) -> bool | None:
    """The judge's word; a judge of the user's own may fail, which is noted, not raised."""
    try:
        return question.judge(answer)
    except Exception as error:  # a function of the user's: anything may come out of it
        record["judge_error"] = f"{type(error).__name__}: {error}"
        return None

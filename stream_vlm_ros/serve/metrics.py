# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""For Prometheus: how many sessions there are, what became of frames and questions, how long a
first token took, and what the engines' time goes to."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any
from weakref import WeakSet

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from stream_vlm_ros.machine import used_bytes
from stream_vlm_ros.serve.session import Session
from stream_vlm_ros.serve.sessions import Sessions
from stream_vlm_ros.session.question import Outcome

# Seconds; a first token takes from some milliseconds on.
_TIMES = (0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)


class Metrics(Collector):
    """Of one server; attach it once."""

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions
        self._gone: dict[str, int] = {}  # frames of sessions that have ended, by cause
        self._counted: WeakSet[Session] = WeakSet()  # in those
        self._counting = threading.Lock()
        self._registry = CollectorRegistry()
        self._registry.register(self)
        self._questions = Counter(
            "stream_vlm_questions", "Questions by what came of them", ["outcome"],
            registry=self._registry,
        )  # fmt: skip
        self._first_token = Histogram(
            "stream_vlm_first_token_seconds", "From a question's arrival to its first token",
            buckets=_TIMES, registry=self._registry,
        )  # fmt: skip
        sessions.when_answered.append(self._count)
        sessions.when_closed.append(self._keep)

    def text(self) -> bytes:
        """What is scraped."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        sessions = self._sessions.all()
        yield GaugeMetricFamily("stream_vlm_sessions", "Sessions", value=len(sessions))
        connected = sum(one.connection is not None for one in sessions)
        yield GaugeMetricFamily(
            "stream_vlm_connections", "Sessions with a camera connected", value=connected
        )
        frames = CounterMetricFamily(
            "stream_vlm_frames", "Frames by what became of them", labels=["end"]
        )
        for end, count in self._frames(sessions).items():
            frames.add_metric([end], count)
        yield frames
        yield GaugeMetricFamily(
            "stream_vlm_frames_pending",
            "Frames on their way into a memory",
            value=sum(one.counters.pending for one in sessions),
        )
        yield GaugeMetricFamily(
            "stream_vlm_memory_tokens",
            "Tokens in all memories",
            value=sum(one.memory.length for one in sessions),
        )
        yield GaugeMetricFamily(
            "stream_vlm_memory_bytes",
            "Bytes of all memories",
            value=sum(one.memory.memory_bytes for one in sessions),
        )
        yield from self._engines()
        device = next((one.worker.device for one in sessions if one.worker.device), "")
        if device:
            yield GaugeMetricFamily(
                "stream_vlm_device_bytes", "Bytes in use on the device", value=used_bytes(device)
            )

    def _engines(self) -> Iterator[Metric]:
        seconds, passes, parts = (
            CounterMetricFamily(f"stream_vlm_engine_{name}", words, labels=["work"])
            for name, words in (
                ("seconds", "Time of the engines' thread; its rate is the load, at most 1"),
                ("passes", "Pieces of work that the engines' thread did"),
                ("parts", "Sessions' chunks, and pieces of answers, in these passes together"),
            )
        )
        for work, spent in self._sessions.spent.items():
            seconds.add_metric([work], spent.seconds)
            passes.add_metric([work], spent.passes)
            parts.add_metric([work], spent.parts)
        yield from (seconds, passes, parts)

    def _frames(self, sessions: list[Session]) -> dict[str, int]:
        with self._counting:
            total = dict(self._gone)
            for one in sessions:
                if one not in self._counted:
                    _add(total, one)
            return total

    def _keep(self, session: Session) -> None:
        """A session has ended: what became of its frames stays counted."""
        with self._counting:
            if session not in self._counted:
                self._counted.add(session)
                _add(self._gone, session)

    def _count(self, outcome: Outcome) -> None:
        error = outcome.error
        self._questions.labels("answered" if error is None else error.code.lower()).inc()
        if error is None and outcome.ttft:
            self._first_token.observe(outcome.waiting + outcome.ttft)


def _add(total: dict[str, Any], session: Session) -> None:
    counts = {"ingested": session.counters.ingested}
    counts |= {cause.value: count for cause, count in session.counters.dropped.items()}
    for end, count in counts.items():
        total[end] = total.get(end, 0) + count

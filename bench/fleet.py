# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Several cameras on one device, for bench/gpu.py: as fast as it goes, and in real time."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Generator, Iterator
from typing import Any

from gpu_rig import Rig, summary, synchronize, watched

from stream_vlm_ros.config import NOVELTY, Settings
from stream_vlm_ros.engine.together import Chunk, EngineGroup, Together
from stream_vlm_ros.node.loading import chunk_appender
from stream_vlm_ros.session.counters import FrameCounters
from stream_vlm_ros.session.engine_thread import PREPARING, EngineThread, write_together
from stream_vlm_ros.session.question import WRITING, Question
from stream_vlm_ros.session.timed_frame import TimedFrame
from stream_vlm_ros.session.worker import EngineWorker

MOST_PREPARING = 30.0  # s that a fleet is waited for


class Fleet:
    """Cameras with a memory each on one model, their memories full."""

    def __init__(self, rig: Rig, count: int, size: tuple[int, int], cap: int):
        self._rig = rig
        self._frames = [rig.frames(size=size, seed=seed) for seed in range(3)]
        slack = 2048
        group, begin = EngineGroup([cap + slack] * count), time.perf_counter()
        self.engines = [
            rig.filled(cap, self._frames[0], shares=NOVELTY, group=group, fork_slack_tokens=slack)
            for _ in range(count)
        ]
        for engine in self.engines:
            engine.warm_up()
        self.started = time.perf_counter() - begin
        newest = [engine.cache_manager.state.last_stamp or 0.0 for engine in self.engines]
        self._seconds = max(newest) + 1.0
        self._together = Together()

    def _chunk(self, camera: int, number: int, fps: float) -> Chunk:
        frames = list(self._frames[(camera + number) % 3])  # other frames each time
        times = [self._seconds + (4 * number + frame) / fps for frame in range(4)]
        return self.engines[camera], frames, times

    def as_fast_as_it_goes(self) -> dict[str, Any]:
        """Every camera has a chunk each time, and the next ones are known."""
        count, times = len(self.engines), 4 if self._rig.small else 24
        rounds = [[self._chunk(c, n, 2.0) for c in range(count)] for n in range(times)]
        begun = time.perf_counter()
        taken = []
        for chunks, coming in zip(rounds, [*rounds[1:], []], strict=True):
            begin = time.perf_counter()
            _append(self._together, chunks, [(engine, frames) for engine, frames, _ in coming])
            taken.append(1e3 * (time.perf_counter() - begin))
        synchronize()
        first = taken[0] / 1e3
        spent = time.perf_counter() - begun - sum(taken[:4]) / 1e3
        self._seconds += 2.0 * times
        return {
            "frames_a_second": round(4 * count * (times - 4) / spent, 1),
            "round_ms": summary(taken[3:]),
            "start_s": round(self.started + first, 1),
        }

    def answers_at_once(self, count: int, tokens: int, by_turns: bool = False) -> dict[str, Any]:
        """Questions to so many cameras at the same moment, through the thread that the node has.

        Told are all tokens by the time that all answers took, the milliseconds to a first token,
        and those between two tokens of one answer.
        """
        thread = EngineThread(write_together=None if by_turns else write_together)
        workers = [
            EngineWorker(lambda engine=engine: engine, FrameCounters(), 4, 32, thread=thread)
            for engine in self.engines[:count]
        ]
        thread.start()
        for worker in workers:
            worker.loaded.result()
        question = Question(self._rig.question(self.engines[0]), max_new_tokens=tokens)
        first, between, written, spent = [], [], 0, 0.0
        for number in range(2 if self._rig.small else 4):
            heard: list[list[float]] = [[] for _ in workers]
            begin = time.perf_counter()
            tickets = [
                worker.ask(question, lambda state, text, its=its: its.append(time.perf_counter()))
                for worker, its in zip(workers, heard, strict=True)
            ]
            outcomes = [ticket.future.result() for ticket in tickets]
            if number == 0:  # what is computed first is held against plain calls
                continue
            spent += time.perf_counter() - begin
            written += sum(outcome.answer_tokens for outcome in outcomes)
            for _, *pieces in heard:  # the first call says that it is being read
                first.append(1e3 * (pieces[0] - begin))
                between += [1e3 * (b - a) for a, b in itertools.pairwise(pieces)]
        thread.stop(60.0)
        return {
            "answers": count,
            "by_turns": by_turns,
            "tokens_a_second": round(written / spent, 1),
            "first_token": summary(first),
            "token": summary(between),
        }

    def at_a_rate(self, fps: float, seconds: float) -> dict[str, Any]:
        """Frames of each camera as they come and a question a second, in real time, through the
        thread that the node has.

        It begins when each camera has had a chunk and the thread has made ready what may come of
        them. Told is what that took, and the longest piece of it, for which a question would wait
        that comes before; pieces that are done later delay the questions that are measured.
        """
        with watched(self.engines[0].group, "prepare_next") as pieces:
            return self._at_a_rate(fps, seconds, pieces)

    def _at_a_rate(self, fps: float, seconds: float, pieces: list[float]) -> dict[str, Any]:
        count, question = len(self.engines), self._rig.question(self.engines[0])
        thread = EngineThread(
            0.5, chunk_appender([Settings()] * count), write_together=write_together
        )
        counters = [FrameCounters() for _ in self.engines]
        workers = [
            EngineWorker(lambda engine=engine: engine, its, 4, 32, thread=thread)
            for engine, its in zip(self.engines, counters, strict=True)
        ]

        def append(camera: int, number: int) -> None:
            _, frames, times = self._chunk(camera, number, fps)
            for _ in frames:
                counters[camera].receive()
            stamps = [round(1e9 * at) for at in times]
            workers[camera].append(
                [TimedFrame(*each, None) for each in zip(stamps, frames, strict=True)]
            )

        thread.start()
        for worker in workers:
            worker.loaded.result()
        until = time.monotonic() + MOST_PREPARING
        for camera in range(count):
            append(camera, 0)
            while (counters[camera].pending or not thread.is_idle) and time.monotonic() < until:
                time.sleep(0.001)
        before, ingested = len(pieces), sum(its.ingested for its in counters)
        prepare_s = thread.spent[PREPARING].seconds
        period = 4 / fps
        due = sorted(
            (period * (number + camera / count), camera, number)
            for camera in range(count)
            for number in range(int(seconds / period))
        )
        asks = [number + 0.31 for number in range(int(seconds))]
        first: dict[int, float] = {}
        tickets = []
        begin = time.perf_counter()

        def now() -> float:
            return time.perf_counter() - begin

        def hear(number: int, came: float) -> Callable[[str, str], None]:
            def progress(state: str, text: str) -> None:
                if state == WRITING:
                    first.setdefault(number, 1e3 * (now() - came))

            return progress

        while due or asks:
            while asks and asks[0] <= now():
                came, number = asks.pop(0), len(tickets)
                asked = Question(question, max_new_tokens=16)
                tickets.append(workers[number % count].ask(asked, hear(number, came)))
            while due and due[0][0] <= now():
                _, camera, number = due.pop(0)
                append(camera, 1 + number)
            time.sleep(0.0005)
        while any(its.pending for its in counters):
            time.sleep(0.01)
        failed = [error for ticket in tickets if (error := ticket.future.result().error)]
        thread.stop(60.0)
        if failed:
            raise failed[0]
        return {
            "at_fps": fps,
            "frames": 4 * int(seconds / period) * count,
            "frames_remembered": sum(its.ingested for its in counters) - ingested,
            "prepare_s": round(prepare_s, 3),
            "prepare_longest_ms": round(max(pieces, default=0.0), 3),
            "prepared_later": len(pieces) - before,
            "first_token": summary([*first.values()]),
        }


def pieces_of(steps: Generator[None, None, list[Any]]) -> Iterator[None]:
    """Each of them; raises what a chunk failed of."""
    failed = [one for one in (yield from steps) if isinstance(one, Exception)]
    if failed:
        raise failed[0]


def _append(together: Together, chunks: list[Chunk], ahead: list[Any]) -> None:
    for _ in pieces_of(together.append(chunks, ahead)):
        pass

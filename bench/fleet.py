# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Several cameras on one device, for bench/gpu.py: as fast as it goes, and in real time."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from typing import Any

from gpu_rig import Rig, summary, synchronize

from stream_vlm_ros.config import NOVELTY
from stream_vlm_ros.engine.together import Chunk, EngineGroup, Together


class Fleet:
    """Cameras with a memory each on one model, their memories full."""

    def __init__(self, rig: Rig, count: int, size: tuple[int, int], cap: int):
        self._rig = rig
        self._frames = [rig.frames(size=size, seed=seed) for seed in range(3)]
        group, begin = EngineGroup(count), time.perf_counter()
        slack = 2048
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

    def at_a_rate(self, fps: float, seconds: float) -> dict[str, Any]:
        """Chunks of each camera as they are complete, and a question a second, in real time.

        Chunks that wait are taken together as long as they are few; a question goes first, also
        between a chunk's pictures and its tokens.
        """
        count, question = len(self.engines), self._rig.question(self.engines[0])
        period = 4 / fps
        due = sorted(
            (period * (number + camera / count), camera, number)
            for camera in range(count)
            for number in range(int(seconds / period))
        )
        asks = [number + 0.31 for number in range(int(seconds))]
        asked, encoded, waited = list[float](), 0, list[float]()
        begin = time.perf_counter()

        def now() -> float:
            return time.perf_counter() - begin

        def answer() -> None:
            while asks and asks[0] <= now():
                came, engine = asks.pop(0), self.engines[len(asks) % count]
                words = engine.ask_stream(question, 16)
                next(words)
                asked.append(1e3 * (now() - came))
                for _ in words:
                    pass

        while due or asks:
            answer()
            chunks = []
            while due and due[0][0] <= now() and len(chunks) < 2:
                came, camera, number = due.pop(0)
                if any(chunk[0] is self.engines[camera] for chunk in chunks):
                    due.insert(0, (came, camera, number))
                    break
                chunks.append(self._chunk(camera, number, fps))
                waited.append(1e3 * (now() - came))
            if not chunks:
                time.sleep(0.0002)
                continue
            encoded += len(chunks)
            for _ in pieces_of(self._together.append(chunks)):
                answer()
        return {
            "at_fps": fps,
            "chunks": encoded,
            "first_token": summary(asked),
            "chunk_waited": summary(waited),
        }


def pieces_of(steps: Generator[None, None, list[Any]]) -> Iterator[None]:
    """Each of them; raises what a chunk failed of."""
    failed = [one for one in (yield from steps) if isinstance(one, Exception)]
    if failed:
        raise failed[0]


def _append(together: Together, chunks: list[Chunk], ahead: list[Any]) -> None:
    for _ in pieces_of(together.append(chunks, ahead)):
        pass

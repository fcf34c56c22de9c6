# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""What chunks and an answer cost each other while both are under way.

    python bench/ingest_while_answering.py --out bench/results/ingest_while_answering.json

The node's worker with a full memory; a camera that delivers a share of the chunks that could be
encoded if nobody asked; and answers of a fixed length, by turns with every `ingest_share` and with
no camera at all. Of each answer: how much longer it took than the one beside it without a camera,
how many of the chunks that came while it was written were encoded meanwhile, and how many were
lost because more than `queue_size` waited.

Here time is the process's processor time on one thread, by which the camera delivers, too, so that
it does not matter what else the machine does. On a GPU give `Rig` a wall clock: `measure` needs
nothing else, and works with any engine whose memory is full.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

from stream_vlm_ros.config import NOVELTY
from stream_vlm_ros.engine import (
    EvictionConfig,
    StreamProcessor,
    StreamQwenModel,
    VideoStreamingInference,
)
from stream_vlm_ros.engine.cache.budget import SLACK_CHUNKS  # beyond the cap: the node's default
from stream_vlm_ros.engine.inputs.timestamps import SECOND
from stream_vlm_ros.factory import default_model
from stream_vlm_ros.machine import measured_on
from stream_vlm_ros.session.counters import Drop, FrameCounters
from stream_vlm_ros.session.question import Question
from stream_vlm_ros.session.timed_frame import TimedFrame
from stream_vlm_ros.session.worker import EngineWorker
from stream_vlm_ros.world.world import World

CHUNK = 4  # frames
FPS = 2
QUESTION = "What was visible before the red circle?"
QUEUE = 2  # chunks that may wait: the node's default


class Rig:
    """A worker over an engine, and a camera that delivers by the clock while an answer is written.

    Args:
        engine: its memory is full, and an answer ends only at its budget.
        chunks: lists of images, delivered over and over.
        tokens: of an answer.
        clock: seconds of what the engine works by.
    """

    def __init__(
        self,
        engine: Any,
        chunks: Sequence[list],
        tokens: int,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.engine, self.tokens, self._clock = engine, tokens, clock
        self._chunks = itertools.cycle(chunks)
        newest = engine.get_cache_info()["newest_timestamp"] or 0.0
        self._stamps = itertools.count(round((newest + 1.0) * SECOND), SECOND // FPS)
        self._counters = FrameCounters()
        self._worker = EngineWorker(lambda: engine, self._counters, QUEUE, 8)
        self._worker.start()
        self._worker.loaded.result()
        self.settle()

    def close(self) -> None:
        self._worker.stop(60.0)

    def settle(self) -> None:
        """Until all that waits is encoded."""
        self._worker.ask(Question(QUESTION, max_new_tokens=1)).future.result()

    def deliver(self) -> None:
        images = next(self._chunks)
        for _ in images:
            self._counters.receive()
        self._worker.append([TimedFrame(next(self._stamps), image, None) for image in images])

    def chunk_seconds(self, count: int) -> list[float]:
        """Each of so many chunks in a row, if nobody asks."""
        seconds = []
        for _ in range(count):
            begin = self._clock()
            self.engine.append_video_chunk(next(self._chunks), timestamps=self._next_times())
            seconds.append(self._clock() - begin)
        return seconds

    def _next_times(self) -> list[float]:
        return [next(self._stamps) / SECOND for _ in range(CHUNK)]

    def answer(self, share: float = 0.0, interval: float | None = None) -> dict[str, float]:
        """One answer, while a camera delivers a chunk every ``interval`` seconds (None: never).

        Returns ``seconds`` from its beginning to its end, chunks ``delivered`` until then, of them
        ``encoded`` and ``lost``; the others wait.
        """
        self._worker.ingest_share = share
        begin, delivered = 0.0, 0
        before, lost = self._counters.ingested, self._counters.dropped[Drop.OVERFLOW]

        def progress(state: str, text: str) -> None:
            nonlocal begin, delivered
            begin = begin or self._clock()
            while interval is not None and self._clock() - begin >= (delivered + 1) * interval:
                self.deliver()
                delivered += 1

        took: dict[str, float] = {}

        def done(_: Any) -> None:  # in the worker's thread, before it goes on
            took["seconds"] = self._clock() - begin
            took["encoded"] = (self._counters.ingested - before) / CHUNK
            took["lost"] = (self._counters.dropped[Drop.OVERFLOW] - lost) / CHUNK

        ticket = self._worker.ask(Question(QUESTION, max_new_tokens=self.tokens), progress)
        ticket.future.add_done_callback(done)
        outcome = ticket.future.result()
        if outcome.error is not None:
            raise outcome.error
        assert outcome.answer_tokens == self.tokens, "the answer ended before its budget"
        self.settle()  # a question behind it: the callback has run by then, too
        return {**took, "delivered": delivered}


def measure(
    rig: Rig,
    loads: Sequence[float] = (0.25, 0.5, 1.0),
    shares: Sequence[float] = (0.0, 0.25, 0.5, 0.75, 1.0),
    repeats: int = 5,
    told: Callable[[dict[str, Any]], None] = lambda row: None,
) -> dict[str, Any]:
    """The table: for every camera and every share, medians over ``repeats`` answers.

    Args:
        loads: what the camera delivers, of what can be encoded if nobody asks.
        shares: values of `ingest_share`.
        told: given each row when it is there.

    Returns:
        ``chunk_ms`` and ``answer_ms`` alone, and ``rows``: ``answer_ratio``, seconds of an answer
        over those of the one before it without a camera; ``answer_speed_loss``, of its tokens a
        second; ``encoded``, of the chunks delivered while it was written, and ``ingest_rate_loss``,
        what is missing of that; ``lost`` chunks an answer; ``delivered`` chunks an answer.
    """
    chunk = statistics.median(rig.chunk_seconds(20)[5:])
    rig.answer()
    alone: list[float] = []
    rows = []
    for load in loads:
        answers: dict[float, list[dict[str, float]]] = {share: [] for share in shares}
        for _ in range(repeats):
            for share in shares:
                alone.append(rig.answer()["seconds"])
                answer = rig.answer(share, chunk / load)
                answers[share].append({**answer, "ratio": answer["seconds"] / alone[-1]})
        for share, taken in answers.items():
            ratio = statistics.median(one["ratio"] for one in taken)
            delivered = sum(one["delivered"] for one in taken)
            encoded = sum(one["encoded"] for one in taken) / max(delivered, 1)
            row = {
                "load": load,
                "ingest_share": share,
                "answer_ratio": round(ratio, 3),
                "answer_speed_loss": round(1 - 1 / ratio, 3),
                "encoded": round(encoded, 3),
                "ingest_rate_loss": round(1 - encoded, 3),
                "lost": round(sum(one["lost"] for one in taken) / repeats, 2),
                "delivered": round(delivered / repeats, 2),
            }
            rows.append(row)
            told(row)
    return {
        "tokens": rig.tokens,
        "chunk_ms": round(1e3 * chunk, 2),
        "answer_ms": round(1e3 * statistics.median(alone), 2),
        "repeats": repeats,
        "rows": rows,
    }


def build_engine(
    cap: int, slack_chunks: int, chunks: Sequence[list], **options: Any
) -> VideoStreamingInference:
    """The small model with a full memory of ``cap`` tokens; answers end only at their budget."""
    folder = default_model()
    model = StreamQwenModel.from_pretrained(folder, torch_dtype=torch.float32).eval()
    model.generation_config.eos_token_id = []
    processor = StreamProcessor.from_pretrained(folder)
    shares = options.pop("shares", NOVELTY)
    probe = VideoStreamingInference(model, processor, "cpu")
    tokens = [probe.append_video_chunk(frames, fps=FPS)["tokens"] for frames in chunks[:2]][-1]
    engine = VideoStreamingInference(
        model,
        processor,
        "cpu",
        EvictionConfig(cap, **shares),
        fork_slack_tokens=slack_chunks * tokens,
        **options,
    )
    engine._end_ids = set()
    for frames in itertools.cycle(chunks):
        if engine.append_video_chunk(frames, fps=FPS)["evicted_tokens"]:
            return engine


def main() -> None:
    parse = argparse.ArgumentParser(description=__doc__)
    parse.add_argument("--cap", type=int, default=16_384)
    parse.add_argument("--tokens", type=int, default=128, help="of an answer")
    parse.add_argument("--loads", type=float, nargs="+", default=[0.25, 0.5, 1.0])
    parse.add_argument("--shares", type=float, nargs="+", default=[0.0, 0.25, 0.5, 0.75, 1.0])
    parse.add_argument("--repeats", type=int, default=5)
    parse.add_argument("--out", type=Path)
    options = parse.parse_args()
    torch.set_num_threads(1)  # processor time is then the time that an idle core would take
    transformers.utils.logging.disable_progress_bar()
    world = World(12)
    chunks = [
        [world.render((CHUNK * number + k) / FPS) for k in range(CHUNK)] for number in range(20)
    ]
    report: dict[str, Any] = {
        **measured_on(torch, transformers),
        "threads": 1,
        "clock": "processor time",
        "cap": options.cap,
        "queue_size": QUEUE,
        "memories": {},
    }
    plain = {"shares": {"sampled_share": 0.0, "important_share": 0.0}}
    memories: dict[str, tuple[int, dict[str, Any]]] = {
        "novelty, room for all that comes": (64, {}),
        f"novelty, room for {SLACK_CHUNKS} chunks": (SLACK_CHUNKS, {}),
        "sink and window, room for all that comes": (64, plain),
    }

    def told(row: dict[str, Any]) -> None:
        print(
            f"{row['load']:8.0%} {row['ingest_share']:14.2f} {row['answer_ratio']:14.2f} "
            f"{row['encoded']:18.0%} {row['lost']:8.1f} of {row['delivered']:.1f}",
            flush=True,
        )

    for name, (slack, settings) in memories.items():
        rig = Rig(
            build_engine(options.cap, slack, chunks, **settings),
            chunks,
            options.tokens,
            time.process_time,
        )
        print(f"\n{name}: cap {options.cap:,}, answers of {options.tokens} tokens")
        print("  camera   ingest_share   answer takes  encoded meanwhile  lost chunks", flush=True)
        try:
            row = measure(rig, options.loads, options.shares, options.repeats, told)
        finally:
            rig.close()
        report["memories"][name] = row
        print(f"alone: a chunk {row['chunk_ms']} ms, an answer {row['answer_ms']} ms")
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()

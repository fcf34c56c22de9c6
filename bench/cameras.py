# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Several cameras of one node on a CPU, with the small model; and what one camera pays for it.

    python bench/cameras.py --against CHECKOUT --out bench/results/cameras_cpu.json

``cameras``: frames come by the clock, as from real cameras, through the node's ingest, into
sessions of one thread; a question a second goes to one camera after the other. Told are the frames
lost, and how long questions took from being asked to their first token, and to their last.

``one_camera``: chunks and answers of one session, by turns with the checkout of another commit, in
processes of their own and by their processor time: the median of the ratios of neighbours.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

SIZE, CAMERAS, FPS = (320, 240), 4, 1.0
QUESTION = "What was visible before the red circle?"
TOKENS = 32


def frames(count: int, camera: int) -> list[Any]:
    """What a camera sees."""
    import numpy as np
    from PIL import Image

    from stream_vlm_ros.world.world import World

    world = World(12 + camera)
    return [
        np.asarray(Image.fromarray(np.asarray(world.render(k / 2.0))).resize(SIZE))
        for k in range(count)
    ]


class Picture:
    """What the ingest takes: a picture with its stamp."""

    def __init__(self, stamp_ns: int, image: Any) -> None:
        self.stamp_ns, self._image = stamp_ns, image

    def read(self) -> tuple[None, Any]:
        return None, self._image


def measure_cameras(seconds: float) -> dict[str, Any]:
    """Frames lost, and how long questions took."""
    from stream_vlm_ros.config import Settings
    from stream_vlm_ros.factory import build_engine, load_model
    from stream_vlm_ros.session.counters import FrameCounters
    from stream_vlm_ros.session.engine_thread import EngineThread
    from stream_vlm_ros.session.ingest import FrameIngest
    from stream_vlm_ros.session.question import Question
    from stream_vlm_ros.session.worker import EngineWorker

    settings = Settings(device="cpu", sample_fps=FPS)
    model = load_model(settings)
    thread = EngineThread(settings.ingest_share)
    workers, ingests, counters = [], [], []
    for _ in range(CAMERAS):
        counts = FrameCounters()
        worker = EngineWorker(
            lambda: build_engine(settings, model),
            counts,
            settings.queue_size,
            settings.max_questions,
            thread=thread,
        )
        ingest = FrameIngest(
            settings, counts, worker.append, lambda: None, lambda cause, words: print(words)
        )
        ingest.active = True
        workers.append(worker), ingests.append(ingest), counters.append(counts)
    thread.start()
    for worker in workers:
        worker.loaded.result()
    pictures = [frames(16, camera) for camera in range(CAMERAS)]
    begin, sent, tickets = time.monotonic(), [0] * CAMERAS, []
    while (now := time.monotonic() - begin) < seconds:
        for camera, ingest in enumerate(ingests):
            offset = camera / CAMERAS / FPS  # cameras are not in step
            while now >= offset + sent[camera] / FPS:
                stamp_ns = 10**18 + round(1e9 * (offset + sent[camera] / FPS))
                image = pictures[camera][sent[camera] % 16]
                ingest.receive(Picture(stamp_ns, image), stamp_ns)
                sent[camera] += 1
        if now >= 8.0 + len(tickets):
            question = Question(QUESTION, max_new_tokens=TOKENS)
            tickets.append(workers[len(tickets) % CAMERAS].ask(question))
        time.sleep(0.002)
    outcomes = [ticket.future.result() for ticket in tickets]
    for ingest in ingests:
        ingest.deliver_open()
    for worker in workers:  # a question behind all chunks
        worker.ask(Question(QUESTION, max_new_tokens=1)).future.result()
    thread.stop(60.0)
    assert not [one.error for one in outcomes if one.error is not None]
    first = sorted(one.waiting + one.ttft for one in outcomes)
    whole = sorted(one.waiting + one.latency for one in outcomes)
    return {
        "cameras": CAMERAS,
        "size": list(SIZE),
        "fps": FPS,
        "seconds": seconds,
        "frames_received": sum(one.received for one in counters),
        "frames_ingested": sum(one.ingested for one in counters),
        "frames_lost": sum(sum(one.dropped.values()) for one in counters),
        "questions": len(outcomes),
        "first_token_p50_s": round(statistics.median(first), 3),
        "first_token_max_s": round(first[-1], 3),
        "answer_p50_s": round(statistics.median(whole), 3),
        "answer_max_s": round(whole[-1], 3),
        "max_answer_tokens": TOKENS,
    }


def measure_one() -> dict[str, float]:
    """Processor seconds of a chunk and of an answer through the worker of one camera."""
    import torch

    from stream_vlm_ros.config import Settings
    from stream_vlm_ros.factory import build_engine, load_model
    from stream_vlm_ros.session.counters import FrameCounters
    from stream_vlm_ros.session.timed_frame import TimedFrame

    try:
        from stream_vlm_ros.session.question import Question
    except ImportError:  # before several cameras
        from stream_vlm_ros.session.worker import Question
    from stream_vlm_ros.session.worker import EngineWorker

    torch.set_num_threads(1)
    settings = Settings(device="cpu", max_cache_tokens=2000)
    engine = build_engine(settings, load_model(settings))
    counters = FrameCounters()
    done = threading.Event()
    worker = EngineWorker(lambda: engine, counters, 2, 8, changed=done.set)
    worker.start()
    worker.loaded.result()
    pictures, chunks, answers = frames(16, 0), [], []
    for count in range(60):
        four = [pictures[(4 * count + k) % 16] for k in range(4)]
        begin = time.process_time()
        for _ in four:
            counters.receive()
        stamps = [round((4 * count + k) * 5e8) for k in range(4)]
        worker.append([TimedFrame(s, i, None) for s, i in zip(stamps, four, strict=True)])
        done.wait()
        done.clear()
        chunks.append(time.process_time() - begin)
    for _ in range(30):
        begin = time.process_time()
        question = Question(QUESTION, max_new_tokens=TOKENS)
        outcome = worker.ask(question).future.result()
        answers.append((time.process_time() - begin) / max(1, outcome.answer_tokens))
    worker.stop(60.0)
    return {"chunk": statistics.median(chunks[20:]), "token": statistics.median(answers)}


def run_one(checkout: Path) -> dict[str, float]:
    """`measure_one` in a process, of the package in that checkout."""
    done = subprocess.run(
        [sys.executable, __file__, "--one"],
        env={**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def main() -> None:
    parse = argparse.ArgumentParser(description=__doc__)
    parse.add_argument("--against", type=Path, help="checkout of the commit to compare with")
    parse.add_argument("--seconds", type=float, default=60.0)
    parse.add_argument("--repeats", type=int, default=5)
    parse.add_argument("--one", action="store_true", help="one camera alone, of this process")
    parse.add_argument("--out", type=Path)
    options = parse.parse_args()
    if options.one:
        print(json.dumps(measure_one()))
        return
    import torch
    import transformers

    from stream_vlm_ros.machine import measured_on

    report = {**measured_on(torch, transformers), "cameras": measure_cameras(options.seconds)}
    print(json.dumps(report["cameras"]), flush=True)
    if options.against:
        here = Path(__file__).parents[1]
        ratios: dict[str, list[float]] = {"chunk": [], "token": []}
        for number in range(options.repeats):
            order = [options.against, here][:: 1 if number % 2 else -1]
            figures = {checkout: run_one(checkout) for checkout in order}
            for name, found in ratios.items():
                found.append(figures[here][name] / figures[options.against][name])
        report["one_camera"] = {
            f"{name}_ratio": round(statistics.median(found), 3) for name, found in ratios.items()
        } | {"repeats": options.repeats, "clock": "processor time"}
        print(json.dumps(report["one_camera"]), flush=True)
    if options.out:
        options.out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()

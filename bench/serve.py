# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""What `stream-vlm serve` adds to a first token, and how many cameras it serves.

    python bench/serve.py --out bench/results/serve_cpu.json
    python bench/serve.py --shape 3b --cap 16384 --counts 30 60 75 90 --out bench/results/serve.json

``first_token``: one question by turns asked of the session's worker in the server's process, and
over a WebSocket from another process of this machine: from asking to the first text. ``added_ms``
is the median of the differences of neighbours.

``cameras``: so many sessions, their memories full, to each of which frames of 640x480 come at 2 a
second as JPEG, chunks of 4, out of step, from another process; and a question a second, to one
after the other. With more and more sessions until the first loses a frame; a question without an
answer counts as a lost frame does. Queues hide for a while that frames come faster than they are
remembered, so a level must also keep up: of the chunks of its second half, 99 % are remembered
within the time of a chunk, 2 s, after their last frame (``remembered_ms``). ``first_token_ms`` is
from asking to the first text, at the client. ``engine`` says what the engines' thread did
meanwhile: the share of its time that each kind of work took, milliseconds a chunk, and how many
chunks went together.

Needs of other packages fastapi, uvicorn, websockets, msgspec and prometheus_client. With
``--shape`` the model has random weights, and its answers are as long as they may be.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import io
import json
import multiprocessing
import statistics
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

FPS, CHUNK, WIDTH, HEIGHT = 2.0, 4, 640, 480
TOKENS = 16
QUESTION = "What was visible before the red circle?"
PICTURES = 8  # that differ
A_LEVEL = 1_000_000  # sequences, more than its frames
DRAIN = 60.0  # s for the last frames of a level to come to their end


def pictures() -> list[np.ndarray]:
    """Of a camera: soft noise, which is a JPEG of usual size, and the same for all."""
    from PIL import Image

    noise = np.random.default_rng(0).integers(0, 256, (PICTURES, 60, 80, 3), dtype=np.uint8)
    return [np.asarray(Image.fromarray(one).resize((WIDTH, HEIGHT), 3)) for one in noise]


# -- the cameras, in a process of their own ------------------------------------------------------


def run_cameras(port: int, orders: Any) -> None:
    """Do what is ordered: ("ask", session) or ("cameras", count, seconds, first sequence, first
    stamp)."""
    asyncio.run(_cameras(port, orders))


async def _cameras(port: int, orders: Any) -> None:
    from PIL import Image

    encoded = []
    for picture in pictures():
        written = io.BytesIO()
        Image.fromarray(picture).save(written, "JPEG", quality=90)
        encoded.append(written.getvalue())
    async with contextlib.AsyncExitStack() as stack:
        asking = None
        while (order := await asyncio.to_thread(orders.recv)) is not None:
            if order[0] == "ask":
                asking = asking or await stack.enter_async_context(connected(port, order[1]))
                orders.send(await first_token(asking))
            else:
                orders.send(await level(port, encoded, *order[1:]))


@contextlib.asynccontextmanager
async def connected(port: int, session: str) -> Any:
    import websockets

    from stream_vlm_ros.remote import protocol

    async with websockets.connect(
        f"ws://127.0.0.1:{port}{protocol.PATH}",
        additional_headers={protocol.SESSION_HEADER: session},
        subprotocols=[websockets.Subprotocol(protocol.SUBPROTOCOL)],
        compression=None,
        max_size=None,
        open_timeout=60,
    ) as connection:
        told = protocol.server_event(await connection.recv())
        assert isinstance(told, protocol.SessionCreated), told
        update = protocol.SessionUpdate(settings={"commit": "client"})
        await connection.send(protocol.encoded(update))
        yield connection


async def first_token(connection: Any) -> float:
    """Milliseconds from asking to the first text; waits for the answer's end."""
    from stream_vlm_ros.remote import protocol

    ask = protocol.Ask(text=QUESTION, max_new_tokens=TOKENS)
    asked = protocol.encoded(protocol.ResponseCreate(event_id="q", response=ask))
    begin, first = time.perf_counter(), 0.0
    await connection.send(asked)
    while True:
        event = protocol.server_event(await connection.recv())
        if isinstance(event, protocol.TextDelta) and not first:
            first = 1e3 * (time.perf_counter() - begin)
        if isinstance(event, protocol.ResponseDone):
            assert event.response.error is None, event.response.error
            return first


async def level(
    port: int, encoded: list[bytes], count: int, seconds: float, first: int, first_ns: int
) -> dict[str, Any]:
    """So many cameras for so long: what became of their frames, and how soon answers began.

    Their first frame has the sequence ``first`` and the stamp ``first_ns``.
    """
    async with contextlib.AsyncExitStack() as stack:
        cameras = [Camera(f"camera-{number}", first) for number in range(count)]
        for camera in cameras:
            camera.connection = await stack.enter_async_context(connected(port, camera.name))
        listening = [asyncio.create_task(camera.listen()) for camera in cameras]
        begin = time.perf_counter() + 1.0
        asking = asyncio.create_task(ask_in_turn(cameras, begin, seconds))
        filming = asyncio.gather(
            *(
                camera.film(encoded, begin + number / count * CHUNK / FPS, seconds, first_ns)
                for number, camera in enumerate(cameras)
            )
        )
        # A listener ends by a fault alone, of which the level is to be told.
        whole = asyncio.gather(filming, asking)
        await asyncio.wait([whole, *listening], return_when=asyncio.FIRST_COMPLETED)
        if not whole.done():
            whole.cancel()
        until = time.monotonic() + DRAIN
        while any(c.ended < c.sent or c.asked for c in cameras) and time.monotonic() < until:
            await asyncio.sleep(0.05)
        for task in listening:
            if task.done():
                task.result()
            task.cancel()
        await whole
    return figures(cameras)


def figures(cameras: list[Camera]) -> dict[str, Any]:
    """What became of their frames and questions."""
    lost: dict[str, int] = {}
    for camera in cameras:
        for cause, frames in camera.dropped.items():
            lost[cause] = lost.get(cause, 0) + frames
    first = [one for camera in cameras for one in camera.first]
    later = [
        waited
        for camera in cameras
        for number, waited in camera.remembered.items()
        if number >= camera.first_sequence + camera.sent / 2
    ]
    return {
        "sessions": len(cameras),
        "frames_sent": sum(camera.sent for camera in cameras),
        "frames_ingested": sum(camera.ingested for camera in cameras),
        "frames_lost": lost,
        "frames_without_an_end": sum(camera.sent - camera.ended for camera in cameras),
        "questions": len(first),
        "questions_failed": sum(camera.failed + len(camera.asked) for camera in cameras),
        "first_token_ms": percentiles(first),
        "remembered_ms": percentiles(later),
        "camera_late_ms": round(1e3 * max(camera.late for camera in cameras), 1),
    }


def percentiles(taken: list[float]) -> dict[str, float | None]:
    ranked = sorted(taken)
    return {
        "p50": round(statistics.median(ranked), 1) if ranked else None,
        "p99": round(ranked[-1 - len(ranked) // 100], 1) if ranked else None,
    }


def holds(level: dict[str, Any]) -> bool:
    """Whether every frame was remembered in time, and every question answered."""
    without = ("frames_lost", "frames_without_an_end", "questions_failed")
    behind = level["remembered_ms"]["p99"]
    keeps_up = behind is None or behind <= 1e3 * CHUNK / FPS
    return keeps_up and not any(level[name] for name in without)


class Camera:
    """One connection that films."""

    def __init__(self, name: str, first: int) -> None:
        self.name, self.first_sequence, self.connection = name, first, None
        self.sent = self.ingested = self.ended = 0
        self.dropped: dict[str, int] = {}
        self.late = 0.0  # s that a frame was sent behind its time, at most
        self.first: list[float] = []  # ms to the first texts of its answers
        self.asked: dict[str, float] = {}  # whose answer has not begun
        self.failed = 0  # questions
        self.committed: dict[int, float] = {}  # when, by the sequence of a chunk's last frame
        self.remembered: dict[int, float] = {}  # ms until it was, likewise

    async def film(self, encoded: list[bytes], begin: float, seconds: float, first_ns: int) -> None:
        from stream_vlm_ros.remote import protocol

        for number in range(int(seconds * FPS)):
            due = begin + number / FPS
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            self.late = max(self.late, time.perf_counter() - due)
            stamp_ns = first_ns + round(1e9 * number / FPS)
            jpeg = encoded[number % len(encoded)]
            sequence = self.first_sequence + number
            frame = protocol.FrameMessage(sequence, stamp_ns, protocol.JPEG, 0, 0, jpeg)
            self.sent += 1
            await self.connection.send(frame.packed())
            if not (number + 1) % CHUNK:
                self.committed[sequence] = time.perf_counter()
                await self.connection.send(protocol.encoded(protocol.Commit()))
        await self.connection.send(protocol.encoded(protocol.Commit()))

    async def ask(self, id: str) -> None:
        from stream_vlm_ros.remote import protocol

        ask = protocol.Ask(text=QUESTION, max_new_tokens=TOKENS)
        self.asked[id] = time.perf_counter()
        event = protocol.ResponseCreate(event_id=id, response=ask)
        await self.connection.send(protocol.encoded(event))

    async def listen(self) -> None:
        from stream_vlm_ros.remote import protocol

        while True:
            event = protocol.server_event(await self.connection.recv())
            if isinstance(event, protocol.TextDelta) and event.response_id in self.asked:
                asked = self.asked.pop(event.response_id)
                self.first.append(1e3 * (time.perf_counter() - asked))
            elif isinstance(event, protocol.ResponseDone):
                self.asked.pop(event.response.id, None)
                self.failed += event.response.error is not None
            elif getattr(event, "last", self.first_sequence) < self.first_sequence:
                continue  # of those that filled the memory, or of the level before
            elif isinstance(event, protocol.Ingested):
                self.ingested += event.frames
                self.ended += event.frames
                if event.last in self.committed:
                    waited = time.perf_counter() - self.committed[event.last]
                    self.remembered[event.last] = 1e3 * waited
            elif isinstance(event, protocol.Dropped):
                self.dropped[event.cause] = self.dropped.get(event.cause, 0) + event.frames
                self.ended += event.frames
            elif isinstance(event, protocol.ErrorEvent | protocol.SessionEnding):
                raise AssertionError(event)


async def ask_in_turn(cameras: list[Camera], begin: float, seconds: float) -> None:
    for number in range(int(seconds)):
        await asyncio.sleep(max(0.0, begin + number + 0.31 - time.perf_counter()))
        await cameras[number % len(cameras)].ask(f"q{number}")


# -- the server ----------------------------------------------------------------------------------


def checkpoint(shape: str, device: str) -> Any:
    """Random weights of a named shape, whose answers are as long as they may be."""
    import torch
    from gpu_rig import say_words_alone

    from stream_vlm_ros.engine.loading import Checkpoint
    from stream_vlm_ros.engine.model.device import resolve_device
    from stream_vlm_ros.experiments.shapes import random_network, shape_config, words_processor

    place, processor = resolve_device(device), words_processor()
    dtype = torch.bfloat16 if place.type == "cuda" else torch.float32
    network = random_network(shape_config(shape, processor), place, dtype)
    network.generation_config.eos_token_id = []
    say_words_alone(network, processor.tokenizer)
    return Checkpoint(network, processor, place)


@contextlib.contextmanager
def served(sessions: Any) -> Any:
    """The port of these sessions' server, in a thread."""
    from stream_vlm_ros.access import listen
    from stream_vlm_ros.serve.app import create_app
    from stream_vlm_ros.serve.keys import Keys
    from stream_vlm_ros.serve.running import make_server

    listening = listen("127.0.0.1", 0)
    server = make_server(create_app(sessions, Keys()))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve([listening])))
    thread.start()
    try:
        yield listening.getsockname()[1]
    finally:
        sessions.drain(5.0)
        server.should_exit = True
        thread.join()


def fill(session: Any, images: list[np.ndarray]) -> int:
    """Fill a session's memory; a stamp behind it."""
    from stream_vlm_ros.serve.events import Sent
    from stream_vlm_ros.session.timed_frame import TimedFrame

    session.ready.result()
    number = 0
    while not session.memory.evictions:
        frames = []
        for k in range(CHUNK):
            stamp_ns = round(1e9 * (1 + (number + k) / FPS))
            image = images[(number + k) % len(images)]
            frames.append(TimedFrame(stamp_ns, image, Sent(0, stamp_ns)))
        number += CHUNK
        session.frames.append(frames)
        while session.counters.pending:
            time.sleep(0.001)
        assert not session.worker.last_fault, session.worker.last_fault
    return round(1e9 * (2 + number / FPS))


def ask_in_process(session: Any) -> float:
    """Milliseconds to the first text."""
    from stream_vlm_ros.session.question import WRITING, Question

    first = []

    def progress(state: str, text: str) -> None:
        if state == WRITING and not first:
            first.append(time.perf_counter())

    begin = time.perf_counter()
    question = Question(QUESTION, max_new_tokens=TOKENS)
    outcome = session.ask(question, progress).future.result()
    assert outcome.error is None, outcome.error
    return 1e3 * (first[0] - begin)


def measure_first_token(session: Any, orders: Any, times: int) -> dict[str, Any]:
    alone, over = [], []
    for number in range(times + 3):
        pair = {}
        for way in ("in process", "over")[:: 1 if number % 2 else -1]:
            if way == "over":
                orders.send(("ask", session.id))
                pair[way] = orders.recv()
            else:
                pair[way] = ask_in_process(session)
        if number >= 3:  # the first ones are warm-up
            alone.append(pair["in process"])
            over.append(pair["over"])
    added = sorted(b - a for a, b in zip(alone, over, strict=True))
    quick = int(0.1 * times)  # of which a machine that does other things tells most truly
    return {
        "pairs": times,
        "in_process_ms": round(statistics.median(alone), 2),
        "over_websocket_ms": round(statistics.median(over), 2),
        "in_process_p10_ms": round(sorted(alone)[quick], 2),
        "over_websocket_p10_ms": round(sorted(over)[quick], 2),
        "added_ms": round(statistics.median(added), 2),
        "added_p90_ms": round(added[int(0.9 * len(added))], 2),
        "bar": "added_ms of at most 5",
        "holds": statistics.median(added) <= 5,
    }


def work_of(before: dict[str, Any], after: dict[str, Any], seconds: float) -> dict[str, Any]:
    """What the engines' thread did in so many seconds."""
    done = {kind: [b - a for a, b in zip(before[kind], after[kind], strict=True)] for kind in after}
    passes, parts, chunks = done["chunks"]
    return {
        "busy": {kind: round(spent / seconds, 3) for kind, (*_, spent) in done.items()},
        "chunk_ms": round(1e3 * chunks / max(parts, 1), 1),
        "chunks_a_pass": round(parts / max(passes, 1), 2),
    }


def measure_cameras(
    sessions: Any, orders: Any, counts: list[int], seconds: float
) -> dict[str, Any]:
    levels, images, best = [], pictures(), None
    first_ns, there = 0, 0
    for number, count in enumerate(counts):
        for camera in range(there, count):  # those of the level before go on
            first_ns = max(first_ns, fill(sessions.open(f"camera-{camera}", "local"), images))
        there = count
        before, begin = sessions.spent, time.monotonic()
        orders.send(("cameras", count, seconds, number * A_LEVEL + 1, first_ns))
        levels.append(orders.recv())
        levels[-1]["engine"] = work_of(before, sessions.spent, time.monotonic() - begin)
        first_ns += round(1e9 * (seconds + 1))
        print(json.dumps(levels[-1]), flush=True)
        if not holds(levels[-1]):
            break
        best = count
    return {"without_a_lost_frame": best, "seconds": seconds, "levels": levels}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", default="", help="of random weights; without: the small model")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--cap", type=int, default=2048)
    parser.add_argument("--pairs", type=int, default=60)
    parser.add_argument("--counts", type=int, nargs="*", default=[2, 4, 8, 12, 16])
    parser.add_argument("--seconds", type=float, default=20.0, help="of each level")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    import fastapi
    import torch
    import uvicorn
    import websockets

    import stream_vlm_ros.world  # noqa: F401 - the small model's
    from stream_vlm_ros.config import Settings
    from stream_vlm_ros.factory import load_model
    from stream_vlm_ros.machine import measured_on
    from stream_vlm_ros.serve.options import Limits
    from stream_vlm_ros.serve.running import spare_what_stays
    from stream_vlm_ros.serve.sessions import Sessions

    spawn = multiprocessing.get_context("spawn")
    orders, theirs = spawn.Pipe()
    settings = Settings(device=options.device, max_cache_tokens=options.cap)
    sessions = Sessions(
        settings,
        Limits(max_sessions=max([*options.counts, 1]) + 1),
        load=(lambda _: checkpoint(options.shape, options.device)) if options.shape else load_model,
    )
    begin = time.monotonic()
    plan = sessions.load()
    spare_what_stays()
    report = measured_on(torch, fastapi, uvicorn, websockets) | {
        "model": f"{options.shape}, random weights" if options.shape else sessions.model,
        "cap": options.cap,
        "plan": plan,
        "start_seconds": round(time.monotonic() - begin, 1),
        "picture": [WIDTH, HEIGHT],
        "fps": FPS,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with served(sessions) as port:
        client = spawn.Process(target=run_cameras, args=(port, theirs), daemon=True)
        client.start()
        session = sessions.open("first", "local")
        fill(session, pictures())
        report["device"] = session.worker.device
        report["first_token"] = measure_first_token(session, orders, options.pairs)
        print(json.dumps(report["first_token"]), flush=True)
        options.out.write_text(json.dumps(report, indent=1) + "\n")
        if options.counts:
            report["cameras"] = measure_cameras(sessions, orders, options.counts, options.seconds)
            options.out.write_text(json.dumps(report, indent=1) + "\n")
        orders.send(None)
        client.join(10)


if __name__ == "__main__":
    main()

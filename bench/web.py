# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""What viewers of the console cost the engine's process, and one another.

    OMP_NUM_THREADS=1 python bench/web.py --out bench/results/web.json

``stream-vlm web`` shows a film of 640x480, ten pictures a second, played over and over, at the
verb's own settings. Its viewers do what the page does: they load it, hold its websocket open, and
say of each picture that it was shown.

- Processor time of the engine's process (user and system, all its threads) without a viewer, with
  one and with ten, in stretches of one pass of the film each. A turn goes through them forwards
  and backwards, so that what drifts is in all alike. Ratios of a turn: medians, quartiles.
- How old a picture is when a viewer has it, from its stamp, with and without another viewer that
  asks for pictures and reads none, and holds a page whose messages it does not read.
- What the 25th viewer is told.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from urllib.parse import urlencode

import av
import nicegui
import websockets

from stream_vlm_ros.machine import measured_on
from stream_vlm_ros.world.world import World

SECONDS, RATE, WIDTH, HEIGHT = 10, 10, 640, 480  # of the film
VIEWERS = (0, 1, 10)
MOST = 24
SETTLE = 1.5  # s after viewers came or went


def film(path: Path) -> None:
    """A drawn world as a video."""
    world = World(7, aspect=WIDTH / HEIGHT)
    with av.open(str(path), "w") as out:
        stream = out.add_stream("mpeg4", rate=RATE)
        stream.width, stream.height, stream.bit_rate = WIDTH, HEIGHT, 2_000_000
        for index in range(SECONDS * RATE):
            picture = world.render(20 + index / RATE, WIDTH, HEIGHT)
            out.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
        out.mux(stream.encode())


class Console:
    """``stream-vlm web`` on a film."""

    def __init__(self, path: Path) -> None:
        command = [sys.executable, "-m", "stream_vlm_ros.cli", "web", "--source", str(path)]
        self.process = subprocess.Popen(
            [*command, "--loop", "--port", "0"], stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        said = self.process.stdout.readline()
        self.address = re.search(r"http://(\S+)", said)[1]

    def __enter__(self) -> Console:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait(30)

    @property
    def engine(self) -> int:
        """Id of the engine's process."""
        pid = self.process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return int(children[0])

    def page(self) -> tuple[int, str]:
        """Status and text of the page, loaded."""
        request = urllib.request.Request(f"http://{self.address}/", headers={"Accept": "text/html"})
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as refusal:
            return refusal.code, refusal.read().decode()


def used(pid: int) -> float:
    """Seconds of the processor that a process has had."""
    times = [task.read_text().split()[0] for task in Path(f"/proc/{pid}/task").glob("*/schedstat")]
    return sum(map(int, times)) / 1e9


class Viewer:
    """A page that somebody has open.

    Args:
        reads: whether it takes what is sent to it.

    Attributes:
        ages: of each picture, in seconds from its stamp until it was there.
    """

    def __init__(self, console: Console, reads: bool = True) -> None:
        self._console, self._reads = console, reads
        self.ages: list[float] = []

    async def __aenter__(self) -> Viewer:
        status, text = await asyncio.to_thread(self._console.page)
        assert status == 200, text
        client = re.search(r"['\"]?client_id['\"]?:\s*['\"]([0-9a-f-]+)['\"]", text)[1]
        query = {
            "implicit_handshake": "true", "client_id": client, "document_id": client,
            "tab_id": client, "next_message_id": 0, "EIO": 4, "transport": "websocket",
        }  # fmt: skip
        address, narrow = self._console.address, {} if self._reads else {"max_queue": 1}
        self._steps = AsyncExitStack()
        connect = self._steps.enter_async_context
        self._page = await connect(
            websockets.connect(
                f"ws://{address}/_nicegui_ws/socket.io/?{urlencode(query)}",
                max_size=None,
                ping_interval=None,
                **narrow,
            )
        )
        await self._page.recv()
        await self._page.send("40")
        self._pictures = await connect(
            websockets.connect(
                f"ws://{address}/cameras/0/pictures", ping_interval=None, max_size=None, **narrow
            )
        )
        for one in (self._page, self._pictures):
            if not self._reads:
                one.transport.get_extra_info("socket").setsockopt(
                    socket.SOL_SOCKET, socket.SO_RCVBUF, 4096
                )
        work = (self._follow, self._look) if self._reads else (self._ask_on,)
        self._tasks = [asyncio.create_task(one()) for one in work]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        for one in (self._page, self._pictures):
            one.transport.abort()
        with suppress(Exception):
            await self._steps.aclose()

    async def _follow(self) -> None:
        async for message in self._page:
            if message == "2":  # of engine.io: are you there?
                await self._page.send("3")

    async def _look(self) -> None:
        async for data in self._pictures:
            now = time.time()
            self.ages.append(now - _stamp(data, now))
            await self._pictures.send("")

    async def _ask_on(self) -> None:
        """Ask for picture after picture, and read none."""
        while True:
            await self._pictures.send("")
            await asyncio.sleep(0.02)


def _stamp(data: bytes, now: float) -> float:
    """Of a picture, in seconds: its time of the day to a tenth, as the page shows it."""
    clock = data[1 : 1 + data[0]].decode()
    hour, minute, second = clock.split(":")
    day = time.localtime(now)
    told = int(hour) * 3600 + int(minute) * 60 + float(second)
    today = day.tm_hour * 3600 + day.tm_min * 60 + day.tm_sec + now % 1
    return now - (today - told)


async def shares(console: Console, rounds: int) -> dict[str, object]:
    """Processor time of the engine's process by viewers, and the ratios."""
    rows: list[dict[int, float]] = []
    for _ in range(rounds):
        row = dict.fromkeys(VIEWERS, 0.0)
        for count in VIEWERS + VIEWERS[::-1]:
            async with AsyncExitStack() as steps:
                for _ in range(count):
                    await steps.enter_async_context(Viewer(console))
                await asyncio.sleep(SETTLE)
                before, began = used(console.engine), time.monotonic()
                await asyncio.sleep(SECONDS)
                spent = used(console.engine) - before
                row[count] += spent / (time.monotonic() - began) / 2
            await asyncio.sleep(SETTLE)
        rows.append(row)
        print({count: f"{100 * share:.2f} %" for count, share in row.items()}, flush=True)
    return {
        "share_of_a_core": {count: _spread([row[count] for row in rows]) for count in VIEWERS},
        "one_against_none": _spread([row[1] / row[0] for row in rows]),
        "ten_against_one": _spread([row[10] / row[1] for row in rows]),
    }


async def delays(console: Console, rounds: int) -> dict[str, object]:
    """Ages of a viewer's pictures alone, and next to one that reads nothing."""
    ages: dict[str, list[float]] = {"alone": [], "next_to_one_that_reads_nothing": []}
    async with Viewer(console) as viewer:
        for _ in range(rounds):
            for name, kept in ages.items():
                async with AsyncExitStack() as steps:
                    if name != "alone":
                        await steps.enter_async_context(Viewer(console, reads=False))
                    await asyncio.sleep(SETTLE)
                    viewer.ages.clear()
                    await asyncio.sleep(SECONDS)
                    kept += viewer.ages
    told = {name: _ages(kept) for name, kept in ages.items()}
    alone, beside = told.values()
    later = {
        figure: 1e3 * (beside[figure] - alone[figure]) for figure in ("median", "p99", "worst")
    }
    return told | {"later_ms": {name: round(ms, 1) for name, ms in later.items()}}


async def crowd(console: Console) -> dict[str, object]:
    """What the 25th viewer is told, and whether one more is let in once one has left."""
    async with AsyncExitStack() as steps:
        for _ in range(MOST - 1):
            await steps.enter_async_context(Viewer(console))
        async with Viewer(console):
            status, text = await asyncio.to_thread(console.page)
        words = re.sub(r"<[^>]+>", "", text[text.index("<p>") :]).strip()
        await asyncio.sleep(SETTLE)
        after, _ = await asyncio.to_thread(console.page)
    return {"status": status, "words": words, "status_once_one_has_left": after}


def _spread(values: list[float]) -> dict[str, float]:
    low, middle, high = statistics.quantiles(values, n=4)
    return {"median": round(middle, 4), "quartiles": [round(low, 4), round(high, 4)]}


def _ages(values: list[float]) -> dict[str, float]:
    values = sorted(values)
    return {
        "pictures": len(values),
        "median": round(statistics.median(values), 4),
        "p99": round(values[int(0.99 * len(values))], 4),
        "worst": round(values[-1], 4),
    }


async def measure(path: Path, rounds: int) -> dict[str, object]:
    with Console(path) as console:
        async with Viewer(console) as first:  # until the model is there and pictures move
            while len(first.ages) < SECONDS * RATE:
                await asyncio.sleep(0.1)
        results = {"engine_cpu": await shares(console, rounds)}
        results["age_of_pictures_s"] = await delays(console, max(1, rounds // 2))
        results["viewer_25"] = await crowd(console)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    machine = measured_on(av, nicegui)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "film.mp4"
        film(path)
        results = machine | {
            "film": f"{WIDTH}x{HEIGHT}, {RATE} pictures a second, {SECONDS} s over and over",
            **asyncio.run(measure(path, options.rounds)),
        }
    print(json.dumps(results, indent=1))
    if options.out:
        options.out.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()

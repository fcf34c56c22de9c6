# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""What the fuzz scripts share: cases in processes of their own, each in a fresh folder."""

from __future__ import annotations

import argparse
import json
import os
import resource
import select
import shutil
import signal
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from stream_vlm_ros.errors import StreamVlmError

LIMIT = 10.0  # seconds a case may take

Case = dict[str, Any]


def in_its_own_process(work: Callable[[], str], limit: float = LIMIT) -> tuple[str, float, int]:
    """What ``work`` comes to, its seconds, and the memory in bytes that it took at its largest."""
    read, write = os.pipe()
    begin = time.monotonic()
    if (child := os.fork()) == 0:
        os.close(read)
        # It begins with what its parent holds (a whole run of tests, say), but for mapped files.
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        os.write(write, (pages * resource.getpagesize()).to_bytes(8, "little"))
        try:
            outcome = work()
        except StreamVlmError as error:
            outcome = f"in its own words: {type(error).__name__}"
        except BaseException:
            outcome = f"raw: {traceback.format_exc()[-2500:]}"
        os.write(write, outcome.encode(errors="replace")[:4000])
        os._exit(0)
    os.close(write)
    held = _told(read, 8, limit)
    told = None if held is None else _told(read, 4096, limit)
    os.close(read)
    if told is None:
        os.kill(child, signal.SIGKILL)
    _, status, used = os.wait4(child, 0)
    outcome = "hangs" if told is None else told.decode(errors="replace")
    memory = used.ru_maxrss * 1024 - int.from_bytes(held or b"", "little")
    ended = outcome or f"raw: ended by signal {status & 127}"
    return ended, time.monotonic() - begin, max(0, memory)


def _told(pipe: int, size: int, limit: float) -> bytes | None:
    """What came within ``limit`` seconds, b"" at the end; None: nothing."""
    ready, _, _ = select.select([pipe], [], [], limit)
    return os.read(pipe, size) if ready else None


def each_in_a_fresh_folder(
    parent: Path, first_seed: int, count: int, case: Callable[[int, Path], Case]
) -> list[Case]:
    """``count`` cases from ``first_seed`` on; each is given its seed, and an empty folder."""
    found = []
    for seed in range(first_seed, first_seed + count):
        root = parent / "case"
        root.mkdir()
        found.append(case(seed, root))
        shutil.rmtree(root)
    return found


def options_of(description: str | None, count: int) -> argparse.Namespace:
    """``seed`` of the first case, ``count`` of them, and ``out``, a file to write."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--seed", type=int, default=0, help="of the first case")
    parser.add_argument("--count", type=int, default=count)
    return parser.parse_args()


def counted(some: Iterable[str]) -> dict[str, int]:
    """How often each comes, in the order of the alphabet."""
    return dict(sorted(Counter(some).items()))


def tell(result: dict[str, Any], out: Path | None) -> None:
    """Print a result, and write it."""
    text = json.dumps(result, indent=1, ensure_ascii=False)
    print(text)
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text + "\n", encoding="utf-8")

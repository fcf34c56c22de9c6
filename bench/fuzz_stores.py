# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Frame stores damaged by lot: what they do when they are opened, read, added to and opened again.

    python bench/fuzz_stores.py --out bench/results/fuzz_stores.json

Each case is a copy of a store of known frames with one to three mutations drawn from its seed:
bytes changed, files cut, lost, exchanged or replaced by links, pipes and folders, rows removed or
altered. Next to it, and in it, lie files of somebody else's. A process of its own then opens and
uses the store. It must end within ten seconds, by nothing but the package's own errors; every frame
that the store still gives must be one that was put in, with its stamp, its source and every pixel;
and whatever lies outside the store, or in it under a name that is no store's, must be as it was.
"""

from __future__ import annotations

import math
import os
import random
import shutil
import sqlite3
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL

from stream_vlm_ros.history import FrameStore, FrameStoreError, PictureLostError, SmartFrameManager
from stream_vlm_ros.machine import measured_on

sys.path.append(str(Path(__file__).parent))  # tools/run.sh leaves it out
from fuzzing import LIMIT, counted, each_in_a_fresh_folder, in_its_own_process, options_of, tell

MEMORY = 450 * 2**20  # bytes a case may take, beyond what the process had before it
FRAMES = 40
NEWEST = float(FRAMES) / 3


def picture(number: int) -> np.ndarray:
    """The picture of frame ``number``."""
    return np.random.default_rng(number).integers(0, 256, (24, 32, 3), np.uint8)


def make_stores(root: Path) -> list[Path]:
    """A store that was closed, one whose process was killed, and one that has forgotten frames."""
    stores = [root / "closed", root / "killed", root / "forgetful"]
    for folder in stores:
        most = 25 * (4096 + 256) if folder.name == "forgetful" else 2**30
        with FrameStore(folder, form="png", max_bytes=most) as store:
            for k in range(FRAMES):
                store.add(picture(k), k / 3, f"camera {k % 3}", k / 50, k % 9 == 4)
            if folder.name == "killed":
                shutil.copytree(folder, root / "copy")
    shutil.rmtree(root / "killed")
    (root / "copy").rename(root / "killed")
    return stores


def others(root: Path) -> list[Path]:
    """Somebody else's files, with names as a store's have, and some inside the store."""
    store, outside = root / "store", root / "outside"
    shutil.copytree(store, outside / "another")
    group = outside / "pictures" / "000000"
    group.mkdir(parents=True)
    mine = [group / "000000007.png", outside / "index.sqlite", outside / "notes.txt"]
    mine += [store / "notes.txt", store / "pictures" / "mine.png"]
    mine += [store / "pictures" / "000000" / "holiday.jpg", store / "pictures" / "000000" / "7.png"]
    for path in mine:
        path.write_bytes(b"somebody else's " + path.name.encode())
    return [outside, *mine]


def state_of(paths: list[Path]) -> dict[str, Any]:
    """Kind, permissions and content of all that lies at ``paths``; links are not followed."""
    found: dict[str, Any] = {}
    for top in paths:
        for path in [top, *sorted(top.rglob("*"))] if top.is_dir() else [top]:
            if path.is_symlink():
                found[str(path)] = os.readlink(path)
            elif path.is_dir():
                found[str(path)] = "folder", path.stat().st_mode
            elif path.exists():
                found[str(path)] = path.read_bytes(), path.stat().st_mode
    return found


# -- mutations: each gets the store's folder and its own random numbers ---------------------------


def some_file(store: Path, lot: random.Random) -> Path:
    """The index or its log as often as all pictures together."""
    heads = [p for p in store.iterdir() if p.is_file() and p.name != "notes.txt"]
    pictures = [p for p in store.glob("pictures/*/*") if p.is_file() and len(p.stem) == 9]
    new = store / f"x{lot.random()}"  # where nothing is left
    return lot.choice(heads if lot.random() < 0.6 and heads else pictures or heads or [new])


def changed_bytes(store: Path, lot: random.Random) -> None:
    path = some_file(store, lot)
    data = bytearray(path.read_bytes() if path.exists() else b"")
    for _ in range(lot.choice([1, 1, 2, 8, 64])):
        if data:
            data[lot.randrange(len(data))] = lot.randrange(256)
    path.write_bytes(data)


def a_changed_block(store: Path, lot: random.Random) -> None:
    path = some_file(store, lot)
    data = bytearray(path.read_bytes() if path.exists() else b"")
    start = lot.randrange(len(data) + 1)
    fill = lot.choice([bytes(512), lot.randbytes(512), bytes(data[:512])])
    data[start : start + 512] = fill[: len(data[start : start + 512])]
    path.write_bytes(data)


def cut(store: Path, lot: random.Random) -> None:
    path = some_file(store, lot)
    if path.exists():
        os.truncate(path, lot.randrange(path.stat().st_size + 1))


def longer(store: Path, lot: random.Random) -> None:
    with some_file(store, lot).open("ab") as file:
        file.write(lot.randbytes(lot.choice([1, 100, 5000])))


def lost(store: Path, lot: random.Random) -> None:
    some_file(store, lot).unlink(missing_ok=True)


def a_lost_folder(store: Path, lot: random.Random) -> None:
    path = store / lot.choice(["pictures", "pictures/000000"])
    mine = [p for p in path.rglob("*") if p.is_file() and len(p.stem) != 9]
    for kept in [*mine]:  # somebody else's files lie in it: they move out before
        kept.rename(store.parent / "outside" / f"kept {kept.name}")
    shutil.rmtree(path, ignore_errors=True)


def a_link(store: Path, lot: random.Random) -> None:
    """A file or folder of the store's gives way to a link to one of the same form elsewhere."""
    outside = store.parent / "outside"
    path = lot.choice([some_file(store, lot), store / "pictures", store / "pictures" / "000000"])
    to = {
        "pictures": outside / lot.choice(["pictures", "another/pictures"]),
        "000000": outside / lot.choice(["pictures/000000", "another/pictures/000000"]),
    }.get(path.name, outside / "another" / path.relative_to(store))
    if path.is_dir() and not path.is_symlink():
        path.rename(outside / f"kept {path.name} {lot.random()}")
    else:
        path.unlink(missing_ok=True)
    if path.parent.is_dir():
        path.symlink_to(lot.choice([to, to, outside / "nothing"]))


def another_kind(store: Path, lot: random.Random) -> None:
    """A folder or a pipe in the place of a file."""
    path = some_file(store, lot)
    path.unlink(missing_ok=True)
    if path.parent.is_dir():
        lot.choice([os.mkfifo, os.mkdir])(path)


def exchanged(store: Path, lot: random.Random) -> None:
    pictures = sorted(p for p in store.glob("pictures/*/*") if len(p.stem) == 9 and p.is_file())
    if len(pictures) > 1:
        a, b = lot.sample(pictures, 2)
        data = a.read_bytes()
        a.write_bytes(b.read_bytes())
        b.write_bytes(data)


def more_pictures(store: Path, lot: random.Random) -> None:
    group = store / "pictures" / "000000"
    if group.is_dir():
        number = lot.choice([0, 39, 40, 41, 500, 999, 12345])
        name = lot.choice([f"{number:09d}.png", f"{number:09d}.jpg", f"{10**25 + number}.png"])
        if not (group / name).exists():
            (group / name).write_bytes(lot.randbytes(300))


def other_rows(store: Path, lot: random.Random) -> None:
    """What SQLite itself would allow, or what another program has done to the index."""
    number = lot.randrange(FRAMES)
    statements = [
        f"DELETE FROM frames WHERE id = {number}",
        f"DELETE FROM frames WHERE id > {number}",
        "DELETE FROM frames",
        f"UPDATE frames SET id = id + 1000 WHERE id = {number}",
        f"UPDATE frames SET id = {2**62} WHERE id = {number}",
        f"UPDATE frames SET stamp = stamp + 0.25 WHERE id = {number}",
        f"UPDATE frames SET stamp = 'soon' WHERE id = {number}",
        f"UPDATE frames SET stamp = 9e999 WHERE id = {number}",
        f"UPDATE frames SET source = x'ff00fe' WHERE id = {number}",
        f"UPDATE frames SET source = 'elsewhere' WHERE id = {number}",
        f"UPDATE frames SET width = 1000000000, height = 1 WHERE id = {number}",
        f"UPDATE frames SET suffix = '../../outside/x' WHERE id = {number}",
        f"UPDATE frames SET size = -1 WHERE id = {number}",
        f"UPDATE frames SET picture_sum = NULL WHERE id = {number}",
        "DROP INDEX frames_by_stamp",
        "DROP TABLE frames",
        "CREATE TABLE more (x)",
        "CREATE TRIGGER t AFTER DELETE ON frames BEGIN DELETE FROM frames; END",
        f"PRAGMA user_version = {lot.choice([0, 1, 3, 99])}",
        "PRAGMA journal_mode = DELETE",
        "VACUUM",
    ]
    index = store / "index.sqlite"
    if not index.is_file() or index.is_symlink():
        return
    try:
        db = sqlite3.connect(index, isolation_level=None)
        try:
            db.execute(lot.choice(statements)).fetchall()
        finally:
            db.close()
    except sqlite3.Error:
        pass  # an earlier mutation has left no database


MUTATIONS: list[Callable[[Path, random.Random], None]] = [
    changed_bytes, changed_bytes, a_changed_block, cut, longer, lost, a_lost_folder, a_link,
    another_kind, exchanged, more_pictures, other_rows, other_rows,
]  # fmt: skip


# -- one case ------------------------------------------------------------------------------------


def use(folder: Path) -> str:
    """Open the store, check what it gives, add to it, and open it again: what came of it."""
    try:
        store = FrameStore(folder, form="png")
    except FrameStoreError:
        return "refused"
    with store:
        kept = store.newest(10**6)
        assert len(kept) == len(store)
        lost = 0
        for frame in kept:
            k = frame.id
            assert (frame.stamp, frame.source, frame.importance) == (
                k / 3,
                f"camera {k % 3}",
                k / 50,
            )
            assert (frame.width, frame.height, frame.suffix) == (32, 24, "png")
            try:
                np.testing.assert_array_equal(store.load(frame), picture(k))
            except PictureLostError:
                lost += 1
                store.forget(frame)
        memory = SmartFrameManager(store, target_fps=0, max_time_gap=math.inf)
        memory.select(8)
        there = len(store)
        try:
            for k in range(3):
                added = memory.add(picture(1000 + k), NEWEST + 1 + k, "new")
                assert added is not None
                np.testing.assert_array_equal(store.load(added), picture(1000 + k))
            there += 3
        except FrameStoreError:
            return "opened, and refused a frame"
        memory.select(8)
    with FrameStore(folder) as store:
        assert len(store) == there
    return "whole" if len(kept) >= 25 and not lost else "opened without some frames"


def case(seed: int, stores: list[Path], root: Path) -> dict[str, Any]:
    """One damaged store: its mutations, and what came of it."""
    lot = random.Random(seed)
    shutil.copytree(lot.choice(stores), root / "store", symlinks=True)
    mine = others(root)
    drawn = [lot.choice(MUTATIONS) for _ in range(lot.choice([1, 1, 2, 3]))]
    for mutate in drawn:
        mutate(root / "store", lot)
    mine = [path for path in mine if os.path.lexists(path)]
    before = state_of(mine)
    outcome, seconds, memory = in_its_own_process(lambda: use(root / "store"), LIMIT)
    touched = state_of(mine) != before
    return {
        "seed": seed,
        "mutations": [mutate.__name__ for mutate in drawn],
        "outcome": outcome,
        "seconds": round(seconds, 3),
        "memory": memory,
        "touched": touched,
    }


def is_wrong(found: dict[str, Any]) -> bool:
    """Whether a case broke one of the rules."""
    bad = found["outcome"].startswith("raw") or found["outcome"] == "hangs"
    return bad or found["touched"] or found["memory"] > MEMORY


def fuzz(first_seed: int, count: int) -> list[dict[str, Any]]:
    """``count`` cases from ``first_seed`` on."""
    with tempfile.TemporaryDirectory(prefix="fuzz_stores_") as folder:
        stores = make_stores(Path(folder))
        return each_in_a_fresh_folder(
            Path(folder), first_seed, count, lambda seed, root: case(seed, stores, root)
        )


def main() -> int:
    options = options_of(__doc__, 500)
    found = fuzz(options.seed, options.count)
    wrong = [one for one in found if is_wrong(one)]
    result = {
        **measured_on(np, PIL),
        "sqlite": sqlite3.sqlite_version,
        "command": f"python bench/fuzz_stores.py --seed {options.seed} --count {options.count}",
        "first_seed": options.seed,
        "cases": len(found),
        "outcomes": counted(one["outcome"][:60] for one in found),
        "mutations": counted(m for one in found for m in one["mutations"]),
        "slowest_s": max(one["seconds"] for one in found),
        "most_memory_mb": round(max(one["memory"] for one in found) / 2**20),
        "touched_outside": sum(one["touched"] for one in found),
        "wrong": wrong,
    }
    tell(result, options.out)
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())

# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""The files that Fast DDS keeps in /dev/shm while a participant lives."""

import os
from pathlib import Path

FOLDER = Path("/dev/shm")


def files():
    """All that are there, by their names."""
    names = (path.name for path in FOLDER.iterdir())
    return {name for name in names if name.removeprefix("sem.").startswith(("fastrtps", "fastdds"))}


def held_by(pid):
    """Those that a process has mapped or open."""
    process = Path("/proc") / str(pid)
    held = set()
    try:
        for line in (process / "maps").read_text().splitlines():
            held.add(line.rpartition("/dev/shm/")[2])
        for link in (process / "fd").iterdir():
            held.add(os.readlink(link).rpartition("/dev/shm/")[2])
    except OSError:  # it ended, or a file was closed meanwhile
        pass
    return held & files()


def orphans(names):
    """Those of ``names`` that are there though no process holds them: somebody left them behind."""
    there = names & files()
    if there:
        for path in Path("/proc").glob("[0-9]*"):
            there -= held_by(path.name)
    return there & files()  # not those whose owner has just put them away

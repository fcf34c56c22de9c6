# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""What is ours is proved by a mark; a file is whole at any moment."""

import fcntl
import os
import resource
import stat
import subprocess
from pathlib import Path

import pytest
from scripts import started

from stream_vlm_ros import owned
from stream_vlm_ros.errors import InvalidParameterError


def test_a_folder_is_of_the_kind_that_its_mark_says(tmp_path):
    assert owned.kind_of(tmp_path) is None
    owned.mark(tmp_path, "report")
    assert owned.kind_of(tmp_path) == "report"
    owned.check(tmp_path, "report")
    with pytest.raises(owned.NotOursError):
        owned.check(tmp_path, "frame store")


def test_an_empty_name_is_not_the_working_folder():
    with pytest.raises(InvalidParameterError, match=r"^--out is empty: name a folder"):
        owned.place_to_write("--out", "")
    assert owned.place_to_write("--out", ".") == Path(".")


@pytest.mark.parametrize("what", ["link", "pipe", "folder", "other words", "no text"])
def test_a_mark_that_is_no_mark_proves_nothing(tmp_path, what):
    mark = tmp_path / owned.MARK
    if what == "link":
        (tmp_path / "other").mkdir()
        owned.mark(tmp_path / "other", "report")
        mark.symlink_to(tmp_path / "other" / owned.MARK)
    elif what == "pipe":
        os.mkfifo(mark)
    elif what == "folder":
        mark.mkdir()
    else:
        mark.write_bytes({"other words": b"hello\n", "no text": b"\xff\x00" * 9999}[what])
    assert owned.kind_of(tmp_path) is None


def test_a_tree_of_ours_is_removed_and_links_in_it_are_not_followed(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes").touch()
    ours = tmp_path / "ours"
    (ours / "deep").mkdir(parents=True)
    (ours / "link").symlink_to(tmp_path / "mine")
    (ours / "deep" / "link").symlink_to(tmp_path / "mine")
    with pytest.raises(owned.NotOursError):
        owned.remove_tree(ours, "bag")
    assert (ours / "deep").exists()
    owned.mark(ours, "bag")
    (tmp_path / "to ours").symlink_to(ours)
    with pytest.raises(owned.NotOursError):
        owned.remove_tree(tmp_path / "to ours", "bag")
    owned.remove_tree(ours, "bag")
    assert not ours.exists() and (tmp_path / "mine" / "notes").exists()


def test_a_mark_that_was_not_finished_is_finished(tmp_path):
    (tmp_path / owned.MARK).touch()
    owned.check(tmp_path, "report")
    with owned.held(tmp_path, "report"):
        assert owned.kind_of(tmp_path) == "report"


HOLD = """
import sys
from pathlib import Path
from stream_vlm_ros import owned

print("ready", flush=True)
for folder in map(str.strip, sys.stdin):
    try:
        with owned.held(Path(folder), "report"):
            print("held", flush=True)
            next(sys.stdin)  # until the other has tried, too
    except owned.NotOursError:
        print("refused", flush=True)
        next(sys.stdin)
"""


def test_of_two_processes_that_begin_at_once_one_gets_the_folder(tmp_path):
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "bufsize": 1}
    with started(HOLD, **pipes) as one, started(HOLD, **pipes) as other:
        both = one, other
        assert [process.stdout.readline() for process in both] == ["ready\n"] * 2
        for number in range(30):
            for process in both:
                process.stdin.write(f"{tmp_path / str(number)}\n")
            found = sorted(process.stdout.readline() for process in both)
            assert found == ["held\n", "refused\n"]
            for process in both:
                process.stdin.write("go on\n")


def test_what_may_be_lost_with_the_machine_waits_for_no_disk(tmp_path, monkeypatch):
    waited = []
    monkeypatch.setattr(os, "fsync", waited.append)
    owned.write_whole(tmp_path / "file", b"new", durable=False)
    assert (tmp_path / "file").read_bytes() == b"new" and waited == []
    owned.write_whole(tmp_path / "file", b"newer")
    assert len(waited) == 2  # the file, and its name in the folder


def test_a_file_that_cannot_be_written_leaves_the_one_of_before(tmp_path):
    path = tmp_path / "file"
    owned.write_whole(path, b"before")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        with pytest.raises(OSError, match="too large"):
            owned.write_whole(path, b"x" * 1000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == b"before"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_file_is_written_in_the_place_of_a_link_not_through_it(tmp_path):
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "file").symlink_to(tmp_path / "mine")
    owned.write_whole(tmp_path / "file", b"new", 0o600)
    assert (tmp_path / "mine").read_text() == "mine"
    assert (tmp_path / "file").read_bytes() == b"new"
    assert stat.S_IMODE((tmp_path / "file").lstat().st_mode) == 0o600


def test_a_file_is_written_of_pieces_that_come_one_after_the_other(tmp_path):
    path, seen = tmp_path / "file", []

    def pieces():
        for piece in (b"a" * 70_000, memoryview(b"b"), b""):
            seen.append([name.suffix for name in tmp_path.iterdir()])
            yield piece

    owned.write_whole(path, pieces(), mode=0o600)
    assert path.read_bytes() == b"a" * 70_000 + b"b"
    assert seen == [[".part"]] * 3  # nothing bears the name until all is there
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_piece_that_fails_leaves_the_file_of_before(tmp_path):
    def pieces():
        yield b"new"
        raise KeyboardInterrupt

    owned.write_whole(tmp_path / "file", b"before")
    with pytest.raises(KeyboardInterrupt):
        owned.write_whole(tmp_path / "file", pieces())
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("file", b"before")]


def test_a_part_that_was_taken_away_before_it_was_locked_is_made_again(tmp_path, monkeypatch):
    """Another process tidies up between the making of a part and its lock."""
    path, real, taken = tmp_path / "file", fcntl.flock, []

    def lock(file, how):
        if not taken:
            taken.append(True)
            owned.remove_parts(path)
            assert os.listdir(tmp_path) == []
        real(file, how)

    monkeypatch.setattr(fcntl, "flock", lock)
    owned.write_whole(path, b"all")
    assert taken and path.read_bytes() == b"all"
    assert os.listdir(tmp_path) == ["file"]


def test_a_file_whose_name_has_as_many_bytes_as_a_name_may_have_is_written(tmp_path):
    path = tmp_path / ("\u8a18" * 85)
    owned.write_whole(path, b"all")
    assert path.read_bytes() == b"all"


def test_parts_of_killed_processes_are_removed_and_none_that_is_being_written(tmp_path):
    path, left = tmp_path / "file", tmp_path / ".file.00c0ffee.part"
    left.write_bytes(b"half")
    others = [tmp_path / name for name in (".file.part", ".file2.00c0ffee.part", "file.part")]
    for other in others:
        other.write_bytes(b"not ours")
    link = tmp_path / ".file.0badf00d.part"
    link.symlink_to(others[0])

    def pieces():
        yield b"a"
        (own,) = set(tmp_path.iterdir()) - {left, link, *others}
        owned.remove_parts(path)
        assert own.exists() and not left.exists()
        yield b"b"

    owned.write_whole(path, pieces())
    assert path.read_bytes() == b"ab"
    assert link.is_symlink() and all(other.exists() for other in others)

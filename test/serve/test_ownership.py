# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""A session's saved memory belongs to one server at a time."""

import errno
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from stream_vlm_ros.errors import MemoryFileError
from stream_vlm_ros.serve import ownership
from stream_vlm_ros.serve.ownership import Ownership, SessionElsewhereError, lock_of

HOLD = """
import sys, time, pathlib
from stream_vlm_ros.serve.ownership import Ownership
owned = Ownership(pathlib.Path(sys.argv[1]), "replica one")
print("has it", flush=True)
time.sleep(600)
"""


@pytest.fixture
def other(tmp_path):
    """Another server that has the session."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "front.safetensors")],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "has it\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_session_that_another_server_has_is_refused_in_words(tmp_path, other):
    with pytest.raises(SessionElsewhereError, match=r"replica one has this session \(front"):
        Ownership(tmp_path / "front.safetensors", patience=0.2)


def test_another_session_in_the_same_folder_is_free(tmp_path, other):
    Ownership(tmp_path / "rear.safetensors", patience=0.2).release(saved=True)


def test_a_server_that_is_killed_leaves_its_session_at_once_and_is_named(tmp_path, other):
    other.send_signal(signal.SIGKILL)
    begin = time.monotonic()
    taken = Ownership(tmp_path / "front.safetensors", "replica two")
    assert time.monotonic() - begin < 5.0
    assert taken.before == "replica one"
    taken.release(saved=True)


def test_who_has_saved_all_leaves_nothing_to_tell(tmp_path):
    path = tmp_path / "new" / "front.safetensors"
    first = Ownership(path, "replica one")
    assert first.before == ""
    first.release(saved=True)
    second = Ownership(path, "replica two")
    assert second.before == ""
    second.release(saved=False)
    assert Ownership(path, "replica three").before == "replica two"


def test_who_waits_gets_it_as_soon_as_it_is_let_go(tmp_path):
    path = tmp_path / "front.safetensors"
    first = Ownership(path, "replica one")
    threading.Timer(0.3, first.release, kwargs={"saved": True}).start()
    assert Ownership(path, "replica two", patience=30.0).before == ""


def test_a_link_in_the_place_of_the_lock_is_not_followed(tmp_path):
    kept = tmp_path / "somebody's"
    kept.write_text("words")
    (tmp_path / "front.safetensors.server").symlink_to(kept)
    with pytest.raises(MemoryFileError, match="symbolic links"):
        Ownership(tmp_path / "front.safetensors")
    assert kept.read_text() == "words"


def test_a_folder_that_cannot_be_written_is_refused_in_words(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(MemoryFileError, match="cannot be written or locked: Not a directory"):
        Ownership(tmp_path / "file" / "key" / "front.safetensors")


def test_a_full_disk_keeps_no_locks_of_sessions_that_could_not_begin(tmp_path, monkeypatch):
    def full(file, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(ownership, "write_all", full)
    new, saved = tmp_path / "new.safetensors", tmp_path / "saved.safetensors"
    saved.touch()
    for path in (new, saved):
        with pytest.raises(MemoryFileError, match="No space left"):
            Ownership(path)
    assert not lock_of(new).exists() and lock_of(saved).exists()
    monkeypatch.undo()
    for path in (new, saved):
        assert Ownership(path).before == ""


def test_a_full_disk_forgets_no_server_that_was_killed(tmp_path, monkeypatch):
    def full(file, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    path = tmp_path / "front.safetensors"
    path.touch()
    Ownership(path, "replica number one").release(saved=False)  # as one that is killed leaves it
    monkeypatch.setattr(ownership, "write_all", full)
    with pytest.raises(MemoryFileError, match="No space left"):
        Ownership(path, "replica two")
    monkeypatch.undo()
    second = Ownership(path, "replica two")
    assert second.before == "replica number one"
    second.release(saved=False)
    assert Ownership(path).before == "replica two"  # and nothing of the longer name


def test_of_a_session_that_is_forgotten_nothing_stays_and_the_next_one_is_new(tmp_path):
    path = tmp_path / "front.safetensors"
    first = Ownership(path, "replica one")
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(Ownership, path, "replica two", 30.0)
        time.sleep(0.2)
        first.release(saved=False, forget=True)
        second = waiting.result()
    assert second.before == ""
    with pytest.raises(SessionElsewhereError, match="replica two"):
        Ownership(path, patience=0.1)
    second.release(saved=False, forget=True)
    assert list(tmp_path.iterdir()) == []

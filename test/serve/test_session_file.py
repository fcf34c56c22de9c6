# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""What lies next to a session's saved memory says how far frames were accepted."""

import os
import threading

import pytest
from patience import PATIENCE, wait_until

from stream_vlm_ros.config import Settings
from stream_vlm_ros.serve import session_file
from stream_vlm_ros.serve.events import Sent
from stream_vlm_ros.serve.notes import NoteWriter
from stream_vlm_ros.serve.ownership import Ownership, SessionElsewhereError
from stream_vlm_ros.serve.session_file import NOTE, SessionFile


@pytest.fixture
def file(tmp_path):
    """Of a session called front, which this server has."""
    made = SessionFile(Settings(memory_folder=str(tmp_path / "key"), memory_name="front"), "one")
    made.own()
    yield made
    if (ownership := made.disown()) is not None:
        made.release(ownership)


@pytest.fixture
def note(file):
    return file.path.with_name(file.path.name + NOTE)


def test_what_was_noted_is_read_and_nobody_else_may(file, note):
    assert file.noted() is None
    file.note(None)
    assert not note.exists()
    file.note(Sent(7, 123))
    wait_until(note.exists)
    assert (file.noted().accepted_ns, file.noted().accepted_sequence) == (123, 7)
    assert note.stat().st_mode & 0o077 == 0
    assert {one.name for one in note.parent.iterdir()} == {note.name, "front.safetensors.server"}


@pytest.mark.parametrize("place", ["{note}", "{note}.{pid}"])
def test_no_link_is_followed_when_it_is_noted(file, note, tmp_path, place):
    kept = tmp_path / "somebody's"
    kept.write_text("words")
    os.symlink(kept, place.format(note=note, pid=os.getpid()))
    file.note(Sent(7, 123))
    wait_until(lambda: note.is_file() and not note.is_symlink())
    assert kept.read_text() == "words"
    assert file.noted().accepted_ns == 123


def test_what_is_no_plain_file_is_not_read(file, note, tmp_path):
    kept = tmp_path / "somebody's"
    kept.write_text('{"accepted_ns": 5, "accepted_sequence": 1}')
    note.symlink_to(kept)
    assert file.noted() is None
    note.unlink()
    os.mkfifo(note)  # which has no other end
    assert file.noted() is None
    note.unlink()
    note.write_text("no JSON")
    assert file.noted() is None


def test_what_a_killed_process_has_left_of_a_note_is_removed(file, note):
    file.note(Sent(7, 123))
    wait_until(note.exists)
    left = note.with_name(f".{note.name}.0123abcd.part")
    left.write_text("half of")
    assert file.noted().accepted_ns == 123 and not left.exists()


def test_who_owns_it_no_more_notes_nothing(file, note):
    file.release(file.disown())
    file.note(Sent(7, 123))
    assert not note.exists()


class StuckDisk:
    """Takes no note before ``go_on`` is set.

    Attributes:
        writing: set once it has been given one.
    """

    def __init__(self, monkeypatch):
        self.writing, self.go_on = threading.Event(), threading.Event()
        self._write = session_file.write_whole
        monkeypatch.setattr(session_file, "write_whole", self)

    def __call__(self, *given, **named):
        self.writing.set()
        assert self.go_on.wait(PATIENCE)
        self._write(*given, **named)


@pytest.fixture
def stuck(file, monkeypatch):
    disk = StuckDisk(monkeypatch)
    yield disk
    disk.go_on.set()


def test_while_the_disk_is_stuck_nobody_who_notes_waits_and_the_newest_is_written(
    file, note, stuck
):
    file.note(Sent(7, 123))
    assert stuck.writing.wait(PATIENCE)
    file.note(Sent(8, 124))
    file.note(Sent(9, 125))
    assert not note.exists()
    stuck.go_on.set()
    wait_until(lambda: note.exists() and file.noted().accepted_ns == 125)


def test_of_many_sessions_one_thread_waits_for_a_disk_that_is_stuck(file, note, stuck, tmp_path):
    notes, files = NoteWriter(), []
    for name in "abcdef":
        settings = Settings(memory_folder=str(tmp_path), memory_name=name)
        files.append(SessionFile(settings, "one", notes=notes))
        files[-1].own()
    before = threading.active_count()
    for stamp_ns in (123, 124):
        for one in files:
            one.note(Sent(7, stamp_ns))
        assert stuck.writing.wait(PATIENCE)
    assert threading.active_count() == before + 1
    stuck.go_on.set()
    wait_until(lambda: all((told := one.noted()) and told.accepted_ns == 124 for one in files))
    for one in files:
        one.release(one.disown())


def test_who_lets_its_file_go_writes_what_no_thread_could_be_started_to_note(
    file, note, monkeypatch
):
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", raise_runtime_error)
        file.note(Sent(7, 123))
    assert not note.exists()
    file.release(file.disown())
    assert file.noted().accepted_ns == 123


def raise_runtime_error(*given):
    raise RuntimeError("can't start new thread")


@pytest.mark.parametrize("forget", [False, True])
def test_nobody_else_has_it_before_what_is_being_noted_is_written(file, note, stuck, forget):
    file.path.touch()  # something is saved
    file.note(Sent(7, 123))
    assert stuck.writing.wait(PATIENCE)
    ownership = file.disown()
    releasing = threading.Thread(target=file.release, args=(ownership,), kwargs={"forget": forget})
    releasing.start()
    with pytest.raises(SessionElsewhereError):
        Ownership(file.path, patience=0.1)
    stuck.go_on.set()
    releasing.join(PATIENCE)
    assert note.exists() == file.path.exists() == (not forget)
    Ownership(file.path).release(saved=True)


def test_of_an_emptied_memory_no_note_stays_and_what_is_accepted_behind_it_is_noted(file, note):
    file.note(Sent(7, 123))
    wait_until(note.exists)
    file.forget_note(Sent(7, 123))
    assert not note.exists()
    file.note(Sent(8, 124))
    wait_until(note.exists)
    assert file.noted().accepted_ns == 124


def test_without_a_folder_there_is_no_file():
    nowhere = SessionFile(Settings(memory_folder=""))
    nowhere.own()
    nowhere.note(Sent(7, 123))
    assert nowhere.path is None and not nowhere.is_there and nowhere.disown() is None
    assert nowhere.without_folder("words") == "words"

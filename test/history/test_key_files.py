# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Keys in a folder outlive the process, however it ends, and nothing else is harmed."""

import errno
import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from contextlib import nullcontext, suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from amounts import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from key_streams import DIM, HEADS, Stream, change, drawn, grid_bytes, index, scores_of

from stream_vlm_ros.engine.cache.mrope import VisionSpan
from stream_vlm_ros.errors import FrameStoreError
from stream_vlm_ros.history.index import NEW_STREAM

OF = [1, 0, 2]
QUERIES = drawn(9, 3, 2, DIM)


def grids_of(one, held):
    found = one.search(held, QUERIES, OF)
    return list(zip(found.serials.tolist(), found.stamps.tolist(), strict=True)), found.scores


def watched(one, chunks, stream=None, sizes=(3, 3)):
    """What an index holds after so many chunks more, and the keys of each grid by its stamp."""
    stream, held, keys = stream or Stream(), one.empty(), {}
    for _ in range(chunks):
        told, own = stream.chunk(*sizes)
        held = one.draft(held, told)
        keys |= {stamps[0]: grid for stamps, grid in own}
    return held, keys


def segments(folder):
    return sorted(Path(folder).glob("*.keys"))


# -- from process to process -------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_folder_outlives_the_process_and_the_stream_begins_anew(tmp_path, dtype):
    options = {"folder": tmp_path / "keys", "dtype": dtype, "max_bytes": 40 * grid_bytes()}
    one, stream = index(**options), Stream()
    held, _ = watched(one, 70, stream)
    told, _ = stream.chunk(0, 9, whole=9)
    held = one.draft(held, told)
    grids, scores = grids_of(one, held)
    one.close()
    two = index(**options)
    held = two.empty()
    assert (held.oldest, held.newest) == (100.0, 241.5)
    again = grids_of(two, held)
    assert again[0] == grids and torch.equal(again[1], scores)
    held = two.draft(held, stream.chunk(3, 3)[0])
    new = grids_of(two, held)[0][-2:]
    assert [serial for serial, _ in new] == [142 + NEW_STREAM, 143 + NEW_STREAM]
    assert two.nbytes <= two.max_bytes
    two.close()


def test_a_memory_that_is_cleared_begins_with_what_the_folder_held(tmp_path):
    one = index(folder=tmp_path)
    held, _ = watched(one, 3)
    grids, _ = grids_of(one, held)
    one.close()
    one, stream = index(folder=tmp_path), Stream(1, start=500.0)
    held, _ = watched(one, 4, stream)
    assert len(grids_of(one, held)[0]) == 6 + 8
    again = one.empty()
    assert grids_of(one, again)[0] == grids
    held = one.draft(again, stream.chunk(3)[0])
    # Two streams have begun since.
    assert grids_of(one, held)[0][-1][0] == 6 + NEW_STREAM + 8 + NEW_STREAM
    assert grids_of(one, one.clear())[0] == grids_of(one, one.empty())[0] == []
    one.close()


@pytest.mark.parametrize("room", [3, 17, 40])
def test_a_smaller_bound_leaves_out_what_it_has_no_room_for(tmp_path, room):
    one = index(folder=tmp_path, max_bytes=64 * grid_bytes())
    held, keys = watched(one, 30)
    held = one.draft(held, Stream(2, start=300.0).chunk(9)[0])
    one.close()
    one = index(folder=tmp_path, max_bytes=room * 2 * grid_bytes())
    held = one.empty()
    assert one.nbytes <= one.max_bytes and held.newest == 300.5
    kept = sum(file.stat().st_size for file in segments(tmp_path))
    one.close()
    assert kept <= one.max_bytes + 4096 * len(segments(tmp_path))
    one = index(folder=tmp_path, max_bytes=room * 2 * grid_bytes())
    found, _ = grids_of(one, one.empty())
    # One after the other up to the newest, each with its own keys.
    assert [stamps[1] + 0.5 for _, stamps in found[:-2]] == [stamps[0] for _, stamps in found[1:-1]]
    _check_keys(one, one.empty(), keys | {300.0: None})
    one.close()


def test_a_larger_bound_gives_more_room_to_what_there_is(tmp_path):
    one = index(folder=tmp_path, max_bytes=16 * grid_bytes())
    held, _ = watched(one, 8)
    grids, _ = grids_of(one, held)
    one.close()
    one = index(folder=tmp_path, max_bytes=100 * grid_bytes())
    assert grids_of(one, one.empty())[0] == grids
    held, _ = watched(one, 40, Stream(1, start=900.0))
    assert held.grids == len(grids) + 80 and one.nbytes <= one.max_bytes
    one.close()


def _check_keys(one, held, keys):
    """Each grid that is found has the scores of its own keys, up to one number a head."""
    found = one.search(held, QUERIES, OF)
    known = [
        (number, keys[first])
        for number, first in enumerate(found.stamps[:, 0].tolist())
        if keys[first] is not None
    ]
    wanted = scores_of([own for _, own in known], [1] * len(known), QUERIES, OF)
    scores = found.scores[:, [number for number, _ in known]]
    if known:
        torch.testing.assert_close(
            scores - scores[:, :1], wanted - wanted[:, :1], rtol=1e-3, atol=1e-3
        )


# -- killed at any moment ----------------------------------------------------------------------


class Killed(BaseException):
    pass


def killed_after(writes):
    """A stand-in for `os.pwrite` that ends all in the middle of the call of this number."""
    write, left = os.pwrite, [writes]

    def pwrite(file, data, at):
        left[0] -= 1
        if left[0] > 0:
            return write(file, data, at)
        if not left[0]:
            # The kernel looks for a signal between pages.
            write(file, data[: len(data) // 2 // 4096 * 4096], at)
        raise Killed

    return pwrite


@settings(max_examples=examples(50))
@given(data=st.data())
def test_whenever_it_is_killed_every_grid_whose_append_returned_is_there(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("killed")
    room = data.draw(st.sampled_from([12, 30, 1000]), "room")
    one, stream = index(folder=folder, max_bytes=room * grid_bytes()), Stream()
    held, keys = watched(one, data.draw(st.integers(0, 20), "chunks before"), stream)
    older, last, forgotten = held, dict(grids_of(one, held)[0]), None
    with pytest.MonkeyPatch.context() as patch, suppress(Killed):
        patch.setattr(os, "pwrite", killed_after(data.draw(st.integers(1, 60), "writes")))
        for _ in range(8):
            what = data.draw(st.sampled_from(["append", "append", "restore", "forget"]))
            if what == "forget":
                forgotten = (stream.now - 9.0, stream.now - 5.0)
                held = one.forget(held, *forgotten)
            elif what == "restore":
                held = older
            else:
                sizes = st.lists(st.sampled_from([0, 2, 3, 5]), min_size=1, max_size=4)
                told, own = stream.chunk(*data.draw(sizes), whole=6)
                keys |= {stamps[0]: grid for stamps, grid in own}
                held = one.draft(held, told)
            last = dict(grids_of(one, held)[0])
    one.close()
    one = index(folder=folder, max_bytes=room * grid_bytes())
    found, _ = grids_of(one, one.empty())
    _check_keys(one, one.empty(), keys)
    # What was held is there, or another stands for it; or it was being forgotten.
    for first, stop in last.values():
        whole = any(a <= first and stop <= b for _, (a, b) in found)
        assert whole or (forgotten and first <= forgotten[1] and stop >= forgotten[0])
    one.close()
    shutil.rmtree(folder)


CHILD = """
import sys
from key_streams import Stream, grid_bytes, index
one, stream = index(folder=sys.argv[1], max_bytes=60 * grid_bytes()), Stream()
held = one.empty()
while True:
    told, grids = stream.chunk(3, 3)
    held = one.draft(held, told)
    print(grids[-1][0][1], flush=True)
"""


@pytest.mark.parametrize("chunks", [1, 20, 211])
def test_a_process_that_is_killed_leaves_all_that_it_said(tmp_path, chunks):
    paths = os.pathsep.join(sys.path)
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, tmp_path],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
    )
    for _ in range(chunks):
        said = float(child.stdout.readline())
    child.send_signal(signal.SIGKILL)
    for line in child.stdout:
        said = float(line)
    child.wait()
    one = index(folder=tmp_path, max_bytes=60 * grid_bytes())
    found, _ = grids_of(one, one.empty())
    ends = [stamps[1] for _, stamps in found]
    assert found[0][1][0] == 100.0 and ends[-1] >= said
    assert [end + 0.5 for end in ends[:-1]] == [stamps[0] for _, stamps in found[1:]]
    stream, keys = Stream(), {}
    while stream.now < ends[-1] + 2:
        keys |= {stamps[0]: grid for stamps, grid in stream.chunk(3, 3)[1]}
    _check_keys(one, one.empty(), keys)
    one.close()


def test_written_behind_a_killed_process_loses_the_last_chunk_alone(tmp_path, monkeypatch):
    one, stream = index(folder=tmp_path / "one", write_behind=True), Stream()
    held, _ = watched(one, 4, stream)
    assert len(grids_of(one, held)[0]) == 8  # a search waits for what is being written
    write, disk = os.pwrite, threading.Event()

    def pwrite(*arguments):
        assert disk.wait(30)
        return write(*arguments)

    monkeypatch.setattr(os, "pwrite", pwrite)
    one.draft(held, stream.chunk(3, 3)[0])  # nobody waits for the disk
    shutil.copytree(tmp_path / "one", tmp_path / "killed")
    disk.set()
    with index(folder=tmp_path / "killed") as late:
        assert late.empty().newest == 107.5
    one.close()
    with index(folder=tmp_path / "one") as one:
        assert one.empty().newest == 109.5


# -- a full disk, and damage -------------------------------------------------------------------


def no_room(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@settings(max_examples=examples(20))
@given(calls=st.integers(0, 30), chunks=st.integers(0, 12), behind=st.booleans())
def test_a_full_disk_is_said_and_what_was_held_stays(tmp_path_factory, calls, chunks, behind):
    folder = tmp_path_factory.mktemp("full")
    one = index(folder=folder, max_bytes=30 * grid_bytes(), write_behind=behind)
    stream = Stream()
    held, keys = watched(one, chunks, stream)
    write, left = os.pwrite, [calls]

    def pwrite(file, data, at):
        left[0] -= 1
        return write(file, data, at) if left[0] >= 0 else no_room()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "pwrite", pwrite)
        for _ in range(8):
            told, own = stream.chunk(3, 2, whole=3)
            keys |= {stamps[0]: grid for stamps, grid in own}
            before = held
            try:
                held = one.draft(held, told)
            except FrameStoreError as error:
                assert "No space left on device. Make room" in str(error)
                assert str(folder) in str(error)
            _check_keys(one, held, keys)
            if held is before and not behind:
                assert len(grids_of(one, held)[0]) >= held.grids - 4
    # There is room again; but nobody was told yet of a chunk that was to be written behind.
    with suppress(FrameStoreError) if behind else nullcontext():
        held = one.draft(held, stream.chunk(0)[0])
    for _ in range(3):
        told, own = stream.chunk(3, 3)
        keys |= {stamps[0]: grid for stamps, grid in own}
        held = one.draft(held, told)
    grids, _ = grids_of(one, held)
    assert grids[-1][1][1] == stream.now - 0.5
    _check_keys(one, held, keys)
    one.close()
    one = index(folder=folder, max_bytes=30 * grid_bytes())
    assert grids_of(one, one.empty())[0] == grids
    _check_keys(one, one.empty(), keys)
    one.close()
    shutil.rmtree(folder)


DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    ),
]


@pytest.mark.parametrize("device", DEVICES)
def test_no_grid_ever_has_the_keys_of_another_whatever_the_thread_could_not_write(
    tmp_path, monkeypatch, device
):
    """Of a full index, so that slots are used again."""
    options = dict(folder=tmp_path, max_bytes=64 * grid_bytes(3), device=device)
    one, stream = index(**options, write_behind=True), Stream(device=device)
    held, keys = one.empty(), {}

    def draft(held):
        told, own = stream.chunk(3)
        keys.update({stamps[0]: grid for stamps, grid in own})
        with suppress(FrameStoreError):  # of the chunk before
            held = one.draft(held, told)
        return held

    for _ in range(100):
        held = draft(held)
    one.search(held, QUERIES.to(device), OF)
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", no_room)
        held = draft(held)
        one.close()
    one = index(**options, write_behind=True)
    held = one.empty()
    for _ in range(3):
        held = draft(held)
    one.close()
    one = index(folder=tmp_path, max_bytes=64 * grid_bytes(3))
    _check_keys(one, one.empty(), keys)
    one.close()


def test_a_time_is_forgotten_though_the_thread_has_a_fault_to_tell(tmp_path, monkeypatch):
    one, stream = index(folder=tmp_path, write_behind=True), Stream()
    held, _ = watched(one, 8, stream)
    assert len(grids_of(one, held)[0]) == 16
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", no_room)
        held = one.draft(held, stream.chunk(3)[0])
        grids_of(one, held)  # waits for the thread
    held = one.forget(held, 104.0, 109.5)
    stamps = [found[0] for _, found in grids_of(one, held)[0]]
    assert stamps == [100.0, 101.0, 102.0, 103.0, *map(float, range(110, 116))]
    with pytest.raises(FrameStoreError):
        one.draft(held, stream.chunk(3)[0])
    one.close()


def begun(one, held):
    """When the grids began whose keys are found; the last may stand for some that have none."""
    return [stamps[0] for _, stamps in grids_of(one, held)[0]]


@pytest.mark.parametrize("fault", [MemoryError(), OSError(errno.EIO, os.strerror(errno.EIO))])
def test_keys_that_were_never_written_are_not_searched_whatever_the_fault(
    tmp_path, monkeypatch, fault
):
    one, stream = index(folder=tmp_path, write_behind=True), Stream()
    held, keys = watched(one, 4, stream)
    before = begun(one, held)

    def fails(*_):
        raise fault

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", fails)
        held = one.draft(held, stream.chunk(3, 3)[0])
        assert begun(one, held) == before
    assert begun(one, held) == before
    with pytest.raises(FrameStoreError, match=r"MemoryError\(\)|Input/output error"):
        one.draft(held, stream.chunk(3, 3)[0])  # who appends next is told
    told, own = stream.chunk(3, 3)
    held = one.draft(held, told)
    _check_keys(one, held, keys | {stamps[0]: grid for stamps, grid in own})
    one.close()


@pytest.fixture
def disk(monkeypatch):
    """A disk whose writes wait until it is set, and then fail if `fails` is set, too."""
    write, disk = os.pwrite, threading.Event()
    disk.fails = False

    def pwrite(*arguments):
        assert disk.wait(30)
        return no_room() if disk.fails else write(*arguments)

    monkeypatch.setattr(os, "pwrite", pwrite)
    disk.set()
    yield disk
    disk.set()


def interrupt(seconds):
    """Ctrl-C in so many seconds, for this thread."""
    main = threading.get_ident()
    threading.Timer(seconds, signal.pthread_kill, (main, signal.SIGINT)).start()


def test_an_interruption_of_a_search_loses_no_fault_of_the_disk(tmp_path, disk, monkeypatch):
    one, stream = index(folder=tmp_path, write_behind=True), Stream()
    held, _ = watched(one, 4, stream)
    before = begun(one, held)
    disk.clear()
    held = one.draft(held, stream.chunk(3, 3)[0])

    def interrupted(*_):
        disk.fails = True
        disk.set()
        time.sleep(0.2)  # the write fails while the interruption is on its way
        raise KeyboardInterrupt

    kept = signal.signal(signal.SIGINT, interrupted)
    try:
        interrupt(0.1)
        with pytest.raises(KeyboardInterrupt):
            begun(one, held)
    finally:
        signal.signal(signal.SIGINT, kept)
    disk.fails = False
    assert begun(one, held) == before
    with pytest.raises(FrameStoreError, match="No space left on device"):
        one.draft(held, stream.chunk(3, 3)[0])
    one.close()


def test_a_folder_is_given_back_also_where_closing_is_interrupted_twice(tmp_path, disk):
    one, stream = index(folder=tmp_path, write_behind=True), Stream()
    held, _ = watched(one, 2, stream)
    grids_of(one, held)
    disk.clear()
    one.draft(held, stream.chunk(3, 3)[0])
    interrupt(0.1)
    interrupt(0.3)
    with pytest.raises(KeyboardInterrupt):
        one.close()
    disk.set()
    for _ in range(100):
        with suppress(FrameStoreError), index(folder=tmp_path) as two:
            assert two.empty().newest == stream.now - 0.5
            return
        time.sleep(0.1)
    raise AssertionError("the folder is still locked")


def test_a_disk_without_room_for_a_segment_is_said(tmp_path, monkeypatch):
    one, stream = index(folder=tmp_path, max_bytes=64 * grid_bytes()), Stream()
    held, _ = watched(one, 1, stream)  # a segment is two grids
    monkeypatch.setattr(os, "posix_fallocate", no_room)
    with pytest.raises(FrameStoreError, match=r"No space left on device\. Make room"):
        one.draft(held, stream.chunk(3)[0])
    assert len(grids_of(one, held)[0]) == 2 and len(segments(tmp_path)) == 1
    monkeypatch.undo()
    assert len(grids_of(one, one.draft(held, stream.chunk(3)[0]))[0]) == 3
    one.close()


@settings(max_examples=examples(25))
@given(seed=st.integers(0, 10_000), flips=st.integers(1, 4))
def test_damage_takes_the_grids_that_it_hits_and_no_others(tmp_path_factory, seed, flips):
    folder = tmp_path_factory.mktemp("damaged")
    one = index(folder=folder, max_bytes=64 * grid_bytes())
    held, keys = watched(one, 10)
    grids, _ = grids_of(one, held)
    one.close()
    draw = np.random.default_rng(seed)
    for _ in range(flips):
        file = draw.choice(segments(folder))
        data = bytearray(file.read_bytes())
        # Two slots' rows of 64 bytes, and their keys a page behind the file's beginning.
        at = draw.integers(128) if draw.random() < 0.5 else draw.integers(4096, len(data))
        data[at] ^= 0xFF
        file.write_bytes(data)
    one = index(folder=folder, max_bytes=64 * grid_bytes())
    found, _ = grids_of(one, one.empty())
    assert set(map(str, found)) <= set(map(str, grids)) and len(found) >= len(grids) - flips
    _check_keys(one, one.empty(), keys)
    one.close()
    shutil.rmtree(folder)


@pytest.mark.parametrize("cut", ["gone", "short", "empty"])
def test_a_segment_that_is_lost_takes_those_behind_it_too(tmp_path, cut):
    one = index(folder=tmp_path, max_bytes=64 * grid_bytes())
    _, keys = watched(one, 10)
    one.close()
    file = segments(tmp_path)[4]
    if cut == "gone":
        file.unlink()
    else:
        os.truncate(file, 100 if cut == "short" else 0)
    one = index(folder=tmp_path, max_bytes=64 * grid_bytes())
    assert one.empty().newest == 107.5
    _check_keys(one, one.empty(), keys)
    one.close()


# -- whose folder it is ------------------------------------------------------------------------


def test_another_binding_is_set_aside_and_said(tmp_path, caplog):
    one = index(folder=tmp_path, model="a")
    watched(one, 3)
    one.close()
    with index(folder=tmp_path, model="a") as one:
        assert one.empty().grids == 6
    one = index(folder=tmp_path, model="b")
    assert "of another model or version" in caplog.text and "set aside" in caplog.text
    assert one.empty().grids == 0
    watched(one, 2)
    one.close()
    with index(folder=tmp_path, model="b") as one:
        assert one.empty().grids == 4
    # Nothing was lost: put back it is there.
    for file in (tmp_path / "set_aside").iterdir():
        file.replace(tmp_path / file.name)
    with index(folder=tmp_path, model="a") as one:
        assert one.empty().grids == 6


def test_a_kept_index_that_cannot_be_read_is_set_aside(tmp_path, caplog):
    one = index(folder=tmp_path)
    watched(one, 3)
    one.close()
    (tmp_path / "meta.json").write_text("{")
    one = index(folder=tmp_path)
    assert "cannot be read" in caplog.text and one.empty().grids == 0
    assert len(list((tmp_path / "set_aside").glob("*.keys"))) == 1
    watched(one, 1)
    one.close()


def test_a_folder_of_somebody_else_is_refused_and_left_alone(tmp_path):
    (tmp_path / "0000.keys").write_bytes(b"mine")
    with pytest.raises(FrameStoreError, match="did not put there"):
        index(folder=tmp_path)
    assert (tmp_path / "0000.keys").read_bytes() == b"mine"
    with pytest.raises(FrameStoreError, match="is a file"):
        index(folder=tmp_path / "0000.keys")


def test_a_folder_is_one_index_at_a_time_and_its_owners_alone(tmp_path):
    folder = tmp_path / "keys"
    one = index(folder=folder)
    with pytest.raises(FrameStoreError, match="in use by another process"):
        index(folder=folder)
    watched(one, 3)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    names = [*segments(folder), folder / "meta.json"]
    assert {stat.S_IMODE(name.stat().st_mode) for name in names} == {0o600}
    one.close()
    index(folder=folder).close()


def test_a_link_in_place_of_a_segment_is_not_followed(tmp_path):
    one, stream = index(folder=tmp_path / "keys", max_bytes=64 * grid_bytes()), Stream()
    held, _ = watched(one, 1, stream)
    (tmp_path / "mine").write_bytes(b"mine")
    (tmp_path / "keys" / "0001.keys").symlink_to(tmp_path / "mine")
    with pytest.raises(FrameStoreError):
        one.draft(held, stream.chunk(3)[0])
    assert (tmp_path / "mine").read_bytes() == b"mine"
    one.close()


# -- forgetting --------------------------------------------------------------------------------


def marked(one, held, stream, value):
    """A grid whose keys are of one value; the first that comes decides what is taken off all."""
    vision = VisionSpan((0,), ((stream.now, stream.now + 0.5),), 1, 3, True)
    stream.now += 1
    return one.draft(held, change([vision], torch.full((len(HEADS), 3, DIM), value)))


def in_files(folder, value):
    mark = np.full(DIM, value, np.float32).tobytes()
    return any(mark in file.read_bytes() for file in Path(folder).rglob("*.keys"))


@pytest.mark.parametrize("behind", [False, True])
def test_nothing_is_left_of_forgotten_keys_in_the_files(tmp_path, behind):
    one = index(folder=tmp_path, max_bytes=128 * grid_bytes(), write_behind=behind)
    stream, held = Stream(), one.empty()
    values = [0.0, *(1000.0 + number for number in range(1, 150))]
    for value in values:
        held = marked(one, held, stream, value)
    # Of those that were left out, too, and whose slots nobody took since.
    left = [value for value in values[1:] if in_files(tmp_path, value)]
    found = {1000.0 + serial for serial, _ in grids_of(one, held)[0]}
    assert any(value <= 1060.0 for value in {*left} - found)
    held = one.forget(held, 0.0, 160.0)
    assert not any(in_files(tmp_path, value) for value in left if value <= 1060.0)
    found, _ = grids_of(one, held)
    assert found[0][0] > 60 and all(in_files(tmp_path, 1000.0 + serial) for serial, _ in found)
    one.close()
    one = index(folder=tmp_path, max_bytes=128 * grid_bytes())
    assert one.empty().oldest > 160.0
    one.close()


def test_a_grid_that_stands_for_some_of_a_forgotten_time_is_erased_whole(tmp_path):
    one = index(folder=tmp_path, max_bytes=16 * grid_bytes())
    stream, held = Stream(), one.empty()
    for value in [0.0, *(1000.0 + number for number in range(1, 20))]:
        held = marked(one, held, stream, value)
    spans = one.search(held, QUERIES, OF).spans
    serial = grids_of(one, held)[0][1][0]
    assert spans[1] == 2 and in_files(tmp_path, 1000.0 + serial)
    later = 100.0 + serial + 1  # it stands for the one that was left out there
    one.forget(held, later, later + 0.25)
    assert not in_files(tmp_path, 1000.0 + serial)
    one.close()


@pytest.mark.parametrize("how", ["clear", "forget"])
def test_what_was_set_aside_is_forgotten_too(tmp_path, how):
    one = index(folder=tmp_path, model="a")
    marked(one, marked(one, one.empty(), Stream(), 0.0), Stream(), 1001.0)
    one.close()
    one = index(folder=tmp_path, model="b")
    assert in_files(tmp_path, 1001.0)
    held = one.empty()
    one.clear() if how == "clear" else one.forget(held, 0.0, 1.0)
    assert not in_files(tmp_path, 1001.0)
    one.close()


def test_another_epoch_is_found_neither_now_nor_by_the_next_process(tmp_path):
    one = index(folder=tmp_path)
    held, _ = watched(one, 5)
    held = one.start_epoch(held)
    assert held.grids == 0
    one.close()
    one = index(folder=tmp_path)
    assert one.empty().grids == 0
    one.close()

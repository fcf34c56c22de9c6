"""The frame store keeps what it promised, within its bounds, whatever happens to it."""

import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from stream_vlm_ros.errors import InvalidParameterError, InvalidTimestampError
from stream_vlm_ros.history import FrameStore, FrameStoreError, PictureLostError

TINY = np.zeros((4, 6, 3), np.uint8)
COST = 4096 + 256  # of a frame below one block: as the store documents it


@pytest.fixture(params=["folder", "memory"])
def store(request, tmp_path):
    folder = tmp_path / "frames" if request.param == "folder" else None
    with FrameStore(folder, form="png") as store:
        yield store


def files(folder: Path) -> list[Path]:
    return sorted(path for path in (folder / "pictures").rglob("*") if path.is_file())


def test_a_png_comes_back_as_it_went_in(store, noise):
    pictures = noise(3)
    kept = [store.add(p, k / 3, f"camera {k}", 0.25 * k)[0] for k, p in enumerate(pictures)]
    for picture, frame in zip(pictures, kept, strict=True):
        np.testing.assert_array_equal(store.load(frame), picture)
    assert [(f.id, f.stamp, f.source, f.importance) for f in store.newest(9)] == [
        (0, 0.0, "camera 0", 0.0),
        (1, 1 / 3, "camera 1", 0.25),
        (2, 2 / 3, "camera 2", 0.5),
    ]
    assert (kept[0].width, kept[0].height) == (84, 56)


def test_a_jpeg_comes_back_nearly_as_it_went_in(tmp_path, plain):
    with FrameStore(tmp_path, form="jpeg", quality=95) as store:
        frame, _ = store.add(plain(), 1.0)
        back = store.load(frame).astype(int)
    assert np.abs(back - plain()).mean() < 4
    assert files(tmp_path)[0].read_bytes()[:3] == b"\xff\xd8\xff"


def test_stamps_come_back_to_the_last_bit(store):
    stamp = 1_763_692_800.123456789
    store.add(TINY, stamp)
    assert store.newest(1)[0].stamp == stamp


def test_frames_are_found_by_id_by_time_and_as_stars(store):
    for k in range(10):
        store.add(TINY, 10.0 + k, star=k in (2, 5))
    assert [f.id for f in store.get([7, 3, 99])] == [3, 7]
    assert store.ids_between(12.5, 15) == (3, 5)
    assert store.ids_between(12.1, 12.9) is None
    assert [f.id for f in store.around(12.5)] == [2, 3]
    assert [f.id for f in store.around(9)] == [0]
    assert [f.id for f in store.stars()] == [2, 5]
    assert (store.oldest_frame.id, store.newest_frame.id, len(store)) == (0, 9, 10)


def test_over_the_bound_in_bytes_the_oldest_goes_and_stars_stay():
    store = FrameStore(form="png", max_bytes=5 * COST)
    gone = []
    for k in range(12):
        gone += store.add(TINY, float(k), star=k == 1)[1]
        assert store.bytes <= 5 * COST
    assert gone == [0, 2, 3, 4, 5, 6, 7]
    assert [f.id for f in store.newest(99)] == [1, 8, 9, 10, 11]
    assert store.first_regular_id == 8


def test_stars_go_last_and_the_newest_frame_always_stays():
    store = FrameStore(form="png", max_bytes=2 * COST)
    for k in range(5):
        store.add(TINY, float(k), star=True)
    assert [f.id for f in store.newest(99)] == [3, 4]
    lonely = FrameStore(form="png", max_bytes=1)
    lonely.add(TINY, 0.0)
    lonely.add(TINY, 1.0)
    assert [f.id for f in lonely.newest(99)] == [1]


def test_over_the_bound_in_time_stars_go_too():
    store = FrameStore(form="png", max_seconds=10)
    for k in range(30):
        store.add(TINY, float(k), star=k % 7 == 0)
    assert [f.stamp for f in store.newest(99)] == [float(k) for k in range(19, 30)]


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0, 5), st.booleans()), max_size=60),
    st.integers(1, 12),
    st.floats(1, 30),
)
def test_the_bounds_hold_and_the_count_is_right_for_any_frames(frames, room, seconds):
    store = FrameStore(form="png", max_bytes=room * COST, max_seconds=seconds)
    stamp, there = 0.0, set()
    for number, (gap, star) in enumerate(frames):
        stamp += gap
        frame, gone = store.add(TINY, stamp, star=star)
        assert frame.id == number and set(gone) <= there
        there = there - set(gone) | {number}
        kept = store.newest(999)
        assert {f.id for f in kept} == there and len(store) == len(there)
        assert store.bytes == sum(f.cost for f in kept) <= room * COST
        assert kept[0].stamp >= stamp - seconds


def test_a_frame_costs_the_index_no_more_when_many_are_kept():
    def steps_of_ten_frames(store) -> int:
        counted = [0]

        def count():
            counted[0] += 1

        store._db.set_progress_handler(count, 10)  # called at every tenth step of SQLite's machine
        for _ in range(10):
            store.add(TINY, store.newest_frame.stamp + 1, star=True)
        store._db.set_progress_handler(None, 0)
        return counted[0]

    store = FrameStore(form="png", max_bytes=2000 * COST, max_seconds=5000)
    store.add(TINY, 0.0)
    few = steps_of_ten_frames(store)
    for k in range(1500):
        store.add(TINY, 100.0 + k)
    assert steps_of_ten_frames(store) < 2 * few + 100


def test_time_that_runs_backwards_is_refused_and_nothing_is_kept(store):
    store.add(TINY, 5.0)
    with pytest.raises(InvalidTimestampError, match=r"4\.000 s comes after one of 5\.000 s"):
        store.add(TINY, 4.0)
    with pytest.raises(InvalidTimestampError, match="not finite"):
        store.add(TINY, float("nan"))
    assert len(store) == 1


def test_what_was_kept_is_taken_up_again(tmp_path, noise):
    pictures = noise(5)
    with FrameStore(tmp_path, form="png") as store:
        for k, picture in enumerate(pictures):
            store.add(picture, float(k), "cam", star=k == 3)
        size = store.bytes
    with FrameStore(tmp_path, form="jpeg") as store:  # the choice may change between runs
        assert (len(store), store.bytes, store.next_id) == (5, size, 5)
        assert [f.id for f in store.stars()] == [3]
        np.testing.assert_array_equal(store.load(store.newest(1)[0]), pictures[4])
        frame, _ = store.add(pictures[0], 5.0)
        assert (frame.id, frame.suffix) == (5, "jpg")


def test_rows_without_pictures_and_pictures_without_rows_are_cleared_away(tmp_path):
    with FrameStore(tmp_path, form="png") as store:
        for k in range(6):
            store.add(TINY, float(k))
    paths = files(tmp_path)
    paths[1].unlink()
    paths[3].write_bytes(paths[3].read_bytes()[:-1])
    orphan = paths[0].with_name("000000077.png")
    orphan.write_bytes(b"x")
    mine = paths[0].with_name("holiday.jpg")
    mine.write_bytes(b"x")
    with FrameStore(tmp_path) as store:
        assert [f.id for f in store.newest(99)] == [0, 2, 4, 5]
        assert store.bytes == 4 * COST
    assert not orphan.exists() and not paths[3].exists() and mine.exists()


def test_a_damaged_picture_is_reported_as_lost(store, tmp_path):
    frame, _ = store.add(TINY, 0.0)
    store._pictures.write(frame.id, frame.suffix, b"\x00" * frame.size)
    with pytest.raises(PictureLostError, match=r"frame 0 .* is lost"):
        store.load(frame)
    store._pictures.delete(frame.id, frame.suffix)
    with pytest.raises(PictureLostError, match="is lost"):
        store.load(frame)
    store.forget(frame)
    assert len(store) == 0 and store.add(TINY, 1.0)[0].id == 1


def test_clear_empties_the_folder(tmp_path):
    with FrameStore(tmp_path, form="png") as store:
        for k in range(3):
            store.add(TINY, float(k))
        store.clear()
        assert (len(store), store.bytes, files(tmp_path)) == (0, 0, [])
        assert store.add(TINY, 0.0)[0].id == 0  # an earlier time may begin anew


def test_a_second_owner_is_refused_until_the_first_is_done(tmp_path):
    with FrameStore(tmp_path), pytest.raises(FrameStoreError, match="in use by another"):
        FrameStore(tmp_path)
    FrameStore(tmp_path).close()


def test_a_full_disk_is_said_and_leaves_the_store_as_it_was(tmp_path, monkeypatch):
    with FrameStore(tmp_path, form="png") as store:
        store.add(TINY, 0.0)

        def full(number, suffix, data):
            (tmp_path / "pictures" / "000000" / f"{number:09d}.{suffix}").write_bytes(data[:9])
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patched:
            patched.setattr(store._pictures, "write", full)
            with pytest.raises(FrameStoreError, match="No space left"):
                store.add(TINY, 1.0)
        assert len(store) == 1 and len(files(tmp_path)) == 1
        assert store.add(TINY, 1.0)[0].id == 1


def test_an_index_that_is_none_is_refused_in_words(tmp_path):
    (tmp_path / "index.sqlite").write_bytes(b"not a database at all" * 100)
    with pytest.raises(FrameStoreError, match="index of kept frames"):
        FrameStore(tmp_path)


def test_a_store_of_another_version_is_refused(tmp_path):
    FrameStore(tmp_path).close()
    with sqlite3.connect(tmp_path / "index.sqlite") as db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(FrameStoreError, match="another version"):
        FrameStore(tmp_path)


@pytest.mark.parametrize(
    "settings", [{"form": "gif"}, {"quality": 0}, {"max_bytes": 0}, {"max_seconds": -1}]
)
def test_settings_outside_their_range_are_refused(settings):
    with pytest.raises(InvalidParameterError, match=next(iter(settings))):
        FrameStore(**settings)


# -- killed --------------------------------------------------------------------------------------

# Imports once, then for each line it reads ("FOLDER") starts a process that adds frames until it is
# killed and says the number of every frame once it is kept.
WRITERS = textwrap.dedent(
    """
    import os, sys
    import numpy as np
    from stream_vlm_ros.history import FrameStore

    def write_frames(folder):
        store = FrameStore(folder, form="png", max_bytes=int(sys.argv[1]))
        number = store.next_id
        os.write(1, b"pid %d\\n" % os.getpid())
        while True:
            picture = np.full((24, 32, 3), number % 251, np.uint8)
            store.add(picture, float(number), star=number in (7, 57, 107))
            os.write(1, b"%d\\n" % number)
            number += 1

    for line in sys.stdin:
        if (child := os.fork()) == 0:
            write_frames(line.strip())
        os.waitpid(child, 0)
        os.write(1, b"ended\\n")
    """
)
MAX_BYTES = 150 * COST


@pytest.fixture(scope="module")
def writers():
    package = str(Path(sys.modules["stream_vlm_ros"].__file__).parents[1])
    process = subprocess.Popen(
        [sys.executable, "-c", WRITERS, str(MAX_BYTES)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": package},
    )
    yield process
    process.stdin.close()
    process.wait()
    process.stdout.close()


def killed_once(writers: subprocess.Popen, folder: Path, wait: float) -> int:
    """Let a process add frames to a store, and kill it with SIGKILL after ``wait`` seconds.

    Returns the id of the last frame that it knew to be kept, -1 if there was none.
    """
    writers.stdin.write(f"{folder}\n".encode())
    writers.stdin.flush()
    word, pid = writers.stdout.readline().split()
    assert word == b"pid"
    time.sleep(wait)
    os.kill(int(pid), signal.SIGKILL)
    promised = -1
    while (line := writers.stdout.readline()) != b"ended\n":
        promised = int(line)
    return promised


def check_after_kill(folder: Path, promised: int) -> None:
    with FrameStore(folder, form="png", max_bytes=MAX_BYTES) as store:
        if len(store) == 0:
            assert promised == -1
            return
        assert store._db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        kept = store.newest(10**6)
        assert kept[-1].id >= promised  # nothing that was promised is missing
        oldest, newest = store.first_regular_id, kept[-1].id
        stars = {7, 57, 107} & set(range(newest + 1))
        assert {frame.id for frame in kept} == {*range(oldest, newest + 1)} | stars
        for frame in kept[:: max(1, len(kept) // 20)]:
            assert (store.load(frame) == frame.id % 251).all()
        assert store.bytes == sum(frame.cost for frame in kept) <= MAX_BYTES
        assert len(files(folder)) == len(kept)


def kill_again_and_again(writers: subprocess.Popen, folder: Path, times: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    for _ in range(times):
        promised = killed_once(writers, folder, random.uniform(0.0, 0.25))
        check_after_kill(folder, promised)


def test_killed_at_random_moments_the_store_opens_and_nothing_promised_is_missing(
    writers, tmp_path
):
    kill_again_and_again(writers, tmp_path, times=5, seed=1)


@pytest.mark.slow
def test_killed_a_hundred_times_the_store_opens_every_time(writers, tmp_path):
    kill_again_and_again(writers, tmp_path, times=100, seed=2)


def test_a_picture_exchanged_for_another_one_is_lost_not_decoded(tmp_path):
    with FrameStore(tmp_path, form="png") as store:
        frame, _ = store.add(TINY, 1.0)
        Image.new("1", (14_000, 14_000)).save(files(tmp_path)[0], "PNG")
        with pytest.raises(PictureLostError, match="announces 14000x14000, not 6x4"):
            store.load(frame)


def test_a_frame_above_a_lower_limit_is_refused_and_stays(tmp_path):
    with FrameStore(tmp_path, form="png") as store:
        store.add(np.zeros((101, 100, 3), np.uint8), 1.0)
    with FrameStore(tmp_path, max_decoded_megapixels=0.01) as store:
        (frame,) = store.newest(1)
        with pytest.raises(FrameStoreError, match=r"announces 100x101.*raise it") as refused:
            store.load(frame)
        assert not isinstance(refused.value, PictureLostError)
    with FrameStore(tmp_path) as store:
        assert store.load(store.newest(1)[0]).shape == (101, 100, 3)

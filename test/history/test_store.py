# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""The frame store keeps what it promised, within its bounds, whatever happens to it."""

import io
import os
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import textwrap
import time
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from stream_vlm_ros.errors import InvalidParameterError, InvalidTimestampError
from stream_vlm_ros.history import FrameStore, FrameStoreError, PictureLostError
from stream_vlm_ros.history.pictures import decode

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
    assert [store.stamp_near(stamp) for stamp in (9, 12.4, 12.6, 99)] == [10, 12, 13, 19]
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


@settings(max_examples=30)
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


def test_a_frame_costs_the_index_no_more_when_many_are_kept(monkeypatch):
    counted = []
    connect = sqlite3.connect

    def watched(*arguments, **options):
        index = connect(*arguments, **options)
        # Called at every tenth step of SQLite's machine.
        index.set_progress_handler(lambda: counted.append(1), 10)
        return index

    def steps_of_ten_frames(store) -> int:
        before = len(counted)
        for _ in range(10):
            store.add(TINY, store.newest_frame.stamp + 1, star=True)
        return len(counted) - before

    monkeypatch.setattr(sqlite3, "connect", watched)
    store = FrameStore(form="png", max_bytes=2000 * COST, max_seconds=5000)
    store.add(TINY, 0.0)
    few = steps_of_ten_frames(store)
    for k in range(1500):
        store.add(TINY, 100.0 + k)
    assert 0 < steps_of_ten_frames(store) < 2 * few + 100


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


def test_a_damaged_picture_is_reported_as_lost(tmp_path):
    with FrameStore(tmp_path, form="png") as store:
        frame, _ = store.add(TINY, 0.0)
        (file,) = files(tmp_path)
        file.write_bytes(b"\x00" * frame.size)
        with pytest.raises(PictureLostError, match=r"frame 0 .* is lost"):
            store.load(frame)
        file.unlink()
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
        assert store.add(TINY, 0.0)[0].id == 0  # an earlier time may start over


def test_a_second_owner_is_refused_until_the_first_is_done(tmp_path):
    with FrameStore(tmp_path), pytest.raises(FrameStoreError, match="in use by another"):
        FrameStore(tmp_path)
    FrameStore(tmp_path).close()


@contextmanager
def no_file_longer_than(count: int):
    """What a full disk does: a write takes what fits, and the next one fails."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (count, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("full", ["for the picture", "for the index"])
def test_a_full_disk_is_said_and_leaves_the_store_as_it_was(tmp_path, noise, full):
    picture = noise(1)[0]  # 14 kB
    with FrameStore(tmp_path, form="png") as store:
        store.add(picture, 0.0)
        index = (tmp_path / "index.sqlite-wal").stat().st_size
        assert index > 15000
        with no_file_longer_than(9000 if full == "for the picture" else index):
            with pytest.raises(FrameStoreError, match="cannot be stored in"):
                store.add(picture, 1.0)
            assert len(store) == 1 and len(files(tmp_path)) == 1
        assert store.add(picture, 1.0)[0].id == 1
    with FrameStore(tmp_path) as store:
        assert [frame.id for frame in store.newest(9)] == [0, 1]


# -- whose folder it is --------------------------------------------------------------------------


def everything(folder: Path) -> dict[str, tuple]:
    """Each path below ``folder``: what it is, and what it holds; links are not followed."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            found[str(path.relative_to(folder))] = ("link", os.readlink(path))
        else:
            found[str(path.relative_to(folder))] = (
                ("folder",) if path.is_dir() else ("file", path.read_bytes())
            )
    return found


def picture_of_the_users(folder: Path) -> Path:
    """A file that has the name of one of a store's pictures."""
    path = folder / "000000" / "000000007.jpg"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"a holiday")
    return path


def other_database(folder: Path) -> None:
    with sqlite3.connect(folder / "index.sqlite") as db:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA user_version = 1")
        db.execute("CREATE TABLE songs (title TEXT)")
    db.close()


@pytest.mark.parametrize(
    ("what", "named"),
    [
        (lambda folder: picture_of_the_users(folder / "pictures"), "pictures"),
        (lambda folder: (folder / "notes.txt").write_text("mine"), "notes.txt"),
        (other_database, "index.sqlite"),
        (lambda folder: (folder / "index.sqlite").write_bytes(b"none at all" * 99), "index.sqlite"),
        (lambda folder: (folder / "index.sqlite").write_bytes(b""), "index.sqlite"),
        (lambda folder: os.mkfifo(folder / "index.sqlite"), "index.sqlite"),
        (lambda folder: (folder / ".stream_vlm").write_text("stream_vlm: report\n"), "stream_vlm"),
    ],
)
def test_a_folder_that_is_no_store_is_refused_with_what_is_in_it_and_left_alone(
    tmp_path, what, named
):
    what(tmp_path)
    if named == "index.sqlite" and (tmp_path / named).is_fifo():
        before = None
    else:
        before = everything(tmp_path)
    with pytest.raises(FrameStoreError, match=f"holds .*{named}.*left as it is"):
        FrameStore(tmp_path)
    assert before is None or everything(tmp_path) == before


def test_an_empty_name_is_not_the_working_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidParameterError, match="the folder of kept frames is empty"):
        FrameStore("")
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "frames").write_text("mine")
    with pytest.raises(FrameStoreError, match="frames is a file"):
        FrameStore(tmp_path / "frames")
    assert (tmp_path / "frames").read_text() == "mine"


@pytest.mark.parametrize("link", ["pictures", "pictures/000000", "pictures/000000/000000007.png"])
def test_a_link_inside_a_store_is_not_followed_whenever_it_comes(tmp_path, link):
    mine = picture_of_the_users(tmp_path / "mine")
    (tmp_path / "mine" / "000000007.jpg").write_bytes(b"another")
    before = everything(tmp_path / "mine")
    folder = tmp_path / "frames"
    FrameStore(folder).close()
    place = folder / link
    place.parent.mkdir(parents=True, exist_ok=True)
    levels = link.count("/")
    if levels == 0:
        place.rmdir()
    place.symlink_to([tmp_path / "mine", mine.parent, mine][levels])
    with pytest.raises(FrameStoreError, match="for example a link"):
        FrameStore(folder)
    assert everything(tmp_path / "mine") == before

    place.unlink()
    with FrameStore(folder, form="png", max_bytes=3 * COST) as store:  # it comes while it is open
        for k in range(7):
            store.add(TINY, float(k))
        if levels < 2:
            place.rename(place.with_name("away"))
        place.symlink_to([tmp_path / "mine", mine.parent, mine][levels])
        with pytest.raises(FrameStoreError, match="cannot be stored"):
            store.add(TINY, 7.0)
        if levels < 2:
            with pytest.raises(PictureLostError):
                store.load(store.newest(1)[0])
        store.clear()
    assert everything(tmp_path / "mine") == before


@pytest.mark.parametrize("name", ["index.sqlite", "index.sqlite-wal", ".stream_vlm"])
def test_a_link_in_the_place_of_one_of_its_files_is_not_followed(tmp_path, name):
    mine = tmp_path / "mine"
    mine.mkdir()
    FrameStore(mine / "store").close()
    folder = tmp_path / "frames"
    FrameStore(folder).close()
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(mine / "store" / name)
    before = everything(mine)
    with pytest.raises(FrameStoreError, match="cannot be used"):
        FrameStore(folder)
    assert everything(mine) == before


def test_the_folder_itself_may_be_a_link_that_its_user_named(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "frames").symlink_to(tmp_path / "disk")
    with FrameStore(tmp_path / "frames") as store:
        store.add(TINY, 0.0)
        store.load(store.newest(1)[0])
    assert len(files(tmp_path / "disk")) == 1


@pytest.mark.parametrize("lost", ["index.sqlite", "its content"])
def test_pictures_whose_index_is_lost_are_not_removed(tmp_path, lost):
    with FrameStore(tmp_path, form="png") as store:
        store.add(TINY, 0.0)
    if lost == "index.sqlite":
        (tmp_path / lost).unlink()
    else:
        (tmp_path / "index.sqlite").write_bytes(b"")
    with pytest.raises(FrameStoreError, match="is empty, but there are pictures"):
        FrameStore(tmp_path)
    assert len(files(tmp_path)) == 1


def test_a_store_whose_pictures_are_elsewhere_for_now_forgets_nothing(tmp_path):
    with FrameStore(tmp_path, form="png") as store:
        store.add(TINY, 0.0)
    (tmp_path / "pictures").rename(tmp_path / "away")
    with pytest.raises(FrameStoreError, match="knows of 1 frames, but its folder of pictures"):
        FrameStore(tmp_path)
    (tmp_path / "away").rename(tmp_path / "pictures")
    with FrameStore(tmp_path) as store:
        assert len(store) == 1


SCHEMA_1 = """
CREATE TABLE frames (
    id INTEGER PRIMARY KEY, stamp REAL NOT NULL, source TEXT NOT NULL, width INTEGER NOT NULL,
    height INTEGER NOT NULL, suffix TEXT NOT NULL, size INTEGER NOT NULL, importance REAL NOT NULL,
    star INTEGER NOT NULL
);
CREATE INDEX frames_by_stamp ON frames (stamp);
CREATE INDEX frames_star ON frames (id) WHERE star;
PRAGMA user_version = 1;
"""


@pytest.mark.parametrize("killed", [False, True])
def test_a_store_from_before_the_mark_is_taken_up_and_marked(tmp_path, noise, killed):
    pictures = noise(3)
    folder = tmp_path / "old"
    group = folder / "pictures" / "000000"
    group.mkdir(parents=True)
    (folder / "lock").touch()
    db = sqlite3.connect(folder / "index.sqlite", isolation_level=None)
    db.execute("PRAGMA journal_mode = WAL")
    db.executescript(SCHEMA_1)
    for k, picture in enumerate(pictures):
        file = group / f"{k:09d}.png"
        Image.fromarray(picture).save(file)
        row = (k, k / 3, "cam", 84, 56, "png", file.stat().st_size, 0.5, k == 1)
        db.execute(f"INSERT INTO frames VALUES ({', '.join('?' * 9)})", row)
    if killed:  # nothing was written back from the log
        shutil.copytree(folder, tmp_path / "killed")
        folder = tmp_path / "killed"
    db.close()
    with FrameStore(folder, form="png") as store:
        kept = store.newest(9)
        assert [(f.id, f.stamp, f.source, f.star) for f in kept] == [
            (0, 0.0, "cam", False),
            (1, 1 / 3, "cam", True),
            (2, 2 / 3, "cam", False),
        ]
        for frame, picture in zip(kept, pictures, strict=True):
            np.testing.assert_array_equal(store.load(frame), picture)
        store.add(TINY, 5.0)
    assert (folder / ".stream_vlm").is_file() and not (folder / "lock").exists()
    with FrameStore(folder) as store:
        assert len(store) == 4


def test_pictures_are_for_their_owners_eyes_alone(tmp_path):
    before = os.umask(0)
    try:
        with FrameStore(tmp_path / "frames") as store:
            store.add(TINY, 0.0)
            found = {p: p.stat().st_mode & 0o777 for p in (tmp_path / "frames").rglob("*")}
    finally:
        os.umask(before)
    assert (tmp_path / "frames").stat().st_mode & 0o777 == 0o700
    for path, mode in found.items():
        if path.name != ".stream_vlm":
            assert oct(mode) == ("0o700" if path.is_dir() else "0o600"), path


# -- damage --------------------------------------------------------------------------------------


def test_a_picture_that_was_changed_is_lost_even_if_it_can_be_decoded(tmp_path, noise):
    with FrameStore(tmp_path, form="png") as store:
        frame, _ = store.add(noise(1)[0], 0.0)
        other = io.BytesIO()
        Image.fromarray(noise(1, seed=5)[0]).save(other, "PNG")
        files(tmp_path)[0].write_bytes(other.getvalue())
        with pytest.raises(PictureLostError, match="was changed"):
            store.load(frame)


@pytest.mark.parametrize(
    ("column", "value"),
    [("stamp", 99.5), ("stamp", "text"), ("source", b"\xff"), ("width", 7), ("size", None)],
)
def test_a_row_that_was_changed_is_given_up_and_the_others_stay(tmp_path, caplog, column, value):
    with FrameStore(tmp_path, form="png") as store:
        for k in range(3):
            store.add(TINY, float(k))
    with sqlite3.connect(tmp_path / "index.sqlite") as db:
        db.execute("PRAGMA ignore_check_constraints = ON")
        (sql,) = db.execute("SELECT sql FROM sqlite_master WHERE name = 'frames'").fetchone()
        db.execute("PRAGMA writable_schema = ON")  # as a flipped bit, it asks no constraint
        db.execute(
            "UPDATE sqlite_master SET sql = ? WHERE name = 'frames'",
            (sql.replace(" NOT NULL", ""),),
        )
    db.close()
    with sqlite3.connect(tmp_path / "index.sqlite") as db:
        db.execute(f"UPDATE frames SET {column} = ? WHERE id = 1", (value,))
    db.close()
    with FrameStore(tmp_path) as store:
        assert [(frame.id, frame.stamp) for frame in store.newest(9)] == [(0, 0.0), (2, 2.0)]
    assert "frames dropped: 0 without their picture, 1 with a damaged row" in caplog.text


@pytest.mark.parametrize("marked", [True, False])
def test_an_index_whose_columns_have_no_names_is_refused_in_words(tmp_path, marked):
    FrameStore(tmp_path).close()
    index = tmp_path / "index.sqlite"
    data = index.read_bytes()
    assert data.count(b"importance REAL") == 1
    index.write_bytes(data.replace(b"importance REAL", b"import\xc6nce REAL"))
    if not marked:
        (tmp_path / ".stream_vlm").unlink()
    with pytest.raises(FrameStoreError, match="other tables" if marked else "holds index.sqlite"):
        FrameStore(tmp_path)


def test_a_source_whose_name_is_no_text_is_kept_by_a_name_that_is(store):
    store.add(TINY, 0.0, os.fsdecode(b"camera \xff"))
    assert store.newest(1)[0].source == "camera \\udcff"


def test_an_index_that_is_none_is_refused_in_words(tmp_path):
    FrameStore(tmp_path).close()
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
        with closing(sqlite3.connect(folder / "index.sqlite")) as index:
            assert index.execute("PRAGMA integrity_check").fetchone() == ("ok",)
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
        (file,) = files(tmp_path)
        Image.new("1", (14_000, 14_000)).save(file, "PNG")
        with pytest.raises(PictureLostError, match="its file was changed"):
            store.load(frame)
    # The pictures of an index of version 1 have no checksum.
    with pytest.raises(ValueError, match="announces 14000x14000, not 6x4"):
        decode(file.read_bytes(), 6, 4)


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


def test_an_epoch_that_the_disk_cannot_take_yet_begins_with_the_next_frame_that_it_takes(tmp_path):
    with FrameStore(tmp_path, form="png") as store:
        store.add(np.full((28, 28, 3), 0, np.uint8), 5.0)
        store.await_epoch()
        assert (store.newest(9), store.ids_between(0, 9), store.newest_frame) == ([], None, None)
    with FrameStore(tmp_path, form="png") as store:  # none came
        assert [frame.stamp for frame in store.newest(9)] == [5.0]
        store.await_epoch()
        store.add(np.full((28, 28, 3), 1, np.uint8), 2.0)
    with FrameStore(tmp_path, form="png") as store:
        assert [frame.stamp for frame in store.newest(9)] == [2.0]
        assert (len(store), store.reach) == (2, (2.0, 5.0))


@pytest.mark.parametrize("change", ["start_epoch", "await_epoch", "clear", "take back"])
def test_a_course_of_time_is_known_again_until_it_is_another(tmp_path, change):
    with FrameStore(tmp_path, form="png") as store:
        store.add(np.full((28, 28, 3), 0, np.uint8), 1.0)
        course = store.course
        store.add(np.full((28, 28, 3), 1, np.uint8), 2.0)
        store.forget_between(1.0, 1.0)
    with FrameStore(tmp_path, form="png") as store:
        assert store.course == course != 0
        store.forget_from(1) if change == "take back" else getattr(store, change)()
        assert store.course != course
        store.add(np.full((28, 28, 3), 2, np.uint8), 3.0)
        course = store.course
    with FrameStore(tmp_path, form="png") as store:
        assert store.course == course

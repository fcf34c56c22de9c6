# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""SmartFrameManager: what it keeps, what it counts, and what it chooses for a question."""

import itertools
import math

import numpy as np
import pytest
from amounts import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from stream_vlm_ros.engine.inputs.stamp_check import MAX_WAITING
from stream_vlm_ros.errors import (
    InvalidParameterError,
    InvalidTimestampError,
    OutOfHorizonError,
)
from stream_vlm_ros.history import FrameStore, NoveltyMeasure, SmartFrameManager
from stream_vlm_ros.history.pictures import PicturesInMemory


class Brightness(NoveltyMeasure):
    """Cheap, and easy to foresee: the difference of the first pixel's red, 0..1."""

    def describe(self, image):
        return np.array([image[0, 0, 0] / 255])

    def novelty(self, descriptor, others):
        return np.abs(others - descriptor).max(axis=-1)


def grey(value: int, height: int = 4, width: int = 6) -> np.ndarray:
    return np.full((height, width, 3), value, np.uint8)


def manager(store=None, **settings) -> SmartFrameManager:
    settings = {"measure": Brightness(), **settings}
    store = FrameStore(form="png") if store is None else store
    return SmartFrameManager(store, **settings)


def filled(count: int, values=(0,), **settings) -> SmartFrameManager:
    """Frames at 0, 1, 2 ... s, their brightness going round ``values``."""
    made = manager(**settings)
    for k, value in zip(range(count), itertools.cycle(values), strict=False):
        made.add(grey(value), float(k))
    return made


def stamps(grids) -> list[float]:
    return [frame.stamp for grid in grids for frame in grid]


# -- keeping -------------------------------------------------------------------------------------


def test_new_frames_are_stars_and_the_latest_are_the_window():
    kept = filled(50, [0] * 25 + [200] * 25)
    assert kept.star_ids == (0, 25)  # dark, then bright: 200 / 255 = 0.78
    assert kept.stream_ids == tuple(range(30, 50))


def test_a_frame_in_both_memories_is_counted_once():
    statistics = filled(50, [0] * 40 + [200] * 10).statistics()
    assert statistics["star_frames"] == 2 and statistics["stream_frames"] == 20
    # Star 40 is among the latest 20; star 0 is not.
    assert statistics["unique_frames"] == 21
    assert statistics["compression_ratio"] == 50 / 21


def test_a_frame_offered_twice_is_one_frame():
    kept = manager()
    for stamp in (0.0, 1.0, 1.0, 2.0):
        kept.add(grey(0), stamp)
    statistics = kept.statistics()
    assert statistics["frames_added"] == 4
    assert statistics["frames_kept"] == len(kept.store) == 3
    assert statistics["frames_repeated"] == 1


def test_a_camera_is_thinned_to_the_target_rate():
    kept = manager(target_fps=1.0)
    for k in range(300):
        kept.add(grey(0), k / 30)
    assert kept.statistics()["frames_kept"] == 10
    assert kept.statistics()["frames_not_sampled"] == 290


@settings(max_examples=examples(20))
@given(
    st.lists(st.tuples(st.sampled_from([0, 0.1, 0.5, 1, 7]), st.integers(0, 255)), max_size=80),
    st.integers(0, 5),
    st.integers(1, 8),
    st.integers(3, 30),
    st.sampled_from([0, 1.0, 3.0]),
)
def test_every_frame_is_accounted_for_and_both_memories_point_into_the_store(
    frames, stars, window, room, fps
):
    kept = manager(
        FrameStore(form="png", max_bytes=room * (4096 + 256)),
        star_capacity=stars,
        stream_window=window,
        target_fps=fps,
    )
    stamp = 100.0
    for gap, value in frames:
        stamp += gap
        kept.add(grey(value), stamp)
    s = kept.statistics()
    assert s["frames_added"] == len(frames)
    causes = ("kept", "repeated", "not_sampled", "invalid_stamp", "waiting")
    assert s["frames_added"] == sum(s[f"frames_{cause}"] for cause in causes)
    assert s["frames_kept"] == s["stored_frames"] + s["frames_forgotten"]
    there = {frame.id for frame in kept.store.newest(999)}
    assert set(kept.star_ids) <= there and set(kept.stream_ids) <= there
    assert {frame.id for frame in kept.store.stars()} == set(kept.star_ids)
    assert len(kept.star_ids) <= stars and len(kept.stream_ids) <= window
    assert s["unique_frames"] == len({*kept.star_ids, *kept.stream_ids})
    for most in (2, 6, 16):
        check_choice(kept, most, None)
        if there:
            check_choice(kept, most, (stamp - 3, stamp))


def check_choice(kept, most, about):
    grids = kept.select(most, about)
    chosen = [frame.id for grid in grids for frame in grid]
    assert chosen == sorted(set(chosen))  # in order, none twice
    assert len(grids) <= most // 2 and all(len(grid) in (1, 2) for grid in grids)
    available = {frame.id // 2 for frame in kept.store.newest(999)}
    assert len(grids) == min(most // 2, len(available))  # all of the room is used


def test_time_that_runs_backwards_is_refused():
    kept = filled(3)
    with pytest.raises(InvalidTimestampError, match="time runs backwards"):
        kept.add(grey(0), 1.5)
    assert kept.statistics()["frames_added"] == 3


def test_after_clear_everything_begins_anew():
    kept = filled(30, [0, 255])
    version = kept.version
    kept.clear()
    assert kept.version != version
    assert set(kept.statistics().values()) == {0}
    assert kept.select(48) == [] and kept.star_ids == kept.stream_ids == ()
    kept.add(grey(0), 0.0)
    assert kept.star_ids == (0,)


def test_stars_and_window_are_taken_up_from_the_folder(tmp_path):
    with FrameStore(tmp_path, form="png") as store:
        before = manager(store, stream_window=6)
        for k, value in enumerate([0] * 10 + [200] * 10):
            before.add(grey(value), float(k))
        stars, stream = before.star_ids, before.stream_ids
    with FrameStore(tmp_path) as store:
        after = manager(store, stream_window=6)
        assert (after.star_ids, after.stream_ids) == (stars, stream)
        with pytest.raises(InvalidTimestampError):
            after.add(grey(0), 5.0)
        after.add(grey(190), 20.0)  # not new: the star of 200 is remembered
        assert after.star_ids == stars
        assert len(after.select(48)) == 11


def test_a_frame_that_cannot_be_stored_changes_no_memory(monkeypatch):
    kept = filled(5, [0, 200], star_capacity=2)
    before = (kept.star_ids, kept.stream_ids, len(kept.store))

    def refuse(*_):
        raise OSError("no room")

    with monkeypatch.context() as patched:
        patched.setattr(PicturesInMemory, "write", refuse)
        with pytest.raises(Exception, match="no room"):
            kept.add(grey(100), 5.0)
    assert (kept.star_ids, kept.stream_ids, len(kept.store)) == before


@pytest.mark.parametrize(
    "setting",
    [{"star_capacity": -1}, {"stream_window": 0}, {"star_threshold": 2}, {"target_fps": -1}]
    + [{"target_fps": fps} for fps in (float("nan"), float("inf"), "2")],
)
def test_settings_outside_their_range_are_refused(setting):
    with pytest.raises(InvalidParameterError, match=next(iter(setting))):
        manager(**setting)


# -- choosing ------------------------------------------------------------------------------------


def test_at_rate_zero_every_frame_is_kept():
    kept = manager(target_fps=0)
    assert all(kept.add(grey(0), stamp) for stamp in (0.0, 0.001, 0.002))


def test_all_frames_are_chosen_while_they_fit():
    assert stamps(filled(47).select(48)) == [float(k) for k in range(47)]


@pytest.mark.parametrize("count", [50, 60, 1000])
def test_a_full_choice_is_even_spans_all_and_holds_the_latest(count):
    chosen = stamps(filled(count).select(48))
    assert len(chosen) == 48
    assert (chosen[0], chosen[-1]) == (0.0, count - 1.0)
    assert chosen[-20:] == [float(k) for k in range(count - 20, count)]


def test_what_is_not_window_or_star_is_spread_over_the_rest():
    chosen = stamps(filled(1000).select(48))[:-20]
    # 14 pairs over 490: nested, so with gaps between 490 / 28 and 490 / 7 pairs.
    gaps = [(b - a) / 2 for a, b in itertools.pairwise(chosen[::2])]
    assert len(chosen) == 28 and max(gaps) <= 64 and min(gaps) >= 16


def test_stars_are_chosen_with_the_frame_beside_them():
    kept = filled(1000, [0] * 777 + [255] + [0] * 222)
    assert kept.star_ids == (0, 777)
    assert {776.0, 777.0} <= set(stamps(kept.select(48)))


def test_of_many_stars_those_that_were_newest_to_the_eye_are_chosen():
    # At 0 s dark: 1.0. At 100 s half bright: 127 / 255 = 0.498 beside dark. At 300 s bright:
    # 128 / 255 = 0.502 beside half bright. There is room for two star pairs among six.
    values = [0] * 100 + [127] * 200 + [255] * 700
    kept = filled(1000, values, star_threshold=0.3)
    assert kept.star_ids == (0, 100, 300)
    chosen = stamps(kept.select(12))
    assert {0.0, 300.0} <= set(chosen) and 100.0 not in chosen


def test_half_of_a_choice_comes_from_the_time_that_is_named():
    kept = filled(3600)
    chosen = stamps(kept.select(48, (1800.0, 1820.0)))
    assert len(chosen) == 48
    assert [s for s in chosen if 1799 <= s <= 1821] == [float(k) for k in range(1800, 1822)]
    assert (chosen[0], chosen[-1]) == (0.0, 3599.0)


def test_a_wide_time_window_is_sampled_evenly():
    chosen = stamps(filled(3600).select(48, (1000.0, 2000.0)))
    inside = [s for s in chosen if 1000 <= s <= 2000]
    assert 24 <= len(inside) <= 30  # of the spread ones a few lie in it, too
    assert max(b - a for a, b in itertools.pairwise(inside)) <= 1000 / 6


def test_a_time_without_frames_takes_the_nearest():
    kept = manager(target_fps=0)
    for k in [*range(100), *range(200, 300)]:
        kept.add(grey(0), float(k))
    chosen = stamps(kept.select(12, (140.0, 150.0)))
    assert {98.0, 99.0, 200.0, 201.0} <= set(chosen)


@pytest.mark.parametrize("about", [(-9, -1), (100.5, 200)])
def test_a_time_before_or_after_all_that_is_kept_is_refused(about):
    with pytest.raises(OutOfHorizonError, match=r"frames run from 0\.000 to 99\.000 s"):
        filled(100).select(48, about)


def test_a_named_time_may_be_open_at_its_ends():
    kept = filled(100)
    assert stamps(kept.select(8, (90.0, float("inf"))))[-4:] == [96.0, 97.0, 98.0, 99.0]
    assert {0.0, 1.0} <= set(stamps(kept.select(8, (float("-inf"), 1.0))))


def test_a_change_of_size_parts_a_pair():
    kept = manager()
    for k in range(8):
        kept.add(grey(0) if k < 3 else grey(0, 8, 6), float(k))
    sizes = [[(f.height, f.id) for f in grid] for grid in kept.select(48)]
    assert sizes == [[(4, 0), (4, 1)], [(4, 2)], [(8, 3)], [(8, 4), (8, 5)], [(8, 6), (8, 7)]]


WEEK = 7 * 24 * 3600.0


def on_disk(folder):
    return len(list(folder.rglob("*.png")))


@pytest.mark.parametrize("ahead", [WEEK, 2 * 3600.0, 1800.0, 82.0, 2.0**31])
@pytest.mark.parametrize("folder", [True, False])
def test_one_frame_stamped_ahead_is_one_frame_lost(tmp_path, ahead, folder):
    with FrameStore(tmp_path if folder else None, form="png") as store:
        kept = manager(store)
        for k in range(80):
            kept.add(grey(k), 1000.0 + k)
        assert kept.add(grey(0), 1000.0 + ahead) is None
        assert kept.statistics()["frames_waiting"] == 1
        for k in range(80, 90):
            assert kept.add(grey(k), 1000.0 + k) is not None
        statistics = kept.statistics()
        assert (statistics["stored_frames"], statistics["frames_kept"]) == (90, 90)
        assert (statistics["frames_invalid_stamp"], statistics["frames_waiting"]) == (1, 0)
        assert "ahead" in kept.last_refusal
        assert not folder or on_disk(tmp_path) == 90


def test_a_bound_in_time_shorter_than_the_gap_is_no_way_out_for_a_wrong_stamp():
    kept = manager(FrameStore(form="png", max_seconds=300.0))
    for k in range(80):
        kept.add(grey(k), 1000.0 + k)
    kept.add(grey(0), 1000.0 + 900)
    kept.add(grey(1), 1080.0)
    assert len(kept.store) == 81


@pytest.mark.parametrize("jump", [WEEK, -900.0])
def test_a_jump_that_lasts_begins_an_epoch_and_leaves_what_is_on_disk(tmp_path, jump):
    with FrameStore(tmp_path, form="png") as store:
        kept = manager(store)
        for k in range(80):
            kept.add(grey(k), 1000.0 + k)
        for k in range(80, 84):
            kept.add(grey(k), 1000.0 + k + jump)
        assert on_disk(tmp_path) == len(store) == 84  # none deleted, none of the four lost
        chosen = stamps(kept.select(200))
        assert chosen == [1080 + jump + k for k in range(4)]
        assert kept.statistics()["frames_invalid_stamp"] == 0
    with FrameStore(tmp_path, form="png") as store:  # and so it is taken up again
        after = manager(store)
        assert [store.oldest_frame.stamp, after.last_stamp] == [1080 + jump, 1083 + jump]
        assert [frame.stamp for frame in store.newest(99)] == chosen
        assert on_disk(tmp_path) == 84
        after.add(grey(3), 1084 + jump)
        assert on_disk(tmp_path) == 85


def test_a_question_after_a_pause_is_of_what_came_after_it_too():
    kept = filled(5)
    for stamp in (604.0, 605.0):
        assert kept.add(grey(0), stamp) is None
    assert stamps(kept.select(48)) == [0.0, 1.0, 2.0, 3.0, 4.0, 604.0, 605.0]
    assert kept.statistics()["frames_waiting"] == 0
    assert kept.add(grey(0), 606.0) is not None


def test_stamps_looked_at_before_are_kept_at_once_after_a_pause():
    kept = manager(FrameStore(form="png"), max_time_gap=math.inf)
    assert all(kept.add(grey(0), stamp) for stamp in (0.0, 1.0, 2.0, 602.0))


def test_a_gap_that_the_store_spans_stays_in_one_epoch():
    kept = manager(FrameStore(form="png"))
    for stamp in (0.0, 1.0, 7200.0, 7201.0, 7202.0):
        kept.add(grey(0), stamp)
    assert stamps(kept.select(48))[:2] == [0.0, 1.0]


def test_frames_of_an_earlier_epoch_go_first_where_room_is_needed(tmp_path):
    room = 10 * (4096 + 256)
    with FrameStore(tmp_path, form="png", max_bytes=room) as store:
        for k in range(8):
            store.add(grey(k), 1000.0 + k, star=k == 2)
        store.start_epoch()
        for k in range(8):
            store.add(grey(k), float(k), star=k == 0)
        assert store.bytes <= room and on_disk(tmp_path) == 10
        assert [frame.stamp for frame in store.newest(99)] == [float(k) for k in range(8)]
        for k in range(8, 13):
            store.add(grey(k), float(k))
        assert [frame.stamp for frame in store.newest(99)] == [0.0, *map(float, range(4, 13))]


def test_in_memory_an_earlier_epoch_is_forgotten_and_its_ids_are_not_used_again():
    kept = filled(5)
    for stamp in (WEEK, WEEK + 1, WEEK + 2):
        kept.add(grey(0), stamp)
    assert [frame.id for frame in kept.store.newest(99)] == [5, 6, 7]
    statistics = kept.statistics()
    assert (statistics["frames_forgotten"], statistics["stored_frames"]) == (5, 3)


def test_after_a_restart_a_wrong_first_stamp_deletes_nothing(tmp_path):
    with FrameStore(tmp_path, form="png") as store:
        before = manager(store)
        for k in range(80):
            before.add(grey(k), 1000.0 + k)
    with FrameStore(tmp_path, form="png") as store:
        after = manager(store)
        after.add(grey(0), 1000.0 + WEEK)
        after.add(grey(0), 1080.0)
        assert on_disk(tmp_path) == 81


def test_a_frame_that_waits_is_kept_as_it_was_when_it_came():
    kept = manager(FrameStore(form="png"))
    kept.add(grey(0), 1000.0)
    image = grey(100)
    for k, value in enumerate((100, 150, 200)):
        image[:] = value  # one array for all, as cameras have it
        kept.add(image, WEEK + k)
    found = [kept.store.load(frame)[0, 0, 0] for frame in kept.store.newest(3)]
    assert found == [100, 150, 200]


@pytest.mark.parametrize("stamp", [float("nan"), float("inf"), 1e10, -1e300])
def test_a_stamp_beyond_whole_nanoseconds_is_refused(stamp):
    kept = filled(3)
    with pytest.raises(InvalidTimestampError):
        kept.add(grey(0), stamp)
    assert kept.statistics()["frames_added"] == 3


@settings(max_examples=examples(25))
@given(
    st.lists(st.sampled_from(["next", "ahead", "back", "set", "set back", "clear"]), max_size=60),
    st.sampled_from([0, 1.0]),
)
def test_whatever_the_stamps_every_frame_is_accounted_for(events, fps):
    kept = manager(FrameStore(form="png"), target_fps=fps)
    now, offered = 10.0 * WEEK, 0
    for event in events:
        if event == "clear":
            kept.clear()
            offered = 0
            continue
        now += {"set": WEEK, "set back": -2 * WEEK}.get(event, 0.4)
        kept.add(grey(0), now + {"ahead": WEEK / 2, "back": -WEEK / 3}.get(event, 0.0))
        offered += 1
        s = kept.statistics()
        assert s["frames_waiting"] <= MAX_WAITING
        causes = ("kept", "repeated", "not_sampled", "invalid_stamp", "waiting")
        assert s["frames_added"] == offered == sum(s[f"frames_{cause}"] for cause in causes)
        assert s["frames_kept"] == s["stored_frames"] + s["frames_forgotten"]

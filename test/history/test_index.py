# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""The index finds what a look at every key finds, within its bytes, and its states are values."""

import shutil
import tempfile

import pytest
import torch
from amounts import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from key_streams import DIM, HEADS, Stream, change, drawn, grid_bytes, index, scores_of

from stream_vlm_ros.engine import EvictionConfig, VideoStreamingInference
from stream_vlm_ros.engine.attention.base import Readout
from stream_vlm_ros.engine.cache.mrope import TextSpan, VisionSpan
from stream_vlm_ros.engine.cache.state import Change
from stream_vlm_ros.errors import InvalidParameterError
from stream_vlm_ros.history.index import NEW_STREAM, KeyIndex

SEEDS = st.integers(0, 10_000)
OF = [1, 0, 2, 1]  # two query heads look for the same keys
SIZES = st.lists(st.integers(0, 7), min_size=1, max_size=5)


def ask(seed=9, count=2):
    return drawn(seed, len(OF), count, DIM)


def watch(one, stream, *chunks, held=None):
    """An index that was told of chunks of grids of so many tokens, and what is to be found."""
    held, grids = one.empty() if held is None else held, []
    for sizes in chunks:
        told, own = stream.chunk(*sizes)
        held = one.draft(held, told)
        grids += own
    return held, grids


def whole_chunks(count, tokens=3, of=5):
    return [[tokens] * min(of, count - done) for done in range(0, count, of)]


# -- what is found -----------------------------------------------------------------------------


@settings(max_examples=examples(20))
@given(seed=SEEDS, chunks=st.lists(SIZES, min_size=1, max_size=8), count=st.integers(1, 4))
def test_scores_are_those_of_a_look_at_every_key_however_grids_came(seed, chunks, count):
    one = index()
    held, grids = watch(one, Stream(seed), *chunks)
    found = one.search(held, ask(seed, count), OF)
    # A grid without a token is stood for by the one before; those before the first, by none.
    expected, spans = [], []
    for stamps, keys in grids:
        if keys.shape[1]:
            expected.append([*stamps, keys])
            spans.append(1)
        elif expected:
            expected[-1][1] = stamps[1]
            spans[-1] += 1
    assert found.spans.tolist() == spans
    assert found.stamps.tolist() == [[first, last] for first, last, _ in expected]
    keys = [keys for _, _, keys in expected]
    if keys:
        wanted = scores_of(keys, spans, ask(seed, count), OF)
        torch.testing.assert_close(found.scores, wanted, rtol=1e-4, atol=1e-4)
    assert held.grids == len(keys) and found.scores.shape == (len(OF), len(keys))


def test_serials_count_grids_and_stamps_say_when_they_were():
    one = index()
    held, grids = watch(one, Stream(start=7.0), [3, 3], [3], [3, 3, 3])
    found = one.search(held, ask(), OF)
    assert found.serials.tolist() == [0, 1, 2, 3, 4, 5]
    assert found.stamps.tolist() == [list(stamps) for stamps, _ in grids]
    assert (held.oldest, held.newest, held.grids) == (7.0, 12.5, 6)
    assert held.nbytes == 6 * grid_bytes(3) <= one.nbytes <= one.max_bytes


def test_grids_of_other_sizes_take_as_many_slots_as_they_need():
    one, queries = index(), ask()
    held, grids = watch(one, Stream(), [3, 3], [20], [1, 1], [9], [3])
    found = one.search(held, queries, OF)
    wanted = scores_of([keys for _, keys in grids], [1] * 7, queries, OF)
    torch.testing.assert_close(found.scores, wanted, rtol=1e-4, atol=1e-4)
    assert held.nbytes == (2 + 7 + 2 + 3 + 1) * grid_bytes(3)


def test_where_tokens_are_left_out_a_slot_is_a_part_of_a_grid():
    one, stream, queries = index(), Stream(), ask()
    told, grids = stream.chunk(10, 391, 70, whole=391)
    held = one.draft(one.empty(), told)
    # 391 tokens are 7 slots of 56; 10 take one of them, and 70 two.
    assert held.nbytes == (1 + 7 + 2) * grid_bytes(56)
    wanted = scores_of([keys for _, keys in grids], [1] * 3, queries, OF)
    found = one.search(held, queries, OF)
    torch.testing.assert_close(found.scores, wanted, rtol=1e-4, atol=1e-4)


def test_a_chunk_without_text_and_text_without_a_chunk_are_taken():
    one, stream, queries = index(), Stream(), ask()
    told, grids = stream.chunk(3, 3, text=(0, 0))
    held = one.draft(one.empty(), told)
    text = change([TextSpan(4)], torch.full((len(HEADS), 4, DIM), 1e4))
    assert one.draft(held, text) is held
    assert one.draft(held, Change([TextSpan(4)], 2, (), None)) is held
    assert one.draft(held, Change((), 2, (), None)) is held
    wanted = scores_of([keys for _, keys in grids], [1, 1], queries, OF)
    found = one.search(held, queries, OF)
    torch.testing.assert_close(found.scores, wanted, rtol=1e-4, atol=1e-4)


@settings(max_examples=examples(15))
@given(of=st.lists(st.integers(0, 2), min_size=1, max_size=5), count=st.integers(1, 3))
def test_any_query_heads_look_for_any_heads(of, count):
    one = index()
    held, grids = watch(one, Stream(), [3, 3, 3])
    queries = drawn(1, len(of), count, DIM)
    wanted = scores_of([keys for _, keys in grids], [1] * 3, queries, of)
    found = one.search(held, queries, of)
    torch.testing.assert_close(found.scores, wanted, rtol=1e-4, atol=1e-4)


@settings(max_examples=examples(20))
@given(start=st.integers(0, 130), length=st.integers(0, 60), room=st.sampled_from([20, 1000]))
def test_a_time_leaves_what_stands_for_some_of_it_with_the_same_scores(start, length, room):
    one = index(room * grid_bytes())
    held, _ = watch(one, Stream(), *whole_chunks(60))
    start, stop = start + 90.25, start + length + 90.25
    every = one.search(held, ask(), OF)
    found = one.search(held, ask(), OF, between=(start, stop))
    inside = [
        number
        for number, (first, last) in enumerate(every.stamps)
        if first <= stop and last >= start
    ]
    assert found.serials.tolist() == every.serials[inside].tolist()
    assert found.stamps.tolist() == every.stamps[inside].tolist()
    assert torch.equal(found.scores, every.scores[:, inside])


def test_the_mean_that_is_taken_off_counts_each_grid_of_the_stream_once():
    # 1 in the first half and 0 in the second; the first half is thinned first, and still a half.
    one = index(max_bytes=64 * grid_bytes())
    held = one.empty()
    for number, value in enumerate([1.0] * 48 + [0.0] * 48):
        keys = torch.full((len(HEADS), 3, DIM), value)
        stamps = ((float(number), number + 0.5),)
        held = one.draft(held, change([VisionSpan((number,), stamps, 1, 3, True)], keys))
    found = one.search(held, torch.ones(1, 1, DIM) / DIM, [0])
    assert found.spans.max() > 1
    assert found.scores[0, 0] == pytest.approx(0.5)
    assert found.scores[0, -1] == pytest.approx(-0.5)


def test_what_all_keys_have_in_common_takes_no_precision():
    """Of bfloat16's 8 bits a common part 100 times as large would leave one."""
    plain, moved = index(dtype=torch.bfloat16), index(dtype=torch.bfloat16)
    common = 100 * drawn(3, len(HEADS), 1, DIM)
    scores = []
    for one, offset in ((plain, 0 * common), (moved, common)):
        held, stream = one.empty(), Stream()
        for _ in range(10):
            vision = VisionSpan((0,), ((stream.now, stream.now),), 1, 3, True)
            stream.now += 1
            keys = drawn(next(stream.seeds), len(HEADS), 3, DIM)
            held = one.draft(held, change([vision], keys + offset))
        scores.append(one.search(held, ask(), OF).scores)
    torch.testing.assert_close(*scores, rtol=0.05, atol=0.1)


def test_an_empty_index_finds_nothing():
    one = index()
    held = one.empty()
    found = one.search(held, ask(), OF)
    assert found.serials.tolist() == [] and found.scores.shape == (len(OF), 0)
    assert found.stamps.shape == (0, 2)
    assert one.nbytes == held.grids == held.nbytes == 0
    assert held.oldest is held.newest is None


# -- within its bytes --------------------------------------------------------------------------


@settings(max_examples=examples(10))
@given(count=st.integers(1, 3000), room=st.integers(2, 300))
def test_what_is_left_out_is_stood_for_by_a_neighbour_and_all_is_about_equally_dense(count, room):
    one = index(max_bytes=room * grid_bytes())
    held, _ = watch(one, Stream(), *whole_chunks(count, of=20))
    found = one.search(held, ask(), OF)
    serials, spans = found.serials.tolist(), found.spans.tolist()
    assert serials[0] == 0
    # One after the other without a gap or an overlap, up to the newest grid.
    assert [n + s for n, s in zip(serials, spans, strict=True)] == [*serials[1:], count]
    assert found.stamps.tolist() == [
        [100.0 + n, 99.5 + n + s] for n, s in zip(serials, spans, strict=True)
    ]
    assert found.left_out.tolist() == [span - 1 for span in spans]
    assert held.left_out == count - len(serials)
    # Twice as thin as it must be, by powers of two, and a little more while it is being thinned.
    assert max(spans) <= max(1, 4 * count / room)
    assert len(serials) >= min(count, room) / 3
    assert one.nbytes <= one.max_bytes


def test_not_even_two_grids_that_fit_are_refused_in_words():
    one, stream = index(max_bytes=10 * grid_bytes()), Stream()
    held, _ = watch(one, stream, [3, 3])
    with pytest.raises(InvalidParameterError, match="two grids of 16 tokens"):
        one.draft(held, stream.chunk(16)[0])
    assert len(one.search(held, ask(), OF).serials) == 2
    held, _ = watch(one, stream, [15, 15, 3], held=held)  # five slots each
    assert len(one.search(held, ask(), OF).serials) >= 1 and one.nbytes <= one.max_bytes
    tight = index(max_bytes=grid_bytes())
    with pytest.raises(InvalidParameterError, match="allow for them"):
        tight.draft(tight.empty(), stream.chunk(3)[0])
    assert tight.nbytes == 0


# -- behind a stream ---------------------------------------------------------------------------


def test_behind_a_stream_it_holds_the_keys_of_its_frames_and_goes_back_with_it(small, noise):
    """With tokens left out, a larger picture, questions kept, eviction, a clone and a reset."""
    model, processor = small
    config = EvictionConfig(150, 0, 0, 1, 0.3, 0.3)
    engine = VideoStreamingInference(
        model, processor, eviction_config=config, skip_similarity=0.999, fork_slack_tokens=100
    )
    manager, shape = engine.cache_manager, model.kv_shape
    heads = [(1, 0), (0, 1)]
    one = KeyIndex(heads, shape.head_dim, 1 << 20, dtype=torch.float32)
    told = []

    class Keeps:
        """What the memory tells: the grids' stamps, their tokens and keys, one by one."""

        def empty(self):
            return ()

        def draft(self, held, change):
            at, new = 0, []
            for span in change.appended:
                if isinstance(span, VisionSpan):
                    whole = [range(span.height * span.width)] * len(span.ticks)
                    for stamps, places in zip(span.stamps, span.places or whole, strict=True):
                        keys = [change.read.keys(layer)[head] for layer, head in heads]
                        new.append((stamps, torch.stack(keys)[:, at : at + len(places)].clone()))
                        at += len(places)
                else:
                    at += span.count
            told.append([len(keys[0]) for _, keys in new])
            return (*held, *new)

    manager.accompany("plain", Keeps())
    manager.accompany("keys", one, Readout(keys={0: [0, 1], 1: [0, 1]}))

    def same():
        grids = [[*stamps, keys] for stamps, keys in manager.companion("plain")]
        held = []
        for first, last, keys in grids:
            if keys.shape[1]:
                held.append([first, last, keys, 1])
            elif held:
                held[-1][1], held[-1][3] = last, held[-1][3] + 1
        queries = drawn(3, 2, 2, shape.head_dim)
        found = one.search(manager.companion("keys"), queries, [1, 0])
        assert found.stamps.tolist() == [one[:2] for one in held]
        spans = [one[3] for one in held]
        assert found.spans.tolist() == spans
        if held:
            wanted = scores_of([one[2] for one in held], spans, queries, [1, 0])
            torch.testing.assert_close(found.scores, wanted, rtol=1e-4, atol=1e-4)
        return len(held)

    still = noise(1)[0]
    for number in range(4):
        engine.append_video_chunk(noise(4, seed=number), fps=2)
    copy = manager.clone()
    assert same() == 8
    engine.append_video_chunk([still] * 6, fps=2)  # of the second and third a token is left
    assert told[-1][1:] == [1, 1] and same() == 11
    engine.append_video_chunk(noise(4, 84, 84, seed=9), fps=2)
    engine.ask("Why?", max_new_tokens=3, update_state=True)
    engine.append_video_chunk(noise(3, seed=10), fps=2)
    assert same() == 15
    manager.restore(copy)
    assert same() == 8
    engine.append_video_chunk(noise(2, seed=11), fps=2)
    assert same() == 9
    engine.reset()
    assert same() == 0


@pytest.mark.gpu
@pytest.mark.parametrize("folder", [False, True])
@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_keys_of_a_gpu_are_found_there_and_on_the_host(tmp_path, device, folder):
    """In bfloat16, against the host in float32."""
    where = {"dtype": torch.bfloat16, "device": device, "folder": tmp_path if folder else None}
    one, other = index(**where), index()
    stream, same = Stream(device="cuda"), Stream()
    held, plain = one.empty(), other.empty()
    for _ in range(40):
        held = one.draft(held, stream.chunk(3, 3)[0])
        plain = other.draft(plain, same.chunk(3, 3)[0])
    found = one.search(held, ask().cuda(), OF)
    wanted = other.search(plain, ask(), OF)
    assert found.scores.device.type == device
    assert found.serials.tolist() == wanted.serials.tolist()
    torch.testing.assert_close(found.scores.cpu(), wanted.scores, rtol=0.03, atol=0.1)
    one.close()
    if folder:
        with index(**where) as again:
            taken_up = again.search(again.empty(), ask(), OF)
            torch.testing.assert_close(taken_up.scores.cpu(), found.scores.cpu())


def test_an_older_state_finds_nothing_that_stands_over_a_forgotten_time():
    one, stream = index(max_bytes=14 * grid_bytes(4)), Stream()
    held = one.draft(one.empty(), stream.chunk(4)[0])
    held = one.draft(held, stream.chunk(1, whole=4)[0])
    stream.now += 1
    older = one.draft(held, stream.chunk(1, whole=4)[0])  # of 100, 101 and 103 s
    held = one.draft(held, stream.chunk(0, 0, 0, 1, whole=4)[0])  # what only `older` has goes
    one.forget(held, 102.25, 102.25)
    for first, last in one.search(older, ask(), OF).stamps.tolist():
        assert first > 102.25 or last < 102.25


# -- states are values -------------------------------------------------------------------------


class Values(RuleBasedStateMachine):
    """Whatever happens, a state finds its own grids, with their own keys, or does without them.

    The model of a state is the whole of its stream: for each serial stamps and keys, None for keys
    that a grid never had. ``since``: how many chunks came after it, to another state or to it.
    """

    @initialize(seed=SEEDS, room=st.sampled_from([14, 40, 100_000]))
    def begin(self, seed, room):
        self.room = room
        self.one, self.stream = self.opened(), Stream(seed)
        self.highest = self.epoch = self.epochs = 0
        self.held = self.newest = self.one.empty()
        self.next, self.there = 0, set()
        self.seen, self.newest_seen = {}, {}
        self.older = []
        self.first_size = True

    def opened(self):
        return index(max_bytes=self.room * grid_bytes(4))

    def drafted(self, sizes):
        # The first grid decides how large a slot is.
        sizes = [4] if self.first_size else sizes
        self.first_size = False
        told, grids = self.stream.chunk(*sizes, whole=8 if max(sizes) > 4 else 4)
        own = dict(enumerate(grids, self.next))
        held = self.newest = self.one.draft(self.held, told)
        self.newest_seen = {**self.seen, **own}
        self.highest = max(self.highest, self.next + len(grids))
        return held, {**self.seen, **own}, self.next + len(grids)

    @rule(sizes=st.lists(st.sampled_from([0, 1, 4, 4, 8]), min_size=1, max_size=6))
    def append(self, sizes):
        self.older.append((self.held, self.seen, self.next, self.epoch))
        before = set(self.seen)
        self.held, self.seen, self.next = self.drafted(sizes)
        new = set(self.seen) - before
        self.there |= {serial for serial in new if self.seen[serial][1].shape[1]}

    @rule(sizes=st.lists(st.sampled_from([0, 1, 4, 4, 8]), min_size=1, max_size=6))
    def append_and_drop(self, sizes):
        held, seen, upcoming = self.drafted(sizes)
        self.older.append((held, seen, upcoming, self.epoch))

    @rule(data=st.data())
    def restore(self, data):
        if self.older:
            self.older.append((self.held, self.seen, self.next, self.epoch))
            chosen = data.draw(st.sampled_from(self.older[:-1]))
            self.held, self.seen, self.next, self.epoch = chosen
            self.there = {serial for serial, *_ in self.found(self.held)}

    @rule(start=st.integers(0, 20), length=st.integers(0, 6))
    def forget(self, start, length):
        start = self.stream.now - start - 0.75
        stop = start + length
        before = self.found(self.held)
        self.older.append((self.held, self.seen, self.next, self.epoch))
        self.held = self.newest = self.one.forget(self.held, start, stop)
        left = [grid for grid in before if grid[2] > stop or grid[3] < start]
        assert self.found(self.held) == left
        self.there = {serial for serial, *_ in left}
        self.seen = self.newest_seen = {
            n: one for n, one in self.seen.items() if any(n in range(*g[:2]) for g in left)
        }
        for held, _, _, epoch in self.older:
            for *_, first, last in self.found(held) if epoch == self.epoch else ():
                assert first > stop or last < start

    @rule(how=st.sampled_from(["no", "no", "no", "clear", "epoch"]))
    def begin_anew(self, how):
        if how == "no":
            return
        self.older.append((self.held, self.seen, self.next, self.epoch))
        if how == "clear":
            self.held = self.one.clear()
            assert self.one.nbytes == 0
            assert all(not self.found(held) for held, *_ in self.older)
            self.first_size = True
        else:
            self.held = self.one.start_epoch(self.held)
            self.epochs += 1
        self.make_index()

    def make_index(self):
        self.newest, self.newest_seen = self.held, {}
        self.there, self.epoch = set(), self.epochs
        self.seen, self.next = {}, self.highest + NEW_STREAM if self.highest else 0

    def found(self, held):
        found = self.one.search(held, ask(), OF)
        return [
            (serial, serial + span, *stamps)
            for serial, span, stamps in zip(
                found.serials.tolist(), found.spans.tolist(), found.stamps.tolist(), strict=True
            )
        ]

    @invariant()
    def every_state_finds_its_own(self):
        self.older = self.older[-8:]
        for held, seen, *_ in [*self.older, (self.held, self.seen)]:
            found = self.one.search(held, ask(), OF)
            grids = self.found(held)
            end = -1
            for serial, stop, first, last in grids:
                assert serial >= end
                end = stop
                assert (first, last) == (seen[serial][0][0], seen[stop - 1][0][1])
            # (Of the last one they are not known of where others took its keys' place since.)
            for (serial, stop, *_), left_out in list(zip(grids, found.left_out, strict=True))[:-1]:
                had_keys = sum(seen[n][1].shape[1] > 0 for n in range(serial + 1, stop))
                assert had_keys <= left_out < stop - serial
            if grids:
                keys = [seen[serial][1] for serial, *_ in grids]
                wanted = scores_of(keys, found.spans.tolist(), ask(), OF)
                torch.testing.assert_close(found.scores, wanted, rtol=1e-3, atol=1e-3)

    @invariant()
    def the_newest_state_lacks_nothing_that_there_is_room_for(self):
        if self.room == 100_000:
            assert {serial for serial, *_ in self.found(self.held)} == self.there

    @invariant()
    def its_bytes_are_bounded(self):
        assert self.one.nbytes <= self.one.max_bytes
        assert self.held.nbytes <= self.one.max_bytes


class ValuesInFolder(Values):
    """The same, and now and then another process takes the folder up."""

    behind = None

    def __init__(self):
        super().__init__()
        self.folder = tempfile.mkdtemp()

    def opened(self):
        return index(
            max_bytes=self.room * grid_bytes(4), folder=self.folder, write_behind=self.behind
        )

    @rule()
    def open_again(self):
        before = self.found(self.newest)
        self.one.close()
        self.one = self.opened()
        self.older = []
        self.held = self.one.empty()
        assert self.found(self.held) == before
        # A serial that nobody stands for, since it was forgotten, may be given again.
        known = {serial for first, stop, *_ in before for serial in range(first, stop)}
        self.seen = {n: one for n, one in self.newest_seen.items() if n in known}
        # What was seen last counts from where that ended; serials say that a stream begins.
        self.highest = before[-1][1] if before else 0
        self.next = self.highest + NEW_STREAM if self.highest else 0
        self.there = {serial for serial, *_ in before}
        self.newest = self.held

    def teardown(self):
        self.one.close()
        shutil.rmtree(self.folder)


class ValuesWrittenBehind(ValuesInFolder):
    """The same, and a thread writes a chunk's keys."""

    behind = True


SOME = settings(max_examples=examples(12), stateful_step_count=25)
TestValues, TestValuesInFolder = Values.TestCase, ValuesInFolder.TestCase
TestValuesWrittenBehind = ValuesWrittenBehind.TestCase
TestValues.settings = TestValuesInFolder.settings = TestValuesWrittenBehind.settings = SOME

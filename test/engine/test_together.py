# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Engines that share a model append their chunks together, and remember what each would alone."""

import gc
import itertools
import weakref

import pytest
import torch
from toy_qwen import SINK_AND_WINDOW

from stream_vlm_ros.engine import EvictionConfig, VideoStreamingInference, together
from stream_vlm_ros.engine.captured import PLAIN_STEP, Recording
from stream_vlm_ros.engine.chunk_path import CapturedChunks
from stream_vlm_ros.engine.together import EngineGroup, Together, append_together, finished
from stream_vlm_ros.errors import (
    InvalidImageError,
    InvalidParameterError,
    NotFiniteError,
    StreamBusyError,
)

CAPS = (220, 160, 220)
SIZES = ((56, 84), (56, 84), (84, 56))  # of the cameras' pictures


@pytest.fixture
def model(toys):
    return toys.model(0)


@pytest.fixture
def processor(toys):
    return toys.processor()


class Cameras:
    """Three engines on one model, and the same three each by itself.

    steps: their chunks go by steps of fixed shape, as in a CUDA graph.
    """

    def __init__(self, toys, model, processor, steps, **options):
        self.toys = toys
        self.group = EngineGroup(CAPS)
        make = lambda cap, **more: VideoStreamingInference(  # noqa: E731
            model, processor, None, EvictionConfig.novelty(cap), **options, **more
        )
        self.together = [make(cap, group=self.group) for cap in CAPS]
        self.alone = [make(cap) for cap in CAPS]
        self.path = self.together[0].chunk_path
        if steps:
            self.passes = set()  # how many chunks were in a step

            def attend(queries, stream, tail, memory, *given):
                self.passes.add(memory.requests)
                return PLAIN_STEP.attend(queries, stream, tail, memory, *given)

            kernels = PLAIN_STEP._replace(attend=attend)
            room = self.group.room
            self.path = CapturedChunks(model, model.functions, room, kernels, batches=(2, 1))
            for engine in self.together:
                engine.chunk_path = self.path

    def chunks(self, engines, number, which=(0, 1, 2)):
        return [
            (
                engines[camera],
                self.toys.frames(4, *SIZES[camera], seed=10 * number + camera),
                [2.0 * number + 0.5 * frame for frame in range(4)],
            )
            for camera in which
        ]

    def watch(self, numbers, which=(0, 1, 2)):
        for number in numbers:
            appended = append_together(self.chunks(self.together, number, which))
            for (engine, frames, times), result in zip(
                self.chunks(self.alone, number, which), appended, strict=True
            ):
                expected = engine.append_video_chunk(frames, timestamps=times)
                for name in ("tokens", "evicted_tokens", "cache_length", "grid", "closed_seconds"):
                    assert result[name] == expected[name], name

    def assert_same(self, which=(0, 1, 2)):
        for one, other in ((self.together[camera], self.alone[camera]) for camera in which):
            found, expected = one.cache_manager.gather(), other.cache_manager.gather()
            # Sums of some hundred float32 in another order, chunk after chunk: see test_chunk_path.
            assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()
            assert one.cache_manager.time_spans() == other.cache_manager.time_spans()
            assert one.ask("What is it?", 6)[0] == other.ask("What is it?", 6)[0]


@pytest.fixture(params=[False, True], ids=["call by call", "steps"])
def cameras(request, toys, model, processor):
    return Cameras(toys, model, processor, request.param)


def test_cameras_remember_together_what_each_would_alone(cameras):
    cameras.watch(range(12))
    cameras.assert_same()


def test_cameras_come_and_go(cameras):
    cameras.watch(range(3))
    cameras.watch(range(3, 7), which=(2,))
    cameras.watch(range(7, 10), which=(1, 0))
    cameras.watch(range(10, 13))
    cameras.assert_same()
    if isinstance(cameras.path, CapturedChunks):
        assert cameras.passes == {1, 2}
        assert set(cameras.path.detours) == {"it is the first"} and not cameras.path.refused


def test_what_fails_fails_alone(cameras):
    cameras.watch(range(4))
    chunks = cameras.chunks(cameras.together, 4)
    chunks[1] = (chunks[1][0], ["no picture"], [8.0])
    chunks[2] = (chunks[2][0], chunks[2][1], [9.0, 8.5, 9.0, 9.5])
    first, *others = append_together(chunks)
    assert first.tokens > 0
    assert [type(fault).__name__ for fault in others] == [
        "InvalidImageError",
        "InvalidTimestampError",
    ]
    (engine, frames, times), *_ = cameras.chunks(cameras.alone, 4)
    engine.append_video_chunk(frames, timestamps=times)
    cameras.watch(range(5, 8))
    cameras.assert_same()


def test_a_pass_that_fails_is_done_again_one_by_one(cameras, monkeypatch):
    cameras.watch(range(3))
    path, tried = type(cameras.path), []
    append_all = path.append_all

    def failing(self, several):
        if len(several) > 1:
            for one in several:  # as far as it came
                one.fork.layers[0].length += len(one.embeddings)
            tried.append(len(several))
            raise torch.OutOfMemoryError("too large together")
        return append_all(self, several)

    monkeypatch.setattr(path, "append_all", failing)
    cameras.watch(range(3, 6))
    assert tried == [3, 3, 3]
    cameras.assert_same()


def test_pictures_are_encoded_ahead_once(cameras, monkeypatch):
    encoded = []
    encode_all = cameras.path.encode_all
    monkeypatch.setattr(
        cameras.path, "encode_all", lambda some: encoded.append(len(some)) or encode_all(some)
    )
    together, rounds = Together(), [cameras.chunks(cameras.together, n) for n in range(5)]
    for number, chunks in enumerate(rounds):
        coming = rounds[number + 1] if number < 4 else []
        steps = together.append(chunks, [(engine, frames) for engine, frames, _ in coming])
        pieces = len(list(steps))
        assert pieces <= 3  # two sizes of pictures, one pass over the language model
        for engine, frames, times in cameras.chunks(cameras.alone, number):
            engine.append_video_chunk(frames, timestamps=times)
    assert sum(encoded) == 15  # each camera's pictures, once
    cameras.assert_same()


def test_pictures_encoded_ahead_wait_until_it_is_their_turn(cameras, monkeypatch):
    encoded, together = [], Together()
    encode_all = cameras.path.encode_all
    monkeypatch.setattr(
        cameras.path, "encode_all", lambda some: encoded.append(len(some)) or encode_all(some)
    )
    first, second = (cameras.chunks(cameras.together, number) for number in range(2))
    late = first[2]
    for chunks in (first[:2], second[:2]):
        finished(together.append(chunks, [late[:2]]))
    before = sum(encoded)
    finished(together.append([late]))
    assert sum(encoded) == before == 5  # two of each round, and the late one once
    for number in range(2):
        for camera, (engine, frames, times) in enumerate(cameras.chunks(cameras.alone, number)):
            if camera < 2 or number == 0:
                engine.append_video_chunk(frames, timestamps=times)
    cameras.assert_same()


def test_pictures_that_cannot_be_used_are_refused_when_their_turn_comes(cameras):
    chunks, together = cameras.chunks(cameras.together, 0), Together()
    steps = together.append(chunks, [(cameras.together[0], ["no picture"])])
    assert all(done.tokens for done in finished(steps))
    (fault,) = finished(together.append([(cameras.together[0], ["no picture"], [2.0])]))
    assert isinstance(fault, InvalidImageError)


def test_a_question_between_two_pieces_reads_the_memory_before_the_chunk(cameras):
    cameras.watch(range(4))
    steps = Together().append(cameras.chunks(cameras.together, 4))
    for _ in steps:
        for camera in (0, 1, 2):
            said = cameras.together[camera].ask("What was it?", 6)[0]
            assert said == cameras.alone[camera].ask("What was it?", 6)[0]
    for engine, frames, times in cameras.chunks(cameras.alone, 4):
        engine.append_video_chunk(frames, timestamps=times)
    cameras.assert_same()


def test_memories_lie_side_by_side_and_give_their_room_back(toys, model, processor):
    group = EngineGroup([200, 200])
    make = lambda: VideoStreamingInference(  # noqa: E731
        model, processor, None, EvictionConfig(200, **SINK_AND_WINDOW), group=group
    )
    engines = [make() for _ in range(3)]
    inside = [engine.cache_manager.memory.data_ptr() for engine in engines]
    whole = group.room.memory
    assert whole.shape[3] == 3 * 200  # one more than there are engines
    step = whole.stride(3) * whole.itemsize
    assert [(at - whole.data_ptr()) // step for at in inside] == [0, 200, 400]
    late = make()
    assert late.cache_manager.memory.untyped_storage().data_ptr() != whole.data_ptr()
    second = engines.pop(1)
    del second
    gc.collect()
    assert make().cache_manager.memory.data_ptr() == inside[1]


def test_a_memory_that_lies_elsewhere_goes_by_itself(toys, model, processor):
    cameras = Cameras(toys, model, processor, steps=True)
    cameras.group.room.take(cameras.together[0].cache_manager.shape, 0, torch.device("cpu"))
    cameras.watch(range(3))
    engine = cameras.together[0]
    elsewhere = VideoStreamingInference(model, processor, None, EvictionConfig.novelty(CAPS[0]))
    elsewhere.chunk_path = cameras.path
    cameras.together[0] = elsewhere
    cameras.alone[0] = VideoStreamingInference(
        model, processor, None, EvictionConfig.novelty(CAPS[0])
    )
    cameras.watch(range(3, 8))
    assert cameras.path.detours["the memory lies elsewhere"] == 4
    cameras.assert_same()
    del engine


def test_a_saved_memory_is_loaded_into_the_room(toys, model, processor, tmp_path):
    cameras = Cameras(toys, model, processor, steps=True)
    cameras.watch(range(5))
    for engines in (cameras.together, cameras.alone):
        engines[1].save_memory(tmp_path / "kept")
        engines[1].load_memory(tmp_path / "kept")
        (tmp_path / "kept").unlink()
    cameras.watch(range(5, 9))
    assert set(cameras.path.detours) == {"it is the first"}
    cameras.assert_same()


def test_a_group_has_one_model_and_says_how_large_its_memories_are(toys, model, processor):
    group = EngineGroup([200, 300])
    config = EvictionConfig(200, **SINK_AND_WINDOW)
    VideoStreamingInference(model, processor, None, config, group=group)
    with pytest.raises(InvalidParameterError, match="share one model"):
        VideoStreamingInference(toys.model(1), processor, None, config, group=group)
    with pytest.raises(InvalidParameterError, match="say how many for each"):
        VideoStreamingInference(model, processor, None, EvictionConfig(0, 32, 96), group=group)
    for none in ([], [0]):
        with pytest.raises(InvalidParameterError, match="wants the tokens"):
            EngineGroup(none)


def test_memories_of_unlike_caps_take_no_more_room_than_they_need(toys, model, processor, caplog):
    group = EngineGroup([100, 400])
    config = lambda cap: EvictionConfig(cap, 16, 48)  # noqa: E731
    small, large, third = (
        VideoStreamingInference(model, processor, None, config(cap), group=group)
        for cap in (100, 400, 400)
    )
    room = group.room.memory
    assert room.shape[3] == 100 + 400 + 400
    assert not caplog.records
    other = VideoStreamingInference(model, processor, None, config(100), group=group)
    assert "has no room next to those of its group" in caplog.text
    storages = [one.cache_manager.memory.untyped_storage() for one in (small, large, third, other)]
    inside = [storage.data_ptr() == room.data_ptr() for storage in storages]
    assert inside == [True, True, True, False]


def test_an_engine_takes_one_chunk_at_a_time(cameras):
    chunk = cameras.chunks(cameras.together, 0)[0]
    with pytest.raises(InvalidParameterError, match="one chunk at a time"):
        append_together([chunk, chunk])
    assert cameras.together[0].cache_manager.get_seq_length() == 0


def test_a_memory_that_is_changed_between_two_pieces_takes_no_chunk_made_for_another(cameras):
    cameras.watch(range(3))
    steps = Together().append(cameras.chunks(cameras.together, 3))
    next(steps)
    engine, frames, times = cameras.chunks(cameras.together, 3)[1]
    before = engine.cache_manager.state.chunks
    try:
        engine.append_video_chunk(frames, timestamps=times)
    except StreamBusyError:
        assert engine.cache_manager.state.chunks == before
        changed = 0
    else:
        changed = 1
    _, second, _ = finished(steps)
    assert isinstance(second, StreamBusyError) == bool(changed)
    assert engine.cache_manager.state.chunks == before + 1


@pytest.mark.parametrize("watched", [0, 3])
@pytest.mark.parametrize("change", ["reset", "append", "load"])
def test_a_chunk_whose_memory_is_changed_before_its_commit_is_refused_and_changes_nothing(
    toys, model, processor, tmp_path, watched, change
):
    engine, other = (
        VideoStreamingInference(model, processor, None, EvictionConfig.novelty(160))
        for _ in range(2)
    )

    def watch(one, number):
        one.append_video_chunk(toys.frames(4, 56, 84, seed=number), fps=2)

    def prepared(one):
        one.reset()
        for number in range(watched):
            watch(one, number)
        return one

    watch(other, 9)
    other.save_memory(tmp_path / "saved")
    first = 2 if change == "reset" and not watched else 1  # it is empty before and after
    change = {
        "reset": lambda one: one.reset(),
        "append": lambda one: watch(one, 8),
        "load": lambda one: one.load_memory(tmp_path / "saved"),
    }[change]
    change(prepared(other))
    pieces = range(first, 4)  # encoding, appending, checking; behind these it is committed
    for piece, done_before in itertools.product(pieces, (True, False)):
        steps = prepared(engine).append_steps(toys.frames(4, 56, 84, seed=7), fps=2)
        work = next(steps)
        for _ in range(1, piece):
            work = steps.send(work.run())
        done = work.run() if done_before else None
        try:
            change(engine)
        except StreamBusyError:  # no room for it beside the chunk
            continue
        with pytest.raises(StreamBusyError, match="the memory was changed"):
            work = steps.send(done if done_before else work.run())
            while True:
                work = steps.send(work.run())
        assert not engine.cache_manager.living_forks
        assert engine.cache_manager.state == other.cache_manager.state
        assert torch.equal(engine.cache_manager.gather(), other.cache_manager.gather())


@pytest.mark.parametrize("dropped", [False, True])
def test_what_breaks_off_gives_back_what_it_has_lent(cameras, monkeypatch, dropped):
    cameras.watch(range(3))
    steps = Together().append(cameras.chunks(cameras.together, 3))
    if dropped:
        next(steps)
        steps.close()
    else:
        monkeypatch.setattr(type(cameras.path), "append_all", interrupted)
        with pytest.raises(KeyboardInterrupt) as kept:  # with its traceback
            finished(steps)
        assert kept.tb is not None
        monkeypatch.undo()
    assert not any(engine.cache_manager.living_forks for engine in cameras.together)
    cameras.watch(range(3, 6))
    cameras.assert_same()


def interrupted(*_):
    raise KeyboardInterrupt


def test_pictures_encoded_ahead_are_those_and_no_others(cameras):
    """Of an engine's own pixels, and of the frames that are in the list when it is appended."""
    together, first = Together(), cameras.chunks(cameras.together, 0)
    pictures = [[*frames] for _, frames, _ in cameras.chunks(cameras.together, 1)]
    ahead = [(engine, frames) for (engine, *_), frames in zip(first, pictures, strict=True)]
    finished(together.append(first, ahead))
    cameras.together[0].limit_pixels(28 * 56)
    pictures[1][:] = cameras.chunks(cameras.together, 9)[1][1]  # the list is used again
    times = [2.0, 2.5, 3.0, 3.5]
    second = [(engine, frames, times) for (engine, _), frames in zip(ahead, pictures, strict=True)]
    done = finished(together.append(second))
    for number, engine in enumerate(cameras.alone):
        engine.append_video_chunk(first[number][1], timestamps=first[number][2])
        if number == 0:
            engine.limit_pixels(28 * 56)
        expected = engine.append_video_chunk(pictures[number], timestamps=times)
        assert done[number].grid == expected.grid
    cameras.assert_same()


def test_an_engine_whose_pictures_were_encoded_ahead_can_be_let_go(cameras):
    together, chunks = Together(), cameras.chunks(cameras.together, 0)
    ahead = [(engine, cameras.toys.frames(4, 56, 84)) for engine in cameras.together]
    finished(together.append(chunks, ahead))
    gone = [weakref.ref(engine) for engine in cameras.together]
    del chunks, ahead
    cameras.together.clear()
    gc.collect()
    assert [engine() for engine in gone] == [None] * 3


def test_pictures_encoded_ahead_for_one_engine_are_not_anothers(toys, model, processor):
    group = EngineGroup([200, 200])
    config = EvictionConfig(200, **SINK_AND_WINDOW)
    engines = [
        VideoStreamingInference(model, processor, None, config, group=group, max_pixels=pixels)
        for pixels in (None, 28 * 56)
    ]
    frames, times, together = toys.frames(4, 56, 84, seed=3), [2.0, 2.5, 3.0, 3.5], Together()
    start = [(engine, toys.frames(4, 56, 84), [0.0, 0.5, 1.0, 1.5]) for engine in engines]
    finished(together.append(start, [(engine, frames) for engine in engines]))
    one, other = finished(together.append([(engine, frames, times) for engine in engines]))
    assert one.grid[1:] != other.grid[1:]


def test_a_coming_chunk_that_cannot_be_encoded_harms_no_other(cameras, monkeypatch):
    def full(frames):
        raise torch.OutOfMemoryError("no room for these pictures")

    monkeypatch.setattr(cameras.together[1], "prepare", full)
    chunks = cameras.chunks(cameras.together, 0, which=(0, 2))
    done = finished(Together().append(chunks, [(cameras.together[1], ["any"])]))
    assert [one.tokens > 0 for one in done] == [True, True]


def test_a_chunk_that_is_no_number_lets_no_unproved_keys_of_others_in(toys, model, processor):
    """The first step for two chunks is wrong, and one of them is no measure."""
    cameras = Cameras(toys, model, processor, steps=True)
    cameras.watch(range(3), which=(0,))
    cameras.watch(range(3), which=(1,))
    cameras.watch(range(3), which=(2,))
    attend = PLAIN_STEP.attend

    def wrong_for_two(queries, stream, tail, memory, *given):
        out = attend(queries, stream, tail, memory, *given)
        return -out if memory.requests == 2 else out

    kernels = PLAIN_STEP._replace(attend=wrong_for_two)
    path = CapturedChunks(model, model.functions, cameras.group.room, kernels, batches=(2, 1))
    encode_all = path.encode_all

    def bad_features(several):
        good = encode_all(several)
        return [good[0], good[1] * torch.nan] if len(good) == 2 else good

    path.encode_all = bad_features
    for engine in cameras.together:
        engine.chunk_path = path
    chunks = cameras.chunks(cameras.together, 3, which=(0, 1))
    good, bad = append_together(chunks)
    assert isinstance(bad, NotFiniteError) and good.tokens > 0
    assert [kind[-1] for kind in path.refused] == [2]
    cameras.alone[0].append_video_chunk(*chunks[0][1:2], timestamps=chunks[0][2])
    cameras.assert_same()


@pytest.mark.parametrize("batches", [(1,), (2, 1)])
def test_hidden_states_hold_until_all_are_looked_at(toys, model, processor, batches):
    """As under CUDA graphs, where every replay writes to the same place."""
    cameras = Cameras(toys, model, processor, steps=False)
    place = {}

    def recorder(step, pool):
        def replay():
            found = step()
            kept = place.setdefault(tuple(found.shape[1:]), torch.empty(4096, *found.shape[1:]))
            kept[: len(found)] = found
            return kept[: len(found)]

        return Recording(replay, None)

    path = CapturedChunks(
        model, model.functions, cameras.group.room, PLAIN_STEP, True, recorder, batches=batches
    )
    for engine in cameras.together:
        engine.chunk_path = path
    cameras.watch(range(2), which=(2,))  # what one chunk's step gives is known to be right
    cameras.watch(range(2, 6))
    assert path.captures >= 2 and not path.refused
    cameras.assert_same()


def test_the_next_chunks_step_does_not_hide_that_one_was_no_number(toys, model, processor):
    """Each replay writes to the same place, and all are looked at behind the last."""
    cameras = Cameras(toys, model, processor, steps=False)
    place, poisoned = {}, []

    def recorder(step, pool):
        def replay():
            found = step()
            if "language model" in str(step) and poisoned:
                found = found * poisoned.pop()
            kept = place.setdefault(tuple(found.shape[1:]), torch.empty(4096, *found.shape[1:]))
            kept[: len(found)] = found
            return kept[: len(found)]

        return Recording(replay, None)

    room = cameras.group.room
    path = CapturedChunks(model, model.functions, room, PLAIN_STEP, True, recorder)
    for engine in cameras.together:
        engine.chunk_path = path
    cameras.watch(range(3))
    poisoned.append(torch.nan)
    first, *others = append_together(cameras.chunks(cameras.together, 3))
    assert isinstance(first, NotFiniteError)
    assert [one.tokens > 0 for one in others] == [True, True]


def test_chunks_that_pile_up_go_by_steps_of_one_where_that_of_two_cannot_be(
    toys, model, processor, monkeypatch
):
    cameras = Cameras(toys, model, processor, steps=True)
    recorder = recorded(cameras, model, torch.OutOfMemoryError("all is taken"))
    recorder.fails = "of each of 2 chunks"
    cameras.watch(range(3), which=(0,))
    cameras.watch([3], which=(1,))
    plain, forward = [], model.stream_forward

    def watched(*given, **options):
        plain.append(1)
        return forward(*given, **options)

    monkeypatch.setattr(model, "stream_forward", watched)
    before = recorder.replays
    append_together(cameras.chunks(cameras.together, 4, which=(0, 1)))
    assert "of each of 2 chunks" in recorder.tried[-1]
    # The pictures of both; the language model of each, once.
    assert recorder.replays - before == 1 + 2 and not plain


def test_nobody_waits_for_plain_calls_when_chunks_begin_to_pile_up(
    toys, model, processor, monkeypatch
):
    """They take several times as long as steps, just when there is no time."""
    cameras = Cameras(toys, model, processor, steps=True)
    cameras.watch(range(3), which=(0,))  # steps of one chunk have proved themselves
    cameras.watch([3], which=(1,))  # its first, as no other
    prepare(cameras.path)
    plain = []
    for name in ("stream_forward", "encode_frames"):
        call = getattr(model, name)

        def watched(*given, call=call, name=name, **options):
            plain.append(name)
            return call(*given, **options)

        monkeypatch.setattr(model, name, watched)
    append_together(cameras.chunks(cameras.together, 4, which=(0, 1)))
    assert cameras.passes == {1, 2} and not cameras.path.refused
    assert plain == ["encode_frames"]  # the step's own


def test_steps_for_more_chunks_than_have_come_are_made_ready_ahead(toys, model, processor):
    made = []

    def recorder(step, pool):
        made.append(str(step))
        return Recording(step, pool)

    cameras = Cameras(toys, model, processor, steps=True)
    cameras.path = CapturedChunks(
        model, model.functions, cameras.group.room, graph=True, recorder=recorder, batches=(2, 1)
    )
    for engine in cameras.together:
        engine.chunk_path = cameras.path
    assert cameras.path.is_prepared()  # no size has come
    cameras.watch(range(3), which=(0,))
    assert len(made) == 2 and not cameras.path.is_prepared()
    prepare(cameras.path)
    assert len(made) == 4  # vision tower and language model, for two chunks beside the one
    assert "of each of 2 chunks" in made[3]
    cameras.watch(range(3, 6))
    assert sum("of each of 2 chunks" in step for step in made) == 1 and not cameras.path.refused
    cameras.assert_same()


class Recorder:
    """Records steps; how recording those of two chunks ends is in ``fault``, of those alone that
    are called ``fails`` if that is said."""

    def __init__(self, fault):
        self.fault, self.tried, self.replays, self.fails = fault, [], 0, ""

    def __call__(self, step, pool):
        words = str(step)
        self.tried.append(words)
        of_two = "of each of 2 chunks" in words or "for (4, " in words  # two grids a chunk
        if of_two and self.fault is not None and self.fails in words:
            raise self.fault

        def replay():
            self.replays += 1
            return step()

        return Recording(replay, pool)


def recorded(cameras, model, fault=None, batches=(2, 1)):
    """A path whose steps are recorded; its recorder."""
    recorder = Recorder(fault)
    cameras.path = CapturedChunks(
        model, model.functions, cameras.group.room, graph=True, recorder=recorder, batches=batches
    )
    for engine in cameras.together:
        engine.chunk_path = cameras.path
    return recorder


def prepare(path, most=8):
    """Make ready what may come; ``path``: or a group."""
    for _ in range(100):
        if path.is_prepared(most):
            return
        path.prepare_next(most)
    raise AssertionError("there is always something left")


def test_steps_for_more_chunks_than_can_come_are_not_made_ready(toys, model, processor):
    cameras = Cameras(toys, model, processor, steps=True)
    recorder = recorded(cameras, model, batches=(4, 2, 1))
    cameras.watch(range(3), which=(0,))
    assert cameras.path.is_prepared(1) and not cameras.path.is_prepared(2)
    prepare(cameras.path, 3)
    cameras.path.prepare_next(3)  # in vain
    assert [step.endswith("of each of 2 chunks") for step in recorder.tried] == [False] * 3 + [True]
    assert not cameras.path.is_prepared()
    prepare(cameras.path)
    assert len(recorder.tried) == 6 and "of each of 4 chunks" in recorder.tried[-1]


def test_a_group_makes_ready_what_can_come_of_its_engines_chunks(
    toys, model, processor, monkeypatch
):
    recorder = Recorder(None)

    def chunk_path(model, functions, room, captured, batches):
        return CapturedChunks(model, functions, room, PLAIN_STEP, True, recorder, batches)

    monkeypatch.setattr(together, "chunk_path", chunk_path)
    cameras = Cameras(toys, model, processor, steps=False)
    assert cameras.group.is_prepared()
    cameras.watch(range(3), which=(0,))
    assert cameras.group.is_prepared(1) and not cameras.group.is_prepared(2)
    for _ in range(3):
        cameras.group.prepare_next(1)  # in vain
    assert len(recorder.tried) == 2
    prepare(cameras.group)
    assert len(recorder.tried) == 4 and cameras.path.is_prepared()  # of two: there are three


class Passes:
    """How often the vision tower and the language model are computed for two chunks."""

    def __init__(self, model, monkeypatch):
        self.vision = self.decoder = 0
        encode, decode = model.encode_frames, model.decode

        def counted_encode(patches, functions):
            self.vision += patches.grid_thw[0] == 2 * 2  # two grids a chunk
            return encode(patches, functions)

        def counted_decode(hidden, *given):
            self.decoder += len(hidden) == 2 * 64
            return decode(hidden, *given)

        monkeypatch.setattr(model, "encode_frames", counted_encode)
        monkeypatch.setattr(model, "decode", counted_decode)

    def taken(self):
        """Those since this was asked."""
        found, self.vision, self.decoder = (self.vision, self.decoder), 0, 0
        return found


def pieces(cameras, passes, recorder, most=100):
    """What each piece of preparing computes, and how many steps it records."""
    found = []
    while not cameras.path.is_prepared() and len(found) < most:
        before = len(recorder.tried)
        cameras.path.prepare_next()
        found.append((*passes.taken(), len(recorder.tried) - before))
    return found


CALL, TRIAL, RECORDING = (1, 0, 0), (2, 0, 0), (0, 0, 1)  # the trial: the step, and plainly
CALL_OF_TEXT = (0, 1, 0)


def test_a_step_is_made_ready_in_pieces_between_which_a_question_may_come(
    toys, model, processor, monkeypatch
):
    cameras = Cameras(toys, model, processor, steps=True)
    recorder, passes = recorded(cameras, model), Passes(model, monkeypatch)
    cameras.watch(range(3), which=(0,))
    passes.taken()
    found = pieces(cameras, passes, recorder)
    # A graph's recording computes nothing.
    assert found == [CALL, CALL, RECORDING, TRIAL, CALL_OF_TEXT, CALL_OF_TEXT, RECORDING]


@pytest.mark.parametrize("done", range(8))
def test_chunks_that_come_while_their_step_is_made_ready_lose_nothing(
    toys, model, processor, monkeypatch, done
):
    cameras = Cameras(toys, model, processor, steps=True)
    recorder, passes = recorded(cameras, model), Passes(model, monkeypatch)
    cameras.watch(range(3), which=(0,))
    cameras.watch([3], which=(1,))
    cameras.watch([3], which=(0,))
    passes.taken()
    ahead = pieces(cameras, passes, recorder, done)
    cameras.watch([4], which=(0, 1))
    vision, decoder = map(sum, zip(passes.taken(), *(each[:2] for each in ahead), strict=True))
    # Two calls, the trial, and the chunks' own step unless that was the trial; the language model's
    # is held against steps of one.
    assert (vision, decoder) == (2 + 2 + (done > 3), 2 + 1)
    assert len(recorder.tried) == 4 and cameras.path.is_prepared() and not cameras.path.refused
    cameras.assert_same(which=(0, 1))


def test_what_was_begun_for_weights_that_are_elsewhere_now_is_begun_anew(
    toys, model, processor, monkeypatch
):
    cameras = Cameras(toys, model, processor, steps=True)
    recorder, passes = recorded(cameras, model), Passes(model, monkeypatch)
    for number, begun in enumerate((1, 3, 5)):  # a call; a step to be tried; a call of the other
        cameras.watch([2 * number, 2 * number + 1], which=(0,))
        passes.taken()
        assert len(pieces(cameras, passes, recorder, begun)) == begun
        weights = next(model.parameters())
        weights.data = weights.data.clone()
        assert pieces(cameras, passes, recorder) == [(0, 0, 0)]  # no size has come since
    cameras.watch([6], which=(0,))
    passes.taken()
    assert len(pieces(cameras, passes, recorder)) == 4 + 3
    cameras.watch([7, 8], which=(0, 1))
    cameras.assert_same(which=(0, 1))
    assert not cameras.path.refused


def test_what_was_begun_for_a_memory_that_was_replaced_is_begun_anew(
    toys, model, processor, monkeypatch, tmp_path
):
    """Here it is that of one engine, as a group's never is."""
    cameras = Cameras(toys, model, processor, steps=True)
    engine, passes, recorder = cameras.alone[0], Passes(model, monkeypatch), Recorder(None)
    cameras.path = engine.chunk_path = CapturedChunks(
        model, model.functions, engine.cache_manager, PLAIN_STEP, True, recorder, (2, 1)
    )
    for number in range(3):
        engine.append_video_chunk(toys.frames(4, *SIZES[0], seed=number), fps=2)
    passes.taken()
    assert pieces(cameras, passes, recorder, 5)[-1] == CALL_OF_TEXT
    engine.save_memory(tmp_path / "saved.safetensors")
    old = weakref.ref(engine.cache_manager.memory)
    engine.load_memory(tmp_path / "saved.safetensors")
    gc.collect()
    assert old() is None and cameras.path.is_prepared()
    engine.append_video_chunk(toys.frames(4, *SIZES[0], seed=4), fps=2)
    passes.taken()
    assert pieces(cameras, passes, recorder) == [CALL_OF_TEXT, CALL_OF_TEXT, RECORDING]
    assert not cameras.path.refused


def test_memory_that_runs_out_at_a_first_call_ends_preparing_until_some_is_given_back(
    toys, model, processor, monkeypatch, caplog
):
    cameras, passes = Cameras(toys, model, processor, steps=True), Passes(model, monkeypatch)
    recorder = recorded(cameras, model, batches=(4, 2, 1))
    cameras.watch(range(3), which=(0,))
    passes.taken()
    decode = model.decode

    def fail(*given):
        raise torch.OutOfMemoryError("all is taken")

    monkeypatch.setattr(model, "decode", fail)
    assert len(pieces(cameras, passes, recorder)) == 4 + 1
    assert len(caplog.records) == 1 and "all is taken" in caplog.text
    monkeypatch.setattr(model, "decode", decode)
    assert cameras.path.is_prepared() and cameras.path.is_prepared(2)
    end_a_session(cameras, model, processor)
    assert not cameras.path.is_prepared(2)
    found = pieces(cameras, passes, recorder)
    assert found[:3] == [CALL_OF_TEXT, CALL_OF_TEXT, RECORDING]
    assert len(found) == 3 + 4 + 3  # and of four
    cameras.watch(range(3, 5), which=(0, 1))
    assert not cameras.path.refused


LARGE = 2 * max(CAPS)


def end_a_session(cameras, model, processor, cap=LARGE):
    """Usually one whose memory was too large to lie with the others'."""
    engine = VideoStreamingInference(
        model, processor, None, EvictionConfig.novelty(cap), group=cameras.group
    )
    del engine
    gc.collect()


@pytest.mark.parametrize("fault", [torch.OutOfMemoryError("all is taken"), RuntimeError("broken")])
def test_what_was_recorded_goes_on_where_a_further_step_cannot_be(
    toys, model, processor, caplog, fault
):
    cameras = Cameras(toys, model, processor, steps=True)
    recorder = recorded(cameras, model, fault)
    cameras.watch(range(3), which=(0,))
    prepare(cameras.path)
    assert len(recorder.tried) == 3  # of one chunk vision tower and language model, then of two
    before = recorder.replays
    cameras.watch(range(3, 8))
    assert len(recorder.tried) == 3
    # Five times: the pictures of two cameras, whose size had come; the language model of all
    # three, whose chunks are as long, but for the first chunk of the two that are new.
    assert recorder.replays - before == 5 * (2 + 3) - 2
    cameras.assert_same()
    assert len(caplog.records) == 1 and str(fault) in caplog.text


def test_a_step_that_found_no_memory_is_tried_again_when_a_session_has_ended(
    toys, model, processor, caplog
):
    cameras = Cameras(toys, model, processor, steps=True)
    recorder = recorded(cameras, model, torch.OutOfMemoryError("all is taken"))
    cameras.watch(range(3), which=(0,))
    for _ in range(2):
        prepare(cameras.path)
        assert cameras.path.is_prepared()
        end_a_session(cameras, model, processor, CAPS[1])  # whose room is the group's, as ever
        assert cameras.path.is_prepared()
        end_a_session(cameras, model, processor)
        assert not cameras.path.is_prepared()
    told = [one for one in caplog.records if "no room next to" not in one.message]
    assert len(recorder.tried) == 2 + 2 and len(told) == 1
    recorder.fault = None
    prepare(cameras.path)
    assert "of each of 2 chunks" in recorder.tried[-1] and not cameras.path.refused
    before = recorder.replays
    cameras.watch(range(3, 5))
    # Each time: pictures of two cameras at once, those of the third by a step of their own, which
    # is new; the language model of two and of one, but for the first chunk of two; and that of two
    # is held against that of one, for both.
    assert recorder.replays - before == 2 * (1 + 1) + 1 + 2 + 2
    cameras.assert_same()


def test_what_cannot_be_recorded_is_not_tried_again_when_a_session_has_ended(
    toys, model, processor
):
    cameras = Cameras(toys, model, processor, steps=True)
    recorder = recorded(cameras, model, RuntimeError("not permitted while capturing"))
    cameras.watch(range(3), which=(0,))
    prepare(cameras.path)
    end_a_session(cameras, model, processor)
    assert cameras.path.is_prepared() and len(recorder.tried) == 3


def test_steps_that_are_wrong_for_two_and_then_for_one_leave_chunks_to_plain_calls(
    toys, model, processor, caplog
):
    cameras = Cameras(toys, model, processor, steps=True)
    kernels = PLAIN_STEP._replace(attend=lambda *given: -PLAIN_STEP.attend(*given))
    cameras.path = CapturedChunks(
        model, model.functions, cameras.group.room, kernels, batches=(2, 1)
    )
    for engine in cameras.together:
        engine.chunk_path = cameras.path
    cameras.watch(range(5), which=(0, 1))
    cameras.watch(range(5), which=(2,))
    cameras.assert_same()
    assert sorted(kind[-1] for kind in cameras.path.refused) == [1, 2]
    assert len(caplog.records) == 2 and "one by one" not in caplog.text


def test_a_memory_for_which_its_group_has_never_had_room_goes_by_itself(toys, model, processor):
    group = EngineGroup([100, 100])
    make = lambda **options: VideoStreamingInference(  # noqa: E731
        model, processor, None, EvictionConfig(300, **SINK_AND_WINDOW), **options
    )
    engine, alone = make(group=group), make()
    engine.chunk_path = CapturedChunks(model, model.functions, group.room)
    for number in range(3):
        for one in (engine, alone):
            one.append_video_chunk(toys.frames(4, seed=number), fps=2)
    assert torch.equal(engine.cache_manager.gather(), alone.cache_manager.gather())
    assert engine.chunk_path.detours["the memory lies elsewhere"] == 2

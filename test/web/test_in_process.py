# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""A source remembered in this process, as the console asks it."""

import asyncio
import io
import threading
import time

import numpy as np
import pytest
from fake_engine import FakeEngine, FakeRecall
from patience import PATIENCE
from PIL import Image

from stream_vlm_ros.config import Settings
from stream_vlm_ros.engine.inputs.timestamps import SECOND
from stream_vlm_ros.errors import (
    CapTooSmallError,
    DeviceUnavailableError,
    EmptyMemoryError,
    InvalidParameterError,
    MemoryFileError,
    ModelLoadError,
    SourceUnreadableError,
    StreamBusyError,
)
from stream_vlm_ros.session.question import NotActiveError, Question
from stream_vlm_ros.sources import Frame, Source
from stream_vlm_ros.web import in_process
from stream_vlm_ros.web.in_process import InProcessMemory

SMALL = {"size": (64, 48)}
SECONDS = 0.4  # of a recording
SHORT = {**SMALL, "end": SECONDS, "fps": 10}
FOUR = Settings(sample_fps=10.0, chunk_frames=2)


@pytest.fixture(autouse=True)
def patient(monkeypatch):
    """However slow the machine, a recording is played as it is, what went wrong is still told, and
    an engine comes to its end."""
    for name in ("LATE", "NOTED", "END_TIMEOUT"):
        monkeypatch.setattr(in_process, name, PATIENCE)


def memory(engine=None, settings=FOUR, source="world:7", options=SHORT, **others):
    engine = FakeEngine(cap=10_000) if engine is None else engine
    return InProcessMemory(
        source, settings, options=options, load=others.pop("load", lambda _: engine), **others
    )


def run(use, *arguments, **options):
    """What ``use`` makes of a memory that has been started."""

    async def whole():
        one = memory(*arguments, **options)
        await one.start()
        try:
            return await asyncio.wait_for(use(one), PATIENCE)
        finally:
            await one.close()

    return asyncio.run(whole())


async def until(condition):
    while not (value := condition()):
        await asyncio.sleep(0.01)
    return value


async def until_ended(one):
    await until(lambda: one.status.state == "ended" and not one.status.counters["frames_pending"])


async def answer(one, text="What?", **options):
    return await one.ask(Question(text, max_new_tokens=3, **options)).outcome()


def test_a_recording_is_seen_as_it_happens_remembered_and_asked():
    async def use(one):
        await until_ended(one)
        assert time.time_ns() - began > (SECONDS - 0.15) * SECOND  # no faster than it was filmed
        asked = one.ask(Question("What?", max_new_tokens=3))
        texts = [text async for text in asked]
        return one.status, one.picture, texts, await asked.outcome()

    began = time.time_ns()
    status, picture, texts, outcome = run(use)
    counts = status.counters
    assert counts["frames_received"] == counts["frames_ingested"] == 4
    assert status.memory.frames == 4 and status.lag is not None
    span = status.memory.newest_ns - status.memory.oldest_ns
    assert span == pytest.approx(0.3 * SECOND, abs=1000)  # four frames, ten a second
    assert began < status.memory.oldest_ns < time.time_ns()  # as if it were filmed now
    assert picture.stamp_ns == status.memory.newest_ns
    assert Image.open(io.BytesIO(picture.jpeg)).size == (64, 48)
    assert "come to its end" in status.words
    assert texts[-1] == outcome.answer == "xxx" and outcome.error is None


def test_the_first_picture_is_there_before_the_model_and_questions_are_told_so():
    gate = threading.Event()

    def load(settings):
        gate.wait(PATIENCE)
        return FakeEngine(cap=10_000)

    async def use(one):
        picture = await until(lambda: one.picture)
        status, refused = one.status, await answer(one)
        gate.set()
        await until_ended(one)
        return picture, status, refused, one.status

    picture, before, refused, after = run(use, load=load)
    assert picture.number == 1
    assert before.state == "loading" and "model is being loaded" in before.words
    assert isinstance(refused.error, NotActiveError)
    assert "model is being loaded" in str(refused.error)
    assert after.memory.frames == 4  # the recording has waited


def test_what_is_refused_again_and_again_is_told_and_logged_once(caplog):
    class Full(FakeRecall):
        def append_video_chunk(self, frames, fps=None, timestamps=None):
            raise InvalidParameterError("the chunk does not fit")

    async def use(one):
        await until(lambda: one.status.counters["dropped_error"] >= 6)
        return one.status

    status = run(use, Full(), options=SMALL)
    assert (status.state, status.words) == ("active", "the chunk does not fit")
    assert [record.getMessage() for record in caplog.records] == ["world:7: the chunk does not fit"]


def test_a_model_that_cannot_be_loaded_is_told_and_nobody_waits():
    def load(settings):
        raise ModelLoadError("no such folder: models")

    async def use(one):
        await until(lambda: one.status.state == "inactive")
        with pytest.raises(NotActiveError, match="no such folder"):
            await one.reset()
        assert await one.thumbnail(0) is None
        return one.status, await answer(one)

    status, outcome = run(use, load=load)
    assert status.words == str(outcome.error) == "no such folder: models"


def test_a_source_that_is_not_there_is_told_in_words():
    async def use(one):
        await until(lambda: one.status.state == "ended")
        return one.status, await answer(one)

    status, outcome = run(use, source="no_such_film.mp4", options={})
    assert "no_such_film.mp4" in status.words
    assert "holds no image yet" in str(outcome.error) and status.words in str(outcome.error)


def test_a_camera_that_went_away_is_tried_again_and_its_memory_goes_on(monkeypatch):
    class Camera(Source):
        live, name, passes = True, "camera", 0

        def __iter__(self):
            Camera.passes += 1
            if Camera.passes == 2:
                assert stopped_was_told.wait(PATIENCE)
                raise SourceUnreadableError("The camera does not start.")
            for index in range(2 if Camera.passes == 1 else 1000):
                yield Frame(index, np.zeros((28, 28, 3), np.uint8), self.name)
                time.sleep(0.05)
            self.state.damage = "The camera stopped."

    stopped_was_told = threading.Event()
    monkeypatch.setattr(in_process, "AGAIN", 0.3)
    monkeypatch.setattr(in_process, "open_source", lambda spec, **options: Camera())

    async def use(one):
        told = [await until(lambda: "again" in one.status.words and one.status.words)]
        stopped_was_told.set()
        told.append(await until(lambda: "start" in one.status.words and one.status.words))
        frames = one.status.memory.frames
        await until(lambda: one.status.memory.frames > frames + 4)
        return told, one.status

    told, status = run(use, options={})
    assert told == [
        f"The camera {what}. It is tried again" for what in ("stopped", "does not start")
    ]
    assert (status.state, status.counters["resets"], len(status.memory.spans_ns)) == (
        "active",
        0,
        1,
    )


def test_a_recording_that_is_played_again_goes_on_in_one_memory():
    async def use(one):
        await until(lambda: one.status.memory.frames > 6)
        return one.status

    status = run(use, looped=True)
    assert (status.state, status.counters["time_jumps"]) == ("active", 0)
    assert len(status.memory.spans_ns) == 1


def test_pictures_are_dropped_while_it_is_paused_and_questions_answered():
    async def use(one):
        await until(lambda: one.status.memory.frames)
        await one.pause()
        await until(lambda: one.status.counters["dropped_paused"] > 2)
        paused, outcome = one.status, await answer(one)
        await one.resume()
        await until(lambda: one.status.memory.frames > paused.memory.frames)
        return paused, outcome, one.status

    paused, outcome, after = run(use, options=SMALL)
    assert paused.paused and not after.paused
    assert outcome.error is None
    shown = [after.counters[name] for name in ("frames_ingested", "frames_pending")]
    dropped = [n for name, n in after.counters.items() if name.startswith("dropped_")]
    assert after.counters["frames_received"] == sum(shown) + sum(dropped)


def test_what_was_seen_is_forgotten_when_it_is_told_so():
    async def use(one):
        await until_ended(one)
        words = await one.reset()
        return words, one.status, await answer(one)

    words, status, outcome = run(use)
    assert words == "the memory is empty"
    assert status.memory.frames == 0 and status.counters["resets"] == 1
    assert "come to its end" in str(outcome.error)


def test_an_answer_is_cancelled_within_a_token():
    step = threading.Semaphore(2)  # tokens that may be written

    class Slow(FakeEngine):
        def ask_stream(self, question, max_new_tokens=128, cancel=None, **options):
            def stopped():
                return step.acquire(timeout=PATIENCE) and cancel()

            return super().ask_stream(question, max_new_tokens, stopped, **options)

    async def use(one):
        await until_ended(one)
        asked = one.ask(Question("What?", max_new_tokens=1000))
        async for text in asked:
            if text == "xx":
                break
        asked.cancel()
        step.release()
        return await asked.outcome()

    outcome = run(use, Slow(cap=10_000))
    assert (outcome.finish_reason, outcome.answer) == ("cancelled", "xx")
    assert "cancelled" in str(outcome.error)


def test_nothing_waits_in_the_event_loop_while_the_engine_is_busy(tmp_path):
    engine = FakeRecall(cap=10_000)

    async def use(one):
        await until_ended(one)
        engine.gate.clear()
        orders = [answer(one), one.reset(), one.thumbnail(0), one.save(), one.past_answers()]
        tasks = [asyncio.ensure_future(order) for order in orders]
        late = []
        for _ in range(20):
            began = time.monotonic()
            await asyncio.sleep(0.01)
            one.status, one.picture  # noqa: B018
            late.append(time.monotonic() - began)
        waiting = sum(not task.done() for task in tasks)
        engine.gate.set()
        await asyncio.wait(tasks)
        return sorted(late)[len(late) // 2], waiting

    usual, waiting = run(use, engine, Settings(memory_folder=str(tmp_path)))
    assert usual < 0.05
    assert waiting >= 4


def test_one_who_waits_no_more_does_the_engine_no_harm():
    engine = FakeRecall(cap=10_000)

    async def use(one):
        await until_ended(one)
        engine.gate.clear()
        asked = one.ask(Question("What?", max_new_tokens=3))
        waiting = [asyncio.ensure_future(w) for w in (one.reset(), one.thumbnail(0))]
        waiting.append(asyncio.ensure_future(asked.outcome()))
        await asyncio.sleep(0.05)
        for task in waiting:
            task.cancel()
        await asyncio.wait(waiting)
        engine.gate.set()
        return await asked.outcome(), await answer(one)

    first, second = run(use, engine)
    assert first.error is None
    assert "no image" in str(second.error)  # the reset came all the same


def test_past_answers_are_told_oldest_first_whatever_came_of_them():
    async def use(one):
        await until_ended(one)
        await answer(one, "First?")
        await answer(one, "Second?", choices=("yes", "no"))
        await one.reset()
        await answer(one, "Third?")
        return await one.past_answers(), await one.past_answers("SECOND"), one.examples

    every, found, examples = run(use)
    assert [(past.question, past.text) for past in every] == [
        ("First?", "xxx"),
        ("Second?", "yes"),
        ("Third?", ""),
    ]
    assert "no image" in every[2].error
    assert [past.choices for past in found] == [("yes", "no")]
    assert "What is visible now?" in examples  # the shipped model knows that


def test_a_file_of_answers_that_is_none_is_left_alone_and_told(tmp_path):
    file = tmp_path / "answers.sqlite"
    file.write_bytes(b"somebody's own" * 100)

    async def use(one):
        await until(lambda: one.status.memory.frames)
        await answer(one, "First?")
        words = await until(lambda: one.status.words)
        return words, await one.past_answers()

    words, past = run(
        use, settings=Settings(sample_fps=10.0, answers_file=str(file)), options=SMALL
    )
    assert "past answers are kept in memory alone" in words and "answers.sqlite" in words
    assert [one.question for one in past] == ["First?"]
    assert file.read_bytes() == b"somebody's own" * 100


def test_settings_change_while_all_goes_on():
    async def use(one):
        await until(lambda: one.status.memory.frames)
        words = await one.set(sample_fps=1.0, max_pixels=50_000)
        with pytest.raises(InvalidParameterError, match="history cannot be changed"):
            await one.set(history="always")
        with pytest.raises(InvalidParameterError, match="sample_fps must lie in"):
            await one.set(sample_fps=-1.0)
        with pytest.raises(InvalidParameterError, match="10 frames/s are read of this source"):
            await one.set(sample_fps=12.0)
        await until(lambda: one.status.counters["dropped_sampling"] > 3)
        await answer(one)
        return words, one.status

    engine = FakeEngine(cap=10_000)
    words, status = run(use, engine, options=SMALL)
    assert words == "sample_fps: 10.0 -> 1.0; max_pixels: 401408 -> 50000"
    assert status.settings["sample_fps"] == 1.0
    assert ("limit_pixels", 50_000) in engine.calls
    assert status.counters["resets"] == 0


def test_another_policy_begins_another_memory_and_a_refused_one_leaves_it_as_it_was():
    built = []

    def load(settings):
        built.append(settings.important_share)
        if settings.important_share == 0.5:
            raise InvalidParameterError("no room for a window")
        if settings.max_cache_tokens == 90_000:
            raise DeviceUnavailableError("no gigabytes")
        return FakeEngine(cap=10_000)

    async def use(one):
        await until(lambda: one.status.memory.frames)
        words = await one.set(important_share=0.3)
        await until(lambda: one.status.memory.frames)
        held = one.status.memory.oldest_ns
        with pytest.raises(InvalidParameterError, match="no room for a window"):
            await one.set(important_share=0.5)
        with pytest.raises(InvalidParameterError, match="which stays: no gigabytes"):
            await one.check(max_cache_tokens=90_000)
        assert one.status.memory.oldest_ns == held  # what was remembered is not forgotten
        return words, one.status, await answer(one)

    words, status, outcome = run(use, load=load, options=SMALL)
    assert words == "important_share: -1.0 -> 0.3; a new memory begins"
    assert built == [-1.0, 0.3, 0.3, 0.5, 0.3]  # each is tried before the present one ends
    assert (status.state, status.settings["important_share"]) == ("active", 0.3)
    assert outcome.error is None


def test_a_memory_too_small_for_a_chunk_is_refused_and_the_present_one_stays():
    async def use(one):
        held = await until(lambda: one.status.memory.oldest_ns)
        with pytest.raises(CapTooSmallError, match="tokens does not fit into the memory of 64"):
            await one.set(max_cache_tokens=64)
        return held, one.status

    settings = Settings(max_cache_tokens=4096, history="auto", sample_fps=10.0, chunk_frames=8)
    held, status = run(use, settings=settings, options={"fps": 10}, load=in_process.build)
    assert (status.memory.oldest_ns, status.state) == (held, "active")
    assert status.settings["max_cache_tokens"] == 4096


def test_the_kept_picture_nearest_to_a_time_is_shown():
    engine = FakeRecall(cap=10_000)

    async def use(one):
        await until_ended(one)
        at = one.status.memory.oldest_ns + 23 * SECOND // 100
        return await one.thumbnail(at, 99)

    assert run(use, engine) == b"jpeg of 0.200"
    assert engine.calls[-1] == ("thumbnail", 0.2, 99)


def test_saving_needs_a_folder_and_loading_a_file(tmp_path):
    async def nowhere(one):
        await until_ended(one)
        with pytest.raises(InvalidParameterError, match="memory_folder is not set"):
            await one.save()
        assert await one.saved_names() == []

    async def nothing(one):
        await until_ended(one)
        with pytest.raises(MemoryFileError, match="no memory is saved yet"):
            await one.load()

    run(nowhere)
    run(nothing, settings=Settings(memory_folder=str(tmp_path / "none")))


def test_of_two_that_load_at_once_one_is_refused_and_no_frame_comes_between(tmp_path):
    engine = FakeRecall(cap=10_000)

    async def use(one):
        await until(lambda: one.status.memory.frames)
        engine.gate.clear()
        await until(engine.busy.is_set)
        orders = (one.load("a"), one.load("b"), one.save("c"))
        loads = [asyncio.ensure_future(order) for order in orders]
        inactive = await until(
            lambda: (dropped := one.status.counters["dropped_inactive"]) >= 2 and dropped
        )
        engine.gate.set()
        came = await asyncio.gather(*loads, return_exceptions=True)
        frames = one.status.memory.frames
        await until(lambda: one.status.memory.frames > frames)  # it goes on
        return came, inactive

    settings = Settings(memory_folder=str(tmp_path), sample_fps=10.0, chunk_frames=2)
    came, inactive = run(use, engine, settings, options=SMALL)
    assert isinstance(came[0], MemoryFileError)
    assert [type(one) for one in came[1:]] == [StreamBusyError] * 2
    assert inactive >= 2


def test_what_waits_for_an_engine_that_is_replaced_is_told_so(tmp_path):
    engine = FakeRecall(cap=10_000)

    async def use(one):
        await until(lambda: one.status.memory.frames)
        engine.gate.clear()
        await until(engine.busy.is_set)
        asked = one.ask(Question("What?", max_new_tokens=3))
        waiting = [asyncio.ensure_future(w) for w in (one.save("a"), one.thumbnail(0), one.reset())]
        await asyncio.sleep(0.05)
        changing = asyncio.ensure_future(one.set(important_share=0.3))
        await until(lambda: one.status.state == "loading")
        refused = await asyncio.gather(one.set(important_share=0.4), return_exceptions=True)
        engine.gate.set()
        told = await asyncio.gather(*waiting, return_exceptions=True)
        return [*refused, *told], await asked.outcome(), await changing, await answer(one)

    settings = Settings(memory_folder=str(tmp_path), sample_fps=10.0, chunk_frames=2)
    engines = iter((engine,))  # the first one; the others answer at once
    told, outcome, words, after = run(
        use,
        settings=settings,
        options=SMALL,
        load=lambda _: next(engines, None) or FakeRecall(cap=10_000),
    )
    assert all(isinstance(one, NotActiveError) for one in told), told
    assert isinstance(outcome.error, NotActiveError) and "other settings" in str(outcome.error)
    assert "a new memory begins" in words and isinstance(after.error, EmptyMemoryError | None)


def test_a_saved_memory_answers_the_same_after_a_restart(tmp_path):
    settings = Settings(
        max_cache_tokens=4096, memory_folder=str(tmp_path / "memories"), history="auto",
        sample_fps=10.0, chunk_frames=2,
    )  # fmt: skip
    options = {"end": 0.4, "fps": 10}

    async def first(one):
        await until_ended(one)
        before = await answer(one, "What appeared first?")
        await one.save("kept")
        picture = await one.thumbnail(one.status.memory.newest_ns, 100)
        return before, one.status, picture

    async def second(one):
        await until_ended(one)
        await one.save()
        names = await one.saved_names()
        words = await one.load("kept")
        return await answer(one, "What appeared first?"), names, words, one.status

    async def whole(use):
        one = InProcessMemory("world:7", settings, options=options)
        await one.start()
        try:
            return await asyncio.wait_for(use(one), PATIENCE)
        finally:
            await one.close()

    before, status, picture = asyncio.run(whole(first))
    after, names, words, loaded = asyncio.run(whole(second))
    assert before.error is None and after.answer == before.answer != ""
    assert names[1:] == ["kept"] and names[0].startswith("world_7_")
    assert "loaded" in words and loaded.memory.newest_ns == status.memory.newest_ns
    assert max(Image.open(io.BytesIO(picture)).size) == 100
    assert "kept" in status.saved

# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Memories in a process of their own, as the console asks them."""

import asyncio
import io
import os
import signal

import pytest
from patience import PATIENCE
from PIL import Image

from stream_vlm_ros.config import Settings
from stream_vlm_ros.errors import InvalidParameterError, MemoryFileError, OutOfHorizonError
from stream_vlm_ros.session.question import CancelledError, Question
from stream_vlm_ros.web.apart import Camera, EngineEndedError, remembered_apart

SETTINGS = Settings(max_cache_tokens=4096, history="auto", sample_fps=10.0, chunk_frames=2)
PART = {"end": 0.4, "fps": 10}


def run(use, *cameras):
    async def whole():
        memories = remembered_apart(cameras)
        for memory in memories:
            await memory.start()
        try:
            return await asyncio.wait_for(use(*memories), PATIENCE)
        finally:
            for memory in memories:
                await memory.close()

    return asyncio.run(whole())


async def until(condition):
    while not (value := condition()):
        await asyncio.sleep(0.01)
    return value


def processes():
    """Of the engines that this one started."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/cmdline") as command, open(f"/proc/{pid}/stat") as stat:
                parent = int(stat.read().rpartition(")")[2].split()[1])
                if parent == os.getpid() and "web.apart" in command.read():
                    found.append(int(pid))
        except (FileNotFoundError, ProcessLookupError):
            pass
    return found


def test_two_cameras_are_seen_and_asked_through_one_other_process(tmp_path):
    async def use(world, film):
        before = world.status
        await until(lambda: film.status.state == "ended")
        missing, name = film.status.words, film.name
        await until(lambda: world.status.state == "ended" and world.status.memory.frames == 4)
        picture = await until(lambda: world.picture)
        newest = world.status.memory.newest_ns
        await until(lambda: world.picture.stamp_ns == newest)
        asked = world.ask(Question("What do you see now?", thumbnails=1))
        texts = [text async for text in asked]
        outcome = await asked.outcome()
        (other,) = processes()
        os.kill(other, signal.SIGSTOP)  # it has not answered before it is told to stop
        stopped = world.ask(Question("What do you see now?", max_new_tokens=2000))
        stopped.cancel()
        os.kill(other, signal.SIGCONT)
        stopped = await stopped.outcome()
        wrong = await world.ask(None).outcome()  # of a fault in the page
        late = await world.ask(Question("What?", about_ns=(1, 2))).outcome()
        thumbnail = await world.thumbnail(newest, 64)
        with pytest.raises(MemoryFileError, match="no memory is saved yet"):
            await world.load()
        saved, names = await world.save("kept"), await world.saved_names()
        words = await world.set(sample_fps=3.0)
        with pytest.raises(InvalidParameterError, match="colour cannot be changed"):
            await world.set(colour="red")
        told = world.status.settings["sample_fps"]  # at once, not with the next look
        await world.reset()
        frames, past = world.status.memory.frames, await world.past_answers("see now")
        await world.load("kept")
        again = await world.ask(Question("What do you see now?")).outcome()
        assert len(processes()) == 1
        return locals()

    settings = Settings.of(SETTINGS.values() | {"memory_folder": str(tmp_path / "memories")})
    cameras = [Camera("world:7", settings, PART), Camera(str(tmp_path / "no.mp4"), SETTINGS)]
    came = run(use, *cameras)
    assert came["before"].state == "loading" and "being loaded" in came["before"].words
    assert "no.mp4" in came["missing"] and came["name"] == "no.mp4"
    assert came["world"].examples and came["world"].name == "world:7"
    assert Image.open(io.BytesIO(came["picture"].jpeg)).size == (640, 480)
    assert came["texts"][-1] == came["outcome"].answer == came["again"].answer != ""
    assert came["outcome"].error is None and came["outcome"].memory.frames == 4
    assert isinstance(came["stopped"].error, CancelledError)
    assert "internal error" in str(came["wrong"].error)
    assert isinstance(came["late"].error, OutOfHorizonError)
    assert max(Image.open(io.BytesIO(came["thumbnail"])).size) == 64
    assert "kept.safetensors" in came["saved"] and came["names"] == ["kept"]
    assert (came["words"], came["told"]) == ("sample_fps: 10.0 -> 3.0", 3.0)
    assert came["frames"] == 0 and came["past"][0].text == came["outcome"].answer
    assert processes() == []


def test_nobody_waits_for_an_engine_whose_process_has_ended():
    async def use(memory):
        await until(lambda: memory.status.memory.frames)
        asked = memory.ask(Question("What do you see now?"))
        (engine,) = processes()
        os.kill(engine, signal.SIGSTOP)
        waiting = asyncio.ensure_future(memory.reset())
        answer = memory.ask(Question("What do you see now?"))
        await asyncio.sleep(0.05)
        os.kill(engine, signal.SIGKILL)
        with pytest.raises(EngineEndedError, match="has ended"):
            await waiting
        outcome, texts = await answer.outcome(), [text async for text in answer]
        with pytest.raises(EngineEndedError):
            await memory.pause()
        later = await memory.ask(Question("What?")).outcome()
        await asked.outcome()
        return memory.status, outcome, texts, later

    status, outcome, texts, later = run(use, Camera("world:7", SETTINGS))
    assert status.state == "inactive" and "SIGKILL" in status.words
    assert isinstance(outcome.error, EngineEndedError) and texts == []
    assert isinstance(later.error, EngineEndedError)


def test_a_picture_that_could_not_be_read_is_followed_by_others(monkeypatch):
    async def use(memory):
        asyncio.get_running_loop().set_exception_handler(lambda *_: failed.append(1))
        await until(lambda: memory.picture)
        with monkeypatch.context() as patch:
            patch.setattr(memory.room, "read", lambda: 1 // 0)
            await until(lambda: memory.picture and failed)
        number = memory.picture.number
        await until(lambda: memory.picture.number > number)

    failed = []
    run(use, Camera("world:7", SETTINGS, {"fps": 10}))

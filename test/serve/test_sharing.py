# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Servers that share a folder of saved memories: a session goes from one to the other."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from fastapi.testclient import TestClient
from patience import PATIENCE, wait_until

from stream_vlm_ros.config import Settings
from stream_vlm_ros.errors import StreamBusyError
from stream_vlm_ros.factory import kept_model
from stream_vlm_ros.remote import protocol
from stream_vlm_ros.serve.app import create_app
from stream_vlm_ros.serve.keys import Keys
from stream_vlm_ros.serve.life_cycle import Phase
from stream_vlm_ros.serve.options import Limits
from stream_vlm_ros.serve.ownership import Ownership, SessionElsewhereError
from stream_vlm_ros.serve.session_errors import ServerEndingError, SessionUnknownError
from stream_vlm_ros.serve.sessions import Sessions
from stream_vlm_ros.session.question import Question

SECOND = 10**9
QUESTION = Question("What is visible now?", max_new_tokens=6)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("memories")


@pytest.fixture(scope="module")
def servers(folder):
    """Two of them."""
    settings = Settings(
        device="cpu", max_cache_tokens=1500, max_pixels=25088, memory_folder=str(folder)
    )
    servers = [
        Sessions(settings, Limits(drain_seconds=0.2), server="replica one", load=kept_model),
        Sessions(settings, Limits(), server="replica two", load=kept_model),
    ]
    for server in servers:
        server.load()
    yield servers
    for server in servers:
        server.drain(PATIENCE)


@pytest.fixture
def one(servers):
    return servers[0]


@pytest.fixture
def two(servers):
    return servers[1]


def see(session, first, last):
    """Frames of these sequences, one a second, and wait until they are remembered."""
    session.ready.result(PATIENCE)
    session.frames.update({"commit": "client"})
    for sequence in range(first, last + 1):
        shade = np.full((112, 112, 3), 20 * sequence % 256, np.uint8)
        session.frames.receive(
            protocol.FrameMessage(
                sequence, sequence * SECOND, protocol.RAW, 112, 112, shade.tobytes()
            )
        )
        if sequence % 4 == 0:
            session.frames.commit_open()
            wait_until(lambda: session.counters.pending == 0)


def answer(session):
    session.ready.result(PATIENCE)
    outcome = session.ask(QUESTION).future.result(PATIENCE)
    assert outcome.error is None
    return outcome.answer


def test_a_session_that_another_server_wants_is_saved_and_goes_there(one, two):
    session = one.open("moved", "local")
    see(session, 1, 8)
    before, memory = answer(session), session.memory
    taken = two.open("moved", "local")
    assert answer(taken) == before
    assert taken.restored and taken.gap == ""
    assert (taken.memory.frames, taken.memory.latest_ns) == (memory.frames, 8 * SECOND)
    wait_until(lambda: one.all() == [])
    assert two.find("moved", "local") is taken  # nobody else wants it
    two.close("moved", "local")


def test_questions_are_answered_while_a_session_is_being_let_go(one, two):
    session = one.open("asked", "local")
    see(session, 1, 8)
    writing = threading.Event()
    long = Question("What was visible before?", max_new_tokens=64)
    asked_meanwhile = threading.Event()

    def hold(state, text):
        writing.set()
        assert asked_meanwhile.wait(PATIENCE)

    ticket = session.ask(long, hold)
    assert writing.wait(PATIENCE)
    with ThreadPoolExecutor() as pool:
        going = pool.submit(one.hand_over, [session], PATIENCE)
        wait_until(lambda: session.life.phase is Phase.DRAINING)
        errors = []
        while not going.done():
            asked = session.ask(QUESTION)
            asked_meanwhile.set()
            errors.append(asked.future.result(PATIENCE).error)
    assert ticket.future.result(PATIENCE).error is None
    answered = errors.count(None)
    assert answered > 0 and errors[:answered] == [None] * answered
    assert {type(error) for error in errors[answered:]} <= {ServerEndingError}
    assert two.find_or_restore("asked", "local").ready.result(PATIENCE) is None
    two.close("asked", "local")


def test_a_session_that_another_server_does_not_let_go_is_refused_in_words(one, folder):
    hung = Ownership(folder / "local" / "kept.safetensors", "replica three")
    with pytest.raises(SessionElsewhereError, match="replica three has this session"):
        one.open("kept", "local").ready.result(PATIENCE)
    assert one.all() == []
    assert hung.is_wanted is False  # not any more
    hung.release(saved=True)


def test_a_question_finds_a_session_of_which_only_its_file_is_there(one, two):
    see(one.open("asleep", "local"), 1, 4)
    with pytest.raises(SessionUnknownError):
        two.find_or_restore("awake", "local")
    with pytest.raises(SessionUnknownError):
        two.find_or_restore("../asleep", "local")
    with pytest.raises(SessionUnknownError):
        two.find_or_restore("asleep", "another's key")
    one.close("asleep", "local", forget=False)
    assert answer(two.find_or_restore("asleep", "local"))
    assert two.find_or_restore("asleep", "local") is two.find("asleep", "local")
    two.close("asleep", "local")


def test_a_session_that_is_asleep_is_asked_over_http(one, two):
    see(one.open("woken", "local"), 1, 4)
    one.close("woken", "local", forget=False)
    client = TestClient(create_app(two, Keys()), base_url="http://localhost")
    told = {"model": "woken", "messages": [{"role": "user", "content": QUESTION.text}]}
    answered = client.post("/v1/chat/completions", json=told)
    assert answered.status_code == 200, answered.text
    assert answered.json()["choices"][0]["message"]["content"]
    assert two.find("woken", "local").restored
    two.close("woken", "local")


def test_who_waits_for_a_session_and_goes_does_not_keep_it_from_beginning(two):
    session = two.open("waited-for", "local")
    assert not session.ready.cancel()
    session.ready.result(PATIENCE)
    two.close("waited-for", "local")


def test_of_a_session_that_is_forgotten_no_server_finds_anything(one, two, folder):
    see(one.open("forgotten", "local"), 1, 4)
    one.close("forgotten", "local", forget=True)
    assert not list(folder.rglob("forgotten*"))
    with pytest.raises(SessionUnknownError):
        two.find_or_restore("forgotten", "local")


def test_a_session_that_is_ended_while_it_waits_for_another_server_is_let_go(two, folder):
    file = folder / "local" / "given-up.safetensors"
    hung = Ownership(file, "replica three")
    session = two.open("given-up", "local")
    wait_until(lambda: hung.is_wanted)
    two.close("given-up", "local", forget=False)
    assert two.all() == [] and isinstance(session.ready.exception(5.0), StreamBusyError)
    hung.release(saved=True)
    Ownership(file, patience=0.5).release(saved=True)  # nobody has it


def test_what_another_server_does_not_let_go_is_not_deleted(one, folder):
    file = folder / "local" / "others.safetensors"
    hung = Ownership(file, "replica three")
    file.touch()
    one.open(file.stem, "local")
    with pytest.raises(SessionElsewhereError, match="replica three has this session"):
        one.close(file.stem, "local")
    assert file.exists() and one.all() == []
    hung.release(saved=True)


def test_sessions_that_wait_for_another_server_keep_nobody_from_beginning(two, folder):
    names = [f"waits-{n}" for n in range(8)]
    hung = [Ownership(folder / "b" / f"{name}.safetensors") for name in names]
    waiting = [two.open(name, "b") for name in names]
    wait_until(lambda: all(owned.is_wanted for owned in hung))
    two.open("new", "a").ready.result(PATIENCE)
    assert not any(session.ready.done() for session in waiting)
    for name in names:
        two.close(name, "b", forget=False)
    for owned in hung:
        owned.release(saved=True)
    two.close("new", "a")

# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""OpenAI's own client asks live sessions; what is not honoured is refused in words."""

import asyncio
import base64
import io
import json
import socket
import threading
from concurrent.futures import Future
from contextlib import closing
from dataclasses import replace
from http.client import HTTPConnection

import httpx
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st
from patience import PATIENCE, wait_until
from PIL import Image
from serving import RunningServer, hold_answers

from stream_vlm_ros.config import Settings
from stream_vlm_ros.engine.inputs.timestamps import SECOND
from stream_vlm_ros.factory import card_of, kept_model, load_engine
from stream_vlm_ros.remote import protocol
from stream_vlm_ros.serve.chat_request import ChatRequest, RequestError
from stream_vlm_ros.serve.keys import Keys
from stream_vlm_ros.serve.options import Limits
from stream_vlm_ros.serve.session_errors import ServerEndingError
from stream_vlm_ros.serve.sessions import Sessions
from stream_vlm_ros.session.counters import Drop
from stream_vlm_ros.session.question import THUMBNAIL_SIZE, WRITING

SERVED = card_of(Settings()).name
QUESTIONS = ("What do you see?", "What came last?", "How many things are there?")


def feed(camera, film):
    """Send a film in chunks of four, and wait for each."""
    for at in range(0, len(film), 4):
        frames = film[at : at + 4]
        camera.chunk([frame.stamp_ns for frame in frames], [frame.image for frame in frames])
        camera.next(protocol.Ingested)


def client_of(server, key="none"):
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0)


@pytest.fixture(scope="module")
def client(server):
    with closing(client_of(server)) as client:
        yield client


@pytest.fixture(scope="module")
def films(film):
    return {"front": film[:8], "left": film[8:20], "right": film[20:28]}


def remember(engine, film):
    """As `feed` does at a server."""
    for at in range(0, len(film), 4):
        frames = film[at : at + 4]
        stamps = [(frame.stamp_ns - film[0].stamp_ns) / SECOND for frame in frames]
        engine.append_video_chunk([frame.image for frame in frames], timestamps=stamps)


@pytest.fixture(scope="module")
def engines(server, films):
    """In process, each fed as its session is."""
    engines = {name: load_engine(server.sessions.settings) for name in films}
    for name, engine in engines.items():
        remember(engine, films[name])
    return engines


@pytest.fixture(scope="module", autouse=True)
def cameras(server, films):
    """Connected for as long as the tests run."""
    cameras = {name: server.camera(name) for name in films}
    for name, frames in films.items():
        feed(cameras[name], frames)
    yield cameras


def user(*texts):
    """Messages in turns."""
    return [{"role": ("user", "assistant")[n % 2], "content": t} for n, t in enumerate(texts)]


def post(server, body):
    """A connection on which it was sent."""
    connection = HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE)
    connection.request("POST", "/v1/chat/completions", body)
    return connection


def ask(client, *texts, model="front", **options):
    return client.chat.completions.create(model=model, messages=user(*texts), **options)


def extension(**fields):
    return {"extra_body": {"stream_vlm": fields}}


def test_an_answer_is_the_engines_with_what_it_cost_and_rests_on(client, engines, films):
    for (name, engine), question in zip(engines.items(), QUESTIONS, strict=True):
        done = ask(client, question, model=name)
        text, metrics = engine.ask(question)
        (choice,) = done.choices
        assert (choice.message.content, choice.finish_reason) == (text, metrics.finish_reason)
        assert text and done.model == name
        usage, length = done.usage, engine.get_cache_info().cache_seq_length
        assert usage.prompt_tokens == length + metrics.prompt_tokens
        assert usage.prompt_tokens_details.cached_tokens == length
        assert usage.completion_tokens == metrics.answer_tokens
        assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
        told = done.stream_vlm
        ends = [films[name][0].stamp_ns, films[name][-1].stamp_ns]
        assert (told["session"], told["memory"]["spans_ns"]) == (name, [ends])
        assert 0 < told["ttft"] <= told["latency"]


def test_a_header_names_the_session_of_the_model_that_is_served(client, engines):
    how = {"model": SERVED, "extra_headers": {"x-session-id": "left"}}
    assert (
        ask(client, "What do you see?", **how).choices[0].message.content
        == (engines["left"].ask("What do you see?")[0])
    )
    with pytest.raises(openai.BadRequestError, match="names the session left") as refused:
        ask(client, "What?", **how | {"model": "front"})
    assert refused.value.param == "model"
    with pytest.raises(openai.BadRequestError, match="of which session"):
        ask(client, "What?", model=SERVED)


def test_the_models_are_what_is_served_and_the_sessions(client, films):
    rows = client.models.list().data
    assert {SERVED, *films} <= {row.id for row in rows}
    assert all(row.created > 1_700_000_000 for row in rows)
    assert client.models.retrieve("left").id == "left"
    with pytest.raises(openai.NotFoundError, match="lefd"):
        client.models.retrieve("lefd")


def test_an_answer_is_streamed_as_it_grows(client, engines, monkeypatch):
    seen, pieces = hold_answers(monkeypatch), []
    options = {"stream": True, "stream_options": {"include_usage": True}}
    for piece in ask(client, "What do you see?", **options):
        pieces.append(piece)
        if piece.choices and piece.choices[0].delta.content:
            seen.set()
    text, metrics = engines["front"].ask("What do you see?")
    *written, last, cost = pieces
    deltas = [piece.choices[0].delta for piece in written]
    assert deltas[0].role == "assistant"
    assert "".join(delta.content for delta in deltas) == text
    assert len(written) > 2  # in pieces, not at once
    assert {piece.choices[0].finish_reason for piece in written} == {None}
    assert last.choices[0].finish_reason == metrics.finish_reason
    assert last.stream_vlm["memory"]["frames"] == 8
    assert (cost.choices, cost.usage) == ([], ask(client, "What do you see?").usage)
    assert len({piece.id for piece in pieces}) == 1
    assert [*ask(client, "What do you see?", stream=True)][-1].usage is None


@pytest.mark.parametrize("longest", ["max_tokens", "max_completion_tokens"])
def test_a_bound_on_the_answer_ends_it(client, longest):
    done = ask(client, "What do you see?", **{longest: 2})
    assert (done.usage.completion_tokens, done.choices[0].finish_reason) == (2, "length")


def test_sampling_and_stop_texts_are_the_engines(client, engines):
    engine = engines["front"]
    for seed in range(3):
        drawn = ask(client, "What do you see?", temperature=1.5, top_p=0.9, seed=seed)
        text, _ = engine.ask(
            "What do you see?", do_sample=True, temperature=1.5, top_p=0.9, seed=seed
        )
        assert drawn.choices[0].message.content == text
    text, _ = engine.ask("What do you see?")
    stop = text.split()[1]
    done = ask(client, "What do you see?", stop=stop)
    assert (done.choices[0].message.content, done.choices[0].finish_reason) == (
        text[: text.index(stop)],
        "stop",
    )


def test_earlier_turns_are_read_as_such(client, engines):
    turns = ("What do you see?", "A red circle.", "What came last?")
    done = ask(client, *turns)
    text, metrics = engines["front"].ask(turns[2], earlier=[turns[:2]])
    usage = done.usage
    assert done.choices[0].message.content == text
    assert usage.prompt_tokens - usage.prompt_tokens_details.cached_tokens == metrics.prompt_tokens
    assert metrics.prompt_tokens > engines["front"].ask(turns[2])[1].prompt_tokens + len("A red")


def test_of_choices_the_likeliest_is_told(client, engines):
    choices = ["a red circle", "a blue square", "nothing"]
    done = ask(client, "What came last?", **extension(choices=choices))
    choice, metrics = engines["front"].ask_choice("What came last?", choices)
    told = done.stream_vlm
    assert (done.choices[0].message.content, done.choices[0].finish_reason) == (choice, "stop")
    assert told["choice_index"] == choices.index(choice)
    assert told["choice_scores"] == pytest.approx(metrics.scores, abs=1e-4)
    assert done.usage.completion_tokens == metrics.choice_tokens[metrics.choice_index] - 1
    assert done.usage.prompt_tokens == metrics.cache_length + metrics.prompt_tokens
    (piece,) = [
        p.choices[0].delta.content
        for p in ask(client, "What came last?", stream=True, **extension(choices=choices))
        if p.choices[0].delta.content
    ]
    assert piece == choice


def test_a_time_that_is_not_remembered_is_refused_in_seconds_and_nanoseconds(client, films):
    begin, end = (films["front"][at].stamp_ns for at in (0, -1))
    for about in ({"about": [end / SECOND + 60, None]}, {"about_ns": [None, begin - 1]}):
        for stream in (False, True):
            with pytest.raises(openai.BadRequestError, match="nothing of that time") as refused:
                ask(client, "What?", stream=stream, **extension(**about))
            assert refused.value.code == "OUT_OF_HORIZON"
        assert ask(client, "What?", **extension(refuse_forgotten=False, **about)).choices
    assert ask(client, "What?", **extension(about=[begin / SECOND, end / SECOND])).choices
    assert ask(client, "What?", **extension(about_ns=[begin, end])).choices


def test_an_exchange_that_is_kept_is_in_the_memory(client, server, film):
    camera = server.camera("kept")
    with camera:
        feed(camera, film[:4])
        before = ask(client, "What?", model="kept").usage.prompt_tokens_details.cached_tokens
        ask(client, "What?", model="kept", **extension(keep_exchange=True))
        after = ask(client, "What?", model="kept").usage.prompt_tokens_details.cached_tokens
    assert after > before


TOOL = {"type": "function", "function": {"name": "drive"}}
PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}


@pytest.mark.parametrize(
    ("asked", "param", "words"),
    [
        ({"tools": [TOOL]}, "tools", "calls nothing"),
        ({"functions": [TOOL["function"]]}, "functions", "calls nothing"),
        ({"tool_choice": "required"}, "tool_choice", "not supported"),
        ({"response_format": {"type": "json_object"}}, "response_format", "stream_vlm.choices"),
        ({"n": 2}, "n", "n = 2 is not supported"),
        ({"n": True}, "n", "n = true is not supported"),
        ({"logprobs": True}, "logprobs", "not supported"),
        ({"logprobs": 0}, "logprobs", "not supported"),
        ({"frequency_penalty": 0.5}, "frequency_penalty", "not supported"),
        ({"logit_bias": {"5": 1}}, "logit_bias", "not supported"),
        ({"store": True}, "store", "not supported"),
        ({"reasoning_effort": "high"}, "reasoning_effort", "not supported"),
        ({"extra_body": {"top_k": 5}}, "top_k", "no parameter that is known"),
        ({"max_tokens": 0}, "max_tokens", ">= 1"),
        ({"max_tokens": "many"}, "max_tokens", "Expected `int"),
        ({"max_tokens": 5, "max_completion_tokens": 5}, "max_tokens", "one of them"),
        ({"temperature": 2.1}, "temperature", "<= 2"),
        ({"top_p": 0}, "top_p", "> 0"),
        ({"stop": ["a"] * 5}, "stop", "up to 4"),
        ({"stop": ""}, "stop", "none empty"),
        (
            {"stream_options": {"include_obfuscation": True}},
            "stream_options.include_obfuscation",
            "Invalid enum value True",
        ),
        (extension(chioces=["a"]), "stream_vlm", "unknown field `chioces`"),
        (extension(about=[2, 1]), "stream_vlm.about", "begins after it ends"),
        (extension(about=[1, 2], about_ns=[1, 2]), "stream_vlm.about", "give one of them"),
        (extension(thumbnails=7), "stream_vlm.thumbnails", "<= 6"),
        (extension(history="always"), "stream_vlm.history", "keeps no history"),
        ({"seed": 1, **extension(choices=["a", "b"])}, "seed", "nothing is written"),
        ({"temperature": 1, **extension(choices=["a"])}, "temperature", "nothing is written"),
        ({"messages": []}, "messages", "the last is the question"),
        ({"messages": user("a", "b")}, "messages", "the last is the question"),
        ({"messages": [*user("a"), *user("b"), *user("c")]}, "messages[1].role", "in turns"),
        (
            {"messages": [{"role": "system", "content": "Be brief."}, *user("What?")]},
            "messages[0].role",
            "cannot be given at this server",
        ),
        ({"messages": [{"role": "tool", "content": "7"}]}, "messages[0].role", "role must be"),
        (
            {"messages": [{"role": "user", "content": [PICTURE]}]},
            "messages[0].content[0]",
            "image_url: only text is taken",
        ),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "must be text"),
        (
            {"messages": user("a", "b", "c"), **extension(keep_exchange=True)},
            "stream_vlm.keep_exchange",
            "without the earlier turns",
        ),
        (
            {"messages": user("a", "b", "c"), **extension(choices=["a"])},
            "messages",
            "leave them out",
        ),
        # What the engine itself refuses.
        ({"messages": user(" ")}, None, "the question is empty"),
        ({"max_tokens": 100_000}, None, "2048 are kept for both"),
        ({"max_tokens": 10**400}, None, "are kept for both"),
        ({"seed": 2**66}, None, "seed must be"),
        (extension(choices=[f"{n}" for n in range(65)]), None, "between 1 and 64"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_is_not_honoured_is_refused_in_words(client, asked, param, words, stream):
    asked = {"messages": user("What?"), "stream": stream, **asked}
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model="front", **asked)
    fault = refused.value
    assert fault.type == "invalid_request_error" and fault.code
    assert words in fault.message
    assert fault.param == param


def test_parts_of_text_labels_and_plain_values_are_taken(client):
    parts = [{"type": "text", "text": "What do "}, {"type": "text", "text": "you see?"}]
    plain = {"n": 1, "tools": [], "response_format": {"type": "text"}, "logprobs": False}
    done = client.chat.completions.create(
        model="front", messages=[{"role": "user", "content": parts}], user="me", **plain
    )
    said = ask(client, "What do you see?")
    assert done.choices[0].message == said.choices[0].message


def test_an_empty_memory_a_full_queue_and_an_ending_session_say_so(client, server):
    server.camera("empty")
    with pytest.raises(openai.BadRequestError, match="holds no image yet"):
        ask(client, "What?", model="empty")
    session = server.sessions.find("empty", "local")
    session.worker.max_questions = 0
    with pytest.raises(openai.RateLimitError, match="waiting already") as full:
        ask(client, "What?", model="empty", stream=True)
    assert int(full.value.response.headers["retry-after"]) >= 1
    assert session.begin_end()
    session.life.close()
    with pytest.raises(openai.InternalServerError, match="being ended") as ending:
        ask(client, "What?", model="empty")
    session.go_on()
    assert ending.value.status_code == 503
    assert int(ending.value.response.headers["retry-after"]) >= 1


def test_what_is_no_request_is_refused_before_it_is_read_whole(server):
    no_turns = b'{"model": "front", "messages": [], "stream_options": {}}'
    for body, status, words in [
        (b"", 400, "no JSON"),
        (b"\xff{", 400, "no JSON"),
        (b"[" * 100_000, 400, "no JSON"),
        (b"[]", 400, "must be a JSON object"),
        (b"{}", 400, "missing required field"),
        (no_turns.replace(b"[]", b'[{"role": "user", "content": "?"}]'), 400, "stream: true"),
        (b" " * (1 + (1 << 20)), 413, "Only text is taken"),
    ]:
        answer = post(server, body).getresponse()
        assert answer.status == status
        assert words in json.load(answer)["error"]["message"]


VALID = {"model": "front", "messages": user("a", "b", "c"), "stream": True, "stop": ["x"]}
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
NAMES = st.sampled_from(["model", "messages", "stop", "seed", "tools", "stream_vlm", "x", "user"])


@given(st.dictionaries(NAMES, ANYTHING))
def test_whatever_is_sent_is_a_question_or_is_refused(changes):
    body = json.dumps(VALID | changes).encode()
    try:
        assert isinstance(ChatRequest.of(body, 128).question.text, str)
    except RequestError as fault:
        assert str(fault)


@pytest.fixture
def paused(server, monkeypatch):
    """A session whose answers wait behind their first token: it, two events (there it waits, and it
    may go on) and the tickets."""
    session = server.sessions.find("right", "local")
    begun, go_on, tickets = threading.Event(), threading.Event(), []
    real = session.ask

    def ask(question, progress):
        def follow(state, text):
            progress(state, text)
            if state == WRITING and not begun.is_set():
                begun.set()
                assert go_on.wait(PATIENCE)

        tickets.append(real(question, follow))
        return tickets[-1]

    monkeypatch.setattr(session, "ask", ask)
    yield session, begun, go_on, tickets
    go_on.set()


@pytest.mark.parametrize("stream", [False, True])
def test_who_goes_away_is_not_answered_a_token_longer(server, engines, paused, stream):
    _, begun, go_on, tickets = paused
    body = {"model": "right", "messages": user("What do you see?"), "stream": stream}
    connection = post(server, json.dumps(body).encode())
    assert begun.wait(PATIENCE)
    if stream:
        assert connection.getresponse().readline().startswith(b"data: ")
    connection.sock.shutdown(socket.SHUT_RDWR)
    connection.close()
    wait_until(lambda: tickets[0].cancelled, "that the question is cancelled")
    go_on.set()
    outcome = tickets[0].future.result(PATIENCE)
    assert outcome.error.code == "CANCELLED"
    whole = engines["right"].ask("What do you see?")[1]
    assert 1 <= outcome.answer_tokens <= 2 < whole.answer_tokens


def test_a_request_that_ends_leaves_a_session_to_begin(server, monkeypatch):
    session = server.sessions.find("left", "local")
    monkeypatch.setattr(session, "ready", Future())
    body = {"model": "left", "messages": user("What do you see?")}

    async def give_up():
        there = httpx.ASGITransport(server.app)
        async with httpx.AsyncClient(transport=there, base_url="http://127.0.0.1") as client:
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(client.post("/v1/chat/completions", json=body), 0.2)

    asyncio.run(give_up())
    assert not session.ready.cancelled()


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_is_broken_off_says_why(client, paused, stream):
    session, begun, go_on, _ = paused
    told = threading.Event()  # the client has read the beginning of a stream

    def break_off():
        assert begun.wait(PATIENCE) and told.wait(PATIENCE)
        session.worker.abandon(Drop.RESET, ServerEndingError("the server is being stopped"))
        go_on.set()

    if not stream:
        told.set()
    breaking = threading.Thread(target=break_off)
    breaking.start()
    with pytest.raises(openai.APIError, match="being stopped") as broken:
        for _ in ask(client, "What do you see?", model="right", stream=stream):
            told.set()
    breaking.join()
    assert broken.value.code == "ENDING"
    assert isinstance(broken.value, openai.InternalServerError) == (not stream)


def test_what_is_not_served_is_told_in_the_form_of_errors(client):
    with pytest.raises(openai.NotFoundError, match="no POST /v1/completions here") as missing:
        client.completions.create(model="front", prompt="What?")
    assert missing.value.type == "not_found_error"
    with pytest.raises(openai.APIStatusError, match="no DELETE /v1/models here"):
        client.delete("/models", cast_to=object)


KEYS = ("a" * 20, "b" * 20)


@pytest.fixture(scope="module")
def keyed(server):
    """A server that needs a key, and keeps a history behind small memories."""
    settings = replace(server.sessions.settings, history="auto", max_cache_tokens=300)
    sessions = Sessions(settings, Limits(max_sessions=4), load=kept_model)
    sessions.load()
    running = RunningServer(sessions, Keys(KEYS))
    yield running
    sessions.drain(5.0)
    running.close()


def test_another_keys_session_is_as_if_it_were_not_there(keyed, film):
    with keyed.camera("mine", KEYS[0]) as camera:
        feed(camera, film[:4])
    mine, other, nobody = (client_of(keyed, key) for key in (*KEYS, "c" * 20))
    assert ask(mine, "What?", model="mine").choices
    with pytest.raises(openai.NotFoundError) as hidden:
        ask(other, "What?", model="mine")
    with pytest.raises(openai.NotFoundError) as missing:
        ask(other, "What?", model="mine2")
    assert hidden.value.message.replace("mine", "mine2") == missing.value.message
    assert [row.id for row in other.models.list()] == [SERVED]
    with pytest.raises(openai.NotFoundError):
        other.models.retrieve("mine")
    for attempt in (lambda: ask(nobody, "What?", model="mine"), nobody.models.list):
        with pytest.raises(openai.AuthenticationError, match="not one of this server's"):
            attempt()


def test_evidence_has_times_and_pictures_of_what_was_fetched(keyed, film):
    engine = load_engine(keyed.sessions.settings)
    remember(engine, film[:36])
    with keyed.camera("long", KEYS[0]) as camera:
        feed(camera, film[:36])
    how = extension(history="always", thumbnails=2)
    done = ask(client_of(keyed, KEYS[0]), "Have you seen a red circle?", model="long", **how)
    text, metrics = engine.ask("Have you seen a red circle?", history="always")
    assert done.choices[0].message.content == text
    begin, told = film[0].stamp_ns, done.stream_vlm
    expected = [[begin + round(at * SECOND) for at in (e.start, e.end)] for e in metrics.episodes]
    assert metrics.episodes and metrics.fetched_tokens
    assert [[e["start_ns"], e["end_ns"]] for e in told["evidence"]] == expected
    cost = metrics.cache_length + metrics.fetched_tokens + metrics.prompt_tokens
    assert (done.usage.prompt_tokens, told["fetched_tokens"]) == (cost, metrics.fetched_tokens)
    for episode in told["evidence"]:
        for picture in episode["thumbnails"]:
            with Image.open(io.BytesIO(base64.b64decode(picture["jpeg"]))) as shown:
                assert max(shown.size) == THUMBNAIL_SIZE
            assert picture["stamp_ns"] in episode["stamps_ns"]
    assert told["evidence"][0]["thumbnails"]

# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Who is let into the console."""

import asyncio
import contextlib
import socket
from urllib.parse import urlencode

import pytest

from stream_vlm_ros.access import Access, is_loopback, listen, read_key, read_keys
from stream_vlm_ros.errors import InvalidParameterError
from stream_vlm_ros.web.gate import KEY_PAGE, OPENING, Gate

KEY = "0123456789abcdef"
HERE = {"host": "127.0.0.1:8080"}
SOCKET = "/_nicegui_ws/socket.io/"


class House:
    """What is behind the gate: says so, and keeps websockets open until it is told to end."""

    def __init__(self):
        self.open, self.end = 0, asyncio.Event()

    async def __call__(self, scope, receive, send):
        if scope["type"] == "websocket":
            self.open += 1
            await send({"type": "websocket.accept"})
            await self.end.wait()
            return
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"inside"})


async def call(gate, kind="http", path="/", method="GET", heads=None, body=b""):
    """The messages that come back."""
    sent = []

    async def receive():
        return {"type": f"{kind}.request" if kind == "http" else "websocket.connect", "body": body}

    async def send(message):
        sent.append(message)

    lines = [(name.encode(), value.encode()) for name, value in (heads or HERE).items()]
    scope = {"type": kind, "path": path, "method": method, "headers": lines}
    await gate(scope, receive, send)
    return sent


def ask(gate, **request):
    start, end = asyncio.run(call(gate, **request))
    return start["status"], end["body"].decode(), dict(start["headers"])


def give(gate, key, heads=HERE):
    return ask(
        gate, path=KEY_PAGE, method="POST", heads=heads, body=urlencode({"key": key}).encode()
    )


def opened(gate, heads=HERE, path=SOCKET):
    """Whether a websocket is let in."""

    async def run():
        return (await call(gate, "websocket", path, heads=heads))[0]["type"]

    return asyncio.run(run()) == "websocket.accept"


@pytest.fixture
def house():
    house = House()
    house.end.set()
    return house


def test_without_a_key_this_machine_is_let_in(house):
    gate = Gate(house, Access())
    for host in ("127.0.0.1:8080", "localhost:9000", "[::1]:8080"):
        assert ask(gate, heads={"host": host})[:2] == (200, "inside")
        assert opened(gate, {"host": host, "origin": f"http://{host}"})


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example:8080", "", "a@b", "[::"])
def test_a_name_that_another_site_gave_this_machine_is_refused(house, host):
    gate = Gate(house, Access())
    status, words, _ = ask(gate, heads={"host": host})
    assert status == 403 and "not the console's own" in words
    assert not opened(gate, {"host": host})


def test_another_sites_page_reaches_nothing(house):
    gate, theirs = Gate(house, Access()), {**HERE, "origin": "http://evil.example"}
    assert not opened(gate, theirs)
    assert not opened(gate, theirs, "/cameras/0/pictures")
    assert ask(gate, method="POST", heads=theirs)[0] == 403
    for site in ("cross-site", "same-site"):  # one of another port of this machine is the second
        for mode, dest in (
            ("navigate", "iframe"), ("no-cors", "image"), ("cors", "empty"), ("navigate", "object"),
        ):  # fmt: skip
            asked = {"sec-fetch-site": site, "sec-fetch-mode": mode, "sec-fetch-dest": dest}
            assert ask(gate, path="/cameras/0/picture", heads={**HERE, **asked})[0] == 403
        link = {
            "sec-fetch-site": site, "sec-fetch-mode": "navigate", "sec-fetch-dest": "document",
        }  # fmt: skip
        assert ask(gate, heads={**HERE, **link})[0] == 200
    own = {"sec-fetch-site": "same-origin", "sec-fetch-mode": "cors", "sec-fetch-dest": "empty"}
    assert ask(gate, path="/cameras/0/picture", heads={**HERE, **own})[0] == 200


@pytest.mark.parametrize("request_", [{}, {"path": SOCKET}, {"heads": {"host": "evil.example"}}])
def test_no_answer_may_stand_in_another_page(house, request_):
    _, _, heads = ask(Gate(house, Access()), **request_)
    assert heads[b"content-security-policy"] == b"frame-ancestors 'none'"
    assert heads[b"x-frame-options"] == b"DENY"
    assert heads[b"x-content-type-options"] == b"nosniff"
    assert heads[b"cross-origin-resource-policy"] == b"same-origin"


def test_with_a_key_nobody_is_let_in_who_does_not_tell_it(house):
    gate = Gate(house, Access("0.0.0.0", 8080, KEY))
    status, words, _ = ask(gate, heads={"host": "robot:8080"})
    assert status == 401 and 'type="password"' in words
    for wrong in (
        {"authorization": f"Bearer {KEY}0"},
        {"authorization": "Bearer \u00e9"},
        {"cookie": f"stream_vlm_8080={KEY}"},
        {"cookie": "stream_vlm_8080=\u00e9;;="},
    ):
        assert ask(gate, heads={**HERE, **wrong})[0] == 401
        assert not opened(gate, {**HERE, **wrong})
    assert ask(gate, heads={**HERE, "authorization": f"Bearer {KEY}"})[:2] == (200, "inside")


def test_the_key_is_told_once_and_the_browser_remembers_another(house):
    gate = Gate(house, Access("0.0.0.0", 8080, KEY))
    status, words, _ = give(gate, "a wrong key")
    assert status == 401 and "not the key" in words
    status, _, heads = give(gate, KEY)
    cookie = heads[b"set-cookie"].decode()
    assert (status, heads[b"location"]) == (303, b"/")
    assert "HttpOnly" in cookie and "SameSite=Strict" in cookie and KEY not in cookie
    told = cookie.split(";")[0]
    others = f'an other="=1, {{}}; ={KEY}; {told.partition("=")[0]}=of another server'
    known = {**HERE, "cookie": f"{others}; {told}"}
    assert ask(gate, heads=known)[:2] == (200, "inside") and opened(gate, known)
    _, _, heads = give(gate, KEY, {"host": "127.0.0.1:9090"})  # a browser keeps both in one place
    assert heads[b"set-cookie"].partition(b"=")[0] != cookie.partition("=")[0].encode()
    again = Gate(house, Access("0.0.0.0", 8080, KEY))
    assert ask(again, heads=known)[0] == 401  # it ends with the server
    assert give(gate, KEY, {**HERE, "origin": "http://evil.example"})[0] == 403


def test_a_form_of_any_size_is_answered(house):
    gate = Gate(house, Access("0.0.0.0", 8080, KEY))
    assert give(gate, "x" * 100_000)[0] == 401
    assert ask(gate, path=KEY_PAGE, method="POST", body=b"\xff\xfe=%zz")[0] == 401


def test_the_twenty_fifth_viewer_is_refused_in_words_until_one_leaves():
    async def run():
        house = House()
        gate = Gate(house, Access())
        viewers = [asyncio.create_task(call(gate, "websocket", SOCKET)) for _ in range(24)]
        while house.open < 24:
            await asyncio.sleep(0)
        [start, end] = await call(gate)
        refused = await call(gate, "websocket", SOCKET)
        pictures = asyncio.create_task(call(gate, "websocket", "/cameras/0/pictures"))
        while house.open < 25:  # of those who look already
            await asyncio.sleep(0)
        house.end.set()
        await asyncio.gather(*viewers, pictures)
        [after, _] = await call(gate)
        return start["status"], end["body"].decode(), refused, after["status"], gate.viewers

    status, words, refused, after, left = asyncio.run(run())
    assert status == 503 and "24 look at this already" in words
    assert refused == [{"type": "websocket.close", "code": 4403}]
    assert (after, left) == (200, 0)


def test_pages_that_are_loaded_are_viewers_until_they_open_or_never_do(monkeypatch):
    async def run():
        house, now = House(), 0.0
        monkeypatch.setattr("stream_vlm_ros.web.gate.time.monotonic", lambda: now)
        gate = Gate(house, Access(), most=2)
        loaded = [(await call(gate))[0]["status"] for _ in range(3)]
        viewer = asyncio.create_task(call(gate, "websocket", SOCKET))
        while house.open < 1:
            await asyncio.sleep(0)
        opened = (await call(gate))[0]["status"]  # the one that opened is not counted twice
        now = OPENING + 1
        later = [(await call(gate))[0]["status"] for _ in range(2)]
        house.end.set()
        await viewer
        return loaded, opened, later

    assert asyncio.run(run()) == ([200, 200, 503], 503, [200, 503])


@pytest.mark.parametrize("gone", [True, False])
def test_one_who_goes_away_before_an_answer_is_no_fault_and_anything_else_is(gone):
    async def house(scope, receive, send):
        await receive()
        raise RuntimeError("No response returned.")  # as of starlette's BaseHTTPMiddleware

    async def receive():
        return {"type": "http.disconnect" if gone else "http.request"}

    lines = [(name.encode(), value.encode()) for name, value in HERE.items()]
    scope = {"type": "http", "path": "/", "method": "GET", "headers": lines}
    with contextlib.nullcontext() if gone else pytest.raises(RuntimeError):
        asyncio.run(Gate(house, Access())(scope, receive, None))


def test_a_page_that_takes_no_websocket_is_told_so(house):
    status, words, _ = ask(Gate(house, Access()), path=SOCKET)
    assert status == 400 and "needs websockets" in words


# -- the key itself -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "ours"),
    [("127.0.0.1", True), ("127.0.1.1", True), ("::1", True), ("localhost", True),
     ("0.0.0.0", False), ("::", False), ("192.168.1.5", False), ("robot.local", False),
     ("localhost.evil.example", False), ("", False)],
)  # fmt: skip
def test_other_machines_need_a_key(host, ours):
    assert is_loopback(host) == ours
    if not ours:
        with pytest.raises(
            InvalidParameterError, match="lets other machines in, which needs a key"
        ):
            Access(host)
    assert Access(host, key=KEY).admits(KEY) and not Access(host, key=KEY).admits("")


def test_the_key_comes_of_a_file_of_its_owners_or_of_the_environment(tmp_path, monkeypatch):
    monkeypatch.delenv("STREAM_VLM_API_KEY", raising=False)
    assert read_key() == ""
    monkeypatch.setenv("STREAM_VLM_API_KEY", KEY)
    assert read_key() == KEY
    file = tmp_path / "key"
    file.write_text("of a file, 16 characters\n")
    file.chmod(0o644)
    with pytest.raises(InvalidParameterError, match="chmod 600"):
        read_key(str(file))
    file.chmod(0o600)
    assert read_key(str(file)) == "of a file, 16 characters"


def test_a_file_may_hold_several_keys_of_which_others_want_one(tmp_path):
    file = tmp_path / "keys"
    file.write_text(f"# of the robots\n{KEY}\n\n  another of 16 characters \n{KEY}\n")
    file.chmod(0o600)
    assert read_keys(str(file)) == (KEY, "another of 16 characters")
    with pytest.raises(InvalidParameterError, match="holds 2 keys"):
        read_key(str(file))
    file.write_text(f"{KEY}\nshort\n")
    with pytest.raises(InvalidParameterError, match="16 to 1024"):
        read_keys(str(file))


@pytest.mark.parametrize(
    "content",
    [b"short", b"", b"x" * 2000, b"two lines of\nsixteen", b"\xff" * 20, b"\xc3\xa9" * 20],
)
def test_a_key_that_is_none_is_refused(tmp_path, content):
    file = tmp_path / "key"
    file.write_bytes(content)
    file.chmod(0o600)
    with pytest.raises(InvalidParameterError):
        read_key(str(file))
    with pytest.raises(InvalidParameterError, match="cannot be read: No such file"):
        read_key(str(tmp_path / "none"))


def test_what_is_accepted_sends_small_messages_at_once():
    with listen("127.0.0.1", 0) as listening, socket.create_connection(listening.getsockname()):
        accepted, _ = listening.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)

# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""A server of the service in a thread, and a camera that is connected to it."""

import asyncio
import contextlib
import functools
import io
import threading
import time

import httpx
import numpy as np
from patience import PATIENCE
from PIL import Image
from websockets.sync.client import connect

from stream_vlm_ros.access import listen
from stream_vlm_ros.engine.inputs.timestamps import SECOND
from stream_vlm_ros.factory import load_engine
from stream_vlm_ros.remote import protocol
from stream_vlm_ros.serve.app import create_app
from stream_vlm_ros.serve.keys import Keys
from stream_vlm_ros.serve.running import make_server
from stream_vlm_ros.serve.session import Session
from stream_vlm_ros.session.question import WRITING

get = functools.partial(httpx.get, timeout=PATIENCE)
delete = functools.partial(httpx.delete, timeout=PATIENCE)


class RunningServer:
    """Sessions served at a port of this machine, until `close`."""

    def __init__(self, sessions, keys=None, **pings):
        self.sessions, self.app = sessions, create_app(sessions, keys or Keys())
        self.port = None
        self._server = make_server(self.app, **pings)
        self._listening = listen("127.0.0.1", 0)
        self.port = self._listening.getsockname()[1]
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    def _run(self):
        with contextlib.closing(self._listening):
            asyncio.run(self._server.serve([self._listening]))

    def close(self):
        self._server.should_exit = True
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()

    def camera(self, session="", key="", commit="client", **options):
        """A camera's connection, whose session is there."""
        camera = Camera(self.port, session, key, **options)
        camera.created = camera.next(protocol.SessionCreated)
        camera.sequence = camera.created.session.accepted_sequence
        if commit != camera.created.session.settings["commit"]:
            camera.send(protocol.SessionUpdate(settings={"commit": commit}))
            camera.next(protocol.SessionUpdated)
        return camera


def hold_answers(monkeypatch):
    """Answers wait behind their first words; the event that lets them go on."""
    ask, go_on = Session.ask, threading.Event()

    def held(self, question, progress=None):
        def follow(state, text):
            progress(state, text)
            if state == WRITING and text:
                assert go_on.wait(PATIENCE)

        return ask(self, question, follow)

    monkeypatch.setattr(Session, "ask", held)
    return go_on


class Camera:
    """One connection."""

    def __init__(self, port, session="", key="", subprotocol=protocol.SUBPROTOCOL, headers=()):
        told = [("Authorization", f"Bearer {key}")] if key else []
        told += [(protocol.SESSION_HEADER, session)] if session else []
        self._stack = contextlib.ExitStack()
        connecting = connect(
            f"ws://127.0.0.1:{port}{protocol.PATH}",
            additional_headers=[*told, *headers],
            subprotocols=[subprotocol] if subprotocol else None,
            compression=None,
            max_size=None,
            open_timeout=PATIENCE,
            close_timeout=2,
        )
        self.socket = self._stack.enter_context(connecting)
        self.heard = []  # all events, in order
        self.sequence = 0

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()

    def close(self):
        self._stack.close()

    def send(self, event):
        self.socket.send(protocol.encoded(event))

    def frame(self, stamp_ns, image, jpeg=False):
        """Send a frame; the sequence that it got."""
        self.sequence += 1
        encoding, pixels = protocol.RAW, np.ascontiguousarray(image).tobytes()
        height, width = image.shape[:2]
        if jpeg:
            encoding, pixels, height, width = protocol.JPEG, jpeg_of(image), 0, 0
        message = protocol.FrameMessage(self.sequence, stamp_ns, encoding, height, width, pixels)
        self.socket.send(message.packed())
        return self.sequence

    def chunk(self, stamps_ns, images, jpeg=False):
        for stamp_ns, image in zip(stamps_ns, images, strict=True):
            self.frame(stamp_ns, image, jpeg)
        self.send(protocol.Commit())

    def hear(self, timeout=PATIENCE):
        """The next event."""
        event = protocol.server_event(self.socket.recv(timeout))
        self.heard.append(event)
        return event

    def next(self, kind, timeout=PATIENCE):
        """The next event of a kind; others before it are kept in ``heard``."""
        until = time.monotonic() + timeout
        while not isinstance(event := self.hear(until - time.monotonic()), kind):
            assert not isinstance(event, protocol.ErrorEvent | protocol.SessionEnding), event
        return event

    def ask(self, text, id="q", **options):
        """The answer's `Response`."""
        self.send(protocol.ResponseCreate(event_id=id, response=protocol.Ask(text=text, **options)))
        while (done := self.next(protocol.ResponseDone)).response.id != id:
            pass
        return done.response


def jpeg_of(image, quality=90):
    written = io.BytesIO()
    Image.fromarray(image).save(written, "JPEG", quality=quality)
    return written.getvalue()


def of_jpeg(image, quality=90):
    """What comes out of that JPEG."""
    return np.array(Image.open(io.BytesIO(jpeg_of(image, quality))).convert("RGB"))


def feed(camera, film, chunk=4, jpeg=False):
    """Send a film in chunks, and wait for each."""
    for begin in range(0, len(film), chunk):
        frames = film[begin : begin + chunk]
        camera.chunk([f.stamp_ns for f in frames], [f.image for f in frames], jpeg)
        camera.next(protocol.Ingested)


def in_process(settings, film, question, choices=(), chunk=4):
    """The engine's own answer, or the scores of choices. ``film``: of frames, or of their stamps
    with pictures."""
    engine = load_engine(settings)
    frames = [one if isinstance(one, tuple) else (one.stamp_ns, one.image) for one in film]
    try:
        for begin in range(0, len(frames), chunk):
            part = frames[begin : begin + chunk]
            stamps = [(stamp_ns - frames[0][0]) / SECOND for stamp_ns, _ in part]
            engine.append_video_chunk([image for _, image in part], timestamps=stamps)
        if choices:
            return engine.ask_choice(question, list(choices))[1].scores
        return engine.ask(question, max_new_tokens=16)
    finally:
        engine.close()

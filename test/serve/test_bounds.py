# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""What one client sends takes a bounded part of the server, and breaks nothing."""

import pytest
from patience import PATIENCE
from serving import feed

from stream_vlm_ros.remote import protocol
from stream_vlm_ros.serve.keys import LOCAL

HUGE = "1" + "0" * 400


def heard(camera, kind):
    """The next event of a kind, whatever comes before it."""
    while not isinstance(event := camera.hear(), kind):
        pass
    return event


# -- numbers -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "said",
    [
        f'"memory.picture", "stamp_ns": {HUGE}',
        f'"memory.picture", "stamp_ns": 0, "within_ns": {2**63}',
        f'"memory.picture", "stamp_ns": 0, "max_size": -{HUGE}',
        f'"response.create", "response": {{"text": "?", "about_ns": [0, {HUGE}]}}',
        f'"response.create", "response": {{"text": "?", "max_new_tokens": {HUGE}}}',
        '"response.create", "response": {"text": "?", "thumbnails": -1}',
        f'"response.create", "response": {{"text": "?", "thumbnails": {10**12}}}',
        '"response.create", "response": {"text": "?", "history": "zzz"}',
    ],
)
def test_what_no_field_can_hold_is_refused_and_the_engine_goes_on(server, film, said):
    with server.camera("numbers") as camera:
        camera.socket.send(f'{{"event_id": "q", "type": {said}}}')
        assert heard(camera, protocol.ErrorEvent).error.code == "PROTOCOL_ERROR"
        camera.send(protocol.MemoryPicture(event_id="p", stamp_ns=0))
        assert camera.next(protocol.PictureDone).event_id == "p"


@pytest.mark.parametrize("value", [HUGE, f"-{HUGE}", "1e400"])
def test_no_number_in_a_setting_is_an_internal_error(server, value):
    with server.camera() as camera:
        for name in ("sample_fps", "max_chunk_delay", "queue_size", "max_pixels"):
            settings = f'{{"{name}": {value}}}'
            camera.socket.send(f'{{"type": "session.update", "settings": {settings}}}')
            assert heard(camera, protocol.ErrorEvent).error.code != "INTERNAL"


def test_a_picture_that_cannot_be_looked_for_ends_no_engine(server, film):
    with server.camera("looked-for") as camera:
        feed(camera, film[:4])
        worker = server.sessions.find("looked-for", LOCAL).worker
        assert worker.picture_near(10**400).exception(PATIENCE)
        assert worker.ended is None and camera.ask("What?").text

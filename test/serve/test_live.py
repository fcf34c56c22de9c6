# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Cameras over WebSockets: what they send is remembered as it would be in process."""

from stream_vlm_ros.factory import load_engine
from stream_vlm_ros.remote import protocol

QUESTIONS = ("What do you see?", "What came last?", "How many things are there?")


def in_process(settings, film, question, chunk=4):
    """The engine's own answer."""
    engine = load_engine(settings)
    try:
        first = film[0].stamp_ns
        for begin in range(0, len(film), chunk):
            frames = film[begin : begin + chunk]
            stamps = [(frame.stamp_ns - first) / 1e9 for frame in frames]
            engine.append_video_chunk([frame.image for frame in frames], timestamps=stamps)
        return engine.ask(question, max_new_tokens=16)[0]
    finally:
        engine.close()


def feed(camera, film, chunk=4, jpeg=False):
    """Send a film in chunks, and wait for each."""
    for begin in range(0, len(film), chunk):
        frames = film[begin : begin + chunk]
        camera.chunk([f.stamp_ns for f in frames], [f.image for f in frames], jpeg)
        camera.next(protocol.Ingested)


def test_three_cameras_answer_as_the_engine_in_process_would(server, film):
    films = [film[:8], film[8:20], film[20:28]]
    cameras = [server.camera(f"equal-{n}") for n in range(3)]
    for camera, part in zip(cameras, films, strict=True):
        feed(camera, part)
    for camera, part, question in zip(cameras, films, QUESTIONS, strict=True):
        response = camera.ask(question, max_new_tokens=16)
        assert response.status == "completed" and response.text
        assert response.text == in_process(server.sessions.settings, part, question)
        assert response.memory.frames == len(part)
        camera.close()

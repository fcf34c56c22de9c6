# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""One picture for all who look."""

import io

import numpy as np
import pytest
from PIL import Image

from stream_vlm_ros.web import pictures
from stream_vlm_ros.web.pictures import Pictures

RED = np.full((48, 64, 3), (200, 0, 0), np.uint8)
BLUE = np.full((48, 64, 3), (0, 0, 200), np.uint8)


@pytest.fixture
def encodings(monkeypatch):
    """Of the pictures that were encoded, the colour."""
    done, encode = [], pictures.as_jpeg
    monkeypatch.setattr(
        pictures, "as_jpeg", lambda image: done.append(tuple(image[0, 0])) or encode(image)
    )
    return done


def shown(picture):
    return Image.open(io.BytesIO(picture.jpeg))


def test_a_picture_is_encoded_when_it_is_looked_at_and_once_for_all(encodings):
    camera = Pictures()
    assert camera.newest is None
    camera.offer(RED, 5)
    camera.offer(BLUE, 6)
    assert encodings == []  # nobody looks
    first = camera.newest
    assert all(camera.newest is first for _ in range(10))
    assert (first.stamp_ns, encodings) == (6, [(0, 0, 200)])
    assert shown(first).size == (64, 48)
    assert np.allclose(np.asarray(shown(first)), BLUE, atol=6)


def test_no_more_pictures_are_encoded_than_are_shown_in_a_second(encodings, monkeypatch):
    now = 100.0
    monkeypatch.setattr(pictures.time, "monotonic", lambda: now)
    camera = Pictures()
    for step in range(61):  # two seconds at thirty a second
        now = 100.0 + step / 30
        camera.offer(RED, step)
        camera.newest  # noqa: B018 - looked at
    assert 19 <= len(encodings) <= 21


def test_a_large_picture_is_sent_reduced_and_in_its_proportions():
    camera = Pictures()
    camera.offer(np.zeros((1080, 1920, 3), np.uint8), 0)
    assert shown(camera.newest).size == (960, 540)

# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Pictures to run on: timed, as many as asked for, and no two alike."""

import pytest
import torch
from PIL import Image

from stream_vlm_ros.errors import InvalidParameterError
from stream_vlm_ros.experiments.pictures import open_pictures, parse_size

CPU = torch.device("cpu")


def test_synthetic_pictures_have_their_size_and_time_and_differ():
    pictures = open_pictures("synthetic:96x64", 2.0, 200, None, CPU)
    images = list(pictures)
    assert [seconds for _, seconds in images[:3]] == [0.0, 0.5, 1.0]
    assert {(tuple(image.shape), image.dtype) for image, _ in images} == {
        ((64, 96, 3), torch.uint8)
    }
    assert len({image.contiguous().numpy().tobytes() for image, _ in images}) == 200


def test_a_second_pass_gives_the_same_pictures():
    pictures = open_pictures("synthetic", 1.0, 2, (48, 32), CPU)
    assert all(torch.equal(a, b) for (a, _), (b, _) in zip(pictures, pictures, strict=True))


def test_chunks_are_full_but_the_last():
    chunks = list(open_pictures("synthetic:32x32", 2.0, 7, None, CPU).chunks(3))
    assert [len(chunk.images) for chunk in chunks] == [3, 3, 1]
    assert chunks[1].stamps == [1.5, 2.0, 2.5]


def test_a_world_needs_no_source_and_stamps_by_its_rate():
    pictures = open_pictures("world:3", 4.0, 3, (64, 48), CPU)
    assert [seconds for _, seconds in pictures] == [0.0, 0.25, 0.5]
    assert next(iter(pictures))[0].shape == (48, 64, 3)


def test_a_file_that_is_shorter_than_asked_for_says_about_how_many_frames_it_has(tmp_path):
    for number in range(10):
        Image.new("RGB", (32, 32), (20 * number, 0, 0)).save(tmp_path / f"{number:02}.png")
    pictures = open_pictures(str(tmp_path), 1.0, 400, None, CPU)  # 2 pictures a second, if not said
    assert abs(pictures.expected - len(list(pictures))) <= 1 < pictures.frames
    assert open_pictures(str(tmp_path), 1.0, 3, None, CPU).expected == 3


@pytest.mark.parametrize(("fps", "frames"), [(0.0, 3), (float("nan"), 3), (2.0, 0)])
def test_an_impossible_rate_or_count_is_refused(fps, frames):
    with pytest.raises(InvalidParameterError):
        open_pictures("synthetic:32x32", fps, frames, None, CPU)


@pytest.mark.parametrize("text", ["", "640", "640x", "1x1", "axb"])
def test_a_size_that_is_none_is_refused(text):
    with pytest.raises(InvalidParameterError):
        parse_size(text)

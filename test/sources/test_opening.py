# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

import os
import re

import pytest
from PIL import Image

from stream_vlm_ros.errors import (
    InvalidParameterError,
    SourceNotFoundError,
    SourceUnknownError,
    SourceUnreadableError,
    StreamVlmError,
)
from stream_vlm_ros.sources import (
    ImageFolderSource,
    VideoSource,
    open_source,
    parse_size,
    without_secrets,
)


def test_the_kind_of_source_follows_from_what_is_given(video, tmp_path):
    assert isinstance(open_source(str(video)), VideoSource)
    assert isinstance(open_source(video, fps=2.0, start=None), VideoSource)
    folder = tmp_path / "images"
    folder.mkdir()
    Image.new("RGB", (4, 4)).save(folder / "1.png")
    assert isinstance(open_source(folder), ImageFolderSource)


def test_a_camera_that_is_not_there_is_an_error_that_lists_those_that_are():
    with pytest.raises(SourceNotFoundError, match=r"/dev/video98.*cameras here"):
        open_source("/dev/video98")
    with pytest.raises(SourceNotFoundError, match="/dev/video97"):
        open_source("97")


@pytest.mark.parametrize("spec", ["", "  "])
def test_nothing_given_is_an_error(spec):
    with pytest.raises(SourceNotFoundError, match="No source"):
        open_source(spec)


def test_a_bag_that_is_not_there_and_a_single_image_are_explained(tmp_path):
    with pytest.raises(SourceNotFoundError, match="no bag"):
        open_source(tmp_path / "drive.mcap")
    image = tmp_path / "one.png"
    Image.new("RGB", (4, 4)).save(image)
    with pytest.raises(SourceUnknownError, match="folder"):
        open_source(image)


def test_an_animated_webp_is_refused_with_what_makes_a_video_of_it(tmp_path, monkeypatch):
    """FFmpeg finds no picture in it, and would call it damaged."""
    pictures = [Image.new("L", (8, 8), 40 * number) for number in range(3)]
    for name in ("IN.webp", "renamed.mp4"):
        pictures[0].save(
            tmp_path / name, "WEBP", save_all=True, append_images=pictures[1:], duration=100
        )
        with pytest.raises(SourceUnreadableError, match=f"{name} is an animated WebP") as refused:
            open_source(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    exec(re.search('python3 -c "(.*)"', str(refused.value))[1], {})
    assert [frame.stamp_ns for frame in open_source("OUT.gif")] == [0, 100_000_000, 200_000_000]


@pytest.mark.parametrize("name", ["pipe.mp4", "pipe.mcap", "pipe.db3.zstd", "/dev/null"])
def test_what_is_no_file_is_refused_at_once_and_not_waited_for(tmp_path, name):
    path = tmp_path / name
    if not path.exists():
        os.mkfifo(path)
    with pytest.raises(SourceUnreadableError, match="neither a file, a folder nor a camera"):
        open_source(path)


def test_a_link_to_a_camera_stands_for_that_camera(tmp_path):
    (tmp_path / "front").symlink_to("/dev/video98")
    with pytest.raises(SourceNotFoundError, match=r"no camera /dev/video98"):
        open_source(tmp_path / "front")


@pytest.mark.parametrize(
    "url", ["udp://:1", "rtmp://me:secret@camera/1?key=secret", "file:///a.mp4"]
)
def test_an_address_of_another_kind_is_refused_as_what_it_is(url):
    with pytest.raises(
        SourceUnreadableError, match=r"not read from here.*ffmpeg .* driver"
    ) as told:
        open_source(url)
    assert "secret" not in str(told.value)


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ("rtsp://me:secret@camera:554/1", "rtsp://camera:554/1"),
        ("http://camera/x.mp4?token=secret#secret", "http://camera/x.mp4"),
        ("HTTPS://me:sec/ret@camera", "HTTPS://camera"),  # as nobody should write it
        ("http://me:sec?ret@camera/1", "http://camera/1"),
        ("rtsp://[::1", "rtsp://[::1"),
        (" rtsp://me:secret@camera/1", " rtsp://camera/1"),
        ("drives/a@b?.mp4", "drives/a@b?.mp4"),
    ],
)
def test_messages_show_an_address_without_its_password(spec, told):
    assert without_secrets(spec) == told


def test_an_option_that_the_source_does_not_have_is_named(video):
    with pytest.raises(InvalidParameterError, match="frame_rate"):
        open_source(video, frame_rate=3)


def test_sizes_are_written_as_width_x_height():
    assert parse_size("640x480") == (640, 480)
    assert parse_size("") is None
    assert parse_size(None) is None
    for text in ("640", "640x", "0x10", "axb"):
        with pytest.raises(InvalidParameterError, match="640x480"):
            parse_size(text)


@pytest.mark.parametrize(
    ("spec", "options"),
    [
        ("world:7", {"end": 1e12}),
        ("world:7", {"end": float("inf")}),
        ("world:7", {"start": 1e11, "end": 1e12}),
        ("world:7", {"start": float("nan"), "end": 5.0}),
        ("world:7", {"end": 5.0, "fps": 1e-300}),
        ("world:7", {"end": 5.0, "fps": float("nan")}),
        ("world:" + 5000 * "9", {"end": 5.0}),
        ("world:10**12", {"end": 5.0}),
        (5000 * "x", {}),
        ("bag" + chr(0), {}),
        ("{images}", {"fps": 1e-300}),
        ("{images}", {"start": float("nan")}),
        ("{images}", {"end": float("inf")}),
        ("{images}", {"start": 1e300, "end": 1e301}),
    ],
)
def test_a_part_or_rate_that_no_source_has_is_refused_in_words(tmp_path, spec, options):
    Image.new("RGB", (8, 8)).save(tmp_path / "1.png")
    with pytest.raises(StreamVlmError) as caught:
        open_source(spec.format(images=tmp_path), **options)
    assert len(str(caught.value)) < 1000


def test_the_widest_part_that_is_allowed_is_read(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "1.png")
    assert len(list(open_source(tmp_path, fps=1e-6, end=2.0**31))) == 1

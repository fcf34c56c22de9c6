# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

import os

import numpy as np
import pytest
from PIL import Image

from stream_vlm_ros.errors import InvalidParameterError, SourceNotFoundError, SourceUnreadableError
from stream_vlm_ros.sources import ImageFolderSource

MS = 1_000_000


def write_images(folder, names):
    for index, name in enumerate(names):
        Image.new("RGB", (8, 6), (index, 0, 0)).save(folder / name)


@pytest.mark.parametrize(
    ("names", "offsets_ms"),
    [
        (["1305031102.175304.png", "1305031102.211214.png"], [0, 35.91]),
        (["1403636579763555584.png", "1403636579813555456.png"], [0, 49.999872]),
        (["cam_1700000000123.png", "cam_1700000000623.png"], [0, 500]),
        (["1700000000.png", "1700000002.png"], [0, 2000]),
    ],
)
def test_names_that_are_times_become_stamps(tmp_path, names, offsets_ms):
    write_images(tmp_path, names)
    stamps = [frame.stamp_ns for frame in ImageFolderSource(tmp_path)]
    assert [stamp - stamps[0] for stamp in stamps] == [round(ms * MS) for ms in offsets_ms]
    assert stamps[0] // 10**18 == 1  # this century, in nanoseconds


def test_numbered_names_are_ordered_by_number_and_timed_by_the_rate(tmp_path):
    write_images(tmp_path, ["frame1.png", "frame2.png", "frame10.png"])
    frames = list(ImageFolderSource(tmp_path, frame_rate=4))
    assert [frame.stamp_ns for frame in frames] == [0, 250 * MS, 500 * MS]
    assert [int(frame.image[0, 0, 0]) for frame in frames] == [0, 1, 2]


def test_a_raised_digit_in_a_name_is_no_number(tmp_path):
    write_images(tmp_path, ["2².png", "10.png", "².png"])
    assert [int(frame.image[0, 0, 0]) for frame in ImageFolderSource(tmp_path)] == [0, 1, 2]


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: os.symlink("/dev/zero", path)])
def test_what_is_no_plain_file_is_left_out_unread(tmp_path, make):
    write_images(tmp_path, ["1.png", "3.png"])
    make(tmp_path / "2.png")
    source = ImageFolderSource(tmp_path)
    assert len(list(source)) == 2
    assert source.state.counts.unusable == 1
    assert "2.png: it is not a plain file" in source.state.damage


def test_numbers_with_leading_zeros_are_not_taken_for_times(tmp_path):
    write_images(tmp_path, ["0000000000.png", "0000000001.png"])
    assert [f.stamp_ns for f in ImageFolderSource(tmp_path)] == [0, 500 * MS]


def test_a_rate_overrides_times_in_the_names(tmp_path):
    write_images(tmp_path, ["1700000000.png", "1700000002.png"])
    assert [f.stamp_ns for f in ImageFolderSource(tmp_path, frame_rate=1)] == [0, 1000 * MS]


def test_sampling_and_cutting_work_by_stamp(tmp_path):
    write_images(tmp_path, [f"{i:03d}.png" for i in range(20)])
    source = ImageFolderSource(tmp_path, frame_rate=10, fps=5, start=0.5, end=1.5)
    stamps = [frame.stamp_ns for frame in source]
    assert stamps == [ms * MS for ms in (500, 700, 900, 1100, 1300)]
    assert source.state.counts.unwanted == 15


def test_a_broken_image_is_left_out_and_counted(tmp_path):
    write_images(tmp_path, ["1.png", "2.png", "3.png"])
    (tmp_path / "2.png").write_bytes(b"\x89PNG\r\n\x1a\nnot really")
    source = ImageFolderSource(tmp_path)
    assert [frame.stamp_ns for frame in source] == [0, 1000 * MS]
    assert source.state.counts.unusable == 1
    assert "2.png" in source.state.damage


def test_sixteen_bit_grey_keeps_its_shades(tmp_path):
    values = np.array([[0, 0x8000, 0xFFFF]], np.uint16)
    Image.fromarray(values).save(tmp_path / "1.png")
    frame = next(iter(ImageFolderSource(tmp_path)))
    assert frame.image[0, :, 0].tolist() == [0, 0x80, 0xFF]


def test_a_camera_turned_on_its_side_is_turned_back(tmp_path):
    image = Image.new("RGB", (8, 6), (0, 0, 0))
    exif = image.getexif()
    exif[0x0112] = 6  # orientation: turn clockwise by 90 degrees
    image.save(tmp_path / "1.jpg", exif=exif)
    assert next(iter(ImageFolderSource(tmp_path))).image.shape == (8, 6, 3)


def test_a_folder_that_is_missing_or_empty_is_an_error(tmp_path):
    with pytest.raises(SourceNotFoundError, match="no folder"):
        ImageFolderSource(tmp_path / "nowhere")
    with pytest.raises(SourceUnreadableError, match="holds no images"):
        ImageFolderSource(tmp_path)
    write_images(tmp_path, ["1.png"])
    with pytest.raises(InvalidParameterError, match="frame rate"):
        ImageFolderSource(tmp_path, frame_rate=0)


def test_a_picture_too_large_is_left_out_by_its_header_and_the_rest_is_given(tmp_path):
    write_images(tmp_path, ["1.png", "2.png", "3.png"])
    Image.new("1", (14_000, 14_000)).save(tmp_path / "2.png")  # 196 megapixels in 24 kB
    source = ImageFolderSource(tmp_path)
    assert [int(f.image[0, 0, 0]) for f in source] == [0, 2]
    assert source.state.counts.unusable == 1
    assert "2.png: the picture announces 14000x14000, 196.0 megapixels" in source.state.damage


def test_any_flipped_byte_of_a_header_costs_one_picture_at_most(tmp_path):
    write_images(tmp_path, ["1.png", "2.png", "3.png"])
    good = (tmp_path / "2.png").read_bytes()
    for at in range(33):  # the signature, and IHDR
        for bit in (0x80, 0x10, 0x01):
            broken = bytearray(good)
            broken[at] ^= bit
            (tmp_path / "2.png").write_bytes(broken)
            source = ImageFolderSource(tmp_path)
            assert len(list(source)) >= 2
            counts = source.state.counts
            assert counts.given + counts.unusable == 3


def test_the_limit_of_a_folder_can_be_set(tmp_path):
    Image.new("RGB", (120, 100)).save(tmp_path / "1.png")
    assert list(ImageFolderSource(tmp_path, max_decoded_megapixels=0.012))
    assert not list(ImageFolderSource(tmp_path, max_decoded_megapixels=0.0119))
    with pytest.raises(InvalidParameterError, match="max_decoded_megapixels"):
        ImageFolderSource(tmp_path, max_decoded_megapixels=0)


def test_a_file_that_runs_another_program_is_no_picture_whatever_its_name(tmp_path):
    write_images(tmp_path, ["1.png"])
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"
    (tmp_path / "2.jpg").write_bytes(eps)
    source = ImageFolderSource(tmp_path)
    assert len(list(source)) == 1 and "unknown kind" in source.state.damage


@pytest.mark.parametrize("suffix", ["png", "webp", "tif"])
def test_of_several_pictures_in_one_file_the_first_is_taken(tmp_path, suffix):
    first, *more = (Image.new("RGB", (8, 6), (0, 0, level)) for level in (200, 100, 50))
    first.save(tmp_path / f"1.{suffix}", save_all=True, append_images=more, lossless=True)
    (frame,) = ImageFolderSource(tmp_path)
    assert frame.image[0, 0].tolist() == [0, 0, 200]


TIMED = [f"170000000{second}.png" for second in range(4)]


def test_hidden_files_are_no_images_and_change_no_time(tmp_path):
    write_images(tmp_path, TIMED)
    for name in ("._0001.png", "._1700000000.png", ".thumbnail.png"):  # as a Mac's archive has them
        (tmp_path / name).write_bytes(b"\0\5\x16\7\0\2\0\0Mac OS X        ")
    source = ImageFolderSource(tmp_path)
    assert [f.stamp_ns // 10**9 for f in source] == [1700000000 + n for n in range(4)]
    assert source.state.damage is None and source.state.counts.decoded == 4
    assert source.state.notes == ["Hidden files are not read (3 named like an image)."]


def test_one_name_without_a_time_among_times_is_left_out_and_said(tmp_path):
    write_images(tmp_path, [*TIMED, "0001.png"])
    source = ImageFolderSource(tmp_path)
    assert [f.stamp_ns // 10**9 for f in source] == [1700000000 + n for n in range(4)]
    assert (source.state.counts.unusable, source.state.counts.decoded) == (1, 5)
    (note,) = source.state.notes
    assert note.startswith("1 of 5 images left out") and "0001.png" in note


def test_a_rate_that_is_assumed_is_said_and_one_that_is_given_is_not(tmp_path):
    write_images(tmp_path, ["a.png", "b.png", "1700000000.png"])
    source = ImageFolderSource(tmp_path)
    assert [f.stamp_ns for f in source] == [0, 500 * MS, 1000 * MS]
    (note,) = source.state.notes
    assert "Only 1 of 3" in note and "2 images a second are assumed" in note
    source = ImageFolderSource(tmp_path, frame_rate=10)
    assert [f.stamp_ns for f in source] == [0, 100 * MS, 200 * MS] and not source.state.notes


def test_two_images_of_the_same_time_are_one_and_a_note(tmp_path):
    write_images(tmp_path, ["left_1700000000.png", "right_1700000000.png", "left_1700000001.png"])
    source = ImageFolderSource(tmp_path)
    assert len(list(source)) == 2 and source.state.counts.unordered == 1
    assert "right_1700000000.png" in source.state.notes[0]


@pytest.mark.parametrize("kind", ["tiff", "png", "webp"])
def test_of_a_file_of_several_pictures_the_first_is_read_and_that_is_said(tmp_path, kind):
    first, *others = [Image.new("RGB", (8, 6), (60 * n, 0, 0)) for n in range(3)]
    first.save(tmp_path / f"1.{kind}", save_all=True, append_images=others)
    write_images(tmp_path, ["2.png"])
    source = ImageFolderSource(tmp_path, frame_rate=1)
    assert [frame.image.max() for frame in source] == [0, 0]
    (said,) = source.state.notes
    assert said.startswith(f"1 of the files hold several pictures (the first: 1.{kind})")

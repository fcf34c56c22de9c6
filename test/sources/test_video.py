# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

from fractions import Fraction

import av
import numpy as np
import pytest

from stream_vlm_ros.errors import InvalidParameterError, SourceNotFoundError, SourceUnreadableError
from stream_vlm_ros.sources import VideoSource
from stream_vlm_ros.sources.video import RgbConverter

from .conftest import HEIGHT, WIDTH, grey_of, write_video

MS = 1_000_000
IRREGULAR = [0, 40, 80, 280, 313, 1313, 1330, 1370, 1410, 2610]  # milliseconds


def check_greys(frames, indices):
    for frame, index in zip(frames, indices, strict=True):
        assert abs(float(frame.image.mean()) - grey_of(index)) < 8


@pytest.mark.parametrize(
    ("name", "codec"),
    [("a.mp4", "libx264"), ("a.mkv", "libx264"), ("a.webm", "libvpx-vp9"), ("a.mkv", "mpeg4")],
)
def test_a_variable_frame_rate_keeps_the_stamps_of_the_container(tmp_path, name, codec):
    source = VideoSource(write_video(tmp_path / name, codec, IRREGULAR))
    frames = list(source)
    assert [frame.stamp_ns for frame in frames] == [ms * MS for ms in IRREGULAR]
    check_greys(frames, range(len(IRREGULAR)))
    assert frames[0].image.shape == (HEIGHT, WIDTH, 3)
    assert frames[0].image.dtype == np.uint8
    assert frames[0].source == name


@pytest.mark.parametrize(
    ("name", "codec", "container"),
    [
        ("a.avi", "mpeg4", None),
        ("a.ts", "libx264", "mpegts"),  # its stamps start at 1.4 s
        ("a.mov", "mjpeg", None),
        ("a.mkv", "ffv1", None),
    ],
)
def test_stamps_count_from_the_first_frame_in_any_container(tmp_path, name, codec, container):
    path = write_video(tmp_path / name, codec, container=container)
    frames = list(VideoSource(path))
    assert [frame.stamp_ns for frame in frames] == [i * 100 * MS for i in range(20)]


def test_a_stream_without_stamps_takes_the_rate_and_says_so(tmp_path):
    source = VideoSource(write_video(tmp_path / "a.h264", "libx264", container="h264"))
    frames = list(source)
    assert [frame.stamp_ns for frame in frames] == [i * 40 * MS for i in range(20)]
    assert "no time stamps" in source.state.notes[0]


def test_a_stream_without_a_rate_is_read_by_its_stamps(tmp_path):
    path = tmp_path / "norate.mkv"
    stamps = [0, 70, 190, 400]
    with av.open(str(path), "w") as output:
        stream = output.add_stream("mjpeg")
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuvj420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for index, stamp in enumerate(stamps):
            image = np.full((HEIGHT, WIDTH, 3), grey_of(index), np.uint8)
            frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format="yuvj420p")
            frame.pts, frame.time_base = stamp, Fraction(1, 1000)
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    assert [frame.stamp_ns for frame in VideoSource(path)] == [s * MS for s in stamps]


def test_sampling_converts_only_the_frames_it_takes(video, monkeypatch):
    converted = []
    original = RgbConverter.of
    monkeypatch.setattr(
        RgbConverter, "of", lambda self, f: converted.append(f.pts) or original(self, f)
    )
    source = VideoSource(video, fps=2)
    frames = list(source)
    assert [frame.stamp_ns for frame in frames] == [0, 500 * MS, 1000 * MS, 1500 * MS]
    check_greys(frames, [0, 5, 10, 15])
    assert len(converted) == 4
    counts = source.state.counts
    assert (counts.decoded, counts.given, counts.unwanted) == (20, 4, 16)


def test_start_and_end_cut_out_a_part_and_keep_its_stamps(video):
    source = VideoSource(video, start=0.55, end=1.2)
    frames = list(source)
    assert [frame.stamp_ns for frame in frames] == [ms * MS for ms in range(600, 1200, 100)]
    check_greys(frames, range(6, 12))


def test_the_stamp_of_the_first_frame_can_be_given(video):
    epoch = 1_700_000_000_000_000_000
    frames = list(VideoSource(video, start_stamp_ns=epoch, fps=1))
    assert [frame.stamp_ns - epoch for frame in frames] == [0, 1000 * MS]


def test_frames_are_scaled_to_the_size_asked_for(video):
    source = VideoSource(video, size=(32, 20), end=0.1)
    assert source.size == (32, 20)
    assert next(iter(source)).image.shape == (20, 32, 3)


def test_a_second_pass_starts_again(video):
    source = VideoSource(video)
    first = [frame.stamp_ns for frame in source]
    assert [frame.stamp_ns for frame in source] == first
    assert source.state.counts.decoded == 20


def test_a_rotated_recording_is_turned_upright(tmp_path):
    """Left half white as filmed; the file says: turn by 90 degrees to show it."""
    image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    image[:, : WIDTH // 2] = 255
    path = write_video(tmp_path / "a.mp4", "libx264", images=[image] * 3, count=3)
    data = bytearray(path.read_bytes())
    unity = b"".join(v.to_bytes(4, "big") for v in (0x10000, 0, 0, 0, 0x10000, 0, 0, 0, 0x40000000))
    # Clockwise by 90 degrees: x' = -y, y' = x, in the track header's 16.16 matrix.
    turned = b"".join(
        (v & 0xFFFFFFFF).to_bytes(4, "big")
        for v in (0, 0x10000, 0, -0x10000, 0, 0, 0, 0, 0x40000000)
    )
    at = data.index(unity, data.index(b"tkhd"))
    data[at : at + len(unity)] = turned
    path.write_bytes(data)
    source = VideoSource(path)
    frame = next(iter(source))
    assert frame.image.shape == (WIDTH, HEIGHT, 3)
    # Turned clockwise, what was left is now above.
    assert frame.image[: WIDTH // 2 - 4].mean() > 240
    assert frame.image[WIDTH // 2 + 4 :].mean() < 15


def test_a_missing_file_is_an_error_that_names_it(tmp_path):
    with pytest.raises(SourceNotFoundError, match=r"nowhere\.mp4"):
        VideoSource(tmp_path / "nowhere.mp4")


def test_an_empty_file_is_an_error_that_says_what_to_do(tmp_path):
    path = tmp_path / "empty.mp4"
    path.touch()
    with pytest.raises(SourceUnreadableError, match=r"0 bytes.*[Cc]opy"):
        VideoSource(path)


@pytest.mark.parametrize("content", [b"hello, this is no video\n" * 50, bytes(range(256)) * 64])
def test_a_file_that_is_no_video_is_an_error(tmp_path, content):
    path = tmp_path / "notes.mp4"
    path.write_bytes(content)
    with pytest.raises(SourceUnreadableError, match=r"notes\.mp4"):
        VideoSource(path)


def test_a_text_file_is_not_taken_for_a_video(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("hello\n" * 100)
    with pytest.raises(SourceUnreadableError):
        VideoSource(path)


def test_a_sound_file_is_an_error_that_says_so(tmp_path):
    path = tmp_path / "sound.wav"
    with av.open(str(path), "w") as output:
        stream = output.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), "s16", "mono")
        frame.sample_rate = 8000
        output.mux(stream.encode(frame))
        output.mux(stream.encode())
    with pytest.raises(SourceUnreadableError, match=r"no video in it.*audio"):
        VideoSource(path)


def test_a_stream_cut_off_before_its_first_picture_is_not_called_a_file_without_video(tmp_path):
    path = tmp_path / "cut.h264"
    path.write_bytes(b"x")
    with pytest.raises(SourceUnreadableError, match="no picture that can be decoded"):
        VideoSource(path)


def test_a_recording_cut_off_before_its_index_is_explained(tmp_path):
    path = write_video(tmp_path / "a.mp4", "libx264", count=60)  # the index comes last
    data = path.read_bytes()
    path.write_bytes(data[: data.index(b"mdat") + 500])
    with pytest.raises(SourceUnreadableError, match=r"index.*cut off"):
        VideoSource(path)


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [("a.mp4", "libx264", {"movflags": "faststart"}), ("a.mkv", "libx264", {})],
)
def test_a_truncated_file_gives_its_first_frames_and_tells(tmp_path, name, codec, options):
    path = write_video(tmp_path / name, codec, count=200, options=options)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 6 // 10])
    source = VideoSource(path)
    frames = list(source)
    assert 10 < len(frames) < 190
    indices = [frame.stamp_ns // (100 * MS) for frame in frames]
    # Where the cut falls behind a frame that refers back over B frames (x264: three at the most),
    # which come after it in the file, those are gone.
    whole = len(frames) - 4
    assert indices[:whole] == list(range(whole))
    assert indices == sorted(set(indices)) and indices[-1] <= len(frames) + 3
    assert [frame.stamp_ns for frame in frames] == [index * 100 * MS for index in indices]
    check_greys(frames, indices)
    assert "breaks off" in source.state.damage


def test_a_whole_file_is_not_called_damaged(video):
    source = VideoSource(video)
    list(source)
    assert source.state.damage is None


def test_damage_in_the_middle_costs_frames_but_not_the_pass(tmp_path):
    path = write_video(tmp_path / "a.avi", "mpeg4", count=200)
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 400] = bytes((7 * i) % 256 for i in range(400))
    path.write_bytes(data)
    source = VideoSource(path)
    stamps = [frame.stamp_ns for frame in source]
    assert stamps == sorted(set(stamps))
    assert len(stamps) > 150
    counts = source.state.counts
    total = counts.given + counts.unwanted + counts.unusable + counts.unordered
    assert counts.decoded == total


@pytest.mark.parametrize(
    "part", [{"start": -1}, {"start": 2, "end": 2}, {"fps": 0}, {"size": (0, 9)}]
)
def test_settings_outside_their_range_are_refused(video, part):
    with pytest.raises(InvalidParameterError):
        VideoSource(video, **part)


def test_a_video_of_pictures_too_large_is_refused_by_what_it_announces(tmp_path, video):
    assert list(VideoSource(video, max_decoded_megapixels=0.01))  # 64 x 48
    large = write_video(tmp_path / "large.mp4", "libx264", count=2, size=(128, 96))
    motion = write_video(tmp_path / "large.avi", "mjpeg", count=2, size=(128, 96))
    for path in (large, motion):
        with pytest.raises(SourceUnreadableError, match=r"announces 128x96, .* is 0.01"):
            VideoSource(path, max_decoded_megapixels=0.01)


@pytest.mark.parametrize(
    ("codec", "container"), [("libx264", "h264"), ("mjpeg", "mjpeg"), ("mpeg2video", "mpeg2video")]
)
def test_where_a_video_grows_too_large_its_pictures_are_left_out(tmp_path, codec, container):
    parts = []
    for number, size in enumerate([(64, 48), (128, 96), (64, 48)]):
        path = tmp_path / f"part{number}"
        write_video(path, codec, count=3, rate=25, size=size, container=container)
        parts.append(path.read_bytes())
    (tmp_path / "grows").write_bytes(b"".join(parts))
    source = VideoSource(tmp_path / "grows", max_decoded_megapixels=0.01)
    assert {frame.image.shape for frame in source} == {(48, 64, 3)}
    counts = source.state.counts
    assert counts.given >= 5 and counts.unusable >= 1
    assert counts.decoded == counts.given + counts.unusable + counts.unordered
    # FFmpeg's decoder of MPEG-2 keeps the size that it refuses to itself.
    cause = "or of more than max_decoded" if codec == "mpeg2video" else "announces 128x96"
    assert any(cause in note for note in source.state.notes)
    assert {f.image.shape for f in VideoSource(tmp_path / "grows")} == {(48, 64, 3), (96, 128, 3)}

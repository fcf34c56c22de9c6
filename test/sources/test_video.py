# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

import io
import re
from fractions import Fraction
from types import SimpleNamespace

import av
import numpy as np
import pytest
from PIL import Image

from stream_vlm_ros.errors import InvalidParameterError, SourceNotFoundError, SourceUnreadableError
from stream_vlm_ros.sources import SourceState, VideoSource
from stream_vlm_ros.sources.video import Clock, RgbConverter

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


QUADRANTS = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
QUADRANTS[: HEIGHT // 2, : WIDTH // 2] = 40
QUADRANTS[: HEIGHT // 2, WIDTH // 2 :] = 100
QUADRANTS[HEIGHT // 2 :, : WIDTH // 2] = 160
QUADRANTS[HEIGHT // 2 :, WIDTH // 2 :] = 220


def shown_by(matrix, image):
    """The point (x, y) is shown at (a x + c y, b x + d y), moved into the picture."""
    a, b, c, d = matrix
    height, width = image.shape[:2]
    points = {
        (a * x + c * y, b * x + d * y): image[y, x] for x in range(width) for y in range(height)
    }
    left, top = min(x for x, _ in points), min(y for _, y in points)
    shown = np.zeros((height, width, 3) if a else (width, height, 3), np.uint8)
    for (x, y), pixel in points.items():
        shown[y - top, x - left] = pixel
    return shown


def assert_nearly(image, expected):
    """Except where the quadrants meet: codecs blur those edges."""
    assert image.shape == expected.shape
    assert (np.abs(image.astype(int) - expected) < 12).mean() > 0.75


@pytest.mark.parametrize("b_or_c_first", [False, True])
@pytest.mark.parametrize("second", [1, -1])
@pytest.mark.parametrize("first", [1, -1])
def test_all_eight_orientations_of_a_container_are_shown_so(tmp_path, first, second, b_or_c_first):
    a, b, c, d = matrix = (0, first, second, 0) if b_or_c_first else (first, 0, 0, second)
    path = write_video(tmp_path / "a.mp4", "libx264", images=[QUADRANTS] * 3, count=3)
    data = bytearray(path.read_bytes())

    def track_header(a, b, c, d):  # 16.16 fixed point; the last 2.30
        values = [v * 0x10000 for v in (a, b, 0, c, d, 0, 0, 0)]
        return b"".join((v & 0xFFFFFFFF).to_bytes(4, "big") for v in [*values, 0x40000000])

    unity = track_header(1, 0, 0, 1)
    at = data.index(unity, data.index(b"tkhd"))
    data[at : at + len(unity)] = track_header(a, b, c, d)
    path.write_bytes(data)
    expected = shown_by(matrix, QUADRANTS)
    assert_nearly(next(iter(VideoSource(path))).image, expected)
    size = (24, 32) if b_or_c_first else (32, 24)
    assert_nearly(next(iter(VideoSource(path, size=size))).image, expected[::2, ::2])


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("rotate=90", np.rot90(QUADRANTS)),  # anticlockwise, as H.264 has it
        ("rotate=270", np.rot90(QUADRANTS, 3)),
        ("flip=horizontal", QUADRANTS[:, ::-1]),
        ("flip=vertical", QUADRANTS[::-1]),
    ],
)
def test_an_orientation_said_by_a_message_of_the_stream_is_shown_so(tmp_path, said, expected):
    plain = write_video(tmp_path / "plain.mp4", "libx264", images=[QUADRANTS] * 3, count=3)
    path = tmp_path / "said.mp4"
    with av.open(str(plain)) as source, av.open(str(path), "w") as output:
        stream = output.add_stream_from_template(source.streams.video[0])
        say = av.BitStreamFilterContext(
            f"h264_metadata=display_orientation=insert:{said}", source.streams.video[0]
        )
        for packet in source.demux(video=0):
            for told in say.filter(packet if packet.size else None):
                told.stream = stream
                output.mux(told)
    assert_nearly(next(iter(VideoSource(path))).image, expected)


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


def write_intra(path, stamps_ms, container="mpegts", codec="mpeg2video", every=1):
    """Key frames every so many pictures, whose stamps may be anything."""
    ticks = Fraction(1, 1000)
    with av.open(str(path), "w", format=container) as output:
        stream = output.add_stream(codec, rate=10, options={"g": str(every)})
        stream.width, stream.height = WIDTH, HEIGHT
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        stream.codec_context.max_b_frames = 0
        packets = []
        for index in range(len(stamps_ms)):
            image = np.full((HEIGHT, WIDTH, 3), grey_of(index), np.uint8)
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, 10)
            packets += stream.encode(frame)
        packets += stream.encode()
        for packet, stamp in zip(packets, stamps_ms, strict=True):
            packet.pts = packet.dts = stamp
            packet.time_base = ticks
            output.mux(packet)
    return path


def test_a_first_picture_without_a_stamp_stands_before_the_second(tmp_path):
    """As RTSP streams begin."""
    path = write_intra(tmp_path / "a.ts", range(0, 2_000, 100), codec="libx264")
    data = bytearray(path.read_bytes())
    flags = data.index(b"\x00\x00\x01\xe0") + 7  # of the first packet: which stamps it has
    assert data[flags] & 0x80
    data[flags] = 0
    path.write_bytes(data)
    source = VideoSource(path)
    assert [frame.stamp_ns for frame in source] == [ms * MS for ms in range(0, 2_000, 100)]
    assert source.state.notes == []


@pytest.mark.parametrize("every", [10, 20, 100])
@pytest.mark.parametrize("codec", ["mpeg2video", "libx264"])
def test_a_part_of_a_transport_stream_begins_where_it_was_asked_for(tmp_path, codec, every):
    stamps = range(0, 30_000, 100)
    path = write_intra(tmp_path / "a.ts", stamps, codec=codec, every=every)
    source = VideoSource(path, start=27.95)
    frames = list(source)
    assert [frame.stamp_ns for frame in frames] == [ms * MS for ms in stamps if ms >= 27_950]
    check_greys(frames, range(280, 300))
    assert source.state.damage is None and source.state.notes == []


@pytest.mark.parametrize("container", ["mpegts", "mpeg"])
def test_files_put_end_to_end_are_read_as_one_and_it_is_said(tmp_path, container):
    path = write_intra(tmp_path / "a", range(0, 10_000, 100), container)
    path.write_bytes(path.read_bytes() * 2)
    source = VideoSource(path)
    stamps = [frame.stamp_ns for frame in source]
    counts = source.state.counts
    assert len(stamps) >= 195 and counts.decoded == 200 == counts.given + counts.unordered
    assert stamps == sorted(set(stamps)) and 19.8 <= stamps[-1] / 1e9 <= 20
    assert any("clock is set back by 9.9 s at 9.9 s" in note for note in source.state.notes)
    for start in (5.0, 15.0):
        part = VideoSource(path, start=start, end=start + 1)
        inside = [stamp for stamp in stamps if start <= stamp / 1e9 < start + 1]
        assert [frame.stamp_ns for frame in part] == inside and len(inside) >= 9


def test_a_second_video_behind_the_first_is_said_where_it_cannot_be_read(video):
    data = video.read_bytes()
    both = video.with_name("both.mp4")
    both.write_bytes(data * 2)
    source = VideoSource(both)
    assert len(list(source)) == len(list(VideoSource(video)))
    assert any(f"{len(data):,} bytes follow" in note for note in source.state.notes)


@pytest.mark.parametrize(
    ("name", "codec"), [("a.flv", "libx264"), ("a.asf", "wmv2"), ("a.wtv", "mpeg2video")]
)
def test_a_file_behind_a_video_is_said_where_ffmpeg_does_not_look_for_one(tmp_path, name, codec):
    path = write_video(tmp_path / name, codec, rate=25)
    data = path.read_bytes()
    whole = VideoSource(path)
    number = len(list(whole))
    assert not any("follow" in note for note in whole.state.notes)
    path.write_bytes(data * 2)
    source = VideoSource(path)
    assert len(list(source)) == number
    assert any(f"{len(data):,} bytes follow" in note for note in source.state.notes)


@pytest.mark.parametrize("name", ["a.webm", "a.mkv"])
def test_a_part_behind_the_announced_end_is_read_where_files_are_put_end_to_end(tmp_path, name):
    path = write_video(tmp_path / name, "libvpx", count=30)
    path.write_bytes(path.read_bytes() * 2)
    late = VideoSource(path, start=4.0)
    assert [frame.stamp_ns for frame in late] == [ms * MS for ms in range(4_000, 6_000, 100)]


@pytest.mark.parametrize(
    ("first", "second"), [("libx264", "mpeg2video"), ("mpeg2video", "mpeg4"), ("mpeg4", "libx264")]
)
def test_a_transport_stream_that_goes_on_in_another_codec_is_said_to_do_so(tmp_path, first, second):
    parts = [
        write_video(tmp_path / f"{codec}.ts", codec, count=50, rate=25).read_bytes()
        for codec in (first, second)
    ]
    path = tmp_path / "both.ts"
    path.write_bytes(b"".join(parts))
    source = VideoSource(path)
    assert 45 <= len(list(source)) <= 50
    left_out = [note for note in source.state.notes if note.startswith("Pictures are left out")]
    begins, goes_on = first.removeprefix("lib").replace("x", "h"), second.replace("libx", "h")
    assert len(left_out) == 1
    assert f"of another codec ({goes_on}; what is in {begins} is read)" in left_out[0]


@pytest.mark.parametrize("codecs", [("mpeg2video", "libx264"), ("libx264", "mpeg2video")])
def test_so_is_one_so_short_that_the_later_codec_is_taken_for_its_own(tmp_path, codecs):
    first, second = (write_video(tmp_path / f"{c}.ts", c, count=10).read_bytes() for c in codecs)
    path = tmp_path / "both.ts"
    path.write_bytes(first + second)
    source = VideoSource(path)
    assert 7 <= len(list(source)) <= 10
    left_out = [note for note in source.state.notes if note.startswith("Pictures are left out")]
    mine, other = (codec.replace("libx", "h") for codec in reversed(codecs))
    assert len(left_out) == 1
    assert f"of another codec ({other}; what is in {mine} is read)" in left_out[0]


def write_jpegs(path):
    """A raw stream of 20 pictures of noise, and where each begins."""
    noise = list(np.random.default_rng(0).integers(0, 256, (20, HEIGHT, WIDTH, 3), np.uint8))
    data = write_video(path, "mjpeg", images=noise, container="mjpeg").read_bytes()
    return data, [m.start() for m in re.finditer(b"\xff\xd8\xff", data)]


@pytest.mark.parametrize("damage", ["cut out", "zeros", "noise"])
def test_damaged_pictures_of_motion_jpeg_are_left_out_and_counted(tmp_path, damage):
    path = tmp_path / "a.mjpeg"
    data, begins = write_jpegs(path)
    whole = [frame.image for frame in VideoSource(path)]
    at = (begins[9] + begins[10]) // 2  # amid the tenth
    other = {"cut out": b"", "zeros": bytes(200), "noise": bytes(range(200))}[damage]
    path.write_bytes(data[:at] + other + data[at + 200 :])
    source = VideoSource(path)
    images = [frame.image for frame in source]
    counts = source.state.counts
    assert (counts.decoded, counts.given, counts.unusable) == (20, 19, 1)
    np.testing.assert_array_equal(images, whole[:9] + whole[10:])
    assert any("1 of 20 are damaged" in note for note in source.state.notes)


def test_pictures_that_a_damage_joins_are_counted_one_by_one(tmp_path):
    """A segment's length, changed, reaches over the pictures that follow."""
    path = tmp_path / "a.mjpeg"
    data, begins = write_jpegs(path)
    at = (begins[9] + begins[10]) // 2
    path.write_bytes(data[:at] + b"\xff\xe1\xff\xf0" + data[at:])
    source = VideoSource(path)
    given = len(list(source))
    assert given < 19
    assert source.state.counts.unusable == 20 - given
    assert any(f"{20 - given} of 20 are damaged" in note for note in source.state.notes)


def test_a_playlist_without_an_end_is_given_up_and_said(tmp_path, monkeypatch):
    monkeypatch.setattr("stream_vlm_ros.sources.video.SILENCE", 1.0)
    write_video(tmp_path / "a.ts", "libx264", container="mpegts")
    playlist = tmp_path / "live.m3u8"
    playlist.write_text("#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\na.ts\n")
    source = VideoSource(playlist)
    assert len(list(source)) == 20
    assert "playlist without an end" in source.state.damage


def test_a_clock_that_jumps_ahead_is_said(tmp_path):
    parts = (range(0, 4_000, 100), range(90_000_000, 90_004_000, 100))
    parts = [write_intra(tmp_path / str(part.start), part).read_bytes() for part in parts]
    (tmp_path / "a.ts").write_bytes(b"".join(parts))
    source = VideoSource(tmp_path / "a.ts")
    assert len(list(source)) == 80
    assert any("longest after 8999" in note for note in source.state.notes)


@pytest.mark.parametrize("wrong_ms", [60_000, 500])
def test_one_wrong_stamp_costs_one_picture_and_is_said(tmp_path, wrong_ms):
    parts = range(0, 2_000, 100), [wrong_ms], range(2_000, 4_000, 100)
    files = [write_intra(tmp_path / str(n), part) for n, part in enumerate(parts)]
    (tmp_path / "a.ts").write_bytes(b"".join(file.read_bytes() for file in files))
    source = VideoSource(tmp_path / "a.ts")
    assert [frame.stamp_ns for frame in source] == [ms * MS for ms in range(0, 4_000, 100)]
    assert source.state.counts.unordered == 1
    assert any("Out of order: 1 of 41" in note for note in source.state.notes)


@pytest.mark.parametrize(
    ("name", "codec"), [("a.webm", "libvpx"), ("a.mkv", "ffv1"), ("a.ts", "libx264")]
)
@pytest.mark.parametrize("cut_out", [True, False])
def test_pictures_lost_in_the_middle_are_said_where_no_decoder_complains(
    tmp_path, name, codec, cut_out
):
    path = write_video(tmp_path / name, codec, count=200)
    data = bytearray(path.read_bytes())
    third = len(data) // 3
    data[third : 2 * third] = b"" if cut_out else bytes((7 * i) % 251 for i in range(third))
    path.write_bytes(data)
    source = VideoSource(path)
    given = len(list(source))
    assert given < 150
    assert any(f"as if {200 - given} were missing" in note for note in source.state.notes)


def test_a_screen_filmed_when_it_changes_is_not_called_incomplete(tmp_path):
    stamps = [0, 100, 150, 400, 1300, 1340, 2000, 2900, 3100, 4000]
    source = VideoSource(write_video(tmp_path / "a.mkv", "libx264", stamps))
    assert len(list(source)) == 10 and source.state.notes == []


def test_damage_is_said_to_who_stops_in_the_middle(tmp_path):
    path = write_video(tmp_path / "a.mp4", "libx264", count=200, options={"movflags": "faststart"})
    data = bytearray(path.read_bytes())
    begin = data.index(b"mdat") + 8
    third = (len(data) - begin) // 3
    data[begin + third : begin + 2 * third] = bytes(third)
    path.write_bytes(data)
    source = VideoSource(path, end=19.0)
    assert 50 < len(list(source)) < 140
    assert any("left out" in note for note in source.state.notes), source.state


def test_repeated_pictures_are_no_loss(tmp_path):
    """Theora and AVI write a packet of no length where a picture is shown once more."""
    path = tmp_path / "a.nut"
    with av.open(str(path), "w") as output:
        stream = output.add_stream("mjpeg", rate=10)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuvj420p"
        for index in range(20):
            frame = av.VideoFrame(WIDTH, HEIGHT, "yuvj420p")
            frame.pts, frame.time_base = index, Fraction(1, 10)
            for packet in stream.encode(frame):
                again = av.Packet(b"")
                again.stream, again.time_base = stream, packet.time_base
                again.pts = again.dts = packet.pts
                output.mux(again if index % 4 == 3 else packet)
    source = VideoSource(path)
    assert len(list(source)) == 15
    counts = source.state.counts
    assert (counts.decoded, counts.unusable, counts.unordered) == (15, 0, 0)


def test_a_stream_that_begins_inside_the_file_ends_nothing(tmp_path):
    """Bytes that a transport stream's table of programs may change to, in the middle."""
    noise = list(np.random.default_rng(0).integers(0, 256, (200, HEIGHT, WIDTH, 3), np.uint8))
    path = write_video(tmp_path / "a.ts", "libx264", count=200, images=noise)
    other = tmp_path / "other.ts"
    with av.open(str(other), "w", options={"mpegts_start_pid": "0x500"}) as output:
        stream = output.add_stream("mpeg2video", rate=10)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for packet in stream.encode(av.VideoFrame(WIDTH, HEIGHT, "yuv420p")) + stream.encode():
            output.mux(packet)
    path.write_bytes(path.read_bytes() + other.read_bytes() + path.read_bytes())
    source = VideoSource(path)
    assert len(list(source)) == 400
    assert any("further stream begins" in note for note in source.state.notes)
    late = VideoSource(path, start=30.0)
    assert [frame.stamp_ns for frame in late] == [frame.stamp_ns for frame in source][300:]


def test_of_several_videos_in_a_file_it_is_said_which_is_read(tmp_path):
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as output:
        streams = [output.add_stream("ffv1", rate=10) for _ in range(2)]
        for stream in streams:
            stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for index in range(10):
            for stream in streams:
                frame = av.VideoFrame(WIDTH, HEIGHT, "yuv420p")
                frame.pts, frame.time_base = index, Fraction(1, 10)
                output.mux(stream.encode(frame))
        for stream in streams:
            output.mux(stream.encode())
    for start in (0.0, 0.5):
        source = VideoSource(path, start=start)
        assert len(list(source)) == 10 * (1 - start)
        (said,) = source.state.notes
        assert said.startswith(f"The file holds 2 videos; stream 0 ({WIDTH}x{HEIGHT}) is read")


@pytest.mark.parametrize("suffix", ["mp3", "flac"])
def test_a_cover_picture_is_no_video(tmp_path, suffix):
    path = tmp_path / f"song.{suffix}"
    jpeg = io.BytesIO()
    Image.new("RGB", (64, 48)).save(jpeg, "JPEG")
    with av.open(str(path), "w") as output:
        sound = output.add_stream("libmp3lame" if suffix == "mp3" else "flac", rate=44_100)
        cover = output.add_stream("mjpeg")
        cover.width, cover.height, cover.pix_fmt = 64, 48, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        output.start_encoding()
        packet = av.Packet(jpeg.getvalue())
        packet.stream, packet.time_base = cover, Fraction(1, 1000)
        packet.pts = packet.dts = 0
        output.mux(packet)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 44_100), np.int16), "s16", "mono")
        frame.sample_rate = 44_100
        output.mux(sound.encode(frame))
        output.mux(sound.encode())
    with pytest.raises(
        SourceUnreadableError, match=r"no video in it \(only a cover picture, audio"
    ):
        VideoSource(path)


def test_pictures_that_lack_at_the_end_are_said_though_they_are_few(tmp_path):
    path = write_video(tmp_path / "a.mkv", "ffv1", count=100)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 94 // 100])
    source = VideoSource(path)
    assert 90 < len(list(source)) < 97
    assert any("announces 10.00 s" in note for note in source.state.notes)


def test_pictures_that_lack_at_the_beginning_are_said(tmp_path):
    path = write_intra(tmp_path / "a.ts", range(0, 10_000, 100), codec="libx264", every=10)
    data = bytearray(path.read_bytes())
    key = data.index(b"\x00\x00\x01\x65")  # the first IDR picture of H.264
    data[key + 3] = 0x6C  # now of a kind that decoders pass over
    path.write_bytes(data)
    source = VideoSource(path)
    first = next(iter(source)).stamp_ns / 1e9
    assert first > 0.5
    assert len(list(source)) == round(100 - 10 * first)
    assert any(f"comes {first:.1f} s after the file's" in note for note in source.state.notes)


def test_a_picture_fewer_than_announced_is_said(tmp_path):
    path = write_video(tmp_path / "a.avi", "mjpeg", count=100)
    data = bytearray(path.read_bytes())
    # The last one's entry in the list of the data, and in the index at the end, become junk.
    for at in (data.rindex(b"00dc", 0, data.rindex(b"idx1")), data.rindex(b"00dc")):
        data[at : at + 4] = b"JUNK"
    path.write_bytes(data)
    source = VideoSource(path)
    assert len(list(source)) == 99
    assert any("announces" in note for note in source.state.notes)


def test_a_picture_fewer_than_announced_is_said_where_no_gap_can_show_it(tmp_path):
    stamps = [*IRREGULAR[:-1], IRREGULAR[-2] + 100]
    path = write_video(tmp_path / "a.mov", "mjpeg", stamps)
    data = bytearray(path.read_bytes())
    sizes = data.index(b"stsz") + 16  # after the version, one size for all (none), and the number
    assert data[sizes - 4 : sizes] == len(stamps).to_bytes(4, "big")
    data[sizes + 12 : sizes + 16] = bytes(4)  # the fourth has no bytes
    path.write_bytes(data)
    source = VideoSource(path)
    assert len(list(source)) == len(stamps) - 1
    assert source.state.notes == ["The file announces 10 pictures; 9 were read."]


def test_damaged_pictures_that_come_late_do_not_set_the_clock_back():
    state = SourceState()
    stream = SimpleNamespace(start_time=0, time_base=Fraction(1, 1000))
    frames = [
        SimpleNamespace(pts=pts, time_base=None, is_corrupt=pts in (50, 60))
        for pts in (0, 100, 200, 50, 60, 300)
    ]
    stamps = [stamp for stamp, _ in Clock(stream, 10.0, state).time(iter(frames))]
    assert stamps == [0, 100 * MS, 200 * MS, 300 * MS]
    assert state.counts.unordered == 2 and state.notes == []


@pytest.mark.parametrize("failing", [1, 2, 3])
def test_a_file_that_cannot_be_jumped_in_is_read_from_its_start(video, monkeypatch, failing):
    class Unseekable:
        """A container whose ``failing``-th seek is the first that fails."""

        def __init__(self, container):
            self.container, self.seeks = container, 0

        def __getattr__(self, name):
            return getattr(self.container, name)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.container.close()

        def seek(self, *arguments, **options):
            self.seeks += 1
            if self.seeks >= failing:
                raise av.error.PermissionError(1, "not permitted")
            self.container.seek(*arguments, **options)

    real = av.open
    expected = [frame.stamp_ns for frame in VideoSource(video, start=1.0)]
    monkeypatch.setattr(av, "open", lambda *a, **o: Unseekable(real(*a, **o)))
    source = VideoSource(video, start=1.0)
    assert [frame.stamp_ns for frame in source] == expected
    told = any("no index to jump by" in note for note in source.state.notes)
    assert told is (failing < 3)  # two seeks are enough


def test_a_video_of_an_unknown_codec_is_refused_in_words(tmp_path):
    path = write_video(tmp_path / "a.avi", "mjpeg", count=10)
    path.write_bytes(path.read_bytes().replace(b"MJPG", b"ZZZZ"))
    with pytest.raises(SourceUnreadableError, match="codec that FFmpeg does not know"):
        VideoSource(path)

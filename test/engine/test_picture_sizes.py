# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Headers that announce much: written here, byte by byte, after each format's own description."""

import io
import struct
import warnings
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, features

from stream_vlm_ros.engine.inputs.picture_sizes import (
    FORMATS,
    PictureLimit,
    open_picture,
    png_without_texts,
    rgb_of,
)
from stream_vlm_ros.errors import (
    InvalidImageError,
    InvalidParameterError,
    PictureTooLargeError,
    cut,
)

DEFAULT = PictureLimit()
PIXELS = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)


def encoded(form, **options):
    out = io.BytesIO()
    Image.fromarray(PIXELS).save(out, form, **options)
    return out.getvalue()


def with_bytes(data, at, new):
    return data[:at] + new + data[at + len(new) :]


def jpeg(width, height):
    data = encoded("JPEG")  # SOF0: marker, length, precision, height, width
    return with_bytes(data, data.index(b"\xff\xc0") + 5, struct.pack(">HH", height, width))


def png_chunk(kind, content):
    return (
        struct.pack(">I", len(content))
        + kind
        + content
        + struct.pack(">I", zlib.crc32(kind + content))
    )


def png(width, height, more=b""):
    data = encoded("PNG")  # the signature, then IHDR of 25 bytes: width, height, ...
    ihdr = png_chunk(b"IHDR", struct.pack(">II", width, height) + data[24:29])
    return data[:8] + ihdr + more + data[33:]


def bmp(width, height):
    return with_bytes(encoded("BMP"), 18, struct.pack("<ii", width, height))


def gif(width, height):
    return with_bytes(encoded("GIF"), 6, struct.pack("<HH", width, height))


def webp(width, height):
    data = encoded("WEBP", lossless=True)  # VP8L: 14 bits of width - 1, 14 of height - 1, 4 more
    more = struct.unpack_from("<I", data, 21)[0] >> 28 << 28
    return with_bytes(data, 21, struct.pack("<I", more | height - 1 << 14 | width - 1))


def tiff(width, height, more=()):
    """One strip, uncompressed, RGB; ``more``: further entries (tag, value)."""
    entries = {256: width, 257: height, 258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: height, 279: 4}
    entries |= dict(more)
    directory = b"".join(struct.pack("<HHII", t, 4, 1, v) for t, v in sorted(entries.items()))
    start = struct.pack("<2sHI", b"II", 42, 12) + bytes(4)
    return start + struct.pack("<H", len(entries)) + directory + bytes(4)


def ppm(width, height):
    return f"P6\n{width} {height}\n255\n".encode() + bytes(100)


def jpeg2000(width, height):
    data = encoded("JPEG2000")  # the box ihdr: height, width
    return with_bytes(data, data.index(b"ihdr") + 4, struct.pack(">II", height, width))


MAKERS = {
    "JPEG": jpeg, "PNG": png, "BMP": bmp, "GIF": gif, "WEBP": webp, "TIFF": tiff, "PPM": ppm,
    "JPEG2000": jpeg2000,
}  # fmt: skip
SIDES = {"JPEG": 32_000, "PNG": 14_000, "WEBP": 12_000}


@pytest.mark.parametrize("form", MAKERS)
def test_what_a_header_announces_is_refused_before_anything_is_decoded(form):
    side = SIDES.get(form, 20_000)
    with pytest.raises(PictureTooLargeError, match=f"announces {side}x{side}, .* is 64$"):
        open_picture(MAKERS[form](side, side), DEFAULT)


def test_what_pillow_itself_refuses_is_refused_in_our_words():
    with pytest.raises(PictureTooLargeError, match="announces more than Pillow takes"):
        open_picture(webp(16_000, 16_000), DEFAULT)


def test_every_format_that_is_taken_is_tried():
    assert set(FORMATS) - set(MAKERS) == {"AVIF"}  # whose size lies in nested boxes


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow has no AVIF")
def test_the_size_of_an_avif_is_read_too():
    with pytest.raises(PictureTooLargeError, match="announces 200x100"):
        out = io.BytesIO()
        Image.new("RGB", (200, 100)).save(out, "AVIF")
        open_picture(out.getvalue(), PictureLimit(0.019))


def test_the_limit_is_exact_and_in_pixels_not_in_sides():
    assert open_picture(png(8_000, 8_000), DEFAULT).size == (8_000, 8_000)
    assert open_picture(png(64_000, 1_000), DEFAULT).size == (64_000, 1_000)
    with pytest.raises(PictureTooLargeError, match=r"64\.0 megapixels"):
        open_picture(png(64_001, 1_000), DEFAULT)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "BMP", "TIFF"])
def test_pillows_own_limit_decides_nothing_and_is_left_alone(form, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert open_picture(MAKERS[form](16_000, 16_000), PictureLimit(1000)).size[0] == 16_000
    assert Image.MAX_IMAGE_PIXELS == 10


def test_a_tile_larger_than_the_limit_is_refused():
    tiled = tiff(8, 6, more={322: 30_000, 323: 30_000, 324: 8, 325: 4}.items())
    with pytest.raises(PictureTooLargeError, match="a tile of the picture announces 30000x30000"):
        open_picture(tiled, DEFAULT)


@pytest.mark.parametrize("kind", [2, 5, 12])  # text, a fraction, a float, in place of a number
def test_a_tile_whose_size_is_no_number_is_no_other_error(kind):
    tiled = tiff(8, 6, more={322: 8, 323: 8, 324: 8, 325: 4}.items())
    wrong = tiled.replace(struct.pack("<HH", 322, 4), struct.pack("<HH", 322, kind))
    assert wrong != tiled
    try:
        open_picture(wrong, DEFAULT)
    except InvalidImageError as refused:
        assert "header cannot be read" in str(refused)


def test_a_jpeg_of_very_many_scans_is_refused():
    data = encoded("JPEG", progressive=True)
    assert open_picture(data, DEFAULT).size == (8, 6)
    scan = data[data.rindex(b"\xff\xda") : -2]
    with pytest.raises(InvalidImageError, match="scans"):
        open_picture(data[:-2] + scan * 5000 + data[-2:], DEFAULT)


@pytest.mark.parametrize("kind", [b"zTXt", b"iTXt", b"tEXt"])
def test_texts_of_a_png_are_left_out_and_its_pixels_stay(kind):
    text = {
        b"zTXt": b"k\0\0" + zlib.compress(bytes(50_000_000)),
        b"iTXt": b"k\0\1\0\0\0" + zlib.compress(bytes(50_000_000)),
        b"tEXt": b"k\0" + b"x" * 1000,
    }[kind]
    plain = encoded("PNG")
    data = png(8, 6, png_chunk(kind, text) * 3)
    behind = data[:-12] + png_chunk(kind, text) + data[-12:]
    assert png_without_texts(data) == png_without_texts(behind) == plain
    np.testing.assert_array_equal(np.asarray(open_picture(behind, DEFAULT)), PIXELS)


def test_data_of_other_formats_come_back_as_they_are():
    for data in (encoded("JPEG"), encoded("PNG"), b"", b"zTXt"):
        assert png_without_texts(data) == data
    assert png_without_texts(encoded("PNG") + b"more") == encoded("PNG")


@pytest.mark.parametrize("length", [2**32 - 1, 2**31, 100_000])
def test_a_png_with_a_chunk_that_announces_more_than_there_is_is_refused(length):
    data = encoded("PNG")
    data = with_bytes(data, data.index(b"IDAT") - 4, struct.pack(">I", length))
    with pytest.raises(InvalidImageError, match=f"announces {length:,} bytes"):
        open_picture(data, DEFAULT)


@pytest.mark.parametrize("length", [8, 12, 33, 40, -12, -4, -1])
def test_a_png_cut_off_anywhere_is_refused(length):
    with pytest.raises(InvalidImageError, match="was it cut in transport"):
        open_picture(encoded("PNG")[:length], DEFAULT)


def test_formats_that_no_camera_writes_are_refused():
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n"
    for data in (eps, b"no picture", b""):
        with pytest.raises(InvalidImageError, match="unknown kind"):
            open_picture(data, DEFAULT)


@pytest.mark.parametrize("value", [0, -1, 0.001, 1001, float("nan"), float("inf"), True, "64"])
def test_a_limit_outside_its_range_is_refused(value):
    with pytest.raises(InvalidParameterError, match="max_decoded_megapixels must"):
        PictureLimit(value)


def test_what_may_be_unpacked_holds_the_largest_picture_of_the_widest_encoding():
    # rgba16, 8 bytes a pixel, with its header; and the small messages that share a chunk with it.
    assert PictureLimit(2).unpacked_bytes == 8 * 2_000_000 + 64 * 2**20


def test_long_texts_from_outside_are_repeated_in_part():
    assert cut("rgb8") == "rgb8"
    assert cut("\x1b[31mrot\n[FATAL] né\u202e\ud800🙂") == (
        "\\x1b[31mrot\\n[FATAL] né\\u202e\\ud800🙂"
    )
    assert cut("x" * 10_000_000) == "x" * 500 + "... (10,000,000 characters)"


@settings(max_examples=300)
@given(
    form=st.sampled_from(sorted(MAKERS)),
    changes=st.lists(st.tuples(st.integers(0, 200), st.integers(0, 255)), max_size=8),
    length=st.integers(0, 2000),
)
def test_no_header_whatever_raises_anything_else(form, changes, length):
    data = bytearray(MAKERS[form](8, 6))
    for at, value in changes:
        data[at % len(data)] = value
    try:
        picture = open_picture(bytes(data[:length]), DEFAULT)
    except InvalidImageError:
        return
    assert picture.width * picture.height <= 64_000_000


def grey_tiff(values, photometric=1, sample_format=1):
    """A TIFF of one strip, byte by byte as its specification says."""
    order = ">" if values.dtype.byteorder == ">" else "<"
    bits = 8 * values.itemsize
    tags = [
        (256, 4, values.shape[1]), (257, 4, values.shape[0]), (258, 3, bits), (259, 3, 1),
        (262, 3, photometric), (273, 4, 8), (277, 3, 1), (278, 4, values.shape[0]),
        (279, 4, values.nbytes), (339, 3, sample_format),
    ]  # fmt: skip
    head = (b"MM" if order == ">" else b"II") + struct.pack(order + "HI", 42, 8 + values.nbytes)
    entries = b"".join(
        struct.pack(order + "HHI", tag, kind, 1)
        + struct.pack(order + ("HH" if kind == 3 else "I"), *([value, 0] if kind == 3 else [value]))
        for tag, kind, value in tags
    )
    return head + values.tobytes() + struct.pack(order + "H", len(tags)) + entries + bytes(4)


@pytest.mark.parametrize(("photometric", "bright"), [(0, 0xFF - 0x20), (1, 0x20)])
@pytest.mark.parametrize("kind", ["<u1", ">u1", "<u2", ">u2"])
def test_a_tiff_is_as_bright_as_it_says_in_8_bits_and_in_16(kind, photometric, bright):
    values = np.full((4, 6), 0x20 if kind.endswith("1") else 0x2000, kind)
    image = rgb_of(open_picture(grey_tiff(values, photometric), PictureLimit()))
    assert image.shape == (4, 6, 3) and np.unique(image).tolist() == [bright]


@pytest.mark.parametrize("kind", ["<i1", "<i2", ">i2", "<i4"])
def test_a_tiff_of_signed_values_is_refused_as_that(kind):
    data = grey_tiff(np.full((4, 6), 0x20, kind), sample_format=2)
    with pytest.raises(InvalidImageError, match="values are signed"):
        rgb_of(open_picture(data, PictureLimit()))


def test_a_tiff_of_pixels_that_are_not_read_says_what_to_do():
    data = grey_tiff(np.full((4, 6), 0x2000, ">u8"))
    with pytest.raises(InvalidImageError, match=r"of a kind that is not read.*PNG"):
        open_picture(data, PictureLimit())

# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""ROS images to arrays: expected pixels are worked out here, not by a decoder."""

import array
import copy
import io
import struct
import sys
import zlib
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image as Pillow

from stream_vlm_ros.engine.inputs.picture_sizes import PictureLimit
from stream_vlm_ros.errors import InvalidImageError, PictureTooLargeError

cv2 = pytest.importorskip("cv2", reason="OpenCV is not installed")
pytest.importorskip("rosbags.image", reason="rosbags-image is not installed")

from cv_bridge_stand_in import CvBridge  # noqa: E402

from stream_vlm_ros.node.images import (  # noqa: E402
    chosen_decoder,
    compressed_to_rgb,
    image_to_rgb,
)
from stream_vlm_ros.sources import ImageFolderSource  # noqa: E402

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (6, 8, 3), np.uint8)
GREY = RNG.integers(0, 256, (6, 8), np.uint8)
GREY16 = RNG.integers(0, 65536, (6, 8), np.uint16)
RGB16 = RNG.integers(0, 65536, (6, 8, 3), np.uint16)


def with_alpha(pixels):
    return np.dstack([pixels, np.full(pixels.shape[:2], 3, pixels.dtype)])


def as_rgb(grey):
    return np.repeat(grey[..., None], 3, axis=2)


COLOURS = {
    "rgb8": (RGB, RGB),
    "bgr8": (RGB[..., ::-1], RGB),
    "rgba8": (with_alpha(RGB), RGB),
    "bgra8": (with_alpha(RGB[..., ::-1]), RGB),
    "mono8": (GREY, as_rgb(GREY)),
    "8UC1": (GREY, as_rgb(GREY)),
    "8UC3": (RGB[..., ::-1], RGB),
    "8UC4": (with_alpha(RGB[..., ::-1]), RGB),
}
DEEP = {  # 16 bits -> 8 bits: by 257, within one step
    "mono16": (GREY16, as_rgb(GREY16)),
    "rgb16": (RGB16, RGB16),
    "bgr16": (RGB16[..., ::-1], RGB16),
    "rgba16": (with_alpha(RGB16), RGB16),
    "bgra16": (with_alpha(RGB16[..., ::-1]), RGB16),
}


@pytest.mark.parametrize("padding", [0, 5])
@pytest.mark.parametrize("encoding", COLOURS)
def test_colours_come_out_as_rgb_with_and_without_padded_rows(make_image, encoding, padding):
    pixels, expected = COLOURS[encoding]
    image = image_to_rgb(make_image(pixels, encoding, padding))
    assert image.dtype == np.uint8 and image.flags.c_contiguous
    np.testing.assert_array_equal(image, expected)


@pytest.mark.parametrize("big_endian", [False, True])
@pytest.mark.parametrize("padding", [0, 6])
@pytest.mark.parametrize("encoding", DEEP)
def test_sixteen_bits_are_scaled_in_both_byte_orders(make_image, encoding, padding, big_endian):
    pixels, expected = DEEP[encoding]
    image = image_to_rgb(make_image(pixels, encoding, padding, big_endian))
    assert np.abs(image - expected / 257).max() < 1


def rgb_from_yuv(luma, blue_chroma, red_chroma):
    """BT.601, limited range, as cameras mean it."""
    y, u, v = 1.164 * (luma - 16.0), blue_chroma - 128.0, red_chroma - 128.0
    return np.clip([y + 1.596 * v, y - 0.392 * u - 0.813 * v, y + 2.017 * u], 0, 255)


@pytest.mark.parametrize(
    ("encoding", "order"),
    [("yuv422", "uyvy"), ("uyvy", "uyvy"), ("yuv422_yuy2", "yuyv"), ("yuyv", "yuyv")],
)
@pytest.mark.parametrize("padding", [0, 4])
def test_both_orders_of_yuv422(make_image, encoding, order, padding):
    sample = {"u": 90, "v": 170}
    pixels = np.zeros((4, 6, 2), np.uint8)
    for index, letter in enumerate(order):
        pixels[:, index // 2 :: 2, index % 2] = sample.get(letter, 120)
    image = image_to_rgb(make_image(pixels, encoding, padding))
    assert np.abs(image - rgb_from_yuv(120, 90, 170)).max() <= 2


@pytest.mark.parametrize(("encoding", "chroma"), [("nv12", [90, 170]), ("nv21", [170, 90])])
@pytest.mark.parametrize("padding", [0, 4])
def test_planes_of_luma_and_half_chroma(make_image, encoding, chroma, padding):
    pixels = np.full((9, 8), 120, np.uint8)
    pixels[6:] = np.tile(chroma, 4)
    message = make_image(pixels, encoding, padding)
    message.height = 6
    image = image_to_rgb(message)
    assert image.shape == (6, 8, 3)
    assert np.abs(image - rgb_from_yuv(120, 90, 170)).max() <= 2


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize("pattern", ["rggb", "bggr", "gbrg", "grbg"])
@pytest.mark.parametrize("padding", [0, 6])
def test_bayer_patterns_of_a_single_colour(make_image, pattern, deep, padding):
    colour = {"r": 200, "g": 120, "b": 40}
    scale, depth = (257, np.uint16) if deep else (1, np.uint8)
    pixels = np.zeros((8, 8), depth)
    for index, letter in enumerate(pattern):
        pixels[index // 2 :: 2, index % 2 :: 2] = colour[letter] * scale
    image = image_to_rgb(make_image(pixels, f"bayer_{pattern}{16 if deep else 8}", padding))
    np.testing.assert_array_equal(image[2:-2, 2:-2], np.full((4, 4, 3), [200, 120, 40]))


@pytest.mark.parametrize("shape", [(1, 8), (2, 8), (8, 2)])
@pytest.mark.parametrize("encoding", ["bayer_rggb8", "bayer_gbrg16"])
def test_a_mosaic_too_small_for_colours_is_refused_and_not_black(make_image, shape, encoding):
    pixels = np.full(shape, 120, np.uint16 if encoding.endswith("16") else np.uint8)
    with pytest.raises(InvalidImageError, match="needs 3 pixels each way"):
        image_to_rgb(make_image(pixels, encoding, 0))


def test_a_message_is_left_as_it_came(make_image):
    message = make_image(GREY16, "mono16", padding=6, big_endian=True)
    before = copy.deepcopy(message)
    image_to_rgb(message)
    assert message == before


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"height": 0}, "the image has no size: 8x0"),
        ({"width": 0}, "the image has no size: 0x6"),
        ({"encoding": "rgb7"}, "unknown encoding 'rgb7'; known encodings"),
        ({"encoding": ""}, "unknown encoding ''"),
        ({"encoding": "32FC1"}, "measurements"),
        ({"encoding": "16UC1"}, "measurements.*grey of 16 bits is mono16"),
        ({"step": 23}, "step is 23 bytes, but a row of 8 pixels in rgb8 takes 24"),
        ({"height": 7}, "holds 144 bytes, but 7 rows of 24 bytes need 168"),
        ({"data": array.array("B")}, "holds 0 bytes"),
        ({"encoding": "yuv422", "width": 7}, "needs an even width"),
        ({"encoding": "nv12", "height": 5}, "needs an even height"),
        ({"height": 2**31, "width": 2**31}, "announces 2147483648x2147483648"),
    ],
)
def test_an_unusable_image_is_refused_in_words(make_image, changes, words):
    message = make_image(RGB, "rgb8")
    for name, value in changes.items():
        setattr(message, name, value)
    with pytest.raises(InvalidImageError, match=words):
        image_to_rgb(message)


def compressed(data, kind="jpeg"):
    return SimpleNamespace(data=array.array("B", bytes(data)), format=kind)


def encoded(pixels, extension):
    return cv2.imencode(extension, pixels)[1].tobytes()


def test_png_is_exact_in_colour_grey_and_with_alpha():
    bgr = np.ascontiguousarray(RGB[..., ::-1])
    for pixels, expected in (
        (bgr, RGB),
        (with_alpha(bgr), RGB),
        (GREY, as_rgb(GREY)),
    ):
        image = compressed_to_rgb(compressed(encoded(pixels, ".png"), "png"))
        np.testing.assert_array_equal(image, expected)


def test_jpeg_is_near_in_colour_and_grey_and_may_be_padded():
    plain = np.full((32, 32, 3), [200, 120, 40], np.uint8)
    data = encoded(plain[..., ::-1], ".jpg")
    for bytes_ in (data, data + b"\0" * 100):
        image = compressed_to_rgb(compressed(bytes_))
        assert np.abs(image.astype(int) - plain).max() <= 3
    grey = compressed_to_rgb(compressed(encoded(plain[..., 1], ".jpg")))
    assert grey.shape == (32, 32, 3) and np.abs(grey.astype(int) - 120).max() <= 3


@pytest.mark.parametrize(
    ("data", "kind", "words"),
    [
        (b"", "jpeg", "holds no data"),
        (b"no picture at all", "jpeg", "cannot be decoded"),
        (b"\xff\xd8 nonsense \xff\xd9", "jpeg", "cannot be decoded"),
        (encoded(RGB, ".jpg")[:200], "jpeg", "Truncated"),
        (encoded(RGB, ".jpg")[:-20], "jpeg", "is truncated"),
        (encoded(RGB, ".png"), "16UC1; compressedDepth png", "is a depth image"),
        (encoded(GREY16, ".png"), "16UC1; png compressed ", "is a depth image"),
        (encoded(GREY16.astype(np.float32), ".tiff"), "tiff", "32 bits a pixel, as measurements"),
    ],
)
def test_an_unusable_compressed_image_is_refused_in_words(data, kind, words):
    with pytest.raises(InvalidImageError, match=words):
        compressed_to_rgb(compressed(data, kind))


def png_chunk(kind, content):
    length, crc = struct.pack(">I", len(content)), struct.pack(">I", zlib.crc32(kind + content))
    return length + kind + content + crc


def test_an_image_of_more_pixels_than_the_limit_is_refused_by_its_header(make_image):
    message = make_image(RGB, "rgb8")  # 48 pixels
    limit = PictureLimit(0.01)
    message.width, message.height, message.step = 100, 101, 300
    with pytest.raises(PictureTooLargeError, match=r"announces 100x101, .* is 0.01"):
        image_to_rgb(message, limit=limit)
    message.height = 100
    with pytest.raises(InvalidImageError, match="holds 144 bytes"):  # within it: the next check
        image_to_rgb(message, limit=limit)


def test_a_compressed_image_of_more_pixels_than_the_limit_is_never_decoded():
    flat = encoded(np.zeros((101, 100, 3), np.uint8), ".png")
    broken = flat[:60] + bytes(20) + flat[80:]  # where its pixels are
    for data in (flat, broken):
        with pytest.raises(PictureTooLargeError, match="announces 100x101"):
            compressed_to_rgb(compressed(data, "png"), PictureLimit(0.01))
    assert compressed_to_rgb(compressed(flat, "png"), PictureLimit(0.0101)).shape == (101, 100, 3)


def test_a_jpeg_of_667_bytes_that_announces_32000x32000_is_refused():
    data = encoded(np.zeros((8, 8, 3), np.uint8), ".jpg")
    size = data.index(b"\xff\xc0") + 5
    data = data[:size] + struct.pack(">HH", 32_000, 32_000) + data[size + 4 :]
    with pytest.raises(PictureTooLargeError, match=r"1,024\.0 megapixels"):
        compressed_to_rgb(compressed(data))


@pytest.mark.parametrize("extension", [".webp", ".tiff", ".bmp", ".jp2", ".ppm", ".gif"])
def test_other_kinds_of_pictures_are_taken_within_the_limit_alone(extension):
    data = encoded(np.full((101, 100, 3), 255, np.uint8), extension)
    image = compressed_to_rgb(compressed(data, extension))
    assert image.shape == (101, 100, 3) and image.min() >= 252
    with pytest.raises(PictureTooLargeError, match="announces 100x101"):
        compressed_to_rgb(compressed(data, extension), PictureLimit(0.01))


def test_a_png_is_read_without_its_texts():
    plain = encoded(np.ascontiguousarray(RGB[..., ::-1]), ".png")
    text = png_chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(7_900_000)))
    message = compressed(plain[:33] + 100 * text + plain[33:], "png")
    before = bytes(message.data)
    np.testing.assert_array_equal(compressed_to_rgb(message), RGB)
    assert bytes(message.data) == before


@pytest.mark.parametrize("extension", [".png", ".tiff", ".pgm", ".ppm"])
def test_a_compressed_picture_of_sixteen_bits_is_scaled(extension):
    colour = extension not in (".pgm",)
    pixels = RGB16[..., ::-1] if colour else GREY16
    image = compressed_to_rgb(compressed(encoded(np.ascontiguousarray(pixels), extension)))
    expected = RGB16 if colour else as_rgb(GREY16)
    assert np.abs(image - expected / 257).max() <= 1


def turned(orientation, image):
    """EXIF's eight: which side of the picture its first row and its first column are."""
    ways = {
        1: image, 2: image[:, ::-1], 3: image[::-1, ::-1], 4: image[::-1],
        5: image.transpose(1, 0, 2), 6: np.rot90(image, -1),
        7: np.rot90(image, 2).transpose(1, 0, 2), 8: np.rot90(image),
    }  # fmt: skip
    return ways[orientation]


@pytest.mark.parametrize("form", ["PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_compressed_picture_is_turned_as_its_exif_data_say(form, orientation):
    exif, out = Pillow.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    Pillow.fromarray(RGB).save(out, form, exif=exif, lossless=True)
    image = compressed_to_rgb(compressed(out.getvalue()))
    np.testing.assert_array_equal(image, turned(orientation, RGB))


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize("pattern", ["rggb", "bggr", "gbrg", "grbg"])
def test_a_mosaic_that_was_compressed_as_grey_becomes_colours(pattern, deep):
    colour = {"r": 200, "g": 120, "b": 40}
    scale, depth = (257, np.uint16) if deep else (1, np.uint8)
    pixels = np.zeros((8, 8), depth)
    for index, letter in enumerate(pattern):
        pixels[index // 2 :: 2, index % 2 :: 2] = colour[letter] * scale
    words = f"bayer_{pattern}{16 if deep else 8}; png compressed "
    image = compressed_to_rgb(compressed(encoded(pixels, ".png"), words))
    np.testing.assert_array_equal(image[2:-2, 2:-2], np.full((4, 4, 3), [200, 120, 40]))


def test_a_mosaic_whose_colours_were_made_before_compressing_is_taken_as_it_is():
    data = encoded(np.ascontiguousarray(RGB[..., ::-1]), ".png")
    words = "bayer_rggb8; png compressed bgr8"
    np.testing.assert_array_equal(compressed_to_rgb(compressed(data, words)), RGB)


@pytest.mark.parametrize("bridge", [None, CvBridge])
def test_twelve_bits_in_sixteen_are_refused_as_nearly_black(make_image, with_bridge, bridge):
    with_bridge(bridge)
    dark = RNG.integers(0, 4096, (6, 8), np.uint16)
    dark_colour = RNG.integers(0, 4096, (6, 8, 3), np.uint16)
    dark[:2] = dark_colour[0, 0] = 4095  # a mosaic's, too
    for pixels, encoding in ((dark, "mono16"), (dark, "bayer_rggb16"), (dark_colour, "rgb16")):
        with pytest.raises(InvalidImageError, match=r"nearly black.*12 bits"):
            image_to_rgb(make_image(pixels, encoding))
    for pixels in (dark, dark_colour):
        for extension in (".png", ".tiff"):
            with pytest.raises(InvalidImageError, match=r"nearly black.*12 bits"):
                compressed_to_rgb(compressed(encoded(pixels, extension)))
    assert image_to_rgb(make_image((dark >> 4).astype(np.uint8), "mono8")).shape == (6, 8, 3)
    assert not image_to_rgb(make_image(np.zeros((6, 8), np.uint8), "mono8")).any()


def test_names_of_ten_megabytes_are_not_repeated_in_full(make_image):
    message = make_image(RGB, "rgb8")
    message.encoding = "x" * 10_000_000
    with pytest.raises(InvalidImageError) as refused:
        image_to_rgb(message)
    assert len(str(refused.value)) < 1000
    for data in (b"", b"no picture", encoded(RGB, ".jpg")[:200], encoded(RGB, ".png")):
        with pytest.raises(InvalidImageError) as refused:
            compressed_to_rgb(compressed(data, "compressedDepth" * (b"PNG" in data) + "y" * 10**7))
        assert len(str(refused.value)) < 1000


@pytest.fixture
def with_bridge(monkeypatch):
    """Make a module ``cv_bridge`` importable, and have the decoder chosen again."""

    def install(bridge):
        monkeypatch.setitem(sys.modules, "cv_bridge", bridge and SimpleNamespace(CvBridge=bridge))
        chosen_decoder.cache_clear()

    yield install
    chosen_decoder.cache_clear()


def real_or_stand_in():
    try:
        from cv_bridge import CvBridge
    except Exception:
        from cv_bridge_stand_in import CvBridge
    return CvBridge


@pytest.mark.parametrize("padding", [0, 6])
@pytest.mark.parametrize(
    "encoding",
    [*COLOURS, *DEEP, "yuv422", "yuv422_yuy2", "uyvy", "yuyv", "bayer_rggb8", "bayer_bggr8"],
)
def test_pictures_are_the_same_with_cv_bridge_and_without(
    make_image, with_bridge, encoding, padding
):
    yuv = RNG.integers(0, 256, (6, 8, 2), np.uint8)
    other = yuv if "y" in encoding[:3] else GREY
    message = make_image({**COLOURS, **DEEP}.get(encoding, (other,))[0], encoding, padding)
    with_bridge(real_or_stand_in())
    with_it = image_to_rgb(message)
    with_bridge(None)
    without = image_to_rgb(message)
    assert with_it.shape == without.shape == (6, 8, 3)
    assert np.abs(with_it.astype(int) - without).max() <= 1


def test_cv_bridge_decodes_what_it_knows(make_image, with_bridge):
    used = []

    class Watched(CvBridge):
        def imgmsg_to_cv2(self, message, desired_encoding):
            used.append(message.encoding)
            return super().imgmsg_to_cv2(message, desired_encoding)

    with_bridge(Watched)
    words = chosen_decoder()[1]
    assert "cv_bridge is not used for 2 of 22 encodings" in words
    assert "uyvy: CvBridgeError: Unrecognized image encoding [uyvy]" in words
    used.clear()
    image_to_rgb(make_image(GREY16, "mono16"))
    image_to_rgb(make_image(RNG.integers(0, 256, (6, 8, 2), np.uint8), "uyvy"))
    assert used == ["mono16"]


class Broken:
    """As built for another numpy: its import succeeds, and every image raises."""

    def imgmsg_to_cv2(self, message, desired_encoding):
        raise ImportError("numpy.core.multiarray failed to import")


class Swapping(CvBridge):
    def imgmsg_to_cv2(self, message, desired_encoding):
        return super().imgmsg_to_cv2(message, desired_encoding)[..., ::-1]


class Wrapping(CvBridge):
    """16 bits modulo 256."""

    def imgmsg_to_cv2(self, message, desired_encoding):
        image = super().imgmsg_to_cv2(message, desired_encoding)
        return image if "16" not in message.encoding else image * np.uint8(3)


@pytest.mark.parametrize(
    ("bridge", "words"),
    [(Broken, "failed to import"), (Swapping, "gives other colours"), (Wrapping, "other colours")],
)
def test_a_cv_bridge_that_is_wrong_is_not_used_and_that_is_said(
    make_image, with_bridge, bridge, words
):
    with_bridge(bridge)
    np.testing.assert_array_equal(image_to_rgb(make_image(RGB, "rgb8")), RGB)
    image = image_to_rgb(make_image(GREY16, "mono16"))
    assert np.abs(image - as_rgb(GREY16) / 257).max() < 1
    assert words in chosen_decoder()[1]


def test_a_cv_bridge_that_cannot_be_made_is_said_and_one_that_is_missing_is_not(with_bridge):
    def unusable():
        raise AttributeError("_ARRAY_API not found")

    with_bridge(unusable)
    assert "_ARRAY_API not found" in chosen_decoder()[1]
    with_bridge(None)
    assert chosen_decoder()[1] == ""


@pytest.mark.parametrize("extension", [".png", ".jpg", ".tiff", ".webp", ".bmp", ".pgm"])
def test_a_picture_looks_the_same_in_a_folder_and_in_a_message(tmp_path, extension):
    pixels = RGB if extension != ".pgm" else GREY16
    data = encoded(cv2.resize(pixels, (64, 48)), extension)
    (tmp_path / f"1{extension}").write_bytes(data)
    (frame,) = ImageFolderSource(tmp_path)
    np.testing.assert_array_equal(frame.image, compressed_to_rgb(compressed(data)))


@pytest.mark.parametrize(
    ("pixels", "words"),
    [
        (GREY16.astype(np.float32), "32 bits a pixel"),
        (GREY16.astype(np.int32), "32 bits a pixel"),
        (GREY16 >> 4, "nearly black"),
    ],
)
def test_a_folder_leaves_out_what_would_be_black_and_says_so(tmp_path, pixels, words):
    for name, image in (("1.tif", GREY), ("2.tif", pixels)):
        Pillow.fromarray(image).save(tmp_path / name)
    source = ImageFolderSource(tmp_path)
    assert len(list(source)) == 1 and source.state.counts.unusable == 1
    assert "2.tif" in source.state.damage and words in source.state.damage

# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""ROS images to arrays: expected pixels are worked out here, not by a decoder."""

import array
import copy
import struct
import zlib
from types import SimpleNamespace

import numpy as np
import pytest

from stream_vlm_ros.engine.inputs.picture_sizes import PictureLimit
from stream_vlm_ros.errors import InvalidImageError, PictureTooLargeError

cv2 = pytest.importorskip("cv2", reason="OpenCV is not installed")
pytest.importorskip("rosbags.image", reason="rosbags-image is not installed")

from stream_vlm_ros.node.images import (  # noqa: E402
    compressed_to_rgb,
    cv_bridge_decoder,
    image_to_rgb,
)
from stream_vlm_ros.sources import ros_images  # noqa: E402

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
    "16UC1": (GREY16, as_rgb(GREY16)),
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


def test_a_message_is_left_as_it_came(make_image):
    message = make_image(GREY16, "16UC1", padding=6, big_endian=True)
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
        (encoded(RGB, ".jpg")[:200], "jpeg", "is truncated"),
        (encoded(RGB, ".png"), "16UC1; compressedDepth png", "is a depth image"),
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
    decoded = []
    flat = encoded(np.zeros((101, 100, 3), np.uint8), ".png")
    with pytest.raises(PictureTooLargeError, match="announces 100x101"):
        ros_images.compressed_to_rgb(compressed(flat, "png"), decoded.append, PictureLimit(0.01))
    assert not decoded
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


def test_a_picture_that_decodes_to_another_size_than_announced_is_refused():
    data = encoded(RGB, ".png")
    with pytest.raises(InvalidImageError, match="decodes to 3x2, where its header announces 8x6"):
        ros_images.compressed_to_rgb(compressed(data, "png"), lambda _: RGB[:2, :3])


def test_a_png_reaches_the_decoder_without_its_texts():
    plain = encoded(np.ascontiguousarray(RGB[..., ::-1]), ".png")
    text = png_chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(7_900_000)))
    message = compressed(plain[:33] + 100 * text + plain[33:], "png")
    seen = []

    def decoder(message):
        seen.append(bytes(message.data))
        return RGB

    before = bytes(message.data)
    np.testing.assert_array_equal(ros_images.compressed_to_rgb(message, decoder), RGB)
    assert seen == [plain] and bytes(message.data) == before


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


@pytest.mark.ros
@pytest.mark.parametrize("padding", [0, 6])
@pytest.mark.parametrize(
    "encoding",
    [*COLOURS, *DEEP, *(f"bayer_{p}8" for p in ("rggb", "bggr", "gbrg", "grbg")), "yuv422", "png"],
)
def test_cv_bridge_and_rosbags_agree(make_image, encoding, padding):
    try:
        with_bridge = cv_bridge_decoder()
    except ImportError as reason:
        pytest.skip(f"cv_bridge: {reason}")
    from sensor_msgs.msg import CompressedImage, Image

    decoders = with_bridge, ros_images.rosbags_decoder()
    if encoding == "png":
        message = CompressedImage(format="png", data=encoded(RGB, ".png"))
        images = [ros_images.compressed_to_rgb(message, decoder) for decoder in decoders]
    else:
        yuv = RNG.integers(0, 256, (6, 8, 2), np.uint8)
        pixels = {**COLOURS, **DEEP}.get(encoding, (yuv if encoding == "yuv422" else GREY,))[0]
        fields = vars(make_image(pixels, encoding, padding))
        message = Image(**{k: v for k, v in fields.items() if k != "header"})
        images = [ros_images.image_to_rgb(message, decoder) for decoder in decoders]
    assert np.abs(images[0].astype(int) - images[1]).max() <= 1

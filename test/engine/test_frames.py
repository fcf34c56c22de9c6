# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Pictures become the patches that the library's own processor makes of them."""

import json
from collections import deque

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import (
    Qwen2VLImageProcessorPil,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import (
    smart_resize as library_smart_resize,
)

from stream_vlm_ros.engine.inputs.frames import (
    FrameProcessor,
    ImageSettings,
    PatchGrid,
    resize_in_floats,
    to_arrays,
)
from stream_vlm_ros.engine.inputs.picture_sizes import smart_resize
from stream_vlm_ros.errors import InvalidImageError, InvalidParameterError, ModelLoadError

SETTINGS = ImageSettings(min_pixels=56 * 56, max_pixels=12_845_056)
SMALL = ImageSettings(min_pixels=56 * 56, max_pixels=112 * 112)

# How far a resized byte may be from PIL's. Both resize rows, round to a byte, then columns, and
# round again. Weights differ in precision (16 bits here, 22 in PIL, floats on other devices), so
# the first pass may fall on the other side of a rounding tie: one level. The second pass weighs
# such errors by at most the sum of |weights| of a bicubic kernel, below 1.4, and rounds once more:
# at most two levels. Ties are rare: MAX_SHARE of the values differ at all.
MAX_LEVELS = 2
MAX_SHARE = 0.05


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    """The hardest picture to resize: every pixel of full contrast, half of them black or white."""
    random = np.random.default_rng(seed)
    picture = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
    extreme = random.random((height, width)) < 0.5
    picture[extreme] = random.choice(np.array([0, 255], np.uint8), (int(extreme.sum()), 3))
    return picture


def scene(height: int, width: int) -> np.ndarray:
    """Smooth gradients with a sharp-edged box, as a camera gives them."""
    y, x = np.mgrid[0:height, 0:width]
    picture = np.stack(
        [
            255 * x / max(width - 1, 1),
            255 * y / max(height - 1, 1),
            127 + 127 * np.sin((x + y) / 9),
        ],
        axis=-1,
    )
    picture[height // 4 : height // 2, width // 4 : width // 2] = (250, 10, 30)
    return picture.round().astype(np.uint8)


def resize_rows_first(image: Image.Image, size: tuple[int, int], *args, **kwargs) -> Image.Image:
    """PIL's resize in the order that it always took before Pillow 13, and that the models were
    trained with. Since 13 it resizes columns first where the height shrinks the more; the clip
    between the passes makes that another picture at sharp edges (up to 30 levels in noise).
    """
    rows = PIL_RESIZE(image, (size[0], image.height), *args, **kwargs)
    return PIL_RESIZE(rows, size, *args, **kwargs)


PIL_RESIZE = Image.Image.resize


def library(frames: list, of: ImageSettings, **bounds: int) -> tuple[np.ndarray, list[int]]:
    """The library's patches of each frame [frames, h * w, 3, 2, 14, 14] and (h, w) in patches."""
    processor = Qwen2VLImageProcessorPil(
        patch_size=of.patch_size,
        merge_size=of.merge_size,
        temporal_patch_size=of.temporal_patch_size,
        min_pixels=bounds.get("min_pixels", of.min_pixels),
        max_pixels=bounds.get("max_pixels", of.max_pixels),
        image_mean=list(of.image_mean),
        image_std=list(of.image_std),
    )
    # as PIL images, since of an array of 3 rows the library takes the rows for channels
    out = processor(images=[Image.fromarray(frame) for frame in frames], return_tensors="np")
    grids = out["image_grid_thw"]
    assert (grids == grids[0]).all()
    shape = (len(frames), -1, 3, of.temporal_patch_size, of.patch_size, of.patch_size)
    return out["pixel_values"].reshape(shape), grids[0, 1:].tolist()


def as_library(grid: PatchGrid, of: ImageSettings) -> np.ndarray:
    """A chunk's patches frame by frame: [t, h * w, 3, depth, 14, 14]."""
    t = grid.grid_thw[0]
    shape = (t, -1, 3, of.temporal_patch_size, of.patch_size, of.patch_size)
    return grid.pixel_values.numpy().reshape(shape)


def levels(values: np.ndarray, of: ImageSettings) -> np.ndarray:
    """Normalised values [..., 3, depth, patch, patch] back to the bytes they came from."""
    mean, std = (np.array(v).reshape(3, 1, 1, 1) for v in (of.image_mean, of.image_std))
    exact = (values.astype(np.float64) * std + mean) / of.rescale_factor
    assert np.abs(exact - exact.round()).max() < 1e-3, "not a normalised byte"
    return exact.round()


def assert_same_but_rounding(ours: np.ndarray, theirs: np.ndarray, of: ImageSettings) -> None:
    off = np.abs(levels(ours, of) - levels(theirs, of))
    assert off.max() <= MAX_LEVELS
    if off.size >= 10_000:
        assert (off > 0).mean() <= MAX_SHARE


sizes = st.one_of(
    st.tuples(st.integers(1, 300), st.integers(1, 300)),
    st.tuples(st.integers(4, 24), st.integers(200, 800)),
    st.tuples(st.integers(200, 800), st.integers(4, 24)),
).filter(lambda hw: max(hw) / min(hw) <= 200)


@given(sizes, st.integers(1, 200_000), st.integers(0, 400_000), st.sampled_from([8, 28, 32]))
def test_the_target_size_is_the_librarys(size, min_pixels, more, factor):
    bounds = {"min_pixels": min_pixels, "max_pixels": min_pixels + more}
    ours = smart_resize(*size, factor, **bounds)
    assert ours == library_smart_resize(*size, factor, **bounds)
    assert ours[0] % factor == ours[1] % factor == 0 and min(ours) >= factor


@given(sizes, st.sampled_from([noise, scene]), st.integers(1, 60_000), st.integers(0, 60_000))
@settings(max_examples=80)
def test_patches_equal_the_librarys_but_for_rounding(size, draw, min_pixels, more):
    picture = draw(*size)
    bounds = {"min_pixels": min_pixels, "max_pixels": min_pixels + more}
    ours = FrameProcessor(SETTINGS)([picture], **bounds)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Image.Image, "resize", resize_rows_first)
        theirs, grid = library([picture], SETTINGS, **bounds)
    assert list(ours.grid_thw) == [1, *grid]
    # the library repeats a single image to fill the temporal patch, and so do we
    assert_same_but_rounding(as_library(ours, SETTINGS), theirs, SETTINGS)


@given(sizes, st.integers(1, 60_000))
@settings(max_examples=60)
def test_the_way_of_other_devices_resizes_like_pil_too(size, pixels):
    picture = noise(*size)
    target = smart_resize(*size, 28, 1, pixels)
    ours = resize_in_floats(torch.from_numpy(picture).permute(2, 0, 1)[None], *target)
    image = Image.fromarray(picture)
    theirs = resize_rows_first(image, target[::-1], Image.Resampling.BICUBIC)
    off = np.abs(ours[0].permute(1, 2, 0).numpy().astype(int) - np.asarray(theirs).astype(int))
    assert off.max() <= MAX_LEVELS
    if off.size >= 10_000:
        assert (off > 0).mean() <= MAX_SHARE


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("size", [(480, 640), (1080, 1920), (2160, 3840), (33, 700), (5, 7)])
def test_a_cuda_device_gives_what_the_cpu_gives(size):
    pictures = [noise(*size, seed) for seed in range(3)]
    for settings_ in (SETTINGS, SMALL):
        here, there = (FrameProcessor(settings_, device)(pictures) for device in ("cpu", "cuda"))
        assert there.pixel_values.is_cuda and there.grid_thw == here.grid_thw
        there.pixel_values = there.pixel_values.cpu()
        ours, theirs = as_library(there, settings_), as_library(here, settings_)
        assert_same_but_rounding(ours, theirs, settings_)
        on_device = [torch.from_numpy(picture).cuda() for picture in pictures]
        again = FrameProcessor(settings_, "cuda")(on_device).pixel_values.cpu()
        assert torch.equal(again, there.pixel_values)


@pytest.mark.parametrize("size", [(56, 56), (56, 84), (112, 28 * 7), (28 * 9, 56)])
def test_a_picture_that_needs_no_resizing_comes_out_exactly(size):
    pictures = [noise(*size, seed) for seed in (1, 2)]
    ours = as_library(FrameProcessor(SETTINGS)(pictures), SETTINGS)[0]
    theirs, _ = library(pictures, SETTINGS)
    for frame in (0, 1):
        # float32 values up to 2.7; one multiply-add against the library's three operations
        np.testing.assert_allclose(ours[:, :, frame], theirs[frame, :, :, 0], atol=2e-6, rtol=0)


@pytest.mark.parametrize("size", [(480, 640), (640, 480), (200, 199), (97, 811)])
@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
def test_each_frame_of_a_chunk_equals_the_library_and_the_last_fills_an_odd_chunk(size, count):
    pictures = [noise(*size, seed) for seed in range(count)]
    grid = FrameProcessor(SMALL)(pictures)
    theirs, _ = library(pictures, SMALL)
    ours = as_library(grid, SMALL)
    assert grid.grid_thw[0] == (count + 1) // 2
    for slot in range(2 * grid.grid_thw[0]):
        frame = min(slot, count - 1)
        assert_same_but_rounding(
            ours[slot // 2, :, :, slot % 2, None], theirs[frame, :, :, :1], SMALL
        )


@pytest.mark.parametrize(
    ("patch", "depth", "merge"), [(14, 2, 2), (14, 2, 1), (7, 3, 2), (4, 1, 3), (16, 2, 2)]
)
def test_patches_lie_in_the_order_the_vision_tower_reads(patch, depth, merge):
    """Against a walk over the picture in the words of the layout: row by row of merged squares,
    in a square row by row of patches, in a patch channel by channel, in a channel frame by frame.
    """
    of = ImageSettings(patch, depth, merge, 1, 10**6, (0.0,) * 3, (1.0,) * 3, 1.0)
    rows, columns, chunk = 2 * merge, 3 * merge, 2 * depth
    pictures = [noise(rows * patch, columns * patch, seed) for seed in range(chunk)]
    grid = FrameProcessor(of)(pictures)
    expected = [
        [
            pictures[first + frame][row * patch + y, column * patch + x, channel]
            for channel in range(3)
            for frame in range(depth)
            for y in range(patch)
            for x in range(patch)
        ]
        for first in range(0, chunk, depth)
        for top in range(0, rows, merge)
        for left in range(0, columns, merge)
        for row in range(top, top + merge)
        for column in range(left, left + merge)
    ]
    assert grid.grid_thw == (2, rows, columns)
    assert grid.tokens == 2 * 2 * 3
    np.testing.assert_array_equal(grid.pixel_values.numpy(), expected)


def test_full_hd_keeps_39_by_69_tokens_a_grid():
    pictures = [scene(1080, 1920)] * 4
    assert smart_resize(1080, 1920, 28, SETTINGS.min_pixels, SETTINGS.max_pixels) == (1092, 1932)
    grid = FrameProcessor(SETTINGS)(pictures)
    assert grid.grid_thw == (2, 2 * 39, 2 * 69)
    assert grid.tokens == 2 * 39 * 69 == 5382
    assert grid.pixel_values.shape == (4 * 5382, 3 * 2 * 14 * 14)


def test_the_size_may_change_between_calls_and_calls_leave_no_trace():
    processor = FrameProcessor(SMALL)
    first, other = [noise(90, 120, s) for s in range(2)], [noise(300, 200, s) for s in range(2)]
    before = processor(first).pixel_values
    assert processor(other).grid_thw != processor(first).grid_thw
    assert torch.equal(processor(first).pixel_values, before)


def test_the_callers_picture_is_left_as_it_was():
    picture = noise(56, 56)
    copy = picture.copy()
    grid = FrameProcessor(SMALL)([picture, torch.from_numpy(picture)])
    grid.pixel_values.zero_()
    np.testing.assert_array_equal(picture, copy)


def test_pixel_bounds_of_a_call_replace_those_of_the_settings():
    processor = FrameProcessor(SETTINGS)
    picture = scene(480, 640)
    # 640x480 shrunk by sqrt(307200 / 15680) = 4.43 and floored to multiples of 28
    assert processor([picture], max_pixels=112 * 140).grid_thw == (1, 2 * 3, 2 * 5)
    assert processor([picture]).grid_thw == (1, 2 * 17, 2 * 23)
    with pytest.raises(InvalidParameterError, match=r"min_pixels \(3136\) must not be above"):
        processor([picture], max_pixels=100)
    with pytest.raises(InvalidParameterError, match="whole number of at least 1, not 0"):
        processor([picture], min_pixels=0)


def test_values_can_be_had_in_the_models_own_type():
    picture = scene(100, 100)
    exact = FrameProcessor(SMALL)([picture]).pixel_values
    half = FrameProcessor(SMALL, dtype=torch.bfloat16)([picture]).pixel_values
    assert half.dtype == torch.bfloat16
    assert torch.equal(half, exact.to(torch.bfloat16))


# --- every usual kind of image -------------------------------------------------------------------

PICTURE = noise(61, 83)
GREY = PICTURE[..., 0].copy()
ALPHA = noise(61, 83, seed=9)[..., :1]
RGBA = np.concatenate([PICTURE, ALPHA], axis=-1)


def read_only(array):
    array = array.copy()
    array.setflags(write=False)
    return array


KINDS = {
    "pil": Image.fromarray(PICTURE),
    "pil with alpha": Image.fromarray(RGBA),
    "read-only numpy": read_only(PICTURE),
    "numpy with alpha": RGBA,
    "mirrored twice": PICTURE[::-1, ::-1].copy()[::-1, ::-1],
    "bgr seen as rgb": PICTURE[..., ::-1].copy()[..., ::-1],
    "column-major numpy": np.asfortranarray(PICTURE),
    "part of a wider array": np.pad(PICTURE, ((3, 4), (5, 6), (0, 0)))[3:-4, 5:-6],
    "torch channels last": torch.from_numpy(PICTURE),
    "torch channels first": torch.from_numpy(PICTURE).permute(2, 0, 1).contiguous(),
    "torch with alpha first": torch.from_numpy(RGBA).permute(2, 0, 1),
    "float32": torch.from_numpy(PICTURE).permute(2, 0, 1).float() / 255,
    "float64 channels last": torch.from_numpy(PICTURE).double() / 255,
    "float16": torch.from_numpy(PICTURE).permute(2, 0, 1).half() / 255,
    "float with gradient": (torch.from_numpy(PICTURE).float() / 255).requires_grad_(),
}
GREY_KINDS = {
    "numpy without channels": GREY,
    "numpy with one channel": GREY[..., None],
    "pil grey": Image.fromarray(GREY),
    "pil grey with alpha": Image.fromarray(np.dstack([GREY, ALPHA])),
    "pil of 16 bits within 255": Image.fromarray(GREY.astype(np.uint16)),
    "pil of 32 bits within 255": Image.fromarray(GREY.astype(np.int32)),
    "torch without channels": torch.from_numpy(GREY),
    "torch with one channel": torch.from_numpy(GREY)[None],
    "torch with one channel last": torch.from_numpy(GREY)[..., None],
    "float": torch.from_numpy(GREY)[None].float() / 255,
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_picture_of_another_kind_gives_the_same_patches(kind):
    expected = FrameProcessor(SMALL)([PICTURE, PICTURE]).pixel_values
    assert torch.equal(FrameProcessor(SMALL)([KINDS[kind]]).pixel_values, expected)


@pytest.mark.parametrize("kind", GREY_KINDS)
def test_a_grey_picture_counts_as_three_equal_channels(kind):
    expected = FrameProcessor(SMALL)([np.dstack([GREY] * 3)]).pixel_values
    assert torch.equal(FrameProcessor(SMALL)([GREY_KINDS[kind]]).pixel_values, expected)


def test_kinds_may_mix_in_a_chunk():
    mixed = FrameProcessor(SMALL)(
        [KINDS["pil"], GREY, KINDS["float32"], KINDS["torch with alpha first"]]
    )
    plain = FrameProcessor(SMALL)([PICTURE, np.dstack([GREY] * 3), PICTURE, PICTURE])
    assert torch.equal(mixed.pixel_values, plain.pixel_values)


@pytest.mark.parametrize("mode", ["1", "P", "CMYK", "YCbCr", "HSV"])
def test_any_pil_mode_goes_through_pils_own_conversion(mode):
    image = Image.fromarray(PICTURE).convert(mode)
    expected = FrameProcessor(SMALL)([np.asarray(image.convert("RGB"))]).pixel_values
    assert torch.equal(FrameProcessor(SMALL)([image]).pixel_values, expected)


@pytest.mark.parametrize("container", [list, tuple, deque, np.stack])
def test_frames_come_in_any_sequence_or_one_array(container):
    pictures = [noise(60, 80, seed) for seed in range(3)]
    expected = FrameProcessor(SMALL)(pictures).pixel_values
    assert torch.equal(FrameProcessor(SMALL)(container(pictures)).pixel_values, expected)
    stacked = torch.from_numpy(np.stack(pictures))
    assert torch.equal(FrameProcessor(SMALL)(stacked).pixel_values, expected)


def test_a_tensor_whose_both_ends_could_be_channels_is_read_channels_first():
    tensor = torch.from_numpy(noise(3, 3))
    as_first = tensor.permute(1, 2, 0).contiguous().numpy()
    expected = FrameProcessor(SMALL)([as_first]).pixel_values
    assert torch.equal(FrameProcessor(SMALL)([tensor]).pixel_values, expected)


# --- what cannot be used -------------------------------------------------------------------------


NOT_A_NUMBER = torch.rand(3, 20, 20).index_fill(1, torch.tensor([4]), float("nan"))
BAD = {
    "zero height": (np.zeros((0, 20, 3), np.uint8), r"image is empty: shape \(0, 20, 3\)"),
    "zero width tensor": (torch.zeros(3, 20, 0), r"image is empty: shape \(3, 20, 0\)"),
    "empty pil": (Image.new("RGB", (0, 5)), "image is empty: 0x5 pixels"),
    "float numpy": (np.zeros((20, 20, 3)), r"must be uint8 \(0..255\), not float64"),
    "16-bit numpy": (np.zeros((20, 20), np.uint16), r"must be uint8 \(0..255\), not uint16"),
    "boolean numpy": (np.zeros((20, 20), bool), "not bool"),
    "integer tensor": (torch.zeros(3, 20, 20, dtype=torch.int32), "not torch.int32"),
    "not a number": (NOT_A_NUMBER, "not finite"),
    "infinity": (torch.full((3, 20, 20), float("inf")), "not finite"),
    "floats of 0..255": (torch.full((3, 20, 20), 200.0), "must lie in 0..1.* from 200 to 200"),
    "negative floats": (torch.full((3, 20, 20), -0.5), "must lie in 0..1"),
    "two channels": (np.zeros((20, 20, 2), np.uint8), r"not of shape \(20, 20, 2\)"),
    "five channels": (torch.zeros(5, 20, 20), r"1, 3 or 4 channels.*\(5, 20, 20\)"),
    "channels first numpy": (np.zeros((3, 20, 20), np.uint8), r"image.transpose\(1, 2, 0\)"),
    "one dimension": (np.zeros(20, np.uint8), r"not of shape \(20,\)"),
    "no dimension": (torch.tensor(1.0), r"not of shape \(\)"),
    "16-bit pil": (Image.fromarray(np.full((9, 9), 4000, np.uint16)), "I;16 .* 4000 to 4000.*clip"),
    "float pil": (Image.fromarray(np.full((9, 9), np.nan, np.float32)), "mode F .*clip"),
    "path": ("picture.jpg", "an image was expected, not str .*PIL.Image.open"),
    "bytes": (b"\xff\xd8", "an image was expected, not bytes"),
    "nothing": (None, "PIL image, a numpy array or a torch tensor, not NoneType"),
    "too long": (np.zeros((2, 500, 3), np.uint8), "500x2 pixels: one side is more than 200 times"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_picture_is_refused_in_the_users_words(case):
    picture, message = BAD[case]
    with pytest.raises(InvalidImageError, match=message):
        FrameProcessor(SMALL)([picture])


def test_the_bad_picture_of_a_chunk_is_named():
    with pytest.raises(InvalidImageError, match=r"^image 2 of 3: a numpy image must be uint8"):
        FrameProcessor(SMALL)([PICTURE, PICTURE.astype(np.float32), PICTURE])


def test_a_picture_that_breaks_off_is_refused(tmp_path):
    file = tmp_path / "cut.jpg"
    Image.fromarray(PICTURE).save(file)
    file.write_bytes(file.read_bytes()[:3000])
    with pytest.raises(InvalidImageError, match=r"cannot be decoded: .*truncated"):
        FrameProcessor(SMALL)([Image.open(file)])


@pytest.mark.parametrize(
    ("chunk", "message"),
    [
        ([], "at least one image; the list is empty"),
        (np.zeros((0, 9, 9, 3), np.uint8), "at least one image"),
        (PICTURE, r"shape \(61, 83, 3\). A single image goes into a list"),
        (torch.from_numpy(PICTURE), "A single image goes into a list"),
        (Image.fromarray(PICTURE), "not Image. A single image goes into a list"),
        ("frames/", "a list of images, not str"),
        (iter([PICTURE]), "a list of images, not list_iterator"),
        (None, "a list of images, not NoneType"),
    ],
)
def test_what_is_no_list_of_images_is_refused(chunk, message):
    with pytest.raises(InvalidImageError, match=message):
        FrameProcessor(SMALL)(chunk)


def test_frames_of_different_sizes_in_one_chunk_are_refused_naming_the_sizes():
    with pytest.raises(InvalidImageError, match=r"differ in size \(80x60, 60x80\)"):
        FrameProcessor(SMALL)([noise(60, 80), noise(60, 80), noise(80, 60)])


@pytest.mark.parametrize(("height", "width"), [(1, 201), (4200, 20), (0, 5), (5, 0)])
def test_no_target_size_for_an_empty_picture_or_one_over_200_times_longer(height, width):
    with pytest.raises(InvalidImageError):
        smart_resize(height, width, 28, 3136, 10**6)
    assert smart_resize(1, 200, 28, 3136, 10**6) == library_smart_resize(1, 200, 28, 3136, 10**6)


# --- settings ------------------------------------------------------------------------------------


def test_settings_default_to_the_librarys():
    # its size is given, since some releases share (and change) the default between instances
    size = {"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 1280}
    theirs = Qwen2VLImageProcessorPil(size=size)
    assert ImageSettings() == ImageSettings.from_dict(theirs.to_dict())
    assert ImageSettings() == ImageSettings.from_dict({})
    assert ImageSettings().image_mean == tuple(theirs.image_mean)


@pytest.mark.parametrize(
    "values",
    [
        {"min_pixels": 4000, "max_pixels": 9000},
        {"size": {"shortest_edge": 4000, "longest_edge": 9000}},
        {"size": {"min_pixels": 4000, "max_pixels": 9000}},
        {"min_pixels": 4000, "max_pixels": 9000, "size": {"shortest_edge": 1, "longest_edge": 2}},
        {"min_pixels": None, "size": {"shortest_edge": 4000, "longest_edge": 9000}},
    ],
)
def test_old_and_new_files_name_the_pixel_bounds(values):
    read = ImageSettings.from_dict({**values, "resample": 3, "do_resize": True, "unknown": 1})
    assert (read.min_pixels, read.max_pixels) == (4000, 9000)
    # what the library itself makes of the same file
    clean = {k: v for k, v in values.items() if v is not None}
    if "min_pixels" not in clean.get("size", {}):
        theirs = Qwen2VLImageProcessorPil(**clean).size
        assert (theirs["shortest_edge"], theirs["longest_edge"]) == (4000, 9000)


def test_steps_switched_off_in_the_file_are_left_out():
    read = ImageSettings.from_dict({"do_rescale": False, "do_normalize": False, "min_pixels": 1})
    picture = noise(56, 56)
    values = FrameProcessor(read)([picture]).pixel_values
    assert values.mean().item() == pytest.approx(picture.mean(), rel=1e-6)
    assert ImageSettings.from_dict({"image_mean": 0.5}).image_mean == (0.5, 0.5, 0.5)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"patch_size": 0}, "patch_size must be a whole number"),
        ({"merge_size": "2"}, "merge_size must be a whole number"),
        ({"temporal_patch_size": True}, "temporal_patch_size"),
        ({"min_pixels": 10, "max_pixels": 5}, "min_pixels"),
        ({"image_mean": [0.5, 0.5]}, "image_mean must be three numbers"),
        ({"image_std": [0.5, 0.5, 0.0]}, "image_std must be above 0"),
        ({"rescale_factor": 0}, "rescale_factor"),
        ({"size": 448}, "shortest_edge and longest_edge"),
        ({"do_resize": False}, "do_resize"),
        ({"resample": 2}, "resample is 2"),
    ],
)
def test_settings_outside_their_range_are_refused(values, message, tmp_path):
    with pytest.raises(InvalidParameterError, match=message):
        ImageSettings.from_dict(values)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(values))
    with pytest.raises(ModelLoadError, match=f"preprocessor_config.json: .*{message}"):
        ImageSettings.from_folder(tmp_path)


def test_settings_are_found_in_either_file_of_a_checkpoint(tmp_path):
    inner = {"patch_size": 16, "min_pixels": 1}
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": inner}))
    assert ImageSettings.from_folder(tmp_path).patch_size == 16
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"patch_size": 12}))
    assert ImageSettings.from_folder(str(tmp_path)).patch_size == 12


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (None, "", "has no preprocessor_config.json"),
        ("processor_config.json", "{}", "has no preprocessor_config.json"),
        ("processor_config.json", '{"image_processor": 3}', "must be an object, not 3"),
        ("preprocessor_config.json", "{", "cannot be read as JSON"),
        ("preprocessor_config.json", "[1]", "must hold a JSON object, not list"),
    ],
)
def test_a_folder_without_usable_settings_is_refused(name, text, message, tmp_path):
    if name:
        (tmp_path / name).write_text(text)
    with pytest.raises(ModelLoadError, match=message):
        ImageSettings.from_folder(tmp_path)


def test_images_of_every_kind_become_the_same_plain_array():
    picture = scene(30, 40)
    kinds = [
        picture,
        Image.fromarray(picture),
        torch.from_numpy(picture),
        torch.from_numpy(picture.transpose(2, 0, 1).copy()),
        np.dstack([picture, np.zeros((30, 40), np.uint8)]),
    ]
    for array in to_arrays(kinds):
        np.testing.assert_array_equal(array, picture)
    grey = to_arrays([picture[..., 0]])[0]
    np.testing.assert_array_equal(grey, np.dstack([picture[..., 0]] * 3))
    with pytest.raises(InvalidImageError, match="list is empty"):
        to_arrays([])


def test_a_pil_image_that_is_not_decoded_yet_is_asked_for_its_size_first(tmp_path):
    Image.new("1", (9000, 9000)).save(file := tmp_path / "large.png")
    with pytest.raises(InvalidImageError, match=r"announces 9000x9000, 81.0 megapixels.* is 64"):
        FrameProcessor(SMALL)([Image.open(file)])
    with Image.open(file) as image:
        image.load()  # its owner decoded it: it is in memory, as an array would be
        assert to_arrays([image])[0].shape == (9000, 9000, 3)

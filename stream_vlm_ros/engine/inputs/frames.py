# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Images of any usual kind -> patches and their grid, on the model's device.

Computes what the library's processor for this model family computes (smart resize, bicubic with
antialias, rescale, normalise, patch order), in torch alone.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn import functional

from stream_vlm_ros.engine.inputs.picture_sizes import PictureLimit, smart_resize
from stream_vlm_ros.errors import (
    InvalidImageError,
    InvalidParameterError,
    ModelLoadError,
    real_number,
    whole_number,
)

BICUBIC = (3, "bicubic")  # as PIL numbers it in preprocessor files, and as torchvision names it


@dataclass(frozen=True)
class ImageSettings:
    """How pictures become patches: what ``preprocessor_config.json`` says.

    ``min_pixels`` and ``max_pixels`` bound height x width after resizing; a token of the language
    model covers a square of ``patch_size * merge_size`` pixels, ``temporal_patch_size`` frames
    deep.
    Raises InvalidParameterError for values outside their range.
    """

    patch_size: int = 14
    temporal_patch_size: int = 2
    merge_size: int = 2
    min_pixels: int = 56 * 56
    max_pixels: int = 28 * 28 * 1280
    image_mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    image_std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)
    rescale_factor: float = 1 / 255

    def __post_init__(self) -> None:
        for name in ("patch_size", "temporal_patch_size", "merge_size"):
            object.__setattr__(self, name, whole_number(name, getattr(self, name), least=1))
        for name, bound in zip(
            ("min_pixels", "max_pixels"),
            pixel_bounds(self.min_pixels, self.max_pixels),
            strict=True,
        ):
            object.__setattr__(self, name, bound)
        for name in ("image_mean", "image_std"):
            object.__setattr__(self, name, _three_floats(name, getattr(self, name)))
        if min(self.image_std) <= 0:
            raise InvalidParameterError(f"image_std must be above 0, not {self.image_std}")
        factor = real_number(self.rescale_factor)
        if factor is None or not 0 < factor < math.inf:
            raise InvalidParameterError(
                f"rescale_factor must be a number above 0, not {self.rescale_factor!r}"
            )
        object.__setattr__(self, "rescale_factor", factor)

    def at_most(self, max_pixels: int | None) -> int:
        """The smaller of ``max_pixels`` and the checkpoint's own bound; None and 0: its own.

        Raises InvalidParameterError for what is no whole number.
        """
        if max_pixels is None:
            return self.max_pixels
        return min(whole_number("max_pixels", max_pixels, 0) or self.max_pixels, self.max_pixels)

    @property
    def factor(self) -> int:
        """Pixels along a side of one language-model token; resized sides are multiples of it."""
        return self.patch_size * self.merge_size

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ImageSettings:
        """From the contents of a preprocessor file, old or new.

        Older files give ``min_pixels`` and ``max_pixels``; newer ones name the same numbers
        ``size: {shortest_edge, longest_edge}``. Where a file has both, the plain names win, as in
        the library. What is not given takes the library's default. Raises InvalidParameterError for
        a value outside its range and for a step this package does not do (no resizing, another
        filter).
        """
        known = {field.name for field in fields(cls)}
        given = {
            name: value for name, value in values.items() if name in known and value is not None
        }
        size = values.get("size") or {}
        if not isinstance(size, Mapping):
            raise InvalidParameterError(
                f"size must hold shortest_edge and longest_edge in pixels, not {size!r}"
            )
        for name, edge in (("min_pixels", "shortest_edge"), ("max_pixels", "longest_edge")):
            # some files nest the plain names in `size`
            in_size = size.get(name) if size.get(name) is not None else size.get(edge)
            if name not in given and in_size is not None:
                given[name] = in_size
        if values.get("do_resize") is False:
            raise InvalidParameterError("do_resize is false; frames from a camera must be resized")
        resample = values.get("resample", BICUBIC[0])
        if getattr(resample, "value", resample) not in (*BICUBIC, None):
            raise InvalidParameterError(f"resample is {resample!r}; only 3 (bicubic) is supported")
        if values.get("do_rescale") is False:
            given["rescale_factor"] = 1.0
        if values.get("do_normalize") is False:
            given["image_mean"], given["image_std"] = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
        return cls(**given)

    @classmethod
    def from_folder(cls, path: str | Path) -> ImageSettings:
        """From ``preprocessor_config.json`` in a checkpoint folder, or from the ``image_processor``
        part of ``processor_config.json``, where newer releases of the library write it.

        Raises ModelLoadError naming the file that is missing or unusable.
        """
        folder = Path(path)
        own, shared = folder / "preprocessor_config.json", folder / "processor_config.json"
        if own.is_file():
            file, values = own, read_json_object(own)
        elif shared.is_file() and "image_processor" in (values := read_json_object(shared)):
            file, values = shared, values["image_processor"]
        else:
            raise ModelLoadError(
                f"{folder} has no preprocessor_config.json (how pictures are resized and cut into "
                "patches); copy it from the release of the model"
            )
        if not isinstance(values, Mapping):
            raise ModelLoadError(f"{file}: image_processor must be an object, not {values!r}")
        try:
            return cls.from_dict(values)
        except InvalidParameterError as error:
            raise ModelLoadError(f"{file}: {error}") from error


@dataclass
class PatchGrid:
    """The patches of one chunk, in the order in which the vision tower reads them.

    ``pixel_values``: [t * h * w, channels * temporal_patch_size * patch_size ** 2], normalised.
    ``grid_thw``: temporal grids, rows and columns, in patches; rows and columns are multiples of
    the merge size.
    """

    pixel_values: torch.Tensor
    grid_thw: tuple[int, int, int]
    merge_size: int = 2

    @property
    def tokens(self) -> int:
        """Tokens of the language model that this chunk becomes."""
        t, h, w = self.grid_thw
        return t * h * w // self.merge_size**2


class FrameProcessor:
    """Turns the frames of one chunk into patches on the device.

    An image is one of
      - PIL image of any mode, converted by ``convert("RGB")`` (alpha is dropped, not blended; modes
        of more than 8 bits only if their values lie in 0..255, as PIL would clip them);
      - numpy uint8, height x width x 3 (RGB) or x 4 (alpha dropped) or x 1 or without a third
        dimension (grey); any strides, may be read-only;
      - torch uint8, or floating point in 0..1, on any device, laid out channels x height x width or
        height x width x channels with 1, 3 or 4 channels, or height x width. Where both ends could
        be the channels (a picture 1, 3 or 4 pixels wide), torch's own order is taken: channels
        first.

    An instance has no state that a call changes.
    """

    def __init__(
        self,
        settings: ImageSettings,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.settings = settings
        self.dtype = dtype
        self.device = torch.empty(0, device=device).device  # with its index: cuda -> cuda:0
        mean = torch.tensor(settings.image_mean, dtype=torch.float64)
        std = torch.tensor(settings.image_std, dtype=torch.float64)
        # (value * rescale - mean) / std in one multiplication and one addition
        self._scale = (settings.rescale_factor / std).float().to(self.device)[:, None]  # [3, 1]
        self._shift = (-mean / std).float().to(self.device)[:, None]  # [3, 1]

    def __call__(
        self,
        frames: Sequence[Any] | np.ndarray | torch.Tensor,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
    ) -> PatchGrid:
        """The patches of ``frames``, which must share one size; the size may change between calls.

        ``temporal_patch_size`` frames make one temporal grid; the last frame is repeated to fill
        the last grid. ``min_pixels`` and ``max_pixels`` replace those of the settings. A 4-d array
        or tensor counts as a sequence of frames. Raises InvalidImageError saying which frame is
        wrong and why, InvalidParameterError for pixel bounds that exclude each other.
        """
        bounds = self.pixel_bounds(min_pixels, max_pixels)
        pictures = _pictures(frames)
        height, width, _ = pictures[0].shape
        target = smart_resize(height, width, self.settings.factor, *bounds)
        pixels = _resize(self._upload(pictures), *target)  # [frames, 3, height, width] uint8
        return self._patches(pixels)

    def pixel_bounds(self, min_pixels: int | None, max_pixels: int | None) -> tuple[int, int]:
        """Both bounds, the settings' own for None; InvalidParameterError if they are unusable."""
        low = self.settings.min_pixels if min_pixels is None else min_pixels
        high = self.settings.max_pixels if max_pixels is None else max_pixels
        return pixel_bounds(low, high)

    def _upload(self, pictures: list[np.ndarray | torch.Tensor]) -> torch.Tensor:
        """One uint8 tensor [frames, 3, height, width], channels last in memory, on the device."""
        height, width, _ = pictures[0].shape
        here = [p for p in pictures if isinstance(p, torch.Tensor) and p.device == self.device]
        if len(here) == len(pictures):
            return torch.stack([p.expand(height, width, 3) for p in here]).permute(0, 3, 1, 2)
        # Gathered in pinned memory, copied to the device while the host goes on. PyTorch lends such
        # a buffer again only once the copy out of it has ended, so several can be on the way.
        pinned = self.device.type == "cuda"
        shape = (len(pictures), height, width, 3)
        host = torch.empty(shape, dtype=torch.uint8, pin_memory=pinned)
        rows = host.numpy()
        for row, picture in zip(rows, pictures, strict=True):
            np.copyto(row, picture.cpu().numpy() if isinstance(picture, torch.Tensor) else picture)
        return host.to(self.device, non_blocking=pinned).permute(0, 3, 1, 2)

    def _patches(self, pixels: torch.Tensor) -> PatchGrid:
        patch, depth, merge = (
            self.settings.patch_size,
            self.settings.temporal_patch_size,
            self.settings.merge_size,
        )
        missing = -len(pixels) % depth
        if missing:
            pixels = torch.cat([pixels, pixels[-1:].expand(missing, -1, -1, -1)])
        t, h, w = len(pixels) // depth, pixels.shape[2] // patch, pixels.shape[3] // patch
        blocks = pixels.reshape(
            t, depth, 3, h // merge, merge, patch, w // merge, merge, patch
        ).permute(0, 3, 6, 4, 7, 2, 1, 5, 8)  # [t, h/m, w/m, m, m, 3, depth, patch, patch]
        # cut while a value is one byte, then compute on contiguous memory
        values = blocks.reshape(t * h * w, 3, depth * patch * patch).float()
        values = values.mul_(self._scale).add_(self._shift)
        return PatchGrid(values.flatten(1).to(self.dtype), (t, h, w), merge)


def pixel_bounds(min_pixels: int, max_pixels: int) -> tuple[int, int]:
    """Both as ints; raises InvalidParameterError unless 1 <= min_pixels <= max_pixels."""
    low = whole_number("min_pixels", min_pixels, least=1)
    high = whole_number("max_pixels", max_pixels, least=1)
    if low > high:
        raise InvalidParameterError(f"min_pixels ({low}) must not be above max_pixels ({high})")
    return low, high


def read_json_object(file: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises ModelLoadError naming the file where there is none."""
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:  # the last: nested too deep
        raise ModelLoadError(f"{file} cannot be read as JSON: {error}") from error
    if not isinstance(values, dict):
        raise ModelLoadError(f"{file} must hold a JSON object, not {type(values).__name__}")
    return values


def _resize(pixels: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Bicubic with antialias as PIL does it: [n, 3, h, w] uint8 -> [n, 3, height, width] uint8.

    Rows, rounded and clipped to bytes, then columns: so did PIL when the models were trained. From
    Pillow 13 on it takes columns first where the height shrinks more than the width.
    """
    if pixels.shape[2:] == (height, width):
        return pixels
    if pixels.device.type == "cpu":  # has integer kernels, made after PIL's
        return functional.interpolate(pixels, (height, width), mode="bicubic", antialias=True)
    return resize_in_floats(pixels, height, width)  # all that other devices have


def resize_in_floats(pixels: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Resize uint8 ``[n, 3, h, w]`` as PIL does it, on a device that has no integer kernels."""
    # Two passes: what overshoots at a sharp edge is clipped between them, as in integers.
    for size in ((pixels.shape[2], width), (height, width)):
        if pixels.shape[2:] != size:
            resized = functional.interpolate(pixels.float(), size, mode="bicubic", antialias=True)
            pixels = resized.add_(0.5).clamp_(0, 255.5).to(torch.uint8)  # truncates: round half up
    return pixels


def reduced(picture: np.ndarray, factor: int, min_pixels: int, max_pixels: int) -> np.ndarray:
    """A picture, uint8 [height, width, 3], as `FrameProcessor` resizes it on a host, if it is of
    more than ``max_pixels``. Raises InvalidImageError for one that the model cannot use."""
    height, width = picture.shape[:2]
    if height * width <= max_pixels:
        return picture
    rows, columns = smart_resize(height, width, factor, min_pixels, max(min_pixels, max_pixels))
    pixels = torch.from_numpy(picture)[None].permute(0, 3, 1, 2)
    return _resize(pixels, rows, columns)[0].permute(1, 2, 0).contiguous().numpy()


def to_arrays(frames: Any) -> list[np.ndarray]:
    """The frames of one chunk, of any kind that `FrameProcessor` takes, as plain arrays.

    Each is height x width x 3, uint8, RGB, on the host; all share one size. An array that is so
    already is given back as it is, not copied. Raises InvalidImageError saying which is wrong.
    """
    arrays = []
    for picture in _pictures(frames):
        array = picture.cpu().numpy() if isinstance(picture, torch.Tensor) else picture
        arrays.append(np.broadcast_to(array, (*array.shape[:2], 3)))
    return arrays


def _pictures(frames: Any) -> list[np.ndarray | torch.Tensor]:
    """Checked frames as height x width x (1 or 3) uint8, all of one height and width."""
    if isinstance(frames, (np.ndarray, torch.Tensor)):
        if frames.ndim != 4:
            raise InvalidImageError(
                f"a chunk is a list of images, or one array of 4 dimensions; this one has shape "
                f"{_shape(frames)}. A single image goes into a list"
            )
    elif isinstance(frames, (Image.Image, str, bytes, Path, Mapping)) or not isinstance(
        frames, Sequence
    ):
        raise InvalidImageError(
            f"a chunk is a list of images, not {type(frames).__name__}. "
            "A single image goes into a list"
        )
    if len(frames) == 0:
        raise InvalidImageError("a chunk needs at least one image; the list is empty")
    pictures = []
    for number, frame in enumerate(frames, start=1):
        try:
            pictures.append(_picture(frame))
        except InvalidImageError as error:
            where = f"image {number} of {len(frames)}: " if len(frames) > 1 else ""
            raise InvalidImageError(f"{where}{error}") from error
    sizes = list(dict.fromkeys(f"{p.shape[1]}x{p.shape[0]}" for p in pictures))
    if len(sizes) > 1:
        raise InvalidImageError(
            f"the images of one chunk differ in size ({', '.join(sizes)}); they must share one. "
            "Between chunks the size may change"
        )
    return pictures


def _picture(frame: Any) -> np.ndarray | torch.Tensor:
    """One frame as height x width x (1 or 3) uint8; a view where that is possible."""
    if isinstance(frame, Image.Image):
        picture: np.ndarray | torch.Tensor = _from_pil(frame)
    elif isinstance(frame, np.ndarray):
        picture = _from_numpy(frame)
    elif isinstance(frame, torch.Tensor):
        picture = _from_torch(frame)
    elif isinstance(frame, (str, bytes, Path)):
        raise InvalidImageError(
            f"an image was expected, not {type(frame).__name__} (a path or encoded data?); "
            "open it first, for example with PIL.Image.open"
        )
    else:
        raise InvalidImageError(
            "an image must be a PIL image, a numpy array or a torch tensor, "
            f"not {type(frame).__name__}"
        )
    return picture[..., :3]


def _from_pil(image: Image.Image) -> np.ndarray:
    if 0 in image.size:
        raise InvalidImageError(f"the image is empty: {image.width}x{image.height} pixels")
    if getattr(image, "tile", None):  # opened, and not decoded yet
        PictureLimit().check(*image.size, "the image (load() takes it in nevertheless)")
    try:
        if image.mode in ("I", "F") or image.mode.startswith("I;16"):
            _check_fits_bytes(image.mode, np.asarray(image))
        return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
    except InvalidImageError:
        raise
    except Exception as error:  # PIL decodes here, not at open, and its decoders raise what they do
        raise InvalidImageError(f"the image cannot be decoded: {error}") from error


def _check_fits_bytes(mode: str, values: np.ndarray) -> None:
    low, high = values.min(), values.max()
    if not (low >= 0 and high <= 255):  # also where they are NaN
        raise InvalidImageError(
            f"the PIL image of mode {mode} holds values from {low:g} to {high:g}, and a conversion "
            "to RGB would clip them to 0..255; scale it to 0..255 first"
        )


def _from_numpy(image: np.ndarray) -> np.ndarray:
    if image.size == 0:
        raise InvalidImageError(f"the image is empty: shape {image.shape}")
    if image.dtype != np.uint8:
        raise InvalidImageError(
            f"a numpy image must be uint8 (0..255), not {image.dtype}; scale and convert it first"
        )
    if image.ndim == 2:
        return image[..., None]
    if image.ndim != 3 or image.shape[2] not in (1, 3, 4):
        hint = ""
        if image.ndim == 3 and image.shape[0] in (1, 3, 4):
            hint = "; this one looks channels first: use image.transpose(1, 2, 0)"
        raise InvalidImageError(
            "a numpy image must be height x width x 3 (RGB), x 4, x 1 or height x width, "
            f"not of shape {image.shape}{hint}"
        )
    return image


def _from_torch(image: torch.Tensor) -> torch.Tensor:
    if image.numel() == 0:
        raise InvalidImageError(f"the image is empty: shape {_shape(image)}")
    if image.ndim == 2:
        image = image[..., None]
    elif image.ndim == 3 and image.shape[0] in (1, 3, 4):
        image = image.permute(1, 2, 0)
    elif image.ndim != 3 or image.shape[2] not in (1, 3, 4):
        raise InvalidImageError(
            "a torch image must have 1, 3 or 4 channels, first or last, or be height x width, "
            f"not of shape {_shape(image)}"
        )
    if image.dtype == torch.uint8:
        return image
    if not image.is_floating_point():
        raise InvalidImageError(
            f"a torch image must be uint8 (0..255) or floating point in 0..1, not {image.dtype}"
        )
    low, high = (float(bound) for bound in torch.aminmax(image.detach()))
    if not (math.isfinite(low) and math.isfinite(high)):
        raise InvalidImageError("the image holds values that are not finite (NaN or infinity)")
    if low < 0 or high > 1:
        raise InvalidImageError(
            f"a floating point image must lie in 0..1; this one runs from {low:g} to {high:g}. "
            "Clamp what overshoots a little; values of 0..255 go in as uint8"
        )
    return image.detach().float().mul(255).round().to(torch.uint8)


def _shape(array: np.ndarray | torch.Tensor) -> tuple[int, ...]:
    return tuple(int(length) for length in array.shape)


def _is_number(value: Any) -> bool:
    number = real_number(value)
    return number is not None and math.isfinite(number)


def _three_floats(name: str, value: Any) -> tuple[float, float, float]:
    values = [value] * 3 if _is_number(value) else value
    if (
        not isinstance(values, (list, tuple))
        or len(values) != 3
        or not all(_is_number(number) for number in values)
    ):
        raise InvalidParameterError(f"{name} must be three numbers (R, G, B), not {value!r}")
    return (float(values[0]), float(values[1]), float(values[2]))

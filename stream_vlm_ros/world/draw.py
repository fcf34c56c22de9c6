# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""How the drawn world looks: one definition, painted by numpy for a camera or torch for many.

The formulas below take the array library as their first argument, so that `Painter` (numpy: touches
only the pixels that change) and `draw_batch` (torch: every pixel of many frames at once, for
training) draw the same picture up to rounding. Lengths inside a shape are in units of its radius,
y points down.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from stream_vlm_ros.world.world import (
    COLOURS,
    KINDS,
    MAX_SWAY,
    SIGN_DIGITS,
    SIGN_LETTERS,
    Backdrop,
    Sighting,
)

if TYPE_CHECKING:
    import torch

PLATE, INK = (238, 238, 222), (28, 28, 34)
DARKEST, BRIGHTEST = 8.0, 247.0  # leaves room for noise, so that it never wraps around
MAX_NOISE = 8
SHADE, RIM, RIM_WIDTH = 0.12, 0.6, 0.1
REACH = 1.25  # no shape reaches further from its centre than this many radii
GLYPHS = {
    "A": "01110 10001 10001 11111 10001 10001 10001",
    "C": "01111 10000 10000 10000 10000 10000 01111",
    "E": "11111 10000 10000 11110 10000 10000 11111",
    "F": "11111 10000 10000 11110 10000 10000 10000",
    "H": "10001 10001 10001 11111 10001 10001 10001",
    "K": "10001 10010 10100 11000 10100 10010 10001",
    "L": "10000 10000 10000 10000 10000 10000 11111",
    "P": "11110 10001 10001 11110 10000 10000 10000",
    "T": "11111 00100 00100 00100 00100 00100 00100",
    "U": "10001 10001 10001 10001 10001 10001 01110",
    "X": "10001 01010 00100 00100 00100 01010 10001",
    "Z": "11111 00001 00010 00100 01000 10000 11111",
    "0": "01110 10001 10011 10101 11001 10001 01110",
    "1": "00100 01100 00100 00100 00100 00100 01110",
    "2": "01110 10001 00001 00110 01000 10000 11111",
    "3": "11110 00001 00001 01110 00001 00001 11110",
    "4": "00010 00110 01010 10010 11111 00010 00010",
    "5": "11111 10000 11110 00001 00001 10001 01110",
    "6": "01110 10000 10000 11110 10001 10001 01110",
    "7": "11111 00001 00010 00100 01000 01000 01000",
    "8": "01110 10001 10001 01110 10001 10001 01110",
    "9": "01110 10001 10001 01111 00001 00001 01110",
}
SYMBOLS = SIGN_LETTERS + SIGN_DIGITS


def glyph_atlas() -> np.ndarray:
    """The glyphs of `SYMBOLS` with a cell of margin around each: float32 0 or 1, [22, 9, 7]."""
    atlas = np.zeros((len(SYMBOLS), 9, 7), np.float32)
    for index, symbol in enumerate(SYMBOLS):
        rows = GLYPHS[symbol].split()
        atlas[index, 1:8, 1:6] = [[int(cell) for cell in row] for row in rows]
    return atlas


# Of numpy or of torch, whose module is handed over as `xp`: the pictures of both are the same.
Array = Any


def _circle(xp: Any, x: Array, y: Array) -> Array:
    return xp.sqrt(x * x + y * y) - 0.92


def _square(xp: Any, x: Array, y: Array) -> Array:
    return xp.maximum(xp.abs(x), xp.abs(y)) - 0.8


def _triangle(xp: Any, x: Array, y: Array) -> Array:
    return xp.maximum(y, 0.8660254 * xp.abs(x) - 0.5 * y) - 0.5


def _star(xp: Any, x: Array, y: Array) -> Array:
    # Five-fold symmetry by three reflections, then the distance to one edge.
    kx, ky = 0.809016994, -0.587785252
    x, y = xp.abs(x), -y
    fold = 2 * xp.clip(kx * x + ky * y, 0.0, None)
    x, y = x - fold * kx, y - fold * ky
    fold = 2 * xp.clip(-kx * x + ky * y, 0.0, None)
    x, y = xp.abs(x + fold * kx), y - fold * ky - 1.0
    edge_x, edge_y = -0.45 * ky, 0.45 * kx - 1.0
    return (y * edge_x - x * edge_y) / math.hypot(edge_x, edge_y)


def _cross(xp: Any, x: Array, y: Array) -> Array:
    x, y = xp.abs(x), xp.abs(y)
    return xp.minimum(xp.maximum(x - 0.92, y - 0.3), xp.maximum(x - 0.3, y - 0.92))


def _ring(xp: Any, x: Array, y: Array) -> Array:
    return xp.abs(xp.sqrt(x * x + y * y) - 0.7) - 0.22


DISTANCES = dict(
    circle=_circle, square=_square, triangle=_triangle, star=_star, cross=_cross, ring=_ring
)


def _plate(xp: Any, x: Array, y: Array) -> Array:
    return xp.maximum(xp.abs(x) - 1.0, xp.abs(y) - 0.64)


def _ink(
    xp: Any, atlas: Array, glyph: Array, x: Array, y: Array, left: Array, pixel: Array
) -> Array:
    """How much of a pixel the glyph covers whose left edge is at `left`: the bitmap, smoothed."""
    cell = 0.84 / 7
    u = xp.clip((x - left) / cell + 0.5, 0.0, 5.999)  # 0.5: margin of one cell less half a cell
    v = xp.clip((y + 0.42) / cell + 0.5, 0.0, 7.999)
    column, row = xp.floor(u), xp.floor(v)
    fu, fv = u - column, v - row
    index = np.int64 if xp is np else xp.int64
    column, row = (a.astype(index) if xp is np else a.to(index) for a in (column, row))
    top = atlas[glyph, row, column] * (1 - fu) + atlas[glyph, row, column + 1] * fu
    low = atlas[glyph, row + 1, column] * (1 - fu) + atlas[glyph, row + 1, column + 1] * fu
    smooth = top * (1 - fv) + low * fv
    return xp.clip((smooth - 0.5) * (0.5 * cell / pixel + 1.0) + 0.5, 0.0, 1.0)


def _cover(xp: Any, distance: Array, pixel: Array) -> Array:
    return xp.clip(0.5 - distance / pixel, 0.0, 1.0)


def _texture(
    xp: Any, x: Array, y: Array, waves: Array, horizon: Array, floor: Array
) -> tuple[Array, Array]:
    """Brightness added by the texture, and the floor's darkening, at fractions x and y."""
    total = 0.0
    for across, along, phase, strength in waves:
        total = total + strength * xp.sin(6.2832 * (across * x + along * y) + phase)
    return total, 1.0 - (1.0 - floor) * xp.clip((y - horizon) * 40.0, 0.0, 1.0)


class Painter:
    """Draws one world at one size, fast enough for a camera on one core.

    The backdrop is drawn once, larger than the picture, and cut out where the camera looks; the
    shapes touch only the pixels around them; noise comes from a tile drawn once and shifted.
    """

    def __init__(self, backdrop: Backdrop, width: int, height: int, seed: int = 0) -> None:
        self.size = (width, height)
        self.backdrop = backdrop
        self._margin = (math.ceil(MAX_SWAY * width), math.ceil(MAX_SWAY * height))
        mx, my = self._margin
        x = ((np.arange(-mx, width + mx) + 0.5) / width).astype(np.float32)[None]
        y = ((np.arange(-my, height + my) + 0.5) / height).astype(np.float32)[:, None]
        waves, floor = _texture(np, x, y, backdrop.waves, backdrop.horizon, backdrop.floor)
        side = (x - 0.5) * 2 * backdrop.tint
        lit = [
            (b + waves + side * k) * floor
            for b, k in zip(backdrop.base, (1.0, 0.1, -1.0), strict=True)
        ]
        self._room = np.stack(lit, -1)  # [height + 2 my, width + 2 mx, 3]
        self._lit: dict[float, np.ndarray] = {}
        self._atlas = glyph_atlas()
        noise = np.random.default_rng(abs(seed)).normal(0, max(backdrop.noise, 1e-6), (1 << 20,))
        noise = noise.round().clip(-MAX_NOISE, MAX_NOISE).astype(np.int8)
        self._noise = np.concatenate([noise] * (2 + width * height * 3 // noise.size))

    def paint(self, t: float, sightings: list[Sighting], noise: bool = True) -> np.ndarray:
        """The picture at time t with the things visible then: uint8 RGB, [height, width, 3]."""
        width, height = self.size
        gain = self.backdrop.gain(t)
        if gain not in self._lit:
            room = np.clip(self._room * gain, DARKEST, BRIGHTEST)
            self._lit[gain] = np.rint(room).astype(np.uint8)
        dx, dy = self.backdrop.offset(t)
        left = self._margin[0] + round(dx * width)
        top = self._margin[1] + round(dy * height)
        picture = self._lit[gain][top : top + height, left : left + width].copy()
        for sighting in sightings:
            self._paint_thing(picture, sighting, sighting.position(t), gain)
        if noise and self.backdrop.noise:
            start = (int(t * 1000) * 7919) % (1 << 20)
            tile = self._noise[start : start + picture.size].view(np.uint8)
            picture += tile.reshape(picture.shape)  # modulo 256: a sum with a signed number
        return picture

    def _paint_thing(
        self, picture: Array, sighting: Sighting, position: tuple[float, float], gain: float
    ) -> None:
        width, height = self.size
        shorter = min(width, height)
        x, y = position[0] * width, position[1] * height
        reach = REACH * sighting.radius * shorter
        left, right = max(0, math.floor(x - reach)), min(width, math.ceil(x + reach))
        top, bottom = max(0, math.floor(y - reach)), min(height, math.ceil(y + reach))
        if left >= right or top >= bottom:
            return
        scale = 1.0 / (sighting.radius * shorter)
        u = ((np.arange(left, right) + 0.5 - x) * scale).astype(np.float32)[None]
        v = ((np.arange(top, bottom) + 0.5 - y) * scale).astype(np.float32)[:, None]
        part = picture[top:bottom, left:right]
        under = part.astype(np.float32)
        if sighting.thing.is_sign:
            u, v = np.broadcast_arrays(u, v)
            plate = _plate(np, u, v)
            ink = 1.0 - _cover(np, plate + RIM_WIDTH * 0.7, scale)
            glyphs = [SYMBOLS.index(symbol) for symbol in sighting.thing.text]
            for glyph, edge in zip(glyphs, (-0.72, 0.12), strict=True):
                ink = np.maximum(ink, _ink(np, self._atlas, glyph, u, v, edge, scale))
            ink = ink[..., None]
            paper, black = (np.array(rgb, np.float32) * gain for rgb in (PLATE, INK))
            colour = paper + ink * (black - paper)
            cover = _cover(np, plate, scale)
        else:
            cos, sin = math.cos(sighting.angle), math.sin(sighting.angle)
            p, q = cos * u + sin * v, cos * v - sin * u
            distance = DISTANCES[sighting.thing.kind](np, p, q)
            inner = _cover(np, distance + RIM_WIDTH, scale)
            shade = gain * (1.0 - SHADE * v) * (RIM + (1 - RIM) * inner)
            colour = shade[..., None] * np.array(COLOURS[sighting.thing.colour], np.float32)
            cover = _cover(np, distance, scale)
        colour = np.clip(colour, DARKEST, BRIGHTEST)
        part[:] = np.rint(under + cover[..., None] * (colour - under)).astype(np.uint8)


def backdrop_row(backdrop: Backdrop, t: float, width: int, height: int) -> list[float]:
    """What `draw_batch` needs to know of a backdrop at time t in a picture of that size."""
    dx, dy = backdrop.offset(t)
    flat = [value for wave in backdrop.waves for value in wave]
    moved = [round(dx * width) / width, round(dy * height) / height]
    scene = [backdrop.tint, backdrop.horizon, backdrop.floor, backdrop.gain(t)]
    return [*backdrop.base, *scene, *moved, *flat]


def thing_rows(sightings: list[Sighting], t: float) -> tuple[list, list]:
    """What `draw_batch` needs to know of the things visible at time t.

    Returns two shapes as (kind or -1, r, g, b, x, y, radius, angle) and one sign as (there or 0,
    x, y, radius, first glyph, second glyph).
    """
    shapes, sign = [], [0.0] * 6
    for sighting in sightings:
        x, y = sighting.position(t)
        if sighting.thing.is_sign:
            glyphs = [float(SYMBOLS.index(symbol)) for symbol in sighting.thing.text]
            sign = [1.0, x, y, sighting.radius, *glyphs]
        else:
            kind = float(KINDS.index(sighting.thing.kind))
            colour = COLOURS[sighting.thing.colour]
            shapes.append([kind, *map(float, colour), x, y, sighting.radius, sighting.angle])
    shapes += [[-1.0] + [0.0] * 5 + [1.0, 0.0]] * (2 - len(shapes))
    return shapes, sign


def _draw_room(rows: Array, x: Array, y: Array) -> Array:
    import torch

    base = rows[:, :3, None, None]
    tint, horizon, floor, gain, dx, dy = (rows[:, i, None, None, None] for i in range(3, 9))
    waves = [[rows[:, i + k, None, None, None] for k in range(4)] for i in range(9, 25, 4)]
    waves, floor = _texture(torch, x + dx, y + dy, waves, horizon, floor)
    side = (x + dx - 0.5) * 2 * tint
    # The light's tint on red, green and blue: 1, 0.1, -1.
    channel = (x.new_ones(3).cumsum(0) - 1).view(1, 3, 1, 1)
    tinted = 1.0 - 0.8 * channel - 0.1 * channel * channel
    return ((base + waves + side * tinted) * floor * gain).clip(DARKEST, BRIGHTEST)


def _draw_shape(
    under: Array,
    rows: Array,
    gain: Array,
    x: Array,
    y: Array,
    wide: Array,
    high: Array,
    pixel: Array,
) -> Array:
    import torch

    kind, cx, cy, radius, angle = (rows[:, i, None, None, None] for i in (0, 4, 5, 6, 7))
    u, v = (x - cx) * wide / radius, (y - cy) * high / radius
    cos, sin = torch.cos(angle), torch.sin(angle)
    p, q = cos * u + sin * v, cos * v - sin * u
    distance = torch.full_like(p, 9.0)
    for index, name in enumerate(KINDS):
        distance = torch.where(kind == index, DISTANCES[name](torch, p, q), distance)
    scale = pixel / radius
    inner = _cover(torch, distance + RIM_WIDTH, scale)
    shade = gain * (1.0 - SHADE * v) * (RIM + (1 - RIM) * inner)
    colour = (shade * rows[:, 1:4, None, None]).clip(DARKEST, BRIGHTEST)
    return under + _cover(torch, distance, scale) * (colour - under)


def _draw_sign(
    under: Array,
    rows: Array,
    gain: Array,
    atlas: Array,
    paper: Array,
    black: Array,
    x: Array,
    y: Array,
    wide: Array,
    high: Array,
    pixel: Array,
) -> Array:
    import torch

    there, cx, cy, radius = (rows[:, i, None, None, None] for i in range(4))
    radius = radius.clip(0.01, None)
    u, v = (x - cx) * wide / radius + 0 * y, (y - cy) * high / radius + 0 * x
    scale = pixel / radius
    plate = _plate(torch, u, v)
    ink = 1.0 - _cover(torch, plate + RIM_WIDTH * 0.7, scale)
    for index, edge in ((4, -0.72), (5, 0.12)):
        glyph = rows[:, index, None, None, None].long()
        ink = torch.maximum(ink, _ink(torch, atlas, glyph, u, v, edge, scale))
    colour = (gain * (paper + ink * (black - paper))).clip(DARKEST, BRIGHTEST)
    return under + _cover(torch, plate, scale) * there * (colour - under)


STAGES: tuple[Callable[..., Any], ...] = (_draw_room, _draw_shape, _draw_sign)


def draw_batch(
    backdrops: torch.Tensor,
    shapes: torch.Tensor,
    signs: torch.Tensor,
    atlas: torch.Tensor,
    width: int,
    height: int,
    aspect: float,
    blur: float = 1.0,
    stages: Sequence[Callable[..., torch.Tensor]] = STAGES,
) -> torch.Tensor:
    """Many frames at once, in torch, on the device of its arguments, without noise.

    Args:
        backdrops: float [n, 25], rows of `backdrop_row`.
        shapes: float [n, 2, 8] and
        signs: float [n, 6], from `thing_rows`.
        atlas: `glyph_atlas()` as a tensor.
        width, height: pixels of the picture drawn; they need not have the aspect's proportion.
        aspect: width over height of the camera, so that circles stay round on its picture.
        blur: width of an edge in pixels.
        stages: the functions of `STAGES`, perhaps compiled; they take nothing but tensors.

    Returns:
        Float tensor [n, 3, height, width], 0 to 255.
    """
    import torch

    device = backdrops.device
    room, shape, sign = stages
    x = ((torch.arange(width, device=device) + 0.5) / width).view(1, 1, 1, -1)
    y = ((torch.arange(height, device=device) + 0.5) / height).view(1, 1, -1, 1)
    wide, high = max(aspect, 1.0), max(1.0 / aspect, 1.0)
    pixel = blur * math.sqrt(wide / width * high / height)
    scales = torch.tensor([wide, high, pixel], device=device).unbind(0)
    gain = backdrops[:, 6, None, None, None]
    picture = room(backdrops, x, y)
    for row in shapes.unbind(1):
        picture = shape(picture, row, gain, x, y, *scales)
    inks = (
        torch.tensor(c, dtype=torch.float32, device=device).view(1, 3, 1, 1) for c in (PLATE, INK)
    )
    return sign(picture, signs, gain, atlas, *inks, x, y, *scales)

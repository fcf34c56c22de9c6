# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Words on a picture, for people who watch."""

from __future__ import annotations

import importlib.util
import math
import textwrap
from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from stream_vlm_ros.console import one_line, plural

NARROWEST = 320  # pixels: smaller pictures are enlarged, for words to be read
LARGEST = 1 << 22  # pixels of an enlarged picture: a narrow one may be as long as it likes
LINES = 3  # of one text; the rest is cut off
LONGEST = 1000  # characters that are looked at
DEJAVU = "mpl-data/fonts/ttf/DejaVuSans.ttf"  # in matplotlib
BACKGROUND, FOREGROUND = (16, 16, 24, 176), (240, 240, 240, 255)


def captioned(image: np.ndarray, above: Sequence[str], below: Sequence[str]) -> np.ndarray:
    """A copy of ``image`` (uint8, [height, width, 3]) with texts along its edges, each on lines of
    its own."""
    picture = Image.fromarray(image)
    if picture.width < NARROWEST:
        room = math.isqrt(LARGEST // (picture.width * picture.height))
        factor = max(1, min(-(-NARROWEST // picture.width), room))
        picture = picture.resize(
            (picture.width * factor, picture.height * factor), Image.Resampling.NEAREST
        )
    above, below = ([one_line(one, LONGEST) for one in texts] for texts in (above, below))
    path = font_file("".join(sorted({*"".join([*above, *below])})))
    font = _font(path, max(12, min(picture.size) // 26))
    draw = ImageDraw.Draw(picture, "RGBA")
    for texts, at_top in ((above, True), (below, False)):
        text = "\n".join(line for one in texts for line in _lines(one, path, font, picture.width))
        if text:
            _strip(draw, text, font, picture.size, at_top)
    return np.asarray(picture)


def _strip(
    draw: ImageDraw.ImageDraw, text: str, font: Any, size: tuple[int, int], at_top: bool
) -> None:
    width, height = size
    margin = font.size // 2
    tall = round(draw.multiline_textbbox((0, 0), text, font=font)[3]) + 2 * margin
    top = 0 if at_top else height - tall
    draw.rectangle((0, top, width, top + tall), fill=BACKGROUND)
    draw.multiline_text((margin, top + margin), text, font=font, fill=FOREGROUND)


def _lines(text: str, path: str, font: Any, width: int) -> list[str]:
    """``text`` broken to lines that fit, the last with an ellipsis where it is cut."""
    text = _with_signs(text, path)
    wide = max(font.getlength("n"), font.getlength(text) / max(1, len(text)))
    columns = max(8, int((width - font.size) / wide))
    return textwrap.wrap(text, columns, max_lines=LINES, placeholder=" …")


def _with_signs(text: str, path: str) -> str:
    """``text`` with words in place of what the font of ``path`` cannot show."""
    known = _characters(path)
    runs = ((shown, len([*run])) for shown, run in groupby(text, lambda c: ord(c) in known))
    parts, at = [], 0
    for shown, length in runs:
        lacking = f"[{plural(length, 'character')} without a font]"
        parts.append(text[at : at + length] if shown else lacking)
        at += length
    return "".join(parts)


@lru_cache(maxsize=64)
def font_file(characters: str) -> str:
    """Of the fonts on this machine, one that shows all ``characters``; else DejaVu, which
    matplotlib brings and which knows more scripts than Pillow's own. "": Pillow's own."""
    found = importlib.util.find_spec("matplotlib")
    if found is None:
        return ""
    usual = str(Path((found.submodule_search_locations or [""])[0]) / DEJAVU)
    wanted = {ord(c) for c in characters}
    if not wanted <= _characters(usual):
        from matplotlib.font_manager import fontManager

        # The fonts called so have one picture for all characters of a script.
        fonts = (one for one in fontManager.ttflist if not one.name.startswith("Last Resort"))
        for path in sorted({one.fname for one in fonts}):
            with suppress(OSError, RuntimeError):  # of another size alone, or gone
                _font(path, 12)
                if wanted <= _characters(path):
                    return path
    return usual


@lru_cache(maxsize=256)
def _characters(path: str) -> frozenset[int]:
    """Those that the font of a file shows."""
    if not path:
        return frozenset(range(32, 127))
    from matplotlib.ft2font import FT2Font

    return frozenset(FT2Font(path).get_charmap())


@lru_cache(maxsize=8)
def _font(path: str, size: int) -> Any:
    return ImageFont.truetype(path, size) if path else ImageFont.load_default(size)

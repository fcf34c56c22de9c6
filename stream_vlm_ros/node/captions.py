# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Words on a picture, for people who watch."""

from __future__ import annotations

import importlib.util
import math
import textwrap
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from stream_vlm_ros.console import one_line

NARROWEST = 320  # pixels: smaller pictures are enlarged, for words to be read
LARGEST = 1 << 22  # pixels of an enlarged picture: a narrow one may be as long as it likes
LINES = 3  # of one text; the rest is cut off
LONGEST = 1000  # characters that are looked at
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
    font = _font(max(12, min(picture.size) // 26))
    draw = ImageDraw.Draw(picture, "RGBA")
    for texts, at_top in ((above, True), (below, False)):
        text = "\n".join(line for one in texts for line in _lines(one, font, picture.width))
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


def _lines(text: str, font: Any, width: int) -> list[str]:
    """``text`` broken to lines that fit, the last with an ellipsis where it is cut."""
    columns = max(8, int((width - font.size) / font.getlength("n")))
    return textwrap.wrap(one_line(text, LONGEST), columns, max_lines=LINES, placeholder=" …")


@lru_cache(maxsize=8)
def _font(size: int) -> Any:
    """DejaVu, which matplotlib brings and which knows more scripts than Pillow's own."""
    found = importlib.util.find_spec("matplotlib")
    for folder in (found.submodule_search_locations or []) if found else []:
        path = Path(folder) / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf"
        if path.is_file():
            return ImageFont.truetype(str(path), size)
    return ImageFont.load_default(size)

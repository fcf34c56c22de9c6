# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""What people read in a terminal: figures, texts, and the terminal itself."""

from __future__ import annotations

import io
import math
import re
import sys
from datetime import datetime

from rich.console import Console
from rich.text import Text

WIDTH_OF_FILES = 110  # columns when the output is no terminal
CLOCK = 1e8  # s: later stamps are told as dates; no recording that begins at 0 lasts three years


def bytes_text(count: int) -> str:
    """Bytes in a unit that reads well, in powers of 1000: ``1.3 MB``."""
    value, units = float(count), ["B", "kB", "MB", "GB", "TB"]
    while value >= 999.95 and len(units) > 1:
        value, units = value / 1000, units[1:]
    return f"{value:.0f} {units[0]}" if units[0] == "B" else f"{value:.1f} {units[0]}"


def duration_text(seconds: float) -> str:
    """Seconds as people say them: ``4.5 s``, ``42 s``, ``1 min 23 s``, ``2 h 05 min``."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def time_text(seconds: float) -> str:
    """A stamp for people: a date and time of this machine's zone, or seconds."""
    if seconds < CLOCK:
        return f"{seconds:.1f} s"
    return datetime.fromtimestamp(seconds).isoformat(" ", "milliseconds")[:-2]


def span_text(first: float, last: float) -> str:
    """A stretch of time for people, rounded outwards: what it says holds all of it, so that who
    forgets it forgets it whole. The date once if it is one day."""
    begin = time_text(math.floor(round(10 * first, 6)) / 10)
    end = time_text(math.ceil(round(10 * last, 6)) / 10)
    day = begin.partition(" ")[0]
    same = first >= CLOCK and end.startswith(f"{day} ")
    return f"{begin} to {end.removeprefix(f'{day} ') if same else end}"


def plural(count: int, noun: str, several: str = "") -> str:
    """``1 chunk``, ``2,000 chunks``. ``several``: where it is not the noun with an s."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {several or noun + 's'}"


def print_anything() -> None:
    """Let stdout and stderr take every text: what their encoding lacks is written as an escape."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def visible(text: str) -> str:
    """``text`` with a dot for what is no text: control characters, half a surrogate pair, and what
    would turn the order of the characters around it."""
    return "".join("·" if _invisible(c) else c for c in text)


def _invisible(c: str) -> bool:
    code = ord(c)
    return (
        (code < 32 and c not in "\n\t")
        or 0x7F <= code < 0xA0
        or 0x202A <= code <= 0x202E
        or 0x2066 <= code <= 0x2069
        or 0xD800 <= code <= 0xDFFF
        or code & 0xFFFE == 0xFFFE
    )


def printable(text: str) -> str:
    """``text`` with a dot for every character that steers a terminal or cannot be shown."""
    return "".join(c if (c.isprintable() and c != "\ufffd") or c in "\n\t" else "·" for c in text)


_INSIDE = re.compile(r"[\\`*\[\]|~#$]|(?<![^\W_])_|_(?![^\W_])")
_AT_START = re.compile(r"(?:[-+=:]|\d{1,9}[.)])(?=[-+=:\s]|$)")


def markdown(text: str) -> str:
    """``text`` as one line of Markdown that shows it as it is: nothing in it is markup."""
    text = " ".join(visible(text).split())
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    text = _INSIDE.sub(lambda found: "\\" + found[0], text)
    if start := _AT_START.match(text):
        text = f"{text[: start.end() - 1]}\\{text[start.end() - 1 :]}"
    # What some renderers make links of by themselves, and mentions.
    return text.replace("://", "&#58;//").replace("www.", "www&#46;").replace("@", "&#64;")


def one_line(text: str, longest: int = 280) -> str:
    """``text`` fit for one line of a terminal, cut at ``longest`` characters."""
    clean = " ".join(printable(text).split())
    return clean if len(clean) <= longest else clean[: longest - 1] + "…"


def say(console: Console, text: Text) -> None:
    """Print it: on a terminal lines break between words, elsewhere they stay whole."""
    console.print(text, soft_wrap=not console.is_terminal)


def say_lines(console: Console, text: str) -> None:
    """Print a message of several lines; those that are indented, which are commands, stay whole."""
    for line in text.split("\n"):
        whole = line.startswith("    ") or not console.is_terminal
        console.print(Text(line), soft_wrap=whole)


def make_console() -> Console:
    """The terminal, or plain text of a fixed width where there is none."""
    print_anything()
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=WIDTH_OF_FILES)
    return console

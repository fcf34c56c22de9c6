"""What people read in a terminal: figures, texts, and the terminal itself."""

from __future__ import annotations

from rich.console import Console

WIDTH_OF_FILES = 110  # columns when the output is no terminal


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


def plural(count: int, noun: str) -> str:
    """``1 chunk``, ``2,000 chunks``."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def printable(text: str) -> str:
    """``text`` with a dot for every character that steers a terminal or cannot be shown."""
    return "".join(c if (c.isprintable() and c != "\ufffd") or c in "\n\t" else "·" for c in text)


def one_line(text: str, longest: int = 280) -> str:
    """``text`` fit for one line of a terminal, cut at ``longest`` characters."""
    clean = " ".join(printable(text).split())
    return clean if len(clean) <= longest else clean[: longest - 1] + "…"


def make_console() -> Console:
    """The terminal, or plain text of a fixed width where there is none."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=WIDTH_OF_FILES)
    return console

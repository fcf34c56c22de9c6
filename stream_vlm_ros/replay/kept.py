# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""A history in a folder, searched and erased while no node writes it."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Sequence
from datetime import date, datetime, time
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from stream_vlm_ros.config import Settings
from stream_vlm_ros.console import CLOCK, duration_text, plural, span_text
from stream_vlm_ros.errors import InvalidParameterError, cut
from stream_vlm_ros.owned import NotOursError, held, kind_of

if TYPE_CHECKING:
    from stream_vlm_ros.engine import EvidenceEpisode
    from stream_vlm_ros.history.folder import Held
    from stream_vlm_ros.history.recall import RecallingInference

KIND = "frame store"  # as stream_vlm_ros.history.store says in the folder's mark


def find_folder(name: str) -> Path:
    """A folder with a history in it that nobody writes now; nothing is made.

    Raises InvalidParameterError for any other.
    """
    folder = Path(os.path.expanduser(name))
    if not name or not folder.is_dir():
        raise InvalidParameterError(f"there is no folder {cut(name) or '(empty)'}.")
    if kind_of(folder) != KIND:
        raise InvalidParameterError(
            f"{folder} holds no history: name what was the frame_store of a node or a run."
        )
    try:
        with held(folder, KIND):
            return folder
    except NotOursError:
        raise InvalidParameterError(
            f"{folder} is in use by another process: end the node first that writes it."
        ) from None
    except OSError as error:
        raise InvalidParameterError(f"{folder} cannot be used: {error.strerror}.") from None


def open_history(settings: Settings, folder: Path) -> RecallingInference:
    """An engine over the history in ``folder``, its memory empty. What is kept there stays so.

    Raises:
        InvalidParameterError: there are no keys, or they are of another model or calibration.
        FrameStoreError, and what `load_model` and `build_engine` raise.
    """
    from stream_vlm_ros.factory import build_engine, calibration_of, load_model
    from stream_vlm_ros.history.folder import keys_in
    from stream_vlm_ros.history.recall import RecallingInference

    kept = keys_in(folder)
    if kept is None:
        raise InvalidParameterError(
            f"{folder} holds frames, but nothing to find them by: they were kept without a history."
        )
    over = dataclasses.replace(
        settings,
        history="auto",
        frame_store=str(folder),
        fork_slack_tokens=0,
        dtype=kept.dtype,
        # An index that may take less than it takes would leave some of it out.
        history_index_megabytes=max(settings.history_index_megabytes, 1 + kept.bytes // 2**19),
    )
    checkpoint = load_model(over)
    calibration = calibration_of(over, checkpoint)
    heads = tuple(calibration.keys(checkpoint.network.config))
    if (kept.model, kept.heads) != (calibration.model, heads):
        # Opened, it would be set aside, as where a node goes on with another model.
        raise InvalidParameterError(
            f"the keys in {folder} are of another model or calibration: name the node's with "
            "--model and --history-calibration."
        )
    engine = build_engine(over, checkpoint)
    assert isinstance(engine, RecallingInference)  # what settings with a history build
    return engine


def parse_stretch(
    names: tuple[str, str], texts: tuple[str, str], reach: tuple[float, float] | None
) -> tuple[float, float]:
    """Two times, as `parse_time` reads them. A time of the day alone is of the one day that the
    folder holds; the second one is of the first one's day.

    Raises InvalidParameterError.

    Args:
        reach: stamps of the first and the last frame of the folder.
    """
    days = {datetime.fromtimestamp(stamp).date() for stamp in reach or () if stamp >= CLOCK}
    first = parse_time(names[0], texts[0], days.pop() if len(days) == 1 else None)
    dated = CLOCK <= first < math.inf
    last = parse_time(names[1], texts[1], datetime.fromtimestamp(first).date() if dated else None)
    if first > last:
        raise InvalidParameterError(f"{names[1]} is {texts[1].strip()}, before {texts[0].strip()}.")
    return first, last


def parse_time(name: str, text: str, day: date | None = None) -> float:
    """Seconds of the source: a number, or a date with a time of the day, by this machine's zone
    where it names none; as `time_text` writes them, too. Raises InvalidParameterError.

    Args:
        name: what it is; a sentence begins with it.
        day: of a time without a date; None: such a time is refused.
    """
    given = text.strip()
    try:
        seconds = float(given.removesuffix(" s"))
    except ValueError:
        if _is(date, given):
            raise InvalidParameterError(
                f"{name} is {given}, a date alone: give the time of the day, too, such as "
                f"{given}T00:00."
            ) from None
        if _is(time, given):
            if day is None:
                raise InvalidParameterError(
                    f"{name} is {given}, a time of no certain day: give the date, too, such as "
                    "2026-11-29T10:15, or seconds of the source."
                ) from None
            given = f"{day}T{given}"
        try:
            seconds = datetime.fromisoformat(given).timestamp()
        except (ValueError, OverflowError, OSError):
            raise InvalidParameterError(
                f"{name} is {cut(text)!r}: give seconds of the source, such as 12.5, or a date "
                "with a time, such as 2026-11-29T10:15."
            ) from None
    if math.isnan(seconds):
        raise InvalidParameterError(f"{name} is no number.")
    return seconds


def _is(kind: type[date] | type[time], text: str) -> bool:
    try:
        kind.fromisoformat(text)
    except ValueError:
        return False
    return True


def held_text(held: Held) -> str:
    """What a folder holds, in words."""
    if held.reach is None:
        return "nothing"
    return f"{plural(held.frames, 'frame')}, {span_text(*held.reach)}"


def searched_text(held: Held) -> str:
    """What of a folder is searched, in words, and how much of earlier runs is not."""
    text = held_text(held._replace(frames=held.searched, reach=held.searched_reach))
    earlier = held.frames - held.searched
    return text + f"; {plural(earlier, 'frame')} of earlier runs not" * bool(earlier)


def found_table(episodes: Sequence[EvidenceEpisode], hit: float, newest: float) -> Table:
    """One line an episode.

    Args:
        hit: a score below it is weak.
        newest: stamp of the newest frame, before which they lie.
    """
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("score")
    table.add_column("when", no_wrap=True)
    table.add_column("lasts", justify="right")
    table.add_column("ago", justify="right")
    for episode in episodes:
        table.add_row(
            f"{episode.score:5.2f}{'' if episode.score >= hit else ' weak'}",
            Text(span_text(episode.start, episode.end)),
            duration_text(episode.end - episode.start),
            duration_text(max(0.0, newest - episode.end)),
        )
    return table

# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""What can go wrong, in the user's words.

Every error carries a ``code``: a short upper-case name that the ROS interfaces repeat as a
constant, so that a client can act on it without reading the message.
"""

from __future__ import annotations

import contextlib
import numbers
import os
import re
import shlex
from pathlib import Path


class StreamVlmError(Exception):
    """Base of all errors raised on purpose by this package.

    The message says what was wrong and what to do about it. The stream is untouched by the call
    that raised.
    """

    code = "INTERNAL"


class InvalidImageError(StreamVlmError):
    """A picture that cannot be used: empty, wrong shape or type, undecodable."""

    code = "INVALID_IMAGE"


class PictureTooLargeError(InvalidImageError):
    """A picture of more pixels than max_decoded_megapixels, or data that unpack to more bytes."""


class InvalidTimestampError(StreamVlmError):
    """Time stamps that run backwards, are not finite, or do not match the frames in number."""

    code = "INVALID_TIMESTAMP"


class InvalidQuestionError(StreamVlmError):
    """A question that is empty, not text, or too long for the room kept for questions."""

    code = "INVALID_QUESTION"


class InvalidChoicesError(StreamVlmError):
    """A list of choices that is empty, too long, or holds something that is not text."""

    code = "INVALID_CHOICES"


class InvalidParameterError(StreamVlmError):
    """A setting outside its range."""

    code = "INVALID_PARAMETER"


class BudgetExceededError(StreamVlmError):
    """Question and answer together need more tokens than the room kept for them."""

    code = "BUDGET_EXCEEDED"


class EmptyMemoryError(StreamVlmError):
    """A question came before any frame."""

    code = "EMPTY_MEMORY"


class OutOfHorizonError(StreamVlmError):
    """A question about a time of which the memory holds nothing."""

    code = "OUT_OF_HORIZON"


class CapTooSmallError(StreamVlmError):
    """The memory's cap cannot hold what must be in it."""

    code = "CAP_TOO_SMALL"


class StreamBusyError(StreamVlmError):
    """The memory an answer is still reading would be overwritten."""

    code = "STREAM_BUSY"


class SnapshotEvictedError(StreamVlmError):
    """A snapshot cannot be restored: part of what it covers has been evicted."""

    code = "SNAPSHOT_EVICTED"


class ModelLoadError(StreamVlmError):
    """A checkpoint folder that is missing, incomplete, or does not fit the architecture."""

    code = "MODEL_LOAD"


class DeviceUnavailableError(StreamVlmError):
    """The device asked for is not there, or has too little memory."""

    code = "DEVICE_UNAVAILABLE"


class NotFiniteError(StreamVlmError):
    """The model computed what is infinite or not a number, of a chunk or a question."""

    code = "NOT_FINITE"


class CalibrationError(InvalidParameterError):
    """A history's calibration that is damaged, of another checkpoint, or cannot be made."""


class MemoryFileError(StreamVlmError):
    """A saved memory that cannot be written, or is refused.

    ``reason`` is the message without the file's name.
    """

    def __init__(self, message: str, reason: str = "") -> None:
        super().__init__(message)
        self.reason = reason or message


class SourceError(StreamVlmError):
    """Base of all errors of sources."""

    code = "SOURCE"


class SourceNotFoundError(SourceError):
    """There is no such file, folder or device, or it may not be read."""

    code = "SOURCE_NOT_FOUND"


class SourceUnreadableError(SourceError):
    """It is there, but no frame can be got out of it: empty, damaged, or not a video."""

    code = "SOURCE_UNREADABLE"


class SourceUnknownError(SourceError):
    """What was given names no kind of source that this package knows."""

    code = "SOURCE_UNKNOWN"


class FrameStoreError(StreamVlmError):
    """The frame store cannot be opened, written or read: a full disk, a second owner, bad files."""


class PictureLostError(FrameStoreError):
    """The picture of one kept frame is gone or damaged; the others are not affected."""


MAX_REPEATED = 500  # characters of a message, log line or value that quotes what somebody sent


def cut(text: str, limit: int = MAX_REPEATED) -> str:
    """A text from outside as it is repeated: its beginning, and how many characters it has.

    What does not print (control characters, line breaks, lone surrogates) is written as in Python.
    """
    begun = text[:limit]
    if not begun.isprintable():
        begun = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in begun)
    return begun if len(text) <= limit else f"{begun}... ({len(text):,} characters)"


def folder_named(path: object) -> Path:
    """A model's folder as it is named; ModelLoadError for what names none, such as None."""
    if not isinstance(path, (str, Path)):
        raise ModelLoadError(f"a model folder is named by text, not by {cut(repr(path))}")
    return Path(path)


def in_words(error: BaseException) -> str:
    """Another library's error in one line of the log: its kind, and how its message begins."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def whole_number(name: str, value: object, least: int, most: int | None = None) -> int:
    """``value``, of Python's type or numpy's, as an int.

    Raises InvalidParameterError for what is no whole number, such as True, and for one below
    ``least`` or above ``most``.
    """
    if isinstance(value, numbers.Integral) and not isinstance(value, bool):
        number = int(value)
        if least <= number and (most is None or number <= most):
            return number
    limits = f"of at least {least}" if most is None else f"from {least} to {most}"
    raise InvalidParameterError(f"{name} must be a whole number {limits}, not {value!r}")


def real_number(value: object) -> float | None:
    """``value``, of Python's type or numpy's, as a float; None for what is no number, such as True,
    and for one that no float holds."""
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        return None
    try:
        return float(value)
    except OverflowError:
        return None


RELEASES = ("Qwen/Qwen2.5-VL-3B-Instruct", "Qwen/Qwen2.5-VL-7B-Instruct")


def runs_here(command: str) -> str:
    """``command`` so that it runs from the current folder: whoever came through tools/run.sh, which
    knows the environment, goes there again."""
    run = os.environ.get("STREAM_VLM_RUN")
    if not run:
        return command
    with contextlib.suppress(OSError):  # the current folder is gone
        near = os.path.relpath(run)
        run = min(run, near if "/" in near else f"./{near}", key=len)
    return f"{shlex.quote(run)} {command}"


def below(*commands: str) -> str:
    """Commands below the message that tells them: each on a line of its own, which is copied."""
    return "".join(f"\n    {command}" for command in commands)


def fetch_command(given: str) -> str:
    """The command by which a checkpoint comes to lie in the folder ``given``.

    Of a release where its name says which, or of another model of the hub where it is written as
    one (``OWNER/NAME``); else of the smallest release.
    """
    owner, _, name = given.rpartition("/")
    wanted = next((r for r in RELEASES if r.lower().endswith(f"/{name}".lower())), None)
    if wanted is None and re.fullmatch(r"\w[\w-]*", owner, re.ASCII) and not os.path.isdir(owner):
        wanted = given if re.fullmatch(r"\w[\w.-]*", name, re.ASCII) else None
    home, place = ("~/", given[2:]) if given.startswith("~/") else ("", given)
    place = home + shlex.quote(place) if given == cut(given) else "FOLDER"
    return runs_here(f"hf download {wanted or RELEASES[0]} --local-dir {place}")


def check_model_folder(path: Path) -> None:
    """Raise ModelLoadError unless ``path`` is a folder that holds something; whether that is a
    checkpoint is not seen."""
    # Of os.path, since those of Path raise for a name that is too long.
    place = os.path.expanduser(path)
    if os.path.isdir(place):
        if os.listdir(place):
            return
        fault = f"{path} is an empty folder"
    elif os.path.exists(place):
        raise ModelLoadError(f"{path} is a file, not a model folder")
    else:
        fault = f"no model folder {cut(str(path))}"
    raise ModelLoadError(
        f"{fault}.\nGive the folder of a Qwen2.5-VL checkpoint (config.json, *.safetensors,\n"
        "tokenizer); nothing is downloaded by itself; this command fetches it\n(docs/weights.md):"
        + below(fetch_command(str(path)))
    )

# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Between ROS messages and plain values."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from stream_vlm_ros.engine.inputs.timestamps import SECOND
from stream_vlm_ros.errors import (
    InvalidChoicesError,
    InvalidParameterError,
    cut,
    real_number,
    whole_number,
)
from stream_vlm_ros.forgotten import is_forgotten

MAX_UINT32 = 2**32 - 1
MAX_STAMP_NS = 2**31 * SECOND - 1  # of builtin_interfaces/Time
MAX_FLOAT32 = float(np.finfo(np.float32).max)


def nanoseconds(stamp: Any) -> int:
    """A time or duration in nanoseconds."""
    value: int = stamp.sec * SECOND + stamp.nanosec
    return value


def seconds(stamp: Any) -> float:
    """A time or duration in seconds."""
    value: float = stamp.sec + stamp.nanosec / SECOND
    return value


def set_stamp(stamp: Any, value_ns: int) -> None:
    """Let a time be ``value_ns`` nanoseconds."""
    stamp.sec, stamp.nanosec = divmod(value_ns, SECOND)


def set_about(request: Any, about_ns: tuple[int, int] | None) -> None:
    """The time that a question is about, from and to; None: any.

    Raises InvalidParameterError for what is no such pair.
    """
    if about_ns is None:
        return
    if not isinstance(about_ns, (tuple, list)) or len(about_ns) != 2:
        raise InvalidParameterError(f"about_ns must be a pair, not {cut(repr(about_ns))}")
    set_stamp(request.about_from, stamp_ns("about_ns[0]", about_ns[0]))
    set_stamp(request.about_to, stamp_ns("about_ns[1]", about_ns[1]))


# What messages can hold; each raises InvalidParameterError for the rest, which rclpy would end
# with an error of Python's own.


def stamp_ns(name: str, value: object) -> int:
    """``value`` as the nanoseconds of a stamp."""
    return whole_number(name, value, 0, MAX_STAMP_NS)


def float32(name: str, value: object) -> float:
    """``value`` as a number."""
    number = real_number(value)
    if number is None or abs(number) > MAX_FLOAT32:
        raise InvalidParameterError(f"{name} must be a number, not {cut(repr(value))}")
    return number


def flag(name: str, value: object) -> bool:
    """``value`` as true or false."""
    if not isinstance(value, (bool, np.bool_)):
        raise InvalidParameterError(f"{name} must be true or false, not {cut(repr(value))}")
    return bool(value)


def checked_text(name: str, value: object) -> str:
    """``value`` as text that UTF-8 can hold."""
    if not isinstance(value, str) or any("\ud800" <= c <= "\udfff" for c in value):
        raise InvalidParameterError(f"{name} must be text, not {cut(repr(value))}")
    return value


def checked_choices(choices: object) -> list[str]:
    """As a list of texts; raises InvalidChoicesError for what is none, such as one text."""
    if isinstance(choices, (str, bytes)) or not isinstance(choices, Iterable):
        raise InvalidChoicesError(f"choices must be a list of texts, not {cut(repr(choices))}")
    try:
        return [checked_text(f"choices[{index}]", one) for index, one in enumerate(choices)]
    except InvalidParameterError as fault:
        raise InvalidChoicesError(str(fault)) from None


def is_a_guess(answer: Any) -> bool:
    """Whether a ``stream_vlm/Answer`` is to a question about a time of which neither the memory nor
    the history held anything."""
    spans = [(span.start, span.end) for span in answer.seen]
    # What is in no picture any more cannot be read, whether or not a key finds it.
    tiers = answer.cache_status.tiers
    spans += [(one.oldest, one.newest) for one in tiers if one.name == "pictures" and one.frames]
    newest = seconds(answer.newest_stamp)
    held = [(newest - seconds(begin), newest - seconds(end)) for begin, end in spans]
    return is_forgotten(answer.question, held)


def image_message(image: np.ndarray, stamp_ns: int, frame_id: str = "camera") -> Any:
    """``image`` (uint8, [height, width, 3]) as an rgb8 ``sensor_msgs/Image``."""
    from sensor_msgs.msg import Image  # what else is here needs no ROS

    from stream_vlm_ros.sources.ros_images import rgb8_fields

    message = Image(**rgb8_fields(image))
    set_stamp(message.header.stamp, stamp_ns)
    message.header.frame_id = frame_id
    return message

# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""An image as it arrives: serialized, because most images are not sampled and never decoded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from struct import Struct
from typing import Any

import numpy as np
from rclpy.serialization import deserialize_message

from stream_vlm_ros.engine.inputs.stamp_check import join_stamp
from stream_vlm_ros.errors import InvalidImageError

# CDR's first two bytes say its kind; after two more comes the message. It begins, in every message
# with a header, with header.stamp.sec (int32) and header.stamp.nanosec (uint32).
_STAMPS = {b"\0\0": Struct(">4xiI"), b"\0\1": Struct("<4xiI")}

MAX_FRAME_ID = 256  # characters of a frame id that are kept, and so repeated


@dataclass(frozen=True)
class SerializedImage:
    """One serialized ``Image`` or ``CompressedImage``.

    Args:
        serialized: the message in CDR, as the middleware gave it.
        message_type: the type of the message.
        decode: message -> uint8 [height, width, 3]; raises InvalidImageError.
    """

    serialized: bytes
    message_type: type
    decode: Callable[[Any], np.ndarray]

    @property
    def stamp_ns(self) -> int | None:
        """The header's stamp in nanoseconds; None if the message breaks off before its end.

        Raises InvalidTimestampError for nanoseconds that make a second or more.
        """
        layout = _STAMPS.get(self.serialized[:2])
        if layout is None:  # another CDR: the middleware knows its own
            try:
                stamp = self._message().header.stamp
            except InvalidImageError:
                return None
            return join_stamp(stamp.sec, stamp.nanosec)
        if len(self.serialized) < layout.size:
            return None
        return join_stamp(*layout.unpack_from(self.serialized))

    def read(self) -> tuple[Any, np.ndarray]:
        """The header, its frame id cut, and the picture, uint8 [height, width, 3].

        Raises InvalidImageError for a message that cannot be deserialized, or decoded.
        """
        message = self._message()
        if len(message.header.frame_id) > MAX_FRAME_ID:
            message.header.frame_id = message.header.frame_id[:MAX_FRAME_ID]
        return message.header, self.decode(message)

    def _message(self) -> Any:
        try:
            return deserialize_message(self.serialized, self.message_type)
        except Exception as fault:  # whatever a middleware raises, it is the sender's
            raise InvalidImageError(
                f"the message of {len(self.serialized)} bytes cannot be deserialized: {fault}"
            ) from fault

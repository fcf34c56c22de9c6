# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""The thread of the images: everything that happens at each of them happens here."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from rclpy.context import Context

from stream_vlm_ros.node.image_input import ImageInput
from stream_vlm_ros.node.serialized_image import SerializedImage

FOLLOW_PERIOD = 0.5  # s, between two looks at who publishes images
UPKEEP_PERIOD = 0.1  # s, the longest wait for an image


class ImageThread:
    """Takes images from a subscription until it is stopped.

    A thread rather than a callback of the executor: that one gathers all entities of its nodes
    again before and after each callback, which for the two dozen of this node costs more than an
    image of 1920x1080 itself (``bench/node_overhead.py``). Here it sleeps while images arrive.

    Args:
        source: the subscription; it is this thread's from now on, and destroyed at its end.
        context: when it is shut down, the thread ends.
        receive: takes an image; must not wait for anything.
        upkeep: called between images, at least every ``UPKEEP_PERIOD``.
        report: told of every fault, and where it happened; the thread goes on.
    """

    def __init__(
        self,
        source: ImageInput,
        context: Context,
        receive: Callable[[SerializedImage], None],
        upkeep: Callable[[], None],
        report: Callable[[str, BaseException], None],
    ) -> None:
        self._source = source
        self._context = context
        self._receive = receive
        self._upkeep = upkeep
        self._report = report
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="images", daemon=True)

    def start(self) -> None:
        """Begin to take images."""
        self._thread.start()

    def stop(self, timeout: float | None = None) -> None:
        """End the thread, and give the subscription back, after ``timeout`` seconds all the same.

        None: as long as it takes.
        """
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join(timeout)
        self._source.destroy()

    def _run(self) -> None:
        followed = time.monotonic()
        while not self._stopping.is_set() and self._context.ok():
            arrival: SerializedImage | None = None
            try:
                if time.monotonic() - followed >= FOLLOW_PERIOD:
                    followed = time.monotonic()
                    self._source.follow()
                arrival = self._source.take(UPKEEP_PERIOD)
                if arrival is not None:
                    self._receive(arrival)
                self._upkeep()
            except BaseException as fault:  # a decoder's SystemExit would end the thread unseen
                self._report("the thread of the images", fault)
                if arrival is None:  # else it would fail again at once, and for ever
                    self._stopping.wait(UPKEEP_PERIOD)

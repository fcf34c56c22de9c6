# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""A camera made of a file: publishes any source as ``sensor_msgs/Image`` at its own pace.

Runs as its own process::

    python -m stream_vlm_ros.demo.source_node --ros-args -p source:=drive.mp4 -r image:=/camera
"""

from __future__ import annotations

from stream_vlm_ros.processes.ros_process import end_quietly_on_signals, leave, run

if __name__ == "__main__":
    end_quietly_on_signals()  # before the imports, which are slow

import sys
import time

from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy
from rclpy.time import Time
from sensor_msgs.msg import Image
from std_msgs.msg import Header

from stream_vlm_ros.client.messages import image_message
from stream_vlm_ros.demo.settings import SourceSettings
from stream_vlm_ros.errors import SourceUnreadableError
from stream_vlm_ros.node.parameters import declare
from stream_vlm_ros.sources import Frame, Source, loop, open_source, parse_size
from stream_vlm_ros.sources.pacing import Pace


class SourceNode(Node):
    """Publishes the frames of one source on ``image``, each when it is due.

    The stamp of an image is, by the parameter ``stamps``: "video": the node clock's time of the
    first frame plus the frame's own time in the source (exact distances); "publish": the node
    clock's time of publishing. A frame that is late by more than ``LATE`` seconds is skipped, as a
    camera would; it never falls behind its source for good. The time of the first frame is latched
    on ``~/origin``, so that a listener can tell times of the source from stamps.
    """

    LATE = 0.25

    def __init__(self) -> None:
        super().__init__("source")
        values = declare(self, SourceSettings.table().values())
        self.options = values
        reliability = ReliabilityPolicy[values["reliability"].upper()]
        self.publisher = self.create_publisher(
            Image,
            "image",
            QoSProfile(
                reliability=reliability, history=HistoryPolicy.KEEP_LAST, depth=values["depth"]
            ),
        )
        latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        self.origin = self.create_publisher(Header, "~/origin", latched)
        self.published = 0
        self.skipped = 0
        self._server = SingleThreadedExecutor()
        self._server.add_node(self)

    def close(self) -> None:
        """Destroy the node, and say what it did."""
        if self.published:
            counts = f"{self.published} images published, {self.skipped} skipped as late"
            print(f"source: {counts}", file=sys.stderr)
        self._server.shutdown(timeout_sec=1.0)
        self.destroy_node()

    def describe(self, source: Source) -> str:
        """What is published where, in one sentence."""
        values = self.options
        rate = values["rate"] or source.rate
        size = "{}x{}".format(*source.size) if source.size else "its own size"
        return (
            f"{source.name}, {size}, {f'{rate:g} frames/s' if rate else 'at its own rate'}, on "
            f"{self.publisher.topic_name} ({values['reliability']}, depth {values['depth']})"
        )

    def play(self) -> int:
        """Publish to the end of the source, or for ever; 0.

        Raises SourceError where it cannot be read, or has no frame.
        """
        values = self.options
        source = open_source(
            str(values["source"]),
            fps=float(values["rate"]) or None,
            size=parse_size(values["size"]),
            max_decoded_megapixels=float(values["max_decoded_megapixels"]),
        )
        self.get_logger().info(self.describe(source))
        if values["wait_for_subscriber"]:
            while self.publisher.get_subscription_count() == 0:
                self._serve(0.05)
        looped = values["loop"] and not source.live
        pace: Pace | None = None
        started = self.get_clock().now()
        for frame in loop(source) if looped else source:
            if pace is None:
                started = self.get_clock().now()
                pace = Pace(frame.stamp_ns, time.monotonic())
                self.origin.publish(Header(stamp=started.to_msg(), frame_id=source.name))
            due = pace.due(frame.stamp_ns)
            if not source.live:
                while (wait := due - time.monotonic()) > 0:
                    self._serve(wait)
                if time.monotonic() - due > self.LATE:
                    self.skipped += 1
                    self._serve(0)
                    continue
            stamp_ns = self._stamp(frame, pace, started, source.live)
            self.publisher.publish(image_message(frame.image, stamp_ns))
            self.published += 1
            self._serve(0)
        if source.state.damage:
            self.get_logger().warning(source.state.damage)
        if self.published == 0:
            raise SourceUnreadableError(source.state.damage or "no frame to publish")
        return 0

    def _serve(self, seconds: float) -> None:
        """Serve callbacks for at most ``seconds``."""
        if not self.context.ok():
            raise ExternalShutdownException
        self._server.spin_once(timeout_sec=seconds)

    def _stamp(self, frame: Frame, pace: Pace, started: Time, live: bool) -> int:
        if self.options["stamps"] == "publish" or live:
            now: int = self.get_clock().now().nanoseconds
            return now
        start: int = started.nanoseconds
        return start + frame.stamp_ns - pace.first_stamp_ns


def main(arguments: list[str] | None = None) -> int:
    """Run the node to the end of its source or to a signal; 0, or 2 if the source is of no use."""
    return run("source", SourceNode, SourceNode.play, arguments, refused=2)


if __name__ == "__main__":
    leave(main())

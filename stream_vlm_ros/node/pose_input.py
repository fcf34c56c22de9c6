# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""The subscription to poses: by the type that is published, into the track of poses.

As with images the executor knows nothing of it; `PoseInput.take` is called between images.
"""

from __future__ import annotations

import importlib
import time
from typing import TYPE_CHECKING, Any

from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy

from stream_vlm_ros.config import Settings
from stream_vlm_ros.errors import FrameStoreError, InvalidTimestampError, cut
from stream_vlm_ros.node.image_input import NotByTheExecutor, RCLError
from stream_vlm_ros.node.pose_messages import READERS, TF, TransformChain, UnreadableError

if TYPE_CHECKING:
    from stream_vlm_ros.history.poses import Pose, PoseTrack

STATIC = "/tf_static"
LOOK_AGAIN = 0.5  # s between two looks at who publishes
QUIET = 3.0  # s without a message after which a pause is believed
MOST_AT_ONCE = 500  # messages, before the next image is looked for
WARN_EVERY = 30.0  # s


class PoseInput:
    """Reads ``pose_topic`` as it is published. All of it belongs to one thread, but for `track`.

    The subscription is best effort, which takes what any publisher gives; /tf_static is reliable
    and latched, as tf2 has it.

    Args:
        node: subscribes, and says in its log why there is no pose.
        parameters: ``pose_topic`` is not empty.
        track: where poses go.

    Attributes:
        taken: poses that went there.
        refused: messages that could not be read.
        trouble: why no pose came, or one was left out, the last time; "" if nothing was wrong.
    """

    DEPTH = 500

    def __init__(self, node: Node, parameters: Settings, track: PoseTrack) -> None:
        self.track = track
        self.taken = self.refused = 0
        self.trouble = ""
        self.topic = node.resolve_topic_name(parameters.pose_topic)
        self._node = node
        self._chain = TransformChain(parameters.pose_frame, parameters.pose_parent)
        self._group = NotByTheExecutor()
        self._subscriptions: list[tuple[str, Any]] = []  # each with the type of its messages
        self._looked_at = self._warned_at = -1e9
        self._came_at = time.monotonic()

    def take(self) -> None:
        """Take what has come, and look now and then at who publishes."""
        now = time.monotonic()
        if now - self._looked_at >= LOOK_AGAIN:
            self._looked_at = now
            self._follow()
        for kind, subscription in self._subscriptions:
            static = kind == STATIC
            for _ in range(MOST_AT_ONCE):
                with subscription.handle:
                    taken = subscription.handle.take_message(subscription.msg_type, True)
                if taken is None:
                    break
                if not static:
                    self._came_at = now
                self._read(kind, taken[0])
        if now - self._came_at >= QUIET:
            self._came_at = now
            self.track.release()

    def destroy(self) -> None:
        """Give the subscriptions back."""
        for _, subscription in self._subscriptions:
            self._node.destroy_subscription(subscription)
        self._subscriptions = []

    def _read(self, kind: str, data: bytes) -> None:
        try:
            poses: list[Pose]
            if kind in (TF, STATIC):
                poses = self._chain.take(data, static=kind == STATIC)
            else:
                poses = [READERS[kind](data)]
            for pose in poses:
                self.track.add(pose)
                self.taken += 1
        except (UnreadableError, InvalidTimestampError) as refusal:
            self.refused += 1
            self._warn(f"a pose on {self.topic} is left out: {refusal}")
        except FrameStoreError as refusal:
            self._warn(f"a pose is not kept: {refusal}")

    def _follow(self) -> None:
        """Subscribe once it is known how, and again when another type is published."""
        published = {p.topic_type for p in self._node.get_publishers_info_by_topic(self.topic)}
        wanted = sorted(published & {*READERS, TF})
        if self._subscriptions and (not wanted or self._subscriptions[0][0] in wanted):
            if self._subscriptions[0][0] == TF and self.taken == 0:
                self._warn_of_the_tree()
            return
        if not wanted:
            if published:
                self._warn(
                    f"pose_topic: {self.topic} carries {', '.join(sorted(published))}; a pose is "
                    f"read from {', '.join([*READERS, TF])}"
                )
            return
        self.destroy()
        self._subscribe(wanted[0])

    def _subscribe(self, kind: str) -> None:
        package, _, name = kind.partition("/msg/")
        try:
            message_type = getattr(importlib.import_module(f"{package}.msg"), name)
        except ImportError:
            self._warn(
                f"pose_topic: {self.topic} carries {kind}, but the package {package} is not "
                "installed for this Python: install it, or publish geometry_msgs/PoseStamped"
            )
            return
        try:
            self._add(kind, self.topic, message_type, latched=False)
            if kind == TF:
                self._add(STATIC, STATIC, message_type, latched=True)
        except RCLError as fault:  # the last user of another type is not gone yet
            self._node.get_logger().debug(f"no subscription to {self.topic} yet: {fault}")
            self.destroy()
            return
        self._node.get_logger().info(f"now reading poses from {self.topic} [{kind}]")

    def _add(self, kind: str, topic: str, message_type: type, latched: bool) -> None:
        qos = QoSProfile(
            history=HistoryPolicy.KEEP_LAST,
            depth=self.DEPTH,
            reliability=(ReliabilityPolicy.RELIABLE if latched else ReliabilityPolicy.BEST_EFFORT),
            durability=DurabilityPolicy.TRANSIENT_LOCAL if latched else DurabilityPolicy.VOLATILE,
        )
        subscription = self._node.create_subscription(
            message_type,
            topic,
            lambda message: None,  # never called
            qos,
            callback_group=self._group,
            raw=True,
        )
        self._subscriptions.append((kind, subscription))

    def _warn_of_the_tree(self) -> None:
        if not self._chain.known:
            self._warn(
                f"no pose from {self.topic} yet: the frame {self._chain.frame!r} (pose_frame) does "
                f"not hang below {self._chain.parent!r} (pose_parent) by what was seen of it"
            )

    def _warn(self, words: str) -> None:
        """In the log, now and then."""
        self.trouble, now = cut(words), time.monotonic()
        if now - self._warned_at >= WARN_EVERY:
            self._warned_at = now
            self._node.get_logger().warning(self.trouble)

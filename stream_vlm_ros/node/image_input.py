# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""The subscription to images: which topic, which type, which QoS, and why nothing arrives.

The executor knows nothing of it; :class:`ImageThread` waits for its images. An executor would be
woken for every one of them even if it waited for the subscription's events alone: with Fast DDS it
is, for as long as there is an image to be taken.
"""

from __future__ import annotations

import contextlib
import functools
import time
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from rclpy.callback_groups import CallbackGroup
from rclpy.impl.implementation_singleton import rclpy_implementation as _rclpy
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CompressedImage, Image

from stream_vlm_ros.config import Settings
from stream_vlm_ros.engine.inputs.picture_sizes import PictureLimit
from stream_vlm_ros.engine.inputs.timestamps import SECOND
from stream_vlm_ros.errors import cut
from stream_vlm_ros.node.annotated_image import ANNOTATED
from stream_vlm_ros.node.images import chosen_decoder, compressed_to_rgb, image_to_rgb
from stream_vlm_ros.node.publishing import OF_IMAGES, REFUSALS, overrides_of_images, overriding
from stream_vlm_ros.node.serialized_image import SerializedImage

try:
    from rclpy.event_handler import SubscriptionEventCallbacks, UnsupportedEventTypeError
except ImportError:  # Humble
    from rclpy.qos_event import SubscriptionEventCallbacks, UnsupportedEventTypeError

RAW = "sensor_msgs/msg/Image"
COMPRESSED = "sensor_msgs/msg/CompressedImage"


class Decode(Protocol):
    """Makes a picture [height, width, 3] of a message."""

    def __call__(self, message: Any, limit: PictureLimit) -> np.ndarray: ...


_TYPES: dict[str, tuple[type, Decode]] = {
    RAW: (Image, image_to_rgb),
    COMPRESSED: (CompressedImage, compressed_to_rgb),
}

_DEPTH = "/compressedDepth"  # no pictures, but of the type of those
_NOT_TAKEN = (
    "which this node does not take: it takes pictures as sensor_msgs/msg/Image and "
    "CompressedImage; let image_transport's republish make 'raw' of it, or remap it to "
    "another topic"
)

RCLError = _rclpy.RCLError  # not public, but the only name of what rcl raises


class NotByTheExecutor(CallbackGroup):
    """Keeps the executor from waiting for an entity."""

    def can_execute(self, entity: Any) -> bool:
        """Whether the executor may wait for this entity now: never."""
        return False


@dataclass(frozen=True)
class Wish:
    """One way to subscribe."""

    topic: str  # fully resolved
    type: str
    reliable: bool

    def __str__(self) -> str:
        return f"{self.topic} [{self.type}], {'reliable' if self.reliable else 'best effort'}"


class ImageInput:
    """Subscribes to ``image_topic`` as its publisher publishes it, and follows when that changes.

    :meth:`take` and :meth:`follow`, to be called now and then, belong to one thread. Until a
    publisher is found, the subscription is reliable: a publisher that is reliable then loses no
    image to the change, and one that is not would lose some anyway.
    """

    DEPTH = 5

    def __init__(self, node: Node, parameters: Settings) -> None:
        self.messages_lost = 0
        self._node = node
        self._parameters = parameters
        self._limit = PictureLimit(parameters.max_decoded_megapixels)
        self._group = NotByTheExecutor()
        self._wait_set = _rclpy.WaitSet(1, 0, 0, 0, 0, 0, node.context.handle)
        self._incompatible = ""
        self._refused: Wish | None = None  # and told of
        self._subscription: Any = None
        self._base = node.resolve_topic_name(parameters.image_topic or "image")
        if words := chosen_decoder()[1]:
            node.get_logger().warning(words)
        self.wish = self._choose()
        for topic in self.topics:
            if topic != self.topic:
                self._check_overrides(topic)
        with self._told_of_overrides(self.topic):
            self._subscription = self._subscribed(self.wish)

    @property
    def topic(self) -> str:
        """The topic subscribed to."""
        return self.wish.topic

    @property
    def topics(self) -> tuple[str, str]:
        """Those that it may come to subscribe to."""
        return self._base, f"{self._base}/compressed"

    @property
    def reliable(self) -> bool:
        """Whether every image is asked for; else lost ones stay lost."""
        return self.wish.reliable

    def take(self, seconds: float) -> SerializedImage | None:
        """The next image, waited for at most so long; None if there is none.

        As an executor does it, and ``rclpy.wait_for_message``; there is no public way to wait for
        one subscription alone.
        """
        subscription = self._subscription
        if subscription is None:
            time.sleep(seconds)
            return None
        with subscription.handle:  # not destroyed before this block is left
            self._wait_set.clear_entities()
            self._wait_set.add_subscription(subscription.handle)
            self._wait_set.wait(round(SECOND * seconds))
            if not self._wait_set.get_ready_entities("subscription"):
                return None
            taken = subscription.handle.take_message(subscription.msg_type, subscription.raw)
        if taken is None:
            return None
        message_type, decode = _TYPES[self.wish.type]
        return SerializedImage(taken[0], message_type, functools.partial(decode, limit=self._limit))

    def follow(self) -> None:
        """Subscribe again if the publishers call for it; else check for events.

        A topic that is refused leaves the subscription to the one before as it is.
        """
        wish = self._choose()
        if wish == self.wish and self._subscription is not None:
            self._serve_events()
            return
        before = self.wish
        if wish.topic == before.topic:
            # Fast DDS knows one type for each topic, until the last user of the old one is gone.
            self._unsubscribe()
            self.wish = wish
        try:
            subscription = self._subscribed(wish)
        except REFUSALS as fault:
            self._tell_of_refusal(wish, fault)
            return
        self._unsubscribe()
        self.wish, self._subscription, self._refused = wish, subscription, None
        self._incompatible = ""
        self._node.get_logger().info(f"now reading images from {wish} (was: {before})")

    def destroy(self) -> None:
        """Give the subscription back."""
        self._unsubscribe()

    def publishers(self) -> tuple[str, ...]:
        """The names of the nodes that publish what is subscribed to, once for each publisher."""
        return tuple(
            f"{p.node_namespace.rstrip('/')}/{p.node_name}"
            for p in self._publishers(self.topic)
            if p.topic_type == self.wish.type
        )

    def cause_of_silence(self) -> str:
        """Why no image arrives, as far as can be seen from here."""
        publishers = self._publishers(self.topic)
        if not publishers:
            others, packed = self._other_image_topics(), self._packed_topics()
            own = [name for name in (self._base, f"{self._base}/compressed") if name in others]
            hint = (
                f"images are published on {own[0]}: set image_transport to 'auto'"
                if own
                else f"{', '.join(packed)} is published, {_NOT_TAKEN}"
                if packed
                else f"images are published on {', '.join(others)}: start the node with "
                f"--ros-args -r {self._parameters.image_topic or 'image'}:={others[0]}"
                if others
                else "no image topic is published at all: is the camera or bag running, with the "
                "same ROS_DOMAIN_ID?"
            )
            return f"nobody publishes on {self.topic}; {hint}"
        wrong = sorted({p.topic_type for p in publishers} - {self.wish.type})
        if wrong and len(wrong) == len({p.topic_type for p in publishers}):
            if not {RAW, COMPRESSED} & set(wrong):
                return f"{self.topic} carries {', '.join(wrong)}, {_NOT_TAKEN}"
            return (
                f"{self.topic} carries {', '.join(wrong)}, not {self.wish.type}; set "
                "image_transport to 'auto' or remap it to another topic"
            )
        if self.wish.reliable and any(_is_best_effort(p) for p in publishers):
            return (
                "the publisher is best effort, the subscription reliable: incompatible QoS; set "
                "image_qos to 'auto' or 'best_effort'"
            )
        if self._incompatible:
            return f"incompatible QoS ({self._incompatible}); set image_qos to 'auto'"
        return (
            "a publisher is there but nothing arrives: is it paused? Large best-effort images "
            "are lost by default transport settings: see 'Large images' in docs/node.md"
        )

    # ---------------------------------------------------------------------------------------------

    def _choose(self) -> Wish:
        transport = self._parameters.image_transport
        compressed_topic = f"{self._base}/compressed"
        if transport == "raw":
            topic, kind = self._base, RAW
        elif transport == "compressed":
            # Remapped to a compressed topic itself, or to the base name as image_transport has it.
            own = COMPRESSED in {p.topic_type for p in self._publishers(self._base)}
            own = own or self._base.endswith("/compressed")
            topic, kind = (self._base if own else compressed_topic), COMPRESSED
        else:
            kinds = {p.topic_type for p in self._publishers(self._base)}
            if RAW in kinds:
                topic, kind = self._base, RAW
            elif COMPRESSED in kinds:
                topic, kind = self._base, COMPRESSED
            elif COMPRESSED in {p.topic_type for p in self._publishers(compressed_topic)}:
                topic, kind = compressed_topic, COMPRESSED
            elif self._subscription is not None:
                topic, kind = self.wish.topic, self.wish.type  # nobody there: stay as we are
            else:
                topic, kind = self._base, RAW
        return Wish(topic, kind, self._reliable(topic, kind))

    def _reliable(self, topic: str, kind: str) -> bool:
        if self._parameters.image_qos != "auto":
            return self._parameters.image_qos == "reliable"
        publishers = [p for p in self._publishers(topic) if p.topic_type == kind]
        if not publishers:  # nobody there: stay as we are, or begin with reliable
            return self._subscription is None or self.wish.reliable
        return not any(_is_best_effort(p) for p in publishers)

    def _publishers(self, topic: str) -> list[Any]:
        return list(self._node.get_publishers_info_by_topic(topic))

    def _other_image_topics(self) -> list[str]:
        """Those that none of the node's cameras watches."""
        mine = self._node.get_name(), self._node.get_namespace()
        watched = dict(self._node.get_subscriber_names_and_types_by_node(*mine))
        return sorted(
            name
            for name, types in self._node.get_topic_names_and_types()
            if name not in watched
            and not name.endswith((f"/{ANNOTATED}", _DEPTH))  # a node's own: no camera
            and {RAW, COMPRESSED} & set(types)
            and self._node.count_publishers(name)
        )

    def _packed_topics(self) -> list[str]:
        """Topics of other transports of the images, with their types."""
        return [
            f"{name} [{kind}]"
            for name, types in sorted(self._node.get_topic_names_and_types())
            for kind in types
            if name.startswith(f"{self._base}/")
            and (kind not in _TYPES or name.endswith(_DEPTH))
            and not kind.endswith("/CameraInfo")
            and self._node.count_publishers(name)
        ]

    def _subscribed(self, wish: Wish) -> Any:
        message_type, _ = _TYPES[wish.type]
        qos = QoSProfile(
            history=HistoryPolicy.KEEP_LAST,
            depth=self.DEPTH,
            reliability=(
                ReliabilityPolicy.RELIABLE if wish.reliable else ReliabilityPolicy.BEST_EFFORT
            ),
            durability=DurabilityPolicy.VOLATILE,
        )

        def subscribe(events: SubscriptionEventCallbacks) -> Any:
            return self._node.create_subscription(
                message_type,
                wish.topic,
                lambda message: None,  # never called
                qos,
                callback_group=self._group,
                event_callbacks=events,
                qos_overriding_options=OF_IMAGES,
                raw=True,
            )

        try:
            return subscribe(
                SubscriptionEventCallbacks(
                    incompatible_qos=self._on_incompatible, message_lost=self._on_lost
                )
            )
        except UnsupportedEventTypeError:
            return subscribe(SubscriptionEventCallbacks(use_default_callbacks=False))

    def _told_of_overrides(self, topic: str) -> AbstractContextManager[None]:
        """Where there are any: rcl's own words do not say so."""
        given = overrides_of_images(self._node, topic)
        failing = f"{topic} cannot be subscribed to"
        return overriding(failing) if given else contextlib.nullcontext()

    def _check_overrides(self, topic: str) -> None:
        """Refuse those of a topic that is not subscribed to yet: only rcl knows which it takes."""
        if not overrides_of_images(self._node, topic):
            return
        first, second = (RAW, COMPRESSED) if topic == self._base else (COMPRESSED, RAW)
        with self._told_of_overrides(topic):
            # Best effort is compatible with every publisher.
            try:
                probe = self._subscribed(Wish(topic, first, False))
            except RCLError:  # may be the type, if another of this process uses the topic
                probe = self._subscribed(Wish(topic, second, False))
        self._node.destroy_subscription(probe)

    def _tell_of_refusal(self, wish: Wish, fault: Exception) -> None:
        if self._subscription is None and isinstance(fault, RCLError):
            self._node.get_logger().debug(f"no subscription to {wish} yet: {fault}")
        elif wish != self._refused:
            self._refused = wish
            words = f"{wish.topic} cannot be subscribed to: {cut(str(fault))}"
            if self._subscription is not None:
                words = f"{words}; images are read from {self.wish} as before"
            self._node.get_logger().warning(words)

    def _unsubscribe(self) -> None:
        if self._subscription is not None:
            self._node.destroy_subscription(self._subscription)
            self._subscription = None

    def _serve_events(self) -> None:
        handlers = self._subscription.event_handlers
        if not handlers:
            return
        wait_set = _rclpy.WaitSet(0, 0, 0, 0, 0, len(handlers), self._node.context.handle)
        wait_set.clear_entities()
        with contextlib.ExitStack() as in_use:
            for handler in handlers:
                in_use.enter_context(handler)
                handler.add_to_wait_set(wait_set)
            wait_set.wait(0)
            for handler in handlers:
                if handler.is_ready(wait_set) and (event := handler.take_data()):
                    handler.callback(event)

    def _on_incompatible(self, event: Any) -> None:
        if self._parameters.image_qos == "auto":
            return  # follow() is about to mend it
        self._incompatible = str(getattr(event.last_policy_kind, "name", event.last_policy_kind))
        self._node.get_logger().warning(
            f"a publisher on {self.topic} has an incompatible QoS: {self._incompatible}; "
            "set image_qos to 'auto'"
        )

    def _on_lost(self, event: Any) -> None:
        self.messages_lost += event.total_count_change


def _is_best_effort(publisher: Any) -> bool:
    return publisher.qos_profile.reliability == ReliabilityPolicy.BEST_EFFORT

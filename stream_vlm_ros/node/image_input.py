"""The subscription to images: which topic, which type, which QoS, and why nothing arrives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rclpy.callback_groups import CallbackGroup
from rclpy.impl.implementation_singleton import rclpy_implementation as _rclpy
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CompressedImage, Image

from stream_vlm_ros.node.images import compressed_to_rgb, image_to_rgb
from stream_vlm_ros.node.parameters import Parameters

try:
    from rclpy.event_handler import SubscriptionEventCallbacks, UnsupportedEventTypeError
except ImportError:  # Humble
    from rclpy.qos_event import SubscriptionEventCallbacks, UnsupportedEventTypeError

RAW = "sensor_msgs/msg/Image"
COMPRESSED = "sensor_msgs/msg/CompressedImage"
_TYPES: dict[str, tuple[type, Callable[[Any], Any]]] = {
    RAW: (Image, image_to_rgb),
    COMPRESSED: (CompressedImage, compressed_to_rgb),
}

RCLError = _rclpy.RCLError  # not public, but the only name of what rcl raises

Receive = Callable[[Any, Callable[[Any], Any]], None]  # (message, its decoder)


@dataclass(frozen=True)
class Wish:
    """One way to subscribe."""

    topic: str  # fully resolved
    type: str
    reliable: bool

    def __str__(self) -> str:
        return f"{self.topic} [{self.type}], {'reliable' if self.reliable else 'best effort'}"


class ImageInput:
    """Subscribes to ``image`` as its publisher publishes it, and follows when that changes.

    :meth:`follow` is to be called now and then from ``group``. Until a publisher is found, the
    subscription is reliable: a publisher that is reliable then loses no image to the change, and
    one that is not would lose some anyway.
    """

    DEPTH = 5

    def __init__(
        self, node: Node, parameters: Parameters, group: CallbackGroup, receive: Receive
    ) -> None:
        self.messages_lost = 0
        self._node = node
        self._parameters = parameters
        self._group = group
        self._receive = receive
        self._incompatible = ""
        self._subscription: Any = None
        self._base = node.resolve_topic_name("image")
        self.wish = self._choose()
        self._subscribe()

    @property
    def topic(self) -> str:
        """The topic subscribed to."""
        return self.wish.topic

    def follow(self) -> None:
        """Subscribe anew if the publishers call for it."""
        wish = self._choose()
        if wish == self.wish and self._subscription is not None:
            return
        self._unsubscribe()
        before, self.wish = self.wish, wish
        try:
            self._subscribe()
        except RCLError as fault:
            # Fast DDS knows one type for each topic, until the last user of the old one is gone.
            self._node.get_logger().debug(f"no subscription to {wish} yet: {fault}")
            return
        self._node.get_logger().info(f"images are now read from {wish} (was: {before})")

    def destroy(self) -> None:
        """Give the subscription back."""
        self._unsubscribe()

    def cause_of_silence(self) -> str:
        """Why no image arrives, as far as can be seen from here."""
        publishers = self._publishers(self.topic)
        if not publishers:
            others = self._other_image_topics()
            hint = (
                f"images are published on {', '.join(others)}: start the node with "
                f"--ros-args -r image:={others[0]}"
                if others
                else "no image topic is published at all: is the camera or bag running, with the "
                "same ROS_DOMAIN_ID?"
            )
            return f"nobody publishes on {self.topic}; {hint}"
        wrong = sorted({p.topic_type for p in publishers} - {self.wish.type})
        if wrong and len(wrong) == len({p.topic_type for p in publishers}):
            return (
                f"{self.topic} carries {', '.join(wrong)}, not {self.wish.type}; set "
                "image_transport to 'auto' or remap 'image' to another topic"
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
        return sorted(
            name
            for name, types in self._node.get_topic_names_and_types()
            if name != self.topic
            and {RAW, COMPRESSED} & set(types)
            and self._node.count_publishers(name)
        )

    def _subscribe(self) -> None:
        message_type, decode = _TYPES[self.wish.type]
        qos = QoSProfile(
            history=HistoryPolicy.KEEP_LAST,
            depth=self.DEPTH,
            reliability=(
                ReliabilityPolicy.RELIABLE if self.wish.reliable else ReliabilityPolicy.BEST_EFFORT
            ),
            durability=DurabilityPolicy.VOLATILE,
        )

        def receive(message: Any) -> None:
            self._receive(message, decode)

        def subscribe(events: SubscriptionEventCallbacks) -> Any:
            return self._node.create_subscription(
                message_type,
                self.wish.topic,
                receive,
                qos,
                callback_group=self._group,
                event_callbacks=events,
            )

        self._incompatible = ""
        try:
            self._subscription = subscribe(
                SubscriptionEventCallbacks(
                    incompatible_qos=self._on_incompatible, message_lost=self._on_lost
                )
            )
        except UnsupportedEventTypeError:
            self._subscription = subscribe(SubscriptionEventCallbacks(use_default_callbacks=False))

    def _unsubscribe(self) -> None:
        if self._subscription is not None:
            self._node.destroy_subscription(self._subscription)
            self._subscription = None

    def _on_incompatible(self, event: Any) -> None:
        if self._parameters.image_qos == "auto" and self.wish != self._choose():
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

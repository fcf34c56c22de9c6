# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Endpoints whose QoS may be overridden by parameters, as ROS has it: `qos_overrides.`..."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from rclpy.exceptions import ParameterException
from rclpy.node import Node
from rclpy.qos import QoSPolicyKind
from rclpy.qos_overriding_options import QoSOverridingOptions

from stream_vlm_ros.errors import InvalidParameterError, cut

_KINDS = (
    QoSPolicyKind.HISTORY,
    QoSPolicyKind.DEPTH,
    QoSPolicyKind.RELIABILITY,
    QoSPolicyKind.DURABILITY,
)
# Of images the reliability is the parameter image_qos; without durability, since none is latched.
OF_IMAGES = QoSOverridingOptions(policy_kinds=_KINDS[:2])

# What rclpy raises of an endpoint whose QoS it does not take. RuntimeError is also what rcl says.
REFUSALS = (AssertionError, ParameterException, RuntimeError, TypeError, ValueError)


def publish_on(node: Node, kind: type, topic: str, qos: Any) -> Any:
    """A publisher of ``node``.

    Raises InvalidParameterError for an override that is no QoS.
    """
    options = QoSOverridingOptions(policy_kinds=_KINDS)
    with overriding(f"{topic} cannot be published"):
        return node.create_publisher(kind, topic, qos, qos_overriding_options=options)


@contextmanager
def overriding(failing: str) -> Iterator[None]:
    """While an endpoint is made of overridden QoS: what rclpy raises of it is raised in words."""
    try:
        yield
    except REFUSALS as refusal:
        words = f"{failing} with these qos_overrides: {cut(str(refusal))}"
        raise InvalidParameterError(words) from None


def overrides_of_images(node: Node, topic: str) -> list[str]:
    """What a node was started with of the QoS of its images on a topic."""
    begin = f"qos_overrides.{topic}.subscription."
    return [name for name in getattr(node, "_parameter_overrides", {}) if name.startswith(begin)]


def unused_overrides(node: Node, images: Iterable[str]) -> Iterator[str]:
    """What a node was started with that overrides nothing it has on the graph, in words.

    ``images``: topics from which it may come to read images.
    """
    of_images = {
        f"qos_overrides.{topic}.subscription.{kind.name.lower()}"
        for topic in images
        for kind in OF_IMAGES.policy_kinds
    }
    there = of_images.union(getattr(node, "_parameters", {}))
    for name in getattr(node, "_parameter_overrides", {}):
        if name.startswith("qos_overrides.") and name not in there:
            near = difflib.get_close_matches(name, there, 1)
            meant = f"; did you mean {near[0]}?" if near else ""
            yield cut(f"{name} overrides nothing that this node has{meant}")


def unpublish(node: Node, publisher: Any) -> None:
    """Destroy a publisher; the next on its topic may be of another depth.

    rclpy has declared its QoS as parameters, and goes on to hold to them; only what the node was
    started with stays.
    """
    begin = f"qos_overrides.{publisher.topic_name}.publisher."
    node.destroy_publisher(publisher)
    given = getattr(node, "_parameter_overrides", {})
    for where in ("_parameters", "_descriptors"):  # read-only to all that is public
        held = getattr(node, where, {})
        for name in [name for name in held if name.startswith(begin) and name not in given]:
            del held[name]

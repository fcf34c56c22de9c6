# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Publishers whose QoS may be overridden by parameters, as ROS has it: `qos_overrides.`..."""

from __future__ import annotations

from typing import Any

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


def publish_on(node: Node, kind: type, topic: str, qos: Any) -> Any:
    """A publisher of ``node``.

    Raises InvalidParameterError for an override that is no QoS.
    """
    options = QoSOverridingOptions(policy_kinds=_KINDS)
    try:
        return node.create_publisher(kind, topic, qos, qos_overriding_options=options)
    except (AssertionError, RuntimeError, TypeError, ValueError) as refusal:
        words = f"{topic} cannot be published with these qos_overrides: {cut(str(refusal))}"
        raise InvalidParameterError(words) from None

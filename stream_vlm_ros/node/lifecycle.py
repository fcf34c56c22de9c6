# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""A lifecycle node that tells why a transition failed, and is gone when it is destroyed."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.lifecycle import LifecycleState, TransitionCallbackReturn
from rclpy.lifecycle.node import LifecycleNodeMixin
from rclpy.node import Node

from stream_vlm_ros.errors import StreamVlmError, cut
from stream_vlm_ros.node.error_log import traced


def transition(done_state: str) -> Callable[..., Any]:
    """Make a method of a `TellingLifecycleNode` a lifecycle callback: what it raises is logged and
    gives FAILURE.

    rclpy itself swallows the exception.
    """

    def decorate(method: Callable[[Any], None]) -> Callable[..., Any]:
        @functools.wraps(method)
        def callback(
            self: TellingLifecycleNode, previous: LifecycleState
        ) -> TransitionCallbackReturn:
            name = method.__name__.removeprefix("on_")
            self.state = {"configure": "configuring", "activate": "activating"}.get(name, name)
            self.failure, self.fault = "", None
            try:
                method(self)
            except Exception as fault:
                self.state = previous.label
                if not self.context.ok():  # told to end: whatever broke off, broke off for that
                    return TransitionCallbackReturn.FAILURE
                self.fault = type(fault)  # not itself, which would keep what its frames hold
                known = isinstance(fault, StreamVlmError)
                lines = str(fault).split("\n") if known else [repr(fault)]
                self.failure = f"{name} failed: " + "\n".join(map(cut, lines))
                details = "" if known else f"\n{traced(fault)}"
                self.get_logger().error(self.failure + details)
                return TransitionCallbackReturn.FAILURE
            self.state = done_state
            self.get_logger().info(f"{name}: done, the node is {done_state}")
            return TransitionCallbackReturn.SUCCESS

        return callback

    return decorate


class TellingLifecycleNode(LifecycleNodeMixin, Node):
    """What :func:`transition` needs of a node.

    Attributes:
        state: of the lifecycle, or the name of the transition that goes on.
        failure: of the last transition, in words; "" where it did not fail.
        fault: of what kind was raised in it; None where it did not fail.
    """

    def __init__(self, name: str, **node_arguments: Any) -> None:
        Node.__init__(self, name, **node_arguments)
        # Reentrant: the state can be asked for while a transition loads the model.
        LifecycleNodeMixin.__init__(self, callback_group=ReentrantCallbackGroup())
        self.state = "unconfigured"
        self.failure = ""
        self.fault: type[Exception] | None = None
        self._guard_transitions()

    def _guard_transitions(self) -> None:
        """Let a transition that does not exist be refused; rclpy lets it end the node."""
        change_state = self._service_change_state.callback

        def guarded(request: Any, response: Any) -> Any:
            try:
                return change_state(request, response)
            except Exception as refusal:
                wanted = request.transition.label or request.transition.id
                self.get_logger().error(
                    f"transition {cut(str(wanted))} is not possible while {self.state}: "
                    f"{cut(str(refusal))}"
                )
                response.success = False
                return response

        self._service_change_state.callback = guarded

    def destroy_node(self) -> None:
        """Destroy everything of the node, so that nothing of it stays in the middleware."""
        # rclpy's mixin forgets it, and it holds the node.
        self._state_machine.destroy_when_not_in_use()
        super().destroy_node()

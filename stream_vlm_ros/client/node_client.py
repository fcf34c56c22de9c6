# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""`NodeClient`: a node that runs, asked and watched through a node of one's own."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from rclpy.executors import ExternalShutdownException
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile
from rclpy.task import Future
from std_srvs.srv import Trigger
from stream_vlm.msg import CacheStatus
from stream_vlm.srv import Query

from stream_vlm_ros.client.errors import NodeUnavailableError
from stream_vlm_ros.client.messages import set_about
from stream_vlm_ros.processes.ros_process import names_seen_by


def refuse_second(names: Sequence[str], name: str) -> None:
    """Raise NodeUnavailableError where ``name`` is twice among the names on a graph."""
    if names.count(name) > 1:
        raise NodeUnavailableError(
            f"two nodes named {name} run on this ROS graph: end the other one, or give this one "
            "another namespace"
        )


def latched() -> QoSProfile:
    """Of topics whose last messages reach who comes later."""
    return QoSProfile(depth=50, durability=DurabilityPolicy.TRANSIENT_LOCAL)


def counts_of(status: CacheStatus) -> dict[str, int]:
    """The counters of frames by their names."""
    names = status.get_fields_and_field_types()
    chosen = [name for name in names if name.startswith(("frames_", "dropped_"))]
    return {name: getattr(status, name) for name in chosen}


class StatusWatch:
    """What a node says of itself on ``~/cache_status``.

    Args:
        node: a node of one's own.
        name: of the node that is watched; a relative one is in the namespace of ``node``.
        on_status: is given every message.

    Attributes:
        name: full name of the node that is watched.
        status: the newest message; None before the first.
        status_at: when it came, by ``time.monotonic()``.
        statuses: how many have come.
    """

    def __init__(
        self,
        node: Node,
        name: str,
        on_status: Callable[[CacheStatus], None] = lambda message: None,
    ) -> None:
        self.status: CacheStatus | None = None
        self.status_at = 0.0
        self.statuses = 0
        self._node, self._on_status = node, on_status
        node.create_subscription(CacheStatus, f"{name}/cache_status", self._take_status, latched())
        self.name = node.resolve_topic_name(f"{name}/cache_status").rpartition("/")[0]

    def _take_status(self, message: CacheStatus) -> None:
        self.status, self.status_at = message, time.monotonic()
        self.statuses += 1
        self._on_status(message)

    def why_not_ready(self) -> str:
        """Why the node cannot be asked, in words; "" if it can."""
        if self.status is None:
            return "it cannot be seen: no message on ~/cache_status"
        if self.status.state != "active":
            return f"its state is {self.status.state or 'unknown'}"
        return ""


class NodeClient(StatusWatch):
    """Asks and watches; whoever owns ``node`` spins it, and the answers and the status come in its
    executor's thread.

    Args and attributes: as of `StatusWatch`.
    """

    LOOK_AGAIN = 1.0  # s between two looks at the graph

    def __init__(
        self,
        node: Node,
        name: str,
        on_status: Callable[[CacheStatus], None] = lambda message: None,
    ) -> None:
        super().__init__(node, name, on_status)
        self._query = node.create_client(Query, f"{name}/query")
        self._reset = node.create_client(Trigger, f"{name}/reset")
        self._look_again_at = 0.0

    # Asking ---------------------------------------------------------------------------------------

    def ask(
        self,
        text: str,
        choices: Sequence[str] = (),
        max_new_tokens: int = 0,
        about_ns: tuple[int, int] | None = None,
    ) -> Future:
        """Send a question; the result of the future is the response, None if the node went away.

        Args:
            max_new_tokens: 0: as the node is set.
            about_ns: the time that it is about, from and to, by the stamps of the images.
        """
        request = Query.Request(question=text, choices=list(choices))
        request.max_new_tokens = max_new_tokens
        set_about(request, about_ns)
        return self._query.call_async(request)

    def reset(self) -> Future:
        """Let the node forget everything; the result of the future is the response."""
        return self._reset.call_async(Trigger.Request())

    # Watching -------------------------------------------------------------------------------------

    @property
    def frames(self) -> int:
        """In the node's memory."""
        return self.status.frames if self.status is not None else 0

    @property
    def chunks(self) -> int:
        """That the node has taken into its memory."""
        return self.status.chunks if self.status is not None else 0

    @property
    def counts(self) -> dict[str, int]:
        """The counters of frames by their names in CacheStatus; empty before the first status."""
        return counts_of(self.status) if self.status is not None else {}

    @property
    def ready(self) -> bool:
        """Whether it can be asked."""
        return not self.why_not_ready()

    def why_not_ready(self) -> str:
        """Why the node cannot be asked, in words; "" if it can."""
        if why := super().why_not_ready():
            return why
        for service in (self._query, self._reset):
            if not service.service_is_ready():
                return f"its service ~/{service.srv_name.rpartition('/')[2]} is away"
        return ""

    def why_no_frames(self) -> str:
        """What is known of a memory that is empty."""
        received = self.status.frames_received if self.status is not None else 0
        return f"it received {received} images and took none into memory"

    def refuse_second_node(self) -> None:
        """Raise NodeUnavailableError where two nodes have the name, as both would answer.

        Looks no more than once a second, so that it may be called in a loop.
        """
        if time.monotonic() < self._look_again_at:
            return
        self._look_again_at = time.monotonic() + self.LOOK_AGAIN
        refuse_second(names_seen_by(self._node), self.name)

    def wait(
        self,
        condition: Callable[[], bool],
        why: Callable[[], str],
        seconds: float,
        meanwhile: Callable[[], object],
    ) -> None:
        """Until ``condition()``, with ``meanwhile()`` over and over.

        Raises:
            NodeUnavailableError: ``seconds`` have passed; with ``why()``.
            ExternalShutdownException: the context of one's own node has been shut down.
        """
        end = time.monotonic() + seconds
        while not condition():
            if not self._node.context.ok():
                raise ExternalShutdownException
            if time.monotonic() > end:
                raise NodeUnavailableError(
                    f"waited {seconds:.0f} s for the node {self.name}: {why()}"
                )
            meanwhile()

"""Asks the node questions while the video runs, and prints what it answers.

Runs as its own process::

    python -m stream_vlm_ros.demo.client --ros-args -p seconds:=40.0
"""

from __future__ import annotations

from stream_vlm_ros.processes.ros_process import (
    INTERRUPTED,
    end_quietly_on_signals,
    leave,
    names_seen_by,
    run,
)

if __name__ == "__main__":
    end_quietly_on_signals(INTERRUPTED)  # before the imports, which are slow

import contextlib
import threading
import time
from typing import Any

from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile
from std_msgs.msg import Header
from stream_vlm.msg import Answer, CacheStatus
from stream_vlm.srv import Query

from stream_vlm_ros.demo.report import Exchange, Frames, Memory, Report
from stream_vlm_ros.demo.settings import ClientSettings
from stream_vlm_ros.node.parameters import declare
from stream_vlm_ros.world.examiner import Question, Verdict, examiner_for


class DemoFailed(Exception):
    """The demo cannot go on; the message is the reason."""


def seconds(stamp: Any) -> float:
    """A ROS time or duration in seconds."""
    return stamp.sec + stamp.nanosec / 1e9


def memory_of(status: CacheStatus) -> Memory:
    """The memory's part of a status message."""
    return Memory(
        length=status.length,
        cap=status.cap,
        memory_bytes=status.memory_bytes,
        chunks=status.chunks,
        frames=status.frames,
        evictions=status.evictions,
        evicted_tokens=status.evicted_tokens,
    )


def frames_of(status: CacheStatus) -> Frames:
    """The frames' part of a status message, with every cause of dropping that it has."""
    names = [n for n in status.get_fields_and_field_types() if n.startswith("dropped_")]
    return Frames(
        received=status.frames_received,
        ingested=status.frames_ingested,
        pending=status.frames_pending,
        dropped={n.removeprefix("dropped_"): getattr(status, n) for n in names},
    )


class DemoClient(Node):
    """Questions at even distances over ``seconds``, from the first frame in memory on."""

    CHUNKS_TO_WAIT = 3  # for a moment at which there is something to ask

    def __init__(self) -> None:
        super().__init__("client")
        self.options = declare(self, ClientSettings.table().values())
        self.report = Report()
        self.examiner = examiner_for(
            self.options["source"], self.options["questions"], self.options["sample_fps"]
        )
        self.status: CacheStatus | None = None
        self.status_at = 0.0  # monotonic seconds
        self._look_again_at = 0.0
        self.origin: float | None = None  # stamp of the source's first frame, seconds
        name = self.options["node"]
        self.query = self.create_client(Query, f"{name}/query")
        self.create_subscription(CacheStatus, f"{name}/cache_status", self._take_status, 10)
        latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        self.create_subscription(Header, "source/origin", self._take_origin, latched)
        self._server = SingleThreadedExecutor()
        self._server.add_node(self)
        self._serving = threading.Thread(target=self._serve, daemon=True)
        self._serving.start()

    def _serve(self) -> None:
        while self.context.ok():
            try:
                self._server.spin_once()
            except ExternalShutdownException:
                return

    def close(self) -> None:
        """Destroy the node; its context has been shut down, or is now."""
        self.context.try_shutdown()
        self._serving.join(timeout=1.0)
        self._server.shutdown(timeout_sec=1.0)
        self.destroy_node()

    def _take_status(self, message: CacheStatus) -> None:
        self.status, self.status_at = message, time.monotonic()
        self.report.note_memory(memory_of(message), frames_of(message))

    def _take_origin(self, message: Header) -> None:
        self.origin = seconds(message.stamp)

    # The run, top to bottom. ------------------------------------------------------------------

    def run(self) -> int:
        """Ask, and say what came of it; the exit status: 0 if everything was answered and held."""
        try:
            self._run()
        except DemoFailed as failure:
            self.report.fail(str(failure))
        self.report.summary()
        return 1 if self.report.failures else 0

    def _run(self) -> None:
        """Wait for the node and its first frames, then ask until the time is over."""
        patience, length = self.options["patience"], self.options["seconds"]
        with self._telling("Waiting for the node to load its model"):
            self._wait(lambda: self._state() == "active", patience, self._why_not_active)
            self._wait(self.query.service_is_ready, patience, lambda: "its service ~/query is away")
        with self._telling("Waiting for the first frames"):
            self._wait(lambda: self._frames_in_memory() > 0, patience, self._why_no_frames)
        started = time.monotonic()
        count = self.options["count"] or max(2, round(length / self.examiner.every))
        for index in range(1, count + 1):
            if not self.options["count"] and index > 2 and time.monotonic() > started + length:
                break  # slow answers: the time asked for counts, not the number of questions
            due = started + length * index / count
            with self._telling(self._progress):
                self._wait(lambda due=due: time.monotonic() >= due, length + 1, None)
            question = self._question(time.monotonic() - started)
            if question is not None:
                self._ask(question, time.monotonic() - started)
        asked = time.monotonic()  # the summary tells the state after the last answer
        self._wait(lambda: self.status_at > asked, 5.0, lambda: "~/cache_status fell silent")

    def _question(self, elapsed: float) -> Question | None:
        """What to ask now; where the truth is known, right after a chunk has been remembered."""
        if not self.examiner.exact:
            return self.examiner.question(self._memory_time(elapsed))
        for _ in range(self.CHUNKS_TO_WAIT):
            with self._telling(self._progress):
                known = self._chunks()
                self._wait(lambda known=known: self._chunks() > known, 10.0, None)
            question = self.examiner.question(self._memory_time(elapsed))
            if question is not None:
                return question
        return None

    def _ask(self, question: Question, elapsed: float) -> None:
        request = Query.Request(question=question.text, choices=list(question.choices))
        request.max_new_tokens = self.options["max_new_tokens"]
        future = self.query.call_async(request)
        with self._telling(f"Asking: {question.text}"):
            self._wait(
                future.done,
                self.options["patience"],
                lambda: f"no answer to {question.text!r}",
            )
        self.report.add(self._exchange(question, future.result().answer, elapsed))

    def _exchange(self, question: Question, reply: Answer, elapsed: float) -> Exchange:
        now = self.get_clock().now().nanoseconds / 1e9
        newest = seconds(reply.newest_stamp)
        error, verdict = "", Verdict()
        if reply.error_code != Answer.NONE:
            error = f"{reply.error_message} (code {reply.error_code})"
        else:
            origin = newest - elapsed if self.origin is None else self.origin
            verdict = self.examiner.judge(question, reply.text, newest - origin)
        return Exchange(
            at=self._source_time(elapsed),
            question=question.text,
            choices=question.choices,
            answer=reply.text,
            error=error,
            ttft=seconds(reply.ttft),
            latency=seconds(reply.latency),
            seen_ago=tuple(
                (now - seconds(span.start), now - seconds(span.end)) for span in reply.seen
            ),
            memory=memory_of(reply.cache_status),
            right=verdict.right,
            truth=verdict.truth,
            judged=self.examiner.exact,
        )

    # Small questions about the state of things. -----------------------------------------------

    def _state(self) -> str:
        return self.status.state if self.status else ""

    def _frames_in_memory(self) -> int:
        return self.status.frames if self.status else 0

    def _chunks(self) -> int:
        return self.status.chunks if self.status else 0

    def _source_time(self, elapsed: float) -> float:
        """Seconds since the source's first frame; since ours, if the source does not tell."""
        if self.origin is None:
            return elapsed
        return self.get_clock().now().nanoseconds / 1e9 - self.origin

    def _memory_time(self, elapsed: float) -> float:
        """The source's time of the newest frame in memory, as far as the last status tells."""
        if self.origin is None or self.status is None:
            return elapsed
        return seconds(self.status.newest_stamp) - self.origin

    def _why_not_active(self) -> str:
        if self.status is None:
            return "it cannot be seen: no message on ~/cache_status"
        return f"its state is {self._state() or 'unknown'}"

    def _why_no_frames(self) -> str:
        received = self.status.frames_received if self.status else 0
        return f"it received {received} images and took none into memory"

    def _progress(self) -> str:
        status = self.status
        if status is None:
            return "The video runs"
        return (
            f"The video runs: {status.frames_received:,} images received, {status.frames:,} in "
            f"memory, {status.length:,} of {status.cap:,} tokens"
        )

    # Waiting. ---------------------------------------------------------------------------------

    def _wait(self, condition, limit: float, why) -> None:
        """Until ``condition()``; after ``limit`` seconds fail with ``why()`` (None: just go on)."""
        end = time.monotonic() + limit
        while not condition():
            if not self.context.ok():
                raise ExternalShutdownException
            self._refuse_second_node()
            if time.monotonic() > end:
                if why is None:
                    return
                raise DemoFailed(
                    f"waited {limit:.0f} s for the node {self.options['node']}: {why()}"
                )
            self._spinner_tick()
            time.sleep(0.02)

    def _refuse_second_node(self) -> None:
        """Two nodes of one name both answer; looked for once a second."""
        if time.monotonic() < self._look_again_at:
            return
        self._look_again_at = time.monotonic() + 1.0
        name = self.resolve_service_name(self.query.srv_name).rpartition("/")[0]
        if names_seen_by(self).count(name) > 1:
            raise DemoFailed(
                f"two nodes named {name} run on this ROS graph: end the other one, or give this "
                "one another namespace"
            )

    @contextlib.contextmanager
    def _telling(self, text):
        """A spinning line with ``text`` (or what it returns) while waiting; on terminals only."""
        self._spinner_tick = lambda: None
        if not self.report.console.is_terminal:
            yield
            return
        say = text if callable(text) else lambda: text
        with self.report.console.status(say(), spinner="dots") as spinner:
            if callable(text):
                self._spinner_tick = lambda: spinner.update(text())
            yield
        self._spinner_tick = lambda: None

    def _spinner_tick(self) -> None:
        """Replaced while a spinning line is shown."""


def main(arguments: list[str] | None = None) -> int:
    """Run the client to its end; 0 if everything was answered and held, else 1; 2 for parameters
    that are of no use, 130 after a signal."""
    return run("client", DemoClient, DemoClient.run, arguments, interrupted=INTERRUPTED, refused=2)


if __name__ == "__main__":
    leave(main())

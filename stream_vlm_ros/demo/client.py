# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Asks the node questions while the video runs, and prints what it answers.

Runs as its own process::

    python -m stream_vlm_ros.demo.client --ros-args -p seconds:=40.0
"""

from __future__ import annotations

from stream_vlm_ros.engine.inputs.timestamps import SECOND
from stream_vlm_ros.processes.ros_process import INTERRUPTED, end_quietly_on_signals, leave, run

if __name__ == "__main__":
    end_quietly_on_signals(INTERRUPTED)  # before the imports, which are slow

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile
from std_msgs.msg import Header
from stream_vlm.msg import Answer, CacheStatus

from stream_vlm_ros.client.messages import is_a_guess, seconds
from stream_vlm_ros.client.node_client import NodeClient, NodeUnavailableError
from stream_vlm_ros.console import one_line
from stream_vlm_ros.demo.prompt import typed_questions
from stream_vlm_ros.demo.report import Exchange, Frames, Memory, Report
from stream_vlm_ros.demo.settings import ClientSettings
from stream_vlm_ros.node.parameters import declare
from stream_vlm_ros.world.examiner import Question, Verdict, examiner_for


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
        self.origin: float | None = None  # stamp of the source's first frame, seconds
        self.asked = NodeClient(self, self.options["node"], self._note_status)
        self._tick: Callable[[], None] = lambda: None  # turns the line that spins
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

    def _note_status(self, message: CacheStatus) -> None:
        self.report.note_memory(memory_of(message), frames_of(message))

    def _take_origin(self, message: Header) -> None:
        self.origin = seconds(message.stamp)

    # The run, top to bottom. ------------------------------------------------------------------

    def run(self) -> int:
        """Ask, and say what came of it; the exit status: 0 if everything was answered and held."""
        try:
            self._run()
        except NodeUnavailableError as failure:
            self.report.fail(str(failure))
        self.report.summary()
        return 1 if self.report.failures else 0

    def _run(self) -> None:
        """Wait for the node and its first frames, then ask until the time is over."""
        patience, length = self.options["patience"], self.options["seconds"]
        with self._telling("Waiting for the node to load its model"):
            self._wait(lambda: self.asked.ready, patience, self.asked.why_not_ready)
        with self._telling("Waiting for the first frames"):
            self._wait(lambda: self.asked.frames > 0, patience, self.asked.why_no_frames)
        started = time.monotonic()
        count = self.options["count"] or max(2, round(length / self.examiner.every))
        for index in range(1, count + 1):
            if not self.options["count"] and index > 2 and time.monotonic() > started + length:
                break  # slow answers: the time asked for counts, not the number of questions
            due = started + length * index / count
            with self._telling(self._progress):
                self._pass_time(until=due)
            question = self._question(time.monotonic() - started)
            if question is not None:
                self._ask(question, time.monotonic() - started)
        if self.options["typed"]:
            for text in typed_questions():
                self._ask(Question(text), time.monotonic() - started, typed=True)
        asked = time.monotonic()  # the summary tells the state after the last answer
        silent = "~/cache_status fell silent"
        self._wait(lambda: self.asked.status_at > asked, 5.0, lambda: silent)

    def _question(self, elapsed: float) -> Question | None:
        """What to ask now; where the truth is known, right after a chunk has been remembered."""
        if not self.examiner.exact:
            return self.examiner.question(self._memory_time(elapsed))
        for _ in range(self.CHUNKS_TO_WAIT):
            with self._telling(self._progress):
                self._pass_time(until=time.monotonic() + 10.0, chunks=self.asked.chunks + 1)
            question = self.examiner.question(self._memory_time(elapsed))
            if question is not None:
                return question
        return None

    def _ask(self, question: Question, elapsed: float, typed: bool = False) -> None:
        limit = self.options["max_new_tokens"]
        future = self.asked.ask(question.text, question.choices, limit)
        with self._telling(f"Asking: {question.text}"):
            self._wait(
                future.done,
                self.options["patience"],
                lambda: f"no answer to {one_line(question.text)!r}",
            )
        self.report.add(self._exchange(question, future.result().answer, elapsed, typed))

    def _exchange(self, question: Question, reply: Answer, elapsed: float, typed: bool) -> Exchange:
        now = self.get_clock().now().nanoseconds / SECOND
        newest = seconds(reply.newest_stamp)
        error, verdict = "", Verdict()
        if reply.error_code != Answer.NONE:
            error = f"{reply.error_message} (code {reply.error_code})"
        elif not typed:
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
            judged=self.examiner.exact and not typed,
            typed=typed,
            forgotten=is_a_guess(reply),
        )

    # Small questions about the state of things. -----------------------------------------------

    def _source_time(self, elapsed: float) -> float:
        """Seconds since the source's first frame; since ours, if the source does not tell."""
        if self.origin is None:
            return elapsed
        return self.get_clock().now().nanoseconds / SECOND - self.origin

    def _memory_time(self, elapsed: float) -> float:
        """The source's time of the newest frame in memory, as far as the last status tells."""
        if self.origin is None or self.asked.status is None:
            return elapsed
        return seconds(self.asked.status.newest_stamp) - self.origin

    def _progress(self) -> str:
        status = self.asked.status
        if status is None:
            return "The video runs"
        return (
            f"The video runs: {status.frames_received:,} images received, {status.frames:,} in "
            f"memory, {status.length:,} of {status.cap:,} tokens"
        )

    # Waiting. ---------------------------------------------------------------------------------

    def _wait(self, condition: Callable[[], bool], limit: float, why: Callable[[], str]) -> None:
        """Until ``condition()``; raises NodeUnavailableError with ``why()`` after ``limit``
        seconds."""
        self.asked.wait(condition, why, limit, self._meanwhile)

    def _pass_time(self, until: float, chunks: int | None = None) -> None:
        """Until that monotonic time, or until the memory has taken in so many ``chunks``."""

        def over() -> bool:
            enough = chunks is not None and self.asked.chunks >= chunks
            return enough or time.monotonic() >= until

        self.asked.wait(over, str, float("inf"), self._meanwhile)

    def _meanwhile(self) -> None:
        self.asked.refuse_second_node()
        self._tick()
        time.sleep(0.02)

    @contextlib.contextmanager
    def _telling(self, text: str | Callable[[], str]) -> Iterator[None]:
        """A spinning line with ``text`` (or what it returns) while waiting; on terminals only."""
        if not self.report.console.is_terminal:
            yield
            return
        first = text() if callable(text) else text
        spinner = self.report.spinning(first)
        with spinner:
            if callable(text):
                self._tick = lambda: spinner.say(text())
            yield
        self._tick = lambda: None


def main(arguments: list[str] | None = None) -> int:
    """Run the client to its end; 0 if everything was answered and held, else 1; 2 for parameters
    that are of no use, 130 after a signal."""
    return run("client", DemoClient, DemoClient.run, arguments, interrupted=INTERRUPTED, refused=2)


if __name__ == "__main__":
    leave(main())

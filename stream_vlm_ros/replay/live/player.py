# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Plays a source to the node over DDS, asks it questions at their times, and notes what comes.

The counterpart of ``stream-vlm replay --realtime``, which starts it as a process of its own::

    python -m stream_vlm_ros.replay.live.player JOB.json --ros-args -r image:=/camera

JOB.json says what to do (``Job``); what happens is written to ``Job.result``, a line of JSON each.
"""

from __future__ import annotations

from stream_vlm_ros.processes.ros_process import INTERRUPTED, end_quietly_on_signals, leave, run

if __name__ == "__main__":
    end_quietly_on_signals(INTERRUPTED)  # before the imports, which are slow

import json
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stream_vlm_ros.client.messages import (
    image_message,
    nanoseconds,
    seconds,
    set_stamp,
)
from stream_vlm_ros.engine.inputs.stamp_check import MAX_WAITING
from stream_vlm_ros.engine.inputs.timestamps import SECOND
from stream_vlm_ros.errors import StreamVlmError
from stream_vlm_ros.processes.children import Processes
from stream_vlm_ros.sources import open_source

CLOCK_PERIOD = 0.01  # seconds between two messages on /clock
ASTRAY = 60 * SECOND  # a clock so far from the images' stamps is not theirs
SAME_STATUSES = 10  # of a node that has settled, though images were lost or frames wait
LATE = 0.25  # seconds; a frame that is later than this is skipped, as a camera would
# Where a source's stamps begin at zero the node would take it for one without a clock, and the
# clock must have time to run before the first frame.
FORERUN_NS = 3600 * SECOND
SHIFT_NS = 1_000_000 * SECOND


@dataclass(frozen=True)
class Job:
    """What to play and ask.

    Attributes:
        result: the file to write.
        node: name of the node that is asked.
        source: as ``open_source`` takes it, with ``options``; None: somebody else plays, and the
            time is that of ``/clock``.
        play: without a source: the command that plays it, run once the node is ready; None: it is
            played already.
        asks: ``id``, ``offset_ns`` (None: at the end), ``text``, ``choices``, ``about_ns`` (from
            and to, or None), ``max_new_tokens``. Times count from the first frame.
        rate: how many times faster than real time.
        end_ns: without a source: how long after the first frame to stop; None: when it has ended.
        camera: without a source: the name of the image topic, for the report.
        probe: instead find the highest camera rate: ``seconds`` a trial, ``highest`` rate tried,
            ``loss`` allowed.
        parameters: names of the node's parameters to note.
        patience: seconds to wait for the node, or for an answer.
        idle: without a source: seconds without progress of ``/clock`` after which it has ended.
    """

    result: str
    node: str = "/stream_vlm"
    source: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    play: list[str] | None = None
    end_ns: int | None = None
    camera: str = ""
    asks: list[dict[str, Any]] = field(default_factory=list)
    rate: float = 1.0
    probe: dict[str, float] | None = None
    parameters: list[str] = field(default_factory=list)
    patience: float = 180.0
    idle: float = 5.0


def highest_rate(
    measure: Callable[[float], float], highest: float, loss: float, lowest: float = 1.0
) -> float:
    """The highest rate at which ``measure(rate)``, the share lost, stays below ``loss``; 0 if none
    does. Doubles the rate until it is too high, then halves the interval until it is 5 % wide."""
    good, bad = 0.0, None
    rate = lowest
    while bad is None and rate <= highest:
        if measure(rate) < loss:
            good, rate = rate, min(rate * 2, highest) if rate < highest else rate * 2
        else:
            bad = rate
    while bad is not None and good and bad - good > max(0.05 * good, 0.25):
        middle = (good + bad) / 2
        if measure(middle) < loss:
            good = middle
        else:
            bad = middle
    return good


def has_settled(pending: int, said: int, arrived: bool, stranded: int = 0) -> bool:
    """Whether a node has taken in all there was, by its last statuses.

    Args:
        pending: frames that it has pending.
        said: statuses since the first with these counts. That one may have been on its way before
            the last image.
        arrived: it has received every image; if not, images may have been lost on the way.
        stranded: pending frames that may wait for others, which will not come.
    """
    if said < (2 if arrived else SAME_STATUSES):
        return False
    return pending == 0 or (said >= SAME_STATUSES and pending <= stranded)


class Player:
    """The publishing, asking and noting; all of ROS that the job needs."""

    def __init__(self, job: Job) -> None:
        from diagnostic_msgs.msg import DiagnosticArray
        from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
        from rclpy.node import Node
        from rclpy.qos import QoSProfile, ReliabilityPolicy
        from rosgraph_msgs.msg import Clock
        from sensor_msgs.msg import Image

        from stream_vlm_ros.client.node_client import NodeClient

        self.job = job
        self._ended = ExternalShutdownException
        self.node = Node("replay_player")
        self._result = open(job.result, "w", encoding="utf-8")  # noqa: SIM115 (closed by close)
        self._lock = threading.Lock()
        self.clock_ns: int | None = None  # the source's time as /clock tells it
        self._clock_type = Clock
        self.asked = NodeClient(self.node, job.node, self._note_status)
        self._node_clock_ns = 0  # the node's time, by its diagnostics
        if job.source is not None:
            self.node.create_subscription(DiagnosticArray, "/diagnostics", self._take_health, 10)
            reliable = QoSProfile(depth=5, reliability=ReliabilityPolicy.RELIABLE)
            self.images = self.node.create_publisher(Image, "image", reliable)
            self.clock = self.node.create_publisher(Clock, "/clock", 10)
        else:
            self.node.create_subscription(Clock, "/clock", self._take_clock, 10)
        self.executor = SingleThreadedExecutor()
        self.executor.add_node(self.node)
        self.awaited = 0  # answers that have not been noted
        self.published = self.skipped = 0
        self._sent = 0  # images, in all trials
        self._origin_ns = 0  # stamp of the first frame, as published
        self._most_stranded = 0  # frames of an open chunk, or after a pause
        self._over = False  # what came of the job has been noted

    def close(self) -> None:
        """Destroy the node; a job that is not over was interrupted."""
        with ExitStack() as steps:
            steps.callback(self.node.destroy_node)
            steps.callback(self.executor.shutdown, timeout_sec=1.0)
            steps.callback(self._result.close)
            if not self._over:
                self.note_end(interrupted=True)

    # -- the job, top to bottom ----------------------------------------------------------------

    def work(self) -> int:
        """Do the job; 0, or 1 with a line on stderr if it cannot be done."""
        try:
            self.run()
        except StreamVlmError as failure:
            print(f"replay_player: {failure}", file=sys.stderr, flush=True)
            self._note("failed", message=str(failure))
            self._over = True
            return 1
        self._over = True
        return 0

    def run(self) -> None:
        """Do the job; raises PlayerFailed with the reason if the node does not play along."""
        job = self.job
        self._wait(lambda: self.asked.ready, self.asked.why_not_ready)
        if job.parameters:
            self._note_parameters()
        if job.probe:
            self._probe(**job.probe)
        elif job.source is not None:
            self._play()
        else:
            self._follow()
        if not job.probe:
            self._settle()
            self._ask_all(offset_ns=None)
            self._wait(lambda: not self.awaited, lambda: "answers are missing")
            self._settle()
        self.note_end()

    def note_end(self, **more: Any) -> None:
        """Note what was done, and the node's counters."""
        self._note(
            "end", published=self.published, skipped=self.skipped, **self.asked.counts, **more
        )

    def _play(self) -> None:
        """Publish the frames at their own pace, and ask when the source's time has come."""
        begin: float | None = None
        first = shift = 0
        source = open_source(self.job.source or "", **self.job.options)
        for frame in source:
            if begin is None:
                first = frame.stamp_ns
                shift = SHIFT_NS if first < FORERUN_NS else 0
                self._wait_until_heard(first + shift)
                begin = time.monotonic()
                self._begin(first + shift, first, frame.source)
            stamp = frame.stamp_ns + shift
            due = begin + (frame.stamp_ns - first) / SECOND / self.job.rate
            while time.monotonic() < due:
                self._advance(begin, first + shift, until=due)
            self._ask_all(offset_ns=frame.stamp_ns - first)
            if time.monotonic() - due > LATE:
                self.skipped += 1
                continue
            self.images.publish(image_message(frame.image, stamp))
            self.published += 1
            self._sent += 1
            self._publish_clock(stamp)
            self._serve(0)
        self._note("source", **_counts_of(source))

    def _follow(self) -> None:
        """Ask by the source's time, until its end, or its player's, or it stands still.

        Time counts from the first frame; for a memory that was there before us, from now.
        """
        if self.job.play:
            self._call_reset()
            self._wait(lambda: self.asked.frames == 0, lambda: "its memory does not get empty")
        came_late = self.asked.frames > 0
        with Processes(Path(self.job.result).parent, {}) as playing:
            if self.job.play:
                try:
                    playing.run("player", self.job.play, log=False)
                except OSError as error:
                    raise PlayerFailed(f"{self.job.play[0]} cannot be run: {error}") from None
            self._wait(lambda: self.asked.frames > 0, self.asked.why_no_frames)
            origin = nanoseconds(
                self._status.newest_stamp if came_late else self._status.oldest_stamp
            )
            self._begin(origin, origin, self.job.camera)
            moved, last = time.monotonic(), None
            while time.monotonic() - moved < self.job.idle:
                if self.job.play and playing.status("player") is not None:
                    break
                self._serve(0.02)
                now = self._source_time()
                if now != last:
                    moved, last = time.monotonic(), now
                self._ask_all(offset_ns=now - origin)
                if self.job.end_ns is not None and now - origin >= self.job.end_ns:
                    break

    def _source_time(self) -> int:
        """The time of /clock; without it, or where it is not that of the images' headers (a bag
        may be played by the time of its recording), the newest frame's."""
        newest = nanoseconds(self._status.newest_stamp)
        if self.clock_ns is None or abs(self.clock_ns - newest) > ASTRAY:
            return newest
        return self.clock_ns

    def _probe(self, seconds: float, highest: float, loss: float) -> None:
        """Find the highest rate at which the node takes the frames in."""
        pictures = []
        for frame in open_source(self.job.source or "", **self.job.options):
            pictures.append(frame.image)
            if len(pictures) == 32:
                break
        stamp = SHIFT_NS
        self._wait_until_heard(stamp)

        def measure(rate: float) -> float:
            nonlocal stamp
            trial = self._trial(rate, seconds, pictures, stamp)
            stamp = trial.pop("next_ns")
            self._note("trial", **trial)
            return trial["lost"]

        self._trial(2.0, 2.0, pictures, stamp)  # warms up
        stamp += 10 * SECOND
        self._note("highest_rate", rate=highest_rate(measure, highest, loss))

    def _trial(self, rate: float, seconds: float, pictures: list, stamp: int) -> dict[str, Any]:
        """Publish at ``rate`` for some seconds; what became of the frames."""
        self._call_reset()
        before = self._settle()
        count = max(4, round(rate * seconds))
        period = round(SECOND / rate)
        messages = [image_message(p, 0) for p in pictures[:32]]
        begin = time.monotonic()
        for number in range(count):
            due = begin + number / rate
            while (left := due - time.monotonic()) > 0:
                self._serve(min(left, 0.01))
            message = messages[number % len(messages)]
            set_stamp(message.header.stamp, stamp + number * period)
            self.images.publish(message)
            self._sent += 1
            if number % max(1, round(rate * CLOCK_PERIOD)) == 0:
                self._publish_clock(stamp + number * period)
        published_in = time.monotonic() - begin
        end = stamp + count * period
        after = self._settle(end)
        took = time.monotonic() - begin
        gone = {k: after[k] - before.get(k, 0) for k in after}
        ingested = gone["frames_ingested"]
        return {
            "rate": rate,
            "achieved_rate": (count - 1) / published_in if published_in else rate,
            "published": count,
            "received": gone["frames_received"],
            "ingested": ingested,
            "missed": count - ingested,
            "lost": 1 - ingested / count,
            "mean_rate_taken_in": ingested / took,
            "drops": {k: v for k, v in gone.items() if k.startswith("dropped_") and v},
            "next_ns": end + 10 * SECOND,
        }

    # -- asking --------------------------------------------------------------------------------

    def _ask_all(self, offset_ns: int | None) -> None:
        """Ask what is due before ``offset_ns``; None: what is asked at the end."""
        asks = self.job.asks
        due = [
            a
            for a in asks
            if (a["offset_ns"] is None) == (offset_ns is None)
            and (offset_ns is None or a["offset_ns"] < offset_ns)
        ]
        for ask in due:
            asks.remove(ask)
            self._ask(ask)

    def _begin(self, origin_ns: int, source_ns: int, camera: str) -> None:
        self._origin_ns = origin_ns
        self._note("origin", stamp_ns=origin_ns, source_ns=source_ns, camera=camera)

    def _ask(self, ask: dict[str, Any]) -> None:
        about = ask.get("about_ns")
        sent = time.monotonic()
        future = self.asked.ask(
            ask["text"],
            ask["choices"],
            ask.get("max_new_tokens") or 0,
            about and (self._origin_ns + about[0], self._origin_ns + about[1]),
        )
        future.add_done_callback(lambda done: self._take_answer(ask["id"], done, sent))
        self.awaited += 1

    def _take_answer(self, ask_id: str, future: Any, sent: float) -> None:
        self.awaited -= 1
        response = future.result()
        if response is None:
            self._note("failed", id=ask_id, message="the node went away")
            return
        reply = response.answer
        self._note(
            "answer",
            id=ask_id,
            answer=reply.text,
            choice_index=reply.choice_index,
            scores=[float(score) for score in reply.choice_scores],
            choice_tokens=list(reply.choice_tokens),
            error_code=reply.error_code,
            error_message=reply.error_message,
            seen=[[nanoseconds(span.start), nanoseconds(span.end)] for span in reply.seen],
            episodes=[
                {
                    "start": nanoseconds(episode.span.start),
                    "end": nanoseconds(episode.span.end),
                    "score": float(episode.score),
                    "tier": episode.tier,
                    "stamps": [nanoseconds(stamp) for stamp in episode.stamps],
                }
                for episode in reply.evidence
            ],
            fetched_tokens=reply.fetched_tokens,
            ttft=seconds(reply.ttft),
            latency=seconds(reply.latency),
            waiting=seconds(reply.waiting),
            round_trip_latency=time.monotonic() - sent,
            prompt_tokens=reply.prompt_tokens,
            answer_tokens=reply.answer_tokens,
            finish_reason=reply.finish_reason,
            cache_length=reply.cache_status.length,
        )

    # -- the node ------------------------------------------------------------------------------

    @property
    def _status(self) -> Any:
        """The newest; there is one once the node is ready."""
        assert self.asked.status is not None
        return self.asked.status

    def _note_status(self, message: Any) -> None:
        self._note(
            "status",
            stamp_ns=nanoseconds(message.newest_stamp),
            length=message.length,
            memory_bytes=message.memory_bytes,
            evicted_tokens=message.evicted_tokens,
            closed_pauses=message.closed_pauses,
            closed_seconds=message.closed_seconds,
            frames=message.frames,
            **self.asked.counts,
        )

    def _take_health(self, message: Any) -> None:
        self._node_clock_ns = nanoseconds(message.header.stamp)

    def _take_clock(self, message: Any) -> None:
        self.clock_ns = nanoseconds(message.clock)

    def _settle(self, clock_ns: int | None = None) -> dict[str, int]:
        """Wait until the node has taken in all there was and has nothing pending; its counters.

        Images may be lost on the way: then it has settled when it said the same ten times over. A
        node that says nothing, since it is busy, has not settled. Where another program played and
        has ended, its last frames may wait for ever: for a jump of time to be believed, or, where
        max_chunk_delay is 0, for a chunk to be full. Where nothing is played from here the node may
        see a camera, which never pauses: then nothing is waited for.
        """
        if self.job.source is None and self.job.play is None:
            return self.asked.counts
        steady, last = self.asked.statuses, None
        end = time.monotonic() + self.job.patience
        advance = clock_ns
        while time.monotonic() < end:
            if self.job.source is not None and advance is not None:
                advance += round(CLOCK_PERIOD * SECOND)
                self._publish_clock(advance)
            elif self.job.source is not None and self.clock_ns is not None:
                self._publish_clock(self.clock_ns + round(CLOCK_PERIOD * SECOND))
            self._serve(CLOCK_PERIOD)
            counts = self.asked.counts
            if counts != last:
                steady, last = self.asked.statuses, counts
            said = self.asked.statuses - steady
            # The first may have been on its way before the last image.
            arrived = self.job.source is not None and counts["frames_received"] >= self._sent
            stranded = self._most_stranded if self.job.play else 0
            if has_settled(counts["frames_pending"], said, arrived, stranded):
                break
        return self.asked.counts

    def _note_parameters(self) -> None:
        """What the node is set to: one that ran before us has settings of its own."""
        from rcl_interfaces.srv import GetParameters
        from rclpy.parameter import parameter_value_to_python

        client = self.node.create_client(GetParameters, f"{self.job.node}/get_parameters")
        self._wait(client.service_is_ready, lambda: "its service ~/get_parameters is away")
        future = client.call_async(GetParameters.Request(names=list(self.job.parameters)))
        self._wait(future.done, lambda: "~/get_parameters does not return")
        values = map(parameter_value_to_python, future.result().values)
        told = dict(zip(self.job.parameters, values, strict=True))
        self._most_stranded = told.get("chunk_frames", 1) - 1 + MAX_WAITING
        self._note("parameters", values=told)

    def _call_reset(self) -> None:
        self._wait(self.asked.reset().done, lambda: "~/reset does not return")

    def _wait_until_heard(self, first_ns: int) -> None:
        """Wait until the node hears us: until then, what is published is lost without a trace.

        That we know of its subscription does not mean that it knows of our publisher. But once its
        clock follows ours, it knows of the images' publisher too, which was made before.
        """
        self._wait(
            lambda: self.images.get_subscription_count() > 0,
            lambda: f"it does not listen on {self.images.topic_name}",
        )
        self._publish_clock(first_ns - FORERUN_NS)
        self._wait(
            lambda: self._node_clock_ns >= first_ns - FORERUN_NS,
            lambda: "its clock does not follow /clock: is use_sim_time set?",
        )

    def _wait(self, condition: Callable[[], bool], why: Callable[[], str]) -> None:
        self.asked.wait(condition, why, self.job.patience, self._meanwhile)

    def _meanwhile(self) -> None:
        if self.job.source is not None and self.clock_ns is not None:
            self._publish_clock(self.clock_ns + round(CLOCK_PERIOD * SECOND))
        self._serve(0.02)

    # -- time ----------------------------------------------------------------------------------

    def _advance(self, begin: float, first_ns: int, until: float) -> None:
        """Serve callbacks, and let the clock run, until the next frame is due."""
        now = time.monotonic()
        source_ns = round((now - begin) * self.job.rate * SECOND)
        self._publish_clock(first_ns + source_ns)
        self._ask_all(offset_ns=source_ns)
        self._serve(max(0.0, min(until - now, CLOCK_PERIOD)))

    def _serve(self, seconds: float) -> None:
        """Serve callbacks for at most ``seconds``."""
        if not self.node.context.ok():
            raise self._ended
        self.executor.spin_once(timeout_sec=seconds)

    def _publish_clock(self, stamp_ns: int) -> None:
        if self.clock_ns is not None and stamp_ns <= self.clock_ns:
            return
        self.clock_ns = stamp_ns
        message = self._clock_type()
        set_stamp(message.clock, stamp_ns)
        self.clock.publish(message)

    def _note(self, event: str, **fields: Any) -> None:
        with self._lock:
            self._result.write(json.dumps({"event": event, **fields}) + "\n")
            self._result.flush()


class PlayerFailed(StreamVlmError):
    """The job cannot be done; the message is the reason."""


def _counts_of(source: Any) -> dict[str, Any]:
    state = source.state
    return {
        "decoded": state.counts.decoded,
        "unusable": state.counts.unusable,
        "unordered": state.counts.unordered,
        "unwanted": state.counts.unwanted,
        "damage": state.damage,
        "notes": list(state.notes),
    }


def main(arguments: list[str] | None = None) -> int:
    """Do the job of the file named first; 0 when it is done, 1 with a line on stderr if not."""
    arguments = sys.argv[1:] if arguments is None else arguments
    job = Job(**json.loads(Path(arguments[0]).read_text(encoding="utf-8")))
    return run(
        "replay_player",
        lambda: Player(job),
        Player.work,
        arguments[1:],
        interrupted=INTERRUPTED,
    )


if __name__ == "__main__":
    leave(main())

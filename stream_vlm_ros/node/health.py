# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""What is counted in the node, and what /diagnostics says of it, as plain values.

The keys ``frame_rate_msg``, ``current_delay_from_realtime_ms``, ``expected_frequency`` and
``tolerance`` are those that existing dashboards read.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from threading import Lock
from typing import Protocol

from stream_vlm_ros.config import Settings
from stream_vlm_ros.console import duration_text, plural
from stream_vlm_ros.engine.inputs.timestamps import SECOND
from stream_vlm_ros.session.counters import ON_PURPOSE, Drop, FrameCounters
from stream_vlm_ros.session.memory_keeper import SavedState

TOLERANCE_PERCENT = 10.0


class Level(IntEnum):
    """The levels of ``diagnostic_msgs/DiagnosticStatus``."""

    OK = 0
    WARN = 1
    ERROR = 2
    STALE = 3


@dataclass(frozen=True)
class Health:
    """One status: what it is about, how it is, in words and in figures."""

    task: str
    level: Level
    message: str
    values: dict[str, str]


class RunningClock:
    """The node's clock, which runs on by the steady one while it stands: simulated time, when a bag
    is paused or over. What waits in the node waits by this one."""

    def __init__(self, steady: Callable[[], float] = time.monotonic) -> None:
        self._steady = steady
        self._moved = (0, steady())  # (the node's clock, the steady one) when it last moved

    def of(self, now_ns: int) -> int:
        """The time, with that of the node's clock; both in nanoseconds."""
        return now_ns + round(self.stands_for(now_ns) * SECOND)

    def stands_for(self, now_ns: int) -> float:
        """Seconds since the node's clock moved."""
        steady, (moved_ns, since) = self._steady(), self._moved
        if now_ns == moved_ns:
            return max(0.0, steady - since)
        self._moved = (now_ns, steady)
        return 0.0


class _Pace:
    """How often something comes, until it has failed to come for `STOPPED` of its usual steps."""

    STOPPED, SHORT = 3, 1.0  # steps; seconds, of which no silence is shorter

    def __init__(self, window: int) -> None:
        self.times: deque[int] = deque(maxlen=window)

    def record(self, time_ns: int) -> None:
        # From the first one after a silence on, the rate is that of what has come since.
        if self.times and (time_ns < self.times[-1] or self.has_stopped(time_ns)):
            self.times.clear()
        self.times.append(time_ns)

    def has_stopped(self, now_ns: int) -> bool:
        longest = max(self.SHORT, self.STOPPED / self.rate) if self.rate else math.inf
        # The clock may be back from having run on while it stood.
        return abs(now_ns - self.times[-1]) > longest * SECOND if self.times else False

    @property
    def rate(self) -> float:
        """A second; 0 if unknown."""
        span = self.times[-1] - self.times[0] if self.times else 0
        return (len(self.times) - 1) * SECOND / span if span > 0 else 0.0


class InputMonitor:
    """Rate and delay of the images that arrive. All times are of the node's clock, in ns.

    The images' thread records, the status' thread reads.
    """

    def __init__(self, window: int = 64) -> None:
        self.count = 0
        self._lock = Lock()
        self._arrivals, self._stamps = _Pace(window), _Pace(window)
        self._idle_since_ns: int | None = None

    def record(self, stamp_ns: int, now_ns: int) -> None:
        """An image with this stamp arrived now."""
        with self._lock:
            self.count += 1
            stamps = self._stamps.times
            if stamps and (stamp_ns <= stamps[-1] or self._arrivals.has_stopped(now_ns)):
                stamps.clear()
            self._arrivals.record(now_ns)
            self._stamps.record(stamp_ns)
            self._idle_since_ns = now_ns

    def seconds_without_image(self, now_ns: int) -> float:
        """Since the last image, or since the first call if there was none."""
        with self._lock:
            if self._idle_since_ns is None or now_ns < self._idle_since_ns:
                self._idle_since_ns = now_ns
            return (now_ns - self._idle_since_ns) / SECOND

    def arrival_rate(self, now_ns: int) -> float:
        """Images a second by their arrival; 0 if unknown, and where they have ceased to come."""
        with self._lock:
            return 0.0 if self._arrivals.has_stopped(now_ns) else self._arrivals.rate

    def stamp_rate(self, now_ns: int) -> float:
        """Images a second by their stamps; 0 if unknown, and where they have ceased to come."""
        with self._lock:
            return 0.0 if self._arrivals.has_stopped(now_ns) else self._stamps.rate

    @property
    def delay_ms(self) -> float | None:
        """Arrival less stamp of the last image; None without an image or without stamps."""
        with self._lock:
            arrivals, stamps = self._arrivals.times, self._stamps.times
            if not arrivals or not stamps or stamps[-1] == 0:
                return None
            return (arrivals[-1] - stamps[-1]) / 1e6


@dataclass(frozen=True)
class InputFacts:
    """What :func:`input_health` judges."""

    topic: str
    active: bool
    silent_for: float  # seconds without an image
    timeout: float  # seconds
    cause: str  # the likely cause of silence, in words
    stamp_rate: float
    arrival_rate: float
    delay_ms: float | None
    expected_rate: float  # sample_fps
    arrival_timed: bool
    clock_fault: str  # what is wrong with the node's clock, or ''
    counts: dict[str, int]  # FrameCounters.snapshot()
    new_faults: dict[str, int]  # drops since the last status that are not on purpose
    messages_lost: int
    newly_lost: int  # of them, since the last status
    publishers: tuple[str, ...]  # the nodes that publish on the topic
    refusals: Mapping[str, str]  # the last words of each kind of drop, the newest last
    qos: str
    paused: bool = False
    lost_why: str = ""  # why there is no connection to the server that has the memory, or ''

    @property
    def silent(self) -> bool:
        """Whether images have failed to come for too long."""
        return self.silent_for > self.timeout

    @property
    def silence(self) -> str:
        """In words, where no image arrives."""
        return f"no image on {self.topic} for {self.silent_for:.0f} s: {self.cause}"


@dataclass
class SilenceNews:
    """What the log says about missing images: the same as /diagnostics, but not every time."""

    _told: tuple[str, str] | None = None  # topic and cause

    def of(self, facts: InputFacts) -> str:
        """The words for the log; '' if it knows already or there is nothing to tell.

        It is logged once, again when topic or cause change, and again after images have come.
        """
        if facts.clock_fault:  # how long no image came cannot be said
            return ""
        before, self._told = self._told, (facts.topic, facts.cause) if facts.silent else None
        return facts.silence if self._told not in (None, before) else ""


class ImageSource(Protocol):
    """What is asked of the image input."""

    messages_lost: int

    @property
    def topic(self) -> str:
        """The topic subscribed to."""

    @property
    def reliable(self) -> bool:
        """Whether every image is asked for."""

    def publishers(self) -> tuple[str, ...]:
        """The names of the nodes that publish on the topic, once for each publisher."""

    def cause_of_silence(self) -> str:
        """Why no image arrives, as far as the graph tells."""


class Figures:
    """What is counted from one configuring to the next, and the facts that come of it.

    Attributes:
        counters: what became of every frame.
        monitor: of the images that arrive.
        refusals: the last words about each kind of drop that had any, the newest last.
    """

    def __init__(self) -> None:
        self.counters = FrameCounters()
        self.monitor = InputMonitor()
        self.refusals: dict[str, str] = {}
        self._reported_drops = dict.fromkeys(Drop, 0)
        self._reported_lost = 0
        self._was_cut_off = False  # at the last status
        self.clock = RunningClock()

    def refuse(self, cause: Drop, words: str) -> None:
        """Remember why frames were dropped."""
        others = {name: told for name, told in self.refusals.items() if name != cause.value}
        self.refusals = others | {cause.value: words}

    def input_facts(
        self,
        source: ImageSource,
        now_ns: int,
        parameters: Settings,
        *,
        active: bool,
        paused: bool,
        arrival_timed: bool,
        simulated_time: bool,
        lost_why: str = "",
    ) -> InputFacts:
        """The facts now; the faults among them are those since the last call."""
        running_ns = self.clock.of(now_ns)
        silent_for = self.monitor.seconds_without_image(running_ns)
        timeout = parameters.no_image_timeout
        drops = dict(self.counters.dropped)
        before, self._reported_drops = self._reported_drops, drops
        lost = source.messages_lost
        newly_lost, self._reported_lost = lost - self._reported_lost, lost
        new_faults = {c.value: drops[c] - before[c] for c in Drop if c.cause not in ON_PURPOSE}
        if lost_why or self._was_cut_off:  # of these `lost_why` tells, be there new ones or not
            new_faults[Drop.OVERFLOW.value] = 0
        self._was_cut_off = bool(lost_why)
        return InputFacts(
            topic=source.topic,
            active=active,
            silent_for=silent_for,
            timeout=timeout,
            cause=source.cause_of_silence() if silent_for > timeout else "",
            stamp_rate=self.monitor.stamp_rate(running_ns),
            arrival_rate=self.monitor.arrival_rate(running_ns),
            delay_ms=self.monitor.delay_ms,
            expected_rate=parameters.sample_fps,
            arrival_timed=arrival_timed,
            clock_fault=self._clock_fault(now_ns, timeout, simulated_time),
            counts=self.counters.snapshot(),
            new_faults=new_faults,
            messages_lost=lost,
            newly_lost=newly_lost,
            publishers=source.publishers(),
            refusals=self.refusals,
            qos="reliable" if source.reliable else "best effort",
            paused=paused,
            lost_why=lost_why,
        )

    def _clock_fault(self, now_ns: int, timeout: float, simulated_time: bool) -> str:
        """What is wrong with simulated time, if it is used."""
        if not simulated_time:
            return ""
        if now_ns == 0:
            return "use_sim_time is set, but nothing is published on /clock"
        if self.clock.stands_for(now_ns) > timeout:
            return "simulated time stands still: is the bag or the simulator paused?"
        return ""

    def why_empty(self, topic: str, now_ns: int, timeout: float) -> str:
        """Why a question finds no image in memory."""
        silent_for = self.monitor.seconds_without_image(self.clock.of(now_ns))
        if not self.monitor.count or silent_for > timeout:
            return f"no image arrives on {topic}; see /diagnostics"
        return (
            f"images arrive on {topic}, but none is in memory yet; ask again, or see /diagnostics"
        )


LARGE_IMAGES = (
    "large images need other transport settings than the default, or a reliable publisher: see "
    "'Large images' in docs/node.md"
)
_FAULT_WORDS = {
    "dropped_overflow": "frames dropped because the model is slower than the stream: lower "
    "sample_fps or max_pixels, or raise queue_size",
    "dropped_invalid_image": "unusable images",
    "dropped_invalid_stamp": "frames with unusable stamps",
    "dropped_time_jump": "frames lost to a jump of the source's time",
    "dropped_error": "frames in chunks that the model refused",
}


def input_health(facts: InputFacts) -> Health:
    """The status of the image input."""
    level, message = _judge_input(facts)
    values = {
        "topic": facts.topic,
        "qos": facts.qos,
        "frame_rate_msg": f"{facts.stamp_rate:.2f}",
        "frame_rate_node": f"{facts.arrival_rate:.2f}",
        "current_delay_from_realtime_ms": (
            "N/A" if facts.delay_ms is None else f"{facts.delay_ms:.1f}"
        ),
        "expected_frequency": f"{facts.expected_rate:.2f}",
        "tolerance": f"{TOLERANCE_PERCENT:.1f}",
        "seconds_without_image": f"{facts.silent_for:.1f}",
        **{name: str(count) for name, count in facts.counts.items()},
        "messages_lost_in_transport": str(facts.messages_lost),
    }
    if facts.publishers:
        values["publishers"] = ", ".join(facts.publishers)
    if facts.refusals:
        values["last_refusal"] = list(facts.refusals.values())[-1]
    return Health("image input", level, message, values)


def _judge_input(facts: InputFacts) -> tuple[Level, str]:
    if facts.clock_fault:
        return Level.WARN, facts.clock_fault
    if facts.silent:
        return Level.ERROR, facts.silence
    if not facts.active:
        return Level.OK, "not active: images are counted and dropped"
    if facts.paused:
        return Level.WARN, "paused: images are counted and dropped until it is resumed"
    faults = [
        f"{count} {_FAULT_WORDS[name]}"
        + (f" (last: {facts.refusals[name]})" if name in facts.refusals else "")
        for name, count in facts.new_faults.items()
        if count
    ]
    if facts.lost_why:
        faults.insert(
            0, f"{facts.lost_why}: frames wait, and the oldest beyond queue_size are dropped"
        )
    if facts.newly_lost > 0:
        faults.append(f"{facts.newly_lost} images lost on their way ({facts.qos}): {LARGE_IMAGES}")
    if len(facts.publishers) > 1:
        faults.append(
            f"{len(facts.publishers)} publishers on {facts.topic}, whose images mix in one memory: "
            f"{', '.join(facts.publishers)}; end all but one, or remap it"
        )
    if faults:
        return Level.WARN, "; ".join(faults)
    floor = facts.expected_rate * (1 - TOLERANCE_PERCENT / 100)
    if 0 < facts.arrival_rate < floor:
        return (
            Level.WARN,
            f"{facts.arrival_rate:.2f} images/s arrive, fewer than sample_fps "
            f"({facts.expected_rate:.2f})",
        )
    if facts.arrival_timed:
        return (
            Level.WARN,
            "the source leaves header.stamp zero: frames are timed by their arrival, and answers "
            "cannot be matched to the source",
        )
    if facts.arrival_rate == 0:
        return Level.OK, f"waiting for images on {facts.topic}"
    return Level.OK, "images arrive"


@dataclass(frozen=True)
class MemoryFacts:
    """What :func:`memory_health` judges."""

    state: str  # of the lifecycle
    failure: str  # of the last transition, or ''
    model: str
    device: str
    server: str = ""  # that has the memory; "": this node
    lost_why: str = ""  # why there is no connection to it, or ''
    lost_for: float = 0.0  # seconds
    gap: str = ""  # what it has lost, or ''
    engine_fault: str = ""  # what has ended the engine, or ''
    chunk_fault: str = ""  # of the last chunk, or ''
    history_fault: str = ""  # why the history did not take it, or ''
    length: int = 0
    cap: int = 0
    memory_bytes: int = 0
    used_bytes: int = 0  # of the device, or of this process where it is a CPU
    chunks: int = 0
    evictions: int = 0
    closed_pauses: int = 0
    closed_seconds: float = 0.0
    queue_depth: int = 0
    answers: int = 0
    errors: int = 0  # questions that ended in an error


def memory_health(facts: MemoryFacts) -> Health:
    """The status of model and memory."""
    if facts.failure:
        level, message = Level.ERROR, facts.failure
    elif facts.engine_fault:
        level, message = Level.ERROR, facts.engine_fault
    elif facts.lost_why and facts.state == "active":
        level, message = Level.ERROR, f"{facts.lost_why}, for {duration_text(facts.lost_for)}"
    elif facts.chunk_fault:
        level, message = Level.ERROR, f"the last chunk was refused: {facts.chunk_fault}"
    elif facts.state == "configuring":
        level, message = Level.OK, "the model is being loaded"
    elif facts.state != "active":
        level, message = Level.WARN, f"the node is {facts.state}"
    else:
        level = Level.OK
        message = f"{facts.length} of {facts.cap} tokens in memory"
        if facts.history_fault:
            level = Level.WARN
            message += f"; what is seen is not kept for the history: {facts.history_fault}"
        if facts.gap:
            level = Level.WARN
            message += f"; {facts.gap}"
        if facts.closed_pauses:
            pauses = plural(facts.closed_pauses, "pause")
            message += f"; {pauses} left out for the model, {duration_text(facts.closed_seconds)}"
    values = {
        "state": facts.state,
        "model": facts.model,
        "device": facts.device,
        "cache_length": str(facts.length),
        "max_cache_tokens": str(facts.cap),
        "cache_memory_mb": f"{facts.memory_bytes / 1e6:.1f}",
        "used_memory_mb": f"{facts.used_bytes / 1e6:.1f}",
        "chunks": str(facts.chunks),
        "evictions": str(facts.evictions),
        "closed_pauses": str(facts.closed_pauses),
        "closed_seconds": f"{facts.closed_seconds:.1f}",
        "queue_depth": str(facts.queue_depth),
        "answers": str(facts.answers),
        "failed_questions": str(facts.errors),
    }
    if facts.server:
        values["server"] = facts.server
        values["disconnected_seconds"] = f"{facts.lost_for:.1f}"
        values["connection_error"] = facts.lost_why
        values["gap"] = facts.gap
    return Health("model and memory", level, message, values)


def saved_memory_health(state: SavedState, now_ns: int) -> Health:
    """The status of saved memories."""
    level, values = Level.OK, {}
    if state.saved_ns is not None:
        ago = (now_ns - state.saved_ns) / SECOND
        message = f"{state.name} was saved {ago:.0f} s ago, {state.bytes / 1e6:.1f} MB"
        values = {
            "last_save": f"{state.saved_ns / SECOND:.3f}",
            "last_save_file": state.name,
            "last_save_bytes": str(state.bytes),
            "last_save_seconds": f"{state.seconds:.3f}",
        }
    else:
        message = "nothing was saved yet"
    if state.loaded:
        values["loaded_file"] = state.loaded
    if state.error:
        level, message = Level.ERROR, state.error
    return Health("saved memory", level, message, values)

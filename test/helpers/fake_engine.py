# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Stand-ins for the engine. They implement the abstract one, so they cannot drift from it."""

import threading
from concurrent.futures import CancelledError
from dataclasses import fields as fields_of
from dataclasses import replace

from patience import PATIENCE

from stream_vlm_ros.engine.abstract import InferenceEngine
from stream_vlm_ros.engine.decoding import Answer
from stream_vlm_ros.engine.results import (
    AnswerMetrics,
    CacheInfo,
    ChoiceMetrics,
    ChunkResult,
    EvictionStats,
    EvidenceEpisode,
    LevelInfo,
)
from stream_vlm_ros.errors import (
    EmptyMemoryError,
    InvalidTimestampError,
    MemoryFileError,
    OutOfHorizonError,
)
from stream_vlm_ros.history.results import RecallCacheInfo, TierInfo

TOKENS_PER_FRAME = 10
MAX_PAUSE = 300.0


def chunk_result(tokens, evicted_tokens=0, cache_length=0, closed_seconds=0.0):
    return ChunkResult(
        tokens=tokens,
        evicted_tokens=evicted_tokens,
        cache_length=cache_length,
        latency=0.0,
        encode_latency=0.0,
        grid=(0, 0, 0),
        closed_seconds=closed_seconds,
    )


def answer_metrics(answer_tokens=1, finish_reason="length", time_spans=(), episodes=()):
    return AnswerMetrics(
        ttft=0.25,
        latency=0.5,
        prompt_tokens=7,
        cache_length=0,
        time_spans=tuple(time_spans),
        episodes=tuple(episodes),
        answer_tokens=answer_tokens,
        finish_reason=finish_reason,
    )


def choice_metrics(choices, time_spans=(), episodes=()):
    return ChoiceMetrics(
        ttft=0.25,
        latency=0.5,
        prompt_tokens=7,
        cache_length=0,
        time_spans=tuple(time_spans),
        episodes=tuple(episodes),
        choice_index=0,
        scores=(-1.0,) * len(choices),
        choice_tokens=(2,) * len(choices),
    )


def cache_info(
    length=0, cap=0, chunks=0, frames=0, time_spans=(), levels=None, evicted=(0, 0), closed=()
):
    return CacheInfo(
        cache_seq_length=length,
        cache_memory_bytes=length * 100,
        reserved_memory_bytes=cap * 100,
        max_cache_tokens=cap,
        fork_slack_tokens=0,
        sink_size=0,
        window_size=cap,
        sampled_size=0,
        important_size=0,
        shares_reason="",
        avg_chunk_tokens=0.0,
        chunks=chunks,
        frames=frames,
        exchanges=0,
        closed_pauses=len(closed),
        closed_seconds=sum(closed),
        grids_in_memory=0,
        levels=levels or {},
        time_spans=tuple(time_spans),
        eviction_stats=EvictionStats(total_evictions=evicted[0], total_tokens_evicted=evicted[1]),
    )


class SilentEngine(InferenceEngine):
    """Takes everything and does nothing with it."""

    min_pixels = 784

    def append_video_chunk(self, frames, fps=None, timestamps=None):
        return chunk_result(0)

    def ask_stream(self, question, max_new_tokens=128, *arguments, **options):
        def write():
            yield from "xyz"
            return answer_metrics(3)

        return Answer(write(), lambda: None)

    def ask_choice(self, question, choices, *, about=None):
        return choices[0], choice_metrics(choices)

    def get_cache_info(self):
        return cache_info()

    def limit_pixels(self, max_pixels):
        pass

    def reset(self):
        pass


class Gate(threading.Event):
    """Closed by a test to make an engine slow.

    Attributes:
        busy: set while somebody waits for it to be opened.
    """

    def __init__(self):
        super().__init__()
        self.busy = threading.Event()
        self.set()

    def clear(self):
        self.busy.clear()  # whoever has waited already may not have said so yet
        super().clear()

    def go_through(self):
        if not self.is_set():
            self.busy.set()
            assert self.wait(PATIENCE)
            self.busy.clear()


class FakeEngine(SilentEngine):
    """The engine's public face over a list of times; each frame is ten tokens."""

    def __init__(self, cap=100):
        self.cap = cap
        self.gate = Gate()
        self.busy = self.gate.busy
        self.fail_next = None
        self.calls = []
        self.reset()

    def _enter(self, call):
        self.calls.append(call)
        self.gate.go_through()
        if self.fail_next is not None:
            fault, self.fail_next = self.fail_next, None
            raise fault

    def limit_pixels(self, max_pixels):
        self.calls.append(("limit_pixels", max_pixels))

    def append_video_chunk(self, frames, fps=None, timestamps=None):
        self._enter(("append", len(frames)))
        if self.times and timestamps[0] < self.times[-1]:
            raise InvalidTimestampError("time runs backwards")
        pause = timestamps[0] - self.times[-1] if self.times else 0.0
        pause = pause if pause > MAX_PAUSE else 0.0
        self.closed += [pause] if pause else []
        self.times += timestamps
        self.frames += len(frames)
        self.chunks += 1
        while len(self.times) * TOKENS_PER_FRAME > self.cap:
            self.times.pop(0)
            self.evicted += 1
        return chunk_result(len(frames) * TOKENS_PER_FRAME, closed_seconds=pause)

    def ask_stream(self, question, max_new_tokens=128, cancel=None, **options):
        self._enter(("ask", question, max_new_tokens, options))
        if not self.times:
            raise EmptyMemoryError("nothing was seen yet")

        def write():
            for count in range(max_new_tokens):
                if cancel():
                    return answer_metrics(count, "cancelled")
                yield "x"
            return answer_metrics(max_new_tokens)

        return Answer(write(), lambda: None)

    def ask_choice(self, question, choices, *, about=None):
        self._enter(("ask_choice", question, choices))
        return choices[0], choice_metrics(choices)

    def get_cache_info(self):
        length = len(self.times) * TOKENS_PER_FRAME
        spans = ((self.times[0], self.times[-1]),) if self.times else ()
        window = LevelInfo(tokens=length, grids=0, frames=len(self.times), time_spans=spans)
        return cache_info(
            length,
            self.cap,
            self.chunks,
            self.frames,
            spans,
            {"window": window},
            (self.evicted, self.evicted * TOKENS_PER_FRAME),
            self.closed,
        )

    def reset(self):
        self.times, self.frames, self.chunks, self.evicted, self.closed = [], 0, 0, 0, []


class FakeReader:
    """Reads a file as its name, once ``gate`` is set."""

    def __init__(self, gate=None):
        self.gate = gate

    def read(self, path, over):
        while self.gate is not None and not self.gate.wait(0.01):
            if over.is_set():
                raise CancelledError
        return path


class FakeRecall(FakeEngine):
    """A memory of ten frames, with a history of every frame; what fits a question is settled by the
    test.

    Attributes:
        found: the episodes that any question finds.
        steps: pieces without text before the first word, as fetching takes its time.
        lost: stamps of frames whose pictures are gone.
        not_kept: why the tier of the pictures took nothing.
    """

    def __init__(self, cap=100, keeps_source_time=False):
        self.kept, self.epochs, self.loaded = [], 0, []
        self.found, self.steps, self.lost, self.broken = (), 0, set(), None
        self.not_kept = ""
        self.keeps_source_time = keeps_source_time
        super().__init__(cap)

    def append_video_chunk(self, frames, fps=None, timestamps=None):
        done = super().append_video_chunk(frames, fps, timestamps)
        self.kept += timestamps
        return done

    def _check(self, about):
        if about is not None and not any(about[0] <= stamp <= about[1] for stamp in self.kept):
            raise OutOfHorizonError("nothing of that time")

    def ask_stream(self, question, max_new_tokens=128, cancel=None, about=None, **options):
        self._check(about)
        written = super().ask_stream(question, max_new_tokens, cancel, **options)

        def write():
            for _ in range(self.steps):
                yield ""
            yield from written
            return replace(written.metrics, episodes=tuple(self.found), fetched_tokens=40)

        return Answer(write(), written.close)

    def ask_choice(self, question, choices, *, about=None, **options):
        self._check(about)
        self.calls.append(("options", options))
        choice, metrics = super().ask_choice(question, choices)
        return choice, replace(metrics, episodes=tuple(self.found))

    def kept_stamp(self, near):
        return min(self.kept, key=lambda stamp: abs(stamp - near), default=None)

    def thumbnail(self, stamp, max_size=320):
        if self.broken is not None:
            raise self.broken
        self.calls.append(("thumbnail", stamp, max_size))
        return None if stamp in self.lost else b"jpeg of %.3f" % stamp

    def get_cache_info(self):
        info = super().get_cache_info()
        fields = {field.name: getattr(info, field.name) for field in fields_of(info)}
        ends = (self.kept[0], self.kept[-1]) if self.kept else (None, None)
        frames = len(self.kept)
        tiers = (
            TierInfo(name="pictures", grids=frames // 2, frames=frames, bytes=100 * frames,
                     max_bytes=10_000, where="memory", oldest=ends[0], newest=ends[1],
                     error=self.not_kept),
            TierInfo(name="keys", grids=0, frames=0, bytes=0, max_bytes=500, where="device"),
        )  # fmt: skip
        return RecallCacheInfo(**fields, tiers=tiers)

    def memory_reader(self):
        return FakeReader()

    def load_memory(self, read, *, origin_ns=None, check=None):
        self.loaded.append(origin_ns)
        raise MemoryFileError("there is none")

    def start_epoch(self):
        self.epochs += 1
        self.reset()

    def reset(self):
        super().reset()
        self.kept = []


def episode(*stamps, score=2.0, tier="history"):
    return EvidenceEpisode(
        start=stamps[0], end=stamps[-1], score=score, tier=tier, stamps=tuple(stamps)
    )

# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""`InferenceEngine`: what every engine can be asked for, whichever way it remembers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stream_vlm_ros.engine.decoding import Answer
from stream_vlm_ros.engine.results import (
    AnswerMetrics,
    CacheInfo,
    ChoiceMetrics,
    ChunkResult,
    SavedMemory,
    WarmUp,
)
from stream_vlm_ros.errors import InvalidParameterError

if TYPE_CHECKING:
    from stream_vlm_ros.engine.saving.memory_copy import MemoryCopy, MemoryReader, ReadMemory


class InferenceEngine(ABC):
    """Frames in, questions answered. Not thread-safe: one thread owns an engine.

    Attributes:
        min_pixels: height x width to which smaller pictures are enlarged.
        memory_plan: what the memory takes and what is free, in one line; may be empty.
        keeps_source_time: what is remembered outlives this process, so that stamps must be given
            in a time that does, too.
        why_not_saved: what to say of an engine whose memory is not saved in a file.
    """

    min_pixels: int
    memory_plan: str = ""
    keeps_source_time: bool = False
    why_not_saved: str = "this engine's memory is not saved in a file, nor loaded from one"

    @abstractmethod
    def append_video_chunk(
        self,
        frames: Sequence[Any],
        fps: float | None = None,
        timestamps: Sequence[float] | None = None,
    ) -> ChunkResult:
        """Remember frames: all of them, or none where it raises.

        May be called while an answer is being written; raises StreamBusyError, having done
        nothing, where that would disturb it.
        """

    def append_frame(self, image: Any, timestamp: float | None = None) -> ChunkResult:
        """Remember one still; see `append_video_chunk`.

        Without a time stamp it is taken one second after the newest frame.
        """
        if timestamp is None:
            return self.append_video_chunk([image], fps=1.0)
        return self.append_video_chunk([image], timestamps=[timestamp])

    @abstractmethod
    def ask_stream(
        self,
        question: str,
        max_new_tokens: int = 128,
        do_sample: bool = False,
        temperature: float = 1.0,
        update_state: bool = False,
        *,
        top_p: float = 1.0,
        repetition_penalty: float = 1.0,
        stop: Sequence[str] = (),
        seed: int | None = None,
        about: tuple[float, float] | None = None,
        cancel: Callable[[], bool] | None = None,
        earlier: Sequence[tuple[str, str]] = (),
    ) -> Answer:
        """Answer a question about what was seen, as an iterator over pieces of text.

        Args:
            max_new_tokens ... seed: see `DecodingOptions`.
            update_state: keep question and answer in the stream; otherwise they leave no trace.
            about: the source's time that the question is about, from and to, in seconds; refused
                if nothing of it is remembered, instead of guessed.
            cancel: asked before each token; True ends the answer there.
            earlier: questions with their answers, which the model reads as turns before this one;
                they are not kept, and do not go with ``update_state``.

        Raises:
            EmptyMemoryError: nothing was seen yet.
            OutOfHorizonError: ``about`` lies outside what is remembered.
            InvalidQuestionError, InvalidParameterError, BudgetExceededError: see the message.
            CapTooSmallError, StreamBusyError: ``update_state`` only; the exchange was not kept.
            NotFiniteError: the model's numbers overflow; raised while the answer is written.
        """

    def ask(
        self,
        question: str,
        max_new_tokens: int = 128,
        do_sample: bool = False,
        temperature: float = 1.0,
        update_state: bool = False,
        *,
        on_token: Callable[[str], None] | None = None,
        **options: Any,
    ) -> tuple[str, AnswerMetrics]:
        """Answer a question about what was seen: the answer, and what it cost and rests on.

        Args:
            question ... update_state: and ``options``: as for `ask_stream`.
            on_token: called with the text so far whenever it has grown.

        Raises:
            What `ask_stream` raises.
        """
        answer = self.ask_stream(
            question, max_new_tokens, do_sample, temperature, update_state, **options
        )
        return answer.complete(on_token)

    @abstractmethod
    def ask_choice(
        self,
        question: str,
        choices: Sequence[str],
        *,
        about: tuple[float, float] | None = None,
    ) -> tuple[str, ChoiceMetrics]:
        """The likeliest of the given answers; leaves no trace.

        A choice's score is the log-probability that the model, asked the question, answers just
        that: its tokens and then the end of the turn.

        Raises:
            EmptyMemoryError, OutOfHorizonError, InvalidQuestionError, InvalidChoicesError,
                NotFiniteError: see the message.
        """

    @abstractmethod
    def get_cache_info(self) -> CacheInfo:
        """The memory as it stands."""

    @abstractmethod
    def limit_pixels(self, max_pixels: int | None) -> None:
        """Reduce larger pictures to this many pixels from the next chunk on.

        Or to the checkpoint's own bound where that is less; None: to that. What is in memory
        stays as it is. Raises InvalidParameterError below ``min_pixels``.
        """

    @abstractmethod
    def reset(self) -> None:
        """Forget everything. An answer being written ends as cancelled."""

    def copy_memory(self) -> MemoryCopy:
        """A copy of the memory on the host, to be written in any thread: see `save_memory`.

        Takes a moment of the engine's thread, and as much of the host's memory as
        ``cache_memory_bytes``.

        Raises:
            InvalidParameterError: this engine's memory is not saved so.
            EmptyMemoryError: nothing was seen yet, or no frame is left in the memory.
            StreamBusyError: an answer is being written, and room for what came meanwhile is yet
                to be made.
        """
        raise InvalidParameterError(self.why_not_saved)

    def save_memory(
        self, path: str | Path, *, origin_ns: int = 0, frame_id: str = ""
    ) -> SavedMemory:
        """Write the memory to a file, from which an engine like this one goes on.

        The file is whole at any moment: what was saved there before stays until the new one is on
        the disk. It is readable by its owner alone.

        Args:
            origin_ns: the source's time at the engine's second 0; and ``frame_id`` of the newest
                frame: kept in the file for who loads it.

        Raises:
            What `copy_memory` raises.
            InvalidParameterError: ``origin_ns`` is no whole number of 64 bits, ``frame_id`` no
                text, or a user's importance score describes frames by what no engine would load;
                the file at ``path`` stays as it is.
            NotOursError: there is something at ``path`` that is no saved memory.
            MemoryFileError: it cannot be written, as on a full disk.
        """
        return self.copy_memory().write(path, origin_ns=origin_ns, frame_id=frame_id)

    def memory_reader(self) -> MemoryReader:
        """What reads saved memories for this engine, in any thread: see `load_memory`.

        Takes a moment of the engine's thread. Raises InvalidParameterError: this engine's memory is
        not saved so.
        """
        raise InvalidParameterError(self.why_not_saved)

    def load_memory(
        self,
        path: str | Path | ReadMemory,
        *,
        origin_ns: int | None = None,
        check: Callable[[SavedMemory], None] | None = None,
    ) -> SavedMemory:
        """Put a saved memory in the place of the present one: wholly, or not at all.

        The stream goes on behind its newest frame.

        Args:
            path: the file; or what this engine's `memory_reader` has read of it in another thread,
                which takes as much of the host's memory as the stream, and here a moment.
            origin_ns: what the engine's second 0 is to be in the source's time; stamps in the
                memory are moved to that. None: as it was saved (`SavedMemory.origin_ns`).
            check: is told what the file holds before anything is touched, and may refuse it by
                raising.

        Raises:
            InvalidParameterError: this engine's memory is not saved so.
            MemoryFileError: with the reason: there is no such file, it is damaged, or it was saved
                with another model, prompt or setting.
            DeviceUnavailableError: the device has no room for it as long as the present one is
                kept; an empty memory needs no further room.
            StreamBusyError: an answer is being written.
        """
        raise InvalidParameterError(self.why_not_saved)

    def thumbnail(self, stamp: float, max_size: int = 320) -> bytes | None:
        """The kept frame of that stamp as JPEG, no side longer than ``max_size`` pixels.

        None: it is not kept, or not any more.
        """
        return None

    def kept_stamp(self, near: float) -> float | None:
        """The stamp of the kept frame next to that time; None: no frame is kept."""
        return None

    def warm_up(self) -> WarmUp:
        """Make ready what the first question would wait for; only a GPU needs it."""
        return WarmUp(path="eager", reason="", seconds=0.0, bytes=0)

    def close(self) -> None:  # noqa: B027 (most engines have opened nothing)
        """Give back what was opened; what is kept in files stays there."""

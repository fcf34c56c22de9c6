# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""The node's saved memories: ``~/save_memory``, ``~/load_memory``, and what is saved by itself."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stream_vlm_ros.config import Settings, check_memory_name
from stream_vlm_ros.errors import (
    InvalidParameterError,
    MemoryFileError,
    StreamBusyError,
    StreamVlmError,
    cut,
)
from stream_vlm_ros.session.memory_summary import MemorySummary
from stream_vlm_ros.session.worker import EngineWorker

if TYPE_CHECKING:
    from stream_vlm_ros.engine.results import SavedMemory

SUFFIX = ".safetensors"


def usual_folder() -> str:
    """Where the memories of a user's own are saved, if nothing else is said."""
    data = os.environ.get("XDG_DATA_HOME") or "~/.local/share"
    return str(Path(data) / "stream_vlm" / "memories")


def memory_path(settings: Settings, name: str = "") -> Path | None:
    """The file of a saved memory; None: there is no folder.

    Args:
        name: "": ``memory_name``.
    """
    if not settings.memory_folder:
        return None
    folder = Path(os.path.expanduser(settings.memory_folder))
    return folder / f"{name or settings.memory_name}{SUFFIX}"


@dataclass(frozen=True)
class SavedState:
    """What is told of saved memories.

    Attributes:
        saved_ns: when a memory was saved last, by the node's clock; None: not yet.
        name, bytes, seconds: of that file, and how long copying and writing took.
        error: why saving or loading failed last; "" once one went well.
        loaded: the name of the memory that was loaded last.
    """

    saved_ns: int | None = None
    name: str = ""
    bytes: int = 0
    seconds: float = 0.0
    error: str = ""
    loaded: str = ""


NOTHING_SAVED = SavedState()


@dataclass(frozen=True)
class Done:
    """What came of saving or loading.

    Attributes:
        words: for who asked.
        bytes, seconds: the file's size, and how long it took.
        newest_ns: stamp of the newest frame that was loaded; None: it was saved.
    """

    words: str
    bytes: int
    seconds: float
    newest_ns: int | None = None


class MemoryKeeper:
    """Writes and reads the files of ``memory_folder`` while the worker goes on.

    One file is written or read at a time: there is never more than one copy of the memory. Names
    stay within the folder, and no link in it is followed. What is there and is no saved memory is
    left alone. A file that was refused at the start is overwritten only by a save that names it.

    Args:
        parameters: gives the settings that hold now.
        now_ns: the node's clock.
        report: is told, in words, of what failed without anybody waiting for it.

    Attributes:
        state: what is told of it; replaced as a whole.
    """

    def __init__(
        self,
        worker: EngineWorker,
        parameters: Callable[[], Settings],
        now_ns: Callable[[], int],
        report: Callable[[str], None],
    ) -> None:
        self.state = NOTHING_SAVED
        self._worker, self._parameters = worker, parameters
        self._now_ns, self._report = now_ns, report
        self._pool = ThreadPoolExecutor(2, thread_name_prefix="memory files")
        self._busy = threading.Lock()
        self._tried_at = time.monotonic()
        self._in_own_file: tuple[Any, ...] | None = None  # what the file memory_name holds
        self._left_alone: tuple[int, ...] | None = None  # the file that was refused at the start

    # -- asked for ---------------------------------------------------------------------------

    def save(self, name: str = "") -> Future[Done]:
        """Save the memory under a name, else ``memory_name``, in another thread."""
        return self._start(self._save, name)

    def load(self, name: str = "") -> Future[Done]:
        """Load a memory; the caller sees to it that no frame comes meanwhile."""
        return self._start(self._load, name)

    def forget(self, also: Callable[[], None] = lambda: None) -> Future[None]:
        """Delete the file ``memory_name``, once nothing is being written, and do ``also``; a memory
        that is saved later is there again."""
        return self._pool.submit(self._forget, self._path(""), also)

    def _forget(self, path: Path, also: Callable[[], None]) -> None:
        with self._busy:
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                raise MemoryFileError(
                    f"{cut(str(path))} cannot be deleted: {error.strerror}"
                ) from error
            self._in_own_file = self._left_alone = None
            also()

    def names(self) -> Future[list[str]]:
        """Of the memories that can be loaded, the newest first; also while one is being saved."""
        folder = self._path("").parent
        return self._pool.submit(_names_in, folder)

    # -- by itself ---------------------------------------------------------------------------

    def load_at_start(self) -> str:
        """Begin with the memory ``memory_name``, if it is there; what came of it, in words.

        ``state.error`` is set where the file was refused.
        """
        path = self._path("")
        if not os.path.lexists(path):
            return f"no memory is saved yet as {path}: the node begins with an empty one"
        try:
            return self.load().result().words
        except Exception as refusal:  # whatever is in a file, the node starts
            self._left_alone = _identity(path)
            said = refusal if isinstance(refusal, StreamVlmError) else repr(refusal)
            words = f"{said}. The node begins with an empty memory, and leaves the file alone"
            self.state = SavedState(error=words)
            return words

    def save_when_due(self) -> None:
        """Save every ``save_memory_minutes``; to be called every now and then."""
        parameters = self._parameters()
        period = 60.0 * parameters.save_memory_minutes
        if not period or time.monotonic() - self._tried_at < period:
            return
        self._tried_at = time.monotonic()
        if self._has_changed:
            self._save_by_itself()

    def save_at_end(self, timeout: float | None) -> None:
        """Save before the engine goes, if ``save_memory_on_shutdown`` says so."""
        parameters = self._parameters()
        if not parameters.save_memory_on_shutdown or not self._worker.memory.chunks:
            return
        until = None if timeout is None else time.monotonic() + timeout
        if not self._busy.acquire(timeout=-1 if timeout is None else timeout):
            return
        self._busy.release()  # what was being written is on the disk
        if self._has_changed and (saving := self._save_by_itself()) is not None:
            left = None if until is None else max(0.0, until - time.monotonic())
            try:
                saving.exception(left)
            except TimeoutError:
                self._report(f"saving the memory took longer than {timeout:.0f} s")

    def close(self, wait: bool = False) -> None:
        """Take nothing more; what is being written ends in its own time. ``wait``: for that."""
        self._pool.shutdown(wait, cancel_futures=True)

    def _save_by_itself(self) -> Future[Done] | None:
        path = self._path("")
        if self._left_alone is not None and self._left_alone == _identity(path):
            error = f"{path} was refused at the start and is left alone: the memory is not saved"
            if error != self.state.error:
                self._fail(error)
                self._report(error)
            return None
        try:
            saving = self.save()
        except StreamVlmError:  # it is being saved or loaded
            return None
        saving.add_done_callback(self._tell_failure)
        return saving

    def _tell_failure(self, saving: Future[Done]) -> None:
        if not saving.cancelled() and (fault := saving.exception()) is not None:
            self._report(str(fault))

    # -- inside ------------------------------------------------------------------------------

    @property
    def is_saved(self) -> bool:
        """Whether the file ``memory_name`` holds all that is in memory."""
        return not self._has_changed

    @property
    def _has_changed(self) -> bool:
        memory = self._worker.memory
        return bool(memory.chunks) and self._in_own_file != _what_is(memory)

    def _path(self, name: str) -> Path:
        parameters = self._parameters()
        if (path := memory_path(parameters, name)) is None:
            raise InvalidParameterError("memory_folder is not set: no memory is saved nor loaded")
        check_memory_name(name or parameters.memory_name)
        return path

    def _start(self, do: Callable[[Path], Done], name: str) -> Future[Done]:
        path = self._path(name)
        if not self._busy.acquire(blocking=False):
            raise StreamBusyError("a memory is being saved or loaded: try again when that is done")
        try:
            return self._pool.submit(self._carry_out, do, path)
        except BaseException:
            self._busy.release()
            raise

    def _carry_out(self, do: Callable[[Path], Done], path: Path) -> Done:
        try:
            return do(path)
        except Exception as fault:
            self._fail(str(fault) if isinstance(fault, StreamVlmError) else repr(fault))
            raise
        finally:
            self._busy.release()

    def _fail(self, error: str) -> None:
        self.state = replace(self.state, error=error)

    def _save(self, path: Path) -> Done:
        started = time.monotonic()
        copied = self._worker.copy_memory().result()
        try:
            path.parent.mkdir(0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise MemoryFileError(
                f"memory_folder {cut(str(path.parent))} cannot be made: {error.strerror}"
            ) from error
        saved = copied.copy.write(path, origin_ns=copied.origin_ns, frame_id=copied.frame_id)
        seconds = time.monotonic() - started
        if path == self._path(""):
            self._in_own_file = _what_is(copied.memory)
        self.state = SavedState(
            self._now_ns(), path.name, saved.bytes, seconds, "", self.state.loaded
        )
        return Done(f"saved as {path}: {_held(saved)}", saved.bytes, seconds)

    def _load(self, path: Path) -> Done:
        started = time.monotonic()
        saved = self._worker.load_memory(path).result()
        memory = self._worker.memory
        self._in_own_file = _what_is(memory) if path == self._path("") else None
        self.state = replace(self.state, error="", loaded=path.name)
        seconds = time.monotonic() - started
        return Done(f"loaded {path}: {_held(saved)}", saved.bytes, seconds, memory.newest_ns)


def _names_in(folder: Path) -> list[str]:
    found = []
    try:
        for entry in os.scandir(folder):
            with suppress(InvalidParameterError, OSError):  # not ours, or gone meanwhile
                check_memory_name(name := entry.name.removesuffix(SUFFIX))
                if entry.name != name and entry.is_file(follow_symlinks=False):
                    found.append((entry.stat(follow_symlinks=False).st_mtime_ns, name))
    except FileNotFoundError:
        pass  # nothing was saved yet
    except OSError as error:
        raise MemoryFileError(
            f"memory_folder {cut(str(folder))} cannot be read: {error.strerror}"
        ) from error
    return [name for _, name in sorted(found, reverse=True)]


def _held(saved: SavedMemory) -> str:
    return f"{saved.tokens:,} tokens of {saved.frames:,} frames, {saved.bytes / 1e6:.1f} MB"


def _what_is(memory: MemorySummary) -> tuple[Any, ...]:
    """What differs once something was appended, kept or forgotten."""
    return memory.chunks, memory.length, memory.evicted_tokens, memory.newest_ns


def _identity(path: Path) -> tuple[int, ...] | None:
    try:
        found = os.lstat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns

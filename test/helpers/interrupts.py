# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Exceptions raised at any place of a call, as a signal or a device without memory raises them."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from types import CodeType, FrameType
from typing import Any

import torch

import stream_vlm_ros.engine as engine_package

ENGINE = os.path.dirname(os.path.realpath(engine_package.__file__)) + os.sep
CACHE = os.path.join(ENGINE, "cache") + os.sep

KINDS: tuple[type[BaseException], ...] = (KeyboardInterrupt, torch.OutOfMemoryError)


def ours(raised: BaseException | None) -> bool:
    """Whether it was raised on purpose, or was made of one that was (as words of the user's)."""
    return raised is not None and (str(raised) == "raised on purpose" or ours(raised.__cause__))


class Places:
    """Counts the places of a call where an exception may come, and raises one at a chosen place.

    Places are the opcodes of functions in engine/cache, and the lines of functions elsewhere in
    engine/. (In these, opcodes of one line differ in nothing that outlives the call.)
    """

    def __init__(self, at: int = -1, kind: type[BaseException] = KeyboardInterrupt):
        self.count = 0
        self.raised_in = ""
        self.functions: list[str] = []  # of each place
        self._passed: dict[tuple[CodeType, int], tuple[int, int]] = {}
        self._at, self._kind = at, kind
        self._known: dict[CodeType, str] = {}

    def _room(self, code: CodeType) -> str:
        if code not in self._known:
            path = os.path.realpath(code.co_filename)
            room = (
                "cache" if path.startswith(CACHE) else "engine" if path.startswith(ENGINE) else ""
            )
            self._known[code] = room
        return self._known[code]

    def _trace(self, frame: FrameType, event: str, _: Any) -> Any:
        room = self._room(frame.f_code)
        if event == "call":
            if not room:
                return None
            frame.f_trace_opcodes = room == "cache"
            frame.f_trace_lines = room == "engine"
            return self._trace
        if event in ("opcode", "line"):
            if self.count == self._at:
                code = frame.f_code
                self.raised_in = f"{os.path.basename(code.co_filename)}:{frame.f_lineno}"
                self.count += 1
                raise self._kind("raised on purpose")
            place = frame.f_code, frame.f_lasti
            self.functions.append(frame.f_code.co_name)
            first, _ = self._passed.get(place, (self.count, 0))
            self._passed[place] = first, self.count
            self.count += 1
        return self._trace

    @property
    def each(self) -> list[int]:
        """Each place once or twice: when it was passed for the first time, and for the last."""
        return sorted({at for firsts in self._passed.values() for at in firsts})

    def run(self, call: Callable[[], Any]) -> bool:
        """Whether it came to its end. What is raised at the chosen place goes no further."""
        before, hook = sys.gettrace(), sys.unraisablehook
        unraisable: list[BaseException] = []
        # In a finalizer Python lets nothing out. What we raised there is well; nothing else is.
        sys.unraisablehook = lambda given: unraisable.append(given.exc_value)
        sys.settrace(self._trace)
        try:
            call()
            return True
        except BaseException as raised:
            if not ours(raised):
                raise
            return False
        finally:
            sys.settrace(before)
            sys.unraisablehook = hook
            for fault in unraisable:
                if not ours(fault):
                    raise AssertionError(f"a finalizer raised {fault!r}")

# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""A call that some other thread makes."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any


class Call:
    """It is made once; ``done`` has what came of it.

    Not `Executor.submit`'s own future: where no thread can be started that one raises, although its
    call may still be made.
    """

    def __init__(self, do: Callable[..., Any], *given: Any) -> None:
        self.done: Future[Any] = Future()
        self._do, self._given = do, given

    def __call__(self) -> None:
        try:
            self.done.set_result(self._do(*self._given))
        except BaseException as fault:
            self.done.set_exception(fault)

# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Bars for what takes its time, with the time that is left."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn
from rich.text import Text

from stream_vlm_ros.console import duration_text


class TimeLeft(ProgressColumn):
    """``42 s left``; the time that has passed where it cannot be told."""

    def render(self, task: Task) -> Text:
        if task.finished or task.time_remaining is None:
            return Text(duration_text(task.elapsed or 0.0), style="progress.elapsed")
        return Text(f"{duration_text(task.time_remaining)} left", style="progress.remaining")


def make_bar(console: Console | None, *columns: ProgressColumn, transient: bool = True) -> Progress:
    """What is done and a bar, then ``columns``; on terminals only."""
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=30),
        *columns,
        console=console,
        transient=transient,
        # What is printed to a file meanwhile is for that file.
        redirect_stdout=sys.stdout.isatty(),
        disable=console is None or not console.is_terminal,
    )


@contextmanager
def counted(console: Console, what: str, total: int) -> Iterator[Callable[[], None]]:
    """A bar on terminals; call what is yielded after each of ``total`` steps."""
    with make_bar(console, MofNCompleteColumn(), TimeLeft()) as bar:
        task = bar.add_task(what, total=total)
        yield lambda: bar.advance(task)

# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""What an experiment found: written as JSON from the start and as Markdown at the end."""

from __future__ import annotations

import datetime
import errno
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stream_vlm_ros.errors import InvalidParameterError
from stream_vlm_ros.owned import write_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.typing import RcKeyType

RUNNING, PASSED, FAILED, BROKEN = "running", "passed", "failed", "broken off"


@dataclass(frozen=True)
class Criterion:
    """One thing that must hold. ``passed`` None: it could not be judged here, and why is said."""

    name: str
    passed: bool | None
    found: str
    wanted: str


@dataclass(frozen=True)
class Table:
    """Rows of texts under titles."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass
class Record:
    """Everything that one run found.

    Attributes:
        experiment, title: which.
        folder: where it is written: ``<experiment>.json``, ``.md`` and plots.
        settings: options of the run; with ``about`` (model, source, machine) all there is to know
            to repeat it.
        rows: one an event (a chunk, a question), as it happened.
        summary: figures found.
        date: of the run, ISO 8601.
        earlier: what a run before this one has left in the same place.
    """

    experiment: str
    title: str
    folder: Path
    settings: dict[str, Any] = field(default_factory=dict)
    about: dict[str, Any] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    tables: list[Table] = field(default_factory=list)
    criteria: list[Criterion] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    plots: list[str] = field(default_factory=list)
    status: str = RUNNING
    seconds: float = 0.0
    date: str = field(default_factory=lambda: datetime.date.today().isoformat())
    save_every: float = 2.0  # seconds between two writings while it runs

    def __post_init__(self) -> None:
        self._begin = self._written = time.monotonic()
        self.earlier = self._of_before()

    def _of_before(self) -> dict[str, Any]:
        """The record in the place of this one; InvalidParameterError if that is no record."""
        files = [self.path, self.path.with_suffix(".md"), *self.folder.glob(f"{self.experiment}-*")]
        if not any(file.exists() for file in files):
            return {}
        try:
            found = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            found = None
        if not isinstance(found, dict) or found.get("experiment") != self.experiment:
            raise InvalidParameterError(
                f"{self.folder} holds {self.experiment}.json or its companions, but no record "
                "of this experiment: it is left as it is. Name another folder with --out."
            )
        return found

    @property
    def path(self) -> Path:
        return self.folder / f"{self.experiment}.json"

    @property
    def is_empty(self) -> bool:
        """Whether nothing has been found yet."""
        return not (self.rows or self.criteria)

    @contextmanager
    def folder_made(self) -> Iterator[None]:
        """Within it there is the folder; it goes again where nothing was put into it.

        Raises InvalidParameterError where it cannot be made, or written to.
        """
        made = [place for place in (self.folder, *self.folder.parents) if not place.exists()]
        try:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                if not os.access(self.folder, os.W_OK | os.X_OK):
                    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            except OSError as error:
                raise InvalidParameterError(
                    f"--out {self.folder} is no folder to write to: {error.strerror}."
                ) from error
            yield
        finally:
            with suppress(OSError):  # of one that is not empty
                for place in made:
                    place.rmdir()

    def add(self, **row: Any) -> None:
        """Note one event; what was noted is on the disk within ``save_every`` seconds."""
        self.rows.append(row)
        if time.monotonic() - self._written > self.save_every:
            self.save()

    def note(self, text: str) -> None:
        """Say something a reader must know; once."""
        if text not in self.notes:
            self.notes.append(text)

    def check(self, name: str, passed: bool | None, found: Any, wanted: str) -> None:
        """Judge a criterion."""
        self.criteria.append(
            Criterion(name, None if passed is None else bool(passed), str(found), wanted)
        )

    def finish(self, status: str | None = None) -> str:
        """Judge the whole and write everything; the status."""
        if status is None:
            failed = any(criterion.passed is False for criterion in self.criteria)
            status = FAILED if failed else PASSED
        self.status = status
        self.save()
        with self._writing():
            write_whole(self.path.with_suffix(".md"), self.markdown().encode("utf-8", "replace"))
        return status

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Raises InvalidParameterError where a disk is full, or a folder has gone."""
        try:
            yield
        except OSError as error:
            raise InvalidParameterError(
                f"--out {self.folder} cannot be written to: {error.strerror or error}."
            ) from error

    def save(self) -> None:
        """Write the JSON, whole or not at all; InvalidParameterError where that cannot be."""
        self.seconds = round(time.monotonic() - self._begin, 3)
        fields = _plain(self._fields())
        rows = ",\n".join(f"  {json.dumps(row)}" for row in fields.pop("rows"))
        # One row a line: a reader and a diff see what is there.
        text = json.dumps(fields, indent=1).removesuffix("\n}") + f',\n "rows": [\n{rows}\n ]\n}}\n'
        with self._writing():
            self.folder.mkdir(parents=True, exist_ok=True)
            write_whole(self.path, text.encode())
        self._written = time.monotonic()

    def _fields(self) -> dict[str, Any]:
        return {
            "experiment": self.experiment,
            "title": self.title,
            "status": self.status,
            "date": self.date,
            "seconds": self.seconds,
            **self.about,
            "settings": self.settings,
            "summary": self.summary,
            "criteria": [vars(criterion) for criterion in self.criteria],
            "notes": self.notes,
            "tables": [vars(table) for table in self.tables],
            "plots": self.plots,
            "rows": self.rows,
        }

    def markdown(self) -> str:
        """The report as a page."""
        lines = [
            f"# {self.title}",
            "",
            f"**{self.status.capitalize()}** in {self.seconds:.0f} s, {self.date}.",
            "",
        ]
        for name, values in self.about.items():
            text = ", ".join(
                f"{k.replace('_', ' ')} {_figure(v)}" for k, v in values.items() if v is not None
            )
            lines.append(f"- {name.capitalize()}: {text}")
        text = ", ".join(f"`{k}` {_figure(v)}" for k, v in self.settings.items() if v is not None)
        lines += [f"- Settings: {text}", ""]
        lines += [f"> {note}\n" for note in self.notes]
        if self.criteria:
            lines += ["## Criteria", "", "| | criterion | found | wanted |", "|---|---|---|---|"]
            for one in self.criteria:
                lines.append(f"| {MARKS[one.passed]} | {one.name} | {one.found} | {one.wanted} |")
            lines.append("")
        for table in self.tables:
            lines += [f"## {table.title}", "", f"| {' | '.join(table.columns)} |"]
            lines.append("|" + "---|" * len(table.columns))
            lines += [f"| {' | '.join(_cell(cell) for cell in row)} |" for row in table.rows]
            lines.append("")
        lines += [f"![{name}]({name})\n" for name in self.plots]
        return "\n".join(lines)

    def plot(
        self,
        name: str,
        draw: Callable[[Figure, Axes], None],
        size: tuple[float, float] = (8.0, 4.5),
    ) -> None:
        """Write ``<experiment>-<name>.png``; ``draw`` gets the figure and its axes.

        Without matplotlib there is a note instead: an experiment's figures do not depend on it.
        """
        try:
            import matplotlib

            matplotlib.use("Agg")
            from matplotlib import pyplot
        except ImportError:
            self.note("No plots: matplotlib is not installed.")
            return
        # A $ in a name is a $.
        plain: dict[RcKeyType, bool] = {"text.usetex": False, "text.parse_math": False}
        with matplotlib.rc_context(plain):
            figure, axes = pyplot.subplots(figsize=size, layout="constrained")
        try:
            with matplotlib.rc_context(plain):
                draw(figure, axes)
            file = f"{self.experiment}-{name}.png"
            with self._writing():
                self.folder.mkdir(parents=True, exist_ok=True)
                figure.savefig(self.folder / file, dpi=130)
        finally:
            pyplot.close(figure)
        if file not in self.plots:
            self.plots.append(file)


MARKS = {True: "✓", False: "✗", None: "–"}


def _cell(text: str) -> str:
    return str(text).replace("|", "\\|").replace("\n", " ")


def _figure(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _plain(value: Any) -> Any:
    """As JSON can say it: NaN and infinity become null."""
    if isinstance(value, dict):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [_plain(entry) for entry in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, (str, int)):
        return value
    return str(value)

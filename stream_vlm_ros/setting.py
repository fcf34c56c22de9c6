# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""One setting is one dataclass field: default, range, text, who takes it, when it may change.

A table of settings is a frozen dataclass that derives from :class:`SettingTable` and makes each of
its fields with :func:`setting`. Whatever shows, declares, parses or checks settings reads the rows
of :meth:`SettingTable.table`. Needs nothing but the standard library.
"""

from __future__ import annotations

import difflib
import numbers
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeVar

from stream_vlm_ros.errors import InvalidParameterError, StreamVlmError, real_number

# When a setting may change.
ALWAYS = "any time"
CONFIGURE = "before configure"
START = "at start"

Table = TypeVar("Table", bound="SettingTable")


@dataclass(frozen=True)
class Setting:
    """A row of a table.

    Attributes:
        text: what it means, in sentences; shown wherever the setting is.
        low, high: the range of a number, ends included; both or neither.
        choices: the words allowed.
        change: ``ALWAYS``, ``CONFIGURE`` or ``START``, for a node.
        takers: which programs take it, for example "node" and "replay".
        flag: its short spelling on a command line, such as ``--fps``; "": the name alone.
        verbs: the verbs of the command line that have an option for it.
        environment: the variable of the environment that such an option takes its default from.
        required: it must be given; the default stands for nothing.
        rule: a further check of its own: is given the value, raises a StreamVlmError that says what
            is wrong with it. The name is put in front.
    """

    name: str
    default: Any
    text: str
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()
    change: str = CONFIGURE
    takers: tuple[str, ...] = ()
    flag: str = ""
    verbs: tuple[str, ...] = ()
    environment: str = ""
    required: bool = False
    rule: Callable[[Any], None] | None = None

    @property
    def type(self) -> type:
        """bool, int, float, str, or tuple (of str)."""
        return type(self.default)

    @property
    def option(self) -> str:
        """Its spelling on a command line: the flag, or ``--its-name``."""
        return self.flag or f"--{self.name.replace('_', '-')}"

    @property
    def short(self) -> str:
        """Its name as that spelling has it: ``fps`` for ``--fps``."""
        return self.option.removeprefix("--").replace("-", "_")

    @property
    def allowed(self) -> str:
        """The allowed values in words: '[0.0, 120.0]', 'raw, compressed', or ''."""
        if self.choices:
            return ", ".join(self.choices)
        if self.low is not None and self.high is not None:
            return f"[{self.type(self.low)}, {self.type(self.high)}]"
        return ""

    def checked(self, value: Any) -> Any:
        """``value`` in the row's own type.

        A whole number is taken for a float (``sample_fps:=2``), a number of numpy's for one of
        Python's, a number for a text (``source:=0``) and for a tuple a list, or a text with commas,
        its empty texts left out (ROS has no empty list of texts).

        Raises InvalidParameterError for any other type, and for a value that is not allowed.
        """
        value = self._converted(value)
        if self.choices and value not in self.choices:
            near = difflib.get_close_matches(value, self.choices, 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise InvalidParameterError(
                f"{self.name} must be one of {self.allowed}, got {value!r}{hint}"
            )
        if self.low is not None and self.high is not None and not self.low <= value <= self.high:
            raise InvalidParameterError(f"{self.name} must lie in {self.allowed}, got {value}")
        if self.rule is not None:
            try:
                self.rule(value)
            except StreamVlmError as refusal:
                raise InvalidParameterError(f"{self.name}: {refusal}") from None
        return value

    def parsed(self, text: str) -> Any:
        """The value that ``text`` stands for, checked; raises InvalidParameterError."""
        return self.checked(self.read(text))

    def read(self, text: str) -> Any:
        """``text`` in the row's type, not checked yet; raises InvalidParameterError."""
        words = {"true": True, "yes": True, "false": False, "no": False}
        try:
            if self.type is bool:
                return words[text.strip().lower()]
            return self.type(text) if self.type in (int, float) else text
        except (KeyError, ValueError):
            what = {bool: "true or false", int: "a whole number", float: "a number"}[self.type]
            raise InvalidParameterError(f"{self.name} must be {what}, got {text!r}") from None

    def written(self, value: Any) -> str:
        """A value as :meth:`read` reads it."""
        return str(value).lower() if self.type is bool else str(value)

    def _converted(self, value: Any) -> Any:
        given = type(value)
        if self.type is float and (number := real_number(value)) is not None:
            return number
        if self.type is int and isinstance(value, numbers.Integral) and given is not bool:
            return int(value)
        if self.type is str and given in (int, float):
            return str(value)
        if self.type is tuple and given is str:
            return tuple(text for one in value.split(",") if (text := one.strip()))
        if self.type is tuple and given in (list, tuple):
            return tuple(text for text in value if text)
        if given is not self.type:
            hint = f"; allowed is {self.allowed}" if self.allowed else ""
            raise InvalidParameterError(
                f"{self.name} must be of type {self.type.__name__}, got {value!r} "
                f"({given.__name__}){hint}"
            )
        return value


def setting(
    default: Any, text: str, low: float | None = None, high: float | None = None, **rules: Any
) -> Any:
    """A field of a :class:`SettingTable`; see :class:`Setting` for the ``rules``."""
    return field(default=default, metadata={"text": text, "low": low, "high": high, **rules})


_TABLES: dict[type, dict[str, Setting]] = {}  # made once a class


@dataclass(frozen=True)
class SettingTable:
    """Base of a table. An instance holds a value for every setting, checked and in its type.

    Raises InvalidParameterError for a value that is not allowed.
    """

    def __post_init__(self) -> None:
        for name, row in self.table().items():
            object.__setattr__(self, name, row.checked(getattr(self, name)))
        self.check()

    def check(self) -> None:
        """Override it to check values against each other; raises InvalidParameterError."""

    @classmethod
    def table(cls) -> dict[str, Setting]:
        """The rows by name, in the order of the fields."""
        if cls not in _TABLES:
            _TABLES[cls] = {
                row.name: Setting(row.name, row.default, **row.metadata) for row in fields(cls)
            }
        return _TABLES[cls]

    @classmethod
    def named(cls, name: str) -> Setting:
        """The row of a name, in full or in its short spelling; raises InvalidParameterError."""
        for row in cls.table().values():
            if name in (row.name, row.short):
                return row
        raise InvalidParameterError(cls.unknown(name))

    @classmethod
    def unknown(cls, name: str) -> str:
        """What to say of a name that is not in the table."""
        near = difflib.get_close_matches(name, cls.table(), 1)
        return f"there is no setting {name!r}" + (f"; did you mean {near[0]!r}?" if near else "")

    @classmethod
    def of(cls: type[Table], values: Mapping[str, Any]) -> Table:
        """From values by name; those not given have their defaults.

        Raises InvalidParameterError for an unknown name, a wrong type or a value not allowed.
        """
        return cls().changed(values)

    @classmethod
    def parsed(cls: type[Table], texts: Mapping[str, str]) -> Table:
        """From texts of a command line by name, one for every setting; further ones are left out.

        Raises InvalidParameterError for one that is of no use, and says why.
        """
        return cls(**{name: row.read(texts[name]) for name, row in cls.table().items()})

    def changed(self: Table, values: Mapping[str, Any]) -> Table:
        """With other values for some names; raises InvalidParameterError."""
        for name in values:
            if name not in self.table():
                raise InvalidParameterError(self.unknown(name))
        return replace(self, **values)

    def values(self, *takers: str) -> dict[str, Any]:
        """The values by name: all, or those of the settings that all these ``takers`` take."""
        return {
            name: getattr(self, name)
            for name, row in self.table().items()
            if set(takers) <= set(row.takers)
        }

    def changes(self, *takers: str) -> dict[str, Any]:
        """Those of the :meth:`values` that are not the defaults."""
        table = self.table()
        values = self.values(*takers)
        return {name: value for name, value in values.items() if value != table[name].default}

# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""The experiments as verbs of ``stream-vlm experiment``.

Each experiment declares its options once, to argparse, because ``python -m
stream_vlm_ros.experiments`` also runs on machines without typer. Here those declarations become
typer options when the experiment is named, and nothing heavy is imported before it runs.
"""

from __future__ import annotations

import argparse
import enum
import inspect
from collections.abc import Iterator
from typing import Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperCommand, TyperGroup

from stream_vlm_ros.experiments import EXPERIMENTS


class ExperimentGroup(TyperGroup):
    """The verbs of ``stream-vlm experiment``."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(EXPERIMENTS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in EXPERIMENTS:
            return None
        title = EXPERIMENTS[cmd_name].title
        return ExperimentCommand(cmd_name, help=title, rich_markup_mode=None)


class ExperimentCommand(TyperCommand):
    """One experiment; its options are read from its module when it is called."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        from stream_vlm_ros.experiments.options import parser_of

        parser = parser_of(str(self.name))
        loaded = _as_command(str(self.name), parser)
        self.help, self.params, self.callback = parser.description, loaded.params, loaded.callback
        several = {
            flag
            for action in parser._actions
            for flag in action.option_strings
            if action.nargs == "+"
        }
        return super().parse_args(ctx, list(_one_value_each(args, several)))


def _one_value_each(arguments: list[str], several: set[str]) -> Iterator[str]:
    """``--caps 100 150`` as ``--caps 100 --caps 150``, for the options in ``several``."""
    option = None
    first = False
    for argument in arguments:
        if argument.startswith("--"):
            option, first = (argument if argument in several else None), True
        elif option and not first:
            yield option
        else:
            first = False
        yield argument


def _as_command(name: str, parser: argparse.ArgumentParser) -> Any:
    """A typer command with the options of ``parser``, which runs the experiment ``name``."""
    actions = [action for action in parser._actions if action.dest != "help"]

    def run(**given: Any) -> None:
        with Console(stderr=True).status("Loading the experiment"):  # with torch
            from stream_vlm_ros.experiments.command import run as run_experiment

        values = {key: _plain(value) for key, value in given.items()}
        raise typer.Exit(run_experiment(argparse.Namespace(experiment=name, **values)))

    told: Any = run
    parameters = [_parameter(action, parser.get_default(action.dest)) for action in actions]
    told.__signature__ = inspect.Signature(parameters)
    told.__annotations__ = {p.name: p.annotation for p in parameters}
    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    app.command(name)(run)
    return typer.main.get_command(app)


def _parameter(action: argparse.Action, default: Any) -> inspect.Parameter:
    kind: Any = action.type or (bool if action.nargs == 0 else str)
    if action.choices:
        words = list(map(str, action.choices))
        of_words: Any = enum.Enum
        kind = of_words(action.dest, dict(zip(words, words, strict=True)))
    if action.nargs == "+":
        kind = list[kind]
    metavar: Any = action.metavar
    option = typer.Option(*action.option_strings, help=action.help, metavar=metavar)
    return inspect.Parameter(
        action.dest,
        inspect.Parameter.KEYWORD_ONLY,
        default=default,
        annotation=Annotated[kind | None if default is None else kind, option],
    )


def _plain(value: Any) -> Any:
    """What argparse would have given: words in place of members of an enumeration."""
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    return value.value if isinstance(value, enum.Enum) else value

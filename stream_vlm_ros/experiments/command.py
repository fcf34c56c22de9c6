# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""``python -m stream_vlm_ros.experiments NAME``: options in, exit status out.

``stream-vlm experiment NAME`` makes its options from `parser_of` and calls `run`. Here argparse
parses, so that experiments run on a GPU machine without typer.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from types import ModuleType

from rich.console import Console

from stream_vlm_ros.engine.attention.verified import is_out_of_memory
from stream_vlm_ros.errors import StreamVlmError
from stream_vlm_ros.owned import place_to_write
from stream_vlm_ros.processes.children import signals_as_ctrl_c

from . import EXPERIMENTS
from .context import Context
from .options import description_of, parser_of
from .record import BROKEN, PASSED, Record

FAILED, UNUSABLE, INTERRUPTED = 1, 2, 130  # exit statuses; 0 when every criterion passed

LOG_WIDTH = 160  # columns where no terminal says how many there are: no table is folded


@signals_as_ctrl_c()  # a time limit's way to end it is SIGTERM
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the experiment that the arguments name; returns its exit status."""
    return run(parser().parse_args(arguments))


def run(options: argparse.Namespace) -> int:
    """Run ``options.experiment`` with the options of its parser; returns its exit status."""
    if options.model is None and options.shape is None:
        options.model = os.environ.get("QWEN_MODEL_PATH") or None
    module = _module(options.experiment)
    screen = Console(highlight=False)
    if not screen.is_terminal:
        screen.width = max(screen.width, LOG_WIDTH)
    try:
        title = EXPERIMENTS[options.experiment].title
        out = place_to_write("--out", options.out)
        record = Record(options.experiment, title, out)
        context = Context(options, record, screen)
        with record.folder_made():
            return _run(module, context)
    except StreamVlmError as error:
        print(f"stream-vlm: {error}", file=sys.stderr)
        return UNUSABLE


def _run(module: ModuleType, context: Context) -> int:
    """Run it where it can be written; its exit status. Raises StreamVlmError: what came before it
    could not be used stays."""
    options, record = context.options, context.record
    record.settings = {
        name: value if value is None or isinstance(value, (int, float, bool)) else str(value)
        for name, value in vars(options).items()
        if name not in ("experiment", "out")
    }
    status, cut_short = BROKEN, False
    try:
        if options.threads:
            import torch

            torch.set_num_threads(options.threads)
        module.run(context)
        context.verdict()
        status = record.finish()
    except KeyboardInterrupt:
        cut_short = True
        record.note("Interrupted.")
        return INTERRUPTED
    except StreamVlmError as error:
        cut_short = True
        record.note(str(error))
        raise
    except Exception as error:
        record.note(f"{type(error).__name__}: {error}")
        if is_out_of_memory(error):
            record.check("memory is enough", False, f"{error}".splitlines()[0], "no out of memory")
            context.verdict()
            return FAILED
        traceback.print_exc()
        return FAILED
    finally:
        if not (cut_short and record.is_empty):  # else what an earlier run has left stays
            if status == BROKEN:
                record.finish(BROKEN)
            written = f"{record.folder}/: {options.experiment}.json"
            context.say(f"{status.capitalize()}. Written to {written}")
    return 0 if status == PASSED else FAILED


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """Shows the defaults that say something."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default is None or action.nargs == 0:
            return action.help
        return super()._get_help_string(action)


def parser() -> argparse.ArgumentParser:
    """Options of all experiments."""
    top = argparse.ArgumentParser(
        prog="python -m stream_vlm_ros.experiments",
        description="Measured runs with pass criteria. The exit status is 0 when all passed, 1 "
        "when one failed, 2 when the input could not be used.",
    )
    verbs = top.add_subparsers(dest="experiment", required=True, metavar="EXPERIMENT")
    for name, experiment in EXPERIMENTS.items():
        verbs.add_parser(
            name,
            parents=[parser_of(name)],
            help=experiment.title,
            description=description_of(name),
            formatter_class=_Help,
        )
    return top


def _module(name: str) -> ModuleType:
    return importlib.import_module(f"{__package__}.{EXPERIMENTS[name].module}")

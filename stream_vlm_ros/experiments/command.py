"""``stream-vlm experiment NAME``: options in, exit status out."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from rich.console import Console

from stream_vlm_ros.errors import StreamVlmError
from stream_vlm_ros.processes.children import signals_as_ctrl_c

from .bench import Bench
from .record import BROKEN, PASSED, Record
from .shapes import SHAPES
from .watermark import is_out_of_memory

MODULES = {
    "sink": "sink",
    "long-video": "long_video",
    "periodic": "periodic",
    "caps": "caps",
    "native": "native",
    "chunk-size": "chunk_size",
    "policies": "policies",
    "endurance": "endurance",
}
FAILED, UNUSABLE, INTERRUPTED = 1, 2, 130  # exit statuses; 0 when every criterion passed

LOG_WIDTH = 160  # columns where no terminal says how many there are: no table is folded


@signals_as_ctrl_c()  # a time limit's way to end it is SIGTERM
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the experiment that the arguments name; its exit status."""
    options = parser().parse_args(arguments)
    if options.model is None and options.shape is None:
        options.model = os.environ.get("QWEN_MODEL_PATH") or None
    module = _module(options.experiment)
    screen = Console(highlight=False)
    if not screen.is_terminal:
        screen.width = max(screen.width, LOG_WIDTH)
    settings = {
        name: value if value is None or isinstance(value, (int, float, bool)) else str(value)
        for name, value in vars(options).items()
        if name not in ("experiment", "out")
    }
    try:
        record = Record(options.experiment, module.TITLE, Path(options.out), settings)
    except StreamVlmError as error:
        print(f"stream-vlm: {error}", file=sys.stderr)
        return UNUSABLE
    bench = Bench(options, record, screen)
    status, kept = BROKEN, True
    try:
        if options.threads:
            import torch

            torch.set_num_threads(options.threads)
        module.run(bench)
        bench.verdict()
        status = record.finish()
    except KeyboardInterrupt:
        record.note("Interrupted.")
        return INTERRUPTED
    except StreamVlmError as error:
        record.note(str(error))
        kept = bool(record.about)  # no model was loaded: there is nothing to tell, and what an
        # earlier run has left stays
        print(f"stream-vlm: {error}", file=sys.stderr)
        return UNUSABLE
    except Exception as error:
        record.note(f"{type(error).__name__}: {error}")
        if is_out_of_memory(error):
            record.check("memory is enough", False, f"{error}".splitlines()[0], "no out of memory")
            bench.verdict()
            return FAILED
        traceback.print_exc()
        return FAILED
    finally:
        if kept:
            if status == BROKEN:
                record.finish(BROKEN)
            written = f"{record.folder}/: {options.experiment}.json"
            bench.say(f"{status.capitalize()}. Written to {written}")
    return 0 if status == PASSED else FAILED


def parser() -> argparse.ArgumentParser:
    """Options of all experiments."""
    top = argparse.ArgumentParser(
        prog="stream-vlm experiment",
        description="Measured runs with pass criteria. The exit status is 0 when all passed, 1 "
        "when one failed, 2 when the input could not be used.",
    )
    verbs = top.add_subparsers(dest="experiment", required=True, metavar="EXPERIMENT")
    for name in MODULES:
        module = _module(name)
        one = verbs.add_parser(
            name,
            parents=[_common()],
            help=module.TITLE,
            description=module.__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.options(one)
    return top


def _common() -> argparse.ArgumentParser:
    """Options that all experiments have. A new parser each time: a verb may set other defaults."""
    common = argparse.ArgumentParser(add_help=False)
    add = common.add_argument_group("model").add_argument
    add("--model", metavar="FOLDER", help="a Qwen2.5-VL checkpoint folder (default: the small one)")
    add("--shape", choices=SHAPES, help="random weights of a named shape instead of a model")
    add("--processor", metavar="FOLDER", help="tokenizer and image settings of this folder instead")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    add("--dtype", default="auto", help="auto, bfloat16, float16 or float32")
    add("--seed", type=int, default=0, help="of random weights and of whatever is drawn by lot")
    add("--threads", type=int, default=0, help="of the CPU; 0: torch's own choice")
    add = common.add_argument_group("memory").add_argument
    add("--layout", choices=("segmented", "continuous"), default="segmented")
    add("--position-policy", choices=("contiguous", "keep_gaps"), default="contiguous")
    add("--min-pixels", type=int, help="smaller pictures are enlarged to it")
    add("--max-pixels", type=int, help="larger pictures are reduced to it")
    add = common.add_argument_group("source").add_argument
    add(
        "--source",
        default=os.environ.get("VIDEO_PATH") or "synthetic",
        help="synthetic[:WIDTHxHEIGHT] (default 1920x1080), world:SEED, a video, bag or folder",
    )
    add("--size", metavar="WIDTHxHEIGHT", help="of the pictures")
    add("--fps", type=float, default=2.0, help="frames a second (default 2)")
    add(
        "--out",
        default=os.environ.get("REPORT_PATH") or "experiments",
        help="folder for JSON, Markdown and plots",
    )
    return common


def _module(name: str) -> ModuleType:
    return importlib.import_module(f"{__package__}.{MODULES[name]}")

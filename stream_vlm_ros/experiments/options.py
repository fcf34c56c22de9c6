# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""The options of each experiment, without torch: ``--help`` is to be there at once."""

from __future__ import annotations

import argparse
import ast
import math
import os
from pathlib import Path
from typing import NamedTuple

from stream_vlm_ros.config import Settings
from stream_vlm_ros.errors import InvalidParameterError
from stream_vlm_ros.world.rare import MEASURING

from . import EXPERIMENTS, reference

# Names of what other modules hold; a test compares them.
SHAPES = ("3b", "7b", "toy")
SETTINGS = ("trained", "camera")
LEVELS = ("level 1", "all levels")
POLICIES = (
    "last 4 frames",
    "sink + window",
    "+ uniform",
    "+ importance",
    "+ importance, small window",
    "+ both",
    "+ both, small window",
    "full history",
)
OVER = ("rate", "chunk", "length")
LAYOUTS = ("continuous", "segmented")
POSITIONS = ("keep_gaps", "contiguous")

# Experiments that compare memories, as no single one is run.
_COMPARING = ("policies", "history", "endurance")


class Range(NamedTuple):
    """Numbers from ``least`` to ``most``, or above ``least``."""

    least: float
    most: float
    above: bool = False

    def __contains__(self, value: object) -> bool:
        assert isinstance(value, (int, float))
        return self.least <= value <= self.most and not (self.above and value == self.least)

    def __str__(self) -> str:
        if self.above:
            return f"above {self.least:,}, and at most {self.most:,}"
        return f"from {self.least:,} to {self.most:,}"


_CAP = "Tokens the KV cache may hold; 0: as many as fit."
_COUNT, _COUNT_OR_NONE = Range(1, 10**9), Range(0, 10**9)
_TIME = Range(0, 10**9, above=True)  # seconds
_RATE = Range(0, 1000, above=True)  # frames a second
# What the numbers may be, by the name of their option; no experiment works beyond. Others are for
# the engine to judge, or a measure that any number is.
RANGES: dict[str, Range] = {
    **dict.fromkeys(
        ("frames", "chunk_frames", "chunks", "chunk", "every", "repeats", "asks", "more",
         "max_sampled", "max_new_tokens", "videos", "each", "workers", "worlds", "jobs", "stretch",
         "turns"),
        _COUNT,
    ),
    **dict.fromkeys(
        ("questions", "moments", "cross_videos", "first_video", "first", "young", "once",
         "repeated", "never", "taken", "max_full", "index_megabytes"),
        _COUNT_OR_NONE,
    ),
    **dict.fromkeys(("seconds", "lengths", "hours", "memory_gib"), _TIME),
    **dict.fromkeys(("fps", "rates"), _RATE),
    **dict.fromkeys(("min_pixels", "max_pixels"), Range(1, 10**12)),
    **dict.fromkeys(("cap", "caps"), Range(0, 10**12)),  # in tokens, or as shares
    "idle_hours": Range(0, 10**9),
    "temperature": Range(0, 100),
    "first_text": Range(0, 10**6),
    "threads": Range(0, 1024),
    "seed": Range(-(2**63), 2**63 - 1),
}  # fmt: skip


def description_of(name: str) -> str | None:
    """What the module of an experiment says of itself."""
    source = Path(__file__).with_name(f"{EXPERIMENTS[name].module}.py").read_text("utf-8")
    return ast.get_docstring(ast.parse(source), clean=False)


def parser_of(name: str) -> argparse.ArgumentParser:
    """Options of one experiment: those that all have, and its own."""
    one = argparse.ArgumentParser(add_help=False, description=description_of(name))
    add = one.add_argument_group("model").add_argument
    add("--model", metavar="FOLDER", help="Qwen2.5-VL checkpoint folder; else the small model.")
    add("--shape", choices=SHAPES, help="Random weights of a named shape instead of a model.")
    add("--processor", metavar="FOLDER", help="Take tokenizer and image settings from here.")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N.")
    add("--dtype", default="auto", help="auto, bfloat16, float16 or float32.")
    add("--seed", type=int, default=0, help="Seed of random weights and of random choices.")
    add("--threads", type=int, default=0, help="CPU threads; 0: torch's own choice.")
    add = one.add_argument_group("memory").add_argument
    if EXPERIMENTS[name].module not in _COMPARING:
        add(
            "--as",
            dest="as_",
            choices=("reference", "product"),
            default="product",
            help="reference: a user turn for each chunk, gaps left in the positions, sink and "
            "window alone, a first chunk of its length. product: as the node does by default.",
        )
        add(
            "--first-text",
            type=int,
            metavar="TOKENS",
            help="Text tokens of a segmented first chunk, by a longer system prompt; 0: the "
            "model's own. Else as --as says.",
        )
    add(
        "--layout",
        choices=LAYOUTS,
        help="A user turn for each chunk, or one growing video; else by what it is run as.",
    )
    add(
        "--position-policy",
        choices=POSITIONS,
        help="Positions after an eviction: close the gaps, or keep them; else the same.",
    )
    add("--min-pixels", type=int, help="Enlarge smaller pictures to this many pixels.")
    add("--max-pixels", type=int, help="Reduce larger pictures to this many pixels.")
    add = one.add_argument_group("source").add_argument
    add(
        "--source",
        default=os.environ.get("VIDEO_PATH") or "synthetic",
        help="synthetic[:WIDTHxHEIGHT] (1920x1080 if no size is given), world:SEED, a video, bag "
        "or folder.",
    )
    add("--size", metavar="WIDTHxHEIGHT", help="Scale the pictures to this size.")
    add("--fps", type=float, default=2.0, help="Frames per second.")
    add(
        "--out",
        default=os.environ.get("REPORT_PATH") or "experiments",
        help="Folder for JSON, Markdown and plots.",
    )
    _OWN[name](one)
    return one


def settle(options: argparse.Namespace) -> None:
    """Give the memory what ``--as`` says where no option does.

    Raises InvalidParameterError for a number out of its range.
    """
    for name, value in vars(options).items():
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, str):
                continue
            if number is not None and name in RANGES and number not in RANGES[name]:
                raise InvalidParameterError(
                    f"--{name.replace('_', '-')} {number} is out of its range: {RANGES[name]}"
                )
            if isinstance(number, float) and math.isnan(number):
                raise InvalidParameterError(f"--{name.replace('_', '-')} nan is no number")
    options.as_ = getattr(options, "as_", "product")
    options.first_text = getattr(options, "first_text", None)
    product = Settings()
    for name, value in reference.MEMORY.items():
        if getattr(options, name, None) is None:
            as_reference = options.as_ == "reference"
            setattr(options, name, value if as_reference else getattr(product, name))


def sink(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(as_="reference")
    parser.add_argument(
        "--chunk-frames",
        type=int,
        nargs="+",
        default=[2, 4],
        metavar="N",
        help="Frames per chunk, each size in turn.",
    )
    parser.add_argument("--chunks", type=int, default=5, help="Chunks of each size.")
    parser.add_argument("--cap", type=int, default=100_000, help=_CAP)
    parser.add_argument("--min-sink", type=int, default=128, help="Tokens a sink must exceed.")


def long_video(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(as_="reference")
    parser.add_argument("--frames", type=int, default=400, help="Frames to stream.")
    parser.add_argument("--chunk-frames", type=int, default=4, help="Frames per chunk.")
    parser.add_argument("--cap", type=int, default=150_000, help=_CAP)
    _question(parser)
    parser.add_argument("--max-new-tokens", type=int, default=64, help="Tokens of an answer.")
    parser.add_argument("--max-gb", type=float, default=23.0, help="Peak memory that passes, GB.")
    parser.add_argument(
        "--no-eviction", action="store_true", help="The control: let the memory grow."
    )
    _memory_gib(parser)
    _no_answers(parser)


def periodic(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(as_="reference")
    parser.add_argument("--frames", type=int, default=400, help="Frames to stream.")
    parser.add_argument("--chunk-frames", type=int, default=4, help="Frames per chunk.")
    parser.add_argument("--cap", type=int, default=150_000, help=_CAP)
    parser.add_argument(
        "--every", type=int, default=25, metavar="CHUNKS", help="Chunks between questions."
    )
    parser.add_argument(
        "--question",
        help="If none: to read all text on the screen; in a drawn world, its last sign.",
    )
    parser.add_argument("--max-new-tokens", type=int, default=200, help="Tokens of an answer.")
    parser.add_argument(
        "--temperature", type=float, default=0.3, help="0: always the most likely token."
    )
    parser.add_argument(
        "--max-ttft", type=float, default=10.0, help="Mean TTFT that passes, in seconds."
    )
    parser.add_argument("--remedies", action="store_true", help="Compare the remedies, too.")
    _no_answers(parser)


def _question(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--question",
        help="Asked at the end. If none: to describe what is seen; in a drawn world, what is "
        "visible now.",
    )


def _memory_gib(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--memory-gib",
        type=float,
        help="Run out of memory beyond this, as a smaller GPU would; on a CPU the process's own.",
    )


def _no_answers(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--no-answers",
        action="store_true",
        help="Where this model's answers cannot be judged, do not judge the small model's either.",
    )


def caps(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--frames", type=int, default=160, help="Frames to stream.")
    parser.add_argument("--chunk-frames", type=int, default=4, help="Frames per chunk.")
    parser.add_argument(
        "--caps",
        type=int,
        nargs="+",
        metavar="N",
        help="Caps to try, in tokens; 0: as large as fits. If none: 50,000, 100,000, 130,000 and "
        "150,000, or as large shares of a stream that would not reach them.",
    )
    parser.add_argument("--repeats", type=int, default=1, help="Streams of each cap.")
    parser.add_argument("--asks", type=int, default=5, help="Samples of TTFT in each stream.")
    _question(parser)
    parser.add_argument("--max-new-tokens", type=int, default=32, help="Tokens of an answer.")
    parser.add_argument(
        "--questions", type=int, default=40, help="How many questions about a drawn world."
    )


def native(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--frames", type=int, default=24, help="Frames to stream.")
    parser.add_argument("--chunk-frames", type=int, default=4, help="Frames per chunk.")
    _question(parser)
    parser.add_argument("--max-new-tokens", type=int, default=32, help="Tokens of an answer.")
    parser.add_argument(
        "--attention",
        default="sdpa",
        help="Attention of the stock model: sdpa, eager or flash_attention_2.",
    )
    _memory_gib(parser)
    _no_answers(parser)


def chunk_size(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--over", nargs="+", choices=OVER, default=["chunk"], help="What is changed.")
    add(
        "--chunk-frames",
        type=int,
        nargs="+",
        default=[2, 4, 6, 3],
        metavar="N",
        help="Frames per chunk, each size in turn.",
    )
    add(
        "--rates",
        type=float,
        nargs="+",
        default=[0.5, 1.0, 2.0, 4.0, 8.0],
        metavar="FPS",
        help="Frames per second, each in turn.",
    )
    add(
        "--lengths",
        type=float,
        nargs="+",
        default=[15.0, 30.0, 60.0, 120.0],
        metavar="SECONDS",
        help="Seconds of video, each in turn.",
    )
    add("--chunk", type=int, default=4, help="Frames per chunk where something else is changed.")
    add("--seconds", type=float, default=12.0, help="Length where something else is changed.")
    add("--repeats", type=int, default=1, help="Streams of each point.")
    add("--cap", type=int, default=100_000, help=_CAP)
    add("--question", default="Describe what you see.", help="Asked at the end, for its TTFT.")
    add("--questions", type=int, default=40, help="How many questions about a drawn world.")


def curves(parser: argparse.ArgumentParser) -> None:
    chunk_size(parser)
    parser.set_defaults(over=list(OVER), seconds=60.0, repeats=3)


def time_order(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(source="world")
    parser.add_argument("--min-right", type=float, default=95.0, help="Per cent that passes.")


def delayed_batch(parser: argparse.ArgumentParser) -> None:
    # At most 100,352 pixels a frame are the engine's default, and were the reference's.
    parser.set_defaults(fps=1.0, max_pixels=100_352)
    add = parser.add_argument
    add("--frames", type=int, default=50, help="Frames before the first question.")
    add("--more", type=int, default=10, help="Frames before the last one.")
    add("--asks", type=int, default=3, help="Questions between them.")
    add("--max-sampled", type=int, default=48, help="Frames encoded for a question, at most.")
    add("--question", default="Describe what you see.", help="Where no drawn world is asked about.")
    add("--max-new-tokens", type=int, default=32, help="Tokens of an answer.")


def policies(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(source="world", out=os.environ.get("REPORT_PATH") or "bench/results")
    add = parser.add_argument
    add("--settings", nargs="+", choices=SETTINGS, default=["trained"], help="Which videos.")
    add("--videos", type=int, default=8, help="Videos of each setting.")
    add(
        "--cross-videos",
        type=int,
        default=4,
        help="How many of them are streamed in every layout with every position policy; the others "
        "use only the first of each.",
    )
    add("--first-video", type=int, default=1_000_000, help="Seed of the first world.")
    add("--seconds", type=float, help="Length of a video, instead of the setting's.")
    add(
        "--idle-hours",
        type=float,
        default=0.0,
        help="Show the first picture this long before each video, once a minute.",
    )
    add(
        "--caps",
        type=float,
        nargs="+",
        help="Caps as shares of the history, instead of the setting's.",
    )
    add("--moments", type=int, default=4, help="Moments of a video at which questions are asked.")
    add("--each", type=int, default=3, help="Questions of each type at a moment, at most.")
    add(
        "--policies",
        nargs="+",
        default=list(POLICIES),
        metavar="POLICY",
        help="Which policies; also an importance score of your own, as MODULE:NAME on PYTHONPATH "
        "(--fresh after a change in it).",
    )
    add("--layouts", nargs="+", choices=LAYOUTS, default=list(LAYOUTS), help="Which layouts.")
    add(
        "--positions",
        nargs="+",
        choices=POSITIONS,
        default=list(POSITIONS),
        help="Which position policies.",
    )
    add("--max-full", type=int, default=32_768, help="Try no full history of more tokens.")
    add("--workers", type=int, default=1, help="Processes, of --threads each.")
    add("--minutes", type=float, help="Start no stream after this time; run again to resume.")
    add("--fresh", action="store_true", help="Forget what an earlier run found.")


def history(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(source="world")
    add = parser.add_argument
    add("--worlds", type=int, default=len(MEASURING), help="Worlds, of the seeds for measuring.")
    add("--first", type=int, default=0, help="Skip so many worlds.")
    add("--hours", type=float, default=6.0, help="Length of each.")
    add("--once", type=int, default=20, help="Things of a world that come once.")
    add("--repeated", type=int, default=4, help="Things that come several times in ten minutes.")
    add("--never", type=int, default=8, help="Things that are asked about and do not come.")
    add("--chunk-frames", type=int, default=16, help="Frames per chunk.")
    add("--jobs", type=int, default=1, help="Processes, each with a world of its own.")
    add(
        "--history",
        choices=("auto", "never", "always"),
        default="auto",
        help="When the engine looks back.",
    )
    add("--read", choices=("apart",), default="apart", help="How what is fetched is read.")
    add("--index-megabytes", type=int, default=256, help="Of keys; beyond, they are thinned out.")
    add("--questions", type=int, default=0, help="Of a world at most; 0: all.")
    add("--moments", type=int, default=40, help="Of a world, at which the present is asked about.")
    add("--taken", type=int, default=100, help="Questions a world whose evidence is taken away.")
    add("--no-controls", action="store_true", help="The engine alone.")
    add("--report", action="store_true", help="Only put together what was measured.")


def endurance(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(shape="toy", source="synthetic:112x84")
    parser.add_argument("--chunks", type=int, default=10_000, help="Chunks to stream.")
    parser.add_argument("--chunk-frames", type=int, default=2, help="Frames per chunk.")
    parser.add_argument("--cap", type=int, default=300, help="Tokens the KV cache may hold.")
    parser.add_argument(
        "--levels", nargs="+", choices=LEVELS, default=list(LEVELS), help="Which levels."
    )
    parser.add_argument(
        "--positions",
        nargs="+",
        choices=POSITIONS,
        default=list(POSITIONS),
        help="Which position policies.",
    )
    parser.add_argument(
        "--young", type=int, default=500, help="Chunks of the young stream before it is measured."
    )
    parser.add_argument("--stretch", type=int, default=50, help="Chunks per turn.")
    parser.add_argument(
        "--turns", type=int, default=20, help="Turns of the old and the young stream."
    )
    parser.add_argument(
        "--max-mib", type=float, default=4.0, help="Growth of memory that passes, MiB."
    )
    parser.add_argument(
        "--max-ratio",
        type=float,
        default=1.1,
        help="Ratio of old to young that passes, time per chunk.",
    )


_OWN = {
    one.__name__.replace("_", "-"): one
    for one in (
        sink, long_video, periodic, caps, native, chunk_size, curves, time_order, delayed_batch,
        policies, history, endurance,
    )
}  # fmt: skip

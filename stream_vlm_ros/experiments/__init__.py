# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Experiments on the memory: measured runs with pass criteria, on any model and any source.

Each experiment is a module with ``run(context)``; its options are in `options`. `command` finds it
by name, gives it a `Context`, and turns what it wrote into JSON, Markdown, plots and an exit
status.
"""

from typing import NamedTuple


class Experiment(NamedTuple):
    """The name of its module in this package, and its title."""

    module: str
    title: str


EXPERIMENTS = {
    "sink": Experiment("sink", "Sink detection"),
    "long-video": Experiment("long_video", "A long video in bounded memory"),
    "periodic": Experiment("periodic", "Periodic questions"),
    "caps": Experiment("caps", "Sweep of the cap"),
    "native": Experiment("native", "Stream against the offline pass"),
    "chunk-size": Experiment("curves", "Chunk size"),
    "curves": Experiment("curves", "Frame rate, chunk size and length"),
    "time-order": Experiment("time_order", "What came last"),
    "delayed-batch": Experiment("delayed_batch", "The delayed batch engine in four stages"),
    "policies": Experiment("policies", "Which memory keeps what"),
    "history": Experiment("history", "Questions about hours"),
    "endurance": Experiment("endurance", "Ten thousand chunks"),
}

# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Experiments at toy size."""

import json

from stream_vlm_ros.experiments.command import main

SMALL = ["--shape", "toy", "--device", "cpu", "--source", "synthetic:112x84"]
GRID = 12  # tokens: 4 x 3
JUDGING = ("long-video", "periodic", "native")


def run_experiment(folder, name, *arguments, options=SMALL, answers=False):
    """Its exit status and its record. ``answers``: judge the small model's, too."""
    options = [*(options if name != "policies" else options[:4]), "--out", folder, *arguments]
    if name in JUDGING and not answers:
        options.append("--no-answers")
    status = main([name, *map(str, options)])
    return status, json.loads((folder / f"{name}.json").read_text())


def failed(found):
    return [entry["name"] for entry in found["criteria"] if entry["passed"] is False]

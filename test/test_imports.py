# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""What needs only torch and transformers runs where nothing else is installed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import stream_vlm_ros

ROOT = Path(__file__).resolve().parents[1]
MODULE = Path(stream_vlm_ros.__file__).resolve().parent

# What the engine needs; what these need themselves is there, too.
NEEDED = ("torch", "transformers", "safetensors", "numpy", "pillow")

# Runs a statement where no distribution but those given is found, as if no other were installed.
PROGRAM = """
import importlib.metadata, json, re, sys

def closure(names):
    found, waiting = set(), list(names)
    while waiting:
        name = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        if name in found:
            continue
        found.add(name)
        try:
            needs = importlib.metadata.requires(name) or ()
        except importlib.metadata.PackageNotFoundError:
            continue
        for need in needs:
            if "extra ==" not in need:
                waiting.append(re.match(r"[\\w.-]+", need).group())
    return found

allowed = closure(json.loads(sys.argv[1]))
homes = importlib.metadata.packages_distributions()

class OnlyWhatIsNeeded:
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        of = {re.sub(r"[-_.]+", "-", one).lower() for one in homes.get(top, ())}
        ours = top == "stream_vlm_ros"
        if of and not of & allowed and not ours and top not in sys.stdlib_module_names:
            return None
        return self.finder.find_spec(name, path, target)

    def find_distributions(self, context):
        for found in getattr(self.finder, "find_distributions", lambda context: ())(context):
            if re.sub(r"[-_.]+", "-", found.name).lower() in allowed:
                yield found

sys.meta_path[:] = map(OnlyWhatIsNeeded, sys.meta_path)
"""


def run_where_only_these_are_installed(statement, distributions=NEEDED):
    """The finished process of a statement."""
    environment = {**os.environ, "PYTHONPATH": str(MODULE.parent)}
    program = PROGRAM + statement
    return subprocess.run(
        [sys.executable, "-c", program, json.dumps(distributions)],
        env=environment,
        capture_output=True,
        text=True,
    )


ENGINE = "import stream_vlm_ros.engine as engine\nfor name in engine.__all__: getattr(engine, name)"


def test_the_engine_runs_where_only_torch_and_transformers_are_installed():
    done = run_where_only_these_are_installed(ENGINE)
    assert done.returncode == 0, done.stderr


def test_what_is_not_installed_there_cannot_be_imported():
    for module in ("av", "rosbags.highlevel", "typer", "yaml.not_there"):
        done = run_where_only_these_are_installed(f"import {module}", ["numpy"])
        assert done.returncode == 1 and "No module named" in done.stderr, module
    assert run_where_only_these_are_installed("import numpy", ["numpy"]).returncode == 0

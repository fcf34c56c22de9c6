# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Holds the working tree against a commit: whatever is done to both, both answer the same.

    make same-as REV=90b1803 MACHINES=200
    python test/equivalence/same_as.py --rev 90b1803 --machines 200 --out bench/results/same_as.json

It guards changes that are meant to change no behaviour. Two processes, `child`, each import the
engine of their own tree and load the same checkpoint folders: a toy of random weights that the
commit's own test helper saves, and the small trained model that the commit ships. A hypothesis
machine, `machine`, drives both by the same steps: chunks and stills of several sizes and times,
questions greedy, sampled and stopped, kept exchanges, choices, answers open while chunks go on,
snapshots, clones and restores, other pixel bounds, resets, and all that is refused; under every
level of eviction, both layouts, both position policies, with and without a cap and slack. After
each step it compares (`comparison`)

- what was returned: texts piece by piece, metrics but times, and the name of an error's type;
- what is remembered: lengths, stamps, levels, evictions, the next position;
- logits, choices' scores and the values in the cache, within 1e-5 in float32.

Two answers that part where two tokens' logits are nearer than that are counted as a tie, and the
machine ends there; which of two equal choices is taken is not compared. Elsewhere what is done
leaves rounding nothing to decide: pictures are clearly unlike, or exactly alike where that is
all the same (not where ``skip_similarity`` looks for the token least alike).

Where a tree is meant to behave in another way, ``--leave-out`` names the step not to take, for as
long as the commit does it the old way: ``kept stop`` (an exchange kept that a stop text ended),
``automatic shares`` (shares of -1), ``static`` (text in steps of fixed shape on a CPU).

``--fault`` introduces one of `faults` into the second tree, to see that it is found.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, Verbosity, seed, settings
from hypothesis.stateful import run_state_machine_as_test
from machine import SameAs, Tally
from pair import Pair

ROOT = Path(__file__).resolve().parents[2]
STEPS = 25  # rules of a machine, each of one to a dozen commands

SAVE_TOY = """
import sys
from pathlib import Path
from toy_qwen import save_checkpoint, toy_model
save_checkpoint(Path(sys.argv[1]), toy_model(seed=3))
"""


def tree_at(revision: str) -> Path:
    """The folder with the files of a commit."""
    done = subprocess.run(
        [ROOT / "tools" / "tree_at.sh", revision], stdout=subprocess.PIPE, text=True, check=True
    )
    return Path(done.stdout.strip())


def checkpoints(tree: Path, folder: Path) -> dict[str, Path]:
    """The models that both trees load: the toy, saved by that tree, and the small trained one."""
    toy = folder / "toy"
    toy.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", SAVE_TOY, toy],
        env={**os.environ, "PYTHONPATH": f"{tree}{os.pathsep}{tree / 'test' / 'helpers'}"},
        cwd=folder,
        stderr=subprocess.PIPE,
        text=True,
    )
    if done.returncode:
        sys.exit(f"the toy of {tree} was not saved:\n{done.stderr}")
    (shipped,) = tree.glob("stream_vlm_ros/*/model/config.json")
    return {"toy": toy, "small": shipped.parent}


def drive(
    pair: Pair,
    machines: int,
    number: int = 0,
    leave_out: frozenset[str] = frozenset(),
    shrink: bool = True,
) -> Tally:
    """Run so many machines; AssertionError at the first difference, with the steps that show it."""
    tally = Tally()
    given = {"pair": pair, "tally": tally, "leave_out": leave_out}
    kind = seed(number)(type("Machine", (SameAs,), given))
    phases = [Phase.generate, *([Phase.shrink] if shrink else [])]
    run_state_machine_as_test(
        kind,
        settings=settings(
            max_examples=machines,
            stateful_step_count=STEPS,
            database=None,
            phases=phases,
            report_multiple_bugs=False,
            suppress_health_check=list(HealthCheck),
            verbosity=Verbosity.normal,
        ),
    )
    return tally


def processor() -> str:
    """The processor by its maker's name where the system tells it, else its architecture."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.is_file() else []
    told = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(told, "") or platform.machine()


def results(tally: Tally, revision: str, tree: Path, number: int, seconds: float) -> dict[str, Any]:
    """What is kept of a run."""
    used = sum(
        usage.ru_utime + usage.ru_stime
        for usage in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", "-C", ROOT, *words], stdout=subprocess.PIPE, text=True, check=True
        ).stdout.strip()

    working = git("rev-parse", "HEAD")
    if git("status", "--porcelain", "--", "stream_vlm_ros"):
        working += " and changes"
    return {
        "date": datetime.date.today().isoformat(),
        "machine": processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "rev": git("rev-parse", f"{revision}^{{commit}}"),
        "tree": working if tree == ROOT else str(tree),
        "seed": number,
        "seconds": round(seconds),
        "processor_seconds": round(used),  # of all three processes
        "machines": tally.machines,
        "steps": tally.steps,
        "ties": tally.ties,
        "equal_choices": tally.equal_choices,
        "answer_tokens": tally.answer_tokens,
        "evictions": tally.evictions,
        "tokens_evicted": tally.tokens_evicted,
        "longest_stream": tally.longest,
        "chunks_appended_under_an_answer": tally.appended_under_an_answer,
        "worst_difference": {
            name: {
                "absolute": found.absolute,
                "of_the_largest": found.relative,
                "compared": found.arrays,
            }
            for name, found in sorted(tally.worst.items())
        },
        "commands": dict(tally.commands.most_common()),
        "errors": dict(tally.errors.most_common()),
        "settings": dict(tally.settings.most_common()),
    }


def main() -> int:
    parse = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parse.add_argument("--rev", required=True, help="the commit to hold the working tree against")
    parse.add_argument("--tree", type=Path, default=ROOT, help="another tree than this one")
    parse.add_argument("--machines", type=int, default=200)
    parse.add_argument("--seed", type=int, default=0)
    parse.add_argument("--leave-out", action="append", default=[], metavar="STEP")
    parse.add_argument("--fault", default="", help="see faults.py")
    parse.add_argument("--no-shrink", action="store_true", help="do not look for fewer steps")
    parse.add_argument("--out", type=Path, help="a JSON file for the results")
    options = parse.parse_args()
    begin = time.perf_counter()
    before = tree_at(options.rev)
    with tempfile.TemporaryDirectory(prefix="stream_vlm_same_as_") as folder:
        models = checkpoints(before, Path(folder))
        pair = Pair((before, options.tree.resolve()), models, options.fault)
        try:
            leave_out = frozenset(options.leave_out)
            tally = drive(pair, options.machines, options.seed, leave_out, not options.no_shrink)
        finally:
            pair.close()
    seconds = time.perf_counter() - begin
    found = results(tally, options.rev, options.tree.resolve(), options.seed, seconds)
    text = json.dumps(found, indent=2) + "\n"
    print(text, end="")
    if options.out:
        options.out.write_text(text)
    print(f"{tally.machines} machines, {tally.steps} steps: equal")
    return 0


if __name__ == "__main__":
    sys.exit(main())

# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Mutated question files: each is loaded, or refused in words with its line.

    python bench/fuzz_questions.py --files 10000 --out bench/results/fuzz_questions.json

A file is one of a few good ones, in YAML or JSON, with bytes, lines, numbers and texts of it
changed, cut, repeated or nested, or with hostile pieces put in. What loads is also asked over a
source with gaps, and its judges see hostile answers. Counted: files that loaded, that were refused,
that raised anything else, that took longer than 10 s; and the process's memory.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import random
import re
import resource
import shlex
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

from stream_vlm_ros.engine.inputs.timestamps import SECOND
from stream_vlm_ros.machine import measured_on
from stream_vlm_ros.replay.questions import load_questions
from stream_vlm_ros.replay.schedule import Schedule
from stream_vlm_ros.replay.yaml_lines import QuestionFileError

LONGEST = 10.0  # seconds for one file
FRAMES = [*range(20), 86_400, 86_401, 1_700_000_000, 1_700_000_001]  # seconds: two gaps
ANSWERS = ["", "a cup", "9" * 5000, "a" * 5000, "1:05", "zwölf 🙂 \ud800", "x" * 5000 + "y"]

GOOD_YAML = """\
version: 1
title: Kitchen, 3 May
defaults: {max_new_tokens: 32, tags: [kitchen]}
questions:
  - text: What is on the table?
    at: 12.5
    expect: [a cup, cup]
    judge: contains
  - id: door
    text: Was the door open?
    at_stamp: "1700000042.5"
    choices: [yes, no]
    expect: yes
    evidence: [[3, 7.5], 9]
    type: existence
  - text: How many cups were there?
    at: "1:05"
    expect: 3
    judge: {number: {within: 1}}
    extra: {difficulty: hard, by: [a, {b: c}]}
  - text: When did it fall?
    at: end
    about: ["2:00", "2:10"]
    expect: "0:12"
    judge: {time: {within: 2}}
  - text: Read the text on the screen.
    every: 25
    from: 5
    until: 100
    merge: {similarity: 0.8}
  - text: "Which letter?"
    every: 0.5
    expect: "^[A-C]+$"
    judge: regex
"""
NUMBERS = """0 -1 1e400 -.inf .nan NaN Infinity 010 0x1F 1e-320 0.0000001 2147483648 1e12
    99999999999999999999 1:60 1:2:3:4 ١٢ 7 0.5 3""".split()
NUMBERS += ["9" * 5000, "0." + "3" * 400]
PIECES = [
    "&a [*a]",
    "*a",
    "&a",
    "<<: *a",
    "<<: [1]",
    "!!bool maybe",
    "!!int x",
    "!!binary x",
    "!x y",
    "---\n",
    "...\n",
    "? ",
    ": ",
    "- ",
    "[" * 200,
    "{" * 200,
    '{"a":' * 3000,
    "]" * 9,
    "}" * 9,
    "|\n",
    "!",
    ">-\n",
    "%YAML 9.9\n",
    "%TAG ! !\n",
    "\t",
    "\0",
    "\x1b[31m",
    "\ufeff",
    "\u2028",
    "\x85",
    "null",
    "~",
    "true",
    "'",
    '"',
    '"\\ud800"',
    '"\\ud83d\\ude42"',
    '"\\u0000"',
    "\\",
    "{1: a, b: c}",
    "(a|a)*b",
    "(" * 500 + "a" + ")" * 500,
    "a{99999999999}",
    "(?=a)",
    "(a)\\1",
    "[a-",
    "(?i)(?s).*x",
    "python:no.such:f",
    "python:json:loads",
    "x" * 20_000,
    "🙂",
    "é",
    "\r",
    "\r\n",
    "#",
    "@",
    "`",
]
LAUGHS = "a0: &a0 [x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join(9 * [f'*a{n - 1}'])}]\n" for n in range(1, 12)
)


def mutated(rng: random.Random, text: str) -> str:
    """``text`` with one thing about it changed."""
    place, other = sorted(rng.randrange(len(text) + 1) for _ in range(2))
    kind = rng.choice([0, 1, 2, 3, 4, 4, 4, 5, 5, 5, 6, 7, 8])
    if kind == 0:  # put in
        return text[:place] + rng.choice(PIECES) + text[place:]
    if kind == 1:  # cut off, or out
        return text[:place] + rng.choice(["", text[other:]])
    if kind == 2:  # repeat, once or often
        return text[:other] + text[place:other] * rng.choice([1, 3, 40]) + text[other:]
    if kind == 3:  # change a character
        return (
            text[:place]
            + chr(rng.choice([rng.randrange(128), rng.randrange(0x2FFF)]))
            + text[place + 1 :]
        )
    if kind == 4:  # a number for a number
        spots = list(re.finditer(r"\d[\d.:]*", text))
    elif kind == 5:  # something else for a value
        spots = list(re.finditer(r"(?<=: )[^\n,}]+", text))
    elif kind == 6:  # a word for a word
        spots = list(re.finditer(r"[a-z_]{2,}", text))
    elif kind == 7:  # lines in another order
        lines = text.split("\n")
        rng.shuffle(lines)
        return "\n".join(lines)
    else:
        return rng.choice([LAUGHS, "{" + text + "}", "- " + text, text + LAUGHS, text * 2])
    if not spots:
        return text
    spot = rng.choice(spots)
    new = rng.choice(NUMBERS if kind == 4 else [*PIECES, *NUMBERS] if kind == 5 else spots)
    return text[: spot.start()] + (new if isinstance(new, str) else new[0]) + text[spot.end() :]


def a_file(rng: random.Random, good_json: str) -> tuple[str, bytes]:
    """A suffix and what the file holds."""
    suffix, text = rng.choice([("yaml", GOOD_YAML), ("json", good_json), ("yaml", good_json)])
    for _ in range(rng.choice([1, 1, 1, 2, 3, 6])):
        text = mutated(rng, text)[:2_000_000]
    data = text.encode("utf-8", "surrogatepass")
    if data and rng.random() < 0.1:  # broken bytes
        place = rng.randrange(len(data))
        data = data[:place] + bytes([rng.randrange(256)]) + data[place + 1 :]
    return suffix, data


def use(path: Path) -> None:
    """Load a file, ask its questions over frames with gaps, and judge hostile answers."""
    questions = load_questions(path).questions
    schedule = Schedule(questions, 0, where_frames_are=True)
    asked = 0
    for frame in FRAMES:
        asked += sum(1 for _ in schedule.before(frame * SECOND))
        schedule.saw(frame * SECOND)
    asked += sum(1 for _ in schedule.until(FRAMES[-1] * SECOND))
    if asked > len(questions) * len(FRAMES):
        raise AssertionError(f"{asked} asks of {len(questions)} questions, {len(FRAMES)} frames")
    for question in questions:
        if question.judge.name.startswith("python:"):
            continue  # runs what the user named
        for answer in ANSWERS:
            try:
                question.judge(answer)
            except UnicodeEncodeError:  # of an unpaired surrogate; a report notes it
                continue


def main() -> int:
    parse = argparse.ArgumentParser(description=__doc__)
    parse.add_argument("--files", type=int, default=10_000)
    parse.add_argument("--seed", type=int, default=20261128)
    parse.add_argument("--out", type=Path)
    options = parse.parse_args()
    rng = random.Random(options.seed)
    counts: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    failures, slowest = [], 0.0
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        good = Path(folder, "good.yaml")
        good.write_text(GOOD_YAML)
        good_json = as_json(good)
        memory_before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        for number in range(options.files):
            suffix, data = a_file(rng, good_json)
            path = Path(folder, f"q.{suffix}")
            path.write_bytes(data)
            faulthandler.dump_traceback_later(6 * LONGEST, exit=True)  # a hang is told, and ends it
            begin = time.monotonic()
            try:
                use(path)
                counts["loaded"] += 1
            except QuestionFileError as refusal:
                counts["refused"] += 1
                with_line = re.match(r":\d+: ", str(refusal).removeprefix(str(path)))
                counts["refused_with_line"] += bool(with_line)
                counts["refused_at_length"] += len(str(refusal)) > 1000 + len(str(path))
                words = str(refusal).removeprefix(str(path))
                reasons[re.sub(r"[^a-zA-Z ]+", " ", words).strip()[:24]] += 1
            except Exception:
                counts["raised"] += 1
                failures.append({"number": number, "traceback": traceback.format_exc(limit=-3)})
            took = time.monotonic() - begin
            slowest = max(slowest, took)
            counts["too_slow"] += took > LONGEST
            faulthandler.cancel_dump_traceback_later()
    result = {
        "command": shlex.join(["python", *sys.argv]),
        **measured_on(),
        "seed": options.seed,
        "files": options.files,
        **{name: counts[name] for name in ("loaded", "refused", "refused_with_line")},
        **{name: counts[name] for name in ("refused_at_length", "raised", "too_slow")},
        "slowest_seconds": round(slowest, 2),
        "seconds": round(time.monotonic() - began, 1),
        "memory_mb_before": memory_before,
        "memory_mb_most": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "reasons": len(reasons),
        "failures": failures[:20],
    }
    print(json.dumps(result, indent=1))
    if options.out is not None:
        options.out.write_text(json.dumps(result, indent=1) + "\n")
    return bool(counts["raised"] or counts["too_slow"])


def as_json(path: Path) -> str:
    """The file as JSON, as Python writes it."""
    from stream_vlm_ros.replay.yaml_lines import load_document

    return json.dumps(load_document(path).content, indent=1)


if __name__ == "__main__":
    sys.exit(main())

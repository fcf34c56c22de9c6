# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""What a reader reads, and Python calls, to follow a chunk and a question through the engine.

    python bench/reading_path.py                        # the working tree
    python bench/reading_path.py --rev 90b1803          # a commit
    python bench/reading_path.py --rev 90b1803 --out before.json

(a) Lines of the functions of ``stream_vlm_ros/engine`` that are entered during one
``append_video_chunk`` and one ``ask``, each line once: from a function's first decorator to its
last line, docstring and comments included; apart from that, lines of code alone. The memory is
full, so the chunk evicts; its frames have a size that the engine has not met, so that nothing comes
from an earlier one; the question is the engine's first. For sink and window alone, and for a memory
that keeps frames.

(b) Python calls of one question whose answer has three tokens, after two like it: ``call`` events
of ``sys.setprofile``, whoever's code it is; and calls into C (``c_call``).

On a CPU, in float32, with the toy of the tree's own tests in a given shape (as deep as the 3B model
if nothing else is said), saved and loaded as a checkpoint. Each tree is measured in a process of
its own, by public names.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import platform
import subprocess
import sys
import tempfile
import tokenize
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
TOKENS = 3
MEMORIES = {
    "sink and window": {"sampled_share": 0.0, "important_share": 0.0},
    "important frames kept": {"sampled_share": 0.0, "important_share": 0.6},
}
CAP = 200  # tokens


# -- lines -----------------------------------------------------------------------------------------


def functions_entered(work: Callable[[], Any], folder: Path) -> set[CodeType]:
    """The functions of files in ``folder`` that ``work`` enters."""
    entered: set[CodeType] = set()

    def trace(frame: FrameType, event: str, _: Any) -> None:
        entered.add(frame.f_code)

    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(None)
    inside = str(folder.resolve()) + os.sep
    return {code for code in entered if os.path.realpath(code.co_filename).startswith(inside)}


def lines_of(codes: set[CodeType]) -> dict[str, set[int]]:
    """The lines of these functions, by file."""
    lines: dict[str, set[int]] = {}
    for file in {code.co_filename for code in codes}:
        spans = {}  # a function's first line, and name: its last
        for node in ast.walk(ast.parse(Path(file).read_text(encoding="utf-8"))):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                first = min([node.lineno, *(one.lineno for one in node.decorator_list)])
                spans[first, node.name] = node.end_lineno or node.lineno
        found = lines.setdefault(file, set())
        for code in codes:
            if code.co_filename != file:
                continue
            first = code.co_firstlineno
            if (first, code.co_name) in spans:
                found |= set(range(first, spans[first, code.co_name] + 1))
            else:  # a lambda or a comprehension
                found |= {line for _, _, line in code.co_lines() if line}
    return lines


def code_lines(file: str) -> set[int]:
    """Lines of a file with code: no blank ones, no comments, no docstrings."""
    path = Path(file)
    texts = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            texts |= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    none = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT}
    with path.open("rb") as opened:
        tokens = [one for one in tokenize.tokenize(opened.readline) if one.type not in none]
    written = {line for one in tokens[1:-1] for line in range(one.start[0], one.end[0] + 1)}
    return written - texts


def count_lines(work: Callable[[], Any], folder: Path) -> dict[str, Any]:
    codes = functions_entered(work, folder)
    lines = lines_of(codes)
    functions = Counter(code.co_filename for code in codes if not code.co_name.startswith("<"))
    files = {
        str(Path(file).resolve().relative_to(folder.resolve())): {
            "functions": functions[file],
            "lines": len(found),
            "code": len(found & code_lines(file)),
        }
        for file, found in lines.items()
    }
    files = dict(sorted(files.items(), key=lambda item: -item[1]["lines"]))
    total = {key: sum(one[key] for one in files.values()) for key in ("functions", "lines", "code")}
    return {"files": files, "total": total}


# -- calls -----------------------------------------------------------------------------------------


def count_calls(work: Callable[[], Any]) -> Counter[str]:
    calls: Counter[str] = Counter()

    def note(frame: FrameType, event: str, argument: Any) -> None:
        calls[event] += 1

    sys.setprofile(note)
    try:
        work()
    finally:
        sys.setprofile(None)
    return calls


# -- one tree, in its own process --------------------------------------------------------------


def measure(tree: Path, shape: dict[str, int]) -> dict[str, Any]:
    """What this process's tree has to say."""
    import torch
    from toy_qwen import save_checkpoint, toy_frames, toy_model

    from stream_vlm_ros import engine

    home = Path(engine.__file__).resolve().parent
    assert home.is_relative_to(tree.resolve()), f"{home} is not of {tree}"
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="stream_vlm_toy_") as folder:
        save_checkpoint(Path(folder), toy_model(**shape))
        model = engine.StreamQwenModel.from_pretrained(folder, torch_dtype=torch.float32).eval()
        processor = engine.StreamProcessor.from_pretrained(folder)

    def full(shares: dict[str, float]) -> Any:
        config = engine.EvictionConfig(
            max_cache_tokens=CAP, sink_size=0, window_size=0, eviction_interval=1, **shares
        )
        new = engine.VideoStreamingInference(model, processor, "cpu", config)
        for seed in range(20):
            new.append_video_chunk(toy_frames(4, seed=seed), fps=2)
        assert new.get_cache_info()["eviction_stats"]["total_evictions"] > 0
        return new

    lines = {}
    for number, (name, shares) in enumerate(MEMORIES.items()):
        streaming = full(shares)
        chunk = toy_frames(4, 84, 56 + 28 * number, seed=99)

        def append_and_ask(streaming: Any = streaming, chunk: Any = chunk) -> None:
            streaming.append_video_chunk(chunk, fps=2)
            streaming.ask("What is there?", max_new_tokens=TOKENS)

        lines[name] = count_lines(append_and_ask, home)

    asking, question = full(MEMORIES["sink and window"]), "What is there?"
    for _ in range(2):
        _, metrics = asking.ask(question, max_new_tokens=TOKENS)
    assert metrics["answer_tokens"] == TOKENS, f"the toy says {metrics['answer_tokens']} tokens"
    calls = count_calls(lambda: asking.ask(question, max_new_tokens=TOKENS))
    counted = {"python_calls": calls["call"], "c_calls": calls["c_call"]}
    return {"lines": lines, "question": {"answer_tokens": TOKENS, **counted}}


def main() -> int:
    parse = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    which = parse.add_mutually_exclusive_group()
    which.add_argument("--rev", help="a commit instead of the working tree")
    which.add_argument("--tree", type=Path, default=ROOT, help="another folder")
    parse.add_argument("--layers", type=int, default=36)
    parse.add_argument("--heads", type=int, default=4)
    parse.add_argument("--kv-heads", type=int, default=2)
    parse.add_argument("--head-dim", type=int, default=16)
    parse.add_argument("--out", type=Path, help="a JSON file for the results")
    parse.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    options = parse.parse_args()
    shape = {name: getattr(options, name) for name in ("layers", "heads", "kv_heads", "head_dim")}
    if options.here:
        print(json.dumps(measure(options.tree, shape)))
        return 0

    tree = options.tree.resolve()
    if options.rev:
        found = subprocess.check_output([ROOT / "tools" / "tree_at.sh", options.rev], text=True)
        tree = Path(found.strip())
    command = [sys.executable, __file__, "--here", "--tree", tree]
    command += [f"--{name.replace('_', '-')}={value}" for name, value in shape.items()]
    path = os.pathsep.join([str(tree), str(tree / "test" / "helpers")])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    measured = json.loads(subprocess.check_output(command, env=environment, text=True))

    for name, counted in measured["lines"].items():
        print(f"Functions entered in engine/, {name}:\n")
        print(f"{'functions':>10}{'lines':>8}{'code':>8}  file")
        for file, row in [*counted["files"].items(), ("all", counted["total"])]:
            print(f"{row['functions']:>10}{row['lines']:>8}{row['code']:>8}  {file}")
        print()
    calls = measured["question"]
    print(f"Python calls of a question with {TOKENS} answer tokens: {calls['python_calls']:,}")
    print(f"and calls into C: {calls['c_calls']:,}")
    if options.out:
        head = {"tree": options.rev or "the working tree", "python": platform.python_version()}
        options.out.write_text(json.dumps({**head, "shape": shape, **measured}, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

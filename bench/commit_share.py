# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""What committing a chunk takes of the chunk, on a CPU, and how that grows with the cap.

    python bench/commit_share.py                     # the working tree, and the commit before it
    python bench/commit_share.py --revs e0b5534 --caps 1024 4096

The small trained model in float32 on one thread, the preset novelty, a drawn world at 2 frames a
second, full memories. Two figures, each over the whole ``append_video_chunk``:

- commit: what must be forgotten is chosen, and keys and values are written;
- rotation: sink and kept grids are turned to where the next question sees them. A tree that does
  that in the commit has it there.

With the machine's load (mean of a minute) behind each row. Of wall time: a thread's own clock takes
up to 0.7 ms a call on a virtual machine, a third of a commit. Each tree is measured in a process of
its own, by public names; trees take turns.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
CHUNK = 4  # frames


def watched(owner: Any, name: str) -> list[float]:
    """The seconds of each call of a method, from now on."""
    taken: list[float] = []
    method = getattr(owner, name)

    def run(*given: Any, **named: Any) -> Any:
        begin = time.perf_counter()
        try:
            return method(*given, **named)
        finally:
            taken.append(time.perf_counter() - begin)

    setattr(owner, name, run)
    return taken


def measure(cap: int, chunks: int) -> dict[str, Any]:
    import torch

    from stream_vlm_ros.engine import (
        EvictionConfig,
        StreamProcessor,
        StreamQwenModel,
        VideoStreamingInference,
    )
    from stream_vlm_ros.engine.cache.buffer import KVBuffer
    from stream_vlm_ros.factory import default_model
    from stream_vlm_ros.world.world import World

    torch.set_num_threads(1)
    folder = default_model()
    model = StreamQwenModel.from_pretrained(folder, torch_dtype=torch.float32).eval()
    processor = StreamProcessor.from_pretrained(folder)
    engine = VideoStreamingInference(model, processor, "cpu", EvictionConfig.novelty(cap))
    world, number = World(12), 0

    def append() -> None:
        nonlocal number
        frames = [world.render((number + at) / 2) for at in range(CHUNK)]
        number += CHUNK
        begin = time.perf_counter()
        engine.append_video_chunk(frames, fps=2)
        whole.append(time.perf_counter() - begin)

    whole: list[float] = []
    while engine.get_cache_info()["eviction_stats"]["total_evictions"] < cap // 64:
        append()
    whole.clear()
    manager = engine.cache_manager
    commit = watched(manager, "commit")
    plan = watched(manager, "plan") if hasattr(manager, "plan") else []  # of older trees a part
    rotation = watched(KVBuffer, "rotate_base")
    for _ in range(chunks):
        append()
    inside = sum(rotation) if hasattr(manager, "_evict") else 0.0
    chunk = statistics.fmean(whole)
    return {
        "cap": cap,
        "chunks": chunks,
        "kept_tokens": engine.get_cache_info()["levels"]["important"]["tokens"],
        "chunk_ms": round(1e3 * chunk, 3),
        "commit": round((sum(commit) + sum(plan) - inside) / chunks / chunk, 4),
        "rotation": round(sum(rotation) / chunks / chunk, 4),
    }


def _load() -> float:
    """Mean of the last minute."""
    return round(os.getloadavg()[0], 2)


def main() -> int:
    parse = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parse.add_argument("--revs", nargs="*", default=["e0b5534"], help="trees to take turns with")
    parse.add_argument("--caps", type=int, nargs="+", default=[1024, 4096, 16_384])
    parse.add_argument("--chunks", type=int, default=60, help="measured at each cap")
    parse.add_argument("--out", type=Path, default=ROOT / "bench/results/commit_share.json")
    parse.add_argument("--here", type=int, help=argparse.SUPPRESS)
    options = parse.parse_args()
    if options.here:
        print(json.dumps(measure(options.here, options.chunks)))
        return 0
    trees = {"working tree": ROOT}
    for rev in options.revs:
        found = subprocess.check_output([ROOT / "tools" / "tree_at.sh", rev], text=True)
        trees[rev] = Path(found.strip())
    rows: list[dict[str, Any]] = []
    start = _load()
    print(f"{'tree':>14}{'cap':>8}{'kept':>8}{'chunk ms':>10}{'commit':>9}{'rotation':>10}")
    for cap in options.caps:
        for name, tree in trees.items():
            command = [sys.executable, __file__, "--here", str(cap)]
            command += ["--chunks", str(options.chunks)]
            environment = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
            row = json.loads(subprocess.check_output(command, env=environment, text=True))
            rows.append({"tree": name, **row, "load": _load()})
            print(
                f"{name:>14}{cap:>8}{row['kept_tokens']:>8}{row['chunk_ms']:>10.1f}"
                f"{row['commit']:>9.1%}{row['rotation']:>10.1%}",
                flush=True,
            )
    found = {"threads": 1, "cores": os.cpu_count(), "load_at_the_start": start, "rows": rows}
    options.out.write_text(json.dumps(found, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""The streaming engine against the stock library's forward on the same work, on a CPU.

    python bench/against_stock.py --out bench/results/against_stock.json

Both run the small trained model in float32. At each cap, the engine's memory is full, and the stock
model's DynamicCache holds as many tokens. Then, by turns in one process:

- a chunk of 4 frames (the same patches): vision tower and language model; the engine also forgets
  as many tokens as came, the stock cache is cropped back to its length;
- a question: its tokens read, one token computed; and further tokens, one at a time. Stock decoding
  grows its cache, which is cropped back afterwards.

Figures are medians of the pairs' ratios, ours / stock, with their quartiles: below 1 is faster than
stock. Then the preset novelty against sink and window alone, and a long stream at the smallest cap,
early stretches against late ones: 1 is flat.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import transformers
from transformers import DynamicCache, Qwen2_5_VLForConditionalGeneration

from stream_vlm_ros.config import NOVELTY
from stream_vlm_ros.engine import (
    EvictionConfig,
    StreamProcessor,
    StreamQwenModel,
    VideoStreamingInference,
)
from stream_vlm_ros.factory import default_model
from stream_vlm_ros.machine import measured_on
from stream_vlm_ros.world.world import World

CHUNK = 4  # frames
QUESTION = "What was visible before the red circle?"
FURTHER = 8  # tokens decoded after the first


class Stock:
    """The library's model with a cache of its own; positions do not matter for the time."""

    def __init__(self, length: int) -> None:
        self.model = Qwen2_5_VLForConditionalGeneration.from_pretrained(
            default_model(), dtype=torch.float32, attn_implementation="sdpa"
        ).eval()
        self.length = length
        self.cache = DynamicCache(config=self.model.config)
        text = self.model.config.text_config
        shape = (1, text.num_key_value_heads, length, text.hidden_size // text.num_attention_heads)
        for layer in range(text.num_hidden_layers):
            self.cache.update(torch.randn(shape), torch.randn(shape), layer)

    def forward(self, embeddings: torch.Tensor) -> torch.Tensor:
        """Append to the cache; hidden states ``[1, n, hidden]``."""
        count, past = embeddings.shape[1], self.cache.get_seq_length()
        positions = torch.arange(past, past + count).expand(3, 1, count)
        return self.model.model.language_model(
            inputs_embeds=embeddings,
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
        ).last_hidden_state

    def shorten(self) -> None:
        """Back to the length it began with."""
        self.cache.crop(self.length - self.cache.get_seq_length())  # negative: so many are removed

    @torch.inference_mode()
    def chunk(self, patches) -> None:
        features = self.model.model.visual(
            patches.pixel_values, grid_thw=torch.tensor([patches.grid_thw])
        ).pooler_output
        self.forward(features[None])
        self.shorten()

    @torch.inference_mode()
    def answer(self, ids: list[int]) -> tuple[float, float]:
        """Seconds to the first token, and for each further one."""
        begin = time.perf_counter()
        embed = self.model.model.language_model.embed_tokens
        hidden = self.forward(embed(torch.tensor([ids])))
        token = self.model.lm_head(hidden[:, -1]).argmax(-1)
        first = time.perf_counter()
        for _ in range(FURTHER):
            token = self.model.lm_head(self.forward(embed(token[None]))[:, -1]).argmax(-1)
        end = time.perf_counter()
        self.shorten()
        return first - begin, (end - first) / FURTHER


def build_engine(
    cap: int, position_policy: str = "contiguous", **shares: float
) -> VideoStreamingInference:
    """The engine with the bound ``cap``; an answer ends only at its budget."""
    folder = default_model()
    model = StreamQwenModel.from_pretrained(folder, torch_dtype=torch.float32).eval()
    model.generation_config.eos_token_id = []
    engine = VideoStreamingInference(
        model,
        StreamProcessor.from_pretrained(folder),
        "cpu",
        EvictionConfig(cap, **(shares or NOVELTY)),
        position_policy=position_policy,
    )
    engine._end_ids = set()
    return engine


def timed(run: Callable[[], object]) -> float:
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def quartiles(values: list[float]) -> dict[str, float]:
    low, middle, high = statistics.quantiles(values, n=4)
    return {"median": round(middle, 3), "from": round(low, 3), "to": round(high, 3)}


def compare(cap: int, frames: list, repeats: int) -> dict:
    """Ratios ours / stock at one cap, and our own medians in milliseconds."""
    engine = build_engine(cap)
    while engine.append_video_chunk(frames, fps=2)["evicted_tokens"] == 0:
        pass
    stock = Stock(engine.get_cache_info()["cache_seq_length"])
    patches = engine._frames(frames)
    ids = engine._question_ids(QUESTION, None)
    pairs: dict[str, list[tuple[float, float]]] = {"chunk": [], "first_token": [], "token": []}
    for _ in range(repeats + 2):
        # Ours includes what the stock forward is given ready: pictures to patches.
        preparing = timed(lambda: engine._frames(frames))
        ours = timed(lambda: engine.append_video_chunk(frames, fps=2)) - preparing
        pairs["chunk"].append((ours, timed(lambda: stock.chunk(patches))))
        metrics = engine.ask(QUESTION, FURTHER + 1)[1]
        first, token = stock.answer(ids)
        pairs["first_token"].append((metrics["ttft"], first))
        pairs["token"].append(((metrics["latency"] - metrics["ttft"]) / FURTHER, token))
    row: dict = {"cap": cap, "cache_length": stock.length, "pairs": repeats}
    for name, values in pairs.items():
        kept = values[2:]  # the first two warm up
        row[name] = quartiles([ours / theirs for ours, theirs in kept])
        row[name]["ours_ms"] = round(1e3 * statistics.median(ours for ours, _ in kept), 2)
    return row


def levels(cap: int, frames: list, pairs: int) -> dict:
    """Time a chunk with the preset novelty, by position policy, over sink and window alone."""
    plain = {"sampled_share": 0.0, "important_share": 0.0}
    engines = {
        "sink_and_window": build_engine(cap, **plain),
        "novelty_contiguous": build_engine(cap),
        "novelty_keep_gaps": build_engine(cap, "keep_gaps"),
    }
    for engine in engines.values():
        while engine.append_video_chunk(frames, fps=2)["evicted_tokens"] == 0:
            pass
    times: dict[str, list[float]] = {name: [] for name in engines}
    for _ in range(pairs):
        for name, engine in engines.items():
            times[name].append(timed(lambda e=engine: e.append_video_chunk(frames, fps=2)))
    base = times.pop("sink_and_window")
    return {"cap": cap, "pairs": pairs} | {
        name: quartiles([a / b for a, b in zip(taken, base, strict=True)])
        for name, taken in times.items()
    }


def flatness(cap: int, frames: list, chunks: int, stretch: int = 50) -> dict:
    """Time a chunk late in a stream against early, the cap being reached in both."""
    early, late = build_engine(cap), build_engine(cap)
    for engine, length in ((early, 0), (late, chunks)):
        while engine.append_video_chunk(frames, fps=2)["evicted_tokens"] == 0:
            pass
        for _ in range(length):
            engine.append_video_chunk(frames, fps=2)
    ratios = []
    for _ in range(stretch):
        a, b = (timed(lambda e=e: e.append_video_chunk(frames, fps=2)) for e in (early, late))
        ratios.append(b / a)
    return {"cap": cap, "chunks_before": chunks, "late_over_early": quartiles(ratios)}


def main() -> None:
    parse = argparse.ArgumentParser(description=__doc__)
    parse.add_argument("--caps", type=int, nargs="+", default=[1024, 4096, 16_384, 65_536])
    parse.add_argument("--repeats", type=int, default=20)
    parse.add_argument("--levels-cap", type=int, default=16_384)
    parse.add_argument("--chunks", type=int, default=1000, help="of the long stream")
    parse.add_argument("--threads", type=int, default=2)
    parse.add_argument("--out", type=Path)
    options = parse.parse_args()
    torch.set_num_threads(options.threads)
    transformers.utils.logging.disable_progress_bar()
    world = World(12)
    frames = [world.render(index / 2) for index in range(CHUNK)]
    report = {
        **measured_on(torch, transformers),
        "threads": options.threads,
        "caps": [],
    }
    print(f"{'cap':>8}  {'chunk':>20}  {'first token':>20}  {'a further token':>20}   ours / stock")
    for cap in options.caps:
        row = compare(cap, frames, options.repeats)
        report["caps"].append(row)
        cells = "  ".join(
            "{median:6.2f} ({from:.2f} to {to:.2f})".format(**row[name]).rjust(20)
            for name in ("chunk", "first_token", "token")
        )
        print(f"{cap:>8}  {cells}", flush=True)
    report["levels"] = levels(options.levels_cap, frames, options.repeats)
    for name in ("novelty_contiguous", "novelty_keep_gaps"):
        row = report["levels"][name]
        print(f"{name} / sink and window: {row['median']} ({row['from']} to {row['to']})")
    report["flatness"] = flatness(options.caps[0], frames, options.chunks)
    late = report["flatness"]["late_over_early"]
    print("late / early chunk: {median} ({from} to {to})".format(**late))
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()

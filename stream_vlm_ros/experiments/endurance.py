# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Ten thousand chunks: flat memory, flat time per chunk, exact positions at the end.

Level 1 alone and all levels together, under both position policies. An old stream and a young one
(whose memory is also full) take turns at the end, so that whatever else the machine does slows
both; what counts is the ratio of their times per chunk.

At the end every position is computed again from a plain list of all tokens. The first layer's keys
are computed again from the pictures and rotated to those positions in float64.
"""

from __future__ import annotations

import gc
import itertools
import math
import os
import statistics
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from stream_vlm_ros.engine import ChunkResult, VideoStreamingInference
from stream_vlm_ros.errors import InvalidParameterError

from .context import Context
from .expected_counts import TextTokens
from .layout import Whole
from .pictures import Chunk, Pictures

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LEVELS = {"level 1": (0.0, 0.0), "all levels": (0.25, 0.25)}  # sampled, important


def run(context: Context) -> None:
    options, record = context.options, context.record
    depth = context.model.processor.image_settings.temporal_patch_size
    compared = options.turns * options.stretch
    if options.cap == 0:
        raise InvalidParameterError("--cap 0 is no cap to fill: 1 or more.")
    if options.chunk_frames % depth:
        raise InvalidParameterError(f"--chunk-frames must be a multiple of {depth}.")
    if options.chunks <= options.young + compared:
        raise InvalidParameterError(
            f"--chunks must exceed --young and --turns x --stretch: {options.young + compared}."
        )
    record.about["load"] = {"average of 1 min at the start": round(os.getloadavg()[0], 2)}
    table, ratios = [], {}
    for levels, positions in itertools.product(options.levels, options.positions):
        name = f"{levels}, {positions}"
        found = _one(context, name, LEVELS[levels], positions)
        ratios[name] = found["ratios"]
        table.append(
            [name, f"{found['length']}", f"{found['rss_growth_mib']:+.2f}",
             f"{found['young_ms']:.2f}", f"{found['old_ms']:.2f}", f"{found['ratio']:.3f}",
             f"{found['ratio_quartiles'][0]:.3f} to {found['ratio_quartiles'][1]:.3f}",
             f"{found['last_position']:,}", found["positions_off"], f"{found['key_error']:.1e}"]
        )  # fmt: skip
    record.about["load"]["at the end"] = round(os.getloadavg()[0], 2)
    context.table(
        f"{options.chunks:,} chunks of {options.chunk_frames} frames, cap {options.cap:,}; times "
        "are processor time a chunk, ratios those of stretches that took turns",
        ["", "tokens", "MiB grown", "young ms", "old ms", "old/young", "middle half",
         "last position", "off", "keys off"],
        table,
    )  # fmt: skip

    def draw(figure: Figure, axes: Axes) -> None:
        axes.boxplot(list(ratios.values()), tick_labels=[n.replace(", ", "\n") for n in ratios])
        axes.axhline(1, color="0.7", zorder=0)
        axes.set(
            ylabel="time a chunk, old to young",
            title=f"Stretches of {options.stretch} chunks that took turns, {options.turns} pairs",
        )

    record.plot("ratio", draw)


def _one(
    context: Context, name: str, shares: tuple[float, float], positions: str
) -> dict[str, Any]:
    """Stream all chunks into one memory, hold it against a young one, check it; its figures."""
    options, record = context.options, context.record
    frames = options.chunks * options.chunk_frames
    pictures = context.whole(context.pictures(frames))
    config = dict(sampled_share=shares[0], important_share=shares[1], position_policy=positions)
    compared = options.turns * options.stretch
    # From here on, memory is to be flat.
    mark = min(max(1, options.young, options.chunks // 10), options.chunks - compared)

    stamps: list[float] = []  # of each grid's first frame
    old = context.engine(options.cap, **config)
    longest, rss = 0, {}
    chunks = pictures.chunks(options.chunk_frames)
    depth = context.model.processor.image_settings.temporal_patch_size
    with context.progress(name, options.chunks - compared) as step:
        for number in range(1, options.chunks - compared + 1):
            chunk = next(chunks)
            stamps += chunk.stamps[::depth]
            result = append(old, chunk)
            longest, size = max(longest, result["cache_length"]), result["grid"][1:]
            if number in (mark, options.chunks - compared):
                gc.collect()
                rss[number] = context.peak_memory.read()["allocated_gib"] * 1024
            if number % 500 == 0:
                record.add(run=name, chunk=number, length=old.cache_manager.get_seq_length(),
                           rss_mib=context.peak_memory.read()["allocated_gib"] * 1024)  # fmt: skip
            step(f"{longest:,} tokens")
    growth = rss[options.chunks - compared] - rss[mark]

    young = context.engine(options.cap, **config)
    others = context.pictures(frames).chunks(options.chunk_frames)
    for chunk in itertools.islice(others, options.young):
        append(young, chunk)
    pairs = []
    with context.progress(f"{name}: taking turns", options.turns) as step:
        for _ in range(options.turns):
            fresh = list(itertools.islice(chunks, options.stretch))
            stamps += [stamp for chunk in fresh for stamp in chunk.stamps[::depth]]
            early = _seconds_a_chunk(young, list(itertools.islice(others, options.stretch)))
            late = _seconds_a_chunk(old, fresh)
            pairs.append((early, late))
            longest = max(longest, old.cache_manager.get_seq_length())
            record.add(run=name, young_ms=1e3 * early, old_ms=1e3 * late)
            step(f"{late / early:.3f}")
    ratios = [late / early for early, late in pairs]
    ratio = statistics.median(ratios)
    quartiles = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else [ratio] * 3

    text = TextTokens.of(context.model.processor)
    audit = Audit(old, text, stamps, options.chunk_frames, size)
    off, error = audit.positions_off(), audit.key_error(context.pictures(frames))
    tolerance = 64 * torch.finfo(context.model.network.dtype).eps
    evictions = young.cache_manager.evictor.total_evictions
    record.check(f"{name}: never longer than the cap", longest <= options.cap, longest,
                 f"<= {options.cap}")  # fmt: skip
    record.check(f"{name}: the young stream's memory is full", evictions > 0, f"{evictions} "
                 "evictions", "> 0")  # fmt: skip
    record.check(
        f"{name}: memory flat from chunk {mark:,} to {options.chunks - compared:,}",
        growth <= options.max_mib,
        f"{growth:+.2f} MiB",
        f"<= {options.max_mib:g} MiB",
    )
    record.check(
        f"{name}: time a chunk flat",
        ratio <= options.max_ratio,
        f"{ratio:.3f} (middle half {quartiles[0]:.3f} to {quartiles[2]:.3f})",
        f"<= {options.max_ratio:g}",
    )
    record.check(
        f"{name}: positions exact at the end", off == 0, f"{off} tokens off", "0"
    )  # fmt: skip
    record.check(
        f"{name}: keys as rotated in float64", error <= tolerance, f"{error:.1e}",
        f"<= {tolerance:.1e}",
    )  # fmt: skip
    found = {
        "chunks": options.chunks,
        "length": old.cache_manager.get_seq_length(),
        "rss_growth_mib": growth,
        "young_ms": 1e3 * statistics.median(early for early, _ in pairs),
        "old_ms": 1e3 * statistics.median(late for _, late in pairs),
        "ratio": ratio,
        "ratio_quartiles": [quartiles[0], quartiles[2]],
        "ratio_range": [min(ratios), max(ratios)],
        "last_position": audit.last_position,
        "positions_off": off,
        "key_error": error,
    }
    record.summary[name] = found
    return {**found, "ratios": ratios}


def append(engine: VideoStreamingInference, chunk: Chunk) -> ChunkResult:
    return engine.append_video_chunk(chunk.images, timestamps=chunk.stamps)


def _seconds_a_chunk(engine: VideoStreamingInference, chunks: list[Chunk]) -> float:
    """Processor time, which another process's work does not lengthen; on a GPU, time waited."""
    clock = time.perf_counter if engine.device.type == "cuda" else time.process_time
    times = []
    for chunk in chunks:
        begin = clock()
        append(engine, chunk)
        times.append(clock() - begin)
    return statistics.median(times)


class Audit:
    """A stream's positions and keys, computed again from what was appended to it.

    Args:
        engine: a stream of chunks of one size and ``chunk_frames`` frames, nothing else.
        stamps: of each of its grids' first frames, in seconds.
    """

    def __init__(
        self, engine: VideoStreamingInference, text: TextTokens, stamps: Sequence[float],
        chunk_frames: int, size: tuple[int, int],
    ) -> None:  # fmt: skip
        self._engine, self._chunk_frames = engine, chunk_frames
        self._manager, ledger = engine.cache_manager, engine.cache_manager.ledger
        rate = engine.model.config.vision_config.tokens_per_second
        # A stamp a hair before a whole position counts as on it.
        ticks = [math.floor((stamp - stamps[0]) * rate + 2e-3) for stamp in stamps]
        self._grids_a_chunk = len(stamps) // self._manager.state.chunks
        segmented = engine.layout == "segmented"
        whole = Whole.of(
            ticks,
            self._grids_a_chunk,
            size,
            text.head,
            (text.turn, text.close) if segmented else None,
        )
        grids = {number for number, _ in ledger.kept_offsets()}
        kept = whole.kept(ledger.sink_length or 0, grids, ledger.window_length)
        self._tokens = [whole.tokens[index] for index in kept]
        self._place = size
        if ledger.policy == "contiguous":
            positions, end = whole.laid_out(kept)
        else:
            everywhere, end = whole.laid_out(range(len(whole.tokens)))
            positions = [everywhere[index] for index in kept]
        self._positions = torch.tensor(positions).T  # [3, tokens]
        self._end = torch.tensor(end)

    @property
    def last_position(self) -> int:
        """The next text token's position, over all axes, as laid out."""
        return int(self._end)

    def _offsets(self) -> torch.Tensor:
        """By how much a query is turned on to see each token, ``[3, tokens]``."""
        parts = self._manager.ledger.parts()
        return torch.cat(
            [
                torch.tensor(offset)[:, None].expand(3, stop - start)
                for start, stop, offset in parts
            ],
            dim=1,
        )

    def positions_off(self) -> int:
        """Tokens that a question would see elsewhere than where they belong; itself among them."""
        ledger = self._manager.ledger
        frame = torch.tensor(ledger.frame)[:, None]
        seen = ledger.positions() - self._offsets() - frame
        if seen.shape != self._positions.shape:
            return abs(seen.shape[1] - self._positions.shape[1])
        off = int((seen != self._positions).any(0).sum())
        return off + int((torch.tensor(ledger.next_position) - frame[:, 0] != self._end).any())

    @torch.no_grad()
    def key_error(self, pictures: Pictures) -> float:
        """How far the first layer's keys are from those computed again, relative to the largest.

        That layer's keys depend on nothing before them: the pictures' features, normalised and
        projected, then rotated in float64 to where they belong.
        """
        engine, ledger = self._engine, self._manager.ledger
        vision = [at for at, token in enumerate(self._tokens) if token.segment is not None]
        features = self._features(pictures, {self._tokens[at].number for at in vision})
        rows = [
            features[token.number][token.row * self._place[1] + token.column]
            for token in (self._tokens[at] for at in vision)
        ]
        weights, shape = engine.model.state_dict(), engine.model.kv_shape
        layer = "model.layers.0."
        normed = functional.rms_norm(
            torch.stack(rows).float(),
            rows[0].shape,
            weights[f"{layer}input_layernorm.weight"].float(),
            engine.model.config.text_config.rms_norm_eps,
        ).to(engine.model.dtype)
        keys = functional.linear(
            normed,
            weights[f"{layer}self_attn.k_proj.weight"],
            weights[f"{layer}self_attn.k_proj.bias"],
        )
        keys = keys.unflatten(-1, (-1, shape.head_dim)).transpose(0, 1).double()
        # A key in the window lies where it was first rotated; what is turned is the query.
        at = self._positions + torch.tensor(ledger.frame)[:, None]
        kv, turned = self._manager.as_read()
        angles = _angles(engine.model.config.text_config, (at + turned)[:, vision])
        cos, sin = angles.cos().to(keys.device), angles.sin().to(keys.device)
        one, other = keys.chunk(2, dim=-1)
        expected = torch.cat([one * cos - other * sin, other * cos + one * sin], dim=-1)
        stored = kv[0, 0][:, vision].double()
        return float((stored - expected).abs().max() / expected.abs().max())

    def _features(self, pictures: Pictures, wanted: set[int]) -> dict[int, torch.Tensor]:
        """Vision features ``[tokens, hidden]`` of some grids, from the pictures."""
        engine = self._engine
        found: dict[int, torch.Tensor] = {}
        for number, chunk in enumerate(pictures.chunks(self._chunk_frames)):
            first = number * self._grids_a_chunk
            grids = range(first, first + self._grids_a_chunk)
            if wanted.isdisjoint(grids):
                continue
            patches = engine._frames(chunk.images, engine.min_pixels, engine.max_pixels)
            features = engine.model.encode_frames(patches).unflatten(0, (len(grids), -1))
            found.update(zip(grids, features, strict=True))
        return found


def _angles(config: Any, positions: torch.Tensor) -> torch.Tensor:
    """``[3, tokens]`` to ``[tokens, head_dim / 2]`` in float64, with the model's frequencies.

    Those are float32 numbers, in training as here.
    """
    rope = config.rope_parameters
    size = config.hidden_size // config.num_attention_heads
    steps = torch.arange(0, size, 2).float() / size
    frequencies = (1.0 / rope["rope_theta"] ** steps).double()
    axes = [axis for axis, count in enumerate(rope["mrope_section"]) for _ in range(count)]
    return positions[axes].T.double() * frequencies

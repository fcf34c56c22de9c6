# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Streams of random keys for an index, as the memory tells its companions of them."""

import itertools

import torch

from stream_vlm_ros.engine.attention.base import Readout
from stream_vlm_ros.engine.cache.mrope import TextSpan, VisionSpan
from stream_vlm_ros.engine.cache.state import Change
from stream_vlm_ros.history.index import ROW_BYTES, KeyIndex

HEADS = [(1, 0), (4, 1), (4, 0)]  # layer and KV head; not in the order in which they are read
KV_HEADS = 2
DIM = 8


def drawn(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def index(max_bytes=1 << 24, **options):
    return KeyIndex(HEADS, DIM, max_bytes, **({"dtype": torch.float32} | options))


def grid_bytes(tokens=3):
    return len(HEADS) * tokens * DIM * 4 + ROW_BYTES


def change(spans, keys):
    """What a companion is told: ``keys`` of the chunk's tokens, ``[heads, tokens, DIM]``.

    Read as a pass reads them: from the projections of a layer, after its query heads.
    """
    layers = {}
    for (layer, head), rows in zip(HEADS, keys, strict=True):
        layers.setdefault(layer, keys.new_full((2 + 2 * KV_HEADS, keys.shape[1], DIM), 1e3))
        layers[layer][2 + head] = rows
    read = Readout(keys={1: [1, 0], 4: [0, 1]})
    for layer, rows in layers.items():
        read.take(layer, rows.transpose(0, 1).flatten(1), KV_HEADS, DIM)
    return Change(spans, 0, (), read)


class Stream:
    """Chunks of grids with keys of their own, a grid a second."""

    def __init__(self, seed=0, start=100.0, device="cpu"):
        self.seeds, self.now, self.device = itertools.count(1000 * seed), start, device

    def chunk(self, *sizes, whole=None, text=(2, 1)):
        """A chunk of grids of so many tokens, and what is to be found of each: stamps and keys.

        ``whole``: tokens of a grid of which none is left out.
        """
        whole = max(1, *sizes) if whole is None else whole
        stamps = [(self.now + number, self.now + number + 0.5) for number in range(len(sizes))]
        self.now += len(sizes)
        places = tuple(tuple(range(whole - size, whole)) for size in sizes)
        if all(size == whole for size in sizes):
            places = None
        vision = VisionSpan(tuple(range(len(sizes))), tuple(stamps), 1, whole, True, places)
        before, after = text
        spans = [TextSpan(before), vision, TextSpan(after)]
        spans = [span for span in spans if span.count or isinstance(span, VisionSpan)]
        keys = drawn(next(self.seeds), len(HEADS), before + sum(sizes) + after, DIM)
        # Text must never be found.
        keys[:, :before], keys[:, before + sum(sizes) :] = 1e4, 1e4
        own = keys[:, before : before + sum(sizes)].split(list(sizes), dim=1)
        return change(spans, keys.to(self.device)), list(zip(stamps, own, strict=True))


def scores_of(grids, spans, queries, of):
    """Head by head, grid by grid, query by query: the best token, then means.

    Args:
        grids: keys of each, ``[heads, tokens, DIM]``.
        spans: how many each counts for in the mean.
    """
    scores = torch.empty(len(of), len(grids))
    for row, head in enumerate(of):
        for number, keys in enumerate(grids):
            best = [max(float(key @ query) for key in keys[head]) for query in queries[row]]
            scores[row, number] = sum(best) / len(best)
        weights = torch.tensor(spans, dtype=torch.float32)
        scores[row] -= (scores[row] * weights).sum() / weights.sum()
    return scores

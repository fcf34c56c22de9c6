# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""The joined kernels of a decode step compute what a layer's plain functions compute.

On a GPU as compiled for it, elsewhere in Triton's interpreter: see test_kernels.py.
"""

import itertools

import torch

from stream_vlm_ros.engine.model.qwen2_5_vl import PLAIN

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

# Norms, products and sums of numbers around 1, as their format rounds them on the way.
TOLERANCES = {torch.float32: 1e-5, torch.float16: 4e-3}
SHAPES = [  # hidden, inner, query and key rows, heads * head_dim
    (64, 128, 96, 64),
    (100, 2500, 52, 36),  # no multiple of any strip
]
EPS = 1e-2


def test_a_layer_of_joined_kernels_computes_what_the_plain_functions_compute(words_of_program):
    assert words_of_program(__file__) == ["equal"] * len(TOLERANCES) * len(SHAPES) * 2


def compare(dtype, added, hidden, inner, rows, attended):
    from stream_vlm_ros.engine.attention.triton_decode import overlaps
    from stream_vlm_ros.engine.model.triton_layer import join

    noise = torch.Generator(DEVICE).manual_seed(1)

    def random(*shape):
        drawn = torch.randn(*shape, generator=noise, device=DEVICE) / shape[-1] ** 0.5
        return drawn.to(dtype)

    states, read = 3 * hidden**0.5 * random(1, hidden), attended**0.5 * random(1, attended)
    norms = [1 + random(hidden) for _ in range(3)]
    qkv, bias = random(rows, hidden), rows**0.5 * random(rows)
    weights = random(hidden, attended), norms[1], random(2 * inner, hidden), random(hidden, inner)
    more = random(1, hidden) if added else None
    found = []
    for exact, functions in (
        (True, PLAIN),
        (False, join(PLAIN, overlapped=overlaps(torch.device(DEVICE)))),
    ):
        given = [states, norms[0], qkv, bias, read, *weights, norms[2], more]
        if exact:
            given = [x if x is None else x.double() for x in given]
        first, norm, qkv_, bias_, read_, *own, last, add = given
        carried = functions.norm(first, norm, EPS)
        projected = functions.project(carried, norm, qkv_, bias_, EPS, PLAIN.linear)
        after, carried = functions.finish(first, read_, *own, last, EPS, PLAIN.linear, False, add)
        found.append((projected, after, functions.end(carried, last, EPS)))
    for one, other in zip(*found, strict=True):
        assert other.dtype == dtype and one.shape == other.shape
        assert (one - other).abs().max() <= TOLERANCES[dtype] * one.abs().max()


if __name__ == "__main__":
    for dtype, added, shape in itertools.product(TOLERANCES, (False, True), SHAPES):
        compare(dtype, added, *shape)
        print("equal")

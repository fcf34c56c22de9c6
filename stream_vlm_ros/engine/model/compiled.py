# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""torch.compile for what lies between the attention calls of a chunk: rotations, norms, MLPs.

Each of these is a handful of small kernels that read and write all hidden states. The functions
take tensors alone, so they are compiled once for all layers, for any length and for every engine;
the attention stays as it is. Questions do not come here: `graph_runner` has steps for them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from stream_vlm_ros.engine.attention.base import KVPart, RopeOffset
from stream_vlm_ros.engine.attention.verified import Verified, relative_difference
from stream_vlm_ros.engine.cache.mrope import ZERO, Vec, rotate
from stream_vlm_ros.engine.cache.requests import Fork, TailPool
from stream_vlm_ros.engine.inputs.frames import PatchGrid

from .base import LayerFunctions, StreamModel

# Of each compiled function the arguments whose size differs from chunk to chunk, and the axis on
# which it does. Of what the tracer is not told, each size stays a number.
_VARYING = {
    "norm": {0: 0},
    "rotate": {0: 0, 1: 0, 2: 0},
    "finish": {0: 0, 1: 0},
    "vision_qkv": {0: 0, 4: 0, 5: 0},
    "finish_vision_block": {0: 0, 1: 0},
}
_OFFSETS = 3  # of rotate's arguments


def recompiling() -> Any:
    """Let a function be compiled for more cases than for one it would: sizes, models, formats."""
    import torch._dynamo  # not for those who never compile: it takes a second

    return torch._dynamo.config.patch(recompile_limit=64)


class CompiledLayers:
    """A family's layer functions, compiled.

    Each is held against the plain one where it is first called, and gives way to it for good where
    it fails: no chunk is lost for that.

    Args:
        plain: the functions as they are.
        backend: of ``torch.compile``.

    Attributes:
        functions: to be given to a model.
        verified: which of them are not used, and why.
    """

    def __init__(self, plain: LayerFunctions, backend: Any = "inductor"):
        self.verified: Verified[Any] = Verified("chunks are not compiled, and take longer")
        self._trying = False
        functions = plain._replace(
            running=recompiling, offsets=_stacked_offsets, rotate=rotate_stacked
        )
        guarded: dict[str, Any] = {}
        for name in _VARYING:
            alone = getattr(functions, name)
            guarded[name] = self._guarded(name, alone, torch.compile(alone, backend=backend))
        self.functions = functions._replace(**guarded)

    def _guarded(
        self, name: str, plain: Callable[..., Any], fused: Callable[..., Any]
    ) -> Callable[..., Any]:
        def run(*given: Any) -> Any:
            if self._trying:
                for place, axis in _VARYING[name].items():
                    torch._dynamo.mark_dynamic(given[place], axis)
                if name == "rotate" and given[_OFFSETS].shape[1] > 1:
                    torch._dynamo.mark_dynamic(given[_OFFSETS], 1)
            kind = (name, given[0].device, given[0].dtype)
            return self.verified.run(kind, lambda: fused(*given), lambda: plain(*given), _differ)

        return run

    def try_out(self, model: StreamModel) -> None:
        """Compile all there is for this model, on a little noise."""
        self._trying = True
        try:
            self._run_noise(model)
        finally:
            self._trying = False

    @torch.inference_mode()
    def _run_noise(self, model: StreamModel) -> None:
        tokens, shape, device = 67, model.kv_shape, model.device
        embeddings = model.embed_tokens([0] * tokens)
        noise = torch.randn(1, *embeddings.shape, dtype=embeddings.dtype, device=device)
        positions = torch.zeros(3, tokens, dtype=torch.long, device=device)
        pool = TailPool(shape, device, 1)
        memory = shape.allocate(tokens, device).normal_()
        offset = model.rotary.offset(Vec(3, 2, 1), device)
        part = KVPart(memory, slice(0, tokens), offset)
        for parts in ([], [part]):  # a graph for no offset, another for any more
            with Fork(pool, parts, range(0), ZERO, tokens) as fork:
                model.stream_forward(noise, positions, fork, self.functions)
        vision = model.config.vision_config
        side = 8 * vision.spatial_merge_size
        pixels = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
        patches = torch.randn(side**2, pixels, device=device)
        model.encode_frames(PatchGrid(patches, (1, side, side)), self.functions)


@functools.cache
def compiled_layers(plain: LayerFunctions, backend: Any = "inductor") -> CompiledLayers:
    """Those of a family, one for all engines and models."""
    return CompiledLayers(plain, backend)


def rotate_stacked(
    qkv: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    offsets: torch.Tensor,
    kv_heads: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """As `attention.sdpa.rotate_qkv`, its offsets and queries as one tensor each.

    Args:
        offsets: ``[2, offsets, 1, 1, head_dim]``, see `_stacked_offsets`.

    Returns:
        Queries ``[offsets, heads, n, head_dim]``; keys; values.
    """
    heads = qkv.view(len(qkv), -1, cos.shape[-1]).transpose(0, 1)
    query, key = rotate(heads[: -2 * kv_heads], cos, sin), heads[-2 * kv_heads : -kv_heads]
    queries = rotate(query.expand(offsets.shape[1], *query.shape), offsets[0], offsets[1])
    return queries, rotate(key, cos, sin), heads[-kv_heads:]


def _stacked_offsets(offsets: list[RopeOffset], like: torch.Tensor) -> torch.Tensor:
    """cos and sin as `rotate_stacked` takes them; the first offset is none at all."""
    one = torch.ones(like.shape[-1], device=like.device)
    found = [(one, torch.zeros_like(one)), *offsets]
    return torch.stack([torch.stack(offset) for offset in found], dim=1)[:, :, None, None]


def _differ(found: Any, expected: Any) -> str | None:
    if isinstance(found, torch.Tensor):
        found, expected = (found,), (expected,)
    for one, other in zip(found, expected, strict=True):
        # What is fused is rounded less often; what is wrong differs by all its size.
        bound = min(0.1, max(1e-4, 16 * torch.finfo(one.dtype).eps))
        why = relative_difference(one, other, bound)
        if why is None or why:
            return why
    return ""

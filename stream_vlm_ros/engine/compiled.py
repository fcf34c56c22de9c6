"""torch.compile for what lies between the attention calls of a chunk: rotations, norms, MLPs.

Each of these is a handful of small kernels that read and write all hidden states. The functions
are compiled once for all layers and for any length, since the modules are their arguments; the
attention stays as it is. Questions do not come here: they have a path of their own.
"""

from __future__ import annotations

import logging
from functools import partial
from typing import Any

import torch

from .attention import varlen_attention
from .decoder import Halves, Turn, run_layers
from .forks import Fork
from .frames import PatchGrid
from .layers import (
    after_attention,
    after_vision_attention,
    before_attention,
    before_vision_attention,
)
from .packed import PackedLayer
from .positions import rotate

log = logging.getLogger(__name__)


def recompiling() -> Any:
    """Let a function be compiled for more cases than for one it would: sizes, models, engines."""
    import torch._dynamo  # not for those who never compile: it takes a second

    return torch._dynamo.config.patch(recompile_limit=64)


class CompiledChunks:
    """The layers of both towers with their elementwise work fused.

    Args:
        model: a `StreamQwenModel`; its vision blocks are changed until `undo`.
        backend: of ``torch.compile``.

    Attributes:
        kind: device and number format it was compiled for.
    """

    def __init__(self, model: Any, backend: str = "inductor"):
        self._text, self._blocks = model.model.language_model, model.model.visual.blocks
        self._norm = torch.compile(_norm, backend=backend)
        self._before = torch.compile(_before_attention, backend=backend)
        self._after = torch.compile(after_attention, backend=backend)
        self._before_vision = torch.compile(before_vision_attention, backend=backend)
        self._after_vision = torch.compile(after_vision_attention, backend=backend)
        for block in self._blocks:
            block.forward = partial(self._run_block, block)
        self.kind = model.device, model.dtype

    def undo(self) -> None:
        """Give the vision blocks back as they were."""
        for block in self._blocks:
            block.__dict__.pop("forward", None)

    def try_out(self, model: Any) -> None:
        """Compile both towers on a little noise; raises whatever does not work."""
        with recompiling():
            self._try_out(model)

    def _try_out(self, model: Any) -> None:
        for turns in (1, 2):  # a graph for one, another for any more
            self._try_text(model, 67, turns)
        self._try_vision(model)

    def _try_text(self, model: Any, tokens: int, turns: int) -> None:
        hidden_size = model.config.text_config.hidden_size
        hidden = torch.randn(tokens, hidden_size, dtype=model.dtype, device=model.device)
        layer = self._text.layers[0]
        positions = torch.zeros(3, 1, tokens, device=model.device)
        cos, sin = self._text.rotary_emb(hidden, positions)
        turn = torch.zeros(2, turns, 1, 1, cos.shape[-1], device=model.device)
        if turns > 1:
            _varies(1, turn)
        _varies(0, hidden)
        _varies(1, cos, sin)
        normed = self._norm(layer.input_layernorm, hidden)
        _varies(0, normed)
        queries, _ = self._before(layer, PackedLayer.kept(layer), normed, cos, sin, turn)
        attended = queries[0].transpose(0, 1).contiguous()
        _varies(0, attended)
        self._after(layer, None, self._text.norm, hidden, attended)

    def _try_vision(self, model: Any) -> None:
        vision = model.config.vision_config
        options = {"dtype": model.dtype, "device": model.device}
        hidden = torch.randn(67, vision.hidden_size, **options)
        size = vision.hidden_size // vision.num_heads
        # Two of their own: the tracer would take note of it if they were one.
        cos, sin = (torch.zeros(67, size, device=model.device) for _ in range(2))
        _varies(0, hidden, cos, sin)
        attended = self._before_vision(self._blocks[0], hidden, cos, sin)[2].contiguous()
        _varies(0, attended)
        self._after_vision(self._blocks[0], hidden, attended)
        side = 8 * vision.spatial_merge_size
        pixels = 3 * vision.temporal_patch_size * vision.patch_size**2
        model.encode_frames(PatchGrid(torch.randn(side**2, pixels, **options), (1, side, side)))

    def _run_block(
        self,
        block: Any,
        hidden: torch.Tensor,
        cu_seqlens: torch.Tensor,
        max_seqlen: int,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        **_: Any,
    ) -> torch.Tensor:
        """A vision block as its tower calls it."""
        seen = self._before_vision(block, hidden, *position_embeddings)
        query, key, value = (x.transpose(0, 1).unsqueeze(0) for x in seen)
        scaling = block.attn.scaling
        attended = varlen_attention(
            block.attn, query, key, value, None, scaling, cu_seqlens, max_seqlen
        )[0]
        return self._after_vision(block, hidden, attended[0])

    def forward(
        self, embeddings: torch.Tensor, positions: torch.Tensor, fork: Fork
    ) -> torch.Tensor:
        """The language model's layers and last norm.

        Args:
            embeddings: ``[1, n, hidden]``, as is what comes back.
            positions: ``[3, 1, n]``.
        """
        hidden = embeddings[0].clone()  # made in inference mode, like all others that come here
        halves = Halves(self._norm, _stacked, self._before, self._after)
        with recompiling():
            return run_layers(self._text, halves, hidden, positions, fork).unsqueeze(0)


def _stacked(turns: list[Turn], like: torch.Tensor) -> torch.Tensor:
    """``[2, 1 + turns, 1, 1, head_dim]``, cos and sin; the first is none at all."""
    one = torch.ones_like(like[0, 0], dtype=torch.float32)  # as the others are
    found = [(one, torch.zeros_like(one)), *turns]
    stacked = torch.stack([torch.stack(turn) for turn in found], dim=1)
    return stacked[:, :, None, None]


def _before_attention(
    layer: Any,
    packed: PackedLayer | None,
    normed: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    turns: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `before_attention`, its queries once for each turn: ``[turns, heads, n, head_dim]``."""
    queries, own = before_attention(layer, packed, normed, cos, sin)
    return rotate(queries.expand(turns.shape[1], *queries.shape), turns[0], turns[1]), own


def _varies(axis: int, *tensors: torch.Tensor) -> None:
    """Tell the tracer that a size is another next time; what it is not told of stays a number."""
    for tensor in tensors:
        torch._dynamo.mark_dynamic(tensor, axis)


def _norm(norm: torch.nn.Module, hidden: torch.Tensor) -> torch.Tensor:
    return norm(hidden)

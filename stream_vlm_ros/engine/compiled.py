"""torch.compile for what lies between the attention calls of a chunk: rotations, norms, MLPs.

Each of these is a handful of small kernels that read and write all hidden states. The functions
are compiled once for all layers and for any length, since the modules are their arguments; the
attention stays as it is. Questions do not come here: they have a path of their own.
"""

from __future__ import annotations

import logging
from types import MethodType
from typing import Any

import torch
from transformers import AttentionInterface

from .attention import VISION_ATTENTION, attend_stream, varlen_attention
from .decoder_layer import after_attention, before_attention
from .forks import Fork, Part
from .frames import PatchGrid
from .packed import PackedLayer
from .positions import rotate

log = logging.getLogger(__name__)

LEAST_TOKENS = 64  # fewer are not a chunk


def recompiling() -> Any:
    """Let a function be compiled for more cases than for one it would: sizes, models, engines."""
    import torch._dynamo  # not for those who never compile: it takes a second

    return torch._dynamo.config.patch(recompile_limit=64)


class CompiledChunks:
    """The layers of both towers with their elementwise work fused.

    Args:
        model: a `StreamQwenModel`; its vision blocks are changed until `undo`.
        backend: of ``torch.compile``.
    """

    def __init__(self, model: Any, backend: str = "inductor"):
        # Looked up by its name at each call; the tracer is to leave it alone.
        AttentionInterface.register(VISION_ATTENTION, torch.compiler.disable(varlen_attention))
        self._text, self._blocks = model.model.language_model, model.model.visual.blocks
        self._norm = torch.compile(_norm, backend=backend, dynamic=True)
        self._before = torch.compile(_before_attention, backend=backend, dynamic=True)
        self._after = torch.compile(after_attention, backend=backend, dynamic=True)
        forward = torch.compile(type(self._blocks[0]).forward, backend=backend, dynamic=True)
        for block in self._blocks:
            block.forward = MethodType(forward, block)
        self._joined: dict[int, tuple[int, PackedLayer | None]] = {}

    def undo(self) -> None:
        """Give the vision blocks back as they were."""
        for block in self._blocks:
            block.__dict__.pop("forward", None)

    def try_out(self, model: Any) -> None:
        """Compile both towers on a little noise; raises whatever does not work."""
        with recompiling():
            self._try_out(model)

    def _try_out(self, model: Any) -> None:
        text, vision = model.config.text_config, model.config.vision_config
        options = {"dtype": model.dtype, "device": model.device}
        # A length like no other size: the tracer takes equal sizes for one.
        hidden = torch.randn(67, text.hidden_size, **options)
        layer = self._text.layers[0]
        normed = self._norm(layer.input_layernorm, hidden)
        cos, sin = self._text.rotary_emb(hidden, torch.zeros(3, 1, 67, device=model.device))
        for turns in (1, 2):  # a graph for one, another for any more
            turn = torch.zeros(2, turns, 1, 1, cos.shape[-1], device=model.device)
            queries, _ = self._before(layer, self._packed(0), normed, cos, sin, turn)
            attended = queries[0].transpose(0, 1).contiguous()
            self._after(layer, None, self._text.norm, hidden, attended)
        merge, patch = vision.spatial_merge_size, vision.patch_size
        side = 8 * merge
        pixels = 3 * vision.temporal_patch_size * patch**2
        model.encode_frames(PatchGrid(torch.randn(side**2, pixels, **options), (1, side, side)))

    def forward(
        self, embeddings: torch.Tensor, positions: torch.Tensor, fork: Fork
    ) -> torch.Tensor:
        """The language model's layers and last norm.

        Args:
            embeddings: ``[1, n, hidden]``, as is what comes back.
            positions: ``[3, 1, n]``.
        """
        with recompiling():
            return self._forward(embeddings, positions, fork)

    def _forward(
        self, embeddings: torch.Tensor, positions: torch.Tensor, fork: Fork
    ) -> torch.Tensor:
        text = self._text
        layers = text.layers
        hidden = embeddings[0].clone()  # made in inference mode, like all others that come here
        cos, sin = text.rotary_emb(hidden, positions)
        turns, of_part = _distinct_turns(fork, cos)
        normed = self._norm(layers[0].input_layernorm, hidden)
        following = [*(layer.input_layernorm for layer in layers[1:]), text.norm]
        for number, (layer, norm) in enumerate(zip(layers, following, strict=True)):
            queries, own = self._before(layer, self._packed(number), normed, cos, sin, turns)
            keys, values = fork.update(own[:1], own[1:], number)
            shared = [(queries[at : at + 1], part.of(number)) for at, part in of_part]
            scaling = layer.self_attn.scaling
            attended = attend_stream(queries[:1], keys, values, scaling, shared)
            # Not by the joined weights: with many rows the halves of one product are slow to split.
            hidden, normed = self._after(layer, None, norm, hidden, attended[0])
        return normed.unsqueeze(0)

    def _packed(self, number: int) -> PackedLayer | None:
        """A layer's joined weights; found out again only where it was moved since."""
        layer = self._text.layers[number]
        place = layer.self_attn.q_proj.weight.data_ptr()
        kept = self._joined.get(number)
        if kept is None or kept[0] != place:
            kept = self._joined[number] = place, PackedLayer.of(layer)
        return kept[1]


def _distinct_turns(fork: Fork, like: torch.Tensor) -> tuple[torch.Tensor, list[tuple[int, Part]]]:
    """The turns by which the queries are to be rotated further, and which of them each part wants.

    Returns:
        ``[2, turns, 1, 1, head_dim]``, cos and sin; the first is none at all.
    """
    none = torch.ones_like(like[0, 0]), torch.zeros_like(like[0, 0])
    found = [none]
    of_part = []
    for part in fork.parts:
        if part.turn is None:
            of_part.append((0, part))
            continue
        of_part.append((len(found), part))
        found.append(part.turn)
    stacked = torch.stack([torch.stack(turn) for turn in found], dim=1)
    return stacked[:, :, None, None], of_part


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


def _norm(norm: torch.nn.Module, hidden: torch.Tensor) -> torch.Tensor:
    return norm(hidden)

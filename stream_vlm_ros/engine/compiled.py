"""torch.compile for what lies between the attention calls of a chunk: norms, MLPs, residuals.

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

from .attention import VISION_ATTENTION, varlen_attention
from .forks import Fork
from .frames import PatchGrid
from .packed import PackedLayer, feed_forward

log = logging.getLogger(__name__)

LEAST_TOKENS = 64  # fewer are not a chunk


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
        self._after = torch.compile(finish_layer, backend=backend, dynamic=True)
        forward = torch.compile(type(self._blocks[0]).forward, backend=backend, dynamic=True)
        for block in self._blocks:
            block.forward = MethodType(forward, block)

    def undo(self) -> None:
        """Give the vision blocks back as they were."""
        for block in self._blocks:
            block.__dict__.pop("forward", None)

    def try_out(self, model: Any) -> None:
        """Compile both towers on a little noise; raises whatever does not work."""
        text, vision = model.config.text_config, model.config.vision_config
        options = {"dtype": model.dtype, "device": model.device}
        # A length like no other size: the tracer takes equal sizes for one.
        hidden = torch.randn(1, 67, text.hidden_size, **options)
        layer = self._text.layers[0]
        normed = self._norm(layer.input_layernorm, hidden)
        self._after(layer, self._text.norm, hidden, normed)
        merge, patch = vision.spatial_merge_size, vision.patch_size
        side = 8 * merge
        pixels = 3 * vision.temporal_patch_size * patch**2
        model.encode_frames(PatchGrid(torch.randn(side**2, pixels, **options), (1, side, side)))

    def forward(
        self, embeddings: torch.Tensor, positions: torch.Tensor, fork: Fork
    ) -> torch.Tensor:
        """The language model's layers and last norm on ``[batch, n, hidden]``."""
        text = self._text
        turn = text.rotary_emb(embeddings, positions)
        layers = text.layers
        hidden = embeddings.clone()  # made in inference mode, like all others that come here
        normed = self._norm(layers[0].input_layernorm, hidden)
        following = [*(layer.input_layernorm for layer in layers[1:]), text.norm]
        for layer, norm in zip(layers, following, strict=True):
            attended = layer.self_attn(
                hidden_states=normed,
                attention_mask=None,
                past_key_values=fork,
                use_cache=True,
                position_embeddings=turn,
                fork=fork,
            )[0]
            hidden, normed = self._after(layer, norm, hidden, attended)
        return normed


def _norm(norm: torch.nn.Module, hidden: torch.Tensor) -> torch.Tensor:
    return norm(hidden)


def finish_layer(
    layer: Any,
    norm: torch.nn.Module,
    hidden: torch.Tensor,
    attended: torch.Tensor,
    packed: PackedLayer | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """A decoder layer from its attention on, and the norm of what follows it."""
    hidden = _sum(hidden, attended)
    normed = layer.post_attention_layernorm(hidden)
    hidden = _sum(hidden, feed_forward(layer.mlp, normed, packed))
    return hidden, norm(hidden)


def _sum(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Their sum, rounded as ever.

    In float32 on the way, so that the compiler does not take it into the matrix product before it,
    for which it first has to copy one of them.
    """
    return (one.float() + other.float()).to(one.dtype)

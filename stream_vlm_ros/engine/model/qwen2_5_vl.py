# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Qwen2.5-VL: its vision tower and its language model, from the first product to the last.

    VisionTower  patches [patches, channels * frames * side * side] -> features [tokens, hidden]
    VisionBlock  vision_qkv -> attend_within -> finish_vision_block, [patches, vision hidden]
    Decoder      embeddings [n, hidden], positions [3, n] -> normed states [n, hidden]
    DecoderLayer project -> the pass's attention -> finish (finish_layer), [n, hidden]

(`StreamQwenModel.encode` and `decode` call them; one token is 2 x 2 patches of one grid.)

Weights that read the same input lie in one parameter, so that one product serves them all: with few
rows a GEMM is bound by loading its weights, and a small matrix keeps too little of a GPU busy to
load it fast; on a CPU one call costs less than three.

What a layer computes between two attentions is a function of tensors, so that it can be compiled
once for all layers (see `base.LayerFunctions`); the attention is the pass's own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional
from transformers import GenerationConfig, Qwen2_5_VLConfig

from stream_vlm_ros.engine.attention.base import LayerAttention
from stream_vlm_ros.engine.attention.sdpa import Sequences, attend_within, rotate_qkv
from stream_vlm_ros.engine.cache.buffer import KVShape
from stream_vlm_ros.engine.cache.mrope import MultimodalRotary
from stream_vlm_ros.engine.inputs.frames import PatchGrid
from stream_vlm_ros.engine.reference_names import ModelNames

from .base import LayerFunctions, Linear, StreamModel
from .config import check_config, read_config

VISION_EPS = 1e-6  # of the tower's norms; no config has it
MIN_CHUNK_TOKENS = 64  # fewer are not a chunk

# Rows of a matrix begin at multiples of 16 bytes for a GPU's fast kernels, also in 16 bits.
_ALIGNED, _INNER_MULTIPLE = 8, 64


# -- what layers compute between two attentions ---------------------------------------------------


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """The root mean square norm over the last axis. In 16 bits it scales after the cast."""
    if x.dtype == torch.float32 and not x.is_cuda:  # one call, where each takes long
        return torch.rms_norm(x, x.shape[-1:], weight, eps)
    wide = x.float()
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return weight * wide.to(x.dtype)


def feed_forward(
    x: torch.Tensor,
    gate_up: torch.Tensor,
    gate_up_bias: torch.Tensor | None,
    down: torch.Tensor,
    down_bias: torch.Tensor | None,
    linear: Linear,
    split: bool,
) -> torch.Tensor:
    """``down(silu(gate(x)) * up(x))``; ``split``: gate and up by a product each."""
    if split:
        half = len(gate_up) // 2
        biases = (None, None) if gate_up_bias is None else gate_up_bias.split(half)
        weights = gate_up.split(half)
        gate, up = (linear(x, w, bias) for w, bias in zip(weights, biases, strict=True))
    else:
        gate, up = linear(x, gate_up, gate_up_bias).chunk(2, dim=-1)
    return linear(functional.silu(gate) * up, down, down_bias)


def project(
    normed: torch.Tensor,
    norm: torch.Tensor,
    qkv: torch.Tensor,
    bias: torch.Tensor,
    eps: float,
    linear: Linear,
) -> torch.Tensor:
    """Queries, keys and values side by side, of states ``[n, hidden]`` after the layer's norm."""
    return linear(normed, qkv, bias)


def finish_layer(
    hidden: torch.Tensor,
    attended: torch.Tensor,
    out: torch.Tensor,
    post_norm: torch.Tensor,
    gate_up: torch.Tensor,
    down: torch.Tensor,
    next_norm: torch.Tensor,
    eps: float,
    linear: Linear,
    split: bool,
    added: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The rest of a decoder layer after its attention, and the next layer's input norm.

    Args:
        hidden: the layer's input, ``[n, hidden]``.
        attended: what its attention returned, ``[n, heads * head_dim]``.
        next_norm: weight of the norm that the next layer begins with, or of the last norm.
        split: see `feed_forward`.
        added: ``[n, hidden]``, added to the layer's result (DeepStack).

    Returns:
        The layer's hidden states ``[n, hidden]``, and the same after the next norm.
    """
    hidden = _sum(hidden, linear(attended, out, None))
    normed = rms_norm(hidden, post_norm, eps)
    hidden = _sum(hidden, feed_forward(normed, gate_up, None, down, None, linear, split))
    if added is not None:
        hidden = hidden + added
    return hidden, rms_norm(hidden, next_norm, eps)


def _sum(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Their sum, rounded as plain addition rounds it.

    In float32 on the way, so that the compiler does not take it into the matrix product before it,
    for which it first has to copy one of them.
    """
    return (one.float() + other.float()).to(one.dtype)


def vision_qkv(
    hidden: torch.Tensor,
    norm: torch.Tensor,
    qkv: torch.Tensor,
    qkv_bias: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    heads: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A vision block's norm, projection and rotation: from its input ``[patches, hidden]``.

    Args:
        cos, sin: ``[patches, head_dim]``.

    Returns:
        Query, key and value, each ``[patches, heads, head_dim]``.
    """
    together = functional.linear(rms_norm(hidden, norm, VISION_EPS), qkv, qkv_bias)
    together = together.view(len(hidden), 3, heads, -1)
    half = cos.shape[-1] // 2
    cos, sin = cos[:, None, None, :half], sin[:, None, None, :half]
    first, second = together[:, :2].float().split(half, dim=-1)
    # Not `rotate`: each product is rounded before the sum, as the library does, so that features
    # are the library's to the bit, and what is chosen by their likeness is the same.
    rotated = torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
    query, key = rotated.to(together.dtype).unbind(1)
    return query, key, together[:, 2]


def finish_vision_block(
    hidden: torch.Tensor,
    attended: torch.Tensor,
    proj: torch.Tensor,
    proj_bias: torch.Tensor,
    norm: torch.Tensor,
    gate_up: torch.Tensor,
    gate_up_bias: torch.Tensor,
    down: torch.Tensor,
    down_bias: torch.Tensor,
) -> torch.Tensor:
    """The rest of a vision block after its attention.

    Args:
        hidden: the block's input, ``[patches, hidden]``.
        attended: what its attention returned, ``[patches, hidden]``.

    Returns:
        The block's output, ``[patches, hidden]``.
    """
    hidden = hidden + functional.linear(attended, proj, proj_bias)
    normed = rms_norm(hidden, norm, VISION_EPS)
    return hidden + feed_forward(
        normed, gate_up, gate_up_bias, down, down_bias, functional.linear, split=True
    )


PLAIN = LayerFunctions(
    linear=functional.linear,
    split_rows=MIN_CHUNK_TOKENS,
    running=nullcontext,
    norm=rms_norm,
    project=project,
    offsets=lambda offsets, like: offsets,
    rotate=rotate_qkv,
    finish=finish_layer,
    end=lambda normed, norm, eps: normed,
    vision_qkv=vision_qkv,
    finish_vision_block=finish_vision_block,
)


# -- the language model ---------------------------------------------------------------------------


class DecoderLayer(nn.Module):
    """One layer of the language model: for chunks, for questions and for recorded steps.

    Project, then attention (by `Decoder`), then finish. Finish also applies the next layer's input
    norm, so that one kernel can fuse them.
    """

    def __init__(self, config: Any, **options: Any):
        super().__init__()
        hidden, inner = config.hidden_size, config.intermediate_size
        heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
        size = hidden // heads
        self._rows = [heads * size, kv_heads * size, kv_heads * size]
        self._eps = config.rms_norm_eps
        self.input_norm = _parameter(hidden, **options)
        self.qkv = _parameter(sum(self._rows), hidden, **options)
        self.qkv_bias = _parameter(sum(self._rows), **options)
        self.out = _parameter(hidden, heads * size, **options)
        self.post_norm = _parameter(hidden, **options)
        self.gate_up = _parameter(2 * inner, hidden, **options)
        self.down = _parameter(hidden, inner, **options)

    def project(self, normed: torch.Tensor, functions: LayerFunctions) -> torch.Tensor:
        """Queries, keys and values side by side, ``[n, (heads + 2 * kv_heads) * head_dim]``."""
        return functions.project(
            normed, self.input_norm, self.qkv, self.qkv_bias, self._eps, functions.linear
        )

    def finish(
        self,
        hidden: torch.Tensor,
        attended: torch.Tensor,
        next_norm: torch.Tensor,
        functions: LayerFunctions,
        added: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `finish_layer`."""
        return functions.finish(
            hidden,
            attended,
            self.out,
            self.post_norm,
            self.gate_up,
            self.down,
            next_norm,
            self._eps,
            functions.linear,
            len(hidden) >= functions.split_rows,
            added,
        )

    def released(self, prefix: str) -> Iterator[tuple[str, torch.Tensor]]:
        """(released name, view) of its weights."""
        yield f"{prefix}input_layernorm.weight", self.input_norm.data
        weights, biases = self.qkv.data.split(self._rows), self.qkv_bias.data.split(self._rows)
        for name, weight, bias in zip("qkv", weights, biases, strict=True):
            yield f"{prefix}self_attn.{name}_proj.weight", weight
            yield f"{prefix}self_attn.{name}_proj.bias", bias
        yield f"{prefix}self_attn.o_proj.weight", self.out.data
        yield f"{prefix}post_attention_layernorm.weight", self.post_norm.data
        gate, up = self.gate_up.data.chunk(2)
        yield f"{prefix}mlp.gate_proj.weight", gate
        yield f"{prefix}mlp.up_proj.weight", up
        yield f"{prefix}mlp.down_proj.weight", self.down.data


class Decoder(nn.Module):
    """The language model without its head."""

    def __init__(self, config: Any, rotary: MultimodalRotary, **options: Any):
        super().__init__()
        self._eps, self._rotary = config.rms_norm_eps, rotary
        self.embedding = _parameter(config.vocab_size, config.hidden_size, **options)
        self.layers: Any = nn.ModuleList(
            DecoderLayer(config, **options) for _ in range(config.num_hidden_layers)
        )
        self.norm = _parameter(config.hidden_size, **options)

    def forward(
        self,
        hidden: torch.Tensor,
        positions: torch.Tensor,
        attention: LayerAttention,
        functions: LayerFunctions,
        added: Sequence[torch.Tensor] = (),
    ) -> torch.Tensor:
        """See `StreamModel.decode`."""
        cos, sin = self._rotary.forward(positions, hidden.dtype)  # [n, head_dim]
        layers = list(self.layers)
        norms = [*(layer.input_norm for layer in layers), self.norm]
        normed = functions.norm(hidden, norms[0], self._eps)
        for number, layer in enumerate(layers):
            qkv = layer.project(normed, functions)
            attended = attention(number, qkv, cos, sin)  # [n, heads * head_dim]
            more = added[number] if number < len(added) else None
            hidden, normed = layer.finish(hidden, attended, norms[number + 1], functions, more)
        return functions.end(normed, self.norm, self._eps)

    def released(self, prefix: str) -> Iterator[tuple[str, torch.Tensor]]:
        """(released name, view) of its weights."""
        yield f"{prefix}embed_tokens.weight", self.embedding.data
        for number, layer in enumerate(self.layers):
            yield from layer.released(f"{prefix}layers.{number}.")
        yield f"{prefix}norm.weight", self.norm.data


# -- the vision tower -----------------------------------------------------------------------------


class VisionLayout(NamedTuple):
    """Where the patches of a chunk stand, by the size of its grid.

    Attributes:
        order: ``[tokens]``, windows laid end to end; ``back`` undoes it.
        cos, sin: ``[patches, head_dim]`` in float32, in that order.
        grids, windows: within what a layer attends: whole temporal grids, or windows of them.
    """

    order: torch.Tensor
    back: torch.Tensor
    cos: torch.Tensor
    sin: torch.Tensor
    grids: Sequences
    windows: Sequences

    @classmethod
    def of(cls, grid_thw: tuple[int, int, int], config: Any, device: torch.device) -> VisionLayout:
        """That of ``grid_thw``: grids, rows and columns of patches."""
        grids, height, width = grid_thw
        merge, patches = config.spatial_merge_size, config.spatial_merge_size**2
        rows, columns = height // merge, width // merge
        side = config.window_size // merge // config.patch_size  # of a window, in tokens
        across = -(-columns // side)
        window = (torch.arange(rows) // side)[:, None] * across + torch.arange(columns) // side
        number = torch.arange(grids)[:, None, None] * (int(window.max()) + 1) + window
        order = number.flatten().argsort(stable=True)
        lengths = number.flatten()[order].unique_consecutive(return_counts=True)[1]

        # The patches of a token lie together, row by row.
        y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        places = [
            axis.reshape(rows, merge, columns, merge).transpose(1, 2).reshape(-1, patches)
            for axis in (y, x)
        ]
        quarter = config.hidden_size // config.num_heads // 4
        rope = getattr(config, "rope_parameters", None) or {}
        steps = torch.arange(quarter).float() / quarter
        frequencies = 1.0 / rope.get("rope_theta", 10_000.0) ** steps
        angles = torch.cat([axis[..., None].float() * frequencies for axis in places], dim=-1)
        angles = angles.repeat(grids, 1, 2)[order].flatten(0, 1)  # [patches, head_dim]
        return cls(
            order.to(device),
            order.argsort().to(device),
            angles.cos().to(device),
            angles.sin().to(device),
            Sequences.of(torch.full((grids,), height * width), device),
            Sequences.of(lengths * patches, device),
        )


class VisionBlock(nn.Module):
    """One layer of the vision tower."""

    def __init__(self, config: Any, **options: Any):
        super().__init__()
        hidden = config.hidden_size
        self._heads, self._scaling = config.num_heads, (hidden // config.num_heads) ** -0.5
        # The released models have 3,420 there: in 16 bits no multiple of 16 bytes, and so cuBLAS
        # takes kernels of an older GPU, at 246 TFLOP/s instead of 754 on an H200. With zeros added
        # gate and up give silu(0) * 0, which down multiplies by 0.
        self._inner = inner = config.intermediate_size
        if inner % _ALIGNED:
            inner += -inner % _INNER_MULTIPLE
        self.norm1 = _parameter(hidden, **options)
        self.qkv = _parameter(3 * hidden, hidden, **options)
        self.qkv_bias = _parameter(3 * hidden, **options)
        self.proj = _parameter(hidden, hidden, **options)
        self.proj_bias = _parameter(hidden, **options)
        self.norm2 = _parameter(hidden, **options)
        zeros = inner != self._inner
        self.gate_up = _parameter(2 * inner, hidden, zeros=zeros, **options)
        self.gate_up_bias = _parameter(2 * inner, zeros=zeros, **options)
        self.down = _parameter(hidden, inner, zeros=zeros, **options)
        self.down_bias = _parameter(hidden, **options)

    def forward(
        self,
        hidden: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
        within: Sequences,
        functions: LayerFunctions,
    ) -> torch.Tensor:
        """``[patches, hidden]`` to the same."""
        query, key, value = functions.vision_qkv(
            hidden, self.norm1, self.qkv, self.qkv_bias, cos, sin, self._heads
        )
        attended = attend_within(query, key, value, self._scaling, within)
        return functions.finish_vision_block(
            hidden,
            attended.flatten(1),  # in one order, whichever kernel it came from
            self.proj,
            self.proj_bias,
            self.norm2,
            self.gate_up,
            self.gate_up_bias,
            self.down,
            self.down_bias,
        )

    def released(self, prefix: str) -> Iterator[tuple[str, torch.Tensor]]:
        """(released name, view) of its weights, without what was added to them."""
        yield f"{prefix}attn.qkv.weight", self.qkv.data
        yield f"{prefix}attn.qkv.bias", self.qkv_bias.data
        yield f"{prefix}attn.proj.weight", self.proj.data
        yield f"{prefix}attn.proj.bias", self.proj_bias.data
        yield f"{prefix}norm1.weight", self.norm1.data
        yield f"{prefix}norm2.weight", self.norm2.data
        weights, biases = self.gate_up.data.chunk(2), self.gate_up_bias.data.chunk(2)
        for name, weight, bias in zip(("gate", "up"), weights, biases, strict=True):
            yield f"{prefix}mlp.{name}_proj.weight", weight[: self._inner]
            yield f"{prefix}mlp.{name}_proj.bias", bias[: self._inner]
        yield f"{prefix}mlp.down_proj.weight", self.down.data[:, : self._inner]
        yield f"{prefix}mlp.down_proj.bias", self.down_bias.data


class VisionTower(nn.Module):
    """Patches to features as wide as the language model's hidden states."""

    _MAX_LAYOUTS = 8  # sizes of chunks kept: a camera's are all of one size or two

    def __init__(self, config: Any, **options: Any):
        super().__init__()
        hidden, merged = config.hidden_size, config.hidden_size * config.spatial_merge_size**2
        side, frames = config.patch_size, config.temporal_patch_size
        self._config = config
        self._layouts: dict[Any, VisionLayout] = {}  # the latest used last
        # A convolution whose stride is its kernel: the product that it is.
        self._patch = (config.in_channels, frames, side, side)
        self.patch_embed = _parameter(hidden, config.in_channels * frames * side**2, **options)
        self.blocks: Any = nn.ModuleList(
            VisionBlock(config, **options) for _ in range(config.depth)
        )
        self.merger_norm = _parameter(hidden, **options)
        self.merger_in = _parameter(merged, merged, **options)
        self.merger_in_bias = _parameter(merged, **options)
        self.merger_out = _parameter(config.out_hidden_size, merged, **options)
        self.merger_out_bias = _parameter(config.out_hidden_size, **options)

    def layout(self, grid_thw: tuple[int, int, int], device: torch.device) -> VisionLayout:
        """Where patches stand, computed once a size: it takes Python and waits for the device."""
        key = (grid_thw, device)
        found = self._layouts.pop(key, None)
        if found is None:
            found = VisionLayout.of(grid_thw, self._config, device)
            while len(self._layouts) >= self._MAX_LAYOUTS:
                self._layouts.pop(next(iter(self._layouts)))
        self._layouts[key] = found
        return found

    def forward(
        self, pixels: torch.Tensor, grid_thw: tuple[int, int, int], functions: LayerFunctions
    ) -> torch.Tensor:
        """``[patches, channels * frames * side * side]`` to ``[tokens, out_hidden]``."""
        layout = self.layout(grid_thw, pixels.device)
        hidden = functional.linear(pixels, self.patch_embed)
        hidden = hidden.view(len(layout.order), -1)[layout.order].view(len(hidden), -1)
        whole = set(self._config.fullatt_block_indexes)
        for number, block in enumerate(self.blocks):
            within = layout.grids if number in whole else layout.windows
            hidden = block.forward(hidden, layout.cos, layout.sin, within, functions)
        normed = rms_norm(hidden, self.merger_norm, VISION_EPS).view(len(layout.order), -1)
        merged = functional.linear(normed, self.merger_in, self.merger_in_bias)
        merged = functional.gelu(merged)
        return functional.linear(merged, self.merger_out, self.merger_out_bias)[layout.back]

    def released(self, prefix: str) -> Iterator[tuple[str, torch.Tensor]]:
        """(released name, view) of its weights."""
        patches = self.patch_embed.data.view(-1, *self._patch)
        yield f"{prefix}patch_embed.proj.weight", patches
        for number, block in enumerate(self.blocks):
            yield from block.released(f"{prefix}blocks.{number}.")
        yield f"{prefix}merger.ln_q.weight", self.merger_norm.data
        yield f"{prefix}merger.mlp.0.weight", self.merger_in.data
        yield f"{prefix}merger.mlp.0.bias", self.merger_in_bias.data
        yield f"{prefix}merger.mlp.2.weight", self.merger_out.data
        yield f"{prefix}merger.mlp.2.bias", self.merger_out_bias.data


# -- both -----------------------------------------------------------------------------------------


class StreamQwenModel(ModelNames, StreamModel):
    """Qwen2.5-VL that appends vision and text to a memory.

    Attributes:
        visual: the vision tower.
        text: the language model.
    """

    functions = PLAIN

    def __init__(
        self,
        config: Qwen2_5_VLConfig,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
    ):
        super().__init__(config, dtype, device)
        check_config(config)
        self.config = config
        self.generation_config = GenerationConfig.from_model_config(config)
        text, rope = config.text_config, config.text_config.rope_parameters
        sections = rope.get("mrope_section", [16, 24, 24])
        axis_of = [axis % 3 for axis, count in enumerate(sections) for _ in range(count)]
        self.rotary = MultimodalRotary(rope["rope_theta"], axis_of)
        options: dict[str, Any] = {"dtype": dtype, "device": device}
        self.visual = VisionTower(config.vision_config, **options)
        self.text = Decoder(text, self.rotary, **options)
        if not config.tie_word_embeddings:
            self.head = _parameter(text.vocab_size, text.hidden_size, **options)

    @classmethod
    def read_config(cls, folder: Path) -> Qwen2_5_VLConfig:
        """The folder's configuration; ModelLoadError says why it is not one of this family."""
        return read_config(folder)

    @property
    def kv_shape(self) -> KVShape:
        """Size of this model's KV."""
        text = self.config.text_config
        return KVShape(
            layers=text.num_hidden_layers,
            kv_heads=text.num_key_value_heads,
            head_dim=text.hidden_size // text.num_attention_heads,
            dtype=self.dtype,
        )

    def released(self) -> Iterator[tuple[str, torch.Tensor]]:
        """(name in a released checkpoint, view into a parameter) of all weights."""
        yield from self.visual.released("visual.")
        yield from self.text.released("model.")
        if not self.config.tie_word_embeddings:
            yield "lm_head.weight", self.head.data

    def tied_names(self) -> dict[str, str]:
        """The head's, where it is the embedding."""
        tied = self.config.tie_word_embeddings
        return {"lm_head.weight": "model.embed_tokens.weight"} if tied else {}

    @staticmethod
    def released_name(name: str) -> str:
        """Released: ``visual.`` and ``model.``; transformers: one more floor above both."""
        for released, theirs in LIBRARY_PREFIXES.items():
            if name.startswith(theirs):
                return released + name.removeprefix(theirs)
        return name

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """Text embeddings: ``[...]`` to ``[..., hidden]``."""
        return functional.embedding(ids, self.text.embedding)

    def vision_layout(self, grid_thw: tuple[int, int, int]) -> VisionLayout:
        return self.visual.layout(grid_thw, self.device)

    def encode(self, patches: PatchGrid, functions: LayerFunctions) -> torch.Tensor:
        """Vision features of a chunk, ``[tokens, hidden]``."""
        pixels = patches.pixel_values.to(self.visual.patch_embed)
        return self.visual.forward(pixels, patches.grid_thw, functions)

    def decode(
        self,
        hidden: torch.Tensor,
        positions: torch.Tensor,
        attention: LayerAttention,
        functions: LayerFunctions,
        added: Sequence[torch.Tensor] = (),
    ) -> torch.Tensor:
        """See `StreamModel.decode`."""
        return self.text.forward(hidden, positions, attention, functions, added)

    def project_logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """``[..., hidden]`` to ``[..., vocabulary]``."""
        tied = self.config.tie_word_embeddings
        return functional.linear(hidden, self.text.embedding if tied else self.head)


# What transformers puts before the names, by what the released files have.
LIBRARY_PREFIXES = {"visual.": "model.visual.", "model.": "model.language_model."}


def library_name(name: str) -> str:
    """What transformers calls the weight of a released name."""
    for released, theirs in LIBRARY_PREFIXES.items():
        if name.startswith(released):
            return theirs + name.removeprefix(released)
    return name


def _parameter(
    *size: int, dtype: torch.dtype, device: str | torch.device, zeros: bool = False
) -> nn.Parameter:
    make = torch.zeros if zeros else torch.empty
    with torch.inference_mode(False):  # to be trained, too
        return nn.Parameter(make(size, dtype=dtype, device=device))

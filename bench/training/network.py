# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""The forward of training: the library's own weights, for many videos and questions at once.

The same function as `Qwen2_5_VLForConditionalGeneration` computes, token by token; a test holds
the two against each other.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from stream_vlm_ros.world.draw import STAGES, draw_batch
from training.config import MEAN, STD


def norm(x, weight, eps: float = 1e-6):
    """Root mean square norm over the last axis, computed in float32."""
    x = x.float()
    return weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps))


def rotate(x, cos, sin):
    """Apply rotary positions; cos and sin are as wide as a head."""
    half = x.shape[-1] // 2
    turned = torch.cat((-x[..., half:], x[..., :half]), -1)
    return (x * cos + turned * sin).to(x.dtype)


def linear(x, weight, bias=None):
    """A matrix product in bfloat16 on a GPU, in the weights' type elsewhere."""
    kind = torch.bfloat16 if x.is_cuda else weight.dtype
    return F.linear(x.to(kind), weight.to(kind), None if bias is None else bias.to(kind))


def expose(frames, noise, mean, std):
    """Add noise of standard deviations [n, 1, 1, 1] to frames [n, 3, h, w], and normalise."""
    frames = ((frames + torch.randn_like(frames) * noise).clip(0, 255) / 255 - mean) / std
    return frames.to(torch.bfloat16) if frames.is_cuda else frames


def cut(frames, rows: int, columns: int):
    """Cut frames [2n, 3, 28 rows, 28 columns] into patches in the order of the Qwen2-VL processor.

    Returns [n, 4 rows columns, 1176].
    """
    n = len(frames) // 2
    frames = frames.view(n, 2, 3, rows, 2, 14, columns, 2, 14)
    return frames.permute(0, 3, 6, 4, 7, 2, 1, 5, 8).reshape(n, 4 * rows * columns, 1176)


def vision_angles(rows: int, columns: int, width: int, device):
    """cos and sin of the vision tower's positions, in patch order: [4 rows columns, width]."""
    spots = torch.arange(2 * rows, device=device)[:, None].expand(-1, 2 * columns)
    across = torch.arange(2 * columns, device=device)[None].expand(2 * rows, -1)
    order = [
        axis.reshape(rows, 2, columns, 2).permute(0, 2, 1, 3).flatten() for axis in (spots, across)
    ]
    half = width // 2
    frequency = 1.0 / 10000.0 ** (torch.arange(0, half, 2, device=device).float() / half)
    angles = torch.cat([axis[:, None] * frequency for axis in order], -1)
    angles = torch.cat([angles, angles], -1)
    return angles.cos(), angles.sin()


def text_angles(positions, theta: float, sections: list[int]):
    """cos and sin of the text model's positions [3, b, s]: [b, 1, s, 64]."""
    half = sum(sections)
    frequency = 1.0 / theta ** (torch.arange(half, device=positions.device).float() / half)
    angles = positions[..., None].float() * frequency  # [3, b, s, 32]
    parts = angles.split(sections, -1)
    angles = torch.cat([part[axis % 3] for axis, part in enumerate(parts)], -1)
    angles = torch.cat([angles, angles], -1)[:, None]
    return angles.cos(), angles.sin()


def vision_layer(weights, x, cos, sin, heads: int):
    """One block of the vision tower over grids x [n, s, d]."""
    norm1, qkv, qkv_bias, proj, proj_bias, norm2, gate, gate_bias, up, up_bias, down, down_bias = (
        weights
    )
    n, s, d = x.shape
    q, k, v = linear(norm(x, norm1), qkv, qkv_bias).view(n, s, 3, heads, -1).permute(2, 0, 3, 1, 4)
    y = F.scaled_dot_product_attention(rotate(q, cos, sin), rotate(k, cos, sin), v)
    x = x + linear(y.transpose(1, 2).reshape(n, s, d), proj, proj_bias)
    y = norm(x, norm2)
    y = F.silu(linear(y, gate, gate_bias)) * linear(y, up, up_bias)
    return x + linear(y, down, down_bias)


def text_layer(weights, x, cos, sin, mask, heads: int, kv_heads: int):
    """One decoder layer over rows x [b, s, d]; the mask is flex attention's."""
    norm1, wq, bq, wk, bk, wv, bv, wo, norm2, gate, up, down = weights
    b, s, d = x.shape
    y = norm(x, norm1)
    q = linear(y, wq, bq).view(b, s, heads, -1).transpose(1, 2)
    k = linear(y, wk, bk).view(b, s, kv_heads, -1).transpose(1, 2)
    v = linear(y, wv, bv).view(b, s, kv_heads, -1).transpose(1, 2)
    q, k = rotate(q, cos, sin), rotate(k, cos, sin)
    if isinstance(mask, torch.Tensor):
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
    else:
        y = flex_attention(q, k, v, block_mask=mask, enable_gqa=True)
    x = x + linear(y.transpose(1, 2).reshape(b, s, d), wo)
    y = norm(x, norm2)
    return x + linear(F.silu(linear(y, gate)) * linear(y, up), down)


def merge(weights, x):
    """The merger: four neighbouring patches become one token of the text model's width."""
    ln, first, first_bias, second, second_bias = weights
    x = norm(x, ln).reshape(x.shape[0], -1, first.shape[1])
    return linear(F.gelu(linear(x, first, first_bias)), second, second_bias)


def token_losses(x, weight_norm, embedding, labels):
    """Loss of each token [n] (0 where there is no label) and whether it would be guessed."""
    logits = linear(norm(x, weight_norm), embedding).float()
    loss = F.cross_entropy(
        logits.flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="none"
    )
    return loss, logits.argmax(-1).flatten() == labels.flatten()


def visible(asked, limit):
    """The mask of a row as a function: the prefix up to the limit, then the own question."""

    def allowed(b, h, q, k):
        own = (asked[b, q] == asked[b, k]) & (asked[b, q] > 0) & (k <= q)
        return (k < limit[b, q]) | own

    return allowed


class Network:
    """A library model's parameters and the functions above, compiled where asked."""

    def __init__(self, model, compiled: bool = True) -> None:
        self.model = model
        config = model.config
        self.text, self.vision = config.text_config, config.vision_config
        tower, decoder = model.model.visual, model.model.language_model
        self.embedding, self.final = decoder.embed_tokens.weight, decoder.norm.weight
        self.patch = tower.patch_embed.proj.weight
        self.merger = [
            tower.merger.ln_q.weight,
            *(p for i in (0, 2) for p in (tower.merger.mlp[i].weight, tower.merger.mlp[i].bias)),
        ]
        self.blocks = [
            (
                b.norm1.weight, b.attn.qkv.weight, b.attn.qkv.bias, b.attn.proj.weight,
                b.attn.proj.bias, b.norm2.weight, b.mlp.gate_proj.weight, b.mlp.gate_proj.bias,
                b.mlp.up_proj.weight, b.mlp.up_proj.bias, b.mlp.down_proj.weight,
                b.mlp.down_proj.bias,
            )
            for b in tower.blocks
        ]  # fmt: skip
        self.layers = [
            (
                m.input_layernorm.weight, m.self_attn.q_proj.weight, m.self_attn.q_proj.bias,
                m.self_attn.k_proj.weight, m.self_attn.k_proj.bias, m.self_attn.v_proj.weight,
                m.self_attn.v_proj.bias, m.self_attn.o_proj.weight,
                m.post_attention_layernorm.weight,
                m.mlp.gate_proj.weight, m.mlp.up_proj.weight, m.mlp.down_proj.weight,
            )
            for m in decoder.layers
        ]  # fmt: skip
        fast = torch.compile if compiled else lambda function, **_: function
        self.stages = [fast(stage, dynamic=True) for stage in STAGES]
        self.expose = fast(expose, dynamic=True)
        self.vision_layer, self.merge = fast(vision_layer), fast(merge)
        self.text_layer = fast(text_layer, dynamic=False)
        self.token_losses = fast(token_losses, dynamic=False)
        self.compiled = compiled

    @torch.no_grad()
    def draw(self, batch: dict):
        """The patches of all grids of a batch: [n, p, 1176]."""
        rows, columns = self.grid = (batch["rows"], batch["columns"])
        count = 2 * batch["backdrops"].shape[1]
        parts = (batch[key].flatten(0, 2) for key in ("backdrops", "shapes", "signs"))
        frames = draw_batch(
            *parts,
            batch["atlas"],
            columns * 28,
            rows * 28,
            batch["aspect"],
            batch["blur"],
            self.stages,
        )
        noise = batch["noise"].expand(-1, count).reshape(-1, 1, 1, 1)
        mean, std = (torch.tensor(m, device=frames.device).view(1, 3, 1, 1) for m in (MEAN, STD))
        return cut(self.expose(frames, noise, mean, std), rows, columns)

    def see(self, patch):
        """Vision tokens of grids of `grid` rows and columns: [n, p, 1176] to [n, p / 4, d]."""
        rows, columns = self.grid
        cos, sin = vision_angles(
            rows, columns, self.vision.hidden_size // self.vision.num_heads, patch.device
        )
        x = linear(patch, self.patch.flatten(1)).float()
        if self.compiled:  # one program for all numbers of grids and patches
            for axis in (0, 1):
                torch._dynamo.maybe_mark_dynamic(x, axis)
                torch._dynamo.maybe_mark_dynamic(cos, 0)
                torch._dynamo.maybe_mark_dynamic(sin, 0)
        for weights in self.blocks:
            x = self.vision_layer(weights, x, cos, sin, self.vision.num_heads)
        return self.merge(self.merger, x)

    def hidden(self, batch: dict, seen):
        """Hidden states [b, s, d] before the last norm, of a batch on the device."""
        ids, index = batch["ids"], batch["vision"]
        b, s = ids.shape
        x = F.embedding(ids.long(), self.embedding)
        seen = seen.view(b, -1, seen.shape[-1]).to(x.dtype)
        gathered = seen.gather(1, index.clip(0).long()[..., None].expand(-1, -1, x.shape[-1]))
        x = torch.where(index[..., None] >= 0, gathered, x)
        rope = self.text.rope_parameters
        positions = batch["positions"].transpose(0, 1)  # [3, b, s]
        cos, sin = text_angles(positions, rope["rope_theta"], rope["mrope_section"])
        allowed = visible(batch["asked"], batch["limit"])
        if self.compiled:
            mask = create_block_mask(allowed, b, None, s, s, device=ids.device, _compile=True)
        else:
            place = torch.arange(s, device=ids.device)
            rows = torch.arange(b, device=ids.device).view(-1, 1, 1, 1)
            mask = allowed(rows, 0, place.view(1, 1, -1, 1), place.view(1, 1, 1, -1))
        for weights in self.layers:
            x = self.text_layer(
                weights,
                x,
                cos,
                sin,
                mask,
                self.text.num_attention_heads,
                self.text.num_key_value_heads,
            )
        return x

    def losses(self, batch: dict, prefix: int):
        """Losses and hits of the question part's tokens, each [b * questions]."""
        x = self.hidden(batch, self.see(self.draw(batch)))[:, prefix:]
        return self.token_losses(x, self.final, self.embedding, batch["labels"][:, prefix:].long())

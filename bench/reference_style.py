# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""The reference system's way of streaming, on the same weights: the baseline of bench/gpu.py.

A DynamicCache that is copied together anew at each append, a mask given to every forward, eviction
by slicing sink and window apart and joining them, a clone of the whole cache before each question,
and the library's own vision tower, which without variable-length attention loops over its windows.
Only what sets the time is re-created: positions are plain counts.
"""

from __future__ import annotations

import torch
from transformers import DynamicCache, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from stream_vlm_ros.engine import StreamQwenModel
from stream_vlm_ros.engine.inputs.frames import PatchGrid
from stream_vlm_ros.engine.model.qwen2_5_vl import library_name


def stock_model(model: StreamQwenModel) -> Qwen2_5_VLForConditionalGeneration:
    """The library's model, untouched, over the same weights: they are taken once."""
    config = Qwen2_5_VLConfig.from_dict(model.config.to_dict())
    config._attn_implementation = "sdpa"
    before = torch.get_default_dtype()
    torch.set_default_dtype(model.dtype)
    try:
        with torch.device(model.device):
            stock = Qwen2_5_VLForConditionalGeneration(config)
    finally:
        torch.set_default_dtype(before)
    weights = {library_name(name): weight for name, weight in model.state_dict().items()}
    stock.load_state_dict(weights, strict=False, assign=True)
    stock.tie_weights()
    return stock.eval()


class ReferenceStyle:
    """A stream in the reference's style.

    Args:
        model: whose weights the library's own model is given.
        length: tokens that the cache holds; filled with noise, since time does not depend on them.
        sink: of them, kept at each eviction.
    """

    def __init__(self, model: StreamQwenModel, length: int, sink: int) -> None:
        self.model, self.length, self.sink = stock_model(model), length, sink
        text = model.config.text_config
        heads = text.num_key_value_heads
        shape = (1, heads, length, text.hidden_size // text.num_attention_heads)
        options = {"dtype": model.dtype, "device": model.device}
        self.cache = DynamicCache()
        for layer in range(text.num_hidden_layers):
            self.cache.update(torch.randn(shape, **options), torch.randn(shape, **options), layer)

    def _embed(self, ids: torch.Tensor) -> torch.Tensor:
        return self.model.model.language_model.embed_tokens(ids)

    @torch.inference_mode()
    def vision(self, patches: PatchGrid) -> torch.Tensor:
        """Features of a chunk, ``[tokens, hidden]``."""
        grid = torch.tensor([patches.grid_thw], device=self.model.device)
        pixels = patches.pixel_values.to(self.model.dtype)
        return self.model.model.visual(pixels, grid_thw=grid).pooler_output

    @torch.inference_mode()
    def forward(self, embeddings: torch.Tensor) -> torch.Tensor:
        """Append ``[1, n, hidden]`` to the cache; hidden states of the same shape."""
        count, past = embeddings.shape[1], self.cache.get_seq_length()
        mask = torch.full(
            (count, past + count),
            torch.finfo(self.model.dtype).min,
            dtype=self.model.dtype,
            device=self.model.device,
        ).triu(past + 1)[None, None]
        positions = torch.arange(past, past + count, device=self.model.device)
        return self.model.model.language_model(
            inputs_embeds=embeddings,
            position_ids=positions.expand(3, 1, count),
            attention_mask={"full_attention": mask},
            past_key_values=self.cache,
            use_cache=True,
        ).last_hidden_state

    @torch.inference_mode()
    def evict(self) -> None:
        """Back to the length: the sink and the newest tokens, joined into new tensors."""
        window = self.length - self.sink
        for layer in self.cache.layers:
            layer.keys, layer.values = (
                torch.cat([kept[:, :, : self.sink], kept[:, :, -window:]], dim=2)
                for kept in (layer.keys, layer.values)
            )

    def append(self, patches: PatchGrid) -> None:
        """Vision tower, language model, eviction."""
        self.forward(self.vision(patches)[None])
        self.evict()

    def snapshot(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """A copy of the whole cache."""
        return [(layer.keys.clone(), layer.values.clone()) for layer in self.cache.layers]

    def restore(self, saved: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
        """Back to a snapshot."""
        for layer, (keys, values) in zip(self.cache.layers, saved, strict=True):
            layer.keys, layer.values = keys, values

    @torch.inference_mode()
    def first_token(self, ids: list[int]) -> torch.Tensor:
        """The likeliest token after a question, ``[1]``."""
        hidden = self.forward(self._embed(torch.tensor([ids], device=self.model.device)))
        return self.model.lm_head(hidden[:, -1]).argmax(-1)

    @torch.inference_mode()
    def next_token(self, token: torch.Tensor) -> torch.Tensor:
        """The likeliest token after another, ``[1]``."""
        hidden = self.forward(self._embed(token[None]))
        return self.model.lm_head(hidden[:, -1]).argmax(-1)

"""The reference system's way of streaming, on the same weights: the baseline of bench/gpu.py.

A DynamicCache that is copied together anew at each append, a mask given to every forward, eviction
by slicing sink and window apart and joining them, a clone of the whole cache before each question,
and the library's own vision tower, which without variable-length attention loops over its windows.
Only what sets the time is re-created: positions are plain counts.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from transformers import DynamicCache
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionPatchEmbed

from stream_vlm_ros.engine import StreamQwenModel
from stream_vlm_ros.engine.frames import PatchGrid


class ReferenceStyle:
    """A stream in the reference's style.

    Args:
        model: its weights are used, with the library's own attention.
        length: tokens that the cache holds; filled with noise, since time does not depend on them.
        sink: of them, kept at each eviction.
    """

    def __init__(self, model: StreamQwenModel, length: int, sink: int) -> None:
        self.model, self.length, self.sink = model, length, sink
        text = model.config.text_config
        heads = text.num_key_value_heads
        shape = (1, heads, length, text.hidden_size // text.num_attention_heads)
        options = {"dtype": model.dtype, "device": model.device}
        self.cache = DynamicCache()
        for layer in range(text.num_hidden_layers):
            self.cache.update(torch.randn(shape, **options), torch.randn(shape, **options), layer)

    @contextlib.contextmanager
    def _library_attention(self) -> Iterator[None]:
        """The library's own attention and first vision layer meanwhile."""
        visual = self.model.model.visual
        configs = self.model.model.language_model.config, visual.config
        names = [config._attn_implementation for config in configs]
        for config in configs:
            config._attn_implementation = "sdpa"
        ours = type(visual.patch_embed)
        visual.patch_embed.__class__ = Qwen2_5_VisionPatchEmbed
        try:
            yield
        finally:
            visual.patch_embed.__class__ = ours
            for config, name in zip(configs, names, strict=True):
                config._attn_implementation = name

    @torch.inference_mode()
    def vision(self, patches: PatchGrid) -> torch.Tensor:
        """Features of a chunk, ``[tokens, hidden]``."""
        with self._library_attention():
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
        with self._library_attention():
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
        hidden = self.forward(self.model.embed_tokens([ids]))
        return self.model.lm_head(hidden[:, -1]).argmax(-1)

    @torch.inference_mode()
    def next_token(self, token: torch.Tensor) -> torch.Tensor:
        """The likeliest token after another, ``[1]``."""
        hidden = self.forward(self.model.embed_tokens(token[None]))
        return self.model.lm_head(hidden[:, -1]).argmax(-1)

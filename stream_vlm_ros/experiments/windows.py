# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Many stretches of one stream through the model at a time, for trials over hours.

What the engine does grid by grid, here done for a batch of independent sequences: the head, some
grids with their stamps, perhaps a question; laid out as the engine lays out a stream of just these
grids, so that answers are those of a fresh engine that was given them (a test holds the two against
each other).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from stream_vlm_ros.engine import StreamProcessor
from stream_vlm_ros.engine.attention.base import LayerAttention, Readout
from stream_vlm_ros.engine.attention.sdpa import rotate_qkv
from stream_vlm_ros.engine.cache.ledger import PositionLedger
from stream_vlm_ros.engine.cache.mrope import Span, TextSpan, VisionSpan, time_to_ticks
from stream_vlm_ros.engine.inputs.chat import ChatLayout
from stream_vlm_ros.engine.inputs.timeline import MAX_PAUSE, Timeline
from stream_vlm_ros.engine.model.base import StreamModel

# Numbers in the attention of one batch and head, on a GPU and elsewhere.
MAX_SCORES, MAX_SCORES_ON_CPU = 300_000_000, 10_000_000


class PaddedAttention(LayerAttention):
    """Causal attention within each of several sequences of one length, padded on their left.

    Args:
        pads: how many of each sequence's tokens are padding, ``[batch]``; None: none at all.
        room: tokens that may follow the first pass; theirs is one a sequence and pass.
        readout: what is to be read before it is rotated.
    """

    def __init__(
        self,
        model: StreamModel,
        batch: int,
        length: int,
        pads: torch.Tensor | None = None,
        room: int = 0,
        readout: Readout | None = None,
    ):
        self._kv_heads, self._batch, self._readout = model.kv_shape.kv_heads, batch, readout
        self._room = room
        self._kept: dict[int, torch.Tensor] = {}
        self._masks: tuple[torch.Tensor, torch.Tensor] | None = None
        if pads is not None:
            places = torch.arange(length + room, device=pads.device)
            real = places >= pads[:, None]  # [batch, length + room]
            causal = places[None, :length] <= places[:length, None]  # [length, length]
            own = torch.eye(length, dtype=torch.bool, device=pads.device)  # padding sees itself
            self._masks = (causal & real[:, None, :length]) | own, real

    def __call__(
        self, layer: int, qkv: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
    ) -> torch.Tensor:
        if self._readout is not None:
            self._readout.take(layer, qkv, self._kv_heads, cos.shape[-1])
        (query,), key, value = rotate_qkv(qkv, cos, sin, [], self._kv_heads)
        query, key, value = (
            x.unflatten(1, (self._batch, -1)).transpose(0, 1) for x in (query, key, value)
        )  # [batch, heads, n, head_dim]
        first = layer not in self._kept
        if self._room:
            key, value = self._keep(layer, key, value)
        groups = query.shape[1] // key.shape[1]
        key, value = (x.repeat_interleave(groups, 1) for x in (key, value))
        if self._masks is None:
            out = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        else:
            mask = self._masks[0] if first else self._masks[1][:, None, : key.shape[2]]
            out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask[:, None])
        return out.transpose(1, 2).reshape(len(qkv), -1)

    def _keep(
        self, layer: int, key: torch.Tensor, value: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of the layer so far, these behind them."""
        before = self._kept.get(layer)
        both = torch.stack([key, value])
        self._kept[layer] = both if before is None else torch.cat([before, both], dim=3)
        return self._kept[layer][0], self._kept[layer][1]


@dataclass(frozen=True)
class Look:
    """One sequence: grids by their numbers, in the order of time, and what is asked of them."""

    grids: Sequence[int]
    question: str = ""


class Windows:
    """A model with the vision features of a stream's grids, and batches of sequences of them.

    Args:
        features: ``[grids, rows, columns, hidden]``.
        seconds: of one grid.
    """

    def __init__(
        self,
        model: StreamModel,
        processor: StreamProcessor,
        features: torch.Tensor,
        seconds: float = 1.0,
    ):
        self.model, self.processor = model, processor
        self.features, self._seconds = features, seconds
        self.chat = ChatLayout(processor, model.config)
        self._rate = model.config.vision_config.tokens_per_second
        ends = model.generation_config.eos_token_id
        self._ends = torch.tensor(
            sorted({*([ends] if isinstance(ends, int) else ends), processor.tokenizer.eos_token_id})
        ).to(model.device)
        self._head = model.embed_tokens(self.chat.head)

    @property
    def _cell(self) -> int:
        """Tokens of a grid."""
        return self.features.shape[1] * self.features.shape[2]

    def prompt(self, question: str) -> list[int]:
        """Token ids from the end of what was seen to where the answer begins."""
        return self.chat.question(question, True, 2048) if question else []

    def positions(self, sequence: Look) -> torch.Tensor:
        """``[3, n]``, as the engine gives them to a stream of these grids, long pauses closed."""
        times = [self._seconds * grid for grid in sequence.grids]
        ticks, _ = Timeline().extended(
            [time_to_ticks(t - times[0], self._rate) for t in times],
            time_to_ticks(MAX_PAUSE, self._rate),
            self.model.config.text_config.max_position_embeddings,
            time_to_ticks(1.0, self._rate),
        )
        _, rows, columns, _ = self.features.shape
        spans: list[Span] = [TextSpan(len(self.chat.head))]
        spans.append(VisionSpan(ticks, tuple((t, t) for t in times), rows, columns, opens=True))
        spans.append(TextSpan(len(self.prompt(sequence.question))))
        return PositionLedger().preview([span for span in spans if span.count])

    def embeddings(self, sequence: Look) -> torch.Tensor:
        """``[n, hidden]``."""
        seen = self.features[list(sequence.grids)].flatten(0, 2)
        prompt = self.prompt(sequence.question)
        return torch.cat([self._head, seen, *([self.model.embed_tokens(prompt)] if prompt else [])])

    # -- keys ----------------------------------------------------------------------------------

    @torch.inference_mode()
    def keys(
        self, heads: Mapping[int, Sequence[int]], context: int = 16, batch: int = 64
    ) -> dict[int, torch.Tensor]:
        """Keys, not rotated, of all grids: ``[kv_heads, grids, tokens, head_dim]`` by layer.

        Windows of twice ``context`` grids; each grid's keys are from a window in which at least
        ``context`` grids (or all that there are) come before it.
        """
        count = len(self.features)
        length = min(2 * context, count)
        starts = list(range(0, count - length + 1, context))
        if starts[-1] + length < count:
            starts.append(count - length)
        positions = self.positions(Look(range(length)))
        found: dict[int, torch.Tensor] = {}
        done = 0
        for at in range(0, len(starts), batch):
            some = starts[at : at + batch]
            seen = torch.stack([self.features[s : s + length] for s in some]).flatten(1, 3)
            head = self._head.expand(len(some), -1, -1)
            hidden = torch.cat([head, seen], dim=1)
            readout = Readout(keys=heads)
            attention = PaddedAttention(self.model, len(some), hidden.shape[1], readout=readout)
            self.model.decode(
                hidden.flatten(0, 1),
                positions.repeat(1, len(some)).to(hidden.device),
                attention,
                self.model.functions,
            )
            for layer in heads:
                keys = readout.keys(layer).unflatten(1, (len(some), -1))[:, :, len(self._head[:]) :]
                keys = keys.unflatten(
                    2, (length, self._cell)
                )  # [kv_heads, windows, grids, tokens, d]
                if layer not in found:
                    found[layer] = keys.new_empty(len(keys), count, self._cell, keys.shape[-1])
                reached = done
                for window, start in enumerate(some):
                    found[layer][:, reached : start + length] = keys[:, window, reached - start :]
                    reached = start + length
            done = some[-1] + length
        return found

    # -- questions -----------------------------------------------------------------------------

    @torch.inference_mode()
    def queries(
        self, sequences: Sequence[Look], heads: Mapping[int, Sequence[int]]
    ) -> list[dict[int, torch.Tensor]]:
        """Queries, not rotated, of each question's prompt: ``[heads, prompt, head_dim]`` by layer.

        The last is where the answer begins; `words` says where the question's own words are.
        """
        found: list[dict[int, torch.Tensor]] = [{} for _ in sequences]
        for batch in self._batches(sequences):
            readout = Readout(queries=heads)
            self._first_pass([sequences[number] for number in batch], readout=readout)
            for layer in heads:
                read = readout.queries(layer).unflatten(1, (len(batch), -1))
                for row, number in enumerate(batch):
                    count = len(self.prompt(sequences[number].question))
                    found[number][layer] = read[:, row, -count:].clone()
        return found

    def words(self, question: str) -> slice:
        """Where a question's own words stand in its prompt."""
        return self.chat.words(question)

    @torch.inference_mode()
    def answers(self, sequences: Sequence[Look], max_new_tokens: int = 24) -> list[str]:
        """What the model says to each, greedily."""
        found = [""] * len(sequences)
        for batch in self._batches(sequences, max_new_tokens):
            some = [sequences[number] for number in batch]
            hidden, positions, attention = self._first_pass(some, room=max_new_tokens)
            said: list[list[int]] = [[] for _ in some]
            alive = torch.ones(len(some), dtype=torch.bool, device=hidden.device)
            for _ in range(max_new_tokens):
                token = self.model.logits(hidden).argmax(-1)
                alive &= ~torch.isin(token, self._ends)
                if not alive.any():
                    break
                for row, (one, there) in enumerate(
                    zip(token.tolist(), alive.tolist(), strict=True)
                ):
                    if there:
                        said[row].append(one)
                positions = positions + 1
                hidden = self.model.decode(
                    self.model.embed(token), positions, attention, self.model.functions
                )
            for number, ids in zip(batch, said, strict=True):
                found[number] = self.chat.decode(ids).strip()
        return found

    def _batches(self, sequences: Sequence[Look], room: int = 0) -> Iterator[list[int]]:
        """Numbers of sequences to be run together: of like lengths, as many as fit."""
        lengths = {
            number: len(self.chat.head) + len(one.grids) * self._cell
            + len(self.prompt(one.question)) + room
            for number, one in enumerate(sequences)
        }  # fmt: skip
        most = MAX_SCORES if self.features.is_cuda else MAX_SCORES_ON_CPU
        some: list[int] = []
        for number in sorted(lengths, key=lengths.__getitem__):
            size = lengths[number]
            if some and ((len(some) + 1) * size * size > most or len(some) == 256):
                yield some
                some = []
            some.append(number)
        if some:
            yield some

    def _first_pass(
        self, some: Sequence[Look], room: int = 0, readout: Readout | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, PaddedAttention]:
        """Hidden states ``[batch, hidden]`` and positions ``[3, batch]`` of the last tokens."""
        rows = [self.embeddings(one) for one in some]
        places = [self.positions(one) for one in some]
        length = max(map(len, rows))
        pads = [length - len(row) for row in rows]
        hidden = torch.stack(
            [F.pad(row, (0, 0, pad, 0)) for row, pad in zip(rows, pads, strict=True)]
        )
        positions = torch.stack(
            [F.pad(place, (pad, 0)) for place, pad in zip(places, pads, strict=True)], dim=1
        ).to(hidden.device)  # [3, batch, length]
        attention = PaddedAttention(
            self.model, len(some), length, torch.tensor(pads, device=hidden.device), room, readout
        )
        done = self.model.decode(
            hidden.flatten(0, 1), positions.flatten(1), attention, self.model.functions
        )
        return done.view(hidden.shape)[:, -1], positions[:, :, -1], attention


def every_head(model: StreamModel) -> tuple[dict[int, range], dict[int, range]]:
    """All query heads and all KV heads, by layer."""
    text: Any = model.config.text_config
    layers = range(text.num_hidden_layers)
    return (
        {layer: range(text.num_attention_heads) for layer in layers},
        {layer: range(text.num_key_value_heads) for layer in layers},
    )


@torch.inference_mode()
def encode(model: StreamModel, processor: StreamProcessor, pictures: Iterable[Any]) -> torch.Tensor:
    """Vision features ``[grids, rows, columns, hidden]``.

    Args:
        pictures: arrays ``[grids, frames, height, width, 3]``, one after the other.
    """
    frames = processor.frame_processor(model.device, model.dtype)
    merge = processor.image_settings.merge_size
    found = []
    for some in pictures:
        patches = frames(list(some.reshape(-1, *some.shape[2:])))
        grids, rows, columns = patches.grid_thw
        features = model.encode_frames(patches)
        found.append(features.unflatten(0, (grids, rows // merge, columns // merge)))
    return torch.cat(found)

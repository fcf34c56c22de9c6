"""One pass of a question's text through the model as a function of tensors of fixed shape.

Everything that differs from call to call (the tokens, their positions, how long the memory is and
where it lies) is read from tensors on the device, and nothing is read back. So a CUDA graph
captured once serves a memory of any length.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn import functional

from .forks import Part
from .layers import after_attention
from .model import StreamQwenModel
from .packed import Linear, PackedLayer, project
from .positions import rotate

# Sink, kept grids, and the ring in two slices, each seen at a distance of its own: four occur, with
# every policy and layout.
MOST_PARTS = 6


class Reading:
    """What the steps read and write: a memory, which parts of it, and the question's tail.

    Args:
        memory: ``[layers, 2, kv_heads, slots, head_dim]``.
        tail: ``[layers, 2, kv_heads, room + 1, head_dim]``; padding is written to the last slot.

    Attributes:
        starts, lengths: ``[MOST_PARTS]``, slots of the memory; a part that is not there has
            length 0.
        turns: cos and sin, ``[2, MOST_PARTS, head_dim]``, by which a query is rotated further to
            see each part.
    """

    def __init__(self, memory: torch.Tensor, tail: torch.Tensor):
        self.memory, self.tail = memory, tail
        size, device = memory.shape[-1], memory.device
        self.slices = torch.zeros(2, MOST_PARTS, dtype=torch.long, device=device)
        self.starts, self.lengths = self.slices
        self.turns = torch.empty(2, MOST_PARTS, size, device=device)
        self.turns[0], self.turns[1] = 1.0, 0.0
        self._turned = False

    @property
    def room(self) -> int:
        """Tokens that the tail holds."""
        return self.tail.shape[3] - 1

    def load(self, parts: Sequence[Part]) -> None:
        """Read these parts from now on; ``MOST_PARTS`` of them at most."""
        absent = [0] * (MOST_PARTS - len(parts))
        starts = [part.slots.start for part in parts]
        lengths = [part.slots.stop - part.slots.start for part in parts]
        # As in `StepInputs.load`.
        self.slices.copy_(torch.tensor([starts + absent, lengths + absent]), non_blocking=True)
        if self._turned:
            self.turns[0], self.turns[1] = 1.0, 0.0
        turned = [number for number, part in enumerate(parts) if part.turn is not None]
        for number in turned:
            self.turns[0, number], self.turns[1, number] = parts[number].turn  # type: ignore[misc]
        self._turned = bool(turned)


class StepInputs:
    """What one step is given, in one tensor on the device, so that one copy brings it there.

    Attributes:
        ids: ``[n]``.
        positions: ``[3, 1, n]``.
        slots: ``[n]``, where in the tail each token's key and value go.
        begins: ``[n]``, see `load`.
        scalars: ``[4]``: how many tokens are real, the others being padding; how many are shared;
            how many are in the tail before; whose logits are wanted.
        last: the last of these.
    """

    def __init__(self, size: int, reading: Reading):
        self.size, self._padding_slot = size, reading.room
        self._all = torch.zeros(6 * size + 4, dtype=torch.long, device=reading.memory.device)
        self.ids, positions, self.slots, self.begins, self.scalars = self._all.split(
            [size, 3 * size, size, size, 4]
        )
        self.positions = positions.view(3, 1, size)
        self.last = self.scalars[3:]
        self.slots.fill_(self._padding_slot)
        self._host = torch.zeros(len(self._all), dtype=torch.long)
        self._given = self._host.numpy()

    def load(
        self,
        ids: Sequence[int],
        positions: torch.Tensor,
        past: int,
        shared: int,
        begins: Sequence[int] = (),
    ) -> None:
        """Give the step ``ids``, at ``positions [3, len(ids)]``, behind ``past`` others.

        Each token sees what is in the memory and in the tail; the first ``shared`` of ``ids``, and
        those from its entry in ``begins`` on, up to itself. Asked for are the logits of the last
        shared one.
        """
        count = len(ids)
        given, scalars = self._given[:-4].reshape(6, self.size), self._given[-4:]
        given[0, :count] = ids
        given[1:4, :count] = positions
        given[4, :count] = range(past, past + count)
        given[4, count:] = self._padding_slot
        given[5, :count] = begins or 0
        scalars[:] = count, shared, past, max(shared - 1, 0)
        # Not pinned: it is copied aside at once, though nothing waits for the device.
        self._all.copy_(self._host, non_blocking=True)


# queries [heads, n, head_dim], one layer's memory and tail, what is read, what the step is given,
# scaling -> [n, heads, head_dim]
StaticAttention = Callable[
    [torch.Tensor, torch.Tensor, torch.Tensor, Reading, StepInputs, float], torch.Tensor
]


def attend_step(
    queries: torch.Tensor,
    memory: torch.Tensor,
    tail: torch.Tensor,
    reading: Reading,
    inputs: StepInputs,
    scaling: float,
) -> torch.Tensor:
    """What the kernel in `kernels` computes, in plain torch, reading the lengths back.

    Args:
        queries: ``[heads, n, head_dim]``, as the tail is seen.
        memory, tail: one layer's, ``[2, kv_heads, slots, head_dim]``.

    Returns:
        ``[n, heads, head_dim]``; zero for padding.
    """
    count, shared, past, _ = inputs.scalars.tolist()
    heads, _, size = queries.shape
    kv_heads = memory.shape[1]
    queries = queries[:, :count].unflatten(0, (kv_heads, -1))  # [kv_heads, group, n, head_dim]
    seen = [
        (rotate(queries, cos, sin), memory[:, :, start : start + length])
        for cos, sin, start, length in zip(
            *reading.turns, reading.starts.tolist(), reading.lengths.tolist(), strict=True
        )
        if length
    ]
    seen.append((queries, tail[:, :, : past + count]))
    scores = [
        query.float() @ keys.float()[:, None].transpose(-1, -2) * scaling
        for query, (keys, _) in seen
    ]
    token, key = torch.arange(count)[:, None], torch.arange(-past, count)
    allowed = (key <= token) & ((key < shared) | (key >= inputs.begins[:count, None].cpu()))
    allowed |= key < 0
    scores[-1] = scores[-1].masked_fill(~allowed.to(memory.device), -torch.inf)
    weights = torch.cat(scores, dim=-1).softmax(-1)
    values = torch.cat([values for _, (_, values) in seen], dim=1).float()
    out = queries.new_zeros(inputs.size, heads, size)
    out[:count] = (weights @ values[:, None]).flatten(0, 1).transpose(0, 1)
    return out.to(memory.dtype)


# see `place_step`
Place = Callable[
    [torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor
]


def place_step(
    projected: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    slots: torch.Tensor,
    tail: torch.Tensor,
) -> torch.Tensor:
    """Rotate queries and keys, and write keys and values to the tail.

    Args:
        projected: ``[n, (heads + 2 * kv_heads) * head_dim]``: queries, keys, values.
        cos, sin: ``[1, n, head_dim]``.
        slots: ``[n]``.
        tail: one layer's, ``[2, kv_heads, slots, head_dim]``.

    Returns:
        Queries ``[heads, n, head_dim]``.
    """
    _, kv_heads, _, size = tail.shape
    rows = projected.unflatten(-1, (-1, size)).transpose(0, 1)
    query, key, value = rows.split([len(rows) - 2 * kv_heads, kv_heads, kv_heads])
    tail.index_copy_(2, slots, torch.stack([rotate(key, cos, sin), value]))
    return rotate(query, cos, sin)


class StaticStep:
    """The language model over ``n`` tokens, of which the last may be padding.

    The library's own modules in the order of ``Qwen2_5_VLDecoderLayer.forward``, whose attention is
    replaced.

    Args:
        compiled: fuse what lies between the matrix products by ``torch.compile``.
        linear: takes the layers' matrix products.
        place: rotates, and writes to the tail.
    """

    def __init__(
        self,
        model: StreamQwenModel,
        reading: Reading,
        attention: StaticAttention,
        compiled: bool,
        linear: Linear = functional.linear,
        place: Place = place_step,
    ):
        self._model, self._reading, self._attention = model, reading, attention
        self.compiled, self._linear, self._place = compiled, linear, place
        self._after: Callable[..., Any] = after_attention
        if compiled:
            self._after = torch.compile(after_attention, fullgraph=True)
        self._layers = [
            (layer, PackedLayer.of(layer)) for layer in model.model.language_model.layers
        ]

    @torch.inference_mode()
    def __call__(self, inputs: StepInputs) -> tuple[torch.Tensor, torch.Tensor]:
        """Write the tokens' keys and values to the tail; no other trace.

        Returns:
            Hidden states after the last norm, ``[n, hidden]``, and the logits ``[vocabulary]`` of
            the token that was asked for, in float32.
        """
        text, reading = self._model.model.language_model, self._reading
        hidden = text.embed_tokens(inputs.ids)
        cos, sin = self._model.rotary(hidden, inputs.positions)
        normed = text.layers[0].input_layernorm(hidden)
        following = [*(layer.input_layernorm for layer in text.layers[1:]), text.norm]
        for number, ((layer, packed), norm) in enumerate(zip(self._layers, following, strict=True)):
            tail = reading.tail[number]
            projected = project(layer.self_attn, packed, normed, self._linear)
            queries = self._place(projected, cos, sin, inputs.slots, tail)
            attended = self._attention(
                queries, reading.memory[number], tail, reading, inputs, layer.self_attn.scaling
            )
            hidden, normed = self._after(layer, packed, norm, hidden, attended, self._linear)
        return normed, self._model.logits(normed.index_select(0, inputs.last))[0]

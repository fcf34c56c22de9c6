"""Weights that read the same input, laid end to end, so that one product serves them all.

A product with few rows lasts as long as its weights take to come, and a small matrix keeps too
little of a GPU busy to fetch it fast; on a CPU one call costs less than three. The library's
parameters become slices of the joined ones: nothing is held twice, and whoever calls the modules,
loads or saves them notices nothing. That weights are joined shows in where they lie and nowhere
else, so nothing has to be kept in step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch.nn import functional


class PackedLayer(NamedTuple):
    """The joined weights of a decoder layer, as views.

    Attributes:
        qkv: ``[(heads + 2 * kv_heads) * head_dim, hidden]``, and ``qkv_bias`` beside it.
        gate_up: ``[2 * intermediate, hidden]``.
    """

    qkv: torch.Tensor
    qkv_bias: torch.Tensor
    gate_up: torch.Tensor

    @classmethod
    def of(cls, layer: Any) -> PackedLayer | None:
        """Those of a layer; None if they do not lie end to end (any more)."""
        views = [joined(group) for group in _groups(layer)]
        there = [view for view in views if view is not None]
        return cls(*there) if len(there) == len(cls._fields) else None

    @classmethod
    def kept(cls, layer: Any) -> PackedLayer | None:
        """As `of`, but found out again only where weights were moved or replaced since."""
        place = weights_place(layer)
        kept = _KEPT.get(layer)
        if kept is None or kept[0] != place:
            kept = _KEPT[layer] = place, cls.of(layer)
        return kept[1]


# The joined weights of each layer, and where its weights lay then.
_KEPT: WeakKeyDictionary[torch.nn.Module, tuple[Any, PackedLayer | None]] = WeakKeyDictionary()


def pack(model: Any) -> None:
    """Lay the language model's weights end to end, where they do not lie so already.

    To be called again whenever the model was moved or cast, which gives every parameter a place of
    its own. Takes one layer's weights of memory meanwhile.
    """
    # Parameters are for training too, whatever mode the caller is in.
    with torch.inference_mode(False), torch.no_grad():
        for layer in model.model.language_model.layers:
            changed = False
            for group in _groups(layer):
                if joined(group) is None and _alike(group):
                    changed = True
                    whole = torch.cat([weight.data for weight in group])
                    slices = whole.split([len(weight) for weight in group])
                    for weight, rows in zip(group, slices, strict=True):
                        weight.data = rows
            if changed and layer.mlp.up_proj.weight.is_cuda:
                # The allocator cannot put what two weights left together for the next layer's.
                torch.cuda.empty_cache()


def weights_place(layer: Any) -> tuple[int, ...]:
    """Where a layer's weights to join lie: elsewhere once they were moved or replaced."""
    modules = _modules(layer)
    if any(type(module) is not torch.nn.Linear for module in modules):
        return ()
    # Not by attributes, which a module looks up slowly: it is asked for each layer of each token.
    weights = [weight for module in modules for weight in module._parameters.values()]
    return tuple([weight.data_ptr() for weight in weights if weight is not None])


def joined(weights: Sequence[torch.Tensor]) -> torch.Tensor | None:
    """One view of weights that lie end to end, along their first dimension; None if they do not."""
    first = weights[0]
    storage, offset = first.untyped_storage().data_ptr(), first.storage_offset()
    for weight in weights:
        there = weight.untyped_storage().data_ptr() == storage and storage != 0
        if not (there and weight.storage_offset() == offset and weight.is_contiguous()):
            return None
        offset += weight.numel()
    if not _alike(weights):
        return None
    size = (sum(map(len, weights)), *first.shape[1:])
    return first.data.as_strided(size, first.stride(), first.storage_offset())


# input [n, in], weight [out, in], bias [out] or None -> [n, out], as `torch.nn.functional.linear`
Linear = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]


def project(
    attention: Any, packed: PackedLayer | None, hidden: torch.Tensor, linear: Linear
) -> torch.Tensor:
    """Queries, keys and values side by side, ``[n, (heads + 2 * kv_heads) * head_dim]``."""
    if packed is not None:
        return linear(hidden, packed.qkv, packed.qkv_bias)
    projections = attention.q_proj, attention.k_proj, attention.v_proj
    return torch.cat([projection(hidden) for projection in projections], dim=-1)


def product(module: Any, hidden: torch.Tensor, linear: Linear) -> torch.Tensor:
    """``module(hidden)`` by another ``linear``, unless the module is more than that."""
    if type(module) is not torch.nn.Linear:
        return module(hidden)
    return linear(hidden, module.weight, module.bias)


def feed_forward(
    mlp: Any,
    hidden: torch.Tensor,
    packed: PackedLayer | None,
    linear: Linear = functional.linear,
) -> torch.Tensor:
    """``mlp(hidden)``, by the joined weights where there are any."""
    if packed is None:
        return mlp(hidden)
    gate, up = linear(hidden, packed.gate_up, None).chunk(2, dim=-1)
    return product(mlp.down_proj, mlp.act_fn(gate) * up, linear)


def _modules(layer: Any) -> list[Any]:
    """Those of queries, keys, values, gate and up."""
    attention, mlp = layer.self_attn._modules, layer.mlp._modules
    projections = [attention["q_proj"], attention["k_proj"], attention["v_proj"]]
    return [*projections, mlp["gate_proj"], mlp["up_proj"]]


def _groups(layer: Any) -> list[list[torch.Tensor]]:
    """The weights to join, as in `PackedLayer`; none where an adapter or the like stands in."""
    modules = _modules(layer)
    if any(type(module) is not torch.nn.Linear for module in modules):
        return []
    projections, widenings = modules[:3], modules[3:]
    return [
        [projection.weight for projection in projections],
        [projection.bias for projection in projections],
        [widening.weight for widening in widenings],
    ]


def _alike(weights: Sequence[torch.Tensor]) -> bool:
    def kind(weight: torch.Tensor) -> tuple[Any, ...]:
        return weight.dtype, weight.device, weight.shape[1:]

    return all(kind(weight) == kind(weights[0]) for weight in weights)

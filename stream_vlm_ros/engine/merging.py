"""Attention over parts of the memory merged into attention over them all."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import torch

from .errors import in_words

log = logging.getLogger(__name__)

Seen = tuple[torch.Tensor, torch.Tensor]  # attention over a part [..., d], its log-sum-exp [...]

Kind = tuple[torch.device, torch.dtype, int]

# Of parts [kv_heads, h / kv_heads, n, d] with their log-sum-exp, into an output and a log-sum-exp.
MergeKernel = Callable[[Sequence[Seen], torch.Tensor, torch.Tensor], None]


def _triton_kernel() -> MergeKernel:
    from .merging_kernel import merge_into

    return merge_into


def merged_plainly(parts: Sequence[Seen]) -> torch.Tensor:
    """The output over all parts, by tensor operations."""
    first = parts[0][0]
    weights = torch.stack([lse for _, lse in parts]).softmax(0).unsqueeze(-1)
    out = first * weights[0]  # in float32, as the weights are
    for (part, _), weight in zip(parts[1:], weights[1:], strict=True):
        out.addcmul_(part, weight)
    return out.to(first.dtype)


class PartMerger:
    """`merged_plainly` for a chunk on a GPU as one kernel, which reads each part once.

    A chunk sees its memory in up to a dozen parts, each as large as its queries: tensor operations
    read and write sums in float32 for every one. The first result of each kind (device, number
    format, head size) is held against theirs. Where it differs, or there is no kernel, the log says
    so once and `merge` gives None for that kind from then on.

    Args:
        load: gives the kernel, or raises.
    """

    MOST = 8  # parts at once

    def __init__(self, load: Callable[[], MergeKernel] = _triton_kernel):
        self._load = load
        self._kernel: MergeKernel | None = None
        self._checked: set[Kind] = set()
        self.refused: dict[Kind, str] = {}  # why the kernel is not used

    def merge(self, parts: Sequence[Seen]) -> torch.Tensor | None:
        """The output over all parts, ``[1, kv_heads, h / kv_heads, n, d]``, or None.

        Args:
            parts: outputs of that shape and their log-sum-exp.
        """
        first = parts[0][0]
        kind = first.device, first.dtype, first.shape[-1]
        whole_size = kind[2] & (kind[2] - 1) == 0  # Triton's blocks are powers of two
        regular = all(out.stride(-1) == 1 and lse.is_contiguous() for out, lse in parts)
        if kind in self.refused or len(first) != 1 or not regular or not whole_size:
            return None
        try:
            if self._kernel is None:
                self._kernel = self._load()
            merged = self._run(self._kernel, parts)
        except torch.OutOfMemoryError:
            raise
        except Exception as fault:  # also what a broken installation of Triton raises
            self._refuse(kind, in_words(fault))
            return None
        if kind not in self._checked:
            self._checked.add(kind)
            expected = merged_plainly(parts).float()
            off = float((merged.float() - expected).norm() / expected.norm().clamp(min=1e-30))
            if not off <= 4 * torch.finfo(first.dtype).eps:  # also where it is NaN
                self._refuse(kind, f"its result differs by {off:.3g} of its size")
                return None
        return merged

    def _run(self, kernel: MergeKernel, parts: Sequence[Seen]) -> torch.Tensor:
        waiting = list(parts)
        while True:
            now, waiting = waiting[: self.MOST], waiting[self.MOST :]
            first, lse = now[0]
            _, kv_heads, groups, length, size = first.shape
            out = first.new_empty(length, kv_heads, groups, size).permute(1, 2, 0, 3)
            merged_lse = torch.empty_like(lse[0])
            kernel([(out[0], lse[0]) for out, lse in now], out, merged_lse)
            if not waiting:
                return out.unsqueeze(0)
            waiting.insert(0, (out.unsqueeze(0), merged_lse.unsqueeze(0)))

    def _refuse(self, kind: Kind, why: str) -> None:
        self.refused[kind] = why
        log.warning(
            "parts of the memory are merged without a kernel of their own (%s, %s, heads of %d): "
            "%s, which takes longer",
            *kind,
            why,
        )

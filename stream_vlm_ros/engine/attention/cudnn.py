# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""cuDNN's attention for the many queries of a prefill: when to use it, and when not.

On Hopper it reaches 1.6 times the speed of flash attention (529 against 328 TFLOP/s with a chunk of
5,382 tokens over 150,000). But it builds a plan for each shape that it meets, which takes 40 to
400 ms, and PyTorch keeps every plan as long as the thread lives. So a past is handed to it in large
blocks and then in small ones, of which a memory has few counts, and the rest stays with flash
attention.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence

import torch

from .base import AttnState
from .verified import Verified, relative_difference

log = logging.getLogger(__name__)

# Of (query, key, value, scaling, causal): output [b, h, n, d] and log-sum-exp [b, h, n].
Kernel = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, float, bool], AttnState]


def cudnn_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float, causal: bool
) -> AttnState:
    """Attention by cuDNN."""
    found = torch.ops.aten._scaled_dot_product_cudnn_attention(
        query, key, value, None, True, 0.0, causal, False, scale=scaling
    )
    out, lse = found[0], found[1]
    return out, lse.reshape(query.shape[:3])  # [b, h, n, 1] since torch 2.7, [b, h, n] before


def runs_fast_on(device: torch.device) -> bool:
    """Hopper and the data centre's Blackwell: where PyTorch prefers cuDNN, too."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device)[0] in (9, 10)


class _Plans(threading.local):
    """The shapes that a thread has met: its plans end with it."""

    def __init__(self) -> None:
        self.shapes: set[tuple[object, ...]] = set()
        self.full = False  # and that was said


class CudnnPrefill:
    """Attention of many queries by the faster kernel, as long as that one works.

    Args:
        kernel: the faster one.
        fast_on: the devices where it is.
        blocks: tokens of a past are handed to it in multiples of the first, then of the next.
        min_rows: queries a head from which on it pays; below, flash attention does as well.
        max_plans: shapes that it may meet in a thread.
    """

    def __init__(
        self,
        kernel: Kernel = cudnn_attention,
        fast_on: Callable[[torch.device], bool] = runs_fast_on,
        blocks: Sequence[int] = (8192, 1024),
        min_rows: int = 4096,
        max_plans: int = 128,
    ):
        self._kernel, self._fast_on = kernel, fast_on
        self._blocks, self.min_rows, self._max_plans = blocks, min_rows, max_plans
        self._plans = _Plans()
        self._fast: dict[torch.device, bool] = {}
        self.verified: Verified[AttnState] = Verified(
            "cuDNN's attention is not used, and chunks take longer to encode"
        )

    def pieces(self, query: torch.Tensor, key: torch.Tensor) -> list[int]:
        """How many tokens of ``key [b, h, m, d]``, from the front, to give `attend` at a time."""
        found, left = [], key.shape[2]
        for block in self._blocks:
            whole = left // block * block
            if whole and self.takes(query, key[:, :, :whole]):
                found.append(whole)
                left -= whole
        return found

    def takes(self, query: torch.Tensor, key: torch.Tensor, causal: bool = False) -> bool:
        """Whether `attend` should be given a call of this shape."""
        if query.shape[2] < self.min_rows:
            return False
        if query.device not in self._fast:
            self._fast[query.device] = self._fast_on(query.device)
        kind = kind_of(query, causal)
        if not self._fast[query.device] or kind in self.verified.refused:
            return False
        plans = self._plans
        plan = (kind, query.shape, query.stride(), key.shape, key.stride())
        if plan not in plans.shapes:
            if len(plans.shapes) >= self._max_plans:
                if not plans.full:
                    plans.full = True
                    log.warning(
                        "chunks of %d other shapes so far: those that come now are encoded without "
                        "cuDNN's attention, which takes longer",
                        self._max_plans,
                    )
                return False
            plans.shapes.add(plan)
        return True

    def attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scaling: float,
        other: Kernel,
        causal: bool = False,
    ) -> AttnState:
        """Attention as `takes` or `pieces` allowed it, by ``other`` where this kernel fails."""
        given = (query, key, value, scaling, causal)
        return self.verified.run(
            kind_of(query, causal), lambda: self._kernel(*given), lambda: other(*given), _differ
        )


def kind_of(query: torch.Tensor, causal: bool) -> tuple[object, ...]:
    """What is alike in calls of a kernel that has proved itself in one of them."""
    what = f"{'causal' if causal else 'not causal'}, heads of {query.shape[3]}"
    return query.device, query.dtype, what


def _differ(found: AttnState, expected: AttnState) -> str | None:
    """What tells two results apart by more than rounding to the output's format."""
    (out, lse), (other_out, other_lse) = found, expected
    # Each rounds once to that format, and P before P V.
    off = relative_difference(out, other_out, 4 * torch.finfo(out.dtype).eps)
    if off is None:
        return None
    if off:
        return f"{off}, compared with flash attention"
    largest = float((lse - other_lse).abs().max())
    if not largest <= 0.02:
        return f"its log-sum-exp differs by up to {largest:.3g} from flash attention's"
    return ""


CUDNN_PREFILL = CudnnPrefill()

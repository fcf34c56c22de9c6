"""cuDNN's attention for the many queries of a chunk: when to use it, and when not.

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

log = logging.getLogger(__name__)

Attended = tuple[torch.Tensor, torch.Tensor]
# Of (query, key, value, scaling, causal): output [b, h, n, d] and log-sum-exp [b, h, n].
Kernel = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, float, bool], Attended]


def cudnn_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float, causal: bool
) -> Attended:
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


class LongPast:
    """Attention of many queries by the faster kernel, as long as that one works.

    The first result of each kind of call (device, number format, head size, causal or not) is held
    against the other kernel's. Where it differs, or the kernel raises, the other one is used from
    then on and the log says why, once.

    Args:
        kernel: the faster one.
        fast_on: the devices where it is.
        blocks: tokens of a past are handed to it in multiples of the first, then of the next.
        least_rows: queries a head from which on it pays; below, flash attention does as well.
        most_plans: shapes that it may meet in a thread.
    """

    def __init__(
        self,
        kernel: Kernel = cudnn_attention,
        fast_on: Callable[[torch.device], bool] = runs_fast_on,
        blocks: Sequence[int] = (8192, 1024),
        least_rows: int = 4096,
        most_plans: int = 128,
    ):
        self._kernel, self._fast_on = kernel, fast_on
        self._blocks, self.least_rows, self._most_plans = blocks, least_rows, most_plans
        self._plans = _Plans()
        self._works: dict[tuple[object, ...], bool] = {}
        self._checked: set[tuple[object, ...]] = set()
        self.refused: list[str] = []  # why the kernel is not used, one a kind of call

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
        if query.shape[2] < self.least_rows:
            return False
        kind = _kind(query, causal)
        if kind not in self._works:
            self._works[kind] = self._fast_on(query.device)
        if not self._works[kind]:
            return False
        plans = self._plans
        plan = (kind, query.shape, query.stride(), key.shape, key.stride())
        if plan not in plans.shapes:
            if len(plans.shapes) >= self._most_plans:
                if not plans.full:
                    plans.full = True
                    log.warning(
                        "chunks of %d other shapes so far: those that come now are encoded without "
                        "cuDNN's attention, which takes longer",
                        self._most_plans,
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
    ) -> Attended:
        """Attention as `takes` or `pieces` allowed it, by ``other`` where this kernel fails."""
        kind = _kind(query, causal)
        first = kind not in self._checked
        try:
            found = self._kernel(query, key, value, scaling, causal)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as fault:
            instead = other(query, key, value, scaling, causal)
            return self._refuse(kind, f"it failed: {fault}", instead)
        if first:
            self._checked.add(kind)
            expected = other(query, key, value, scaling, causal)
            if off := _difference(found, expected):
                return self._refuse(kind, off, expected)
        return found

    def _refuse(self, kind: tuple[object, ...], why: str, instead: Attended) -> Attended:
        self._works[kind] = False
        device, dtype, size, causal = kind
        what = f"{device}, {dtype}, heads of {size}{', causal' if causal else ''}"
        self.refused.append(f"{what}: {why}")
        log.warning(
            "cuDNN's attention is not used (%s): chunks take longer to encode", self.refused[-1]
        )
        return instead


def _kind(query: torch.Tensor, causal: bool) -> tuple[object, ...]:
    return query.device, query.dtype, query.shape[3], causal


def _difference(found: Attended, expected: Attended) -> str | None:
    """What tells two results apart by more than rounding to the output's format; None: nothing."""
    (out, lse), (other_out, other_lse) = found, expected
    scale = other_out.float().norm()
    off = float((out.float() - other_out.float()).norm() / scale.clamp(min=1e-30))
    most = 4 * torch.finfo(out.dtype).eps  # each rounds once to that format, and P before P V
    if not off <= most:  # also where it is NaN
        return f"its output differs by {off:.3g} of its size from flash attention's"
    off = float((lse - other_lse).abs().max())
    if not off <= 0.02:
        return f"its log-sum-exp differs by up to {off:.3g} from flash attention's"
    return None

"""cuDNN's attention for many queries over a long past: when to use it, and when not.

On Hopper it reaches 1.6 times the speed of flash attention there (529 against 328 TFLOP/s with a
chunk of 5,382 tokens over 150,000). But it builds a plan for each shape that it meets, which takes
40 to 400 ms, and PyTorch keeps every plan as long as the thread lives. So the past is handed to it
in whole blocks, of which a memory has few counts, and the rest stays with flash attention.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

import torch

log = logging.getLogger(__name__)

Attended = tuple[torch.Tensor, torch.Tensor]
# Of (query, key, value, scaling): output [b, h, n, d] and log-sum-exp [b, h, n].
Kernel = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, float], Attended]


def cudnn_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float
) -> Attended:
    """Attention without a mask by cuDNN."""
    found = torch.ops.aten._scaled_dot_product_cudnn_attention(
        query, key, value, None, True, 0.0, False, False, scale=scaling
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


class LongPast:
    """Attention over a long part of the memory by the faster kernel, as long as that one works.

    The first result of each kind of call (device, number format, head size) is held against the
    other kernel's. Where it differs, or the kernel raises, the other one is used from then on and
    the log says why, once.

    Args:
        kernel: the faster one.
        fast_on: the devices where it is.
        block: tokens of the part are handed to it in multiples of so many.
        least_rows: queries a head from which on it pays; below, flash attention does as well.
        most_plans: shapes that it may meet in a thread.
    """

    def __init__(
        self,
        kernel: Kernel = cudnn_attention,
        fast_on: Callable[[torch.device], bool] = runs_fast_on,
        block: int = 8192,
        least_rows: int = 4096,
        most_plans: int = 128,
    ):
        self._kernel, self._fast_on = kernel, fast_on
        self._block, self.least_rows, self._most_plans = block, least_rows, most_plans
        self._plans = _Plans()
        self._works: dict[tuple[object, ...], bool] = {}
        self._checked: set[tuple[object, ...]] = set()
        self.refused: list[str] = []  # why the kernel is not used, one a kind of call

    def tokens(self, query: torch.Tensor, key: torch.Tensor) -> int:
        """How many tokens of ``key [b, h, m, d]``, from the front, `attend` should be given."""
        whole = key.shape[2] // self._block * self._block
        if not whole or query.shape[2] < self.least_rows:
            return 0
        kind = _kind(query)
        if kind not in self._works:
            self._works[kind] = self._fast_on(query.device)
        if not self._works[kind]:
            return 0
        plan = (kind, query.shape, query.stride(), whole, key.stride())
        if plan not in self._plans.shapes:
            if len(self._plans.shapes) >= self._most_plans:
                return 0
            self._plans.shapes.add(plan)
        return whole

    def attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scaling: float,
        other: Kernel,
    ) -> Attended:
        """Attention over as many tokens as `tokens` said, by ``other`` where this kernel fails."""
        kind = _kind(query)
        first = kind not in self._checked
        try:
            found = self._kernel(query, key, value, scaling)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as fault:
            return self._refuse(kind, f"it failed: {fault}", other(query, key, value, scaling))
        if first:
            self._checked.add(kind)
            expected = other(query, key, value, scaling)
            if off := _difference(found, expected):
                return self._refuse(kind, off, expected)
        return found

    def _refuse(self, kind: tuple[object, ...], why: str, instead: Attended) -> Attended:
        self._works[kind] = False
        device, dtype, size = kind
        self.refused.append(f"{device}, {dtype}, heads of {size}: {why}")
        log.warning(
            "cuDNN's attention is not used (%s): chunks take longer to encode", self.refused[-1]
        )
        return instead


def _kind(query: torch.Tensor) -> tuple[object, ...]:
    return query.device, query.dtype, query.shape[3]


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

# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Not-a-number stops here: neither kept in the memory nor turned into an answer."""

from __future__ import annotations

import torch

from stream_vlm_ros.errors import NotFiniteError


def check_finite(what: str, *values: torch.Tensor) -> None:
    """Raise NotFiniteError unless all ``values``, none of them empty, are finite.

    Waits once for the device.
    """
    # Minimum and maximum are NaN where there is any: they suffice, in a tenth of isfinite()'s time.
    ends = [end.float() for one in values for end in torch.aminmax(one)]
    if not torch.stack(ends).isfinite().all():
        raise not_finite(what)


def not_finite(what: str) -> NotFiniteError:
    """The error for ``what``, and what to do about it."""
    return NotFiniteError(
        f"{what} came out as infinite or not a number: the model overflows (float16 does beyond "
        "65,504), or its weights are damaged. Load it with dtype bfloat16, which has the range of "
        "float32; if that does not help, copy the checkpoint again"
    )

# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""An importance score of a user's own, by its name: ``MODULE:NAME``."""

from __future__ import annotations

import difflib
import importlib
import traceback
from types import ModuleType
from typing import Any

import numpy as np
import torch

from stream_vlm_ros.config import check_score_name
from stream_vlm_ros.engine.cache.eviction import ImportanceScore
from stream_vlm_ros.errors import InvalidParameterError, cut, in_words

_TRIED = 3  # grids that a score is tried out on


def score_by_name(name: str, hidden: int) -> ImportanceScore:
    """The score that ``MODULE:NAME`` names: an object, or what makes one without arguments.

    It is tried out on noise first: what it says wrong there is told now, and not in the stream.

    Args:
        hidden: of the model, the last size of the features that a score describes.

    Raises InvalidParameterError: there is none of that name, or it is no importance score.
    """
    check_score_name(name)
    module_name, _, attribute = name.partition(":")
    module = _module(name, module_name)
    found = getattr(module, attribute, None)
    if found is None:
        names = [one for one in vars(module) if not one.startswith("_")]
        near = difflib.get_close_matches(attribute, names, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise InvalidParameterError(f"{name}: the module has no {attribute!r}{hint}")
    _try_out(name, _made(name, found), hidden)
    return _made(name, found)


def _module(name: str, module_name: str) -> ModuleType:
    try:
        return importlib.import_module(module_name)
    except (Exception, SystemExit) as fault:  # a user's module raises anything
        missing = getattr(fault, "name", None) or ""
        if isinstance(fault, ModuleNotFoundError) and f"{module_name}.".startswith(f"{missing}."):
            raise InvalidParameterError(
                f"{name}: there is no module {missing!r}; its folder must be in PYTHONPATH"
            ) from None
        last = traceback.extract_tb(fault.__traceback__)[-1]
        raise InvalidParameterError(
            f"{name}: the module fails when it is imported: {in_words(fault)} "
            f"({last.filename}, line {last.lineno})"
        ) from fault


def _made(name: str, found: Any) -> Any:
    if not callable(found):
        return found
    try:
        return found()
    except Exception as fault:  # a user's code raises anything
        raise InvalidParameterError(
            f"{name} cannot be made without arguments: {in_words(fault)}"
        ) from fault


def _try_out(name: str, score: Any, hidden: int) -> None:
    """Raise InvalidParameterError unless ``score`` describes grids of noise, and ranks them."""
    for method in ("describe", "rank"):
        if not callable(getattr(score, method, None)):
            raise InvalidParameterError(
                f"{name} is no importance score: {type(score).__name__} has no {method}(); it "
                "needs describe(features) and rank(descriptors)"
            )
    noise = torch.randn(_TRIED, 2, 2, hidden, generator=torch.Generator().manual_seed(0))
    step = "describe()"
    try:
        rows = np.stack([np.asarray(score.describe(grid), dtype=float) for grid in noise])
        if rows.ndim != 2:
            raise ValueError(f"it gave an array of shape {rows.shape[1:]} instead of [d]")
        step = "rank()"
        ranked = np.asarray(score.rank(rows.astype(np.float32)), dtype=float)
        if ranked.shape != (_TRIED,) or np.isnan(ranked).any():
            raise ValueError(f"it gave {cut(repr(ranked))} for {_TRIED} grids")
    except Exception as fault:  # a user's code raises anything
        raise InvalidParameterError(
            f"{name}: tried out on {_TRIED} grids of noise, its {step} fails: {in_words(fault)}"
        ) from fault

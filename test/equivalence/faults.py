# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Faults to introduce on purpose into one of two equal trees, to see that the harness finds them.

Each changes what a public name does, so that they hold whatever lies behind it.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

from stream_vlm_ros.engine import KVCacheManager, VideoStreamingInference


def _instead(owner: type, name: str, wrapper: Callable[..., Any]) -> None:
    setattr(owner, name, functools.partialmethod(wrapper, getattr(owner, name)))


def choices_score_with_the_wrong_sign() -> None:
    def choose(engine: Any, stock: Any, question: Any, choices: Any, **options: Any) -> Any:
        _, metrics = stock(engine, question, choices, **options)
        scores = [-score for score in metrics["scores"]]
        best = max(range(len(scores)), key=scores.__getitem__)
        named = {name: metrics[name] for name in ("prompt_tokens", "cache_length", "time_spans")}
        spans = metrics["time_spans"]
        named |= {"oldest_timestamp": spans[0][0], "newest_timestamp": spans[-1][1]}
        return choices[best], {**named, "choice_index": best, "scores": scores}

    _instead(VideoStreamingInference, "ask_choice", choose)


def one_token_fewer_is_kept() -> None:
    def make(
        engine: Any, stock: Any, model: Any, processor: Any, device: Any, config: Any, **rest: Any
    ) -> None:
        if config is not None and config.max_cache_tokens > 1:
            config = dataclasses.replace(config, max_cache_tokens=config.max_cache_tokens - 1)
        stock(engine, model, processor, device, config, **rest)

    _instead(VideoStreamingInference, "__init__", make)


def restoring_does_nothing() -> None:
    KVCacheManager.restore = lambda manager, saved: None  # type: ignore[method-assign]


def a_kept_exchange_is_not_kept() -> None:
    def ask_stream(
        engine: Any,
        stock: Any,
        question: Any,
        max_new_tokens: int = 128,
        do_sample: bool = False,
        temperature: float = 1.0,
        update_state: bool = False,
        **rest: Any,
    ) -> Any:
        return stock(engine, question, max_new_tokens, do_sample, temperature, False, **rest)

    _instead(VideoStreamingInference, "ask_stream", ask_stream)


def stamps_are_a_tenth_late() -> None:
    def append(engine: Any, stock: Any, frames: Any, fps: Any = None, timestamps: Any = None):
        if timestamps is not None:
            timestamps = [stamp + 0.1 for stamp in timestamps]
        return stock(engine, frames, fps, timestamps)

    _instead(VideoStreamingInference, "append_video_chunk", append)


FAULTS = {
    fault.__name__: fault
    for fault in (
        choices_score_with_the_wrong_sign,
        one_token_fewer_is_kept,
        restoring_does_nothing,
        a_kept_exchange_is_not_kept,
        stamps_are_a_tenth_late,
    )
}


def introduce(name: str) -> None:
    FAULTS[name]()

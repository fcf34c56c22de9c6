# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""One tree's engine, driven by commands over a socket; see `same_as` for the whole.

The same script runs on either tree: what it imports of the package comes from ``PYTHONPATH``. It
uses public names only. Where one has moved between the trees, a shim below finds it in both:

    `text_path_option`  the constructor's option for how a question's text runs
    `next_position`     the position of the next text token, less the base of the keys' frame
    `LogitsTap`         the model's ``logits(hidden)``: from the last row a token is chosen

A shim that finds nothing raises: then it needs one more place to look, not a looser comparison.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import itertools
import operator
import os
import sys
from collections.abc import Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import stream_vlm_ros
from stream_vlm_ros.engine import (
    EvictionConfig,
    StreamProcessor,
    StreamQwenModel,
    VideoStreamingInference,
)

# What both trees must say of the memory. A tree may say more.
INFO = (
    "cache_seq_length",
    "cache_memory_bytes",
    "max_cache_tokens",
    "fork_slack_tokens",
    "sink_size",
    "window_size",
    "sampled_size",
    "important_size",
    "avg_chunk_tokens",
    "chunks",
    "frames",
    "grids_in_memory",
    "levels",
    "exchanges",
    "oldest_timestamp",
    "newest_timestamp",
    "time_spans",
    "eviction_stats",
)
EVICTOR = (
    "effective_sink_size",
    "effective_window_size",
    "first_chunk_recorded",
    "avg_chunk_tokens",
    "total_evictions",
    "total_tokens_evicted",
)
EVIDENCE = ("prompt_tokens", "cache_length", "oldest_timestamp", "newest_timestamp", "time_spans")
ANSWER = (*EVIDENCE, "answer_tokens", "finish_reason")
CHUNK = ("tokens", "evicted_tokens", "cache_length", "grid")


# -- what has other names in other trees ---------------------------------------------------------


class NoSuchName(Exception):
    """A shim knows no name that this tree has."""


def text_path_option() -> str:
    known = inspect.signature(VideoStreamingInference).parameters
    for name in ("question_path", "execution"):
        if name in known:
            return name
    raise NoSuchName("the engine's constructor has no option for how a question's text runs")


def first_attribute(thing: Any, *paths: str) -> Any:
    for path in paths:
        try:
            return operator.attrgetter(path)(thing)
        except AttributeError:
            continue
    raise NoSuchName(f"{type(thing).__name__} has none of {', '.join(paths)}")


def next_position(manager: Any) -> list[int]:
    """``[t, h, w]`` of the next text token as the trained rule lays out what is in memory.

    A tree may rotate its keys in any frame; less the frame's base, the position is the rule's.
    """
    after = first_attribute(manager, "next_position", "store.next_position", "ledger.next_position")
    base = first_attribute(manager, "base_offset", "store.base_offset", "ledger.frame")
    return [int(one) - int(other) for one, other in zip(after, base, strict=True)]


class LogitsTap:
    """Keeps what a model's ``logits`` gave last: rows ``[vocabulary]`` in float32."""

    def __init__(self, model: StreamQwenModel):
        self._rows: list[np.ndarray] = []
        compute = model.logits

        def logits(hidden: torch.Tensor) -> torch.Tensor:
            found = compute(hidden)
            self._rows.append(found.reshape(-1, found.shape[-1])[-1].float().numpy().copy())
            return found

        model.logits = logits

    def taken(self) -> list[np.ndarray]:
        """The rows since the last call."""
        rows, self._rows = self._rows, []
        return rows


# -- plain values, which the other process can read ------------------------------------------------


def plain(value: Any) -> Any:
    if isinstance(value, (bool, str, np.ndarray, type(None))):
        return value
    if isinstance(value, (np.generic, torch.Tensor)):
        return value.item()
    if isinstance(value, (int, float)):
        return value
    if dataclasses.is_dataclass(value):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(one) for key, one in value.items()}
    return [plain(one) for one in value]


def chosen(results: Any, keys: tuple[str, ...]) -> dict[str, Any]:
    """Those results, by the names that the reference's users know: ``results[key]``."""
    return {key: plain(results[key]) for key in keys}


def pictures(arrays: list[np.ndarray], kind: str) -> list[Any]:
    if kind == "pil":
        return [Image.fromarray(array) for array in arrays]
    if kind == "torch":
        return [torch.from_numpy(array) for array in arrays]
    return arrays


# -- commands --------------------------------------------------------------------------------------


class Driver:
    """Holds one engine at a time, its snapshots and the answers being written.

    Each public method is a command; what it returns is compared.

    Args:
        folders: names of models and the folders to load them from.
    """

    def __init__(self, folders: Mapping[str, str]):
        self._models = {}
        for name, folder in folders.items():
            model = StreamQwenModel.from_pretrained(folder, torch_dtype=torch.float32)
            model = model.to("cpu").eval()
            self._models[name] = model, StreamProcessor.from_pretrained(folder), LogitsTap(model)
        self._forget()

    def _forget(self) -> None:
        self._engine: Any = None
        self._saved: dict[int, Any] = {}
        self._answers: dict[int, Any] = {}

    def make(
        self,
        model: str,
        eviction: Mapping[str, Any] | None,
        text_path: str,
        options: Mapping[str, Any],
    ) -> None:
        self._forget()
        network, processor, self._tap = self._models[model]
        config = None if eviction is None else EvictionConfig(**eviction)
        options = {**options, text_path_option(): text_path}
        self._engine = VideoStreamingInference(network, processor, "cpu", config, **options)

    def append(self, frames: list[np.ndarray], kind: str, **times: Any) -> Any:
        found = self._engine.append_video_chunk(pictures(frames, kind), **times)
        return chosen(found, CHUNK)

    def append_frame(self, frame: np.ndarray, kind: str, timestamp: float | None) -> Any:
        return chosen(self._engine.append_frame(pictures([frame], kind)[0], timestamp), CHUNK)

    def append_bad(self, frames: Any, **times: Any) -> Any:
        return chosen(self._engine.append_video_chunk(frames, **times), CHUNK)

    def limit_pixels(self, most: int | None) -> None:
        self._engine.limit_pixels(most)

    def reset(self) -> None:
        self._engine.reset()

    def ask(
        self,
        question: Any,
        cancel_after: int | None = None,
        fail_after: int | None = None,
        **options: Any,
    ) -> Any:
        texts: list[str] = []
        asked = itertools.count(1)

        def heard(text: str) -> None:
            texts.append(text)
            if fail_after is not None and len(texts) >= fail_after:
                raise ConnectionResetError("the listener is gone")

        if cancel_after is not None:
            options["cancel"] = lambda: next(asked) > cancel_after
        answer, metrics = self._engine.ask(question, on_token=heard, **options)
        return {
            "answer": answer,
            "texts": texts,
            "metrics": chosen(metrics, ANSWER),
            "logits": self._tap.taken(),
        }

    def choose(self, question: Any, choices: Any, **options: Any) -> Any:
        choice, metrics = self._engine.ask_choice(question, choices, **options)
        scores = np.array(plain(metrics["scores"]))
        return {
            "choice": choice,
            "metrics": chosen(metrics, (*EVIDENCE, "choice_index")),
            "scores": scores,
        }

    def open(self, number: int, question: Any, **options: Any) -> None:
        self._answers[number] = self._engine.ask_stream(question, **options), []

    def write(self, number: int, pieces: int) -> Any:
        """The next pieces of an answer; with its end, its metrics and all its logits."""
        answer, rows = self._answers[number]
        written = list(itertools.islice(answer, pieces))
        rows += self._tap.taken()
        found = {"pieces": written, "text": answer.text}
        if len(written) < pieces:
            found |= {"metrics": chosen(answer.metrics, ANSWER), "logits": rows}
        return found

    def close(self, number: int) -> None:
        self._answers.pop(number)[0].close()

    def drop(self, number: int) -> None:
        del self._answers[number]

    def snapshot(self, number: int) -> None:
        self._saved[number] = self._engine.cache_manager.snapshot()

    def clone(self, number: int) -> None:
        self._saved[number] = self._engine.cache_manager.clone()

    def restore(self, number: int) -> None:
        self._engine.cache_manager.restore(self._saved[number])

    def discard(self, number: int) -> None:
        self._engine.cache_manager.discard_snapshot(self._saved.pop(number))

    def mask(self, tokens: int) -> Any:
        mask = self._engine.cache_manager.build_full_attention_mask(tokens)
        return {"shape": list(mask.shape), "seen": int((mask == 0).sum())}

    def look(self, values: bool) -> Any:
        """The memory as it stands; ``values``: also those of its tokens, which no frame turns."""
        engine, manager = self._engine, self._engine.cache_manager
        found = {
            "info": chosen(info := engine.get_cache_info(), INFO),
            "shares_reason": bool(info["shares_reason"]),
            "evictor": {name: plain(getattr(manager.evictor, name)) for name in EVICTOR},
            "length": plain(manager.get_seq_length()),
            "last_cache_position": plain(manager.last_cache_position),
            "rope_delta": plain(manager.rope_delta),
            "next_position": next_position(manager),
            "time_spans": plain(manager.time_spans()),
            "pixels": [engine.min_pixels, engine.max_pixels],
        }
        if values:
            found["values"] = manager.gather()[:, 1].float().numpy().copy()
        return found

    def handle(self, command: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        for _, _, tap in self._models.values():
            tap.taken()
        try:
            return {"result": getattr(self, command)(**arguments), "error": None}
        except NoSuchName:
            raise
        except Exception as error:  # whatever it is, the other tree must raise it too
            return {"result": None, "error": type(error).__name__, "message": str(error)}


def main() -> None:
    parse = argparse.ArgumentParser(description=__doc__)
    parse.add_argument("--socket", type=int, required=True, help="file descriptor")
    parse.add_argument("--tree", type=Path, required=True, help="whose package must be the one")
    parse.add_argument("--model", action="append", default=[], metavar="NAME=FOLDER")
    parse.add_argument("--fault", help="a fault of faults.py, to see that it is found")
    options = parse.parse_args()
    home = Path(stream_vlm_ros.__file__).resolve()
    if not home.is_relative_to(options.tree.resolve()):
        sys.exit(f"this is to be the package of {options.tree}, and is that of {home}")
    torch.set_num_threads(1)
    if options.fault:
        import faults

        faults.introduce(options.fault)
    driver = Driver(dict(one.split("=", 1) for one in options.model))
    connection = Connection(options.socket)
    connection.send({"ready": os.getpid()})
    while True:
        try:
            command, arguments = connection.recv()
        except EOFError:  # the machines are done
            return
        connection.send(driver.handle(command, arguments))


if __name__ == "__main__":
    main()

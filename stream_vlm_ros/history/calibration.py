# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""`Calibration`: which heads of a checkpoint find what is asked about, and what counts as a hit.

It belongs to one checkpoint. ``stream-vlm calibrate`` makes it (`history.calibrating`) and writes
it as JSON into the checkpoint's folder; without it `fallback` takes heads that were not measured.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from stream_vlm_ros.engine.attention.base import Readout, by_layer
from stream_vlm_ros.errors import CalibrationError, cut, real_number
from stream_vlm_ros.owned import NotOursError, open_regular, write_whole

if TYPE_CHECKING:
    from stream_vlm_ros.engine.model.base import StreamModel

log = logging.getLogger(__name__)

FILE_NAME = "history_calibration.json"  # in a checkpoint's folder
VERSION = 1
KIND = "history calibration"  # what the file says that it is

PLACES = ("last", "words", "end")  # whose queries look for a head's keys: see `queries_at`
SCALES = ("fixed", "own")

MAX_HEADS = 64
# Without a calibration: all heads (or so many, evenly) of the layers at these shares of the depth.
FALLBACK_DEPTHS, FALLBACK_HEADS_A_LAYER = (0.4, 0.5), 8
FALLBACK_THRESHOLD, FALLBACK_OF_BEST, FALLBACK_LOOKS, FALLBACK_TAIL = 3.0, 0.8, 2.0, 0.6
# What an answer says of a thing that the frames do not show.
NOT_SEEN = ("not seen", "no")

_MAX_BYTES = 1_000_000  # of a file
_SAMPLES = 16  # of each weight that the model's hash covers
_SMALL = 2.0**-13  # numbers below it are not the same in all number formats


class CalibratedHead(NamedTuple):
    """A query head that finds, and how well.

    Attributes:
        layer, head: which; its keys are those of the KV head that it reads.
        place: whose queries look for its keys, one of `PLACES`.
        precision: its average precision on the footage for calibration, 0 to 1.
        spread: the standard deviation of its scores there.
    """

    layer: int
    head: int
    place: str
    precision: float
    spread: float


@dataclass(frozen=True)
class Calibration:
    """How a checkpoint finds the grids that a question is about.

    Attributes:
        heads: the best first, none of them twice.
        threshold: combined score from which a grid is a hit.
        of_best: and this share of the question's best score.
        looks: threshold of the episodes that further looks may read.
        tail: share of an episode's best score down to which its neighbours still belong to it.
        scale: ``fixed`` (scores in units of the heads' spreads) or ``own`` (of each question's).
        not_seen: whole answers by which the model says that it does not see a thing.
        grid_tokens: vision tokens of a grid of the footage; 0: it was not calibrated.
        seconds_per_grid: of the footage.
        model: hash of the checkpoint, see `model_hash`.
        made_with: seeds, questions and figures, for people.
    """

    heads: tuple[CalibratedHead, ...]
    threshold: float
    of_best: float
    looks: float
    tail: float
    scale: str
    not_seen: tuple[str, ...]
    grid_tokens: int
    seconds_per_grid: float
    model: str
    made_with: Mapping[str, Any] = field(default_factory=dict)

    # -- files ---------------------------------------------------------------------------------

    @classmethod
    def of(cls, folder: str | Path, model: StreamModel) -> Calibration:
        """That of a checkpoint's folder, else `fallback`, which a warning says.

        Raises:
            CalibrationError: there is a file, but it is damaged or not this model's.
        """
        file = Path(folder) / FILE_NAME
        if not file.exists():
            log.warning(
                "%s has no %s: a history is searched by heads that were not measured, and finds "
                "far less. Make one by: stream-vlm calibrate %s", folder, FILE_NAME, folder,
            )  # fmt: skip
            return cls.fallback(model)
        found = cls.load(file)
        try:
            found.check_fits(model)
        except CalibrationError as error:
            raise CalibrationError(f"{file}: {error}") from error
        return found

    @classmethod
    def load(cls, path: str | Path) -> Calibration:
        """Read a file that `save` wrote.

        Raises:
            CalibrationError: it cannot be read, or says what is no calibration.
        """
        content = _read(Path(path))
        try:
            return _parsed(content)
        except CalibrationError as error:
            raise CalibrationError(f"{path}: {error}") from error

    def save(self, path: str | Path) -> None:
        """Write it as JSON, whole at any moment, in place of an earlier calibration.

        Raises:
            NotOursError: something else is there.
            OSError: it cannot be written.
        """
        path = Path(path)
        check_free(path)
        text = json.dumps(self.as_dict(), indent=1, ensure_ascii=False)
        write_whole(path, f"{text}\n".encode())

    def as_dict(self) -> dict[str, Any]:
        """What the file holds."""
        values = {"kind": KIND, "version": VERSION, **dataclasses.asdict(self)}
        values["heads"] = [head._asdict() for head in self.heads]
        return values

    @classmethod
    def fallback(cls, model: StreamModel) -> Calibration:
        """All heads of two layers near the middle of the model, none of them measured, each
        question's scores on a scale of their own. What that finds is in docs/history.md."""
        text: Any = model.config.text_config
        count = text.num_attention_heads
        some = sorted({count * k // FALLBACK_HEADS_A_LAYER for k in range(FALLBACK_HEADS_A_LAYER)})
        layers = sorted({int(depth * text.num_hidden_layers) for depth in FALLBACK_DEPTHS})
        return cls(
            heads=tuple(
                CalibratedHead(layer, head, "last", 1.0, 1.0) for layer in layers for head in some
            ),
            threshold=FALLBACK_THRESHOLD,
            of_best=FALLBACK_OF_BEST,
            looks=FALLBACK_LOOKS,
            tail=FALLBACK_TAIL,
            scale="own",
            not_seen=NOT_SEEN,
            grid_tokens=0,
            seconds_per_grid=1.0,
            model=model_hash(model),
        )

    def check_fits(self, model: StreamModel) -> None:
        """Raise CalibrationError unless it was made for this model."""
        text: Any = model.config.text_config
        layers, heads = text.num_hidden_layers, text.num_attention_heads
        for one in self.heads:
            if one.layer >= layers or one.head >= heads:
                raise CalibrationError(
                    f"the calibration names head {one.head} of layer {one.layer}, but the model "
                    f"has {heads} heads in each of {layers} layers: it was made for another "
                    "checkpoint. Make this one's by stream-vlm calibrate"
                )
        if self.model != model_hash(model):
            raise CalibrationError(
                "the calibration was made for another checkpoint, of other weights. Make this "
                "one's by stream-vlm calibrate"
            )

    # -- what is read, and how it counts -------------------------------------------------------

    def reads(self, config: Any) -> Readout:
        """The queries and keys of these heads, to be read in passing.

        Args:
            config: the model's.
        """
        queries = by_layer((head.layer, head.head) for head in self.heads)
        return Readout(queries, by_layer(self.keys(config)))

    def keys(self, config: Any) -> list[tuple[int, int]]:
        """(layer, KV head) whose keys are kept, rising, each once."""
        return sorted({(head.layer, kv_head(config, head.head)) for head in self.heads})

    def key_of(self, config: Any) -> list[int]:
        """For each of the heads, which of `keys` it looks for."""
        keys = self.keys(config)
        return [keys.index((head.layer, kv_head(config, head.head))) for head in self.heads]

    def queries(self, read: Readout, words: slice) -> list[torch.Tensor]:
        """For each of the heads the queries that look for its keys, ``[n, head_dim]`` each.

        Args:
            read: what `reads` has read of a question's prompt.
            words: where the question's own words stand in it.
        """
        rows: dict[int, int] = {}  # of each layer, how many heads came before
        found = []
        for head in self.heads:
            row = rows[head.layer] = rows.get(head.layer, -1) + 1
            found.append(read.queries(head.layer)[row, queries_at(head.place, words)])
        return found

    def combine(self, scores: torch.Tensor, spans: torch.Tensor | None = None) -> torch.Tensor:
        """One score a grid from those of each head.

        Args:
            scores: ``[heads, grids]`` in the order of `heads`, each less its mean over all grids.
            spans: ``[grids]``, how many grids each stands for; None: one.

        Returns:
            ``[grids]``. The mean of the heads' scores, each in units of its spread, weighted by
            their precisions. On the scale ``own`` a head's spread is that over these grids, and so
            is that of the mean.
        """
        columns = [[head.precision] for head in self.heads]
        precision = scores.new_tensor(columns)
        if self.scale == "own":
            scores = _standardized(scores, spans)
        else:
            scores = scores / scores.new_tensor([[head.spread] for head in self.heads])
        combined = (precision * scores).sum(0) / precision.sum()
        return _standardized(combined, spans) if self.scale == "own" else combined

    def says_not_seen(self, answer: str) -> bool:
        """Whether the whole answer is one by which the model says that it does not see a thing."""
        return says_not_seen(answer, self.not_seen)

    def may_say_not_seen(self, begun: str) -> bool:
        """Whether an answer that begins so may still become one of these."""
        return any(_plain(known).startswith(_plain(begun)) for known in self.not_seen)


def says_not_seen(answer: str, known: Sequence[str]) -> bool:
    """Whether the whole answer is one by which a model says that it does not see a thing."""
    return _plain(answer) in map(_plain, known)


def queries_at(place: str, words: slice) -> slice:
    """Which of a prompt's queries look for a head's keys: a slice of the prompt's tokens.

    Args:
        place: ``last``: that where the answer begins; ``words``: those of the question's own words;
            ``end``: those behind them.
        words: where the question's own words stand in the prompt.
    """
    return {"last": slice(-1, None), "words": words, "end": slice(words.stop, None)}[place]


def kv_head(config: Any, head: int) -> int:
    """The KV head that a query head reads."""
    text = config.text_config
    return head // (text.num_attention_heads // text.num_key_value_heads)


@torch.inference_mode()
def model_hash(model: StreamModel) -> str:
    """Of the names, shapes and a few numbers of all weights; the same in every number format."""
    names, samples = [], []
    for name, weight in sorted(model.released()):
        names.append(f"{name} {list(weight.shape)}")
        flat = weight.flatten()
        samples.append(flat[:: -(-len(flat) // _SAMPLES)].to(torch.bfloat16))
    numbers = torch.cat(samples).cpu().float()
    numbers = torch.where(numbers.abs() < _SMALL, 0.0, numbers)
    digest = hashlib.sha256("\n".join(names).encode())
    digest.update(numbers.numpy().astype("<f4").tobytes())
    return digest.hexdigest()[:32]


def check_free(path: Path) -> None:
    """Raise NotOursError if something other than a calibration is at ``path``."""
    if not path.exists() and not path.is_symlink():
        return
    try:
        _read(path)
    except CalibrationError as error:
        raise NotOursError(
            f"{path} is there already and no calibration of this program: it is left as it is. "
            "Name another file, or move it away."
        ) from error


def _standardized(scores: torch.Tensor, spans: torch.Tensor | None) -> torch.Tensor:
    """Scores ``[..., grids]`` of mean 0 in their own standard deviations; 0 where all are equal."""
    squares = scores.square()
    if spans is None:
        variance = squares.mean(-1, keepdim=True)
    else:
        variance = (squares * spans).sum(-1, keepdim=True) / spans.sum()
    return scores / variance.sqrt().clamp_min(torch.finfo(scores.dtype).tiny)


def _plain(answer: str) -> str:
    return answer.strip().rstrip(".").strip().casefold()


# -- reading a file ------------------------------------------------------------------------------


def _read(path: Path) -> dict[str, Any]:
    """What a file of ours holds; CalibrationError for any other."""
    try:
        # In a cache it is a link.
        with os.fdopen(open_regular(os.path.realpath(path)), "rb") as file:
            data = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise CalibrationError(f"{path} cannot be read: {error.strerror or error}") from error
    if len(data) > _MAX_BYTES:
        raise CalibrationError(f"{path} is no calibration: it has more than {_MAX_BYTES:,} bytes")
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise CalibrationError(f"{path} is no JSON: {error}") from error
    if not isinstance(content, dict) or content.get("kind") != KIND:
        raise CalibrationError(f'{path} is no calibration: it does not say "kind": "{KIND}"')
    return content


def _parsed(content: Mapping[str, Any]) -> Calibration:
    version = content.get("version")
    if version != VERSION:
        raise CalibrationError(
            f"its version is {cut(repr(version), 60)}, this program knows {VERSION}: make it again "
            "by stream-vlm calibrate"
        )
    given = _take(content, "heads", list)
    if not 1 <= len(given) <= MAX_HEADS:
        raise CalibrationError(f"heads: there must be from 1 to {MAX_HEADS}, not {len(given)}")
    heads = tuple(_head(one, f"heads[{number}]") for number, one in enumerate(given))
    if len({head[:2] for head in heads}) < len(heads):
        raise CalibrationError("heads: one is named twice")
    not_seen = _take(content, "not_seen", list)
    if not all(isinstance(answer, str) for answer in not_seen):
        raise CalibrationError("not_seen: it must be a list of texts")
    return Calibration(
        heads=heads,
        threshold=_number(content, "threshold"),
        of_best=_number(content, "of_best", 0.0, 1.0),
        looks=_number(content, "looks"),
        tail=_number(content, "tail", 0.0, 1.0),
        scale=_one_of(content, "scale", SCALES),
        not_seen=tuple(not_seen),
        grid_tokens=_whole(content, "grid_tokens"),
        seconds_per_grid=_number(content, "seconds_per_grid", 0.0, above=True),
        model=_take(content, "model", str),
        made_with=_take(content, "made_with", dict),
    )


def _head(given: Any, where: str) -> CalibratedHead:
    if not isinstance(given, dict):
        raise CalibrationError(f"{where}: it must be an object, not {cut(repr(given), 60)}")
    try:
        return CalibratedHead(
            _whole(given, "layer"),
            _whole(given, "head"),
            _one_of(given, "place", PLACES),
            _number(given, "precision", 0.0, 1.0, above=True),
            _number(given, "spread", 0.0, above=True),
        )
    except CalibrationError as error:
        raise CalibrationError(f"{where}: {error}") from error


def _take(given: Mapping[str, Any], name: str, kind: type) -> Any:
    if name not in given:
        raise CalibrationError(f"{name} is missing")
    if not isinstance(given[name], kind):
        words = {"list": "a list", "str": "a text", "dict": "an object"}[kind.__name__]
        raise CalibrationError(f"{name}: it must be {words}, not {cut(repr(given[name]), 60)}")
    return given[name]


def _one_of(given: Mapping[str, Any], name: str, known: Sequence[str]) -> str:
    value = _take(given, name, str)
    if value not in known:
        raise CalibrationError(f"{name}: {cut(repr(value), 60)} is none of {', '.join(known)}")
    return value


def _whole(given: Mapping[str, Any], name: str) -> int:
    value = given.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 31:
        raise CalibrationError(f"{name} must be a whole number, not {cut(repr(value), 60)}")
    return value


def _number(
    given: Mapping[str, Any],
    name: str,
    low: float = -math.inf,
    high: float = math.inf,
    above: bool = False,
) -> float:
    """A finite number from ``low`` (or ``above`` it) to ``high``."""
    value = real_number(given.get(name))
    if value is None or not math.isfinite(value):
        text = cut(repr(given.get(name)), 60)
        raise CalibrationError(f"{name} must be a number, not {text}")
    if not low <= value <= high or (above and value == low):
        bounds = f"above {low:g}" if above else f"at least {low:g}"
        if high < math.inf:
            bounds += f" and at most {high:g}"
        raise CalibrationError(f"{name} is {value:g}: it must be {bounds}")
    return value

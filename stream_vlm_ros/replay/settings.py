"""What is measured: an engine with its settings, named."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from stream_vlm_ros.errors import InvalidParameterError
from stream_vlm_ros.factory import COMPILE

from .feeding import AT_QUESTION

ENGINES = ("streaming", "delayed_batch")


@dataclass(frozen=True)
class EngineSettings:
    """One configuration of a replay: how frames are taken, what remembers them, how it answers.

    ``at_question`` says what becomes of a chunk that is not full when a question is due.
    "grids": its complete pairs of frames are encoded first, so that a question misses one frame
    at most, and no question changes what another one sees. "all": all of it is encoded; a last odd
    frame is repeated, as the model needs pairs. "complete": it waits, as in the node.

    All others are parameters of the node, with its names and defaults; ``keep_fps`` to
    ``frame_store_hours`` are those of the engine "delayed_batch", which has no bound in tokens.
    """

    name: str = "streaming"
    engine: str = "streaming"
    model: str | None = None
    device: str = "auto"
    fps: float = 2.0
    chunk_frames: int = 4
    max_cache_tokens: int = 16384
    sink_size: int = 0
    window_size: int = 0
    eviction_interval: int = 1
    sampled_share: float = -1.0
    important_share: float = -1.0
    skip_similarity: float = 0.0
    keep_fps: float = 1.0
    max_sampled_frames: int = 48
    sampled_max_pixels: int | None = 100_352
    frame_store_megabytes: int = 1024
    frame_store_hours: float = 24.0
    layout: str = "continuous"
    position_policy: str = "contiguous"
    min_pixels: int | None = None
    max_pixels: int | None = 401_408
    system_prompt: str | None = None
    max_tail_tokens: int = 2048
    question_path: str = "auto"
    compile_chunks: str = "auto"
    max_new_tokens: int = 64
    temperature: float = 0.0
    seed: int = 0
    at_question: str = "grids"

    def __post_init__(self) -> None:
        if self.engine not in ENGINES:
            raise InvalidParameterError(
                f"There is no engine {self.engine!r}; known are {', '.join(ENGINES)}."
            )
        for name, known in (("at_question", AT_QUESTION), ("compile_chunks", COMPILE)):
            if getattr(self, name) not in known:
                raise InvalidParameterError(
                    f"{name} is {getattr(self, name)!r}; use one of {', '.join(known)}."
                )
        for name, low in (("fps", 0.001), ("chunk_frames", 1), ("max_new_tokens", 1)):
            if getattr(self, name) < low:
                raise InvalidParameterError(f"{name} is {getattr(self, name)}; the least is {low}.")
        if self.temperature < 0:
            raise InvalidParameterError("temperature is below 0; 0 takes the likeliest words.")

    def changed(self, text: str | None) -> EngineSettings:
        """With the changes of ``NAME:engine,key=value,...`` (each part may be left out).

        Raises InvalidParameterError for a key there is not, or a value of the wrong kind.
        """
        if not text:
            return self
        name, colon, rest = text.partition(":")
        if not colon or "=" in name or "," in name:
            name, rest = "", text
        changes: dict[str, Any] = {"name": name.strip()} if name.strip() else {}
        for part in filter(None, (part.strip() for part in rest.split(","))):
            key, equals, value = part.partition("=")
            if not equals:
                changes["engine"] = key
                continue
            changes[key.strip()] = _value(key.strip(), value.strip())
        if "name" not in changes and changes:
            shown = [f"{key}={value}" for key, value in changes.items() if key != "engine"]
            changes["name"] = ",".join([changes.get("engine", self.engine), *shown])
        return dataclasses.replace(self, **changes)

    def as_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


_FIELDS = {field.name: field for field in dataclasses.fields(EngineSettings)}


def _value(key: str, text: str) -> Any:
    if key not in _FIELDS or key == "name":
        known = ", ".join(name for name in _FIELDS if name != "name")
        raise InvalidParameterError(f"An engine has no setting {key!r}; known are {known}.")
    kind = str(_FIELDS[key].type)
    if "None" in kind and text.lower() in ("", "0", "none"):
        return None
    for name, convert in (("int", int), ("float", float)):
        if name in kind:
            try:
                return convert(text)
            except ValueError:
                raise InvalidParameterError(f"{key} is {text!r}; it must be a number.") from None
    return text

"""Every parameter of the node, in one table.

The ROS declarations with their descriptors, ``config/stream_vlm.yaml`` and the table in
``docs/node.md`` are all made from :class:`Parameters`; a test holds the three together. ``make
docs`` writes the two files anew.
"""

from __future__ import annotations

import difflib
import math
import sys
from collections.abc import Mapping
from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from typing import Any

from stream_vlm_ros.errors import InvalidParameterError

ALWAYS = "any time"
CONFIGURE = "before configure"
START = "at start"


def _spec(
    default: Any,
    description: str,
    low: float | None = None,
    high: float | None = None,
    choices: tuple[str, ...] = (),
    change: str = CONFIGURE,
) -> Any:
    """One row of the table: a dataclass field whose metadata is the ROS descriptor."""
    row = {
        "description": description,
        "low": low,
        "high": high,
        "choices": choices,
        "change": change,
    }
    return field(default=default, metadata=row)


@dataclass(frozen=True)
class Parameters:
    """The node's settings. ``change`` in the metadata says when a field may be set:
    at any time, only while the node is unconfigured, or only when it starts."""

    # The model
    model_path: str = _spec(
        "",
        "Folder of a Qwen2.5-VL checkpoint on this machine; nothing is ever downloaded. "
        "Empty: the small model that comes with the package and knows only the drawn world.",
    )
    device: str = _spec(
        "auto", "Where the model runs: auto, cpu, cuda or cuda:N. auto takes a GPU if there is one."
    )
    dtype: str = _spec(
        "auto",
        "Number format of weights and memory. auto: bfloat16 on a GPU, float32 on a CPU.",
        choices=("auto", "float32", "bfloat16", "float16"),
    )
    system_prompt: str = _spec("", "System text of the chat. Empty: the chat template's own.")
    question_path: str = _spec(
        "auto",
        "How a question's text runs: eager (call by call), graph (as CUDA graphs, recorded when "
        "configured) or static (their steps, not recorded). auto: graph on a GPU, else eager.",
        choices=("auto", "eager", "static", "graph"),
    )
    compile_chunks: str = _spec(
        "auto",
        "Fuse the elementwise work of chunks by torch.compile, which takes some ten seconds when "
        "configured. auto: on a GPU. always: an error where there is none.",
        choices=("auto", "always", "never"),
    )

    # The memory
    engine: str = _spec(
        "streaming",
        "streaming: every frame is encoded as it comes, answers come at once. delayed_batch: "
        "frames are kept, and some are encoded when a question comes (docs/delayed-batch.md).",
        choices=("streaming", "delayed_batch"),
    )
    max_cache_tokens: int = _spec(
        16384,
        "The memory never holds more tokens than this, but for fork_slack_tokens while an answer "
        "is being written; 64 at least. 0: as many as fit the device (of a CPU's memory half), at "
        "most the model's context less max_tail_tokens.",
        0,
        10_000_000,
    )
    sink_size: int = _spec(
        0,
        "Tokens at the start that are always kept. 0: the whole first chunk.",
        0,
        10_000_000,
    )
    window_size: int = _spec(
        0,
        "Most recent tokens that are kept. 0: all that the sink and the kept frames leave.",
        0,
        10_000_000,
    )
    eviction_interval: int = _spec(
        1, "Evict at every n-th chunk, below the cap, instead of at each one.", 1, 10_000
    )
    layout: str = _spec(
        "continuous",
        "continuous: one growing video. segmented: a user turn around every chunk.",
        choices=("continuous", "segmented"),
    )
    position_policy: str = _spec(
        "contiguous",
        "Positions after an eviction: contiguous closes the gaps, keep_gaps leaves them.",
        choices=("contiguous", "keep_gaps"),
    )
    min_pixels: int = _spec(
        0, "Smaller pictures are enlarged to this many pixels. 0: the model's own.", 0, 100_000_000
    )
    max_pixels: int = _spec(
        401_408,
        "Larger pictures are reduced to this many pixels, or to the model's own bound where that "
        "is less; 784 pixels make one token for two frames. 0: the model's own.",
        0,
        100_000_000,
        change=ALWAYS,
    )
    sampled_share: float = _spec(
        -1.0,
        "Share of the memory, less the sink, for frames kept evenly over all the time before the "
        "window. -1: automatic, see important_share.",
        -1.0,
        0.99,
    )
    important_share: float = _spec(
        -1.0,
        "Share of the memory, less the sink, for frames from before the window that are least "
        "like any other. -1 for both: 0.7 for these, unless window_size is given. -1 for one: 0.",
        -1.0,
        0.99,
    )
    skip_similarity: float = _spec(
        0.0,
        "Leave out the parts of a picture whose features are this close (cosine) to those last "
        "taken in there; for scenes that hardly change, for example 0.98. 0: leave out nothing.",
        0.0,
        1.0,
    )

    fork_slack_tokens: int = _spec(
        -1,
        "Room beyond max_cache_tokens, in tokens, for frames that come while an answer is being "
        "written from a full memory. -1: four chunks of the largest pictures, at most half of "
        "max_cache_tokens. 0: none, they wait for the answer's end.",
        -1,
        10_000_000,
    )

    # The memory of the engine delayed_batch
    keep_fps: float = _spec(
        1.0, "delayed_batch: frames a second that are kept, by stamp. 0: every frame.", 0.0, 120.0
    )
    max_sampled_frames: int = _spec(
        48, "delayed_batch: most frames that are encoded for a question.", 2, 10_000
    )
    sampled_max_pixels: int = _spec(
        100_352,
        "delayed_batch: larger pictures are reduced to this many pixels when they are encoded, "
        "in place of max_pixels. 0: the model's own.",
        0,
        100_000_000,
        change=ALWAYS,
    )
    frame_store: str = _spec(
        "",
        "delayed_batch: folder in which frames are kept, and taken up again at the next start. "
        "Empty: in memory.",
    )
    frame_store_megabytes: int = _spec(
        1024, "delayed_batch: most megabytes (2^20 bytes) of frames kept.", 1, 100_000_000
    )
    frame_store_hours: float = _spec(
        24.0, "delayed_batch: frames older than this are forgotten.", 0.001, 100_000.0
    )

    # The way of a frame
    image_transport: str = _spec(
        "auto",
        "raw reads sensor_msgs/Image on 'image'; compressed reads sensor_msgs/CompressedImage on "
        "'image/compressed'; auto looks at what is published.",
        choices=("auto", "raw", "compressed"),
    )
    image_qos: str = _spec(
        "auto",
        "Reliability of the image subscription; auto takes the publisher's once it is discovered.",
        choices=("auto", "reliable", "best_effort"),
    )
    sample_fps: float = _spec(
        2.0,
        "Frames a second taken into the memory, by the frames' own stamps. 0: every frame.",
        0.0,
        120.0,
        change=ALWAYS,
    )
    chunk_frames: int = _spec(
        4, "Frames gathered before they are encoded together.", 1, 64, change=ALWAYS
    )
    max_chunk_delay: float = _spec(
        2.0,
        "Seconds after which a chunk that is not full is encoded as it is. 0: wait until full.",
        0.0,
        3600.0,
        change=ALWAYS,
    )
    queue_size: int = _spec(
        2,
        "Chunks that may wait for the model. A further one pushes out the oldest.",
        1,
        256,
        change=ALWAYS,
    )
    max_questions: int = _spec(
        8, "Questions that may wait; further ones are refused.", 1, 256, change=ALWAYS
    )
    ingest_share: float = _spec(
        0.5,
        "While an answer is being written: the share of its time for chunks that wait. 0.5: it "
        "takes at most about twice as long. 1: a chunk after every token. 0: chunks wait until the "
        "answer is complete.",
        0.0,
        1.0,
        change=ALWAYS,
    )
    on_time_jump: str = _spec(
        "reset",
        "When stamps run backwards (a looped bag): reset forgets and starts anew, reject drops "
        "frames until stamps pass the newest one again.",
        choices=("reset", "reject"),
        change=ALWAYS,
    )
    time_jump_tolerance: float = _spec(
        1.0,
        "Seconds a stamp may lie behind the newest and count as a late frame, which is dropped, "
        "not as a time jump.",
        0.0,
        3600.0,
        change=ALWAYS,
    )
    max_time_gap: float = _spec(
        3600.0,
        "A frame this many seconds after the one before it starts a new memory.",
        1.0,
        86_400.0,
        change=ALWAYS,
    )

    # Answers
    max_new_tokens: int = _spec(
        128, "Tokens of an answer, unless the question says otherwise.", 1, 100_000, change=ALWAYS
    )
    temperature: float = _spec(
        0.0,
        "0: the most likely answer; above: sampled, unless the question says otherwise.",
        0.0,
        10.0,
        change=ALWAYS,
    )
    refuse_forgotten: bool = _spec(
        True,
        "Refuse a question with about_from or about_to if nothing of that time is in memory "
        "(OUT_OF_HORIZON). false: answer it from what there is.",
        change=ALWAYS,
    )
    max_tail_tokens: int = _spec(
        2048, "Room for one question with its answer, in tokens.", 64, 1_000_000
    )

    # The node
    no_image_timeout: float = _spec(
        5.0,
        "Seconds without an image after which /diagnostics and the log tell the likely cause.",
        0.1,
        3600.0,
        change=ALWAYS,
    )
    status_period: float = _spec(
        1.0, "Seconds between two messages on ~/cache_status and /diagnostics.", 0.05, 60.0
    )
    autostart: bool = _spec(True, "Configure and activate without being asked.", change=START)

    def __post_init__(self) -> None:
        for row in fields(self):
            _check(row, getattr(self, row.name))
        if self.min_pixels and self.max_pixels and self.min_pixels > self.max_pixels:
            raise InvalidParameterError(
                f"min_pixels ({self.min_pixels}) is above max_pixels ({self.max_pixels})"
            )
        if 0 < self.max_cache_tokens < 64:
            raise InvalidParameterError(
                f"max_cache_tokens must be 0 (as many as fit) or at least 64, got "
                f"{self.max_cache_tokens}"
            )
        settled = self.max_cache_tokens > 0
        if (
            settled
            and self.window_size
            and self.sink_size + self.window_size > self.max_cache_tokens
        ):
            raise InvalidParameterError(
                f"sink_size + window_size ({self.sink_size} + {self.window_size}) is above "
                f"max_cache_tokens ({self.max_cache_tokens})"
            )
        if settled and self.sink_size >= self.max_cache_tokens:
            raise InvalidParameterError(
                f"sink_size ({self.sink_size}) leaves no room below max_cache_tokens "
                f"({self.max_cache_tokens})"
            )
        for name in ("sampled_share", "important_share"):
            if -1 < (share := getattr(self, name)) < 0:
                raise InvalidParameterError(
                    f"{name} must be -1 (automatic) or at least 0, got {share}"
                )
        if self.sampled_share + self.important_share >= 1:
            raise InvalidParameterError(
                f"sampled_share + important_share ({self.sampled_share} + {self.important_share}) "
                "leave nothing for the window"
            )
        if self.max_new_tokens >= self.max_tail_tokens:
            raise InvalidParameterError(
                f"max_new_tokens ({self.max_new_tokens}) must be below max_tail_tokens "
                f"({self.max_tail_tokens}), which also holds the question"
            )


def python_type(row: Field) -> type:
    """The Python type of one row: bool, int, float or str."""
    return type(row.default)


def coerce(row: Field, value: Any) -> Any:
    """``value`` in the row's own type: a whole number is taken for a float (``-p sample_fps:=2``).

    Raises :class:`InvalidParameterError` for any other mismatch of types.
    """
    wanted = python_type(row)
    if wanted is float and type(value) is int:
        return float(value)
    if type(value) is not wanted:
        raise InvalidParameterError(
            f"{row.name} must be of type {wanted.__name__}, got {value!r} "
            f"({type(value).__name__}); {range_text(row) or 'see docs/node.md'}"
        )
    return value


def range_text(row: Field) -> str:
    """The allowed values in words: '[0.0, 120.0]', 'raw, compressed', or ''."""
    rules = row.metadata
    if rules["choices"]:
        return ", ".join(rules["choices"])
    if rules["low"] is not None:
        kind = python_type(row)
        return f"[{kind(rules['low'])}, {kind(rules['high'])}]"
    return ""


def _check(row: Field, value: Any) -> None:
    coerce(row, value)
    rules = row.metadata
    if rules["choices"] and value not in rules["choices"]:
        near = difflib.get_close_matches(value, rules["choices"], 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise InvalidParameterError(
            f"{row.name} must be one of {', '.join(rules['choices'])}, got {value!r}{hint}"
        )
    if rules["low"] is not None:
        inside = math.isfinite(value) and rules["low"] <= value <= rules["high"]
        if not inside:
            raise InvalidParameterError(f"{row.name} must lie in {range_text(row)}, got {value}")
    if row.name == "device":
        kind, _, index = value.partition(":")
        if kind not in ("auto", "cpu", "cuda") or (
            ":" in value and not (kind == "cuda" and index.isdigit())
        ):
            raise InvalidParameterError(f"device must be auto, cpu, cuda or cuda:N, got {value!r}")


TABLE: dict[str, Field] = {row.name: row for row in fields(Parameters)}


def from_values(values: Mapping[str, Any]) -> Parameters:
    """Parameters from plain values by name; those not given keep their defaults.

    Raises :class:`InvalidParameterError` for an unknown name, a wrong type or a bad value.
    """
    for name in values:
        if name not in TABLE:
            raise InvalidParameterError(unknown_text(name))
    return Parameters(**{name: coerce(TABLE[name], value) for name, value in values.items()})


def unknown_text(name: str) -> str:
    """What to say about a parameter that is not in the table."""
    near = difflib.get_close_matches(name, TABLE, 1)
    return f"there is no parameter {name!r}" + (f"; did you mean {near[0]!r}?" if near else "")


# ---------------------------------------------------------------------------------------------
# Declared with rclpy. Imported inside, so that the table can be read without ROS.


def declare(node: Any) -> Parameters:
    """Declare the whole table on an rclpy node and return the values it was started with.

    Raises :class:`InvalidParameterError` when a value given at start is refused.
    """
    from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor

    for row in TABLE.values():
        rules = row.metadata
        # Typing is left to _check: rclpy would refuse the whole number in `-p sample_fps:=2`.
        descriptor = ParameterDescriptor(
            name=row.name,
            description=rules["description"],
            additional_constraints=_constraints(row),
            read_only=rules["change"] == START,
            dynamic_typing=python_type(row) is float,
        )
        if rules["low"] is not None and python_type(row) is int:
            descriptor.integer_range = [
                IntegerRange(from_value=rules["low"], to_value=rules["high"], step=0)
            ]
        if rules["low"] is not None and python_type(row) is float:
            descriptor.floating_point_range = [
                FloatingPointRange(from_value=rules["low"], to_value=rules["high"], step=0.0)
            ]
        try:
            node.declare_parameter(row.name, row.default, descriptor)
        except Exception as refusal:
            raise InvalidParameterError(_refusal_text(node, row, refusal)) from refusal
    return read(node)


def read(node: Any) -> Parameters:
    """The parameters a node holds now."""
    return from_values({name: node.get_parameter(name).value for name in TABLE})


def _constraints(row: Field) -> str:
    parts = [f"one of: {', '.join(row.metadata['choices'])}"] if row.metadata["choices"] else []
    if row.metadata["change"] == CONFIGURE:
        parts.append("can be set only while the node is unconfigured")
    return "; ".join(parts)


def _refusal_text(node: Any, row: Field, refusal: Exception) -> str:
    """Our own words for a value given at start, else those of rclpy."""
    given = getattr(node, "_parameter_overrides", {}).get(row.name)
    if given is not None:
        try:
            _check(row, given.value)
        except InvalidParameterError as ours:
            return str(ours)
    return f"{row.name}: {refusal}"


# ---------------------------------------------------------------------------------------------
# Written out.

_YAML_HEAD = """\
# Every parameter of the node stream_vlm with its default. Made from the table in
# stream_vlm_ros/node/parameters.py; docs/node.md explains them.
/**:
  ros__parameters:
"""


def yaml_text() -> str:
    """The contents of ``config/stream_vlm.yaml``."""
    lines = [_YAML_HEAD]
    for row in TABLE.values():
        allowed = range_text(row)
        note = row.metadata["description"] + (f" ({allowed})" if allowed else "")
        lines += [f"    # {line}\n" for line in _wrap(note, 92)]
        lines.append(f"    {row.name}: {_yaml_value(row.default)}\n")
    return "".join(lines)


def _yaml_value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return f'"{value}"' if isinstance(value, str) else repr(value)


def _wrap(text: str, width: int) -> list[str]:
    lines, line = [], ""
    for word in text.split():
        if line and len(line) + 1 + len(word) > width:
            lines.append(line)
            line = word
        else:
            line = f"{line} {word}".strip()
    return [*lines, line]


_DOCS_BEGIN = "<!-- parameters: made from stream_vlm_ros/node/parameters.py -->"
_DOCS_END = "<!-- end of parameters -->"


def docs_table() -> str:
    """The table of ``docs/node.md``, with its markers."""
    lines = [
        _DOCS_BEGIN,
        "",
        "| Parameter | Type | Default | Range | Set | Meaning |",
        "|---|---|---|---|---|---|",
    ]
    for row in TABLE.values():
        lines.append(
            f"| `{row.name}` | {python_type(row).__name__} | `{_yaml_value(row.default)}` "
            f"| {range_text(row)} | {row.metadata['change']} | {row.metadata['description']} |"
        )
    return "\n".join([*lines, "", _DOCS_END])


def with_docs_table(page: str) -> str:
    """``page`` (docs/node.md) with its table replaced by the present one."""
    head, _, rest = page.partition(_DOCS_BEGIN)
    _, _, tail = rest.partition(_DOCS_END)
    return head + docs_table() + tail


def main(root: str) -> None:
    """Write the YAML file and the table of the docs page under the checkout ``root``."""
    config = Path(root, "config", "stream_vlm.yaml")
    config.parent.mkdir(exist_ok=True)
    config.write_text(yaml_text())
    page = Path(root, "docs", "node.md")
    page.write_text(with_docs_table(page.read_text()))


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else ".")

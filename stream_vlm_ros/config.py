# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Every setting, in one table.

The node's parameters with their descriptors, ``config/stream_vlm.yaml``, the tables of docs/node.md
and docs/replay.md, the options of the command line, the language ``NAME:engine,setting=value`` and
the parameters that a replay gives to a node are all made from :class:`Settings`. ``make docs``
writes the files. CONTRIBUTING.md says how to add a setting.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from stream_vlm_ros.errors import InvalidParameterError, cut, real_number, whole_number
from stream_vlm_ros.setting import ALWAYS, START, SettingTable, setting

# Who takes a setting: the node, or a run of a replay (so do the verbs ask and rate).
NODE, REPLAY = "node", "replay"
node_only = partial(setting, takers=(NODE,))
replay_only = partial(setting, takers=(REPLAY,))
shared = partial(setting, takers=(NODE, REPLAY))

HISTORY = ("never", "auto", "always")
AUTO = -1.0  # a share that the preset chooses
# The preset "novelty": what kept most on the mean of perception and recall, see docs/memory.md.
NOVELTY: dict[str, Any] = {"sampled_share": AUTO, "important_share": AUTO}
NOVELTY_SHARE = 0.7
NOVELTY_WINDOW_CHUNKS = 2  # room that the window keeps all the same, in chunks like the first


@dataclass(frozen=True)
class EvictionConfig:
    """How much the stream may hold. By itself sink and window alone (level 1), token-exact, as the
    reference has it; `novelty` is the preset of the node and the command line.

    Attributes:
        max_cache_tokens: the cap: the stream is never longer after an append. 0: as large as fits,
            settled by `VideoStreamingInference` when it takes its memory.
        sink_size: tokens that stay for ever; 0: the whole first chunk.
        window_size: tokens of the recent past; 0: what the sink and both shares leave.
        sampled_share: level 2's share of the cap less the sink, 0 to 1: temporal grids kept evenly
            over all the time between sink and window.
        important_share: level 3's share: the temporal grids that matter most. The window has what
            both leave. Both `AUTO`: the preset `novelty`. One of them `AUTO`: nothing for that one.
        eviction_interval: evict so much at once that the next ``eviction_interval - 1`` chunks of
            average size need no eviction. The cap holds all the same.

    Raises:
        InvalidParameterError: a value out of range, or sink and window exceed the cap.
    """

    max_cache_tokens: int = 150_000
    sink_size: int = 0
    window_size: int = 0
    eviction_interval: int = 1
    sampled_share: float = 0.0
    important_share: float = 0.0

    def __post_init__(self) -> None:
        for name, least in (
            ("max_cache_tokens", 0),
            ("sink_size", 0),
            ("window_size", 0),
            ("eviction_interval", 1),
        ):
            object.__setattr__(self, name, whole_number(name, getattr(self, name), least))
        settled = self.max_cache_tokens > 0
        if settled and self.sink_size + self.window_size > self.max_cache_tokens:
            raise InvalidParameterError(
                f"sink_size {self.sink_size} + window_size {self.window_size} exceed "
                f"max_cache_tokens {self.max_cache_tokens}"
            )
        if settled and self.sink_size == self.max_cache_tokens:
            raise InvalidParameterError(
                f"sink_size {self.sink_size} leaves no window under max_cache_tokens "
                f"{self.max_cache_tokens}"
            )
        for name in ("sampled_share", "important_share"):
            share = real_number(getattr(self, name))
            if share is None or not (share == AUTO or 0 <= share < 1):
                raise InvalidParameterError(
                    f"{name} must be a number from 0 to below 1, or {AUTO:g} (automatic): "
                    f"{getattr(self, name)!r}"
                )
            object.__setattr__(self, name, share)
        if self.sampled_share + self.important_share >= 1:
            raise InvalidParameterError(
                f"sampled_share {self.sampled_share} + important_share {self.important_share} "
                "leave nothing for the window"
            )

    @classmethod
    def novelty(cls, max_cache_tokens: int = 150_000, **others: Any) -> EvictionConfig:
        """The preset: 70 % of the cap, less the sink, for the frames least like any other.

        Less where the window would hold fewer than two chunks like the first; sink and window alone
        where ``window_size`` is given. ``EvictionConfig(..., **NOVELTY)`` says the same.
        """
        return cls(max_cache_tokens, **NOVELTY, **others)

    @classmethod
    def for_span(cls, seconds: float, tokens_per_second: float, **others: Any) -> EvictionConfig:
        """The cap said another way: so many seconds of video at so many tokens a second."""
        if not (seconds > 0 and tokens_per_second > 0 and seconds * tokens_per_second < math.inf):
            raise InvalidParameterError(
                f"cannot derive a cap from {seconds!r} s at {tokens_per_second!r} tokens/s"
            )
        return cls(math.ceil(seconds * tokens_per_second), **others)

    @property
    def automatic(self) -> bool:
        """It is the preset `novelty`: the shares of levels 2 and 3 are chosen here."""
        return self.sampled_share == self.important_share == AUTO

    @property
    def shares(self) -> tuple[float, float]:
        """Of levels 2 and 3, of the cap less the sink, where there is room for them."""
        if self.automatic:
            return 0.0, 0.0 if self.window_size else NOVELTY_SHARE
        return max(0.0, self.sampled_share), max(0.0, self.important_share)

    @property
    def keeps_grids(self) -> bool:
        """Whether level 2 or 3 is in use."""
        return any(self.shares)

    @property
    def long_lived(self) -> tuple[float, float]:
        """What sink and kept grids take, where grids are kept: a share of the cap, and tokens.

        A sink whose size comes with the first chunk is taken for a sixteenth of the cap.
        """
        share = sum(self.shares)
        if self.sink_size:
            return share, (1 - share) * self.sink_size
        return share + (1 - share) / 16, 0.0


def check_device(name: str) -> None:
    """Raise InvalidParameterError unless it names a device, or is "auto"."""
    kind, _, index = name.partition(":")
    if kind not in ("auto", "cpu", "cuda") or (
        ":" in name and not (kind == "cuda" and index.isdigit())
    ):
        raise InvalidParameterError(f"must be auto, cpu, cuda or cuda:N, got {name!r}")


def check_memory_name(name: str) -> None:
    """Raise InvalidParameterError unless it names a file within the folder of saved memories."""
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}", name):
        raise InvalidParameterError(
            f"{cut(name)!r} names no memory: up to 100 letters, digits, '_', '-' and '.', not "
            "beginning with '.' or '-'"
        )


def check_session_name(name: str) -> None:
    """Raise InvalidParameterError unless it is empty, or may name a session."""
    if name:
        check_memory_name(name)


def check_engine_url(url: str) -> None:
    """Raise InvalidParameterError unless it is empty, or the address of a `stream-vlm serve`."""
    if not url:
        return
    example = "such as ws://gpu-box:8090, or wss://memory.example.org behind a proxy with TLS"
    try:
        parts = urlsplit(url)
        usable = bool(parts.hostname) and parts.port != 0
    except ValueError as fault:  # a port or an address that is none
        raise InvalidParameterError(f"{cut(url)!r} is no address ({fault}); {example}") from None
    if parts.scheme not in ("ws", "wss") or not usable or re.search(r"\s", url):
        near = {"http": "ws", "https": "wss"}.get(parts.scheme)
        hint = f"did you mean {near}{url.removeprefix(parts.scheme)}?" if near else example
        raise InvalidParameterError(f"{cut(url)!r} is no address of a server: {cut(hint)}")
    if parts.username is not None or parts.query or parts.fragment:
        raise InvalidParameterError(
            "an address is without user, ? and #: the key is told by engine_key_file or "
            "STREAM_VLM_API_KEY"
        )


def check_score_name(name: str) -> None:
    """Raise InvalidParameterError unless it has the form ``MODULE:NAME`` ("" names none)."""
    if name and not re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*", name):
        raise InvalidParameterError(
            f"{cut(name)!r} is not of the form MODULE:NAME, such as my_scores:Brightest"
        )


def check_source_names(names: tuple[str, ...]) -> None:
    """Raise InvalidParameterError unless each names a camera, and no two the same."""
    for name in names:
        if not re.fullmatch(r"[A-Za-z](_?[A-Za-z0-9])*", name) or name == "stream":
            raise InvalidParameterError(
                f"{cut(name)!r} names no camera: letters, digits and single '_' between them, "
                "beginning with a letter; not 'stream'"
            )
    if len(set(names)) < len(names):
        raise InvalidParameterError(f"a name is there twice: {', '.join(names)}")


# What holds for all cameras of a node; the other settings may be a camera's own.
ALL_CAMERAS = (
    "sources", "engine", "model_path", "device", "dtype", "compile_chunks", "memory_folder",
    "answers_file", "answers_megabytes", "ingest_share", "status_period", "autostart",
    "engine_url", "engine_key_file",
)  # fmt: skip


@dataclass(frozen=True)
class Settings(SettingTable):
    """The settings of a node, or of a run of a replay. In both 0 or "" often stands for the
    checkpoint's own value; each text says so.

    Raises InvalidParameterError for a value that is not allowed, alone or with the others.
    """

    # The model
    model_path: str = shared(
        "",
        "Folder of a Qwen2.5-VL checkpoint on this machine; nothing is ever downloaded. "
        "Empty: the small model that comes with the package and knows only the drawn world.",
        flag="--model",
        verbs=("ask", "replay", "rate", "demo", "history", "web", "serve"),
    )
    device: str = shared(
        "auto",
        "Where the model runs: auto, cpu, cuda or cuda:N. auto takes a GPU if there is one.",
        verbs=("ask", "replay", "rate", "demo", "history", "web", "serve"),
        rule=check_device,
    )
    dtype: str = shared(
        "auto",
        "Number format of weights and memory. auto: bfloat16 on a GPU, float32 on a CPU.",
        choices=("auto", "float32", "bfloat16", "float16"),
    )
    system_prompt: str = shared("", "System text of the chat. Empty: the chat template's own.")
    question_path: str = shared(
        "auto",
        "How a question's text runs: eager (call by call), graph (as CUDA graphs, recorded when "
        "configured) or static (their steps, not recorded). auto: graph on a GPU, else eager.",
        choices=("auto", "eager", "static", "graph"),
    )
    compile_chunks: str = shared(
        "auto",
        "Fuse the elementwise work of chunks by torch.compile, which takes some ten seconds when "
        "configured, and record small chunks as CUDA graphs. auto: on a GPU. always: an error "
        "where there is none.",
        choices=("auto", "always", "never"),
    )

    # The cameras
    sources: tuple[str, ...] = node_only(
        (),
        "Names of several cameras, in a list or separated by commas: one model, a memory of its "
        "own for each. NAME.SETTING is one camera's own setting; what is not set so is the node's. "
        "Empty: one camera, which needs no name.",
        rule=check_source_names,
    )
    image_topic: str = node_only(
        "",
        "Topic of the images. Empty: image, or of several cameras NAME/image; each may be "
        "remapped.",
    )
    weight: float = node_only(
        1.0,
        "Of several cameras: its share of the model's time when there is not enough for all, "
        "compared with the others'.",
        0.01,
        100.0,
        change=ALWAYS,
    )

    # The memory
    engine: str = shared(
        "streaming",
        "streaming: every frame is encoded as it comes, answers come at once. delayed_batch: "
        "frames are kept, and some are encoded when a question comes (docs/delayed-batch.md). "
        "remote, for the node: model and memory are at a server, engine_url (docs/remote.md).",
        choices=("streaming", "delayed_batch", "remote"),
        verbs=("web",),
    )
    max_cache_tokens: int = shared(
        16384,
        "The memory never holds more tokens than this, but for fork_slack_tokens while an answer "
        "is being written; 64 at least. 0: as many as fit the device (of a CPU's memory half), at "
        "most the model's context less max_tail_tokens.",
        0,
        10_000_000,
        verbs=("ask", "demo", "web", "serve"),
    )
    sink_size: int = shared(
        0,
        "Tokens at the start that are always kept. 0: the whole first chunk.",
        0,
        10_000_000,
    )
    window_size: int = shared(
        0,
        "Most recent tokens that are kept. 0: all that the sink and the kept frames leave.",
        0,
        10_000_000,
    )
    eviction_interval: int = shared(
        1,
        "Evict at every n-th chunk, below the cap, instead of at each one.",
        1,
        10_000,
    )
    layout: str = shared(
        "continuous",
        "continuous: one growing video, its time exact across chunks. segmented: a user turn "
        "around every chunk, whose positions begin after the last one: time is exact within it.",
        choices=("continuous", "segmented"),
        verbs=("ask",),
    )
    position_policy: str = shared(
        "contiguous",
        "Positions after an eviction: contiguous closes the gaps, keep_gaps leaves them.",
        choices=("contiguous", "keep_gaps"),
    )
    max_pause: float = shared(
        300.0,
        "Seconds. After a longer pause between frames positions go on as if it had not been; the "
        "frames' stamps stay true. 0: pauses of any length count, as far as the model's positions "
        "reach.",
        0.0,
        86_400.0,
    )
    min_pixels: int = shared(
        0,
        "Smaller pictures are enlarged to this many pixels. 0: the model's own.",
        0,
        100_000_000,
    )
    max_pixels: int = shared(
        401_408,
        "Larger pictures are reduced to this many pixels, or to the model's own bound where that "
        "is less; 784 pixels make one token for two frames. 0: the model's own.",
        0,
        100_000_000,
        change=ALWAYS,
        verbs=("ask", "info", "demo", "web", "serve"),
    )
    sampled_share: float = shared(
        AUTO,
        "Share of the memory, less the sink, for frames kept evenly over all the time before the "
        "window. -1: see important_share.",
        -1.0,
        0.99,
        verbs=("web",),
    )
    important_share: float = shared(
        AUTO,
        "Share of the memory, less the sink, for frames from before the window that are least "
        "like any other. -1 for both: the preset novelty (docs/memory.md), 0.7 for these unless "
        "window_size is given. 0 for both: sink and window alone. -1 for one: 0.",
        -1.0,
        0.99,
        verbs=("web",),
    )
    importance: str = shared(
        "",
        "Your own score of which frames from before the window are important, as MODULE:NAME: a "
        "class with describe(features) and rank(descriptors) in a module on PYTHONPATH "
        "(docs/memory.md). Empty: those least like any other.",
        rule=check_score_name,
        verbs=("ask", "replay"),
    )
    skip_similarity: float = shared(
        0.0,
        "Leave out the parts of a picture whose features are this close (cosine) to those last "
        "taken in there; for scenes that hardly change, for example 0.98. 0: leave out nothing.",
        0.0,
        1.0,
    )

    fork_slack_tokens: int = node_only(
        -1,
        "Room beyond max_cache_tokens, in tokens, for frames that come while an answer is being "
        "written from a full memory. -1: four chunks of the largest pictures, at most half of "
        "max_cache_tokens. 0: none, they wait for the answer's end.",
        -1,
        10_000_000,
    )

    # A memory at a server
    engine_url: str = node_only(
        "",
        "remote: address of a stream-vlm serve, such as ws://gpu-box:8090; wss:// is encrypted.",
        rule=check_engine_url,
    )
    engine_key_file: str = node_only(
        "",
        "remote: file with the server's key, which only its owner can read. Empty: the variable "
        "STREAM_VLM_API_KEY of the environment, or else none.",
    )
    session_name: str = node_only(
        "",
        "remote: name of the session at the server, which is taken up again where it is there. "
        "Empty: the node's full name, with dots for slashes, and the camera's.",
        rule=check_session_name,
    )
    remote_encoding: str = node_only(
        "jpeg",
        "remote: how pictures travel, reduced to the model's size: jpeg, or raw (exact, some ten "
        "times as much).",
        choices=("jpeg", "raw"),
        change=ALWAYS,
    )
    jpeg_quality: int = node_only(
        90,
        "remote: quality of the JPEGs.",
        1,
        100,
        change=ALWAYS,
    )

    # Saved memories
    memory_folder: str = node_only(
        "",
        "Folder of saved memories, the only one in which memories are saved and from which they "
        "are loaded by a name. Empty: both are refused (docs/saving.md).",
        verbs=("web", "serve"),
    )
    memory_name: str = node_only(
        "memory",
        "Name of the memory there that is saved and loaded where no other is asked for; its file "
        "is memory_name.safetensors.",
        rule=check_memory_name,
    )
    load_memory_at_start: bool = node_only(
        False,
        "Begin with the memory memory_name. One that is not there is no error; one that is refused "
        "is left alone, and the node begins with an empty memory.",
    )
    save_memory_minutes: float = node_only(
        0.0,
        "Save the memory as memory_name every so many minutes, if it has changed. 0: do not.",
        0.0,
        100_000.0,
        change=ALWAYS,
        verbs=("serve",),
    )
    save_memory_on_shutdown: bool = node_only(
        False,
        "Save the memory as memory_name when the node is cleaned up or ends.",
        change=ALWAYS,
    )
    load_memory: str = replay_only(
        "",
        "Begin with the memory in this file, saved with the same model and settings.",
        verbs=("ask", "replay"),
    )
    save_memory: str = replay_only(
        "",
        "Save the memory in this file at the end (docs/saving.md).",
        verbs=("ask", "replay"),
    )

    # Past questions
    answers_file: str = node_only(
        "",
        "SQLite file in which past questions are kept with their answers, for ~/get_answers; taken "
        "up again at the next start. Empty: in memory.",
        verbs=("web",),
    )
    answers_megabytes: int = node_only(
        16,
        "Maximum megabytes (2^20 bytes) of past questions and answers; beyond, the oldest go.",
        1,
        10_000,
    )

    # The history behind the engine streaming
    history: str = shared(
        "never",
        "streaming: what is fetched of the past that the memory has let go. never: nothing, and "
        "nothing is kept for it. auto: where the past fits a question, and better than what is in "
        "memory. always: whenever any of it fits (docs/history.md).",
        choices=HISTORY,
        verbs=("ask", "replay", "demo", "web", "serve"),
    )
    history_calibration: str = shared(
        "",
        "File that stream-vlm calibrate has written for the checkpoint. Empty: the one in the "
        "checkpoint's folder, or else a fallback that finds less.",
        verbs=("ask", "replay", "history"),
    )
    history_index_megabytes: int = shared(
        256,
        "Maximum megabytes (2^20 bytes) of the keys that the past is searched by; beyond, they are "
        "thinned out in time.",
        1,
        1_000_000,
    )
    history_feature_megabytes: int = shared(
        0,
        "Maximum megabytes (2^20 bytes) of the host's memory for what the vision tower made of the "
        "newest frames: read in a quarter of the time that pictures take. 0: none.",
        0,
        1_000_000,
    )
    history_max_tokens: int = shared(
        4096,
        "Maximum number of tokens of the past that are read for a question, but two pairs of "
        "frames at least.",
        64,
        1_000_000,
    )

    # Frames that are kept, for a history or the engine delayed_batch
    keep_fps: float = shared(
        1.0,
        "delayed_batch: frames a second that are kept, by stamp. 0: every frame.",
        0.0,
        120.0,
    )
    max_sampled_frames: int = shared(
        48,
        "delayed_batch: maximum number of frames encoded for a question.",
        2,
        10_000,
    )
    sampled_max_pixels: int = shared(
        100_352,
        "Kept frames: larger pictures are reduced to this many pixels when they are encoded for a "
        "question, in place of max_pixels. 0: the model's own. With a history it is taken when "
        "configured.",
        0,
        100_000_000,
        change=ALWAYS,
    )
    frame_store: str = shared(
        "",
        "Folder in which frames are kept, and with a history the keys that find them; taken up "
        "again at the next start. Empty: in memory.",
        verbs=("ask", "replay", "web"),
    )
    frame_store_megabytes: int = shared(
        1024,
        "Maximum megabytes (2^20 bytes) of kept frames.",
        1,
        100_000_000,
    )
    frame_store_hours: float = shared(
        24.0,
        "Kept frames older than this are forgotten.",
        0.001,
        100_000.0,
    )

    # Where the robot was
    pose_topic: str = node_only(
        "",
        "Topic of the robot's pose, told with each frame that an answer rests on: "
        "geometry_msgs/PoseStamped, geometry_msgs/PoseWithCovarianceStamped, nav_msgs/Odometry or "
        "tf2_msgs/TFMessage (/tf), whichever is published there. Empty: none.",
    )
    pose_frame: str = node_only("base_link", "For /tf: the frame whose pose it is.")
    pose_parent: str = node_only(
        "map", "For /tf: the frame in which it is told; pose_frame hangs below it."
    )
    pose_tolerance: float = node_only(
        0.5,
        "Seconds between a frame and the nearest pose beyond which none is told for it. Between "
        "two poses that are both nearer it is interpolated.",
        0.0,
        60.0,
        change=ALWAYS,
    )

    # The way of a frame
    image_transport: str = node_only(
        "auto",
        "raw reads sensor_msgs/Image on 'image'; compressed reads sensor_msgs/CompressedImage on "
        "'image/compressed'; auto looks at what is published.",
        choices=("auto", "raw", "compressed"),
    )
    image_qos: str = node_only(
        "auto",
        "Reliability of the image subscription; auto takes the publisher's once it is discovered.",
        choices=("auto", "reliable", "best_effort"),
    )
    max_decoded_megapixels: float = shared(
        64.0,
        "Pictures of more megapixels are refused by their header, before they are decoded. It also "
        "bounds what compressed data may unpack to: 8 bytes a pixel, and 64 MiB.",
        0.01,
        1000.0,
        verbs=("ask", "replay", "web", "serve"),
    )
    sample_fps: float = shared(
        2.0,
        "Frames a second taken into the memory, by the frames' own stamps. 0: every frame.",
        0.0,
        120.0,
        change=ALWAYS,
        flag="--fps",
        verbs=("ask", "replay", "info", "questions", "demo", "web", "serve"),
    )
    chunk_frames: int = shared(
        4,
        "Frames gathered before they are encoded together.",
        1,
        64,
        change=ALWAYS,
        verbs=("ask", "demo", "web", "serve"),
    )
    max_chunk_delay: float = node_only(
        2.0,
        "Seconds after which a chunk that is not full is encoded as it is. 0: wait until full.",
        0.0,
        3600.0,
        change=ALWAYS,
    )
    queue_size: int = node_only(
        2,
        "Chunks that may wait for the model. A further one pushes out the oldest.",
        1,
        256,
        change=ALWAYS,
        verbs=("serve",),
    )
    max_questions: int = node_only(
        8,
        "Questions that may wait; further ones are refused.",
        1,
        256,
        change=ALWAYS,
        verbs=("serve",),
    )
    ingest_share: float = node_only(
        0.5,
        "While an answer is being written: the share of its time for chunks that wait. 0.5: it "
        "takes at most about twice as long. 1: a chunk after every token. 0: chunks wait until the "
        "answer is complete.",
        0.0,
        1.0,
        change=ALWAYS,
        verbs=("serve",),
    )
    on_time_jump: str = node_only(
        "reset",
        "When stamps run backwards, three frames in a row (a looped bag): reset forgets and starts "
        "again, reject drops frames until stamps pass the newest one again.",
        choices=("reset", "reject"),
        change=ALWAYS,
    )
    time_jump_tolerance: float = node_only(
        1.0,
        "Seconds a stamp may lie behind the newest and count as a late frame, which is dropped, "
        "not as a time jump.",
        0.0,
        3600.0,
        change=ALWAYS,
    )
    max_time_gap: float = node_only(
        3600.0,
        "Seconds. A frame further ahead of the one before it is dropped for a wrong stamp, unless "
        "two more follow it, each within this time: then there was a long pause, and the memory "
        "goes on (max_pause).",
        1.0,
        86_400.0,
        change=ALWAYS,
    )

    # Answers
    max_new_tokens: int = shared(
        128,
        "Tokens of an answer, unless the question says otherwise.",
        1,
        100_000,
        change=ALWAYS,
        verbs=("ask", "demo", "web", "serve"),
    )
    temperature: float = shared(
        0.0,
        "0: the most likely answer; above: sampled, unless the question says otherwise.",
        0.0,
        10.0,
        change=ALWAYS,
    )
    refuse_forgotten: bool = node_only(
        True,
        "Refuse a question with about_from or about_to if nothing of that time is in memory "
        "(OUT_OF_HORIZON). false: answer it from what there is.",
        change=ALWAYS,
    )
    max_tail_tokens: int = shared(
        2048,
        "Room for one question with its answer, in tokens.",
        64,
        1_000_000,
    )

    # The node
    no_image_timeout: float = node_only(
        5.0,
        "Seconds without an image after which /diagnostics and the log tell the likely cause.",
        0.1,
        3600.0,
        change=ALWAYS,
    )
    status_period: float = node_only(
        1.0,
        "Seconds between two messages on ~/cache_status and /diagnostics.",
        0.05,
        60.0,
    )
    autostart: bool = node_only(True, "Configure and activate without being asked.", change=START)

    # A run of a replay
    name: str = replay_only("", "Name of the run in its report. Empty: its engine.")
    seed: int = replay_only(0, "Where sampling begins, with a temperature above 0.", 0, 2**31 - 1)
    token_logprobs: bool = replay_only(
        False,
        "Write into report.json the ids of each answer's tokens with the model's log-probability "
        "of each, and the scores a token of choices.",
        verbs=("replay",),
    )
    at_question: str = replay_only(
        "grids",
        "What is done with a chunk that is not full when a question is due. grids: its complete "
        "pairs are encoded first; one odd frame may wait. all: all of it is encoded; an odd last "
        "frame is repeated. complete: it waits until it is full, as in the node.",
        choices=("grids", "all", "complete"),
    )

    def of_source(self, name: str, own: Mapping[str, Any]) -> Settings:
        """The settings of one of several cameras.

        Args:
            own: what is set for it alone, by name.
        """
        usual = {"image_topic": f"{name}/image", "memory_name": f"{self.memory_name}-{name}"}
        if self.frame_store:  # a folder holds one camera's frames
            usual["frame_store"] = str(Path(self.frame_store) / name)
        if self.session_name:
            usual["session_name"] = f"{self.session_name}-{name}"
        return self.changed({**usual, **own, "sources": ()})

    def check(self) -> None:
        if self.sources and self.image_topic:
            raise InvalidParameterError(
                f"image_topic is one camera's: set {self.sources[0]}.image_topic"
            )
        if 0 < self.max_cache_tokens < 64:
            raise InvalidParameterError(
                f"max_cache_tokens must be 0 (as many as fit) or at least 64, got "
                f"{self.max_cache_tokens}"
            )
        self.eviction  # noqa: B018 - what it refuses is refused here
        if self.importance and not (self.engine == "streaming" and self.eviction.shares[1]):
            raise InvalidParameterError(
                "importance decides which frames of important_share are kept: it is for the engine "
                "streaming with an important_share"
            )
        if self.min_pixels and self.max_pixels and self.min_pixels > self.max_pixels:
            raise InvalidParameterError(
                f"min_pixels ({self.min_pixels}) is above max_pixels ({self.max_pixels})"
            )
        if self.max_new_tokens >= self.max_tail_tokens:
            raise InvalidParameterError(
                f"max_new_tokens ({self.max_new_tokens}) must be below max_tail_tokens "
                f"({self.max_tail_tokens}), which also holds the question"
            )

        wanted = [
            name
            for name in ("load_memory_at_start", "save_memory_minutes", "save_memory_on_shutdown")
            if getattr(self, name)
        ]
        if wanted and not self.memory_folder:
            raise InvalidParameterError(f"{wanted[0]} needs a memory_folder")
        if self.engine == "streaming" and self.frame_store and not self.has_history:
            raise InvalidParameterError(
                "frame_store keeps frames for a history: set history to auto or always, or engine "
                "to delayed_batch"
            )
        if self.history_feature_megabytes and not self.has_history:
            raise InvalidParameterError(
                "history_feature_megabytes is for a history: set history to auto or always, or "
                "leave it at 0"
            )
        if self.engine == "delayed_batch":
            if self.has_history:
                raise InvalidParameterError(
                    "history is for the engine streaming: delayed_batch is the history without a "
                    "stream; leave history at never"
                )
            wanted += [name for name in ("load_memory", "save_memory") if getattr(self, name)]
            if wanted:
                raise InvalidParameterError(
                    f"{wanted[0]} is for the engine streaming: delayed_batch keeps its frames in "
                    "frame_store"
                )

        self._check_remote()

    def _check_remote(self) -> None:
        """What is the server's to decide is not decided here, and the other way round."""
        is_remote = self.engine == "remote"
        if is_remote and not self.engine_url:
            raise InvalidParameterError(
                "engine remote needs engine_url, such as ws://gpu-box:8090 (docs/remote.md)"
            )
        if self.engine_url and not is_remote:
            raise InvalidParameterError(
                f"engine_url is for the engine remote, and engine is {self.engine}"
            )
        its = ("model_path", "memory_folder", "frame_store", "load_memory", "save_memory")
        wanted = [name for name in its if getattr(self, name)]
        wanted += ["history"] if self.has_history else []
        if is_remote and wanted:
            raise InvalidParameterError(
                f"{wanted[0]} is the server's with the engine remote: leave it out here, and give "
                "it to stream-vlm serve"
            )

    @property
    def has_history(self) -> bool:
        """Whether the past is kept behind the stream's memory."""
        return self.history != "never"

    @property
    def may_recall(self) -> bool:
        """Whether a question may ask for the past: what a server keeps, only the server knows."""
        return self.has_history or self.engine == "remote"

    @property
    def keeps_frames(self) -> bool:
        """Whether frames are kept in a store."""
        return self.has_history or self.engine == "delayed_batch"

    @property
    def pixel_limit(self) -> tuple[str, int]:
        """Which setting bounds the pictures of the engine in use, and its value."""
        name = "sampled_max_pixels" if self.engine == "delayed_batch" else "max_pixels"
        return name, getattr(self, name)

    @property
    def eviction(self) -> EvictionConfig:
        """What of them says how much the stream may hold."""
        return EvictionConfig(
            max_cache_tokens=self.max_cache_tokens,
            sink_size=self.sink_size,
            window_size=self.window_size,
            eviction_interval=self.eviction_interval,
            sampled_share=self.sampled_share,
            important_share=self.important_share,
        )

    @property
    def title(self) -> str:
        """What a run is called."""
        return self.name or self.engine

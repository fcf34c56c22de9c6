# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""A replay written into an MCAP bag: images and answers on one time line, for Foxglove and rviz."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_types_from_msg, get_typestore

from stream_vlm_ros.console import plural
from stream_vlm_ros.engine.inputs.timestamps import SECOND
from stream_vlm_ros.node.captions import captioned
from stream_vlm_ros.owned import check, kind_of, mark, put_in_place, remove_tree, tidy
from stream_vlm_ros.sources import Frame

from .records import AnswerRecord, EpisodeRecord
from .runner import Pictures, Silence

NODE = "/stream_vlm"
_DEFINITIONS = Path(__file__).with_name("interfaces")
BAG = "session bag"  # in the folder's mark
_OURS = ("TimeSpan", "MemoryLevel", "HistoryTier", "CacheStatus", "Evidence", "Answer")
_INFO, _WARN = 20, 30  # levels of rcl_interfaces/msg/Log


class SessionBag(Silence):
    """Listens to a replay and writes what the node would publish, each at the source's own time.

    ``CAMERA/compressed``: the frames that went into memory, as JPEG.
    ``/stream_vlm/annotated_image``: the same with words on them. ``/stream_vlm/answer``,
    ``/stream_vlm/cache_status``, ``/diagnostics``: as the node's. ``/rosout``: each question with
    its answer as a line of text, for a log panel.

    The bag takes its place when it is complete: at the end of a ``with`` block that raises nothing.

    Args:
        folder: where the bag goes; one of ours that is there from before is then replaced.
        quality: of the JPEGs, 1 to 95.

    Raises NotOursError for a folder that holds anything else.
    """

    def __init__(self, folder: Path, quality: int = 85) -> None:
        check(folder, BAG)
        tidy(folder, BAG)
        self._folder, self._part = folder, folder.with_name(f".{folder.name}.part")
        if kind_of(self._part) == BAG:  # of a process that was killed
            remove_tree(self._part, BAG)
        self._part.mkdir(parents=True)
        mark(self._part, BAG)
        self._quality = quality
        self._store = get_typestore(Stores.ROS2_JAZZY)
        for name in _OURS:
            text = (_DEFINITIONS / f"{name}.txt").read_text(encoding="utf-8")
            self._store.register(get_types_from_msg(text, f"stream_vlm/msg/{name}"))
        # In a folder of the bag's own name, after which its file is called.
        self._writer = Writer(
            self._part / folder.name, version=9, storage_plugin=StoragePlugin.MCAP
        )
        self._writer.open()
        self._connections: dict[str, Any] = {}
        self._status: Any = None
        self._above: list[str] = []
        self._below: list[str] = []
        self._chunks = self._frames = self._evicted = self._evictions = self._pauses = 0
        self._closed_seconds = 0.0

    def __enter__(self) -> SessionBag:
        return self

    def __exit__(self, kind: Any, *exception: Any) -> None:
        try:
            self._writer.close()
            if kind is None:
                mark(self._part / self._folder.name, BAG)
                put_in_place(self._part / self._folder.name, self._folder, BAG)
        finally:
            remove_tree(self._part, BAG)

    def on_chunk(self, camera: str, offset_ns: int, frames: list[Frame], entry: dict) -> None:
        topic = camera_topic(camera).removesuffix("/compressed")
        for frame in frames:
            self._write_jpeg(f"{topic}/compressed", frame.stamp_ns, camera, frame.image)
            shown = captioned(frame.image, self._above, self._below)
            self._write_jpeg(f"{NODE}/annotated_image", frame.stamp_ns, camera, shown)
        stamp = frames[-1].stamp_ns
        self._chunks += 1
        self._frames += len(frames)
        self._evicted += entry["evicted_tokens"]
        self._evictions += entry["evicted_tokens"] > 0
        self._pauses += entry["closed_seconds"] > 0
        self._closed_seconds += entry["closed_seconds"]
        self._status = self._cache_status(stamp, camera, entry)
        self._above = [f"{plural(entry['cache_length'], 'token')} in memory"]
        self._write(f"{NODE}/cache_status", stamp, self._status)
        self._write("/diagnostics", stamp, self._diagnostics(stamp, camera, entry))

    def on_answer(
        self, record: AnswerRecord, image: np.ndarray | None, pictures: Pictures = ()
    ) -> None:
        stamp = record["stamp_ns"]
        if stamp is None or record["status"] == "not_reached":
            return
        self._write(f"{NODE}/answer", stamp, self._answer(stamp, record))
        said = record["answer"] if record["status"] == "answered" else record["error"]["message"]
        self._below = [record["question"], said or ""]
        self._write(
            "/rosout",
            stamp,
            self._make(
                "rcl_interfaces/msg/Log",
                stamp=self._time(stamp),
                level=_INFO if record["right"] is not False else _WARN,
                name=NODE.strip("/"),
                msg=f"{record['question']} -> {said}",
                file="",
                function="",
                line=0,
            ),
        )

    # -- messages ----------------------------------------------------------------------------

    def _answer(self, stamp: int, record: AnswerRecord) -> Any:
        metrics, times = record.get("metrics", {}), record.get("times", {})
        origin = stamp - round(record["at"] * SECOND)
        seen = [[origin + round(t * SECOND) for t in stretch] for stretch in record.get("seen", ())]
        error = record.get("error")
        zero = self._time(0)
        return self._make(
            "stream_vlm/msg/Answer",
            question=record["question"],
            choices=record["choices"],
            text=record["answer"] or "",
            choice_index=metrics.get("choice_index", -1),
            choice_scores=np.array(metrics.get("scores", []), np.float32),
            choice_tokens=np.array(metrics.get("choice_tokens", []), np.uint32),
            error_code=1 if error else 0,
            error_message=f"{error['code']}: {error['message']}" if error else "",
            header=self._header(seen[-1][1] if seen else 0, record["camera"]),
            oldest_stamp=self._time(seen[0][0]) if seen else zero,
            newest_stamp=self._time(seen[-1][1]) if seen else zero,
            source=record["camera"],
            seen=[self._span(*stretch) for stretch in seen],
            evidence=[self._evidence(origin, one, record) for one in record.get("episodes", ())],
            fetched_tokens=metrics.get("fetched_tokens", 0),
            waiting=self._duration(0.0),
            ttft=self._duration(times.get("ttft", 0.0)),
            latency=self._duration(times.get("latency", 0.0)),
            prompt_tokens=metrics.get("prompt_tokens", 0),
            answer_tokens=metrics.get("answer_tokens", 0),
            finish_reason=metrics.get("finish_reason", "choice" if record["choices"] else ""),
            cache_status=self._status or self._cache_status(0, record["camera"], {}),
        )

    def _evidence(self, origin: int, episode: EpisodeRecord, record: AnswerRecord) -> Any:
        def at(seconds: float) -> int:
            return origin + round(seconds * SECOND)

        return self._make(
            "stream_vlm/msg/Evidence",
            source=record["camera"],
            span=self._span(at(episode["start"]), at(episode["end"])),
            score=episode["score"],
            tier=episode["tier"],
            stamps=[self._time(at(stamp)) for stamp in episode["stamps"]],
        )

    def _cache_status(self, stamp: int, camera: str, entry: dict[str, Any]) -> Any:
        return self._make(
            "stream_vlm/msg/CacheStatus",
            header=self._header(stamp, camera),
            state="active",
            length=entry.get("cache_length", 0),
            memory_bytes=entry.get("memory_bytes", 0),
            chunks=self._chunks,
            frames=self._frames,
            evictions=self._evictions,
            evicted_tokens=self._evicted,
            closed_pauses=self._pauses,
            closed_seconds=self._closed_seconds,
            newest_stamp=self._time(stamp),
            frames_received=self._frames,
            frames_ingested=self._frames,
        )

    def _diagnostics(self, stamp: int, camera: str, entry: dict[str, Any]) -> Any:
        pairs = {
            "cache_length": entry["cache_length"],
            "memory_bytes": entry["memory_bytes"],
            "evicted_tokens": self._evicted,
            "frames": self._frames,
            "encode_latency_ms": round(1000 * entry["times"]["latency"], 1),
        }
        status = self._make(
            "diagnostic_msgs/msg/DiagnosticStatus",
            level=0,
            name="stream_vlm: model and memory",
            message=f"{entry['cache_length']} tokens",
            hardware_id=camera,
            values=[
                self._make("diagnostic_msgs/msg/KeyValue", key=key, value=str(value))
                for key, value in pairs.items()
            ],
        )
        return self._make(
            "diagnostic_msgs/msg/DiagnosticArray", header=self._header(stamp, ""), status=[status]
        )

    # -- small parts -------------------------------------------------------------------------

    def _make(self, kind: str, **fields: Any) -> Any:
        """A message with ``fields``; what is not given is zero or empty."""
        names = [name for name, _ in self._store.fielddefs[kind][1]]
        values = {name: _text(fields.pop(name)) if name in fields else None for name in names}
        assert not fields, f"{kind} has no field {', '.join(fields)}"
        for name, description in self._store.fielddefs[kind][1]:
            if values[name] is None:
                values[name] = self._zero(description)
        return self._store.types[kind](**values)

    def _zero(self, description: Any) -> Any:
        """The empty value of a field."""
        node, detail = int(description[0]), description[1]
        if node == 1:  # a plain type
            return "" if detail[0] in ("string", "wstring") else 0
        if node == 2:  # another message
            return self._make(detail)
        return []

    def _header(self, stamp_ns: int, frame_id: str) -> Any:
        return self._make("std_msgs/msg/Header", stamp=self._time(stamp_ns), frame_id=frame_id)

    def _time(self, stamp_ns: int) -> Any:
        return self._make(
            "builtin_interfaces/msg/Time", sec=stamp_ns // SECOND, nanosec=stamp_ns % SECOND
        )

    def _span(self, start_ns: int, end_ns: int) -> Any:
        return self._make(
            "stream_vlm/msg/TimeSpan", start=self._time(start_ns), end=self._time(end_ns)
        )

    def _duration(self, seconds: float) -> Any:
        whole = round(seconds * SECOND)
        return self._make(
            "builtin_interfaces/msg/Duration", sec=whole // SECOND, nanosec=whole % SECOND
        )

    def _write_jpeg(self, topic: str, stamp_ns: int, camera: str, image: np.ndarray) -> None:
        message = self._make(
            "sensor_msgs/msg/CompressedImage",
            header=self._header(stamp_ns, camera),
            format="jpeg",
            data=np.frombuffer(self._jpeg(image), np.uint8),
        )
        self._write(topic, stamp_ns, message)

    def _jpeg(self, image: np.ndarray) -> bytes:
        out = io.BytesIO()
        Image.fromarray(image).save(out, "JPEG", quality=self._quality)
        return out.getvalue()

    def _write(self, topic: str, stamp_ns: int, message: Any) -> None:
        kind, topic = message.__msgtype__, _text(topic)
        if topic not in self._connections:
            self._connections[topic] = self._writer.add_connection(
                topic, kind, typestore=self._store
            )
        data = self._store.serialize_cdr(message, kind)
        self._writer.write(self._connections[topic], stamp_ns, data)


def _text(value: Any) -> Any:
    """A string as a message can carry it: a file's name may be none."""
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else value


def camera_topic(camera: str) -> str:
    """A topic's name for a camera: its own, or one made of a file's name."""
    if camera.startswith("/"):
        return camera
    stem = Path(camera).stem or "camera"
    plain = "".join(c if c.isascii() and (c.isalnum() or c == "_") else "_" for c in stem)
    return f"/{plain}" if plain[:1].isalpha() else f"/camera_{plain}"

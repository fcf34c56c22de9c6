# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Small pictures of a run for its report: of each question's time, of its evidence, and of what its
answer rests on."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from stream_vlm_ros.engine.inputs.timestamps import SECOND
from stream_vlm_ros.owned import write_whole
from stream_vlm_ros.sources import Frame

from .questions import Question
from .records import AnswerRecord, EvidencePicture
from .rendering import noting
from .runner import Pictures, Silence

WIDTH = 320
THUMBNAILS = "thumbnails"
STRETCHES = 2  # of a question's evidence have a picture
NEAR_NS = SECOND  # a picture that is farther from the evidence shows something else


class Thumbnails(Silence):
    """Hands each record on, when it names its pictures, and writes them.

    Args:
        out: the report's folder.
        number: of the run, from 0.
        questions: whose evidence is shown.
        keep: is given each new record.
        failed: where it is noted that one cannot be written; none is tried after that.
    """

    def __init__(
        self,
        out: Path,
        number: int,
        questions: Sequence[Question],
        keep: Callable[[AnswerRecord], None],
        failed: dict[str, str],
    ) -> None:
        self._out, self._number, self._keep, self._failed = out, number, keep, failed
        self._questions = questions
        self._count = 0
        self._waiting: dict[str, _Waiting] = {}  # by camera

    def on_chunk(self, camera: str, offset_ns: int, frames: list[Frame], entry: dict) -> None:
        waiting = self._waiting.get(camera)
        if waiting is None:
            waiting = self._waiting[camera] = _Waiting(self._questions, camera, not self._waiting)
        index = [*self._waiting].index(camera)
        for frame in frames:
            at_ns = offset_ns - (frames[-1].stamp_ns - frame.stamp_ns)
            name = f"{THUMBNAILS}/{self._number + 1}-evidence-{index}-{at_ns // 1_000_000}.jpg"
            if waiting.shown_by(at_ns, {"path": name, "at": at_ns / SECOND}):
                self._write({name: small_jpeg(frame.image)})

    def on_answer(
        self, record: AnswerRecord, image: np.ndarray | None, pictures: Pictures = ()
    ) -> None:
        if record["status"] == "not_reached":
            return
        fresh = "thumbnail" not in record
        self._count += 1
        if image is not None:
            record["thumbnail"] = f"{THUMBNAILS}/{self._number + 1}-{self._count:04d}.jpg"
        files = self._episodes(record, pictures)
        if fresh:
            waiting = self._waiting.get(record["camera"])
            if waiting and (found := waiting.found.get(record["question_id"])):
                record["evidence_pictures"] = found
            self._keep(record)
        if image is not None:
            files[record["thumbnail"]] = small_jpeg(image)
        self._write(files)

    def _episodes(self, record: AnswerRecord, pictures: Pictures) -> dict[str, bytes]:
        """Pictures of an answer's episodes by the paths that the record names."""
        files: dict[str, bytes] = {}
        stem = f"{THUMBNAILS}/{self._number + 1}-{self._count:04d}"
        for number, (episode, some) in enumerate(
            zip(record.get("episodes", ()), pictures, strict=False), 1
        ):
            named = {f"{stem}-{number}-{k}.jpg": data for k, data in enumerate(some, 1)}
            episode["thumbnails"] = [*named]
            files |= named
        return files

    def _write(self, files: dict[str, bytes]) -> None:
        for name, data in files.items():
            if THUMBNAILS not in self._failed:
                with noting(THUMBNAILS, self._failed):
                    path = self._out / name
                    path.parent.mkdir(parents=True, exist_ok=True)
                    write_whole(path, data)


class _Waiting:
    """The evidence of a camera's questions whose picture has not come yet.

    A stretch of evidence is shown by the first frame at its middle or after, up to its end.

    Attributes:
        found: by a question's id, the pictures of its evidence so far.
    """

    def __init__(self, questions: Sequence[Question], camera: str, first: bool) -> None:
        self.found: dict[str, list[EvidencePicture]] = {}
        self._next = [
            ((begin + end) / 2 * SECOND, end * SECOND + NEAR_NS, question.id)
            for question in questions
            if (
                first
                if question.camera is None
                else question.camera.strip("/") == camera.strip("/")
            )
            for begin, last in question.evidence[:STRETCHES]
            # Of what goes on after the question, the part before it.
            for end in [min(last, math.inf if question.at is None else max(begin, question.at))]
        ]
        self._next.sort(reverse=True)

    def shown_by(self, at_ns: int, picture: EvidencePicture) -> bool:
        """Whether the frame at this time shows some of it; then ``picture`` is noted for that."""
        shown = False
        while self._next and self._next[-1][0] <= at_ns:
            _, end_ns, question_id = self._next.pop()
            if at_ns <= end_ns:
                self.found.setdefault(question_id, []).append(picture)
                shown = True
        return shown


def small_jpeg(image: np.ndarray) -> bytes:
    """A picture at most `WIDTH` wide."""
    picture = Image.fromarray(image)
    if picture.width > WIDTH:
        height = max(1, round(picture.height * WIDTH / picture.width))
        picture = picture.resize((WIDTH, height))
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=80)
    return out.getvalue()

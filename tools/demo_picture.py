# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""The README's picture: what ``make demo`` asks while its world is running, and the answers.

Frames with words on them, as the node publishes them on ``~/annotated_image``.
Usage: demo_picture.py FILE
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image

from stream_vlm_ros.demo.defaults import WORLD
from stream_vlm_ros.demo.settings import DEMO
from stream_vlm_ros.factory import load_engine
from stream_vlm_ros.node.captions import captioned
from stream_vlm_ros.sources import open_source
from stream_vlm_ros.world.examiner import WorldExaminer

COLUMNS, ROWS, SECONDS = 3, 2, 40
SIZE, GAP = (360, 270), 6  # pixels of a frame, and between two


def shown() -> list[np.ndarray]:
    """A frame for each question that has a right answer, with it and the model's."""
    engine, examiner = load_engine(DEMO), WorldExaminer(WORLD.removeprefix("world:"))
    pictures, chunk = [], []
    for frame in open_source(WORLD, fps=DEMO.sample_fps, end=SECONDS):
        chunk.append(frame)
        if len(chunk) < DEMO.chunk_frames:
            continue
        stamps = [one.stamp_ns / 1e9 for one in chunk]
        engine.append_video_chunk([one.image for one in chunk], timestamps=stamps)
        if question := examiner.question(stamps[-1]):
            answer, _ = engine.ask(question.text)
            verdict = examiner.judge(question, answer, stamps[-1])
            held = engine.get_cache_info().cache_seq_length
            mark = "right" if verdict.right else f"wrong, it was: {verdict.truth}"
            picture = np.asarray(Image.fromarray(chunk[-1].image).resize(SIZE))
            above = f"{stamps[-1]:.1f} s, {held:,} of {DEMO.max_cache_tokens:,} tokens in memory"
            pictures.append(captioned(picture, [above], [question.text, f"{answer} ({mark})"]))
        chunk = []
    return pictures


def main(target: Path) -> None:
    """Lay as many as have room on a sheet, from the whole length."""
    pictures = shown()
    (width, height), room = SIZE, COLUMNS * ROWS
    chosen = [pictures[round(i * (len(pictures) - 1) / (room - 1))] for i in range(room)]
    sheet = Image.new("RGB", (COLUMNS * (width + GAP) - GAP, ROWS * (height + GAP) - GAP), "white")
    for index, picture in enumerate(chosen):
        row, column = divmod(index, COLUMNS)
        sheet.paste(Image.fromarray(picture), (column * (width + GAP), row * (height + GAP)))
    target.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(target, quality=88)


if __name__ == "__main__":
    main(Path(sys.argv[1]))

# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""The lengths and evictions to expect, computed from sizes alone, without the engine."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from stream_vlm_ros.engine import StreamProcessor
from stream_vlm_ros.engine.inputs.picture_sizes import smart_resize


def grid_tokens(
    processor: StreamProcessor,
    size: tuple[int, int],
    min_pixels: int | None = None,
    max_pixels: int | None = None,
) -> int:
    """Tokens of one temporal grid of pictures of (width, height)."""
    settings = processor.image_settings
    height, width = smart_resize(
        size[1],
        size[0],
        settings.factor,
        settings.min_pixels if min_pixels is None else min_pixels,
        settings.max_pixels if max_pixels is None else max_pixels,
    )
    return height * width // settings.factor**2


@dataclass(frozen=True)
class TextTokens:
    """Text tokens around the frames of a stream, from the chat template's own rendering.

    Attributes:
        head: before the first frame.
        close: after the frames of a user turn.
        turn: before the frames of a later user turn.
    """

    head: int
    close: int
    turn: int

    @classmethod
    def of(cls, processor: StreamProcessor, system: str | None = None) -> TextTokens:
        """Of a processor and a system prompt (None: the template's own)."""
        said = [] if system is None else [{"role": "system", "content": system}]
        video = {"role": "user", "content": [{"type": "video"}]}
        once = processor.apply_chat_template([*said, video])
        twice = processor.apply_chat_template([*said, video, video])
        tokenizer = processor.tokenizer
        pad = "<|video_pad|>"

        def count(text: str) -> int:
            return len(tokenizer.encode(text, add_special_tokens=False))

        before, after = once.split(pad)
        turn = twice.removeprefix(once).split(pad)[0]
        return cls(count(before), count(after), count(turn))


@dataclass(frozen=True)
class Step:
    """The memory after one chunk, in tokens."""

    tokens: int
    evicted: int
    length: int


@dataclass(frozen=True)
class Prediction:
    """A stream under level 1: sink and window.

    Attributes:
        chunks: tokens of each.
        cap: longest stream, in tokens.
    """

    chunks: tuple[int, ...]
    cap: int

    @classmethod
    def of(
        cls,
        processor: StreamProcessor,
        size: tuple[int, int],
        frames: int,
        chunk_frames: int,
        cap: int,
        layout: str,
        system: str | None = None,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
    ) -> Prediction:
        """Of ``frames`` pictures of one size in chunks of ``chunk_frames``."""
        text = TextTokens.of(processor, system)
        cell = grid_tokens(processor, size, min_pixels, max_pixels)
        depth = processor.image_settings.temporal_patch_size
        chunks = []
        for start in range(0, frames, chunk_frames):
            count = min(chunk_frames, frames - start)
            words = text.head if start == 0 else 0
            if layout == "segmented":
                words += text.close + (text.turn if start else 0)
            chunks.append(-(-count // depth) * cell + words)
        return cls(tuple(chunks), cap)

    @property
    def sink(self) -> int:
        return self.chunks[0]

    @property
    def window(self) -> int:
        return self.cap - self.sink

    def steps(self) -> list[Step]:
        """One a chunk: the stream grows to the cap, then as much goes as comes."""
        sums = [0]
        for tokens in self.chunks:
            sums.append(sums[-1] + tokens)
        gone = [max(0, total - self.cap) for total in sums]
        return [
            Step(tokens, later - earlier, total - later)
            for tokens, (earlier, later), total in zip(
                self.chunks, pairwise(gone), sums[1:], strict=True
            )
        ]


def lengthened_system_prompt(processor: StreamProcessor, text_tokens: int) -> str:
    """A system prompt with which a segmented stream's first chunk has so many text tokens.

    For comparing with a system whose own prompt is not known, but its length is.
    """
    prompt = "You are a helpful assistant."
    for _ in range(4096):
        text = TextTokens.of(processor, prompt)
        missing = text_tokens - text.head - text.close
        if missing == 0:
            return prompt
        if missing < 0:
            break
        prompt += " a" * missing
    from stream_vlm_ros.errors import InvalidParameterError

    raise InvalidParameterError(
        f"No system prompt gives a first chunk of {text_tokens} text tokens: with the shortest it "
        f"has {sum((TextTokens.of(processor, 'a').head, TextTokens.of(processor).close))}."
    )

# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""The chat layout: which text tokens stand around the frames and around a question.

Everything is taken from the checkpoint's own chat template, by rendering example conversations
with marks in them and cutting at the marks. Questions are data: control tokens in them are
encoded as plain text.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import cached_property
from typing import Any

from transformers import Qwen2_5_VLConfig

from stream_vlm_ros.engine.inputs.processor import StreamProcessor
from stream_vlm_ros.errors import (
    InvalidChoicesError,
    InvalidParameterError,
    InvalidQuestionError,
    ModelLoadError,
)

LAYOUTS = ("continuous", "segmented")
MAX_CHOICES = 64
# No tokenizer spends one token on more characters than this; longer is refused unread.
_MAX_CHARACTERS_PER_TOKEN = 64
_QUESTION, _ANSWER = "\ue000", "\ue001"  # private-use characters: no template contains them


def trim_to_vision_segment(ids: Sequence[int], start_id: int, end_id: int) -> list[int]:
    """From the rendering of a chunk's prompt keep the vision segment with its two marks.

    Several segments: from the first's start to the last's end. No complete segment, or no ids:
    all that was given.
    """
    ids = list(ids)
    if start_id not in ids or end_id not in ids:
        return ids
    start = ids.index(start_id)
    end = len(ids) - 1 - ids[::-1].index(end_id)
    return ids[start : end + 1] if start < end else ids


def _half_character(text: str) -> str | None:
    """What is wrong with a text that no tokenizer can read; None if nothing is."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return (
            f"contains an unpaired surrogate (U+{ord(text[error.start]):04X} at "
            f"{error.start}): decode it as UTF-16 or UTF-8 first"
        )
    return None


class ChatLayout:
    """Token ids of the fixed pieces of a conversation about a stream.

    Args:
        processor: tokenizer and chat template of the checkpoint.
        config: names the vision tokens.
        system_prompt: None: what the template says by itself.

    Raises:
        ModelLoadError: the template does not show where video and text go.

    Attributes:
        head: everything before the first frame, up to the vision start.
        turn: a later user turn, up to the vision start.
        close: the end of a vision segment.
        turn_end: the end of a user turn that asks nothing.
        answer_end: the end of an answer's turn.
    """

    def __init__(
        self,
        processor: StreamProcessor,
        config: Qwen2_5_VLConfig,
        system_prompt: str | None = None,
    ):
        self._tokenizer = processor.tokenizer
        self._letters = processor.letter_encoder
        self._processor = processor
        self._config = config
        pad = self._tokenizer.convert_ids_to_tokens(config.video_token_id)
        if pad is None:
            raise ModelLoadError(
                f"video_token_id is {config.video_token_id}, which is no word of the tokenizer: "
                "take both from the same checkpoint folder"
            )
        system: list[dict[str, Any]] = []
        if system_prompt is not None:
            if not isinstance(system_prompt, str):
                raise InvalidParameterError(f"the system prompt must be text: {system_prompt!r}")
            if half := _half_character(system_prompt):
                raise InvalidParameterError(f"the system prompt {half}")
            system = [{"role": "system", "content": system_prompt}]
        video = {"type": "video"}
        asked = {"role": "user", "content": [video, {"type": "text", "text": _QUESTION}]}
        told = {"role": "user", "content": [video]}
        answer = {"role": "assistant", "content": [{"type": "text", "text": _ANSWER}]}
        text_only = {"role": "user", "content": [{"type": "text", "text": _QUESTION}]}

        render = self._render
        before, after = self._cut(render([*system, asked], True), pad)
        question_open, question_end = self._cut(after, _QUESTION)
        _, answered = self._cut(render([*system, asked, answer], False), _ANSWER)
        _, more = self._cut(render([*system, asked, answer, told], False), _ANSWER)
        turn, told_end = self._cut(more.removeprefix(answered), pad)
        _, again = self._cut(render([*system, asked, answer, text_only], True), _ANSWER)
        turn_open, _ = self._cut(again.removeprefix(answered), _QUESTION)

        # The vision end and what stands before a question; the same without a vision end; behind.
        self._question_close = self._special(question_open)
        self._turn_open = self._special(turn_open)
        self._question_end = self._special(question_end)
        self.head = self._special(before)
        self.turn = self._special(turn)
        ids = trim_to_vision_segment(
            self._special(turn + pad + told_end),
            config.vision_start_token_id,
            config.vision_end_token_id,
        )
        at = ids.index(config.video_token_id) if config.video_token_id in ids else -1
        if at < 1 or at + 1 >= len(ids):
            raise ModelLoadError("the chat template puts no vision marks around a video")
        self.close = ids[at + 1 :]
        self.turn_end = self._special(told_end)[len(self.close) :]
        self.answer_end = self._special(answered)

    def behind_chunk(self, layout: str) -> list[int]:
        """What follows a chunk's frames: nothing where the next chunk goes on in their segment."""
        return [*self.close, *self.turn_end] if layout == "segmented" else []

    def max_chunk_text(self, layout: str) -> int:
        """Tokens of the text around a chunk's frames, at most."""
        return max(len(self.head), len(self.turn)) + len(self.behind_chunk(layout))

    @cached_property
    def identity(self) -> dict[str, str]:
        """Hashes of the tokenizer's words and of the fixed pieces: what prompts are made of.

        (Once: a released tokenizer has 150,000 words.)
        """
        words = sorted(self._tokenizer.get_vocab().items())
        pieces = [
            self.head,
            self.turn,
            self.close,
            self.turn_end,
            self.answer_end,
            self._question_close,
            self._turn_open,
            self._question_end,
        ]
        return {
            name: hashlib.sha256(json.dumps(value).encode()).hexdigest()
            for name, value in (("tokenizer", words), ("chat", pieces))
        }

    def question(
        self,
        text: str,
        in_segment: bool,
        room: int,
        earlier: Sequence[tuple[str, str]] = (),
    ) -> list[int]:
        """Token ids from the end of what was seen to where the answer begins.

        Args:
            in_segment: an open vision segment goes before: it is closed, and the question stands
                in the same user turn. Otherwise the question is a user turn of its own.
            room: tokens that may be used.
            earlier: questions with their answers, which stand before this one as turns.

        Raises:
            InvalidQuestionError: not text, empty, or longer than the room.
        """
        said = [*(one for turn in earlier for one in turn), text]
        for one in said:
            if not isinstance(one, str):
                raise InvalidQuestionError(f"a question must be text, not {type(one).__name__}")
            if half := _half_character(one):
                raise InvalidQuestionError(f"the question {half}")
        # Each turn takes tokens, however short it is.
        if len(said) > room or sum(map(len, said)) > room * _MAX_CHARACTERS_PER_TOKEN:
            with_turns = f" with {len(earlier):,} earlier turns" if earlier else ""
            raise InvalidQuestionError(
                f"the question{with_turns} is {sum(map(len, said))} characters long: far more than "
                f"the {room} tokens kept for a question with its answer"
            )
        if not text.strip():
            raise InvalidQuestionError("the question is empty")
        ids, opening = [], self._question_close if in_segment else self._turn_open
        for asked, answer in earlier:
            ids += [*opening, *self.plain(asked), *self._question_end]
            ids += [*self.plain(answer), *self.answer_end]
            opening = self._turn_open
        ids += [*opening, *self.plain(text), *self._question_end]
        if len(ids) > room:
            raise InvalidQuestionError(
                f"the question takes {len(ids)} tokens, but {room} are kept for a question with "
                "its answer: shorten it, or raise max_tail_tokens"
            )
        return ids

    def words(self, text: str) -> slice:
        """Where a question's own words stand in its `question`, counted from the end."""
        stop = -len(self._question_end)
        return slice(stop - len(self.plain(text)), stop or None)

    def choices(self, texts: Sequence[str], room: int) -> list[list[int]]:
        """Token ids of each choice; InvalidChoicesError says what is wrong with the list."""
        if isinstance(texts, str) or not isinstance(texts, Sequence):
            raise InvalidChoicesError("choices must be a list of texts")
        if not 1 <= len(texts) <= MAX_CHOICES:
            raise InvalidChoicesError(
                f"{len(texts)} choices were given: between 1 and {MAX_CHOICES} are possible"
            )
        for number, text in enumerate(texts, start=1):
            if not isinstance(text, str) or not text.strip():
                raise InvalidChoicesError(f"choice {number} is empty or not text: {text!r:.50}")
            if half := _half_character(text):
                raise InvalidChoicesError(f"choice {number} {half}")
        longest = max(texts, key=len)
        if len(longest) > room * _MAX_CHARACTERS_PER_TOKEN:
            raise InvalidChoicesError(f"a choice of {len(longest)} characters is too long")
        ids = [self.plain(text) for text in texts]
        if max(map(len, ids)) * len(ids) > room:
            raise InvalidChoicesError(
                f"{len(ids)} choices of up to {max(map(len, ids))} tokens need more than the "
                f"{room} tokens kept for a question: use fewer or shorter ones"
            )
        return ids

    def plain(self, text: str) -> list[int]:
        """Token ids of text from outside: a token with a name in it is just letters."""
        ids: list[int] = self._letters.encode(text, add_special_tokens=False).ids
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of generated ids, without control tokens."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=True)

    def _special(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False)

    def _render(self, messages: list[dict[str, Any]], add_generation_prompt: bool) -> str:
        try:
            return self._processor.apply_chat_template(messages, add_generation_prompt)
        except Exception as error:  # jinja's, of many kinds
            raise ModelLoadError(f"the chat template cannot be rendered: {error}") from error

    @staticmethod
    def _cut(text: str, mark: str) -> tuple[str, str]:
        before, found, after = text.rpartition(mark)  # a system prompt may hold the mark too
        if not found:
            raise ModelLoadError(
                "the chat template drops the video or the text of a message: it does not fit a "
                "vision-language model"
            )
        return before, after

# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""What surrounds the weights: tokenizer, chat template, and how pictures become patches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from stream_vlm_ros.engine.inputs.frames import FrameProcessor, ImageSettings, read_json_object
from stream_vlm_ros.errors import (
    InvalidParameterError,
    ModelLoadError,
    check_model_folder,
    folder_named,
)


@dataclass(frozen=True)
class StreamProcessor:
    """Tokenizer, image settings and chat template of one checkpoint.

    Stands in for the library's AutoProcessor, whose video part needs torchvision.
    """

    tokenizer: PreTrainedTokenizerBase
    image_settings: ImageSettings
    chat_template: str

    @classmethod
    def from_pretrained(cls, path: str | Path) -> StreamProcessor:
        """From a checkpoint folder on this machine; nothing is downloaded, no weights are needed.

        Raises ModelLoadError naming the folder or file that is missing or unusable.
        """
        folder = folder_named(path)
        check_model_folder(folder)
        template = _load_chat_template(folder)
        tokenizer = _load_tokenizer(folder)
        tokenizer.chat_template = template
        return cls(tokenizer, ImageSettings.from_folder(folder), template)

    @classmethod
    def wrap(cls, processor: Any) -> StreamProcessor:
        """From a StreamProcessor (as it is) or a processor of transformers.

        The latter needs a ``tokenizer``, an ``image_processor`` (else a ``video_processor``) and a
        chat template. Raises InvalidParameterError saying which one is missing.
        """
        if isinstance(processor, cls):
            return processor
        tokenizer = getattr(processor, "tokenizer", None)
        if tokenizer is None:
            raise InvalidParameterError(
                f"the processor ({type(processor).__name__}) has no tokenizer; "
                "use StreamProcessor.from_pretrained(path)"
            )
        images = getattr(processor, "image_processor", None)
        if images is None:
            images = getattr(processor, "video_processor", None)
        if images is None:
            raise InvalidParameterError(
                f"the processor ({type(processor).__name__}) has neither an image_processor nor a "
                "video_processor; use StreamProcessor.from_pretrained(path)"
            )
        template = _default_template(getattr(processor, "chat_template", None))
        template = template or _default_template(getattr(tokenizer, "chat_template", None))
        if template is None:
            raise InvalidParameterError(
                f"the processor ({type(processor).__name__}) has no chat template"
            )
        return cls(tokenizer, ImageSettings.from_dict(images.to_dict()), template)

    @cached_property
    def letter_encoder(self) -> Tokenizer:
        """Encodes text from outside: in it an added token, special or not, is just letters.

        Of its own, for engines in several threads: what the library's tokenizer does with control
        tokens is set by each call, also for the calls of others. The vocabulary is one.

        Raises InvalidParameterError for a tokenizer that is not of the tokenizers library.
        """
        core = getattr(self.tokenizer, "backend_tokenizer", None)
        if core is None:
            raise InvalidParameterError(
                f"the tokenizer ({type(self.tokenizer).__name__}) is not of the tokenizers "
                "library: use StreamProcessor.from_pretrained(path)"
            )
        encoder = Tokenizer(core.model)
        encoder.normalizer, encoder.pre_tokenizer = core.normalizer, core.pre_tokenizer
        return encoder

    def frame_processor(
        self, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
    ) -> FrameProcessor:
        """The FrameProcessor of these settings."""
        return FrameProcessor(self.image_settings, device, dtype)

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool = False,
        tokenize: bool = False,
    ) -> str:
        """The messages as one text in the model's chat layout; see transformers for their form.

        ``tokenize`` is the library's; only False is taken. Raises InvalidParameterError.
        """
        if tokenize:
            raise InvalidParameterError(
                "tokenize=True is not supported: encode the text by processor.tokenizer"
            )
        text = self.tokenizer.apply_chat_template(
            [dict(message) for message in messages],
            chat_template=self.chat_template,
            add_generation_prompt=add_generation_prompt,
            tokenize=False,
        )
        assert isinstance(text, str)
        return text


def _load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    # tokenizer.json says it all. The library's AutoTokenizer may rebuild the tokenizer by a class
    # that config.json suggests, and then loses words of one that was built otherwise.
    whole = (folder / "tokenizer.json").is_file()
    if not whole and not all((folder / name).is_file() for name in ("vocab.json", "merges.txt")):
        raise ModelLoadError(
            f"{folder} has no tokenizer: neither tokenizer.json nor vocab.json with merges.txt; "
            "copy it from the release of the model"
        )
    if (folder / "tokenizer_config.json").is_file():
        read_json_object(folder / "tokenizer_config.json")
    loader = PreTrainedTokenizerFast if whole else AutoTokenizer
    try:
        tokenizer = loader.from_pretrained(str(folder), local_files_only=True)
        # Some of its settings are not looked at before.
        tokenizer.decode(tokenizer.encode("a word"))
        return tokenizer
    except Exception as error:  # the tokenizers library raises bare Exception for a broken file
        raise ModelLoadError(f"the tokenizer in {folder} cannot be loaded: {error}") from error


def _load_chat_template(folder: Path) -> str:
    """In the library's order of precedence."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        try:
            return file.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise ModelLoadError(f"{file} cannot be read as text: {error}") from error
    for name in ("chat_template.json", "processor_config.json", "tokenizer_config.json"):
        file = folder / name
        if file.is_file():
            template = _default_template(read_json_object(file).get("chat_template"))
            if template is not None:
                return template
    raise ModelLoadError(
        f"{folder} has no chat template: none of chat_template.jinja, chat_template.json and "
        "tokenizer_config.json holds one; copy it from the release of the model"
    )


def _default_template(template: Any) -> str | None:
    """The template to use: the only one, or of several the one named default."""
    if isinstance(template, list):  # tokenizer files write several as a list of name and template
        entries = [entry for entry in template if isinstance(entry, Mapping)]
        template = next((e.get("template") for e in entries if e.get("name") == "default"), None)
    elif isinstance(template, Mapping):
        template = template.get("default")
    return template if isinstance(template, str) and template else None

# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""What the engine asks of a network. A family of models is one file that implements it.

`qwen2_5_vl` is the family there is. What another one gives, by the example of Qwen3-VL:

- its modules, each with ``released(prefix)``: the table of (name in a checkpoint, view into our
  parameter), which serves loading, saving and ``state_dict``. Weights that read the same input lie
  in one parameter; a view of it has each released name;
- `LayerFunctions`: what its layers compute between two attentions, as functions of tensors, so that
  they can be compiled once for all layers. Here its LayerNorm and GELU of the vision tower go;
- a decoder layer's ``project``: norms of queries and keys (no bias of Qwen3's) belong there, after
  the projection and before anything is rotated or read out;
- ``rotary``: `MultimodalRotary` is told the axis of each frequency. Interleaved M-RoPE is another
  such list: ``[i % 3 if i < 3 * sections[i % 3] else 0 for i in range(sum(sections))]``, with
  ``sections`` the config's ``mrope_section`` of (t, h, w);
- `encode`: features ``[tokens, hidden]``. `decode` also takes features of earlier vision layers,
  which are added after the first decoder layers (DeepStack), as ``added``. Nothing hands them on
  yet: for a family that needs them, `encode` has to return them too, and
  `StreamModel.stream_forward` and its caller to pass them;
- `read_config`: its checks in the user's words. Then an entry in `loading.FAMILIES`.

The engine reads these fields of ``config`` itself, by the names of transformers:

- ``vision_config.tokens_per_second``: `inference`, for positions in time;
- ``video_token_id``, ``vision_start_token_id``, ``vision_end_token_id``: `inputs.chat`;
- ``vision_config``'s ``patch_size``, ``spatial_merge_size`` and ``temporal_patch_size``, and
  ``text_config.vocab_size``: `loading.check_fit`;
- of both the ``hidden_size`` and ``intermediate_size``, ``text_config.max_position_embeddings``
  and the sizes of patches: `cache.budget`;
- ``vision_config.in_channels`` and the sizes of patches: `model.compiled`, for its trial run.

How a chunk's grids are laid out (positions, time as text) is not the network's: see `cache.mrope`
and `inputs.chat`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import nn
from transformers import GenerationConfig

from stream_vlm_ros.engine.attention.base import (
    BatchAttention,
    LayerAttention,
    Readout,
    RopeOffset,
)
from stream_vlm_ros.engine.attention.sdpa import ForkAttention
from stream_vlm_ros.engine.cache.buffer import KVShape
from stream_vlm_ros.engine.cache.mrope import MultimodalRotary
from stream_vlm_ros.engine.cache.requests import Fork
from stream_vlm_ros.engine.copies import to_device
from stream_vlm_ros.engine.inputs.frames import PatchGrid
from stream_vlm_ros.errors import (
    InvalidParameterError,
    ModelLoadError,
    folder_named,
    in_words,
)
from stream_vlm_ros.owned import place_to_write

from .weights import CheckpointFiles, fill, save

# input [n, in], weight [out, in], bias [out] or None -> [n, out], as `torch.nn.functional.linear`
Linear = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]

Model = TypeVar("Model", bound="StreamModel")


class LayerFunctions(NamedTuple):
    """What layers compute between two attentions, plain or compiled: functions of tensors alone.

    Arguments are given by place. The plain ones, in `qwen2_5_vl`, say the shape of each.

    Attributes:
        linear: ``(input, weight, bias or None)``: the language model's products.
        split_rows: with so many rows or more, weights that lie joined are multiplied one by one:
            the halves of one product are slow to split then.
        running: ``()``: the context that a pass runs within.
        norm: ``(hidden [n, hidden], weight, eps)`` to the normed states: before the first layer.
        project: ``(normed, norm, qkv, bias, eps, linear)``: a decoder layer up to its attention.
            ``normed`` is what ``norm`` or the layer before gave, ``norm`` the norm's weight.
        offsets: ``(offsets, like)``: offsets by which queries are to be rotated further, and a
            tensor of that device and head size; to what ``rotate`` takes of them.
        rotate: ``(qkv, cos, sin, offsets, kv_heads)``, as `attention.sdpa.rotate_qkv`.
        finish: ``(hidden, attended, out, post_norm, gate_up, down, next_norm, eps, linear, split,
            added)``: a decoder layer from its attention on, and the norm that follows it. See
            `qwen2_5_vl.finish_layer`.
        end: ``(normed, norm, eps)``: what the last layer gave to the states after the last norm.
        vision_qkv: ``(hidden, norm, qkv, qkv_bias, cos, sin, heads)``: a vision block up to its
            attention. See `qwen2_5_vl.vision_qkv`.
        finish_vision_block: ``(hidden, attended, proj, proj_bias, norm, gate_up, gate_up_bias,
            down, down_bias)``: the rest of the block. See `qwen2_5_vl.finish_vision_block`.
    """

    linear: Linear
    split_rows: int
    running: Callable[[], AbstractContextManager[Any]]
    norm: Callable[..., torch.Tensor]
    project: Callable[..., torch.Tensor]
    offsets: Callable[[list[RopeOffset], torch.Tensor], Any]
    rotate: Callable[..., Any]
    finish: Callable[..., tuple[torch.Tensor, torch.Tensor]]
    end: Callable[..., torch.Tensor]
    vision_qkv: Callable[..., tuple[torch.Tensor, ...]]
    finish_vision_block: Callable[..., torch.Tensor]


class StreamModel(nn.Module, ABC):
    """A network that appends vision and text to a memory that it does not own.

    It holds no state of any stream: several engines may share one.

    Attributes:
        config: the library's configuration of it.
        generation_config: the library's; of it the tokens that end an answer are used.
        rotary: the language model's rotation.
        functions: what its layers compute, not compiled.
    """

    config: Any
    generation_config: GenerationConfig
    rotary: MultimodalRotary
    functions: LayerFunctions

    # -- what a family gives -------------------------------------------------------------------

    @classmethod
    @abstractmethod
    def read_config(cls, folder: Path) -> Any:
        """The folder's configuration; ModelLoadError says why it is not one of this family."""

    @abstractmethod
    def __init__(
        self, config: Any, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
    ):
        """Allocate parameters uninitialised; only padding must be zero.

        Sets ``config``, ``generation_config``, ``rotary`` and ``functions`` (which a class may
        have as its own attribute).
        """
        super().__init__()

    @property
    @abstractmethod
    def kv_shape(self) -> KVShape:
        """Size of this model's KV."""

    @abstractmethod
    def released(self) -> Iterator[tuple[str, torch.Tensor]]:
        """(name in a released checkpoint, view into a parameter) of all weights.

        Weights that are tied have one name.
        """

    @property
    def released_parameters(self) -> int:
        """How many numbers the weights of a released checkpoint are: padding is not counted."""
        return sum(weight.numel() for _, weight in self.released())

    @staticmethod
    @abstractmethod
    def released_name(name: str) -> str:
        """The released name of a tensor that a file has under this or another library's name."""

    @abstractmethod
    def tied_names(self) -> dict[str, str]:
        """Released names that stand for another one's weights here, and that other one."""

    @abstractmethod
    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """Text embeddings: ``[...]`` to ``[..., hidden]``."""

    @abstractmethod
    def encode(self, patches: PatchGrid, functions: LayerFunctions) -> torch.Tensor:
        """Vision features of a chunk, ``[tokens, hidden]``."""

    def vision_layout(self, grid_thw: tuple[int, int, int]) -> Any:
        """What `encode` reads besides weights and patches of that grid.

        Made once a size and kept for some of them: whoever recorded a pass over it must hold it.
        """
        return None

    @abstractmethod
    def decode(
        self,
        hidden: torch.Tensor,
        positions: torch.Tensor,
        attention: LayerAttention,
        functions: LayerFunctions,
        added: Sequence[torch.Tensor] = (),
    ) -> torch.Tensor:
        """The language model: its layers and last norm. There is no other loop over them.

        Args:
            hidden: embeddings ``[n, hidden]``, of all sequences laid end to end.
            positions: ``[3, n]``.
            attention: of these tokens; see there for requests and batches of them.
            functions: how its layers run.
            added: what is added to the hidden states after the first layers, ``[n, hidden]`` each
                (DeepStack). `stream_forward` gives none.

        Returns:
            Hidden states after the last norm, ``[n, hidden]``.
        """

    @abstractmethod
    def project_logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """``[..., hidden]`` to ``[..., vocabulary]``."""

    # -- what follows from it ------------------------------------------------------------------

    def forward(self, *_: Any, **__: Any) -> None:
        """There is no plain call: see `encode_frames` and `stream_forward`."""
        raise InvalidParameterError(
            "this network appends to a memory and has no call by input_ids: use "
            "VideoStreamingInference, or load the folder by transformers' own class"
        )

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @torch.inference_mode()
    def encode_frames(
        self, patches: PatchGrid, functions: LayerFunctions | None = None
    ) -> torch.Tensor:
        """Vision features of a chunk, ``[tokens, hidden]``; ``functions``: compiled ones."""
        functions = functions or self.functions
        with functions.running():
            return self.encode(patches, functions)

    @torch.inference_mode()
    def embed_tokens(self, ids: list[int] | torch.Tensor) -> torch.Tensor:
        """Text embeddings: ``[..., hidden]``."""
        return self.embed(to_device(torch.as_tensor(ids, dtype=torch.long), self.device))

    @torch.inference_mode()
    def stream_forward(
        self,
        embeddings: torch.Tensor,
        positions: torch.Tensor,
        fork: Fork,
        functions: LayerFunctions | None = None,
        readout: Readout | None = None,
    ) -> torch.Tensor:
        """Append tokens to a fork.

        Args:
            embeddings: ``[batch, n, hidden]``.
            positions: ``[3, n]`` or ``[3, batch, n]``, in the frame of the stream's newest run.
            fork: what the tokens see, and where their keys and values go.
            functions: compiled ones, where a chunk is worth it.
            readout: what to read of queries and keys before they are rotated.

        Returns:
            Hidden states after the last norm, ``[batch, n, hidden]``.
        """
        batch, length, _ = embeddings.shape
        if positions.ndim == 2:
            positions = positions[:, None].expand(3, batch, length)
        if functions is None or batch * length < functions.split_rows:
            functions = self.functions  # a few tokens are not worth more
        attention = self.attention_over(fork, functions, batch, readout)
        # A copy made in inference mode, like all others that the compiled functions are given.
        hidden = embeddings.reshape(batch * length, -1).clone()
        positions = to_device(positions.reshape(3, -1), hidden.device)
        with functions.running():
            return self.decode(hidden, positions, attention, functions).view(embeddings.shape)

    @torch.inference_mode()
    def batch_forward(
        self,
        embeddings: torch.Tensor,
        positions: torch.Tensor,
        forks: Sequence[tuple[Fork, Readout | None]],
        lengths: Sequence[int],
        functions: LayerFunctions,
    ) -> torch.Tensor:
        """`stream_forward` for several forks, of one memory or of several, in one pass.

        Args:
            embeddings: ``[n, hidden]``, those of all forks laid end to end.
            positions: ``[3, n]``.
            forks: each with what to read of its queries and keys before they are rotated.
            lengths: tokens of each.

        Returns:
            Hidden states after the last norm, ``[n, hidden]``.
        """
        over = [self.attention_over(fork, functions, readout=read) for fork, read in forks]
        attention = BatchAttention([*zip(over, lengths, strict=True)])
        with functions.running():
            positions = to_device(positions, embeddings.device)
            return self.decode(embeddings.clone(), positions, attention, functions)

    def attention_over(
        self,
        fork: Fork,
        functions: LayerFunctions | None = None,
        batch: int = 1,
        readout: Readout | None = None,
    ) -> ForkAttention:
        """The attention of tokens that are appended to a fork, for `decode`."""
        shape = self.kv_shape
        scaling = shape.head_dim**-0.5
        functions = functions or self.functions
        return ForkAttention(fork, shape.kv_heads, scaling, functions, batch, readout)

    @torch.inference_mode()
    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """``[..., hidden]`` to ``[..., vocabulary]`` in float32."""
        return self.project_logits(hidden).float()

    # -- weights -------------------------------------------------------------------------------

    @classmethod
    def from_pretrained(
        cls: type[Model],
        path: str | Path,
        torch_dtype: torch.dtype | str | None = None,
        *,
        dtype: torch.dtype | str | None = None,
        device: str | torch.device = "cpu",
        **unknown: Any,
    ) -> Model:
        """Load a checkpoint folder of this machine; nothing is ever downloaded.

        Args:
            path: the folder with ``config.json`` and safetensors. A LoRA adapter next to them
                (``adapter_config.json``, ``adapter_model.safetensors``) is folded into the weights.
            torch_dtype: of the weights, or its name; None or "auto": as in the checkpoint.
            dtype: the same, as newer releases of transformers call it.
            device: where the weights are put, straight from the files: no second copy of them
                passes through the host's memory, as it does with ``.to(device)`` afterwards.

        Raises:
            ModelLoadError: the folder is missing or incomplete, holds another architecture, or
                its weights do not fit: every weight must come from the file and every weight of
                the file must be used.
            InvalidParameterError: an argument that means nothing here.
        """
        _refuse(unknown)
        folder = folder_named(path)
        checkpoint = CheckpointFiles.find(folder)
        config = cls.read_config(folder)
        wanted = _dtype_named(torch_dtype if dtype is None else dtype)
        wanted = wanted or _dtype_named(config.dtype) or checkpoint.dtype
        with torch.inference_mode(False):  # for training too, whatever mode the caller is in
            try:
                model = cls(config, wanted, device)
            except (RuntimeError, TypeError) as error:  # torch's, for room it cannot make or count
                raise ModelLoadError(
                    f"this machine has no room for the model that {folder / 'config.json'} "
                    f"announces: {in_words(error)}"
                ) from error
            fill(model, checkpoint.tensors(), str(folder))
            checkpoint.fold_adapter(model)
        if (folder / "generation_config.json").is_file():
            model.generation_config = checkpoint.generation_config(config.text_config.vocab_size)
        return model.eval()

    @classmethod
    def with_random_weights(
        cls: type[Model],
        config: Any,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
    ) -> Model:
        """A network of noise, for what depends on shapes and not on sense.

        Matrices are drawn with a standard deviation of 0.02, norms are 1, biases 0.
        """
        with torch.inference_mode(False), torch.no_grad():
            model = cls(config, dtype, device)
            noise = torch.Generator(device).manual_seed(seed)
            for name, weight in model.released():
                if weight.ndim > 1:  # what is drawn is contiguous, a view need not be
                    drawn = torch.empty(weight.shape, dtype=dtype, device=device)
                    weight.copy_(drawn.normal_(0.0, 0.02, generator=noise))
                else:
                    weight.fill_(0.0 if name.endswith("bias") else 1.0)
        return model.eval()

    def state_dict(self, *_: Any, **__: Any) -> dict[str, torch.Tensor]:  # type: ignore[override]
        """All weights under their released names: views, so that a change of one is seen."""
        return {name: weight.detach() for name, weight in self.released()}

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> None:
        """Copy weights in, under released names or the library's; all of them, and no others.

        Raises ModelLoadError where they do not fit, InvalidParameterError for other options.
        """
        if not strict or assign:
            raise InvalidParameterError("weights are copied in, and all of them")
        fill(self, state_dict.items(), "the state")

    def save_pretrained(self, folder: str | Path, max_shard_size: int = 5 * 10**9) -> None:
        """Write a checkpoint folder under the released names, which loads anywhere.

        Args:
            max_shard_size: bytes of a file; a larger model is written in several.

        Raises InvalidParameterError for an empty name.
        """
        folder = place_to_write("the checkpoint's folder", folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.config.dtype = self.dtype
        self.config.save_pretrained(folder)
        self.generation_config.save_pretrained(folder)
        save(self.released(), folder, max_shard_size)


# What the library's loader takes, and what to do instead.
_ELSEWHERE = {
    "attn_implementation": "the engine has an attention of its own",
    "device_map": "the model is on one device: move it there by .to(device)",
    "quantization_config": "weights of 16 or 32 bits alone are supported",
    "load_in_8bit": "weights of 16 or 32 bits alone are supported",
    "load_in_4bit": "weights of 16 or 32 bits alone are supported",
}


def _refuse(unknown: dict[str, Any]) -> None:
    for name in unknown:
        why = _ELSEWHERE.get(name, "it takes the folder, torch_dtype (or dtype) and device")
        raise InvalidParameterError(f"from_pretrained does not take '{name}': {why}")


def _dtype_named(wanted: torch.dtype | str | None) -> torch.dtype | None:
    """The number format of that name; None where there is no name, or it is "auto"."""
    if wanted is None or wanted == "auto":
        return None
    found = (
        getattr(torch, wanted.removeprefix("torch."), None) if isinstance(wanted, str) else wanted
    )
    if found not in (torch.float32, torch.float16, torch.bfloat16):
        raise InvalidParameterError(
            f"torch_dtype is {wanted!r}: use torch.bfloat16, torch.float16 or torch.float32"
        )
    return found

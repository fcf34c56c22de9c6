"""The model: loads a checkpoint, turns patches into features and embeddings into hidden states."""

from __future__ import annotations

import copy
import logging as python_logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import (
    Qwen2_5_VisionPatchEmbed,
    Qwen2_5_VLRMSNorm,
)
from transformers.utils import logging

from .attention import VISION_ATTENTION
from .buffer import KVShape
from .compiled import CompiledChunks, recompiling
from .decoder import LEAST_TOKENS, PLAIN, run_layers
from .errors import (
    DeviceUnavailableError,
    InvalidParameterError,
    ModelLoadError,
    check_model_folder,
)
from .forks import Fork
from .frames import PatchGrid
from .packed import pack
from .positions import MultimodalRotary
from .reference_names import ModelNames
from .vision import VisionLayouts, pad_mlps

log = python_logging.getLogger(__name__)

MODEL_TYPE = "qwen2_5_vl"
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


class LinearPatchEmbed(Qwen2_5_VisionPatchEmbed):
    """The library's first layer of the vision tower as the matrix product that it is.

    A convolution whose stride is its kernel multiplies each patch by one matrix; cuDNN has no good
    plan for it in bfloat16, and on a CPU it takes three times as long. The weights are the same.
    """

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """``[patches, channels * frames * patch * patch]`` to ``[patches, hidden]``."""
        weight = self.proj.weight  # [hidden, channels, frames, patch, patch]
        return torch.nn.functional.linear(hidden_states.to(weight.dtype), weight.flatten(1))


class OneCallNorm(Qwen2_5_VLRMSNorm):
    """The library's norm as one call of torch, for float32 on a CPU; elsewhere as it was.

    With few tokens on a CPU the eight calls take longer than the numbers.
    """

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        if hidden_states.is_cuda or hidden_states.dtype != torch.float32:
            return super().forward(hidden_states)
        shape = hidden_states.shape[-1:]
        return torch.rms_norm(hidden_states, shape, self.weight, self.variance_epsilon)


class StreamQwenModel(ModelNames, Qwen2_5_VLForConditionalGeneration):
    """Qwen2.5-VL that appends vision and text to an existing cache.

    The library's own modules and weights; only the attention functions, the rotation (float64
    angles) and these methods differ. It holds no state of any stream: several engines may share
    one model.
    """

    def __init__(self, config: Qwen2_5_VLConfig):
        # A copy: the names of our attention functions go into it, and the caller may build another.
        super().__init__(copy.deepcopy(config))
        self._become_streaming()

    @classmethod
    def from_pretrained(cls, path: str | Path, **kwargs: Any) -> StreamQwenModel:
        """Load a checkpoint folder of this machine; nothing is ever downloaded.

        Args:
            path: the folder with ``config.json`` and safetensors.
            kwargs: as for any transformers model; ``torch_dtype`` is taken for ``dtype``.

        Raises:
            ModelLoadError: the folder is missing or incomplete, holds another architecture, or
                its weights do not fit: every weight must come from the file and every weight of
                the file must be used.
        """
        folder = Path(path)
        check_checkpoint(folder)
        if "torch_dtype" in kwargs:
            kwargs["dtype"] = kwargs.pop("torch_dtype")
        # The stock class, renamed afterwards: the library looks up how to rename the file's keys
        # by class name, and would leave a subclass's language model random with only a warning.
        try:
            with _no_progress_bar():
                model, report = Qwen2_5_VLForConditionalGeneration.from_pretrained(
                    folder,
                    local_files_only=True,
                    output_loading_info=True,
                    ignore_mismatched_sizes=True,  # so that the report below can name them
                    **kwargs,
                )
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            raise ModelLoadError(f"cannot load the model in {folder}: {error}") from error
        except Exception as error:  # safetensors raises a type of its own for a truncated file
            if type(error).__module__.startswith(("safetensors", "builtins")):
                raise ModelLoadError(
                    f"cannot read the weights in {folder}: {error}. Is the file complete?"
                ) from error
            raise
        _check_report(folder, report)
        model.__class__ = cls
        model._become_streaming()
        return model

    def save_pretrained(self, *args: Any, **kwargs: Any) -> Any:
        """As the stock model, so that the folder loads anywhere."""
        self.__class__ = Qwen2_5_VLForConditionalGeneration
        try:
            return super(StreamQwenModel, StreamQwenModel).save_pretrained(self, *args, **kwargs)
        finally:
            self.__class__ = StreamQwenModel

    def _become_streaming(self) -> None:
        text = self.model.language_model
        if text.config.use_sliding_window:
            raise ModelLoadError("this checkpoint uses sliding window attention: not supported")
        stock = text.rotary_emb
        if stock.rope_type != "default":
            raise ModelLoadError(
                f"this checkpoint scales its rotary embedding ('{stock.rope_type}'): not supported"
            )
        self.rotary = MultimodalRotary(
            stock.inv_freq, text.config.rope_parameters["mrope_section"], stock.attention_scaling
        )
        text.rotary_emb = self.rotary
        self.model.visual.patch_embed.__class__ = LinearPatchEmbed
        self._layouts = VisionLayouts(self.config.vision_config)
        self.compiled: CompiledChunks | None = None
        # A name with "flash" is checked when a model is built, so it is set only now.
        self.model.visual.config._attn_implementation = VISION_ATTENTION

    @property
    def kv_shape(self) -> KVShape:
        """Size of this model's KV."""
        text = self.config.text_config
        return KVShape(
            layers=text.num_hidden_layers,
            kv_heads=text.num_key_value_heads,
            head_dim=text.hidden_size // text.num_attention_heads,
            dtype=self.dtype,
        )

    def settle(self, device: torch.device) -> None:
        """Move to a device, and there into the shape that it computes fastest in."""
        self.to(device)
        if self.compiled is not None and self.compiled.kind != (self.device, self.dtype):
            self.compile_chunks(False)
        if device.type == "cuda":
            pad_mlps(self.model.visual.blocks)
        else:
            for module in self.modules():
                if type(module) is Qwen2_5_VLRMSNorm:
                    module.__class__ = OneCallNorm
        pack(self)

    @torch.inference_mode()
    def compile_chunks(self, wanted: bool = True, backend: str = "inductor") -> None:
        """Fuse the elementwise work of chunks by torch.compile; ``wanted`` false: no more.

        Takes some ten seconds, once for all sizes. Where it does not work on this machine, the log
        says why and everything stays as it was.
        """
        if self.compiled is not None:
            self.compiled.undo()
            self.compiled = None
        if not wanted:
            return
        compiled = CompiledChunks(self, backend)
        try:
            compiled.try_out(self)
        except torch.OutOfMemoryError:
            compiled.undo()
            raise
        except Exception as fault:  # of the compiler's many kinds
            self.compiled = compiled
            self._do_without_compiler(fault)
            return
        self.compiled = compiled

    def _do_without_compiler(self, fault: Exception) -> None:
        self.compile_chunks(False)
        log.warning("chunks are not compiled: %s", f"{type(fault).__name__}: {fault}")

    @torch.inference_mode()
    def encode_frames(self, patches: PatchGrid) -> torch.Tensor:
        """Vision features of a chunk, ``[tokens, hidden]``."""
        pixels = patches.pixel_values.to(self.model.visual.dtype)
        layout = self._layouts.arguments(patches.grid_thw, self.device)
        if self.compiled is not None:
            try:
                with recompiling():
                    return self.model.visual(pixels, **layout).pooler_output
            except torch.OutOfMemoryError:
                raise
            except Exception as fault:
                self._do_without_compiler(fault)
        return self.model.visual(pixels, **layout).pooler_output

    @torch.inference_mode()
    def embed_tokens(self, ids: list[int] | torch.Tensor) -> torch.Tensor:
        """Text embeddings: ``[..., hidden]``."""
        ids = torch.as_tensor(ids, dtype=torch.long, device=self.device)
        return self.model.language_model.embed_tokens(ids)

    @torch.inference_mode()
    def stream_forward(
        self, embeddings: torch.Tensor, positions: torch.Tensor, fork: Fork
    ) -> torch.Tensor:
        """Append tokens to a fork.

        Args:
            embeddings: ``[batch, n, hidden]``.
            positions: ``[3, n]`` or ``[3, batch, n]``, in the frame of the stream's newest run.
            fork: what the tokens see, and where their keys and values go.

        Returns:
            Hidden states after the last norm, ``[batch, n, hidden]``.
        """
        batch, length, _ = embeddings.shape
        if positions.ndim == 2:
            positions = positions[:, None].expand(3, batch, length)
        positions = positions.to(embeddings.device)
        if self.compiled is not None and batch == 1 and length >= LEAST_TOKENS:
            before = fork.length
            try:
                return self.compiled.forward(embeddings, positions, fork)
            except torch.OutOfMemoryError:
                raise
            except Exception as fault:
                self._do_without_compiler(fault)
                fork.rewind(before)
        hidden, places = embeddings.flatten(0, 1), positions.reshape(3, 1, -1)
        text = self.model.language_model
        return run_layers(text, PLAIN, hidden, places, fork, batch).view(embeddings.shape)

    @torch.inference_mode()
    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """``[..., hidden]`` to ``[..., vocabulary]`` in float32."""
        return self.lm_head(hidden).float()


def resolve_device(device: str | torch.device) -> torch.device:
    """The device by that name; ``auto`` is the first GPU if there is one, else the CPU.

    Raises DeviceUnavailableError where this machine has no such device.
    """
    if device == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    try:
        wanted = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise DeviceUnavailableError(
            f"'{device}' is not a device: use auto, cpu, cuda or cuda:N"
        ) from error
    if wanted.type not in ("cpu", "cuda"):
        raise DeviceUnavailableError(
            f"device '{device}' is not supported: use auto, cpu, cuda or cuda:N"
        )
    if wanted.type == "cpu":
        return wanted
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if (wanted.index or 0) >= count:
        lacking = ", being built without CUDA" if torch.version.cuda is None else ""
        found = f"{count} of them" if count else f"none{lacking}"
        what = f"no CUDA GPU {wanted.index}" if count else "there is no CUDA GPU to use"
        raise DeviceUnavailableError(
            f"device is '{device}', but {what}: torch {torch.__version__} finds {found}; set "
            "device to 'auto' or 'cpu', or install a torch built for this machine's GPU and check "
            "nvidia-smi"
        )
    return wanted


def resolve_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """The number format of that name; ``auto`` is bfloat16 on a GPU and float32 elsewhere.

    Raises InvalidParameterError for another name than those of `DTYPES`.
    """
    if dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    if dtype not in DTYPES:
        raise InvalidParameterError(
            f"there is no number format '{dtype}': use auto, {', '.join(DTYPES)}"
        )
    return DTYPES[dtype]


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    """The library shows none meanwhile: a log is no place for one. Its setting is put back."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def check_checkpoint(folder: Path) -> None:
    """Raise ModelLoadError unless the folder's config is this model's and there are weights."""
    check_model_folder(folder)
    if not (folder / "config.json").is_file():
        raise ModelLoadError(f"{folder} has no config.json: not a checkpoint folder, or incomplete")
    if not any(folder.glob("*.safetensors")) and not any(folder.glob("*.bin")):
        raise ModelLoadError(
            f"{folder} has no weights (*.safetensors): the checkpoint is incomplete"
        )
    try:
        config = Qwen2_5_VLConfig.get_config_dict(folder, local_files_only=True)[0]
    except (OSError, ValueError) as error:
        raise ModelLoadError(f"cannot read {folder / 'config.json'}: {error}") from error
    if config.get("model_type") != MODEL_TYPE:
        raise ModelLoadError(
            f"{folder} holds a model of type '{config.get('model_type')}': only Qwen2.5-VL "
            f"('{MODEL_TYPE}') is supported"
        )


def _check_report(folder: Path, report: dict[str, Any]) -> None:
    problems = []
    for kind, title in (
        ("missing_keys", "missing in the file"),
        ("unexpected_keys", "not part of the model"),
        ("mismatched_keys", "of another shape"),
        ("error_msgs", "failed"),
    ):
        keys = sorted(str(key) for key in report.get(kind) or ())
        if keys:
            more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
            problems.append(f"{title}: {', '.join(keys[:3])}{more}")
    if problems:
        raise ModelLoadError(
            f"the weights in {folder} do not fit the model; " + "; ".join(problems)
        )

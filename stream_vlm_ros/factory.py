"""From a checkpoint folder and settings to an engine: the only place that builds one."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stream_vlm_ros.engine import Checkpoint, InferenceEngine
    from stream_vlm_ros.engine.frames import ImageSettings

COMPILE = {"auto": None, "always": True, "never": False}  # as the engines' argument


def default_model() -> Path:
    """The folder of the trained small model that this package ships."""
    return Path(__file__).parent / "world" / "model"


@lru_cache(maxsize=1)  # several cameras, or several runs, share the weights
def load_model(model: str | Path | None, device: str = "auto") -> Checkpoint:
    """The checkpoint folder ``model``; None: the small model that the package ships.

    ``device`` auto takes a GPU if there is one; bfloat16 on a GPU, float32 on a CPU. Raises
    ModelLoadError, DeviceUnavailableError.
    """
    from stream_vlm_ros.engine import load_checkpoint

    return load_checkpoint(model if model is not None else default_model(), device)


def load_engine(settings: Any) -> InferenceEngine:
    """The engine of a configuration, its model loaded (once), its memory empty.

    Raises ModelLoadError, DeviceUnavailableError, InvalidParameterError.
    """
    return build_engine(settings, load_model(settings.model, settings.device))


def slack_tokens(settings: Any, images: ImageSettings) -> int:
    """Room for chunks that come while an answer is being written, in tokens."""
    from stream_vlm_ros.engine.budget import usual_slack

    if settings.fork_slack_tokens >= 0:
        return settings.fork_slack_tokens
    return usual_slack(
        images, settings.max_pixels, settings.chunk_frames, settings.max_cache_tokens
    )


def build_engine(
    settings: Any,
    checkpoint: Checkpoint,
    frame_store: str | None = None,
    fork_slack_tokens: int = 0,
) -> InferenceEngine:
    """The engine that ``settings.engine`` names, its memory empty, ready for the first question.

    Args:
        settings: has the node's parameters as attributes; 0 or "" stands for the checkpoint's own.
        frame_store: the folder in which the delayed batch engine keeps frames; None: in memory.
        fork_slack_tokens: the streaming engine's room beyond the cap for chunks that come while
            an answer is being written.

    Raises:
        InvalidParameterError, CapTooSmallError, DeviceUnavailableError: as their names say.
    """
    options = {
        "layout": settings.layout,
        "min_pixels": settings.min_pixels or None,
        "system_prompt": settings.system_prompt or None,
        "max_tail_tokens": settings.max_tail_tokens,
        "question_path": settings.question_path,
        "compile": COMPILE[settings.compile_chunks],
    }
    if settings.compile_chunks == "never":  # an engine before this one may have left it compiled
        checkpoint.network.compile_chunks(False)
    if settings.engine == "delayed_batch":
        engine = _delayed_batch(settings, checkpoint, frame_store, **options)
    else:
        engine = _streaming(settings, checkpoint, fork_slack_tokens=fork_slack_tokens, **options)
    engine.warm_up()
    return engine


def _streaming(settings: Any, checkpoint: Checkpoint, **options: Any) -> InferenceEngine:
    from stream_vlm_ros.engine import EvictionConfig, VideoStreamingInference

    eviction = EvictionConfig(
        max_cache_tokens=settings.max_cache_tokens,
        sink_size=settings.sink_size,
        window_size=settings.window_size,
        eviction_interval=settings.eviction_interval,
        sampled_share=settings.sampled_share,
        important_share=settings.important_share,
    )
    return VideoStreamingInference(
        *checkpoint,
        eviction,
        position_policy=settings.position_policy,
        max_pixels=checkpoint.processor.image_settings.at_most(settings.max_pixels),
        skip_similarity=settings.skip_similarity or None,
        **options,
    )


def _delayed_batch(
    settings: Any, checkpoint: Checkpoint, frame_store: str | None, **options: Any
) -> InferenceEngine:
    from stream_vlm_ros.history import DelayedBatchInferenceEngine, FrameStore, SmartFrameManager

    store = FrameStore(
        frame_store,
        max_bytes=settings.frame_store_megabytes * 2**20,
        max_seconds=settings.frame_store_hours * 3600,
    )
    return DelayedBatchInferenceEngine(
        *checkpoint,
        memory=SmartFrameManager(store, target_fps=settings.keep_fps),
        max_sampled_frames=settings.max_sampled_frames,
        max_pixels=settings.sampled_max_pixels,
        **options,
    )

# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""From settings to an engine: the only place that builds one."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stream_vlm_ros.config import Settings
from stream_vlm_ros.errors import InvalidParameterError, check_model_folder
from stream_vlm_ros.machine import threads_to_take
from stream_vlm_ros.model_card import ModelCard

if TYPE_CHECKING:
    from stream_vlm_ros.engine import Checkpoint, InferenceEngine
    from stream_vlm_ros.engine.inputs.frames import ImageSettings
    from stream_vlm_ros.engine.together import EngineGroup
    from stream_vlm_ros.history import FrameStore
    from stream_vlm_ros.history.calibration import Calibration

COMPILE = {"auto": None, "always": True, "never": False}  # as the engines' argument


def default_model() -> Path:
    """The folder of the trained small model that this package ships."""
    return Path(__file__).parent / "world" / "model"


def model_folder(settings: Settings) -> Path:
    """The folder that the settings name (``~`` is the user's home), else the small model's."""
    return Path(os.path.expanduser(settings.model_path or default_model()))


def card_of(settings: Settings) -> ModelCard:
    """What the model that the settings name says of itself."""
    return ModelCard.of(model_folder(settings))


def load_model(settings: Settings) -> Checkpoint:
    """The checkpoint that the settings name; without one the small model that the package ships.

    Raises ModelLoadError, DeviceUnavailableError.
    """
    folder = model_folder(settings)
    check_model_folder(folder)  # before torch is imported: a wrong path is told at once
    from stream_vlm_ros.engine import load_checkpoint

    checkpoint = load_checkpoint(folder, settings.device, settings.dtype)
    if checkpoint.device.type == "cpu" and (threads := threads_to_take()) is not None:
        import torch

        torch.set_num_threads(threads)
    return checkpoint


@lru_cache(maxsize=1)
def _kept_model(model_path: str, device: str, dtype: str) -> Checkpoint:
    return load_model(Settings(model_path=model_path, device=device, dtype=dtype))


def kept_model(settings: Settings) -> Checkpoint:
    """As `load_model`, loaded once: several cameras, or several runs, share the weights."""
    return _kept_model(settings.model_path, settings.device, settings.dtype)


def load_engine(settings: Settings) -> InferenceEngine:
    """An engine for one who asks while no frames come: its model loaded (once), its memory empty.

    So no room is taken for frames that come while an answer is being written.

    Raises ModelLoadError, DeviceUnavailableError, InvalidParameterError.
    """
    alone = dataclasses.replace(settings, fork_slack_tokens=0)
    return build_engine(alone, kept_model(settings))


def describe_model(settings: Settings) -> dict[str, Any]:
    """What answers under these settings, but for its name (`card_of`), loaded as `load_engine` does
    (once)."""
    from stream_vlm_ros.engine.saving.binding import weights_hash

    checkpoint = kept_model(settings)
    return {
        "digest": weights_hash(checkpoint.network),
        "dtype": str(checkpoint.network.dtype).removeprefix("torch."),
        "device": str(checkpoint.device),
        "parameters": checkpoint.network.released_parameters,
    }


def build_engine(
    settings: Settings, checkpoint: Checkpoint, group: EngineGroup | None = None
) -> InferenceEngine:
    """The engine that ``settings.engine`` names, its memory empty, ready for the first question.

    ``group``: of streaming engines over one checkpoint that compute together.

    Where it cannot be built, the folder of ``frame_store`` is given back.

    Raises:
        InvalidParameterError: settings that contradict one another, or the checkpoint's.
        CapTooSmallError: the cap cannot hold what must be in it.
        DeviceUnavailableError: the memory does not fit the device.
        ModelLoadError: model and processor are not of one checkpoint.
    """
    if settings.engine == "remote":
        raise InvalidParameterError("engine remote is for the node, which has none of its own")
    options = {
        "layout": settings.layout,
        "min_pixels": settings.min_pixels or None,
        "system_prompt": settings.system_prompt or None,
        "max_tail_tokens": settings.max_tail_tokens,
        "question_path": settings.question_path,
        "compile": COMPILE[settings.compile_chunks],
    }
    make = _delayed_batch if settings.engine == "delayed_batch" else _streaming
    engine = make(settings, checkpoint, group, **options)
    try:
        engine.warm_up()
    except BaseException:
        engine.close()
        raise
    return engine


def _streaming(
    settings: Settings, checkpoint: Checkpoint, group: EngineGroup | None, **options: Any
) -> InferenceEngine:
    images = checkpoint.processor.image_settings
    options |= {
        "eviction_config": settings.eviction,
        "position_policy": settings.position_policy,
        "max_pixels": images.at_most(settings.max_pixels),
        "max_pause": settings.max_pause or None,
        "skip_similarity": settings.skip_similarity or None,
        "fork_slack_tokens": _slack_tokens(settings, images),
        "group": group,
    }
    if settings.importance:
        from stream_vlm_ros.engine.cache.named_score import score_by_name

        hidden = checkpoint.network.config.text_config.hidden_size
        options["importance"] = score_by_name(settings.importance, hidden)
    if settings.has_history:
        return _recalling(settings, checkpoint, **options)
    from stream_vlm_ros.engine import VideoStreamingInference

    return VideoStreamingInference(*checkpoint, **options)


def group_of(settings: Sequence[Settings], checkpoint: Checkpoint) -> EngineGroup | None:
    """What the engines of several cameras have in common, for `build_engine`.

    None where they gain nothing by it: on a CPU, or by themselves.
    """
    alike = {one.engine for one in settings} == {"streaming"}
    if len(settings) < 2 or not alike or checkpoint.device.type != "cuda":
        return None
    from stream_vlm_ros.engine.together import EngineGroup

    images = checkpoint.processor.image_settings
    return EngineGroup([one.max_cache_tokens + _slack_tokens(one, images) for one in settings])


def _recalling(settings: Settings, checkpoint: Checkpoint, **options: Any) -> InferenceEngine:
    """The streaming engine with a history."""
    from stream_vlm_ros.history.recall import RecallingInference
    from stream_vlm_ros.history.room import check_features, room_plan

    check_features(settings.history_feature_megabytes * 2**20)
    calibration = calibration_of(settings, checkpoint)
    store = _frame_store(settings)
    try:
        engine = RecallingInference(
            *checkpoint,
            calibration=calibration,
            store=store,
            history=settings.history,
            index_bytes=settings.history_index_megabytes * 2**20,
            feature_bytes=settings.history_feature_megabytes * 2**20,
            max_history_tokens=settings.history_max_tokens,
            history_pixels=settings.sampled_max_pixels or None,
            **options,
        )
        tiers = engine.get_cache_info().tiers
        engine.memory_plan = f"{engine.memory_plan}; {room_plan(tiers, engine.device)}"
        return engine
    except BaseException:
        store.close()
        raise


def calibration_of(settings: Settings, checkpoint: Checkpoint) -> Calibration:
    """By which heads a history is searched: the file that is named, the checkpoint's own, or else a
    fallback. Raises CalibrationError."""
    from stream_vlm_ros.history.calibration import Calibration

    if settings.history_calibration:
        return Calibration.load(os.path.expanduser(settings.history_calibration))
    return Calibration.of(model_folder(settings), checkpoint.network)


def _not_seen(settings: Settings) -> tuple[str, ...]:
    """By which answers the model says that it does not see a thing: those of its calibration, or
    the usual ones where it has none. Raises CalibrationError."""
    from stream_vlm_ros.history.calibration import FILE_NAME, NOT_SEEN, Calibration

    named = os.path.expanduser(settings.history_calibration)
    file = Path(named or model_folder(settings) / FILE_NAME)
    return Calibration.load(file).not_seen if named or file.exists() else NOT_SEEN


def _slack_tokens(settings: Settings, images: ImageSettings) -> int:
    from stream_vlm_ros.engine.cache.budget import usual_slack

    if settings.fork_slack_tokens >= 0:
        return settings.fork_slack_tokens
    return usual_slack(
        images, settings.max_pixels, settings.chunk_frames, settings.max_cache_tokens
    )


def _frame_store(settings: Settings) -> FrameStore:
    from stream_vlm_ros.history import FrameStore

    return FrameStore(
        settings.frame_store or None,
        max_bytes=settings.frame_store_megabytes * 2**20,
        max_seconds=settings.frame_store_hours * 3600,
        max_decoded_megapixels=settings.max_decoded_megapixels,
    )


def _delayed_batch(
    settings: Settings, checkpoint: Checkpoint, group: EngineGroup | None, **options: Any
) -> InferenceEngine:
    from stream_vlm_ros.history import DelayedBatchInferenceEngine, SmartFrameManager
    from stream_vlm_ros.history.room import room_plan
    from stream_vlm_ros.history.tiers import PictureTier

    store = _frame_store(settings)
    try:
        engine = DelayedBatchInferenceEngine(
            *checkpoint,
            # Who feeds the engine looks at the stamps: the node's ingest, a replay's source.
            memory=SmartFrameManager(store, target_fps=settings.keep_fps, max_time_gap=math.inf),
            max_sampled_frames=settings.max_sampled_frames,
            max_pixels=settings.sampled_max_pixels,
            not_seen=_not_seen(settings),
            **options,
        )
        engine.memory_plan = room_plan([PictureTier(store).info()], engine.device)
        return engine
    except BaseException:
        store.close()
        raise

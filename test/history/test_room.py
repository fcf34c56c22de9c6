# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""What a history may take is there, or that is said before anything is kept."""

import shutil
from types import SimpleNamespace

import pytest
import torch

from stream_vlm_ros.config import Settings
from stream_vlm_ros.errors import InvalidParameterError
from stream_vlm_ros.factory import load_engine
from stream_vlm_ros.history import room
from stream_vlm_ros.history.results import TierInfo

FREE = 300 * 2**20  # bytes


@pytest.fixture(autouse=True)
def free(monkeypatch):
    monkeypatch.setattr(room, "free_bytes", lambda device: FREE)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=2 * FREE))


def tier(name, megabytes, where="memory", held=0):
    sizes = {"bytes": held * 2**20, "max_bytes": megabytes * 2**20}
    return TierInfo(name=name, grids=0, frames=0, where=where, **sizes)


def test_features_beyond_the_machine_s_memory_are_refused_before_anything_is_made(tmp_path):
    settings = Settings(
        device="cpu",
        history="auto",
        history_feature_megabytes=301,
        frame_store=str(tmp_path / "frames"),
    )
    with pytest.raises(InvalidParameterError, match=r"are free: lower it below 300$"):
        load_engine(settings)
    assert not (tmp_path / "frames").exists()
    room.check_features(FREE)


def test_the_plan_at_the_start_names_every_tier_and_what_is_free(tmp_path):
    settings = Settings(
        device="cpu",
        history="auto",
        history_feature_megabytes=100,
        frame_store=str(tmp_path / "frames"),
    )
    engine = load_engine(settings)
    engine.close()
    assert engine.memory_plan.startswith("memory on cpu: ")
    assert engine.memory_plan.endswith(
        "; history: pictures up to 1.1 GB, keys up to 268.4 MB on the disk, of 629.1 MB free; "
        "features up to 104.9 MB in memory, of 314.6 MB free"
    )


def test_the_plan_of_the_other_engine_is_that_of_its_frames(caplog):
    engine = load_engine(Settings(device="cpu", engine="delayed_batch"))
    assert engine.memory_plan == "history: pictures up to 1.1 GB in memory, of 314.6 MB free"
    assert "lower frame_store_megabytes" in caplog.text


@pytest.mark.parametrize(
    ("tiers", "words"),
    [
        (
            [tier("pictures", 200), tier("keys", 101)],
            "may take 315.6 MB more in memory, of which 314.6 MB are free: lower "
            "frame_store_megabytes or history_index_megabytes",
        ),
        ([tier("pictures", 200), tier("keys", 101, held=1)], ""),
        ([tier("keys", 301, "device")], "315.6 MB more on the device, of which 314.6 MB"),
        ([tier("pictures", 601, "/frames")], "630.2 MB more on the disk, of which 629.1 MB are"),
        ([tier("pictures", 600, "/frames"), tier("features", 300)], ""),
    ],
)
def test_what_is_not_there_is_said(tiers, words, caplog):
    room.room_plan(tiers, torch.device("cpu"))
    assert words in caplog.text and bool(words) is bool(caplog.text)

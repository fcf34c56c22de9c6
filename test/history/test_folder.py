# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""A history's folder while no engine has it open."""

import json
import os

import numpy as np
import pytest
import torch
from key_streams import DIM, HEADS, Stream, index

from stream_vlm_ros.errors import FrameStoreError
from stream_vlm_ros.history import FrameStore
from stream_vlm_ros.history.folder import KEYS, erase, keys_in
from stream_vlm_ros.history.poses import Pose, PoseTrack

GRIDS = 20  # a second each, from 100 s on


@pytest.fixture(params=[torch.float32, torch.bfloat16])
def folder(tmp_path, request):
    """Frames, keys and poses of twenty seconds."""
    place = tmp_path / "frames"
    with FrameStore(place) as store:
        for k in range(2 * GRIDS):
            store.add(np.full((28, 28, 3), k, np.uint8), 100 + k / 2)
        with index(folder=place / KEYS, dtype=request.param) as one:
            held, stream = one.empty(), Stream()
            for _ in range(GRIDS // 2):
                held = one.draft(held, stream.chunk(3, 3)[0])
            assert (held.grids, held.oldest, held.newest) == (GRIDS, 100.0, 119.5)
    track = PoseTrack(place)
    for k in range(GRIDS):
        track.add(Pose((100 + k) * 10**9, "map", (k, 0.0, 0.0), (0.0, 0.0, 0.0, 1.0)))
    track.close()
    return place


def held_keys(folder, **options):
    kept = keys_in(folder)
    dtype = getattr(torch, kept.dtype)
    with index(folder=folder / KEYS, dtype=dtype, **options) as one:
        return one.empty().table()["first"].tolist()


def test_what_the_keys_are_of_is_told_without_opening_them(folder):
    kept = keys_in(folder)
    assert (kept.heads, kept.head_dim, kept.model) == (tuple(HEADS), DIM, "")
    assert kept.dtype in ("float32", "bfloat16")
    assert kept.bytes >= GRIDS * len(HEADS) * 3 * DIM * 2
    with FrameStore(folder) as store:
        assert len(store) == 2 * GRIDS
    assert keys_in(folder / "nowhere") is None


def test_a_time_is_erased_of_pictures_keys_and_poses_and_nothing_else(folder):
    erased = erase(folder, 105.0, 108.9)
    assert (erased.frames, erased.poses, erased.left) == (8, 4, 32)
    assert erased.reach == (100.0, 119.5)
    kept = [100.0 + k for k in range(GRIDS) if not 5 <= k <= 8]
    assert held_keys(folder) == kept
    assert erase(folder, 105.0, 108.9).frames == 0
    assert held_keys(folder) == kept


def test_an_index_larger_than_the_usual_is_not_thinned_by_erasing(folder):
    before = held_keys(folder)
    erase(folder, 0.0, 1.0)
    assert held_keys(folder) == before


def test_a_folder_without_keys_or_poses_is_erased_all_the_same(tmp_path):
    with FrameStore(tmp_path / "frames") as store:
        for k in range(4):
            store.add(np.zeros((28, 28, 3), np.uint8), float(k))
    assert erase(tmp_path / "frames", 1, 2) == (2, 0, 2, (0.0, 3.0))
    assert sorted(os.listdir(tmp_path / "frames")) == [".stream_vlm", "index.sqlite", "pictures"]


@pytest.mark.parametrize("meta", ["", "[]", '{"binding": {}}', '{"binding": {"version": 99}}'])
def test_keys_of_which_nothing_is_known_are_an_error_in_words(folder, meta):
    (folder / KEYS / "meta.json").write_text(meta)
    with pytest.raises(FrameStoreError, match="cannot be read"):
        keys_in(folder)


def test_keys_of_an_unknown_kind_are_left_alone(folder):
    file = folder / KEYS / "meta.json"
    meta = json.loads(file.read_text())
    meta["binding"]["dtype"] = "torch.nothing"
    file.write_text(json.dumps(meta))
    with pytest.raises(FrameStoreError, match="of no known kind: nothing"):
        erase(folder, 0, 1)
    assert file.exists()

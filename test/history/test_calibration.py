# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""A calibration: its file, whom it fits, and how its heads' scores become one."""

import json
import logging
import os

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_qwen import toy_model

from stream_vlm_ros.engine.attention.base import Readout
from stream_vlm_ros.errors import CalibrationError
from stream_vlm_ros.factory import default_model
from stream_vlm_ros.history.calibration import (
    FILE_NAME,
    PLACES,
    CalibratedHead,
    Calibration,
    model_hash,
    queries_at,
)
from stream_vlm_ros.owned import NotOursError

HEADS = (
    CalibratedHead(1, 3, "last", 0.9, 2.0),
    CalibratedHead(0, 1, "words", 0.6, 0.5),
    CalibratedHead(1, 0, "end", 0.3, 4.0),
)


def made(heads=HEADS, **changes):
    values = dict(
        heads=tuple(heads),
        threshold=4.5,
        of_best=0.8,
        looks=3.0,
        tail=0.6,
        scale="fixed",
        not_seen=("not seen", "Nein, nichts."),
        grid_tokens=20,
        seconds_per_grid=1.0,
        model="abc",
        made_with={"seeds": [1, 2]},
    )
    return Calibration(**(values | changes))


@pytest.fixture(scope="module")
def model():
    return toy_model()  # two layers of four query heads and two KV heads


# -- the file ------------------------------------------------------------------------------------

shares = st.floats(0, 1)
positive = st.floats(1e-6, 1e6)
head = st.builds(
    CalibratedHead,
    st.integers(0, 80),
    st.integers(0, 80),
    st.sampled_from(PLACES),
    st.floats(1e-6, 1),
    positive,
)


@given(
    st.builds(
        made,
        st.lists(head, min_size=1, max_size=8, unique_by=lambda head: head[:2]),
        threshold=st.floats(-1e3, 1e3),
        of_best=shares,
        looks=st.floats(-1e3, 1e3),
        tail=shares,
        scale=st.sampled_from(["fixed", "own"]),
        not_seen=st.lists(st.text(), max_size=4).map(tuple),
        grid_tokens=st.integers(0, 10_000),
        seconds_per_grid=positive,
        model=st.text(),
    )
)
@settings(max_examples=40)
def test_what_is_read_is_what_was_written(tmp_path_factory, calibration):
    file = tmp_path_factory.mktemp("file") / "calibration.json"
    calibration.save(file)
    calibration.save(file)  # in place of an earlier one
    assert Calibration.load(file) == calibration


def test_a_file_that_is_no_calibration_is_neither_read_nor_written_over(tmp_path):
    for content in (b"[1, 2]", b'{"kind": "recipe"}', b"\xff\xfe", b"", b"[" * 100_000):
        file = tmp_path / "mine.json"
        file.write_bytes(content)
        with pytest.raises(CalibrationError, match=r"mine\.json is no (JSON|calibration)"):
            Calibration.load(file)
        with pytest.raises(NotOursError, match=r"mine\.json is there already"):
            made().save(file)
        assert file.read_bytes() == content
    with pytest.raises(CalibrationError, match=r"none\.json cannot be read: No such file"):
        Calibration.load(tmp_path / "none.json")
    os.mkfifo(tmp_path / "pipe.json")  # nothing would ever come of it
    for odd in (tmp_path, tmp_path / "pipe.json"):
        with pytest.raises(CalibrationError, match=r"cannot be read: .* is not a plain file"):
            Calibration.load(odd)
        with pytest.raises(NotOursError):
            made().save(odd)


def test_a_file_far_too_large_is_not_read(tmp_path):
    file = tmp_path / "large.json"
    made(made_with={"text": "x" * 2_000_000}).save(file)
    with pytest.raises(CalibrationError, match="more than 1,000,000 bytes"):
        Calibration.load(file)


def change(**values):
    return lambda content: content.update(values)


def change_head(number=1, **values):
    return lambda content: content["heads"][number].update(values)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (change(version=2), "its version is 2, this program knows 1: make it again by stream-vlm"),
        (change(version=None), "its version is None"),
        (lambda content: content.pop("tail"), "tail must be a number, not None"),
        (lambda content: content.pop("heads"), "heads is missing"),
        (change(heads=[]), "heads: there must be from 1 to 64, not 0"),
        (change(heads=[7]), r"heads\[0\]: it must be an object, not 7"),
        (change_head(0, layer=-1), r"heads\[0\]: layer must be a whole number, not -1"),
        (change_head(layer=True), r"heads\[1\]: layer must be a whole number, not True"),
        (change_head(place="middle"), r"heads\[1\]: place: 'middle' is none of last, words, end"),
        (change_head(spread=0), r"heads\[1\]: spread is 0: it must be above 0"),
        (change_head(precision=1.5), r"precision is 1\.5: it must be above 0 and at most 1"),
        (change_head(precision=0), "precision is 0: it must be above 0"),
        (change_head(spread=float("nan")), "spread must be a number, not nan"),
        (change_head(1, layer=1, head=3), "heads: one is named twice"),
        (change(threshold="high"), "threshold must be a number, not 'high'"),
        (change(threshold=10**400), "threshold must be a number"),
        (change(of_best=-0.1), r"of_best is -0\.1: it must be at least 0 and at most 1"),
        (change(scale="other"), "scale: 'other' is none of fixed, own"),
        (change(not_seen="no"), "not_seen: it must be a list, not 'no'"),
        (change(not_seen=[1]), "not_seen: it must be a list of texts"),
        (change(seconds_per_grid=0), "seconds_per_grid is 0: it must be above 0"),
        (change(grid_tokens=1.5), r"grid_tokens must be a whole number, not 1\.5"),
        (change(made_with=[]), r"made_with: it must be an object, not \[\]"),
    ],
)
def test_a_damaged_file_is_refused_by_the_name_of_what_is_damaged(tmp_path, damage, said):
    file = tmp_path / "damaged.json"
    made().save(file)
    content = json.loads(file.read_text())
    damage(content)
    file.write_text(json.dumps(content))
    with pytest.raises(CalibrationError, match=rf"damaged\.json: .*{said}"):
        Calibration.load(file)


# -- whom it fits --------------------------------------------------------------------------------


def test_it_fits_its_checkpoint_in_every_number_format_and_no_other(model):
    fitting = made(model=model_hash(model))
    for dtype in (torch.float32, torch.bfloat16):
        same = toy_model().to(dtype)
        fitting.check_fits(same)
    with pytest.raises(CalibrationError, match="another checkpoint, of other weights"):
        fitting.check_fits(toy_model(seed=1))


def test_one_changed_layer_makes_another_checkpoint(model):
    other = toy_model()
    with torch.no_grad():
        dict(other.released())["model.layers.1.self_attn.q_proj.weight"].mul_(1.01)
    assert model_hash(other) != model_hash(model)


@pytest.mark.parametrize("wrong", [(2, 0), (0, 4)])
def test_heads_that_the_model_lacks_are_named(model, wrong):
    strange = made([CalibratedHead(*wrong, "last", 1.0, 1.0)], model=model_hash(model))
    said = rf"names head {wrong[1]} of layer {wrong[0]}, but the model has 4 heads in each of 2"
    with pytest.raises(CalibrationError, match=said):
        strange.check_fits(model)


def test_a_folder_has_its_own_calibration_or_a_warning_says_how_to_make_one(
    model, tmp_path, caplog
):
    with caplog.at_level(logging.WARNING):
        without = Calibration.of(tmp_path, model)
    assert without == Calibration.fallback(model)
    assert f"stream-vlm calibrate {tmp_path}" in caplog.text
    caplog.clear()
    own = made(model=model_hash(model))
    own.save(tmp_path / FILE_NAME)
    with caplog.at_level(logging.WARNING):
        assert Calibration.of(tmp_path, model) == own
    assert not caplog.text
    with pytest.raises(CalibrationError, match=rf"{FILE_NAME}: .*another checkpoint"):
        Calibration.of(tmp_path, toy_model(seed=1))


@pytest.mark.parametrize(
    ("layers", "heads", "kv_heads", "expected"),
    [
        (2, 4, 2, {0: range(4), 1: range(4)}),
        (1, 2, 2, {0: range(2)}),
        (10, 16, 2, {4: range(0, 16, 2), 5: range(0, 16, 2)}),
    ],
)
def test_the_fallback_names_heads_that_there_are(layers, heads, kv_heads, expected):
    model = toy_model(layers=layers, heads=heads, kv_heads=kv_heads)
    fallback = Calibration.fallback(model)
    found = {}
    for one in fallback.heads:
        found.setdefault(one.layer, []).append(one.head)
    assert found == {layer: list(some) for layer, some in expected.items()}
    assert fallback.scale == "own"
    fallback.check_fits(model)


def test_the_small_model_ships_calibrated():
    from stream_vlm_ros.world.evaluate import load

    model, _ = load(default_model())
    shipped = Calibration.of(default_model(), model)
    assert shipped.scale == "fixed" and len(shipped.heads) == 3
    assert shipped.made_with["seeds"] == [7_000_000, 7_000_001, 7_000_002]
    for answer in ("not seen", "Not seen.", "no"):
        assert shipped.says_not_seen(answer)
    assert not shipped.says_not_seen("not seen by me, on the left")


# -- what is read, and how it counts -------------------------------------------------------------


def test_each_head_gets_its_own_queries_and_keys_are_read_once(model):
    three = made([*HEADS, CalibratedHead(1, 2, "words", 0.2, 1.0)])
    assert three.keys(model.config) == [(0, 0), (1, 0), (1, 1)]
    assert three.key_of(model.config) == [2, 0, 1, 2]
    read = three.reads(model.config)
    wide = 16
    qkv = {layer: torch.randn(9, (4 + 2 + 2) * wide) for layer in range(2)}
    for layer, values in qkv.items():
        read.take(layer, values, 2, wide)
    words = slice(2, 6)
    where = {"last": slice(8, 9), "words": slice(2, 6), "end": slice(6, 9)}
    for head, found in zip(three.heads, three.queries(read, words), strict=True):
        columns = qkv[head.layer].view(9, 8, wide)[:, head.head]
        assert torch.equal(found, columns[where[head.place]])
    for layer, heads in ((0, [0]), (1, [0, 1])):
        expected = qkv[layer].view(9, 8, wide)[:, [4 + head for head in heads]].transpose(0, 1)
        assert torch.equal(read.keys(layer), expected)
    assert isinstance(read, Readout)


def test_places_of_a_prompt_do_not_overlap_but_for_the_last():
    prompt = list(range(10))
    words = slice(3, 6)
    assert [prompt[queries_at(place, words)] for place in PLACES] == [
        [9],
        [3, 4, 5],
        [6, 7, 8, 9],
    ]


@given(seed=st.integers(0, 10_000), grids=st.integers(2, 40))
@settings(max_examples=30)
def test_heads_are_added_in_units_of_their_spreads_weighted_by_their_precision(seed, grids):
    scores = np.random.default_rng(seed).normal(size=(3, grids)).astype(np.float32)
    weight = {0: 0.9, 1: 0.6, 2: 0.3}
    spread = {0: 2.0, 1: 0.5, 2: 4.0}
    for grid, found in enumerate(made().combine(torch.from_numpy(scores)).tolist()):
        expected = sum(weight[h] * float(scores[h, grid]) / spread[h] for h in range(3)) / 1.8
        assert found == pytest.approx(expected, abs=1e-4)


@given(seed=st.integers(0, 10_000), grids=st.integers(3, 40))
@settings(max_examples=30)
def test_on_a_scale_of_its_own_no_unit_counts_and_scores_are_standard_deviations(seed, grids):
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(3, grids))
    scores -= scores.mean(1, keepdims=True)
    own = made(scale="own")
    found = own.combine(torch.from_numpy(scores))
    units = rng.uniform(0.1, 10, size=(3, 1))
    assert torch.allclose(own.combine(torch.from_numpy(scores * units)), found)
    assert float(found.square().mean()) == pytest.approx(1.0)


def test_a_grid_that_stands_for_several_counts_as_often():
    spans = torch.tensor([1, 3, 2])
    scores = torch.tensor([[1.0, -1.0, 1.0], [2.0, 0.0, -1.0], [0.5, 0.5, -1.0]])
    whole = made(scale="own").combine(scores.repeat_interleave(spans, 1))
    thinned = made(scale="own").combine(scores, spans)
    assert torch.allclose(thinned.repeat_interleave(spans), whole)


def test_scores_without_any_difference_are_zero_on_a_scale_of_their_own():
    assert made(scale="own").combine(torch.zeros(3, 5)).tolist() == [0.0] * 5

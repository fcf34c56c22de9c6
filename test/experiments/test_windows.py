# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Batches of stretches compute what the engine computes of each stretch alone."""

import numpy as np
import pytest
import torch

from stream_vlm_ros.engine.attention.base import Readout
from stream_vlm_ros.engine.cache.ledger import PositionLedger
from stream_vlm_ros.experiments.windows import Look, Windows, encode, every_head
from stream_vlm_ros.world.evaluate import engine_for, load
from stream_vlm_ros.world.rare import RareWorld, exam, grid_stamps

GRIDS = 420


@pytest.fixture(scope="module")
def small():
    return load()


@pytest.fixture(scope="module")
def world():
    return RareWorld(31, hours=0.15, once=6, repeated=0)


@pytest.fixture(scope="module")
def windows(small, world):
    model, processor = small
    pictures = [np.stack([world.grid(n) for n in range(at, at + 30)]) for at in range(0, GRIDS, 30)]
    return Windows(model, processor, encode(model, processor, pictures))


def shown_to_the_engine(small, world, grids):
    engine = engine_for(*small)
    frames = [picture for number in grids for picture in world.grid(number)]
    stamps = [stamp for number in grids for stamp in grid_stamps(number)]
    engine.append_video_chunk(frames, timestamps=stamps)
    return engine


def looks(world):
    """Of several lengths, some with the evidence in view and some without."""
    found = []
    for number, one in enumerate([one for one in exam(world) if one.now < GRIDS][::5][:16]):
        last = int(one.now)
        seen = set(range(3 + number, 9 + 2 * number))
        for stretch in one.needed:
            seen |= set(range(int(stretch.first) - 2, int(stretch.last) + 3))
        found.append(
            Look(sorted({g for g in seen if 0 <= g < last} | {last - 1, last}), one.question.text)
        )
    return found


def test_answers_in_a_batch_are_those_of_a_fresh_engine_for_each(small, world, windows):
    some = looks(world)
    assert len({len(look.grids) for look in some}) > 3, "of different lengths"
    said = windows.answers(some)
    for look, answer in zip(some, said, strict=True):
        expected, _ = shown_to_the_engine(small, world, look.grids).ask(
            look.question, max_new_tokens=24
        )
        assert answer == expected.strip(), look
    assert len(set(said)) > 3


def test_each_token_of_an_answer_stands_one_position_behind_the_one_before(
    world, windows, monkeypatch
):
    some, passes = looks(world)[:3], []
    decode = type(windows.model).decode

    def watched(model, hidden, positions, *rest):
        passes.append(positions)
        return decode(model, hidden, positions, *rest)

    monkeypatch.setattr(type(windows.model), "decode", watched)
    windows.answers(some)
    last = sorted(windows.positions(look)[:, -1].tolist() for look in some)
    assert len(passes) > 2
    for number, positions in enumerate(passes[1:], start=1):
        expected = [[axis + number for axis in place] for place in last]
        assert sorted(positions.T.tolist()) == expected


def test_queries_are_those_of_the_prompt_in_the_engine(small, world, windows):
    heads, _ = every_head(small[0])
    some = looks(world)[:4]
    found = windows.queries(some, heads)
    for look, read in zip(some, found, strict=True):
        engine = shown_to_the_engine(small, world, look.grids)
        manager = engine.cache_manager
        prompt = windows.prompt(look.question)
        assert prompt[windows.words(look.question)] == windows.chat.plain(look.question)
        readout = Readout(queries=heads)
        with manager.question_fork(len(prompt), 1) as fork:
            engine.text_path.append(prompt, manager.ledger.next_position, fork, readout)
        for layer in heads:
            torch.testing.assert_close(read[layer], readout.queries(layer), rtol=1e-4, atol=1e-4)


def test_keys_are_those_of_a_stream_of_the_windows_grids(small, world, windows):
    model, processor = small
    _, heads = every_head(model)
    short = Windows(model, processor, windows.features[:75])
    keys = short.keys(heads, context=16, batch=2)
    # Windows of 32 grids begin at 0, 16, 32 and 43; the first gives all its keys.
    for start, first, stop in ((0, 0, 32), (16, 32, 48), (32, 48, 64), (43, 64, 75)):
        readout = Readout(keys=heads)
        engine = engine_for(model, processor)
        look = Look(range(start, start + 32))
        with engine.cache_manager.fork(2000) as fork:
            model.stream_forward(
                short.embeddings(look)[None], short.positions(look), fork, readout=readout
            )
        for layer in heads:
            streamed = readout.keys(layer)[:, -32 * 20 :].unflatten(1, (32, 20))
            expected = streamed[:, first - start : stop - start]
            torch.testing.assert_close(keys[layer][:, first:stop], expected, rtol=1e-4, atol=1e-4)


def test_a_look_is_laid_out_like_a_stream_of_its_grids(small, world, windows):
    grids = [4, 5, 6, 300, 301]
    engine = shown_to_the_engine(small, world, grids)
    ledger = engine.cache_manager.ledger
    assert torch.equal(windows.positions(Look(grids)), ledger.positions())
    assert isinstance(ledger, PositionLedger)

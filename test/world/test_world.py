# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""The drawn world: equal seeds give equal worlds, and its truth is what its pixels show."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stream_vlm_ros.world.draw import (
    MAX_NOISE,
    Painter,
    backdrop_row,
    draw_batch,
    glyph_atlas,
    thing_rows,
)
from stream_vlm_ros.world.world import COLOURS, MAX_AT_ONCE, World, region_phrase

SEEDS = st.integers(min_value=0, max_value=100_000)
NUMBER_OF_TIMES = 12


@settings(max_examples=10)
@given(seed=SEEDS, t=st.floats(min_value=0, max_value=200))
def test_equal_seeds_give_equal_pictures_and_truth(seed, t):
    one, other = World(seed), World(seed)
    other.visible(300.0)  # asking further ahead first changes nothing
    assert one.visible(t) == other.visible(t)
    assert np.array_equal(one.render(t, 160, 120), other.render(t, 160, 120))


def test_different_seeds_give_different_worlds():
    worlds = [World(seed) for seed in range(5)]
    stories = {tuple(s.thing.name for s in world.sightings(60.0)) for world in worlds}
    assert len(stories) == 5


@settings(max_examples=40)
@given(seed=SEEDS, aspect=st.sampled_from([0.75, 1.0, 4 / 3, 16 / 9]), pace=st.floats(0.5, 100))
def test_never_more_than_two_things_are_visible_and_never_one_twice(seed, aspect, pace):
    world = World(seed, aspect=aspect, pace=pace, signs=0.3)
    sightings = world.sightings(80 * pace)
    assert all(a.start + 1.49 * pace <= b.start for a, b in pairwise(sightings))
    for sighting in sightings:
        assert 2.99 * pace <= sighting.end - sighting.start <= 8.01 * pace
        there = world.visible(sighting.start)
        assert len(there) <= MAX_AT_ONCE
        assert len({s.thing.name for s in there}) == len(there)


@settings(max_examples=25)
@given(seed=SEEDS)
def test_the_picture_differs_from_the_empty_room_just_where_the_truth_says(seed):
    world = World(seed, signs=0.3)
    width, height = 160, 120
    painter = Painter(world.backdrop, width, height, seed)
    for index in range(NUMBER_OF_TIMES):
        t = 0.4 + 2.7 * index
        picture = world.render(t, width, height).astype(int)
        room = painter.paint(t, [], noise=False).astype(int)
        changed = np.abs(picture - room).max(-1) > MAX_NOISE
        expected = np.zeros_like(changed)
        rows, columns = np.mgrid[:height, :width]
        for sighting in world.visible(t):
            x, y = sighting.position(t)
            away = np.hypot(columns + 0.5 - x * width, rows + 0.5 - y * height)
            near = away < 1.3 * sighting.radius * height
            expected |= near
            assert changed[near].mean() > 0.1, (seed, t, sighting)
        assert not (changed & ~expected).any(), (seed, t)


@pytest.mark.parametrize("seed", range(8))
def test_colour_and_region_can_be_read_off_the_pixels(seed):
    world, width, height = World(seed, signs=0.0), 320, 240
    checked = 0
    for sighting in world.sightings(60.0):
        t = sighting.start + 0.01
        if len(world.visible(t)) > 1:
            continue
        picture = world.render(t, width, height).astype(float)
        room = Painter(world.backdrop, width, height, seed).paint(t, [], noise=False)
        changed = np.abs(picture - room).max(-1) > MAX_NOISE + 4
        rows, columns = np.nonzero(changed)
        x, y = columns.mean() / width, rows.mean() / height
        column = "left" if x < 0.35 else "right" if x > 0.65 else ""
        row = "top" if y < 0.36 else "bottom" if y > 0.64 else ""
        assert region_phrase(column, row) == sighting.region
        # The brightest tenth of the changed pixels is beyond rim and edge: its colour is the paint.
        inside = picture[changed]
        order = np.argsort(np.linalg.norm(inside - COLOURS[sighting.thing.colour], axis=1))
        paint = np.median(inside[order[: len(order) // 3]], axis=0)
        nearest = min(COLOURS, key=lambda name: np.linalg.norm(paint - np.array(COLOURS[name])))
        assert nearest == sighting.thing.colour
        checked += 1
    assert checked >= 3


@pytest.mark.parametrize("size", [(160, 120), (320, 240)])
def test_the_painter_and_the_batch_drawing_draw_the_same_picture(size):
    atlas = torch.from_numpy(glyph_atlas())
    for seed in range(6):
        world = World(seed, signs=0.4)
        painter = Painter(world.backdrop, *size)
        times = [2.0, 9.3, 16.0, 23.0]
        things = [thing_rows(world.visible(t), t) for t in times]
        batch = draw_batch(
            torch.tensor([backdrop_row(world.backdrop, t, *size) for t in times]),
            torch.tensor([shapes for shapes, _ in things]),
            torch.tensor([sign for _, sign in things]),
            atlas,
            *size,
            4 / 3,
        )
        for t, drawn in zip(times, batch.permute(0, 2, 3, 1).numpy(), strict=True):
            painted = painter.paint(t, world.visible(t), noise=False)
            assert np.abs(painted - drawn).max() <= 1.01  # painted is rounded, perhaps twice


def test_frames_carry_even_stamps_from_the_start_given():
    frames = list(World(3).frames(fps=4.0, duration=1.0, width=64, height=48, start_ns=10**18))
    assert [frame.stamp_ns - 10**18 for frame in frames] == [
        0,
        250_000_000,
        500_000_000,
        750_000_000,
    ]
    assert frames[0].image.shape == (48, 64, 3)
    assert frames[0].image.dtype == np.uint8

# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Novelty: what is new to the eye is new to the measure, and nothing else is."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from stream_vlm_ros.history import ThumbnailNovelty, VisionNovelty
from stream_vlm_ros.world.world import World

THRESHOLD = 0.6  # the star memory's default


def novelty(measure, one, other):
    return float(measure.novelty(measure.describe(one), measure.describe(other)[None])[0])


def test_the_same_picture_is_not_new(plain):
    assert novelty(ThumbnailNovelty(), plain(), plain()) == 0


def test_a_thing_that_covers_a_twentieth_of_the_picture_is_new(plain):
    # 14 x 14 pixels of 48 x 64: 6 %; a mean over all pixels would see 0.06 of the difference.
    assert novelty(ThumbnailNovelty(), plain(5), plain(5, (115, 115, 115))) > THRESHOLD


def test_the_same_thing_elsewhere_is_new(plain):
    assert novelty(ThumbnailNovelty(), plain(0), plain(11)) > THRESHOLD


def test_light_that_fades_by_a_fifth_is_not_new(plain):
    dim = (plain(3) * 0.8).astype(np.uint8)
    assert novelty(ThumbnailNovelty(), plain(3), dim) < 0.1


def test_a_camera_that_sways_by_a_hundredth_is_not_new(plain):
    picture = plain(5).repeat(8, axis=0).repeat(8, axis=1)  # 512 pixels wide
    assert novelty(ThumbnailNovelty(), picture, np.roll(picture, 5, axis=1)) < THRESHOLD


@settings(max_examples=50)
@given(
    st.tuples(st.integers(1, 40), st.integers(1, 40)).flatmap(
        lambda size: arrays.arrays(np.uint8, (2, *size, 3))
    )
)
def test_novelty_is_symmetric_and_within_0_and_1_for_pictures_of_any_size(pictures):
    measure = ThumbnailNovelty()
    there, back = novelty(measure, *pictures), novelty(measure, *pictures[::-1])
    assert 0 <= there <= 1 and there == pytest.approx(back, abs=1e-6)


def test_in_the_drawn_world_new_things_pass_the_threshold_and_standing_scenes_do_not():
    """Judged by the world's own truth: which things stand where, at 40 moments of four worlds."""
    measure = ThumbnailNovelty()
    wrong = []
    for seed in range(4):
        world = World(seed)
        seen = []
        for second in range(40):
            visible = world.visible(second)
            if any(sighting.moves for sighting in visible):
                continue
            scene = frozenset((s.thing.name, s.region) for s in visible)
            descriptor = measure.describe(world.render(second, 160, 120))
            for other, descriptor_then in seen:
                value = float(measure.novelty(descriptor, descriptor_then[None])[0])
                if (value >= THRESHOLD) != (scene != other):
                    wrong.append((seed, second, value))
            seen.append((scene, descriptor))
    assert wrong == []


def test_the_vision_tower_sees_novelty_too(small, plain):
    model, processor = small
    measure = VisionNovelty(model, processor, max_pixels=56 * 84)
    assert novelty(measure, plain(), plain()) == pytest.approx(0, abs=1e-5)
    one, other = novelty(measure, plain(0), plain(7)), novelty(measure, plain(7), plain(0))
    assert 0 < one <= 1 and one == pytest.approx(other, abs=1e-5)

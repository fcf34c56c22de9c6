# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""A number of numpy's is taken wherever one of Python's is; what is no number is refused in words.

Each setting that is a number stands in one of the two tables: its name, and who takes it.
"""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_vlm_ros.config import EvictionConfig, Settings
from stream_vlm_ros.engine.decoding import DecodingOptions
from stream_vlm_ros.engine.inputs.frames import ImageSettings
from stream_vlm_ros.engine.inputs.sampling import StampSampler
from stream_vlm_ros.engine.inputs.timestamps import frame_times
from stream_vlm_ros.engine.inputs.token_reduction import StaticTokenFilter
from stream_vlm_ros.errors import (
    InvalidParameterError,
    StreamVlmError,
    real_number,
    whole_number,
)
from stream_vlm_ros.history import FrameStore, SmartFrameManager

WHOLE_TYPES = [int, np.int64, np.int16, np.uint32]
REAL_TYPES = [float, np.float64, np.float32, np.float16, Fraction]


def field(name, table):
    return lambda value: getattr(table(**{name: value}), name)


def setting(name):
    """``name`` of a table that has what some settings need besides."""
    return lambda value: getattr(Settings(**{"memory_folder": "memories", name: value}), name)


# What is kept of a value that is taken.
WHOLE = {
    **{
        name: field(name, EvictionConfig)
        for name in ("max_cache_tokens", "sink_size", "window_size", "eviction_interval")
    },
    **{name: field(name, DecodingOptions) for name in ("max_new_tokens", "seed")},
    **{
        name: field(name, ImageSettings)
        for name in ("patch_size", "temporal_patch_size", "merge_size", "min_pixels", "max_pixels")
    },
    "max_pixels of a chunk": ImageSettings(min_pixels=1).at_most,
    "quality": lambda value: FrameStore(quality=value).quality,
    "stream_window": lambda value: SmartFrameManager(stream_window=value).stream_window,
    **{
        f"the table's {row.name}": setting(row.name)
        for row in Settings.table().values()
        if row.type is int
    },
}
REAL = {
    **{name: field(name, EvictionConfig) for name in ("sampled_share", "important_share")},
    **{
        name: field(name, DecodingOptions)
        for name in ("temperature", "top_p", "repetition_penalty")
    },
    "rescale_factor": field("rescale_factor", ImageSettings),
    "skip_similarity": lambda value: StaticTokenFilter(value).similarity,
    "fps": lambda value: 1 / frame_times(2, value, None, None)[1],
    "sampling rate": lambda value: 1e9 / StampSampler(value).period_ns,
    "target_fps": lambda value: SmartFrameManager(target_fps=value).target_fps,
    "max_bytes": lambda value: FrameStore(max_bytes=value).max_bytes,
    "max_seconds": lambda value: FrameStore(max_seconds=value).max_seconds,
    **{
        f"the table's {row.name}": setting(row.name)
        for row in Settings.table().values()
        if row.type is float
    },
}
EXAMPLE = {"max_cache_tokens": 4096, "max_pixels": 3136, "the table's max_tail_tokens": 512}
EXAMPLE |= {"the table's max_cache_tokens": 4096, "the table's max_pixels": 3136}
EXAMPLE |= {"the table's max_time_gap": 2.0, "max_pixels of a chunk": 3136}
EXAMPLE |= {"the table's history_max_tokens": 512, "the table's history_feature_megabytes": 0}


def word_of(name):
    """What a refusal says of it."""
    return name.removeprefix("the table's ").split()[0]


@pytest.mark.parametrize("name", WHOLE)
def test_a_whole_number_of_any_type_is_kept_as_pythons_and_what_is_none_is_refused(name):
    example = EXAMPLE.get(name, 2)
    for kind in WHOLE_TYPES:
        kept = WHOLE[name](kind(example))
        assert type(kept) is int and kept == example
    refused = [True, np.True_, "2", 2.5, np.float32(2), [2], 2 + 0j]
    may_be_left_out = name in ("seed", "max_pixels of a chunk")
    for value in refused if may_be_left_out else [*refused, None]:
        with pytest.raises(InvalidParameterError, match=word_of(name)):
            WHOLE[name](value)


@pytest.mark.parametrize("name", REAL)
def test_a_real_number_of_any_type_is_kept_as_pythons_and_what_is_none_is_refused(name):
    example = EXAMPLE.get(name, 0.5)
    for kind in REAL_TYPES:
        kept = REAL[name](kind(example))
        assert type(kept) is float and kept == example
    refused = [True, np.True_, "0.5", [0.5], 0.5j, np.nan, 10**400]
    may_be_left_out = name == "fps"
    for value in refused if may_be_left_out else [*refused, None]:
        with pytest.raises(StreamVlmError, match=word_of(name)):
            REAL[name](value)


def test_a_rate_is_not_rounded_to_its_types_precision():
    """A third of a second in whole nanoseconds; float32 has a grain of 32 there."""
    assert StampSampler(np.float32(3)).period_ns == 333_333_333


@given(value=st.integers(-5, 5), least=st.integers(-3, 3), most=st.integers(-3, 3) | st.none())
def test_limits_are_allowed_themselves(value, least, most):
    allowed = value >= least and (most is None or value <= most)
    try:
        assert whole_number("it", value, least, most) == value and allowed
    except InvalidParameterError as refusal:
        assert not allowed and str(refusal).startswith("it must be a whole number")


@given(st.one_of(st.integers(), st.floats(), st.fractions(), st.text(), st.booleans(), st.none()))
def test_real_number_is_what_float_makes_of_a_number_and_nothing_of_the_rest(value):
    is_number = isinstance(value, (int, float, Fraction)) and not isinstance(value, bool)
    expected = float(value) if is_number else None
    assert repr(real_number(value)) == repr(expected)  # NaN is itself

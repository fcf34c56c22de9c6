# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""How many sessions a key may have."""

import pytest

from stream_vlm_ros.serve.options import Limits


@pytest.mark.parametrize(
    ("sessions", "keys", "share"),
    [(16, 2, 8), (16, 9, 8), (3, 2, 2), (1, 2, 1), (16, 1, 0), (16, 0, 0)],
)
def test_of_several_keys_none_takes_all_sessions_and_a_single_one_may(sessions, keys, share):
    assert Limits(max_sessions=sessions).with_keys(keys).max_sessions_per_key == share


@pytest.mark.parametrize("said", [0, 5])
def test_what_is_said_holds_however_many_keys_there_are(said):
    assert Limits(max_sessions_per_key=said).with_keys(9).max_sessions_per_key == said

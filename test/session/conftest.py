# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Stand-ins for an engine and for messages."""

import pytest
from fake_engine import FakeEngine
from image_messages import header


@pytest.fixture
def fake_engine():
    return FakeEngine()


@pytest.fixture
def make_header():
    return header

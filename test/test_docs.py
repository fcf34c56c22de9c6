# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""What the documentation leaves out is missed; make site holds its links and its navigation."""

import re
from pathlib import Path

import stream_vlm_ros.engine

DOCS = Path(__file__).resolve().parents[1] / "docs"


def test_the_reference_names_the_whole_public_face_of_the_engine():
    documented = re.findall(
        r"^::: stream_vlm_ros\.engine\.(\w+)$", (DOCS / "api.md").read_text(), re.M
    )
    assert sorted(documented) == sorted(stream_vlm_ros.engine.__all__)

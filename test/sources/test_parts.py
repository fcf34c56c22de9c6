# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Which part of a source may be asked for."""

import pytest

from stream_vlm_ros.errors import InvalidParameterError
from stream_vlm_ros.sources import BagSource, ImageFolderSource, VideoSource


@pytest.mark.parametrize("source", [VideoSource, BagSource, ImageFolderSource])
@pytest.mark.parametrize(
    ("part", "said"),
    [
        ({"start": -1.0}, "The part to read is -1.0 s to None s; it must start at 0 or later"),
        ({"start": 2.0, "end": 2.0}, "2.0 s to 2.0 s; .* end after its start"),
        ({"fps": 0.0}, "above 0"),
    ],
)
def test_every_source_refuses_a_part_that_cannot_be(tmp_path, source, part, said):
    with pytest.raises(InvalidParameterError, match=said):
        source(tmp_path, **part)

# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""How a launch file is told of several cameras."""

import pytest

from stream_vlm_ros.errors import InvalidParameterError
from stream_vlm_ros.launching.arguments import NodeArguments, cameras_of


def test_cameras_are_names_with_topics():
    assert cameras_of("") == {}
    both = {"front": "/front/image_raw", "rear": "back/image"}
    assert cameras_of("front=/front/image_raw, rear=back/image") == both


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("front", "missing its topic: 'front'"),
        ("front=", "missing its topic"),
        ("front=/a,front=/b", "a name is there twice"),
        ("stream=/a", "names no camera"),
        ("a b=/a", "names no camera"),
        ("front=/a,rear=/b, left= /a", "a topic is there twice: /a, /b, /a"),
    ],
)
def test_what_names_no_cameras_is_refused(text, words):
    with pytest.raises(InvalidParameterError, match=words):
        cameras_of(text)


def test_a_cameras_own_setting_in_a_parameter_file_is_checked_before_anything_starts(tmp_path):
    file = tmp_path / "cameras.yaml"
    defaults = {row.name: row.written(row.default) for row in NodeArguments.table().values()}
    for fps, refused in ((2.0, False), (500.0, True)):
        file.write_text(
            "/**:\n  ros__parameters:\n    sources: [front, rear]\n"
            f"    front:\n      sample_fps: {fps}\n"
        )
        given = defaults | {"params_file": str(file)}
        if not refused:
            assert NodeArguments.parsed(given).params_file == str(file)
            continue
        with pytest.raises(InvalidParameterError, match="sample_fps must lie in"):
            NodeArguments.parsed(given)

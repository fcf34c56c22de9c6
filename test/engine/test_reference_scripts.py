# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Scripts in the prototype's style for its experiments A, B and C pass as a stranger wrote them.

Of what such a script says, these changed alone: import lines, model, device, dtype, sizes and caps.
"""

import json
import runpy
from pathlib import Path

import pytest

from stream_vlm_ros.factory import default_model

SCRIPTS = Path(__file__).parents[1] / "reference_scripts"


@pytest.fixture
def run(tmp_path, monkeypatch):
    def call(name, **environment):
        monkeypatch.setenv("QWEN_MODEL_PATH", str(default_model()))
        monkeypatch.setenv("REPORT_PATH", str(tmp_path))
        for key, value in environment.items():
            monkeypatch.setenv(key, value)
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(SCRIPTS / f"{name}.py"), run_name="__main__")
        report = json.loads((tmp_path / f"{name}.json").read_text())
        return ended.value.code, [key for key, good in report["checks"].items() if not good]

    return call


@pytest.mark.parametrize("name", ["sink_detection", "long_video", "periodic_questions"])
def test_a_stranger_s_script_passes(run, name):
    assert run(name) == (0, [])


def test_a_stranger_s_script_fails_where_nothing_is_evicted(run):
    code, failed = run("long_video", MAX_CACHE_TOKENS="5000")
    assert code == 1 and failed == ["evictions", "at the cap in the end"]

# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""config/ and the tables of the pages are what the tables of settings say."""

import dataclasses
from pathlib import Path

import pytest
import yaml

from stream_vlm_ros.config import NODE, REPLAY, Settings, shared

ROOT = Path(__file__).resolve().parents[2]


@dataclasses.dataclass(frozen=True)
class WithOneMore(Settings):
    blur: float = shared(0.5, "How much to blur.", 0.0, 9.0)


@pytest.fixture(scope="module")
def writer(load):
    return load(ROOT / "tools" / "write_settings.py")


def test_the_files_equal_the_tables(writer):
    for path, text in writer.files().items():
        assert (ROOT / path).read_text() == text, "run make docs"
    for path, table in writer.tables().items():
        page = (ROOT / path).read_text()
        assert writer.with_table(page, table) == page, "run make docs"


def test_the_parameter_file_holds_every_default_in_its_type(writer):
    loaded = yaml.safe_load(writer.files()["config/stream_vlm.yaml"])["/**"]["ros__parameters"]
    expected = Settings().values(NODE) | {"sources": [""]}  # ROS has no empty list
    assert loaded == expected
    assert {n: type(v) for n, v in loaded.items()} == {n: type(v) for n, v in expected.items()}


def test_the_demo_s_file_holds_what_the_demo_changes_and_is_allowed(writer):
    loaded = yaml.safe_load(writer.files()["config/demo.yaml"])["/**"]["ros__parameters"]
    demo = Settings.of(loaded)
    assert demo.changes(NODE) == loaded
    assert loaded["max_cache_tokens"] < Settings().max_cache_tokens


def test_a_page_has_a_row_for_each_setting_that_its_program_takes(writer):
    for path, taker in (("docs/node.md", NODE), ("docs/replay.md", REPLAY)):
        page = (ROOT / path).read_text()
        assert all(f"| `{name}`" in page for name in Settings().values(taker))
    assert "| `queue_size`" not in (ROOT / "docs/replay.md").read_text()


def test_a_new_setting_is_in_the_file_and_in_both_pages(writer):
    text = writer.files(WithOneMore)["config/stream_vlm.yaml"]
    assert "    # How much to blur. ([0.0, 9.0])\n    blur: 0.5\n" in text
    node, replay, *_ = writer.tables(WithOneMore).values()
    assert "| `blur` | float | `0.5` | [0.0, 9.0] | before configure | How much to blur. |" in node
    assert "| `blur` | `0.5` | [0.0, 9.0] | How much to blur. |" in replay

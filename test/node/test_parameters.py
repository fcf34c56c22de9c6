"""The table of parameters, and what is made from it."""

import re
from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from stream_vlm_ros.errors import InvalidParameterError
from stream_vlm_ros.node import parameters as table
from stream_vlm_ros.node.parameters import Parameters, from_values

ROOT = Path(__file__).parents[2]


def test_the_yaml_file_equals_the_table():
    text = (ROOT / "config" / "stream_vlm.yaml").read_text()
    assert text == table.yaml_text()
    loaded = yaml.safe_load(text)["/**"]["ros__parameters"]
    assert loaded == {row.name: row.default for row in fields(Parameters)}
    assert {name: type(value) for name, value in loaded.items()} == {
        row.name: type(row.default) for row in fields(Parameters)
    }


def test_the_docs_page_equals_the_table():
    page = (ROOT / "docs" / "node.md").read_text()
    assert table.with_docs_table(page) == page
    assert all(f"| `{name}` |" in page for name in table.TABLE)


def test_the_demo_file_holds_known_parameters_only():
    text = (ROOT / "config" / "demo.yaml").read_text()
    from_values(yaml.safe_load(text)["/**"]["ros__parameters"])


def test_every_row_says_what_it_means_and_its_default_is_allowed():
    Parameters()
    for row in table.TABLE.values():
        assert row.metadata["description"].endswith("."), row.name


def test_every_parameter_is_read_somewhere():
    package = Path(table.__file__).parents[1]
    readers = [*package.joinpath("node").glob("*.py"), package / "factory.py"]
    code = "".join(path.read_text() for path in readers if path.stem != "parameters")
    unread = [n for n in table.TABLE if not re.search(rf"(parameters|settings)\.{n}\b", code)]
    assert unread == []


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"sample_fps": -1.0}, r"sample_fps must lie in \[0.0, 120.0\], got -1.0"),
        ({"sample_fps": float("nan")}, "sample_fps must lie in"),
        ({"chunk_frames": 0}, r"chunk_frames must lie in \[1, 64\], got 0"),
        ({"layout": "segmentd"}, "did you mean 'segmented'"),
        ({"chunk_frames": 2.5}, "chunk_frames must be of type int"),
        ({"autostart": "yes"}, "autostart must be of type bool"),
        ({"question_path": "graphs"}, "did you mean 'graph'"),
        ({"device": "gpu"}, "device must be auto, cpu, cuda or cuda:N"),
        ({"device": "cuda:"}, "device must be"),
        ({"sampel_fps": 2.0}, "did you mean 'sample_fps'"),
        ({"min_pixels": 2000, "max_pixels": 1000}, r"min_pixels \(2000\) is above max_pixels"),
        ({"sink_size": 9000, "window_size": 9000}, "is above max_cache_tokens"),
        ({"sink_size": 16384}, "leaves no room"),
        ({"max_cache_tokens": 63}, r"must be 0 \(as many as fit\) or at least 64, got 63"),
        ({"sampled_share": -0.5}, r"sampled_share must be -1 \(automatic\) or at least 0"),
        ({"important_share": -0.1}, "important_share must be -1"),
        ({"sampled_share": 0.6, "important_share": 0.4}, "leave nothing for the window"),
        ({"max_new_tokens": 2048}, "below max_tail_tokens"),
    ],
)
def test_a_bad_value_is_refused_with_a_reason(values, words):
    with pytest.raises(InvalidParameterError, match=words):
        from_values(values)


def test_a_cap_that_is_as_large_as_fits_takes_any_sink_and_window():
    assert from_values({"max_cache_tokens": 0, "sink_size": 9000, "window_size": 9000})


def test_a_whole_number_is_taken_for_a_float():
    assert from_values({"sample_fps": 2}).sample_fps == 2.0


def test_cuda_devices_are_spelled_as_torch_spells_them():
    assert from_values({"device": "cuda:1"}).device == "cuda:1"

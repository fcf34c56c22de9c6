"""What a report says of the machine."""

import platform
from pathlib import Path

import pytest

from stream_vlm_ros.replay.machine import processor_name


@pytest.mark.parametrize(
    ("told", "name"),
    [
        ("processor\t: 0\nmodel name\t: Maker X: 3 GHz\nprocessor\t: 1\nmodel name\t: Y\n",
         "Maker X: 3 GHz"),
        ("processor\t: 0\nBogoMIPS\t: 50\n", "aarch64"),
        (None, "aarch64"),
    ],
)  # fmt: skip
def test_the_processor_is_named_by_its_maker_or_its_architecture(monkeypatch, told, name):
    def read_text(path):
        if told is None:
            raise FileNotFoundError(path)
        return told

    monkeypatch.setattr(Path, "read_text", read_text)
    monkeypatch.setattr(platform, "processor", lambda: "")
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert processor_name() == name

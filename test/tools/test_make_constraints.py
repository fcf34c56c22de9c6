# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""The constraints fit themselves to the torch and the ROS that are already there."""

from pathlib import Path

import pytest

TOOLS = Path(__file__).resolve().parents[2] / "tools"
LINES = [
    "# comment",
    "torch==2.13.0",
    'numpy==2.4.6; python_version >= "3.11"',
    "opencv-python-headless==5.0.0.93",
    "setuptools==79.0.1",
    "rosbags==0.11.9",
    "rosbags-image==0.10.4",
    "ros-jazzy-rclpy==7.1.6",
    "colcon-core==0.21.3",
    "catkin-pkg==1.1.1",
    "pytest==9.2.0",
    "pytest-cov==7.1.0",
]


@pytest.fixture
def make_constraints(load):
    return load(TOOLS / "make_constraints.py")


def fit(module, monkeypatch, versions, *, system_ros):
    monkeypatch.setattr(module, "installed", versions.get)
    return module.fit(LINES, system_ros=system_ros)


def test_without_an_installed_ros_the_file_is_used_as_it_is(make_constraints, monkeypatch):
    assert fit(make_constraints, monkeypatch, {}, system_ros=False) == LINES


def test_the_torch_that_was_chosen_stays(make_constraints, monkeypatch):
    fitted = fit(make_constraints, monkeypatch, {"torch": "2.9.1+cpu"}, system_ros=False)
    assert [line for line in fitted if line.startswith("torch")] == ["torch==2.9.1+cpu"]


def test_beside_an_installed_ros_its_numpy_1_stays(make_constraints, monkeypatch):
    fitted = fit(make_constraints, monkeypatch, {"numpy": "1.26.4"}, system_ros=True)
    assert fitted == [
        "# comment",
        "torch==2.13.0",
        "rosbags==0.11.9",
        "rosbags-image==0.10.4",
        "pytest-cov==7.1.0",
        "pytest<9",
        "numpy<2",
    ]


@pytest.mark.parametrize("versions", [{}, {"numpy": "2.3.1"}])
def test_beside_an_installed_ros_with_numpy_2_numpy_is_free(
    make_constraints, monkeypatch, versions
):
    fitted = fit(make_constraints, monkeypatch, versions, system_ros=True)
    assert not [line for line in fitted if line.startswith("numpy")]

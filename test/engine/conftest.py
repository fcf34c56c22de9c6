# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""What the engine's tests share: toy models, and a run of their own for what needs Triton."""

import importlib.util
import os
import subprocess
import sys

import pytest
import torch
from toy_qwen import toy_config, toy_frames, toy_model, toy_processor

from stream_vlm_ros.engine import StreamProcessor, StreamQwenModel


@pytest.fixture(scope="session")
def processor() -> StreamProcessor:
    return toy_processor()


@pytest.fixture(scope="session")
def model() -> StreamQwenModel:
    return toy_model()


class Toys:
    """The functions, for tests that need several models."""

    processor = staticmethod(toy_processor)
    config = staticmethod(toy_config)
    model = staticmethod(toy_model)
    frames = staticmethod(toy_frames)


@pytest.fixture(scope="session")
def toys() -> type[Toys]:
    return Toys


@pytest.fixture
def words_of_program():
    """What a test's file says as a program with Triton, interpreted where there is no GPU."""

    def run(file):
        if importlib.util.find_spec("triton") is None:
            pytest.skip("needs Triton, which torch for a GPU brings")
        interpreted = {} if torch.cuda.is_available() else {"TRITON_INTERPRET": "1"}
        done = subprocess.run(
            [sys.executable, file], env=os.environ | interpreted, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.split()

    return run

"""Toy models for the engine's tests."""

import pytest
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

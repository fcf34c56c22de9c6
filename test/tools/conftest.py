# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""What the tests of scripts outside the package share."""

import importlib.util

import pytest


@pytest.fixture(scope="session")
def load():
    """The script at a path, as a module."""

    def from_path(path):
        specification = importlib.util.spec_from_file_location(path.stem, path)
        module = importlib.util.module_from_spec(specification)
        specification.loader.exec_module(module)
        return module

    return from_path

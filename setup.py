# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

from setuptools import setup

setup()  # For tools that ask for this file; pyproject.toml says everything.

# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""A memory on another machine: what travels between a robot and `stream-vlm serve`.

Needs neither torch nor a web framework: it is what a robot without a GPU installs.
"""

# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Visual memory for robots: streaming Qwen2.5-VL for ROS 2."""

__version__ = "0.1.0"

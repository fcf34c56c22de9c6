# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""The demo: a camera node, the node, and a client that asks, as processes of their own."""

import stream_vlm_ros.world  # noqa: F401 (world:SEED is a source here)

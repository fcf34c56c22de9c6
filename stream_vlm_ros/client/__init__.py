# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Asking and watching a node that runs: for the demo, live replays and people's own nodes."""

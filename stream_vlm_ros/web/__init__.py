# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""The console: a page that shows a memory at work, and asks it.

Whose memory it is
    live_memory     `LiveMemory`: what the page needs of one; the node's, or one in this process
    over_node       `OverNode`: that of a node that runs
    pictures        the newest picture for all who look, encoded once
"""

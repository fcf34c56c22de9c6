# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""The console: a page that shows a memory at work, and asks it.

Whose memory it is
    live_memory     `LiveMemory`: what the page needs of one; the node's, or one in this process
    in_process      of a source that is read here, without ROS

What it shows
    pictures        the newest picture, encoded once for all who look
"""

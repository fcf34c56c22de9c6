# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""A camera's frames and the questions about them, on their way to an engine; without ROS.

Frames come in
    ingest          arrivals -> frames -> chunks, and what becomes of each
    timed_frame     a picture on its way, with its stamp and header
    counters        what became of every frame

The engine works
    worker          one thread that owns it, and the queue in front of it
    turns           an answer's next token, or a chunk

What is kept
    answer_log      past questions with their answers
    memory_keeper   the files of its folder: asked for, every so often, at start and end
"""

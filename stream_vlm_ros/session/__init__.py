# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Frames of cameras and questions about them, on their way to engines; without ROS.

Frames come in
    ingest          arrivals -> frames -> chunks, and what becomes of each
    timed_frame     a picture on its way, with its stamp and header
    counters        what became of every frame

The engines work
    engine_session  one engine, and what it is told: append, answer, forget, copy, load
    worker          the queue in front of it
    engine_thread   one thread for the engines of all sessions
    scheduler       whose turn it is, and whether for a piece of an answer or for a chunk
    question        on its way to an answer, or to an error
    memory_summary  what a memory holds

What is told
    news            what happens again and again, as few lines of a log

What is kept
    answer_log      past questions with their answers
    memory_keeper   the files of its folder: asked for, every so often, at start and end
"""

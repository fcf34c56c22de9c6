# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""The stream's memory: its keys and values, where each token lies, and what is forgotten.

Begin with `manager`, which the engine talks to; it conducts the others.

    manager         `KVCacheManager`: conducts; all that changes is one operation of it
    state           what a memory is, as plain data; the draft of what comes next; `Companion`s
    slots           which slot of the buffer each token takes
    ledger          where each token lies in the model's positions
    kept            rows of the grids kept for long, laid out together
    eviction        what to forget: sink, window, sampled and important frames
    named_score     a user's own importance score, by MODULE:NAME
    buffer          keys and values, taken once; nothing in the window moves
    mrope           M-RoPE ids and rotations
    requests        forks: readers with room of their own; the stream is read-only to them
    budget          whether it fits the device
"""

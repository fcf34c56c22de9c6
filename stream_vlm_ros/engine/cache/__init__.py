# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""The stream's memory: its keys and values, where each token lies, and what is forgotten.

Begin with `manager`, which the engine talks to; it conducts the others.

    manager         `KVCacheManager`: buffer, ledger, evictor and requests as one
    buffer          keys and values, taken once; nothing in the window moves
    ledger          where each token lies: plain integers
    mrope           M-RoPE ids and rotations
    requests        forks: readers with room of their own; the stream is read-only to them
    eviction        what to forget: sink, window, sampled and important frames
    budget          whether it fits the device
"""

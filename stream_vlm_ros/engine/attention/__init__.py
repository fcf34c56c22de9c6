# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Attention over a memory in parts, each by the fastest kernel there is, merged by log-sum-exp.

Begin with `base`; the others are one kind of kernel each.

    base            a part of the KV, a state (out, lse), `merge_attn_states`, what a pass calls
    sdpa            torch's own kernels: a pass over a fork, and within windows of pictures
    cudnn           when cuDNN's attention is the one for a chunk's many queries
    flash3          FlashAttention 3 where it is installed: of chunks and of captured steps
    step            a captured step's attention: what it is given and computes, in plain torch
    triton_decode   the same in Triton, and products of one row
    triton_merge    the merging of parts in Triton
    triton_own      what a step computes around another kernel's attention over its memory
    verified        one guard for what is fast and must first prove itself
"""

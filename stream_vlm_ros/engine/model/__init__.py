# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""The network: patches -> features, embeddings -> hidden states -> logits.

`base` says what a family of models gives; `qwen2_5_vl` is one.

    base            `StreamModel`: what the engine asks of a network, and what a new family gives
    qwen2_5_vl      `StreamQwenModel`: the vision tower and the language model
    config          its configuration, and what of it is refused
    weights         from files and into files, by one table of released names
    adapter         a LoRA adapter, folded into the weights
    compiled        torch.compile for a chunk's elementwise work
    triton_layer    a decode step's products with norms, gates and sums, in Triton
    device          devices and number formats by name
"""

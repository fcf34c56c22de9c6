# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""What comes in: frames, their times, and the text that stands around them.

Each is used by `inference` when a chunk or a question comes in.

    processor         tokenizer, chat template, settings of the pictures
    picture_sizes     how large a picture may be, asked of its header before it is decoded
    frames            images -> patches and their grid, on the device
    sampling          which frames to take for a rate
    timestamps        when a chunk's frames were taken
    timeline          where its grids lie on the t axis: long pauses are left out
    chunking          frames gathered into chunks
    stamp_check       which stamps are believed: one wrong one is one lost frame
    chat              which text tokens stand around the frames and around a question
    token_reduction   tokens that say nothing new, left out
"""

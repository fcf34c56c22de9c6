# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""In place of a CUDA graph, which only a GPU can record."""

import torch


def in_place(step):
    """Takes a step so that, as a graph's, what comes of it lies in the same place each time."""
    places = []

    @torch.inference_mode()
    def replay():
        found = step()
        places.extend(x.clone() for x in found[len(places) :])
        for place, x in zip(places, found, strict=True):
            place.copy_(x)
        return tuple(places)

    return replay

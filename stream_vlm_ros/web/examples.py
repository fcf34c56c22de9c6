# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Questions that a model can answer, for who does not know what to ask."""

from __future__ import annotations

from stream_vlm_ros.model_card import ModelCard
from stream_vlm_ros.world.examiner import VideoExaminer
from stream_vlm_ros.world.questions import TEMPLATES


def examples_for(card: ModelCard) -> tuple[str, ...]:
    """Of its drawn world, for one that knows nothing else; else of any video."""
    if card.knows_only:
        return tuple(TEMPLATES[name][0] for name in ("now", "first", "how_many"))
    return tuple(one.text for one in VideoExaminer.QUESTIONS[:4])

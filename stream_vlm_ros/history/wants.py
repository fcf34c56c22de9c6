# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Which of the past a question wants: its last appearance, its first, any, or all of them.

By a few words of English, as they stand in questions about what was seen. A question in another
language wants the last appearance.
"""

from __future__ import annotations

import re
from enum import Enum
from typing import NamedTuple

MARGIN = 2  # grids on both sides of an episode, so that how a thing came and went is seen
NEIGHBOUR = 14  # grids before or after it, for what came before or after


class Which(Enum):
    """Which of the episodes that fit a question."""

    NEWEST = "newest"
    OLDEST = "oldest"
    BEST = "best"
    ALL = "all"


class Want(NamedTuple):
    """What a question wants to be shown.

    Attributes:
        which: of the episodes that fit.
        before, after: grids of its neighbourhood.
    """

    which: Which
    before: int = MARGIN
    after: int = MARGIN


_ALL = re.compile(
    r"\b(how (many|often|much)|every time|each time|all the times|which of (these|those|them)|"
    r"which (came|appeared|was there|was seen) (first|last|earlier|later)|list)\b"
)
# Which of several came first or last: all of them must be looked at.
_ORDER = re.compile(
    r"\b(come|came|appear|appeared|arrive|arrived|go|went|leave|left|there|seen) "
    r"(first|last|earlier|later|sooner)\b"
)
_OR = re.compile(r"\bor\b")
_FIRST = re.compile(r"\b(first(?![ -](aid|floor|storey|name|class|gear)\b)|earliest)\b")
# A question for yes or no. Not all that begins so: "was" is a German question, too.
_ANY = re.compile(
    r"^\W*(was|were|is|are|did|do|does|have|has|had) (there|an?|the|any\w*|some\w*|no|this|that|"
    r"these|those|you|i|we|he|she|it|they|my|your|his|her|our|their)\b|\bever\b"
)
_LAST = re.compile(r"\b(last|latest|most recent|recently|where|which way|direction|when)\b")
_AFTER = re.compile(r"\b(after|next|following|followed)\b")
_BEFORE = re.compile(r"\b(before|preceding|preceded|prior to|just ahead of)\b")


def wanted_by(question: str) -> Want:
    """What a question wants to be shown, by its words."""
    text = question.casefold()
    if _ALL.search(text) or (_OR.search(text) and _ORDER.search(text)):
        return Want(Which.ALL)
    after, before = _AFTER.search(text), _BEFORE.search(text)
    if after or before:
        return Want(Which.NEWEST, NEIGHBOUR if before else MARGIN, NEIGHBOUR if after else MARGIN)
    if _FIRST.search(text):
        return Want(Which.OLDEST)
    if _ANY.search(text) and not _LAST.search(text):
        return Want(Which.BEST)
    return Want(Which.NEWEST)

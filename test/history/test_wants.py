# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Which of the past a question wants, by its words."""

import pytest

from stream_vlm_ros.history.wants import MARGIN, NEIGHBOUR, Want, Which, wanted_by
from stream_vlm_ros.world.questions import TEMPLATES

LAST = Want(Which.NEWEST)
BEFORE = Want(Which.NEWEST, NEIGHBOUR, MARGIN)
AFTER = Want(Which.NEWEST, MARGIN, NEIGHBOUR)

BY_TYPE = {
    "now": LAST,
    "last": LAST,
    "where": LAST,
    "where_came": LAST,
    "where_left": LAST,
    "direction": LAST,
    "sign": LAST,
    "last_sign": LAST,
    "left_ago": LAST,
    "together": LAST,
    "colour_of": LAST,
    "shape_of": LAST,
    "before": BEFORE,
    "after": AFTER,
    "first": Want(Which.OLDEST),
    "was_there": Want(Which.BEST),
    "how_many": Want(Which.ALL),
    "one_of": Want(Which.ALL),
    "earlier": Want(Which.ALL),
    "later": Want(Which.ALL),
}


@pytest.mark.parametrize("type_", BY_TYPE)
def test_every_wording_of_the_drawn_world_wants_what_its_type_does(type_):
    words = {
        "thing": "red star", "a_thing": "a red star", "kind": "star", "colour": "red",
        "choices": "a red star or a blue ring", "time": "5 seconds",
    }  # fmt: skip
    for template in TEMPLATES[type_]:
        text = template.format(**words)
        for wording in (text, text.lower(), text.upper(), text.rstrip("?"), f"  {text} "):
            assert wanted_by(wording) == BY_TYPE[type_], wording


@pytest.mark.parametrize(
    ("want", "questions"),
    [
        (
            LAST,
            [
                "Where are my keys?",
                "where did i leave the red cup",
                "Where did you last see the first aid kit?",
                "When did the postman come?",
                "How long ago did the cat leave?",
                "Did you see where I put the screwdriver?",
                "Which way did the forklift go?",
                "What was the most recent warning on the display?",
                "What colour is the door?",
                "Who was in the kitchen?",
                "Was liegt auf dem Tisch?",
                "",
            ],
        ),
        (
            Want(Which.OLDEST),
            [
                "When did you first see the red cup?",
                "Who was the first person to come in?",
                "What is the earliest thing you remember of the dog?",
                "Where did the parcel stand for the first time?",
            ],
        ),
        (
            Want(Which.BEST),
            [
                "Have you ever seen a cat?",
                "Has anybody been here?",
                "Was there a fire extinguisher?",
                "Did the alarm light up?",
                "You saw a dog, did you ever?",
            ],
        ),
        (
            Want(Which.ALL),
            [
                "How many times did the door open?",
                "How often was the tap running?",
                "How much of the shelf was filled?",
                "List the tools on the bench.",
                "What did he carry each time he came in?",
                "Which of them wore a helmet?",
                "What came first, the cup or the plate?",
                "Did the cup or the plate appear later?",
            ],
        ),
        (
            AFTER,
            [
                "What happened after the delivery?",
                "Who came next?",
                "What followed the blue van?",
                "After the red star, what was there?",
            ],
        ),
        (
            BEFORE,
            [
                "What was on the table before the vase?",
                "What preceded the alarm?",
                "Who was there prior to the cleaner?",
                "What came just ahead of the red truck?",
            ],
        ),
        (
            Want(Which.NEWEST, NEIGHBOUR, NEIGHBOUR),
            ["What was there before and after the blue ring?"],
        ),
    ],
)  # fmt: skip
def test_a_question_of_a_user_is_understood_by_its_words(want, questions):
    for question in questions:
        assert wanted_by(question) == want, question


def test_a_word_within_another_is_not_taken_for_it():
    for question in (
        "Where is the everlast bag?",
        "What of the hereafter?",
        "A listless dog where?",
    ):
        assert wanted_by(question) == LAST, question

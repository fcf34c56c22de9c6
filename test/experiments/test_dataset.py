# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Questions in batches judge as `ask` does, and the age of what answers them is the true one."""

import pytest
import torch

from stream_vlm_ros.experiments.answers import merge
from stream_vlm_ros.experiments.dataset import Dataset, evidence_age, grade, make_items
from stream_vlm_ros.experiments.model_under_test import ModelUnderTest
from stream_vlm_ros.experiments.pictures import WorldPictures
from stream_vlm_ros.world.questions import History, Question
from stream_vlm_ros.world.world import Sighting, Thing, World


@pytest.fixture(scope="module")
def model():
    model = ModelUnderTest.load(shape="toy", device="cpu")
    torch.manual_seed(0)
    with torch.no_grad():  # larger weights than the library's: answers depend on the question
        for weight in model.network.parameters():
            if weight.ndim > 1:
                weight.normal_(0.0, 1.5 / weight[0].numel() ** 0.5)
    return model


@pytest.fixture
def few_words(model, monkeypatch):
    """Random weights that can say ten words and the end: answers of all lengths, all readable."""
    words = "red blue green star ring cross left right two three".split()
    tokenizer = model.processor.tokenizer
    said = [tokenizer.convert_tokens_to_ids(f" {word}") for word in words]
    said.append(tokenizer.convert_tokens_to_ids("<|im_end|>"))
    mask = torch.full((model.network.config.text_config.vocab_size,), -torch.inf)
    mask[said] = 0.0
    logits = model.network.logits
    monkeypatch.setattr(model.network, "logits", lambda hidden: logits(hidden) + mask)
    return words


@pytest.mark.parametrize("layout", ["continuous", "segmented"])
def test_a_batch_is_judged_as_ask_would_be(model, few_words, layout):
    engine = model.engine(100, layout=layout)
    world = World(3)
    for start in range(0, 8, 4):
        stamps = [(start + index) / 2 for index in range(4)]
        frames = [world.render(stamp, 84, 56) for stamp in stamps]
        engine.append_video_chunk(frames, timestamps=stamps)
    before = engine.cache_manager.gather()
    questions, expected = [], []
    for first in few_words:
        for second in few_words:
            text = f"Was there a {first} {second}?"
            answer, metrics = engine.ask(text, 12)
            if metrics["finish_reason"] != "stop" or not answer.strip():
                continue
            longer = f"{answer} star"
            questions += [
                Question(text, answer, "now"),
                Question(text, " two two", "now", accepted=(" three", longer, answer)),
                Question(text, longer, "now"),
                Question(text, answer.rpartition(" ")[0] or " no", "now"),
                Question(text, " purple", "now"),
            ]
            expected += [True, True, False, False, False]
    assert len({question.answer for question in questions}) > 5
    assert grade(engine, questions) == expected
    assert torch.equal(engine.cache_manager.gather(), before)


def sighting(name, start, end, text=""):
    colour, _, kind = name.rpartition(" ")
    thing = Thing(kind, colour, text)
    return Sighting(thing, start, end, (0.2, 0.2), (0.2, 0.2), 0.2, 0.0, "here", "here", "")


@pytest.fixture(scope="module")
def history():
    """Frames at 0, 0.5 ... 40 s; what comes and goes is far apart."""
    seen = [
        sighting("red star", 1, 5),
        sighting("blue ring", 8, 12),
        sighting("sign", 14, 18, "A7"),
        sighting("green ring", 20, 26),
        sighting("red cross", 30, 50),
    ]
    return History(seen, [index / 2 for index in range(81)])


@pytest.mark.parametrize(
    ("text", "answer", "type_", "age"),
    [
        ("What do you see now?", "a red cross", "now", 0.0),
        ("What was visible 12 seconds ago?", "nothing", "ago", 12.0),
        ("What was visible 10 seconds after the start?", "a blue ring", "at", 30.0),
        # Last frames: a thing gone at 5 s was last seen at 4.5 s.
        ("What appeared first?", "a red star", "first", 40 - 4.5),
        ("What appeared last?", "a red cross", "last", 0.0),
        ("Where was the blue ring?", "on the left", "where", 40 - 11.5),
        ("What appeared after the red star?", "a blue ring", "after", 40 - 4.5),
        ("What did the sign read?", "A7", "sign", 40 - 17.5),
        ("Was there a green ring?", "yes", "was_there", 40 - 25.5),
        ("Was there a ring?", "yes", "was_there", 40 - 25.5),
        ("Was there a white star?", "no", "was_there", None),
        ("Where was the white star?", "not seen", "where", None),
        ("What colour was the star?", "red", "colour_of", 40 - 4.5),
        ("How many things did you see?", "four", "how_many", 40 - 4.5),
        ("Was it a red star or a blue ring?", "a blue ring", "choice", 40 - 11.5),
    ],
)
def test_the_age_is_the_time_since_what_answers_was_last_seen(history, text, answer, type_, age):
    assert evidence_age(Question(text, answer, type_), history) == age


def test_questions_about_a_moment_are_the_same_for_every_memory():
    world = World(5)
    stamps = [index / 2 for index in range(60)]
    one, same = (make_items(world, stamps, seed=1, each=2) for _ in range(2))
    assert one == same and one
    assert one != make_items(world, stamps, seed=2, each=2)


def test_an_exam_is_held_where_nothing_has_just_changed():
    for seed in range(5):
        pictures = WorldPictures(seed, 2.0, 83, (64, 48))
        frames = Dataset.settled(pictures, 4)
        assert frames % 4 == 0 and 40 < frames <= 80
        assert len(Dataset(pictures, frames, 0, 20).items) == 20


def test_merged_answers_drop_lines_said_before():
    texts = ["EXIT\nRoom 12", "exit.\n\nRoom  12\nNo smoking", "", "room 12!"]
    assert merge(texts) == ["EXIT", "Room 12", "No smoking"]

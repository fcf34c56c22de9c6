# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""A calibration is made: footage goes through the engine, its questions score every grid."""

import pytest
import torch
from toy_qwen import toy_frames, toy_model, toy_processor

from stream_vlm_ros.engine import VideoStreamingInference
from stream_vlm_ros.engine.attention.base import Readout
from stream_vlm_ros.errors import CalibrationError
from stream_vlm_ros.history.calibrating import (
    Head,
    Watch,
    calibrate,
    every_query_head,
    measure,
    rank,
)
from stream_vlm_ros.history.calibration import PLACES, Calibration
from stream_vlm_ros.history.limits import Probe

GRID_TOKENS = 6  # of 56 x 84


class Frames:
    """Pictures half a second apart, and questions about them."""

    name = "frames"

    def __init__(self, count, probes, sizes=((56, 84),), seed=0):
        self.probes, self._count, self._sizes, self._seed = probes, count, sizes, seed

    def frames(self):
        pictures = [toy_frames(self._count, *size, self._seed) for size in self._sizes]
        for number in range(self._count):
            yield pictures[number * len(self._sizes) // self._count][number], number / 2


def probe(at, first=1.0, last=2.0, text="Where was it?"):
    return Probe(text, at, ((first, last),), ((first, last),))


@pytest.fixture
def watch():
    model = toy_model()
    engine = VideoStreamingInference(model, toy_processor(), "cpu")
    return Watch(engine, toy_processor(), chunk_frames=6)


def by_hand(frames, count, text):
    """Scores by head and place of the first ``count`` pictures: a fresh engine, every key read from
    its passes, head by head, grid by grid, query by query."""
    model, processor = toy_model(), toy_processor()
    engine = VideoStreamingInference(model, processor, "cpu")
    readouts, forward = [], model.stream_forward

    def reading(embeddings, positions, fork, functions=None, readout=None):
        readouts.append(Readout({0: range(4), 1: range(4)}, {0: range(2), 1: range(2)}))
        return forward(embeddings, positions, fork, functions, readouts[-1])

    model.stream_forward = reading
    some, sizes = list(frames.frames())[:count], []
    for at in range(0, count, 6):
        part = some[at : at + 6]
        engine.append_video_chunk([f for f, _ in part], timestamps=[t for _, t in part])
        sizes.append(len(part) // 2 * GRID_TOKENS)  # tokens, behind the text before the first
    passes = list(zip(readouts, sizes, strict=True))
    engine.ask(text, max_new_tokens=1)
    prompt = [ord(letter) for letter in text]  # bytes are the words of this tokenizer
    found = {}
    for layer in range(2):
        keys = torch.cat([one.keys(layer)[:, -size:] for one, size in passes], 1)
        keys = keys.unflatten(1, (-1, GRID_TOKENS))  # [kv_heads, grids, tokens, d]
        queries = readouts[len(passes)].queries(layer)
        length = queries.shape[1]
        behind = length - END
        places = {
            "last": range(length - 1, length),
            "words": range(behind - len(prompt), behind),
            "end": range(behind, length),
        }
        for head in range(4):
            for place in PLACES:
                scores = [
                    sum(max(float(k @ queries[head, q]) for k in grid) for q in places[place])
                    / len(places[place])
                    for grid in keys[head // 2]
                ]
                mean = sum(scores) / len(scores)
                found[layer, head, place] = [score - mean for score in scores]
    return found


# "<|im_end|>\n<|im_start|>assistant\n" with one token a byte.
END = 1 + 1 + 1 + len("assistant\n")


def test_every_head_scores_every_grid_by_its_best_token_and_the_mean_over_the_queries(watch):
    film = Frames(16, [probe(4.5), probe(100.0, text="And what else?")])
    seen = {}
    heads = every_query_head(watch.model)
    for one, stamps, scored in watch.scores(film, heads, lambda grids: None):
        seen[one.text] = stamps, dict(scored())
    # At 4.5 s ten frames had come; the last question came after the end.
    for text, count in (("Where was it?", 10), ("And what else?", 16)):
        stamps, found = seen[text]
        assert stamps.tolist() == [[k, k + 0.5] for k in range(count // 2)]
        expected = by_hand(film, count, text)
        assert {tuple(head) for head in found} == set(expected)
        for head, scores in found.items():
            assert scores.tolist() == pytest.approx(expected[tuple(head)], abs=1e-3)


def test_of_an_odd_number_of_frames_one_waits_for_its_partner(watch):
    film = Frames(12, [probe(2.0), probe(2.25), probe(3.5)])
    seen = [
        (one.at, stamps[-1].tolist())
        for one, stamps, _ in watch.scores(film, [(0, 0)], lambda grids: None)
    ]
    # At 2.0 s there are frames of 0, 0.5, 1, 1.5 and 2.0 s: two grids, and one that waits.
    assert seen == [(2.0, [1.0, 1.5]), (2.25, [1.0, 1.5]), (3.5, [3.0, 3.5])]


def test_a_question_before_the_first_grid_waits_for_it(watch):
    film = Frames(12, [probe(-1.0), probe(0.2)])
    seen = [len(stamps) for _, stamps, _ in watch.scores(film, [(0, 0)], lambda grids: None)]
    assert seen == [3, 3]  # the first chunk has six frames


def test_what_finds_no_room_is_left_out_and_said(watch):
    grid_bytes = GRID_TOKENS * 16 * 4  # one head of 16 numbers in float32
    tight = Watch(watch.engine, toy_processor(), chunk_frames=6, max_bytes=4 * grid_bytes)
    film = Frames(24, [probe(2.5), probe(11.0)])
    seen = [one.at for one, _, _ in tight.scores(film, [(0, 0)], lambda grids: None)]
    assert seen == [2.5]
    assert tight.notes == [
        "frames: there is room for keys of 4 grids, so the questions after 0.0 h were left out "
        "(--key-gigabytes)"
    ]


def test_pictures_of_two_sizes_are_refused_in_words(watch):
    film = Frames(24, [probe(11.0)], sizes=((56, 84), (84, 84)))
    with pytest.raises(CalibrationError, match="change their size, from 6 tokens a grid to 9"):
        list(watch.scores(film, [(0, 0)], lambda grids: None))


def test_footage_too_short_or_with_too_few_questions_is_refused_with_its_counts(watch):
    few = Frames(120, [probe(59.0)] * 3)
    with pytest.raises(CalibrationError, match=r"60 grids \(of two frames\) and 3 questions"):
        rank(watch, [few])
    short = Frames(20, [probe(8.0)] * 9)
    with pytest.raises(CalibrationError, match=r"10 grids .* at least 60 and 8"):
        measure(watch, [short], [Head(0, 0, "last")])
    unseen = Frames(120, [probe(59.0, 300.0, 301.0)] * 9)  # evidence that no frame shows
    with pytest.raises(CalibrationError, match="0 questions whose evidence it shows"):
        rank(watch, [unseen])


@pytest.mark.slow
def test_the_heads_that_find_are_found_in_a_world(tmp_path):
    from stream_vlm_ros.factory import default_model
    from stream_vlm_ros.history.calibration import FILE_NAME
    from stream_vlm_ros.world.evaluate import load
    from stream_vlm_ros.world.rare_film import RareFilm

    model, processor = load()
    film = RareFilm(31, 0.15, once=6, repeated=0, never=4)
    engine = VideoStreamingInference(model, processor, "cpu")
    report = calibrate(Watch(engine, processor), [film], [film])
    shipped = Calibration.load(default_model() / FILE_NAME)
    found = {head[:2] for head in report.calibration.heads}
    assert len(found & {head[:2] for head in shipped.heads}) >= 2
    assert report.precision > 0.9 and report.limits.right > 0.9 and report.limits.ends > 0.9
    assert report.fallback < report.limits.right
    report.calibration.save(tmp_path / FILE_NAME)
    Calibration.of(tmp_path, model)  # fits

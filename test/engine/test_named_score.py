# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""An importance score of a user's own, named in the settings: found, tried out, or refused."""

import numpy as np
import pytest

from stream_vlm_ros.config import Settings
from stream_vlm_ros.engine.cache.named_score import score_by_name
from stream_vlm_ros.errors import InvalidParameterError
from stream_vlm_ros.factory import build_engine, load_model

SCORES = """
import numpy as np

class Oldest:
    def describe(self, features):
        return features.float().mean((0, 1)).cpu().numpy()[:2]
    def rank(self, descriptors):
        return -np.arange(len(descriptors))

class Needs(Oldest):
    def __init__(self, path): pass

class Silent(Oldest):
    rank = None

class Words(Oldest):
    def describe(self, features): return "bright"

class Nothing(Oldest):
    def describe(self, features): return None

class Pictures(Oldest):
    def describe(self, features): return features.cpu().numpy()

class TooFew(Oldest):
    def rank(self, descriptors): return [1.0]

class NoNumbers(Oldest):
    def rank(self, descriptors): return [float("nan")] * len(descriptors)

class Fails(Oldest):
    def rank(self, descriptors): raise KeyError("no weights")

def make():
    return Oldest()

there = Oldest()
"""


@pytest.fixture(autouse=True)
def modules(tmp_path, monkeypatch):
    (tmp_path / "own_scores.py").write_text(SCORES)
    (tmp_path / "broken_scores.py").write_text("import numpy\nraise OSError('no weights here')\n")
    (tmp_path / "ending_scores.py").write_text("import sys\nsys.exit(3)\n")
    (tmp_path / "needy_scores.py").write_text("import a_library_that_is_not_there\n")
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.parametrize("name", ["Oldest", "make", "there"])
def test_a_class_a_function_or_an_object_is_found_by_its_name(name):
    score = score_by_name(f"own_scores:{name}", 8)
    assert list(score.rank(np.zeros((3, 2)))) == [0, -1, -2]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("own_scores", "is not of the form MODULE:NAME"),
        ("own scores:Oldest", "is not of the form MODULE:NAME"),
        ("own_scores:Oldst", "the module has no 'Oldst'; did you mean 'Oldest'"),
        ("no_scores:Oldest", "there is no module 'no_scores'; its folder must be in PYTHONPATH"),
        ("own_scores.sub:Oldest", "there is no module 'own_scores.sub'|'own_scores' is not a pack"),
        ("broken_scores:A", r"fails when it is imported: OSError: no weights here .*py, line 2"),
        ("ending_scores:A", "fails when it is imported: SystemExit: 3"),
        ("needy_scores:A", "fails when it is imported: ModuleNotFound.*library_that_is_not_there"),
        ("own_scores:Needs", "cannot be made without arguments: TypeError"),
        ("own_scores:SCORE", "the module has no 'SCORE'"),
        ("own_scores:np", "cannot be made|is no importance score: module has no describe"),
        ("own_scores:Silent", r"Silent has no rank\(\)"),
        ("own_scores:Words", r"tried out on 3 grids of noise, its describe\(\) fails"),
        ("own_scores:Nothing", r"its describe\(\) fails"),
        ("own_scores:Pictures", r"its describe\(\) fails: ValueError.*shape \(2, 2, 8\)"),
        ("own_scores:TooFew", r"its rank\(\) fails: ValueError: it gave .*for 3 grids"),
        ("own_scores:NoNumbers", r"its rank\(\) fails"),
        ("own_scores:Fails", r"its rank\(\) fails: KeyError: 'no weights'"),
    ],
)
def test_what_is_no_score_is_refused_in_words(name, says):
    with pytest.raises(InvalidParameterError, match=says):
        score_by_name(name, 8)


@pytest.mark.parametrize(
    "others",
    [{"important_share": 0.0, "sampled_share": 0.0}, {"window_size": 60},
     {"engine": "delayed_batch"}],
)  # fmt: skip
def test_a_score_that_would_decide_nothing_is_refused(others):
    with pytest.raises(InvalidParameterError, match="importance decides which frames of important"):
        Settings(importance="own_scores:Oldest", **others)


def test_settings_give_the_engine_the_score_that_they_name():
    settings = Settings(importance="own_scores:Oldest", max_cache_tokens=300, device="cpu")
    engine = build_engine(settings, load_model(settings))
    for number in range(20):
        frames = np.random.default_rng(number).integers(0, 256, (4, 112, 112, 3), np.uint8)
        engine.append_video_chunk(list(frames), fps=2)
    kept = [number for number, _ in engine.cache_manager.ledger.kept_offsets()]
    # Grids 0 and 1 are the sink; the oldest of those that left the window stay.
    assert kept == list(range(2, 2 + len(kept))) and len(kept) > 3

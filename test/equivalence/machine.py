# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""One hypothesis machine that drives two trees by the same steps; see `same_as` for the whole."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from comparison import Worst, broke_a_tie, differences, limit
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, rule
from pair import Pair

SIZES = {  # frame heights and widths, in pixels: one to sixteen tokens a grid
    "toy": [(28, 28), (56, 56), (56, 84), (84, 84), (40, 100)],
    "small": [(112, 112), (56, 112), (84, 112)],
}
QUESTIONS = {
    "toy": ["What is it?", "So?", "<|im_end|>?", "Où est le chat ? 猫"],
    "small": [
        "What do you see?",
        "What was visible before the red circle?",
        "How many things have you seen?",
        "Was there a blue square?",
    ],
}
CHOICES = {
    "toy": [["yes", "no"], ["a", "b", "c"], ["left", "on the right", "up"], ["same", "same"]],
    "small": [["yes", "no"], ["red", "blue", "green"], ["circle", "square"], ["one", "two"]],
}


@dataclass
class Tally:
    """What all machines together met: that nothing was compared to nothing can be seen in it."""

    machines: int = 0
    steps: int = 0
    ties: int = 0
    equal_choices: int = 0
    commands: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    settings: Counter[str] = field(default_factory=Counter)
    evictions: int = 0
    tokens_evicted: int = 0
    answer_tokens: int = 0
    appended_under_an_answer: int = 0
    longest: int = 0
    worst: dict[str, Worst] = field(default_factory=dict)


# -- what is drawn -----------------------------------------------------------------------------

FRACTION = st.floats(-0.5, 1.5).map(lambda share: round(share, 2))
ABOUT = st.none() | st.none() | st.tuples(FRACTION, FRACTION)
SCENES = st.integers(0, 5)
SHARES = st.sampled_from(
    [
        (0.0, 0.0),
        (0.0, 0.0),
        (0.0, 0.0),
        (0.3, 0.0),
        (0.0, 0.4),
        (0.3, 0.3),
        (-1.0, -1.0),
        (0.5, -1.0),
    ]
)
GREEDY: dict[str, Any] = {}
DECODINGS = st.one_of(
    st.just(GREEDY),
    st.just(GREEDY),
    st.builds(
        lambda temperature, top_p, penalty, seed: {
            "do_sample": True,
            "temperature": temperature,
            "top_p": top_p,
            "repetition_penalty": penalty,
            "seed": seed,
        },
        st.sampled_from([1.0, 0.0, 0.7, 3.0]),
        st.sampled_from([1.0, 0.5]),
        st.sampled_from([1.0, 1.3]),
        st.integers(0, 99),
    ),
)


@st.composite
def evictions(draw: st.DrawFn) -> dict[str, Any] | None:
    """Every value is given: a tree may have other defaults."""
    cap = draw(st.sampled_from([None, 110, 150, 200, 260]))
    if cap is None:
        return None
    sampled, important = draw(SHARES)
    return {
        "max_cache_tokens": cap,
        "sink_size": draw(st.sampled_from([0, 0, 20, 63, 119])),
        "window_size": draw(st.sampled_from([0, 0, 0, 40, 400])),
        "eviction_interval": draw(st.sampled_from([1, 1, 3])),
        "sampled_share": sampled,
        "important_share": important,
    }


OPTIONS = st.fixed_dictionaries(
    {
        "layout": st.sampled_from(["continuous", "segmented"]),
        "position_policy": st.sampled_from(["contiguous", "keep_gaps"]),
        "max_tail_tokens": st.sampled_from([256, 256, 256, 70]),
        "fork_slack_tokens": st.sampled_from([0, 20, 60, 200]),
        "min_pixels": st.sampled_from([None, None, 28 * 28, 60 * 60]),
        "max_pixels": st.sampled_from([None, None, 56 * 56, 100 * 100]),
        "system_prompt": st.sampled_from([None, None, "Look."]),
        "skip_similarity": st.sampled_from([None, None, None, 0.5, 0.98]),
    }
)

BAD_CHUNKS: dict[str, tuple[Any, dict[str, Any]]] = {
    "no frame": ([], {}),
    "no picture": (["a picture"], {}),
    "two sizes": ([np.zeros((28, 28, 3), np.uint8), np.zeros((56, 28, 3), np.uint8)], {}),
    "grey": ([np.zeros((28, 28), np.uint8)], {}),
    "floats": ([np.zeros((28, 28, 3))], {}),
    "empty": ([np.zeros((0, 28, 3), np.uint8)], {}),
    "too long and narrow": ([np.zeros((2, 900, 3), np.uint8)], {}),
    "no rate": ([np.zeros((28, 28, 3), np.uint8)], {"fps": 0}),
    "not a time": ([np.zeros((28, 28, 3), np.uint8)], {"timestamps": [float("nan")]}),
    "a time in words": ([np.zeros((28, 28, 3), np.uint8)], {"timestamps": ["noon"]}),
    "before all": ([np.zeros((28, 28, 3), np.uint8)], {"timestamps": [-1e9]}),
    "nanoseconds": ([np.zeros((28, 28, 3), np.uint8)], {"timestamps": [1.7e18]}),
    "a time too many": ([np.zeros((28, 28, 3), np.uint8)], {"timestamps": [5e6, 6e6]}),
    "rate and times": ([np.zeros((28, 28, 3), np.uint8)], {"fps": 2, "timestamps": [5e6]}),
}
BAD_QUESTIONS: dict[str, tuple[Any, dict[str, Any]]] = {
    "no text": (None, {}),
    "empty": ("", {}),
    "an unpaired surrogate": ("\ud800", {}),
    "too long": ("word " * 400, {}),
    "no token": ("So?", {"max_new_tokens": 0}),
    "half a token": ("So?", {"max_new_tokens": 1.5}),
    "a long answer": ("So?", {"max_new_tokens": 5000}),
    "cold": ("So?", {"do_sample": True, "temperature": -1.0}),
    "nothing to draw from": ("So?", {"do_sample": True, "top_p": 0.0}),
    "stop is no list": ("So?", {"stop": "x"}),
    "stop is empty": ("So?", {"stop": [""]}),
    "seed": ("So?", {"do_sample": True, "seed": 2**70}),
    "backwards": ("So?", {"about": (2.0, 1.0)}),
    "no time": ("So?", {"about": "noon"}),
    "never seen": ("So?", {"about": (-1e9, -9e8)}),
    "kept at any length": ("So?", {"max_new_tokens": 180, "update_state": True}),
}
BAD_CHOICES: dict[str, Any] = {
    "none": [],
    "a text": "yes",
    "an empty one": ["yes", ""],
    "no text": ["yes", 1],
    "an unpaired surrogate": ["\ud800"],
    "too many": ["yes"] * 2000,
    "too long": ["yes" * 300, "no"],
}


def pictures(count: int, size: tuple[int, int], scene: int) -> list[np.ndarray]:
    """Frames of a scene, ``[height, width, 3]``: coloured fields; those of odd scenes are alike.

    Unlike each other otherwise, and clearly so: which frame is the least like any other must not
    hang on how a tree rounds.
    """
    height, width = size
    noise = np.random.default_rng(scene)
    fields = noise.integers(20, 236, (1 if scene % 2 else count, 2, 3, 3))  # of each frame
    rows, columns = np.arange(height) * 2 // height, np.arange(width) * 3 // width
    grain = noise.integers(-20, 20, (len(fields), height, width, 3))
    frames = (fields[:, rows][:, :, columns] + grain).astype(np.uint8)
    return [frames[number % len(frames)] for number in range(count)]


class SameAs(RuleBasedStateMachine):
    """Whatever is done to both trees, both answer the same and hold the same.

    ``pair``, ``tally`` and ``leave_out`` (names of steps not taken, where a tree is meant to
    behave in another way: see `same_as`) are set on a subclass.
    """

    pair: Pair
    tally: Tally
    leave_out: frozenset[str] = frozenset()

    saved = Bundle("saved")
    answers = Bundle("answers")

    def __init__(self) -> None:
        super().__init__()
        self.tally.machines += 1
        # A difference was found, or rounding decided between two tokens: what follows may differ.
        self.over = False
        self.model = "toy"
        self.count = 0
        self.open: dict[int, dict[str, Any]] = {}
        self.discarded: set[int] = set()
        self.shaky = False
        self.times: tuple[float, float] | None = None
        self.evicted = (0, 0)

    # -- the two trees ---------------------------------------------------------------------------

    def both(self, command: str, values: bool = False, /, **arguments: Any) -> dict[str, Any]:
        """Do one thing to both; AssertionError unless both answer and hold the same after it."""
        self.tally.steps += 1
        self.tally.commands[command] += 1
        self.over = True  # until all is well: after a failure the machine ends here
        before, after = self.pair.both(command, **arguments)
        if self._parted_by_a_tie(command, arguments, before["result"], after["result"]):
            self.tally.ties += 1
            return before
        said = _error(before), _error(after)
        assert said[0].split(":")[0] == said[1].split(":")[0], (
            f"{command}: before '{said[0]}', after '{said[1]}'"
        )
        if before["error"]:
            self.tally.errors[before["error"]] += 1
        self._hold_equal(command, before["result"], after["result"])
        self._look(command, values)
        self.over = False
        return before

    def _look(self, command: str, values: bool) -> None:
        before, after = self.pair.both("look", values=values)
        said = _error(before), _error(after)
        assert said == ("", ""), f"looking after {command}: before '{said[0]}', after '{said[1]}'"
        self._hold_equal(f"memory after {command}", before["result"], after["result"])
        info = before["result"]["info"]
        self.tally.longest = max(self.tally.longest, info["cache_seq_length"])
        oldest, newest = info["oldest_timestamp"], info["newest_timestamp"]
        self.times = None if oldest is None else (oldest, newest)
        stats = info["eviction_stats"]
        evicted = stats["total_evictions"], stats["total_tokens_evicted"]
        self.tally.evictions += max(0, evicted[0] - self.evicted[0])
        self.tally.tokens_evicted += max(0, evicted[1] - self.evicted[1])
        self.evicted = evicted

    def _hold_equal(self, what: str, before: Any, after: Any) -> None:
        if isinstance(before, dict) and "logits" in before and isinstance(after, dict):
            # The last row may be of a text that nobody reads: that which closes a kept exchange.
            rows = min(len(before["logits"]), len(after["logits"]))
            tokens = before["metrics"]["answer_tokens"]
            assert rows >= tokens, f"{what}: {rows} rows of logits for {tokens} tokens"
            before, after = dict(before), dict(after)
            before["logits"] = before["logits"][:rows]
            after["logits"] = after["logits"][:rows]
            self.tally.answer_tokens += tokens
        if isinstance(before, dict) and "choice" in before and isinstance(after, dict):
            second, first = np.sort([-np.inf, *before["scores"]])[-2:]
            if first - second <= 2 * limit(before["scores"]):  # rounding chooses
                self.tally.equal_choices += 1
                before = {**before, "choice": after["choice"]}
                before["metrics"] = {
                    **before["metrics"],
                    "choice_index": after["metrics"]["choice_index"],
                }
        found = differences(before, after, self.tally.worst, what)
        assert not found, "\n".join(found[:12])

    def _parted_by_a_tie(self, command: str, arguments: Any, before: Any, after: Any) -> bool:
        if arguments.get("do_sample") or not (before and after and command in ("ask", "write")):
            return False
        old, new = (one.get("answer", one.get("text")) for one in (before, after))
        if old == new or "logits" not in before or "logits" not in after:
            return False
        return broke_a_tie(before["logits"], after["logits"])

    # -- rules -------------------------------------------------------------------------------

    @initialize(
        model=st.sampled_from(["toy", "toy", "toy", "small"]),
        eviction=evictions(),
        text_path=st.sampled_from(["auto", "auto", "auto", "static"]),
        options=OPTIONS,
        start=st.sampled_from([0.0, 12.25, 1.7e9]),
        filled=st.sampled_from([1.5, 1.0, 0.5, 3.0, 0.0]),
    )
    def make(
        self,
        model: str,
        eviction: dict[str, Any] | None,
        text_path: str,
        options: dict[str, Any],
        start: float,
        filled: float,
    ) -> None:
        if "static" in self.leave_out:
            text_path = "auto"
        if eviction and "automatic shares" in self.leave_out:
            eviction = {
                name: max(0.0, value) if name.endswith("share") else value
                for name, value in eviction.items()
            }
        self.model, self.start = model, start
        asked = {"model": model, "eviction": eviction, "text_path": text_path, "options": options}
        before, after = self.pair.both("make", **asked)
        assert before["error"] == after["error"], f"make: '{_error(before)}', '{_error(after)}'"
        if before["error"]:
            self.tally.errors[before["error"]] += 1
            plain = {"layout": options["layout"], "position_policy": options["position_policy"]}
            asked |= {"eviction": eviction and {**eviction, "sink_size": 0, "window_size": 0}}
            asked |= {"options": {**plain, "max_tail_tokens": 256}}
            before, after = self.pair.both("make", **asked)
            assert before["error"] == after["error"], f"{_error(before)}, {_error(after)}"
            assert not before["error"], _error(before)
        self._count_settings(asked)
        self._look("make", True)
        # Of pictures quite alike, rounding decides which token is kept as the least alike.
        self.shaky = bool(asked["options"].get("skip_similarity"))
        # At first nearly as many tokens as the cap, half of it, or several times as many.
        cap = eviction["max_cache_tokens"] if eviction else 100
        chunks = round(filled * cap / {"toy": 14, "small": 24}[model])
        for number in range(chunks):
            stamps = [start + 2.0 * number + 0.5 * index for index in range(4)]
            scene = number % 11
            self._append(4, number, scene, "numpy", number == chunks - 1, timestamps=stamps)

    def _count_settings(self, asked: dict[str, Any]) -> None:
        eviction, options = asked["eviction"], asked["options"]
        self.tally.settings[asked["model"]] += 1
        self.tally.settings[asked["text_path"]] += 1
        for name in ("layout", "position_policy"):
            self.tally.settings[options[name]] += 1
        if options.get("skip_similarity"):
            self.tally.settings["skip_similarity"] += 1
        if options.get("fork_slack_tokens"):
            self.tally.settings["fork_slack_tokens"] += 1
        if not eviction:
            self.tally.settings["no cap"] += 1
            return
        for name, level in (("sampled_share", "level 2"), ("important_share", "level 3")):
            if eviction[name]:
                self.tally.settings["automatic" if eviction[name] < 0 else level] += 1
        if not eviction["sampled_share"] and not eviction["important_share"]:
            self.tally.settings["level 1"] += 1

    def probe(self) -> None:
        """The logits of a first token: what the memory means to a question; it leaves no trace."""
        if not self.over:
            self.both("ask", True, question=QUESTIONS[self.model][0], max_new_tokens=1)

    def _pictures(self, count: int, size: int, scene: int) -> list[np.ndarray]:
        sizes = SIZES[self.model]
        frames = pictures(count, sizes[size % len(sizes)], scene)
        if self.shaky:
            self.count += 1
            noise = np.random.default_rng(1000 + self.count)
            shaken = [frame // 2 + noise.integers(0, 60, frame.shape) for frame in frames]
            frames = [frame.astype(np.uint8) for frame in shaken]
        return frames

    def _append(
        self, frames: int, size: int, scene: int, kind: str, probe: bool, **times: Any
    ) -> None:
        if self.over:
            return
        arrays = self._pictures(frames, size, scene)
        found = self.both("append", not probe, frames=arrays, kind=kind, **times)
        if not found["error"] and self.open:
            self.tally.appended_under_an_answer += 1
        if probe:
            self.probe()

    @rule(
        count=st.sampled_from([1, 1, 3, 6]),
        frames=st.sampled_from([4, 4, 2, 1, 3, 5]),
        size=st.integers(0, 4),
        scene=SCENES,
        kind=st.sampled_from(["numpy", "pil", "torch"]),
        fps=st.sampled_from([2, 2, None, 0.5, 7.5]),
        probe=st.booleans(),
    )
    def append_at_a_rate(
        self,
        count: int,
        frames: int,
        size: int,
        scene: int,
        kind: str,
        fps: float | None,
        probe: bool,
    ) -> None:
        times = {} if fps is None else {"fps": fps}
        for number in range(count):
            self._append(frames, size, scene + 6 * number, kind, probe, **times)

    @rule(
        count=st.sampled_from([1, 2, 4]),
        frames=st.sampled_from([2, 4, 3]),
        size=st.integers(0, 4),
        scene=SCENES,
        pause=st.sampled_from([0.0, 0.5, 0.5, 1.0, 3.7, 100.0]),
        step=st.sampled_from([0.0, 0.1, 0.5, 2.0]),
        probe=st.booleans(),
    )
    def append_with_stamps(
        self,
        count: int,
        frames: int,
        size: int,
        scene: int,
        pause: float,
        step: float,
        probe: bool,
    ) -> None:
        for number in range(count):
            first = self.start if self.times is None else self.times[1] + pause
            stamps = [first + step * index for index in range(frames)]
            self._append(frames, size, scene + 6 * number, "numpy", probe, timestamps=stamps)

    @rule(size=st.integers(0, 4), scene=SCENES, pause=st.sampled_from([None, 0.0, 1.0, 20.0]))
    def append_a_still(self, size: int, scene: int, pause: float | None) -> None:
        if self.over:
            return
        newest = self.start if self.times is None else self.times[1]
        (frame,) = self._pictures(1, size, scene)
        stamp = None if pause is None else newest + pause
        self.both("append_frame", True, frame=frame, kind="numpy", timestamp=stamp)

    def _about(self, share: tuple[float, float] | None) -> dict[str, Any]:
        """A time asked about, as shares of what is in memory."""
        if share is None or self.times is None:
            return {}
        oldest, newest = self.times
        return {"about": tuple(oldest + (newest - oldest) * one for one in share)}

    @rule(
        question=st.integers(0, 3),
        tokens=st.integers(1, 8),
        decoding=DECODINGS,
        about=ABOUT,
        keep=st.booleans(),
    )
    def ask(
        self,
        question: int,
        tokens: int,
        decoding: dict[str, Any],
        about: tuple[float, float] | None,
        keep: bool,
    ) -> None:
        if self.over:
            return
        asked = {**decoding, **self._about(about), "update_state": keep, "max_new_tokens": tokens}
        self.both("ask", keep, question=QUESTIONS[self.model][question], **asked)
        if keep:
            self.probe()

    @rule(
        question=st.integers(0, 3),
        at=st.integers(0, 5),
        length=st.integers(1, 2),
        keep=st.booleans(),
    )
    def ask_with_a_stop(self, question: int, at: int, length: int, keep: bool) -> None:
        """It stops where the same answer has just had that text."""
        if self.over:
            return
        asked = {"question": QUESTIONS[self.model][question], "max_new_tokens": 7}
        found = self.both("ask", **asked)
        text = found["result"]["answer"] if found["result"] else ""
        if stop := text[at : at + length]:
            keep = keep and "kept stop" not in self.leave_out
            self.both("ask", keep, **asked, stop=[stop, "never said"], update_state=keep)

    @rule(question=st.integers(0, 3), after=st.integers(0, 3), fails=st.booleans())
    def ask_and_hang_up(self, question: int, after: int, fails: bool) -> None:
        if not self.over:
            how = {"fail_after": after + 1} if fails else {"cancel_after": after}
            asked = QUESTIONS[self.model][question]
            self.both("ask", question=asked, max_new_tokens=5, update_state=True, **how)

    @rule(question=st.integers(0, 3), choices=st.integers(0, 3), about=ABOUT)
    def choose(self, question: int, choices: int, about: tuple[float, float] | None) -> None:
        if not self.over:
            asked, given = QUESTIONS[self.model][question], CHOICES[self.model][choices]
            self.both("choose", question=asked, choices=given, **self._about(about))

    @rule(
        what=st.sampled_from(
            [("chunk", kind) for kind in BAD_CHUNKS]
            + [("question", kind) for kind in BAD_QUESTIONS]
            + [("choices", kind) for kind in BAD_CHOICES]
        )
    )
    def do_what_is_refused(self, what: tuple[str, str]) -> None:
        if self.over:
            return
        kind, how = what
        if kind == "chunk":
            frames, times = BAD_CHUNKS[how]
            self.both("append_bad", True, frames=frames, **times)
        elif kind == "question":
            question, options = BAD_QUESTIONS[how]
            self.both("ask", True, question=question, **{"max_new_tokens": 2, **options})
        else:
            self.both("choose", question="So?", choices=BAD_CHOICES[how])

    @rule(
        target=answers,
        question=st.integers(0, 3),
        tokens=st.sampled_from([3, 8, 20]),
        decoding=DECODINGS,
        keep=st.booleans(),
        pieces=st.integers(0, 2),
    )
    def open_an_answer(
        self, question: int, tokens: int, decoding: dict[str, Any], keep: bool, pieces: int
    ) -> int:
        self.count += 1
        if self.over:
            return self.count
        asked = {**decoding, "max_new_tokens": tokens, "update_state": keep}
        text = QUESTIONS[self.model][question]
        found = self.both("open", number=self.count, question=text, **asked)
        if not found["error"]:
            self.open[self.count] = {"do_sample": decoding.get("do_sample", False)}
            self._write(self.count, pieces)
        return self.count

    def _write(self, number: int, pieces: int) -> None:
        if self.over or number not in self.open:
            return
        found = self.both("write", number=number, pieces=pieces)
        if found["error"] or "metrics" in (found["result"] or ()):
            del self.open[number]

    @rule(number=answers, pieces=st.integers(1, 4))
    def write(self, number: int, pieces: int) -> None:
        self._write(number, pieces)

    @rule(number=consumes(answers), how=st.sampled_from(["write", "write", "close", "drop"]))
    def end_an_answer(self, number: int, how: str) -> None:
        if self.over or number not in self.open:
            return
        if how == "write":
            self._write(number, 1000)
        else:
            del self.open[number]
            self.both(how, True, number=number)
        self.probe()

    @rule(
        question=st.integers(0, 3),
        turns=st.lists(st.sampled_from(["append", "write", "ask", "choose"]), max_size=6),
        size=st.integers(0, 4),
        keep=st.booleans(),
        how=st.sampled_from(["write", "close", "drop"]),
    )
    def append_while_it_answers(
        self, question: int, turns: list[str], size: int, keep: bool, how: str
    ) -> None:
        number = self.open_an_answer(question, 20, GREEDY, keep, 1)
        for scene, turn in enumerate(turns):
            if turn == "append":
                self._append(4, size, scene, "numpy", False, fps=2)
            elif turn == "write":
                self._write(number, 2)
            elif turn == "ask":
                self.ask(question, 3, GREEDY, None, False)
            else:
                self.choose(question, 0, None)
        self.end_an_answer(number, how)

    @rule(target=saved, how=st.sampled_from(["snapshot", "snapshot", "clone"]))
    def save(self, how: str) -> int:
        self.count += 1
        if not self.over:
            self.both(how, number=self.count)
        return self.count

    @rule(number=saved, how=st.sampled_from(["restore", "restore", "restore", "discard"]))
    def come_back(self, number: int, how: str) -> None:
        if self.over or number in self.discarded:
            return
        self.both(how, True, number=number)
        if how == "discard":
            self.discarded.add(number)
        self.probe()

    @rule(
        how=st.sampled_from(["snapshot", "clone"]),
        chunks=st.integers(1, 4),
        size=st.integers(0, 4),
        ask=st.booleans(),
    )
    def go_and_come_back(self, how: str, chunks: int, size: int, ask: bool) -> None:
        number = self.save(how)
        for scene in range(chunks):
            self._append(4, size, scene, "numpy", False, fps=2)
        if ask and not self.over:
            self.both("ask", question="So?", max_new_tokens=3, update_state=True)
        self.come_back(number, "restore")

    @rule(
        what=st.sampled_from(["pixels"] * 5 + ["mask"] * 2 + ["reset"]),
        pixels=st.sampled_from([None, 28 * 28, 60 * 60, 112 * 112, 1]),
    )
    def change(self, what: str, pixels: int | None) -> None:
        if self.over:
            return
        if what == "pixels":
            self.both("limit_pixels", most=pixels)
        elif what == "mask":
            self.both("mask", tokens=3)
        else:
            self.both("reset", True)

    def teardown(self) -> None:
        if not self.over and hasattr(self, "start"):
            for number in sorted(self.open):
                self._write(number, 1000)
            self.probe()


def _error(answer: dict[str, Any]) -> str:
    return f"{answer['error']}: {answer['message']}" if answer["error"] else ""

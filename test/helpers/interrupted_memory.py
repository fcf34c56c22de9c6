# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""A memory that is interrupted, and how it is told that it is as before or as after."""

from __future__ import annotations

import gc
import itertools
from typing import Any

import torch
from interrupts import Places
from toy_qwen import question_logits

from stream_vlm_ros.engine import EvictionConfig, VideoStreamingInference

LEVELS = {
    "sink and window": (0.0, 0.0),
    "sampled": (0.5, 0.0),
    "important": (0.0, 0.5),
    "all": (0.3, 0.3),
}
CHUNKS = 12  # until the memory is full, and grids were exchanged


class Case:
    """A memory, and something done to it."""

    def __init__(
        self,
        toys: Any,
        model: Any,
        processor: Any,
        level: str,
        layout: str,
        call: str,
        chunks: int = CHUNKS,
        path: str = "eager",
        device: str = "cpu",
    ):
        self.toys, self.model, self.processor = toys, model, processor
        self.options = dict(layout=layout, question_path=path, device=device)
        self.config = EvictionConfig(170, 0, 0, 1, *LEVELS[level])
        self.call, self.chunks = call, chunks
        before = self.filled()
        self.start = before.cache_manager.clone()
        self.before = self.looked_at(before)
        after = self.restored(before)
        self.do(after)
        self.after = self.looked_at(after)

    def filled(self):
        engine = VideoStreamingInference(
            self.model, self.processor, eviction_config=self.config, **self.options
        )
        for number in range(self.chunks):
            engine.append_video_chunk(self.toys.frames(4, seed=number), fps=2)
        return engine

    def restored(self, engine):
        engine.cache_manager.restore(self.start)
        return engine

    def do(self, engine):
        if self.call == "append":
            engine.append_video_chunk(self.toys.frames(4, seed=77), fps=2)
        elif self.call == "exchange":
            engine.ask("So?", 2, update_state=True)
        else:
            engine.ask_choice("So?", ["a", "bc"])

    def looked_at(self, engine):
        """All that a memory is, and what follows from it: tensors and plain values."""
        manager = engine.cache_manager
        found = [
            manager.get_seq_length(),
            manager.state,
            manager.evictor.mark(),
            manager.levels(),
            manager.ledger.positions(),
            manager.gather(),
        ]
        if manager.state.frames:
            found.append(question_logits(engine, "What is there?"))
        engine.append_video_chunk(self.toys.frames(2, 28, 56, seed=99), fps=2)
        return [*found, manager.gather(), question_logits(engine, "And now?")]

    def check(self, engine, ended, equal=torch.equal):
        """As before or as after; not neither. Which of them; ``equal`` compares tensors."""
        assert not engine.cache_manager.living_forks
        found = self.looked_at(engine)
        same = [alike(found, expected, equal) for expected in (self.before, self.after)]
        assert any(same)
        assert not ended or same[1]
        return "after" if same[1] else "before"


def alike(found, expected, equal=torch.equal):
    return len(found) == len(expected) and all(
        equal(one, other) if isinstance(one, torch.Tensor) else one == other
        for one, other in zip(found, expected, strict=True)
    )


def sweep(case, kinds, wanted, engine=None):
    """Raise at each of these places, by turns these kinds; how often it was as before, as after."""
    engine = engine or case.filled()
    tally = {"before": 0, "after": 0}
    for at, kind in zip(wanted, itertools.cycle(kinds), strict=False):
        case.restored(engine)
        injected = Places(at, kind)
        ended = injected.run(lambda: case.do(engine))
        gc.collect(0)
        try:
            tally[case.check(engine, ended)] += 1
        except Exception as fault:
            raise AssertionError(f"{kind.__name__} at place {at}, {injected.raised_in}") from fault
    return tally


def places(case):
    engine = case.restored(case.filled())
    counting = Places()
    assert counting.run(lambda: case.do(engine))
    return counting


def number_of_places(case):
    return places(case).count

# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Questions about a watched stretch of the drawn world, with their true answers.

`History` is what a camera has seen so far; `ask` makes one question of a given type about it, or
none where no unambiguous question of that type exists at that moment. A thing counts as seen when
it is on at least two frames.
"""

from __future__ import annotations

import bisect
import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from stream_vlm_ros.world.world import COLOURS, DIRECTIONS, KINDS, REGIONS, SHAPES, Sighting, Thing

NOTHING = "nothing"
NOT_SEEN = "not seen"
NOT_UNDERSTOOD = "I do not understand."
STILL_THERE = "it is still visible"
DID_NOT_MOVE = "it did not move"
NUMBERS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen twenty"
).split()

CORE = (
    "now", "ago", "at", "first", "last", "before", "after", "was_there", "where", "how_many",
    "choice",
)  # fmt: skip
FURTHER = ("direction", "sign", "left_ago", "together", "colour_of", "shape_of", "unknown")
TYPES = CORE + FURTHER

TEMPLATES: dict[str, tuple[str, ...]] = {
    "now": (
        "What is visible now?",
        "What do you see now?",
        "What can you see right now?",
        "What is there now?",
        "What do you see?",
    ),
    "ago": (
        "What was visible {time} ago?",
        "What did you see {time} ago?",
        "What was there {time} ago?",
        "What could you see {time} ago?",
    ),
    "at": (
        "What was visible {time} after the start?",
        "What did you see {time} after the start?",
        "What was there {time} after the beginning?",
        "What was visible at {time}?",
    ),
    "first": (
        "What appeared first?",
        "What came first?",
        "What was the first thing you saw?",
        "What did you see first?",
        "Which thing appeared first?",
    ),
    "last": (
        "What appeared last?",
        "What came last?",
        "What was the last thing that appeared?",
        "What is the latest thing that came?",
        "Which thing appeared last?",
    ),
    "before": (
        "What appeared before the {thing}?",
        "What came before the {thing}?",
        "What did you see before the {thing}?",
        "Which thing appeared before the {thing}?",
    ),
    "after": (
        "What appeared after the {thing}?",
        "What came after the {thing}?",
        "What did you see after the {thing}?",
        "Which thing appeared after the {thing}?",
    ),
    "was_there": (
        "Was there {a_thing}?",
        "Did you see {a_thing}?",
        "Have you seen {a_thing}?",
        "Has {a_thing} appeared?",
        "Was {a_thing} visible?",
    ),
    "where": (
        "Where was the {thing}?",
        "Where did you see the {thing}?",
        "Where in the picture was the {thing}?",
    ),
    "where_came": ("Where did the {thing} appear?", "Where did the {thing} come in?"),
    "where_left": ("Where was the {thing} last seen?", "Where did you last see the {thing}?"),
    "how_many": (
        "How many different shapes have you seen so far?",
        "How many different shapes did you see?",
        "How many different shapes have appeared?",
        "How many different shapes were there so far?",
    ),
    "one_of": (
        "Which of these did you see: {choices}?",
        "Which of these was there: {choices}?",
    ),
    "earlier": (
        "Which of these appeared first: {choices}?",
        "Which came first: {choices}?",
    ),
    "later": (
        "Which of these appeared last: {choices}?",
        "Which came last: {choices}?",
    ),
    "direction": (
        "Which way did the {thing} move?",
        "Where did the {thing} move to?",
        "In which direction did the {thing} move?",
        "How did the {thing} move?",
    ),
    "sign": (
        "What did the sign read?",
        "What did the sign say?",
        "What was written on the sign?",
        "What was on the sign?",
    ),
    "last_sign": ("What did the last sign read?", "What did the last sign say?"),
    "left_ago": (
        "How long ago did the {thing} leave?",
        "When did the {thing} leave?",
        "How long ago did the {thing} go away?",
    ),
    "together": (
        "What was visible together with the {thing}?",
        "What did you see together with the {thing}?",
        "What was there at the same time as the {thing}?",
    ),
    "colour_of": (
        "What colour was the {kind}?",
        "Which colour was the {kind}?",
        "What was the colour of the {kind}?",
    ),
    "shape_of": (
        "What shape was the {colour} thing?",
        "Which shape was the {colour} thing?",
        "What was the shape of the {colour} thing?",
    ),
}

FOREIGN = (
    "How are you?",
    "Who are you?",
    "What is your name?",
    "Tell me a joke.",
    "What is the weather like?",
    "What time is it?",
    "Is it raining?",
    "Was there a dog?",
    "Where was the cat?",
    "Did you see a person?",
    "What is the capital of France?",
    "How many people are in the room?",
    "Where is the door?",
    "Was there a blue car?",
    "What did the man say?",
    "Describe the video.",
    "Please help me.",
    "Why is the sky blue?",
    "Can you drive to the kitchen?",
    "What is two plus two?",
    "Hello!",
    "How old are you?",
    "Is the door open?",
    "Where are my keys?",
    "Turn left.",
    "What do you think?",
    "Write a poem about the sea.",
    "Who was there?",
    "Did anyone come in?",
    "What did the red car do?",
    "How heavy is the box?",
    "Was ist zu sehen?",
    "Qu'est-ce que c'est?",
    "Was there a pink elephant?",
    "Read the text on the screen.",
    "Where was the small table?",
    "How far away is the wall?",
)
_WORDS = (
    "apple house river stone walk quickly under between music paper window garden yesterday "
    "robot camera battery wheel charge move forward stop bottle chair table person face hand "
    "open close big small the a of and to in is it you that was for on are with his they be "
    "at one have this"
).split()


@dataclass(frozen=True)
class Question:
    """A question and its true answer.

    `choices` holds the true answer and wrong ones of the same kind, for multiple choice; `accepted`
    the other wordings or figures that count as right.
    """

    text: str
    answer: str
    type: str
    choices: tuple[str, ...] = ()
    accepted: tuple[str, ...] = ()

    def is_right(self, answer: str) -> bool:
        """Whether an answer counts as right: the words, whatever their case and closing stop."""
        plain = answer.strip().rstrip(".").lower()
        return plain in {text.rstrip(".").lower() for text in (self.answer, *self.accepted)}


def join(things: Sequence) -> str:
    """Things in words: "nothing", "a red star", "a red star and a sign"."""
    return " and ".join(thing.phrase for thing in things) or NOTHING


def duration_phrase(seconds: float) -> str:
    """A duration in words, to a second below 100 seconds and to a minute from there."""
    if seconds < 99.5:
        count, unit = round(seconds), "second"
    else:
        count, unit = round(seconds / 60), "minute"
    return f"{count} {unit}{'' if count == 1 else 's'}"


class History:
    """What a camera has seen from its first frame to its newest.

    Args:
        sightings: what happened, in order of appearance, from the world.
        stamps: times of the frames seen so far, rising, in the world's seconds.
        margin: seconds around a boundary within which a question naming a time would be
            ambiguous; by default what two frames span.
    """

    def __init__(
        self, sightings: Sequence[Sighting], stamps: Sequence[float], margin: float | None = None
    ) -> None:
        self.stamps = stamps
        self.start, self.now = stamps[0], stamps[-1]
        steps = [b - a for a, b in pairwise(stamps)]
        self.step = max(steps, default=0.5)
        self.margin = 2 * self.step if margin is None else margin
        self.seen: list[Sighting] = []
        self.settled = len(stamps) > 1
        for sighting in sightings:
            if sighting.start > self.now:
                break
            frames = bisect.bisect_left(stamps, sighting.end) - bisect.bisect_left(
                stamps, sighting.start
            )
            if frames >= 2:
                self.seen.append(sighting)
            elif frames:
                self.settled = False
        starts = [max(s.start, self.start) for s in self.seen]
        self.settled = self.settled and len(set(starts)) == len(starts)
        if self.settled:
            self.settled = self.visible(self.now) == self.visible(stamps[-2])
        self.names = [s.thing.name for s in self.seen]

    def visible(self, t: float) -> list[Sighting]:
        """The seen sightings under way at time t."""
        return [s for s in self.seen if s.start <= t < s.end]

    def steady(self, t: float) -> bool:
        """Whether time t is within the history and nothing comes or goes near it."""
        low, high = t - self.margin, t + self.margin
        if not (self.start <= t <= self.now):
            return False
        return not any(low < edge < high for s in self.seen for edge in (s.start, s.end))

    def once(self) -> list[Sighting]:
        """The sightings of things that were seen exactly once."""
        return [s for s in self.seen if self.names.count(s.thing.name) == 1]

    def last_frame_of(self, sighting: Sighting) -> float:
        """When the last frame was taken that shows the sighting."""
        return self.stamps[bisect.bisect_left(self.stamps, sighting.end) - 1]


class _AllSeen(Exception):
    """There is no shape left that was not seen."""


def _unseen(rng: random.Random, history: History) -> Thing:
    """A shape that was not seen, three times out of four one that resembles something seen."""
    seen = set(history.names)
    if all(shape.name in seen for shape in SHAPES):
        raise _AllSeen
    while True:
        shape = rng.choice(SHAPES)
        likeness = [s.thing for s in history.seen if not s.thing.is_sign]
        if likeness and rng.random() < 0.75:
            model = rng.choice(likeness)
            pool = [s for s in SHAPES if (s.colour == model.colour) != (s.kind == model.kind)]
            shape = rng.choice(pool)
        if shape.name not in seen:
            return shape


def fill(rng: random.Random, template: str, **words: str) -> str:
    """A question in one of the wordings of `TEMPLATES`, now and then without its question mark."""
    text = rng.choice(TEMPLATES[template]).format(**words)
    if rng.random() < 0.1:
        text = text.rstrip("?")
    if rng.random() < 0.1:
        text = text[0].lower() + text[1:]
    return text


def _others(rng: random.Random, history: History, right: str, count: int = 3) -> list[str]:
    """Wrong things to choose from: seen ones first."""
    seen = [s.thing.phrase for s in history.seen]
    rng.shuffle(seen)
    pool = seen[:2] + [rng.choice(SHAPES).phrase for _ in range(8)]
    pool += [NOTHING] if right != NOTHING else []
    return [p for p in dict.fromkeys(pool) if p != right][:count]


def _mixed(rng: random.Random, right: str, wrong: Sequence[str]) -> tuple[str, ...]:
    choices = [right, *wrong]
    rng.shuffle(choices)
    return tuple(choices)


def _things(
    rng: random.Random, history: History, text: str, type_: str, things: Sequence[Sighting]
) -> Question:
    """A question whose answer is what is in view: its wrong choices have as many things."""
    ordered = sorted((s.thing for s in things), key=lambda thing: thing.name)
    answer = join(ordered)
    wrong = _others(rng, history, answer)
    if len(ordered) == 2:

        def stranger() -> Thing:
            try:
                return _unseen(rng, history)
            except _AllSeen:
                return rng.choice([shape for shape in SHAPES if shape not in ordered])

        wrong = [
            join(sorted((ordered[rng.randrange(2)], stranger()), key=lambda x: x.name))
            for _ in range(3)
        ]
        wrong = [w for w in dict.fromkeys(wrong) if w != answer]
    turned = (join(ordered[::-1]),) if len(ordered) == 2 else ()
    return Question(text, answer, type_, _mixed(rng, answer, wrong), turned)


def _now(rng: random.Random, history: History) -> Question:
    return _things(rng, history, fill(rng, "now"), "now", history.visible(history.now))


def _draw_time(
    rng: random.Random, history: History, origin: float, sign: int
) -> tuple[str, float] | None:
    """A span in words that lands at a steady moment, and that moment."""
    span = history.now - history.start
    for _ in range(8):
        if span < 99 or (rng.random() < 0.3 and history.step < 20):
            if span < 1:
                return None
            seconds = float(rng.randint(1, max(1, min(98, int(span)))))
        else:
            if span < 120:
                return None
            seconds = 60.0 * rng.randint(2, int(span / 60))
        if history.steady(origin + sign * seconds):
            return duration_phrase(seconds), origin + sign * seconds
    return None


def _ago(rng: random.Random, history: History) -> Question | None:
    drawn = _draw_time(rng, history, history.now, -1)
    if drawn is None:
        return None
    text = fill(rng, "ago", time=drawn[0])
    return _things(rng, history, text, "ago", history.visible(drawn[1]))


def _at(rng: random.Random, history: History) -> Question | None:
    drawn = _draw_time(rng, history, history.start, 1)
    if drawn is None:
        return None
    text = fill(rng, "at", time=drawn[0])
    return _things(rng, history, text, "at", history.visible(drawn[1]))


def _one(
    rng: random.Random, history: History, text: str, type_: str, sighting: Sighting | None
) -> Question:
    answer = sighting.thing.phrase if sighting else NOTHING
    return Question(text, answer, type_, _mixed(rng, answer, _others(rng, history, answer)))


def _first(rng: random.Random, history: History) -> Question:
    return _one(rng, history, fill(rng, "first"), "first", next(iter(history.seen), None))


def _last(rng: random.Random, history: History) -> Question:
    return _one(rng, history, fill(rng, "last"), "last", next(reversed(history.seen), None))


def _without(question: Question, choice: str) -> Question:
    choices = tuple(c for c in question.choices if c != choice)
    return Question(question.text, question.answer, question.type, choices)


def _unseen_question(
    rng: random.Random, history: History, template: str, type_: str, wrong: Sequence[str]
) -> Question:
    text = fill(rng, template, thing=_unseen(rng, history).name)
    return Question(text, NOT_SEEN, type_, _mixed(rng, NOT_SEEN, wrong))


def _neighbour(rng: random.Random, history: History, type_: str, step: int) -> Question | None:
    once = history.once()
    if not once or rng.random() < 0.12:
        wrong = _others(rng, history, NOT_SEEN, 2)
        return _unseen_question(rng, history, type_, type_, wrong)
    sighting = rng.choice(once)
    index = history.seen.index(sighting) + step
    other = history.seen[index] if 0 <= index < len(history.seen) else None
    text = fill(rng, type_, thing=sighting.thing.name)
    return _without(_one(rng, history, text, type_, other), sighting.thing.phrase)


def _before(rng: random.Random, history: History) -> Question | None:
    return _neighbour(rng, history, "before", -1)


def _after(rng: random.Random, history: History) -> Question | None:
    return _neighbour(rng, history, "after", 1)


def _was_there(rng: random.Random, history: History) -> Question:
    answer = rng.random() < 0.5 and bool(history.seen)
    thing = rng.choice(history.seen).thing if answer else _unseen(rng, history)
    words = thing.phrase
    if rng.random() < 0.2 and not thing.is_sign:
        colours = {s.thing.colour for s in history.seen}
        kinds = {s.thing.kind for s in history.seen}
        if rng.random() < 0.5:
            words, found = f"a {thing.kind}", thing.kind in kinds
        else:
            article = "an" if thing.colour == "orange" else "a"
            words, found = f"{article} {thing.colour} thing", thing.colour in colours
        answer = found
    text = fill(rng, "was_there", a_thing=words)
    return Question(text, "yes" if answer else "no", "was_there", ("yes", "no"))


def _where(rng: random.Random, history: History) -> Question | None:
    once = history.once()
    wrong = rng.sample(REGIONS, 3)
    if not once or rng.random() < 0.1:
        return _unseen_question(rng, history, "where", "where", wrong)
    sighting = rng.choice(once)
    template, region = rng.choice(("where", "where_came", "where_left")), sighting.region
    if sighting.moves and template != "where_came":
        if sighting.end > history.now or rng.random() < 0.5:
            template = "where_came"
        else:
            template, region = "where_left", sighting.last_region
    text = fill(rng, template, thing=sighting.thing.name)
    wrong = [w for w in wrong if w != region]
    return Question(text, region, "where", _mixed(rng, region, wrong))


def _how_many(rng: random.Random, history: History) -> Question | None:
    count = len({s.thing.name for s in history.seen if not s.thing.is_sign})
    if count > 20:
        return None
    wrong = [NUMBERS[n] for n in (count - 1, count + 1, count + 2) if 0 <= n <= 20]
    answer = NUMBERS[count]
    text = fill(rng, "how_many")
    return Question(text, answer, "how_many", _mixed(rng, answer, wrong), (str(count),))


def _choice(rng: random.Random, history: History) -> Question | None:
    form = rng.choice(
        ("one_of", "earlier", "later", "first", "last", "now", "before", "after", "ago")
    )
    if form in ("one_of", "earlier", "later"):
        once = history.once()
        if form == "one_of":
            if not history.seen:
                return None
            answer = rng.choice(history.seen).thing.phrase
            unseen = (_unseen(rng, history).phrase for _ in range(rng.randint(1, 2)))
            wrong = list(dict.fromkeys(unseen))
        else:
            if len(once) < 2:
                return None
            picked = rng.sample(once, min(len(once), rng.randint(2, 3)))
            picked.sort(key=lambda s: s.start, reverse=form == "later")
            answer, *wrong = [s.thing.phrase for s in picked]
        choices = _mixed(rng, answer, wrong)
        text = fill(rng, form, choices=_listed(choices))
        return Question(text, answer, "choice", choices)
    plain = _MAKERS[form](rng, history)
    if plain is None or " and " in plain.answer or plain.answer == NOT_SEEN:
        return None
    wrong = [c for c in plain.choices if c != plain.answer][: rng.randint(1, 2)]
    if not wrong:
        return None
    choices = _mixed(rng, plain.answer, wrong)
    text = f"{plain.text.rstrip('?')}: {_listed(choices)}?"
    return Question(text, plain.answer, "choice", choices)


def _listed(choices: Sequence[str]) -> str:
    return f"{', '.join(choices[:-1])} or {choices[-1]}"


def _direction(rng: random.Random, history: History) -> Question | None:
    once = [s for s in history.once() if not s.moves or s.end <= history.now]
    choices = (*DIRECTIONS, DID_NOT_MOVE)
    if not once or rng.random() < 0.08:
        return _unseen_question(rng, history, "direction", "direction", choices[:3])
    moving = [s for s in once if s.moves]
    sighting = rng.choice(moving if moving and rng.random() < 0.6 else once)
    answer = sighting.direction or DID_NOT_MOVE
    wrong = rng.sample([c for c in choices if c != answer], 3)
    text = fill(rng, "direction", thing=sighting.thing.name)
    return Question(text, answer, "direction", _mixed(rng, answer, wrong))


def _sign(rng: random.Random, history: History) -> Question | None:
    signs = [s.thing.text for s in history.seen if s.thing.is_sign]
    if not signs and rng.random() < 0.8:
        return None
    answer = signs[-1] if signs else NOT_SEEN
    template = "last_sign" if len(set(signs)) > 1 or rng.random() < 0.2 else "sign"
    wrong = ["A7", "K2", "X5", "T0"]
    wrong = [w for w in wrong if w != answer][:3]
    return Question(fill(rng, template), answer, "sign", _mixed(rng, answer, wrong))


def _left_ago(rng: random.Random, history: History) -> Question:
    once = history.once()
    if not once or rng.random() < 0.08:
        others = ("2 seconds ago", STILL_THERE)
        return _unseen_question(rng, history, "left_ago", "left_ago", others)
    sighting = rng.choice(once)
    text = fill(rng, "left_ago", thing=sighting.thing.name)
    if sighting.end > history.now:
        others = ("2 seconds ago", NOT_SEEN)
        return Question(text, STILL_THERE, "left_ago", _mixed(rng, STILL_THERE, others))
    gone = history.now - history.last_frame_of(sighting)
    answer, near, slack = ago_phrases(gone, history.step)
    wrong = {duration_phrase(f * gone + 4 * slack) + " ago" for f in (1.0, 1.6)} - {answer} - near
    choices = _mixed(rng, answer, (*sorted(wrong), STILL_THERE))
    return Question(text, answer, "left_ago", choices, tuple(sorted(near)))


def ago_phrases(gone: float, step: float) -> tuple[str, set[str], float]:
    """How long ago something was, in words: the true ones, all that count as right, the slack.

    Within a tenth, two frames (``step`` seconds apart) or a second it is right.
    """
    slack = max(1.0, 2 * step, 0.1 * gone)
    near = {duration_phrase(max(0.0, gone + slack * share / 8)) + " ago" for share in range(-8, 9)}
    return duration_phrase(gone) + " ago", near, slack


def _together(rng: random.Random, history: History) -> Question | None:
    once = history.once()
    if not once or rng.random() < 0.08:
        wrong = _others(rng, history, NOT_SEEN, 2)
        return _unseen_question(rng, history, "together", "together", wrong)
    paired = [s for s in once if any(overlap(s, o) > 0 for o in history.seen if o is not s)]
    sighting = rng.choice(paired if paired and rng.random() < 0.6 else once)
    shared = [(o, overlap(sighting, o, history.now)) for o in history.seen if o is not sighting]
    if any(0 < length < history.margin for _, length in shared):
        return None
    company = [other for other, length in shared if length > 0]
    if len(company) > 1:
        return None
    text = fill(rng, "together", thing=sighting.thing.name)
    question = _one(rng, history, text, "together", company[0] if company else None)
    return _without(question, sighting.thing.phrase)


def overlap(one: Sighting, other: Sighting, now: float = float("inf")) -> float:
    """Seconds up to ``now`` in which both are there; below 0 it is how far they are apart."""
    return min(one.end, other.end, now) - max(one.start, other.start)


def _attribute(
    rng: random.Random, history: History, given: str, wanted: str, values: Sequence[str], type_: str
) -> Question | None:
    shapes = {s.thing for s in history.seen if not s.thing.is_sign}
    groups: dict[str, list] = {}
    for shape in sorted(shapes, key=lambda thing: thing.name):
        groups.setdefault(getattr(shape, given), []).append(getattr(shape, wanted))
    single = [value for value, found in groups.items() if len(found) == 1]
    pool = COLOURS if given == "colour" else KINDS
    absent = [value for value in pool if value not in groups]
    if absent and (not single or rng.random() < 0.12):
        value, answer = rng.choice(absent), NOT_SEEN
    elif single:
        value = rng.choice(single)
        answer = groups[value][0]
    else:
        return None
    wrong = rng.sample([v for v in values if v != answer], 3)
    text = fill(rng, type_, **{given: value})
    return Question(text, answer, type_, _mixed(rng, answer, wrong))


def _colour_of(rng: random.Random, history: History) -> Question | None:
    return _attribute(rng, history, "kind", "colour", tuple(COLOURS), "colour_of")


def _shape_of(rng: random.Random, history: History) -> Question | None:
    return _attribute(rng, history, "colour", "kind", KINDS, "shape_of")


def _unknown(rng: random.Random, history: History) -> Question | None:
    draw = rng.random()
    if draw < 0.4:
        text = rng.choice(FOREIGN)
    elif draw < 0.7:
        words = [rng.choice(_WORDS) for _ in range(rng.randint(1, 6))]
        text = " ".join(words) + rng.choice(("", "?", "."))
        text = text[0].upper() + text[1:] if rng.random() < 0.5 else text
    elif draw < 0.85:
        stem = rng.choice(
            ("Was there a {}?", "Where was the {}?", "Did you see the {}?", "What is a {}?")
        )
        text = stem.format(rng.choice(_WORDS[:28]))
    else:
        alphabet = "abcdefghijklmnopqrstuvwxyzäöüéßABCDEFGH 0123456789.,!?日本語"
        text = "".join(rng.choice(alphabet) for _ in range(rng.randint(3, 12))).strip() or "?"
    wrong = ("yes", NOTHING)
    return Question(text, NOT_UNDERSTOOD, "unknown", _mixed(rng, NOT_UNDERSTOOD, wrong))


_MAKERS = {
    "now": _now,
    "ago": _ago,
    "at": _at,
    "first": _first,
    "last": _last,
    "before": _before,
    "after": _after,
    "was_there": _was_there,
    "where": _where,
    "how_many": _how_many,
    "choice": _choice,
    "direction": _direction,
    "sign": _sign,
    "left_ago": _left_ago,
    "together": _together,
    "colour_of": _colour_of,
    "shape_of": _shape_of,
    "unknown": _unknown,
}


def ask(rng: random.Random, history: History, type_: str) -> Question | None:
    """One question of a type of `TYPES` about the history, or None where there is none now.

    A history that is not settled (something has just come or gone) has only unknown questions.
    """
    if not history.settled and type_ != "unknown":
        return None
    try:
        return _MAKERS[type_](rng, history)
    except _AllSeen:  # nothing could be named that was not there
        return None


def vocabulary() -> list[str]:
    """Every word of questions and answers, to build the tokenizer from."""
    texts = [text for group in TEMPLATES.values() for text in group]
    texts += [text[0].lower() + text[1:] for text in texts]
    texts += [
        NOTHING,
        NOT_SEEN,
        NOT_UNDERSTOOD,
        STILL_THERE,
        DID_NOT_MOVE,
        "yes",
        "no",
        "a sign",
        "an",
    ]
    texts += [*NUMBERS, *REGIONS, *DIRECTIONS, *COLOURS, *KINDS]
    texts += [" " + word for word in (*NUMBERS, *COLOURS, *KINDS, NOTHING, NOT_SEEN, "yes no")]
    texts += [
        " a red thing or an orange ring, and",
        "1 second ago 2 seconds ago 3 minutes ago",
        ":",
    ]
    return texts

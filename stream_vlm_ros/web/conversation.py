# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Questions and answers on the page."""

from __future__ import annotations

import base64
import time
from collections.abc import Callable
from dataclasses import dataclass

from nicegui import events, ui

from stream_vlm_ros.errors import StreamVlmError
from stream_vlm_ros.session.question import CancelledError, Outcome, Question

from .clock import clock_text, span_text
from .figures import choice_shares, outcome_text, unnamed_text
from .live_memory import LiveAnswer, LiveMemory
from .tags import put, tag, tool, words_button
from .time_line import KINDS
from .time_line_view import Span
from .titles import titled

# The box is emptied in the browser: what is typed on meanwhile stays.
SUBMIT = """(event) => {
    event.preventDefault();
    const [choices, question] = ["choices", "question"].map((name) => event.target.elements[name]);
    if (!question.value.trim()) return question.focus();
    if ([choices, question].some((box) => box.value.length > box.maxLength)) return emit(null);
    emit([question.value, choices.value]);
    question.value = "";
}"""
LONGEST = 20_000  # characters; a message of more than 1 MB would end the connection
TOO_LONG = f"A question, or its choices, are longer than {LONGEST:,} characters."
THUMBNAILS = 4  # pictures with an episode
AS_SET = ("max_new_tokens", "temperature", "refuse_forgotten")  # for questions, where offered


@dataclass(frozen=True)
class Exchange:
    """A question of this page's with what came of it. ``asked`` is the time of day, in seconds."""

    camera: str
    asked: float
    outcome: Outcome


class Conversation:
    """Where questions are asked and their answers grow.

    Args:
        memory: is asked now.
        about: the time that is picked for the next question.
        forget_about: to be called once it was asked.
        answered: is called with each outcome.
        look: shows a time on the time line.
        several: whether there are several cameras, so that it is said which was asked.
    """

    def __init__(
        self,
        memory: Callable[[], LiveMemory],
        about: Callable[[], Span | None],
        forget_about: Callable[[], None],
        answered: Callable[[LiveMemory, Outcome], None],
        look: Callable[[Span], None],
        several: bool,
    ) -> None:
        self._memory, self._about, self._forget_about = memory, about, forget_about
        self._answered, self._look, self._several = answered, look, several
        self.exchanges: list[Exchange] = []
        self._shown_examples: tuple[str, ...] = ()
        self._writing: set[LiveAnswer] = set()

    def build(self) -> None:
        """Lay it out; called once, in the page's context."""
        with tag("section", "sv-card sv-talk", aria_label="Conversation"):
            with tag("div", "sv-log-scroll", tabindex=0, aria_label="Conversation", role="region"):
                self._log = tag("div", "sv-log", role="log", aria_label="Questions and answers")
            with self._log:
                self._hello = tag("div", "sv-hello")
            with self._hello:
                ui.label("Ask about what the camera sees, or saw").classes("sv-hello-title")
                ui.label("A time picked on the time line is what you ask about.").classes("sv-soft")
                self._examples = tag("div", "sv-examples")
            with tag("form", "sv-ask").on("submit", self._submit, js_handler=SUBMIT):
                self._form()
        self.show_about()

    def _form(self) -> None:
        with tag("div", "sv-about") as self._chip:
            ui.icon("schedule").props("aria-hidden=true")
            self._chip_text = ui.label()
            tool("close", "Ask about any time", self._forget_about).props("dense size=sm")
        with tag("label", "sv-choices") as self._choices:
            ui.label("Choices, separated by commas")
            tag("input", "sv-box", name="choices", autocomplete="off", maxlength=LONGEST)
        self._choices.visible = False
        with tag("div", "sv-ask-row"):
            box = tag("input", "sv-box", name="question", placeholder="Ask a question")
            box.props(f"maxlength={LONGEST} autocomplete=off enterkeyhint=send aria-label=Question")
            self._toggle = tool("checklist", "Give choices to pick from", self._show_choices)
            put(self._toggle, "aria-pressed", "false")
            # Not Quasar's, which takes the focus from the box when Enter sends the question.
            with tag("button", "sv-send", type="submit", aria_label="Ask"):
                ui.icon("arrow_upward").props("aria-hidden=true")

    def show_examples(self) -> None:
        """Those of the memory that is asked now, as far as it knows them yet."""
        if (texts := tuple(self._memory().examples[:4])) == self._shown_examples:
            return
        self._shown_examples = texts
        self._examples.clear()
        with self._examples:
            for text in texts:
                words_button(text, lambda text=text: self._ask(text)).classes("sv-example")

    def show_about(self) -> None:
        """What time the next question is about."""
        span = self._about()
        self._chip.visible = span is not None
        if span is not None:
            self._chip_text.set_text(f"About {span_text(*span)}")

    def cancel_all(self) -> None:
        """Nobody waits for the answers any more."""
        for answer in list(self._writing):
            answer.cancel()

    def _show_choices(self) -> None:
        shown = not self._choices.visible
        self._choices.visible = shown
        put(self._toggle, "aria-pressed", str(shown).lower())

    async def _submit(self, event: events.GenericEventArguments) -> None:
        if event.args is None:  # what stands in the box stays
            with self._log:
                ui.label(TOO_LONG).classes("sv-error").props("role=alert")
            return
        text, choices = event.args
        given = choices.split(",") if self._choices.visible else []
        await self._ask(text.strip(), tuple(filter(None, (choice.strip() for choice in given))))

    async def _ask(self, text: str, choices: tuple[str, ...] = ()) -> None:
        memory, about = self._memory(), self._about()
        settings = {k: v for k, v in memory.status.settings.items() if k in AS_SET}
        question = Question(text, choices, about_ns=about, thumbnails=THUMBNAILS, **settings)
        self._hello.visible = False
        self._forget_about()
        with self._log:
            shown = _Shown(question, memory.name if self._several else "", self._look)
        asked = time.time()
        try:
            answer = memory.ask(question)
        except StreamVlmError as refusal:
            outcome = Outcome(question, error=refusal)
        else:
            outcome = await self._follow(answer, shown)
        if self._log.is_deleted:  # the viewer has gone
            return
        shown.end(outcome)
        self.exchanges.append(Exchange(memory.name, asked, outcome))
        self._answered(memory, outcome)

    async def _follow(self, answer: LiveAnswer, shown: _Shown) -> Outcome:
        shown.on_stop = answer.cancel
        self._writing.add(answer)
        try:
            async for text in answer:
                shown.grow(text)
            return await answer.outcome()
        finally:
            self._writing.discard(answer)


class _Shown:
    """A question and its answer as they stand in the log."""

    def __init__(self, question: Question, camera: str, look: Callable[[Span], None]) -> None:
        self.on_stop: Callable[[], None] = lambda: None
        self._look = look
        with tag("article", "sv-exchange", aria_busy="true") as self._all:
            with tag("div", "sv-asked"):
                ui.label(question.text)
                about = f"about {span_text(*question.about_ns)}" if question.about_ns else ""
                if said := " · ".join(filter(None, [camera, about])):
                    ui.label(said).classes("sv-asked-more")
            with tag("div", "sv-answer"):
                self._text = ui.label("").classes("sv-answer-text")
                with tag("div", "sv-writing") as self._writing:
                    tag("span", "sv-dots", aria_hidden="true")
                    stop = words_button("Stop", lambda: self.on_stop())
                    put(stop.props("dense size=sm icon=stop"), "aria-label", "Stop this answer")
                self._below = tag("div")

    def grow(self, text: str) -> None:
        """The answer as far as it has come."""
        self._text.set_text(text)

    def end(self, outcome: Outcome) -> None:
        """What came of it."""
        self._writing.visible = False
        put(self._all, "aria-busy", "false")
        if outcome.answer or outcome.error is None:
            self._text.set_text(outcome.answer or "(no words)")
        with self._below:
            if isinstance(outcome.error, CancelledError):
                ui.label("Stopped").classes("sv-stopped")
            elif outcome.error is not None:
                ui.label(sentence(str(outcome.error))).classes("sv-error").props("role=alert")
            if shares := choice_shares(outcome):
                self._shares(outcome, shares)
            if outcome.evidence:
                self._evidence(outcome)
            for said in filter(None, (unnamed_text(outcome), outcome_text(outcome))):
                ui.label(said).classes("sv-meta")

    def _shares(self, outcome: Outcome, shares: list[float]) -> None:
        with tag("ul", "sv-scores", aria_label="How likely each choice is"):
            for index, choice in enumerate(outcome.question.choices):
                chosen = "sv-chosen" if index == outcome.choice_index else ""
                with tag("li", f"sv-score {chosen}"):
                    ui.label(choice)
                    tag("i", aria_hidden="true").style(f"--share: {shares[index]:.3f}")
                    ui.label(f"{100 * shares[index]:.0f} %").classes("sv-number")

    def _evidence(self, outcome: Outcome) -> None:
        with tag("div", "sv-evidence-list", role="group", aria_label="Evidence"):
            for episode in outcome.evidence:
                span = (episode.start_ns, episode.end_ns)
                when, where = span_text(*span), KINDS.get(episode.tier, episode.tier)
                button = tag("button", "sv-episode", type="button")
                put(button, "aria-label", f"Evidence of {when}, from {where}")
                with button.on("click", lambda span=span: self._look(span)):
                    with tag("span", "sv-stills"):
                        for stamp_ns, jpeg in episode.thumbnails:
                            said = f"Picture of {clock_text(stamp_ns)}"
                            tag("img", alt=said, src=data_url(jpeg))
                    with tag("span", "sv-episode-text"):
                        ui.label(when)
                        ui.label(f"{where} · score {episode.score:.2f}").classes("sv-soft")


def data_url(jpeg: bytes) -> str:
    """A picture as an address that holds it."""
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"


def sentence(words: str) -> str:
    """With a capital and a full stop, and settings by their titles."""
    words = titled(words.strip())
    return words[:1].upper() + words[1:] + ("" if words.endswith((".", "!", "?")) else ".")

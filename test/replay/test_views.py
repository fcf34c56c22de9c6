# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Nothing fails after the work: answers are safe first, and each view is written for itself."""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import re
import resource
import sys
import xml.etree.ElementTree as ElementTree
from contextlib import contextmanager
from html.parser import HTMLParser
from pathlib import Path

import pytest
from amounts import examples
from hypothesis import example, given, settings
from hypothesis import strategies as st
from junitparser import TestSuite
from markdown_it import MarkdownIt
from rich.console import Console
from rosbags.rosbag2 import Reader

from stream_vlm_ros.config import Settings
from stream_vlm_ros.console import markdown, visible
from stream_vlm_ros.replay import rendering
from stream_vlm_ros.replay.answer_table import render_csv
from stream_vlm_ros.replay.command import run_job, settings_of
from stream_vlm_ros.replay.journal import as_json
from stream_vlm_ros.replay.rendering import (
    render_html,
    render_junit,
    render_markdown,
    write_report,
)
from stream_vlm_ros.replay.report import read_report, without_times

from .conftest import BASE, real_engine

VIEWS = ("report.json", "junit.xml", "report.md", "report.csv", "report.html")
MATHS = "cost $\\frac{1$ or $x$"
HOSTILE = (
    MATHS,
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "[click](javascript:alert(1))",
    "![x](http://evil/x.png)",
    "http://evil/ <http://evil/> www.evil.com me@evil.com",
    "| a | b |",
    "`code` ``` **bold** __bold__ _it_ ~~gone~~ # no heading #",
    "# heading",
    "- item",
    "12. item",
    "> quoted &lt; &amp; ]]> \\ \\\\",
    "--- ",
    "]]><!-- -- -->",
    "\x1b[2J\x00\x07 \u202e \ufffe",
    "_hidden from legends",
    "emoji 🙂 👨‍👩‍👧",
    "two\nlines\r\nand\ttabs",
    os.fsdecode(b"no text \xff"),
)


def shown(text: str) -> str:
    """What a reader should see of a text in one line."""
    return " ".join(visible(text).split())


class Page(HTMLParser):
    """The elements, attributes and texts of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.texts: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.texts.append(data)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """A report whose every text is hostile, and the folder it was written to."""
    base = tmp_path_factory.mktemp("hostile")
    report = {
        **_report_of([{**_run(), "name": name} for name in HOSTILE]),
        "source": {"name": HOSTILE[1] + HOSTILE[-1], "duration": 2.0, "digest": None},
    }
    report["questions"]["title"] = HOSTILE[3]
    report["questions"]["file"] = HOSTILE[-1]
    report["times"] |= {"command": HOSTILE[2], "revision": HOSTILE[1]}
    assert write_report(report, base) == {}
    return report, base


def _run(texts=HOSTILE):
    share = {"judged": 2, "right": 1, "accuracy": 0.5, "low": 0.1, "high": 0.9}
    answers = [
        {
            "id": text, "question": text, "type": text, "tags": [text], "camera": text, "at": 1.0,
            "choices": [text], "expect": [text], "judge": "exact", "judge_options": {text: text},
            "evidence_age": None, "evidence": [[0.0, 0.5]],
            "status": ("answered", "error", "not_reached")[number % 3],
            "answer": text, "right": (True, False, None)[number % 3],
            "error": {"code": text, "message": text}, "judge_error": text,
            "metrics": {"cache_length": 1}, "times": {"ttft": 0.1, "latency": 0.2},
            "seen": [[0.0, 1.0]], "evidence_in_memory": False,
        }
        for number, text in enumerate(texts)
    ]  # fmt: skip
    distribution = {"count": 1, "mean": 0.1, "p50": 0.1, "p90": 0.1, "p99": 0.1, "max": 0.1}
    return {
        "settings": {"model": texts[1 % len(texts)], "name": "x"},
        "model": {
            "name": texts[0], "digest": texts[0], "dtype": texts[0], "device": texts[0],
            "parameters": 1,
        },
        "complete": True,
        "error": {"code": "X", "message": texts[2 % len(texts)]},
        "frames": {"decoded": 1, "ingested": 1, "drops": {"sampling": 1, texts[0 % len(texts)]: 2}},
        "source": {"damage": texts[3 % len(texts)], "notes": [texts[4 % len(texts)]]},
        "answers": answers,
        "merged": [
            {
                "question": texts[5 % len(texts)], "answers": 1, "question_id": "m",
                "lines": [{"first": 0.0, "last": 1.0, "times": 1, "text": t} for t in texts],
            }
        ],
        "series": [
            {"at": 0.0, "camera": texts[0 % len(texts)], "cache_length": 1, "memory_bytes": 1,
             "evicted_tokens": 0, "times": {"latency": 0.1}}
        ],
        "memory": {texts[0 % len(texts)]: {"max_cache_tokens": 10}},
        "times": {"wall": 1.0},
        "summary": {
            "questions": 1, "answered": 1, "errors": 0, "not_reached": 0, "accuracy": share,
            **{k: dict.fromkeys(texts, share) for k in ("by_type", "by_tag", "by_memory")},
            "by_age": {"0-5 s": share}, "frames": 1, "lost": 2, "evicted_tokens": 0,
            "longest_cache": 1, "largest_memory_bytes": 1,
            "times": {"ttft": distribution, "latency": distribution, "encode": distribution,
                      "realtime_factor": 1.5, "wall": 1.0},
        },
    }  # fmt: skip


def _report_of(runs):
    from stream_vlm_ros.replay.report import build_report

    questions = {"file": "q.yaml", "title": "t", "digest": "d", "count": 1, "extra": None}
    report = build_report(
        mode="closed_loop", source={"name": "s", "duration": None}, questions=questions,
        runs=runs, complete=False, wall=1.0,
    )  # fmt: skip
    report["runs"] = runs
    return report


def test_every_view_of_a_hostile_report_is_written(hostile):
    _, folder = hostile
    assert sorted(path.name for path in folder.iterdir()) == sorted(VIEWS)


def test_a_dollar_is_no_mathematics_and_every_run_has_its_place_in_the_legend(hostile):
    page = Page((hostile[1] / "report.html").read_text())
    assert any(text.strip() == f"{MATHS} (2)" for text in page.texts)  # the type, in a plot
    texts = [text.strip("\u200b ") for text in page.texts]
    assert texts.count("_hidden from legends") == texts.count("- item")


def test_nothing_in_the_page_is_the_users_markup(hostile):
    page = Page((hostile[1] / "report.html").read_text())
    assert sum(tag == "script" for tag, _ in page.tags) == 1  # the page's own
    for tag, attributes in page.tags:
        assert not any(name.startswith("on") for name in attributes), (tag, attributes)
        for name in ("href", "src", "xlink:href"):
            assert (attributes.get(name) or "#").startswith(("#", "data:")), (tag, attributes)
        assert tag != "iframe" and (tag != "img" or "src" in attributes)
    assert [a["download"] for tag, a in page.tags if tag == "a"] == ["report.csv"]
    text = "\n".join(page.texts)
    for one in HOSTILE:
        assert visible(one) in text.replace("\r", "\n") or "\r" in one or "\t" in one


def test_nothing_in_the_markdown_is_the_users_markup(hostile):
    report, _ = hostile
    tokens = (
        MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(render_markdown(report))
    )
    kinds = {child.type for token in tokens for child in token.children or []}
    assert kinds <= {"text", "softbreak", "strong_open", "strong_close", "text_special"}
    blocks = {token.type for token in tokens}
    assert not blocks & {"html_block", "fence", "code_block", "blockquote_open", "hr"}
    assert not blocks & {"ordered_list_open", "heading_setext"}
    told = "\n".join(
        "".join(child.content for child in token.children or [])
        for token in tokens
        if token.type == "inline"
    )
    for one in HOSTILE:
        assert shown(one) in told, one


TEXT = st.text(st.characters(codec=None), min_size=1, max_size=30) | st.sampled_from(HOSTILE)
MACHINE = {"platform": "p", "processor": "p", "cores": 1, "python": "3", "torch": "2"}


def rendered(text):
    report = _report_of([{**_run((text,)), "name": text}])
    report["source"]["name"] = report["source"]["digest"] = text
    report["questions"] |= {"title": text, "file": text, "digest": text}
    report["times"] |= {"command": text, "revision": text}
    return report, render_html(report, Path())


@settings(max_examples=examples(20))
@given(TEXT)
@example("a;=1+1")
@example("a\t +1")
@example("a\n\n@x;\u00a0-1")
def test_no_text_changes_the_pages_elements_or_breaks_json_or_csv(text):
    with pytest.MonkeyPatch.context() as patch:  # plots are for test_plots.py; the rest is slow
        patch.setattr("stream_vlm_ros.replay.rendering.plots_of", lambda runs, failed: [])
        patch.setattr("stream_vlm_ros.replay.report.machine", lambda: MACHINE)
        patch.setattr("stream_vlm_ros.replay.report.revision", lambda: None)
        (_, plain), (report, page) = rendered("x"), rendered(text)
    wanted, found = Page(plain).tags, Page(page).tags
    assert [(tag, [*a]) for tag, a in found] == [(tag, [*a]) for tag, a in wanted]
    assert json.loads(as_json(report))["runs"][0]["answers"][0]["answer"] == text
    keys, row = csv.reader(io.StringIO(render_csv(report), newline=""))
    cells = dict(zip(keys, row, strict=True))
    assert cells["answer"].replace("'", "") == visible(text).replace("'", "")
    for cell in row:
        for part in re.split("[;\t\n]", cell):
            assert part.strip()[:1] not in {*"=+-@＝＋－＠"}


@settings(max_examples=examples(100))
@given(st.text(alphabet=st.characters(codec=None), max_size=40), st.booleans())
def test_any_text_is_shown_as_it_is_by_a_renderer_of_markdown(text, in_table):
    line = markdown(text)
    page = f"| a |\n|---|\n| {line} |\n" if in_table else f"{line}\n"
    tokens = MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(page)
    inline = [token for token in tokens if token.type == "inline"][in_table:]
    assert {child.type for token in inline for child in token.children or []} <= {
        "text",
        "text_special",
    }
    told = "".join(child.content for token in inline for child in token.children or [])
    assert told == shown(text)
    if not in_table:
        assert {token.type for token in tokens} <= {"paragraph_open", "inline", "paragraph_close"}


def test_junit_can_be_read_whatever_the_texts(hostile):
    report, _ = hostile
    suites = ElementTree.fromstring(render_junit(report))
    assert len(suites) == len(HOSTILE)
    cases = list(suites[0].iter("testcase"))
    for case, text in zip(cases, HOSTILE, strict=True):
        # An attribute's line ends are spaces to a reader of XML.
        assert case.get("name").split() == visible(f"{text}: {text}").split()


def test_a_suite_of_junit_is_counted_as_often_whatever_the_number_of_its_cases(monkeypatch):
    counted = []
    count = TestSuite.update_statistics
    monkeypatch.setattr(
        TestSuite, "update_statistics", lambda suite: counted.append(1) or count(suite)
    )
    for texts in (("x",), ("x",) * 50):
        render_junit(_report_of([{**_run(texts), "name": "x"}]))
    assert len(counted) <= 4  # else it takes minutes for ten thousand


# -- one of them fails ---------------------------------------------------------------------------


def told(job):
    """The exit status of a job, and what it says."""
    out = Console(record=True, width=400, file=io.StringIO())
    return run_job(job, None, out), out.export_text()


@pytest.mark.parametrize("view", VIEWS)
def test_a_view_that_cannot_be_written_costs_no_other_and_is_said(make_job, view, monkeypatch):
    def write(path, *given, **options):
        if path.name == view:  # become one since it was looked at
            raise IsADirectoryError(errno.EISDIR, "Is a directory")
        write_whole(path, *given, **options)

    write_whole = rendering.write_whole
    job = make_job()
    job.run()
    monkeypatch.setattr(rendering, "write_whole", write)
    times = {name: (job.out / name).stat().st_mtime_ns for name in VIEWS if name != view}
    status, said = told(make_job())
    assert status == 1
    assert f"{view} could not be written: Is a directory" in said
    assert all((job.out / name).stat().st_mtime_ns > time for name, time in times.items())
    assert ("journal.jsonl: the same command" in said) == (view == "report.json")
    assert not [path for path in job.out.iterdir() if path.name.endswith(".part")]


def test_a_plot_that_cannot_be_drawn_costs_no_other_and_is_said(hostile, tmp_path):
    report = json.loads(json.dumps(hostile[0]))
    for run in report["runs"]:
        run["summary"]["by_age"] = {"no age": run["summary"]["by_age"]["0-5 s"]}
    failed = write_report(report, tmp_path)
    assert list(failed) == ["the plot 'Accuracy by age of the evidence'"]
    page = (tmp_path / "report.html").read_text()
    assert page.count("It could not be drawn.") == 1
    assert page.count("xmlns:xlink") == page.count('class="plot"') - 1


@contextmanager
def no_file_longer_than(count: int):
    """What a full disk does: a write takes what fits, and the next one fails."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (count, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_that_is_full_at_the_end_costs_the_views_that_do_not_fit_and_no_answer(make_job):
    whole = make_job(out="whole").run()
    sizes = {name: (make_job(out="whole").out / name).stat().st_size for name in VIEWS}
    journal = make_job(out="whole").out / "journal.jsonl"
    # The report holds the same answers once more, indented, and the page the pictures.
    assert sizes["report.html"] > sizes["report.json"] > journal.stat().st_size > 0
    with no_file_longer_than(journal.stat().st_size + 500):
        job = make_job()
        status, said = told(job)
    assert status == 1
    assert "report.html could not be written: File too large" in said
    assert "report.json could not be written: File too large" in said
    assert (job.out / "report.md").exists() and (job.out / "junit.xml").exists()

    def never(settings):
        raise AssertionError("asked again")

    again = make_job(engine=never)
    assert without_times(again.run()["runs"]) == without_times(whole["runs"])
    assert again.failed == {}


def test_a_disk_that_is_full_in_the_middle_ends_the_run_and_what_was_answered_is_safe(make_job):
    whole = make_job(out="whole").run()
    journal = make_job(out="whole").out / "journal.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    room = len(b"".join(lines[:2])) + len(lines[2]) // 2  # the third answer fits by half
    two = settings_of(BASE, None, ["small:max_cache_tokens=70"])
    with no_file_longer_than(room):
        job = make_job(two)
        status, said = told(job)
    assert status == 1
    assert "streaming ended early" in said and "journal.jsonl cannot be written" in said
    assert "small" not in said  # it would fail in the same way, after the same work
    kept = [json.loads(line) for line in (job.out / "journal.jsonl").read_bytes().splitlines()]
    assert len(kept) == 2

    asked = []

    def counting(settings):
        engine = real_engine()
        ask, choose = engine.ask, engine.ask_choice
        engine.ask = lambda text, *a, **k: asked.append(text) or ask(text, *a, **k)
        engine.ask_choice = lambda text, *a, **k: asked.append(text) or choose(text, *a, **k)
        return engine

    resumed = make_job(engine=counting)
    report = resumed.run()
    assert len(asked) == 3
    assert without_times(report["runs"]) == without_times(whole["runs"])


def test_thumbnails_that_cannot_be_written_cost_no_answer(make_job):
    job = make_job()
    job.out.mkdir()
    job.run()
    for path in (job.out / "thumbnails").iterdir():
        path.unlink()
        path.mkdir()
    status, said = told(make_job())
    assert status == 0  # the run is taken from the journal
    status, said = told(make_job(resume=False))
    assert status == 1
    assert "thumbnails could not be written: Is a directory" in said
    assert read_report(job.out)["complete"]


def test_a_bag_that_fails_costs_no_answer_and_leaves_the_one_of_before(make_job):
    make_job(bag=True).run()
    late = {"start_ns": (2**31 - 3) * 10**9}  # after 3 s a stamp fits no message any more
    job = make_job(bag=True, source_options=late)
    status, said = told(job)
    assert status == 1 and "bag/ could not be written" in said
    report = read_report(job.out)
    assert report["complete"] and report["runs"][0]["summary"]["answered"] == 5
    with Reader(job.out / "bag") as reader:
        assert reader.start_time == 1_700_000_000 * 10**9


# -- texts ---------------------------------------------------------------------------------------

ODD = """
title: "$\\\\frac{1$ <b>"
defaults: {type: "$x_{$"}
questions:
  - text: "Which </script> \\U0001f642?"
    at: 2
    choices: [left, right]
    expect: left
    tags: ["](javascript:alert(1))"]
    extra: {when: 2024-05-03, list: [a, {b: 1e300}]}
"""


def test_names_that_are_no_text_or_look_like_markup_pass_through_a_whole_replay(make_job):
    odd = os.fsdecode(b"/cam \xff <b>.mp4")
    named = [Settings(name="[/b] $\\frac{ _x"), Settings(name="_[red]y\x1b[2J")]
    job = make_job(named, questions=ODD, bag=True, source_options={"cameras": (odd,)})
    screen = io.StringIO()
    job.console = Console(file=screen, force_terminal=True, width=100)
    status, said = told(job)
    assert (status, job.failed) == (0, {})
    assert "[/b] $\\frac{ _x" in said and "\x1b[2J" not in said
    assert "\x1b[2J" not in screen.getvalue()
    assert read_report(job.out)["runs"][0]["answers"][0]["camera"] == odd
    assert "🙂" in (job.out / "report.html").read_text()
    with Reader(job.out / "bag") as reader:
        assert reader.message_count > 0


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_the_commands_print_any_text_on_any_stream(monkeypatch, encoding, make_job):
    from stream_vlm_ros.console import make_console

    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding))
    console = make_console()
    console.print("– \ud800 é 🙂", markup=False)
    sys.stdout.flush()
    assert raw.getvalue().decode(encoding).startswith("–" if encoding == "utf-8" else "\\u2013")

# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""``stream-vlm web`` as a viewer meets it: the small model, the drawn world, a browser."""

import os
import random
import re
import signal
import subprocess
import sys

import pytest
from browser import asked_in, find_browser, launched
from patience import PATIENCE, wait_until
from playwright.sync_api import expect

from stream_vlm_ros.world import questions
from stream_vlm_ros.world.source import WorldSource

pytestmark = pytest.mark.skipif(
    find_browser() is None, reason="no Chromium here: make browser installs it"
)
SEED, SAMPLE_FPS = 7, 2
WAITED = 10  # s of the world, by which the first thing has gone out of a memory as small as this
SMALL = ["--max-cache-tokens", "200", "--history", "always"]
ASKED = "Where was the green ring last seen?"


def truth():
    """The question with its true answer, drawn from the world as often as it takes."""
    stamps = [index / SAMPLE_FPS for index in range(WAITED * SAMPLE_FPS + 1)]
    history = questions.History(WorldSource(str(SEED)).world.sightings(stamps[-1]), stamps)
    drawn = (questions.ask(random.Random(seed), history, "where") for seed in range(1000))
    return next(one for one in drawn if one is not None and one.text == ASKED)


@pytest.fixture
def address(tmp_path):
    command = [sys.executable, "-m", "stream_vlm_ros.cli", "web", "--source", f"world:{SEED}"]
    command += [*SMALL, "--port", "0", "--memory-folder", str(tmp_path / "memories")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    errors = tmp_path / "errors.txt"
    with (
        errors.open("w") as log,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=log, text=True, env=environment
        ) as process,
    ):
        try:
            told = process.stdout.readline()
            yield re.search(r"http://\S+", told).group()
            process.send_signal(signal.SIGINT)
            process.wait(PATIENCE)
        finally:
            process.kill()
    assert "Traceback" not in errors.read_text()  # Ctrl-C is quiet


def ask(page, text):
    article = asked_in(page, text)
    expect(article.locator(".sv-meta").last).to_be_visible()
    return article


def test_the_small_model_is_right_shows_why_and_is_so_again_from_a_saved_memory(address):
    asked = truth()
    with launched() as browser:
        page = browser.new_page()
        page.set_default_timeout(1000 * PATIENCE)
        page.goto(address)
        expect(page.get_by_role("status").first).to_have_text("Live")
        line = page.get_by_role("slider", name="Time line")
        wait_until(lambda: int(line.get_attribute("aria-valuemax")) >= WAITED, "the world's time")

        article = ask(page, asked.text)
        answer = article.locator(".sv-answer-text").text_content()
        assert asked.is_right(answer), answer
        pictures = article.get_by_role("group", name="Evidence").get_by_role("img")
        expect(pictures.first).to_be_visible()
        assert pictures.first.evaluate("one => one.complete && one.naturalWidth > 0")
        expect(page.locator(".sv-line .sv-evidence")).not_to_have_count(0)

        page.get_by_role("button", name="Pause").click()
        page.get_by_role("button", name="Save", exact=True).click()
        page.get_by_label("Name").fill("morning")
        page.get_by_role("dialog").get_by_role("button", name="Save", exact=True).click()
        expect(page.get_by_text(re.compile("Saved as .*morning"))).to_be_visible()
        page.get_by_role("button", name="Reset").click()
        page.get_by_role("button", name="Forget").click()
        expect(page.get_by_text("0 of 200 tokens")).to_be_visible()
        page.get_by_role("button", name="Load", exact=True).click()
        page.get_by_role("dialog").get_by_role("button", name="morning").click()
        expect(page.get_by_text("0 of 200 tokens", exact=True)).to_be_hidden()
        assert ask(page, asked.text).locator(".sv-answer-text").text_content() == answer

# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""The console's page in a browser, over a memory whose answers are known."""

import pytest
from browser import find_browser, launched, served
from live_memory_stand_in import LiveMemoryStandIn
from playwright.sync_api import expect

pytestmark = pytest.mark.skipif(
    find_browser() is None, reason="no Chromium here: make browser installs it"
)


@pytest.fixture(scope="module")
def memory():
    return LiveMemoryStandIn()


@pytest.fixture(scope="module")
def address(memory):
    with served([memory]) as address:
        yield address


@pytest.fixture(scope="module")
def browser():
    with launched() as browser:
        yield browser


@pytest.fixture
def page(address, browser, memory):
    memory.begin()
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    page = context.new_page()
    page.goto(address)
    yield page
    context.close()


def frames(page):
    return int(page.locator(".sv-picture").first.get_attribute("data-frames"))


def test_the_picture_moves(page):
    picture = page.locator(".sv-picture").first
    expect(picture).not_to_have_attribute("data-frames", "0")
    seen = frames(page)
    page.wait_for_function(
        f"document.querySelector('.sv-picture').dataset.frames >= {seen + 3}", timeout=5000
    )

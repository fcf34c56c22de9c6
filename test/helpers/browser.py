# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""The machine's Chromium, and a console to look at with it."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
import threading
from collections.abc import Iterator, Sequence

from patience import PATIENCE
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright

from stream_vlm_ros.web.live_memory import LiveMemory

expect.set_options(timeout=1000 * PATIENCE)
NAMES = ("chromium", "chromium-browser", "google-chrome")


def find_browser() -> str | None:
    """The program of the machine's Chromium."""
    return next(filter(None, map(shutil.which, NAMES)), None)


@contextlib.contextmanager
def launched() -> Iterator[Browser]:
    """A headless browser of Playwright's, driving the machine's Chromium."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=find_browser(), args=["--no-sandbox", "--disable-gpu"]
        )
        try:
            yield browser
        finally:
            browser.close()


def asked_in(page: Page, text: str) -> Locator:
    """Where the answer to a question comes that is asked on a page."""
    number = page.get_by_role("article").count()
    box = page.get_by_label("Question", exact=True)
    box.fill(text)
    box.press("Enter")
    return page.get_by_role("article").nth(number)


@contextlib.contextmanager
def served(memories: Sequence[LiveMemory]) -> Iterator[str]:
    """The address of a console over these memories, in a thread of its own; one at a time."""
    import nicegui

    from stream_vlm_ros.web.app import serve

    # NiceGUI has one application for a process, which takes middleware only before it starts.
    nicegui.app.middleware_stack = None
    nicegui.app.user_middleware.clear()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        ended = threading.Event()

        async def until_ended() -> None:
            task = asyncio.create_task(serve(memories, listening=listening))
            while not (ended.is_set() or task.done()):
                await asyncio.sleep(0.05)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

        thread = threading.Thread(target=lambda: asyncio.run(until_ended()), daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            ended.set()
            thread.join(20)

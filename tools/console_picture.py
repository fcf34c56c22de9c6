# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""The README's picture of the console: the small model in the drawn world, as a browser shows it.

Takes a minute, since the world moves at its own pace. Needs Chromium (make browser).
Usage: console_picture.py FILE
"""

from __future__ import annotations

import io
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, expect, sync_playwright

SECONDS = 57  # of the world
# Small, so that all levels are at work after a minute.
MEMORY = (
    "--max-cache-tokens 500 --history always --sampled-share 0.2 --important-share 0.4"
).split()
QUESTIONS = ("What appeared first?", "Where was the sign last seen?")
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def photograph(page: Page) -> bytes:
    """Ask when the time has come, and look."""
    line = page.get_by_role("slider", name="Time line")
    page.wait_for_function(
        "([line, seconds]) => line.getAttribute('aria-valuemax') >= seconds",
        arg=[line.element_handle(), SECONDS],
        timeout=3000 * SECONDS,
    )
    for number, text in enumerate(QUESTIONS):
        page.get_by_label("Question", exact=True).fill(text)
        page.keyboard.press("Enter")
        expect(page.locator(".sv-meta")).to_have_count(number + 1, timeout=20_000)
    expect(page.locator(".sv-line .sv-evidence")).not_to_have_count(0)
    page.wait_for_timeout(700)  # all pictures stand, nothing is pressed any more
    return page.screenshot()


def shot(browser: str, address: str) -> bytes:
    """What the browser shows of that address."""
    with sync_playwright() as playwright:
        shown = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        page = shown.new_page(viewport={"width": 1280, "height": 760}, device_scale_factor=1.5)
        page.goto(address)
        data = photograph(page)
        shown.close()
    return data


def main(target: Path) -> None:
    """Start the console, look at it, end it."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        sys.exit("stream_vlm: no Chromium here: make browser says how to install it")
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "stream_vlm_ros.cli", "web", "--source", "world:7"]
        command += [*MEMORY, "--port", "0", "--memory-folder", folder]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as console:
            try:
                assert console.stdout is not None
                found = re.search(r"http://\S+", console.stdout.readline())
                assert found is not None
                data = shot(browser, found.group())
            finally:
                console.terminate()
    Image.open(io.BytesIO(data)).convert("RGB").save(target, quality=86, optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))

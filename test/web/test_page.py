# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""The console's page in a browser, over a memory whose answers are known."""

import re
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import urlopen

import pytest
from browser import asked_in, find_browser, launched, served
from live_memory_stand_in import ANSWER, SECOND, LiveMemoryStandIn
from patience import PATIENCE, wait_until
from playwright.sync_api import expect

from stream_vlm_ros.errors import InvalidParameterError, StreamVlmError
from stream_vlm_ros.session.counters import Drop
from stream_vlm_ros.session.question import CancelledError

pytestmark = pytest.mark.skipif(
    find_browser() is None, reason="no Chromium here: make browser installs it"
)
QUESTION = "What is on the table?"


@pytest.fixture(scope="module")
def memories():
    return LiveMemoryStandIn("kitchen"), LiveMemoryStandIn("hall")


@pytest.fixture(scope="module")
def address(memories):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("stream_vlm_ros.web.app.RECONNECT", 1.0)
        with served(memories) as address:
            yield address


@pytest.fixture(scope="module")
def browser():
    with launched() as browser:
        yield browser


@pytest.fixture
def memory(memories):
    for one in memories:
        one.begin()
    return memories[0]


@pytest.fixture(scope="module")
def usual(browser):
    """What most of the viewers have: a desk's width, and what they loaded once."""
    return browser.new_context(viewport={"width": 1280, "height": 800})


@pytest.fixture
def view(address, browser, usual, memory):
    """Opens a page, in a context of its own where options of Playwright's are given."""
    opened, faults = [], []

    def open_one(**options):
        context = browser.new_context(**options) if options else usual
        context.set_default_timeout(1000 * PATIENCE)
        page = context.new_page()
        opened.append(context if options else page)
        page.on("pageerror", lambda fault: faults.append(str(fault)))
        page.goto(address)
        expect(page.get_by_role("status").first).to_have_text("Live")
        return page

    yield open_one
    for one in opened:
        one.close()
    assert faults == []


@pytest.fixture
def page(view):
    return view()


def ask(page, text=QUESTION):
    return asked_in(page, text)


def click_at(page, second, memory):
    """Click the time line at that second of what was seen."""
    box = page.get_by_role("slider").bounding_box()
    share = second * SECOND / memory.seen_ns
    page.mouse.click(box["x"] + share * box["width"], box["y"] + 25)


def test_the_picture_moves_and_says_its_time(page):
    picture = page.locator(".sv-live > .sv-picture")
    expect(picture.get_by_role("img", name="Live picture of kitchen")).to_be_visible()
    first = picture.locator("figcaption").text_content()
    page.wait_for_function("document.querySelector('.sv-picture').dataset.frames >= 4")
    assert re.fullmatch(r"\d:\d\d\.\d", first)
    expect(picture.locator("figcaption")).not_to_have_text(first)


def test_an_answer_grows_word_by_word_and_shows_what_it_rests_on(page, memory):
    memory.pace = PATIENCE  # between two words
    article = ask(page)
    expect(article.locator(".sv-answer-text")).to_have_text("A")
    memory.pace = 0.0
    expect(article.locator(".sv-answer-text")).to_have_text(ANSWER)
    expect(article).to_contain_text("first token 210 ms · 900 ms in all · 8 tokens")
    evidence = article.get_by_role("group", name="Evidence")
    expect(evidence.get_by_role("img")).to_have_count(4)
    assert all(
        evidence.get_by_role("img").nth(i).evaluate("one => one.complete && one.naturalWidth > 0")
        for i in range(4)
    )
    expect(page.locator(".sv-line .sv-evidence")).to_have_count(1)
    assert memory.asked[0].text == QUESTION and memory.asked[0].thumbnails > 0


def test_the_next_question_is_typed_at_once(page):
    article = ask(page)
    expect(page.get_by_label("Question", exact=True)).to_be_focused()
    expect(page.get_by_label("Question", exact=True)).to_have_value("")
    expect(article).to_contain_text(ANSWER)


def test_a_question_that_is_too_long_is_told_so_and_stays(page, memory):
    box = page.get_by_label("Question", exact=True)
    box.evaluate("box => { box.value = 'x'.repeat(1_500_000) }")  # as a page's extension does
    box.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("longer than 20,000 characters")
    assert box.evaluate("box => box.value.length") == 1_500_000 and not memory.asked
    box.fill("?")
    box.press("Enter")
    expect(page.get_by_role("article")).to_contain_text(ANSWER)


def test_an_example_is_asked_by_a_click(page, memory):
    page.get_by_role("button", name=memory.examples[1]).click()
    expect(page.get_by_role("article")).to_contain_text(ANSWER)
    assert memory.asked[0].text == memory.examples[1]


def test_examples_come_once_the_memory_knows_them(view, memory):
    memory.examples, known = (), memory.examples
    page = view()
    expect(page.get_by_text("Ask about what the camera sees, or saw")).to_be_visible()
    expect(page.locator(".sv-example")).to_have_count(0)
    memory.examples = known  # such as those of a node whose model was being loaded
    expect(page.locator(".sv-example")).to_have_text([*known])


def test_an_answer_is_stopped(page, memory):
    memory.answer, memory.pace = "and so on " * 500, 0.05
    article = ask(page)
    expect(article).to_contain_text("and so on")
    article.get_by_role("button", name="Stop").click()
    expect(article).to_contain_text("Stopped")
    expect(article.get_by_role("button", name="Stop")).to_be_hidden()


def test_several_answers_are_written_at_a_time(page, memory):
    memory.pace = 0.2
    ask(page, "First?")
    ask(page, "Second?")
    articles = page.get_by_role("article")
    expect(articles).to_have_count(2)
    expect(articles.nth(0)).to_contain_text(ANSWER)
    expect(articles.nth(1)).to_contain_text(ANSWER)


def test_a_choice_is_shown_with_how_likely_each_is(page, memory):
    page.get_by_role("button", name="Give choices to pick from").click()
    page.get_by_label("Choices, separated by commas").fill("blue, red ,")
    article = ask(page, "Which color?")
    scores = article.get_by_role("list", name="How likely each choice is").get_by_role("listitem")
    expect(scores).to_have_text([re.compile("blue.*30 %"), re.compile("red.*70 %")])
    assert memory.asked[0].choices == ("blue", "red")
    expect(article).to_contain_text("no single time is named")  # under the words: no evidence


def test_a_time_on_the_line_is_asked_about(page, memory):
    click_at(page, 100, memory)
    expect(page.locator(".sv-about")).to_contain_text("About 1:")
    article = ask(page)
    expect(article).to_contain_text(ANSWER)
    first, last = memory.asked[0].about_ns
    assert first < 100 * SECOND < last and last - first < 5 * SECOND
    expect(page.locator(".sv-about")).to_be_hidden()


def test_what_is_forgotten_is_said_in_words(page, memory):
    click_at(page, 30, memory)
    article = ask(page)
    expect(article.get_by_role("alert")).to_have_text("Nothing of that time is remembered.")


def test_the_line_tells_where_each_time_is_by_keys_too(page, memory):
    line = page.get_by_role("slider", name="Time line")
    line.focus()
    told = {}
    for key in ("Home", "End"):
        line.press(key)
        told[key] = line.get_attribute("aria-valuetext")
    assert told["Home"] == "0:00.0, first frames" and told["End"].endswith(", window")
    line.press("Enter")
    expect(page.locator(".sv-about")).to_be_visible()
    line.press("Escape")
    expect(page.locator(".sv-about")).to_be_hidden()
    drawn = page.locator(".sv-line svg rect").evaluate_all(
        "all => all.map(one => one.classList[0])"
    )
    kinds = {"sv-forgotten", "sv-history", "sv-window", "sv-sampled", "sv-important", "sv-sink"}
    assert set(drawn) == kinds


def test_a_look_at_the_line_shows_the_kept_picture(page, memory):
    box = page.get_by_role("slider").bounding_box()
    page.mouse.move(box["x"] + 0.9 * box["width"], box["y"] + 25)
    expect(page.locator(".sv-tip img")).to_be_visible()
    expect(page.locator(".sv-tip")).to_contain_text("window")
    share = 30 * SECOND / memory.seen_ns
    page.mouse.move(box["x"] + share * box["width"], box["y"] + 25)
    expect(page.locator(".sv-tip")).to_contain_text("no picture is kept")


def test_state_and_losses_are_told_in_words(page, memory):
    figures = page.get_by_role("region", name="State of the memory")
    expect(figures).to_contain_text("6,016 of 16,384 tokens")
    expect(figures).to_contain_text("760 left out by the sample rate")
    memory.counters = {**memory.counters, Drop.OVERFLOW.value: 12}
    expect(figures).to_contain_text("12 dropped, since the model is slower than the camera")
    memory.state, memory.words = "away", "the node /stream_vlm does not answer"
    expect(page.get_by_text("the node /stream_vlm does not answer")).to_be_visible()
    expect(page.get_by_role("status").first).to_have_text("Not answering")


def test_a_fault_that_nobody_foresaw_is_told_too(page, memory, monkeypatch, caplog):
    async def fail():
        raise ZeroDivisionError("no")

    monkeypatch.setattr(memory, "pause", fail)
    page.get_by_role("button", name="Pause").click()
    expect(page.get_by_text("Internal error: ZeroDivisionError('no')")).to_be_visible()
    assert "ZeroDivisionError" in caplog.text


def test_a_setting_is_changed_and_a_bad_one_refused_in_words(page, memory):
    page.get_by_role("button", name="Settings").click()
    rate = page.get_by_label("Pictures a second")
    rate.fill("5")
    rate.press("Enter")
    expect(page.get_by_text("Changed.")).to_be_visible()
    assert memory.settings["sample_fps"] == 5.0
    rate.fill("500")
    rate.press("Enter")
    under = page.locator(".sv-setting", has=rate).get_by_role("alert")
    expect(under).to_have_text("Pictures a second must lie in [0.0, 120.0], got 500.0.")
    expect(rate).to_have_value("5")
    rate.fill("700")
    rate.blur()  # nor is it made another number in silence
    expect(under).to_have_text("Pictures a second must lie in [0.0, 120.0], got 700.0.")
    rate.fill("")
    rate.press("Enter")
    expect(under).to_have_text("Pictures a second needs a number.")
    assert memory.settings["sample_fps"] == 5.0


def test_what_somebody_else_sets_is_shown_but_where_something_is_typed(page, memory):
    page.get_by_role("button", name="Settings").click()
    rate, pixels = page.get_by_label("Pictures a second"), page.get_by_label("Pixels of a picture")
    pixels.fill("60000")
    memory.settings |= {"sample_fps": 3.0, "max_pixels": 50_000}  # as a second viewer does
    expect(rate).to_have_value("3")
    expect(pixels).to_have_value("60000")
    rate.fill("2")  # what it was when the settings were opened
    rate.press("Enter")
    expect(page.get_by_text("Changed.").first).to_be_visible()
    typed = {"sample_fps": 2.0, "max_pixels": 60_000, "max_cache_tokens": 16_384}
    wait_until(lambda: memory.settings == typed)


def test_of_what_went_wrong_the_last_is_told_and_can_be_closed(page, memory, monkeypatch):
    async def refuse(name=""):
        raise StreamVlmError(next(faults))

    faults = iter(("first fault", "second fault"))
    monkeypatch.setattr(memory, "pause", refuse)
    page.get_by_role("button", name="Pause").click()
    expect(page.get_by_text("First fault.")).to_be_visible()
    assert contrast(page, ".sv-bad .q-notification__actions .q-btn") >= 4.5
    page.get_by_role("button", name="Pause").click()
    expect(page.locator(".sv-bad")).to_have_count(1)
    expect(page.locator(".sv-bad .q-notification__message")).to_have_text("Second fault.")
    page.locator(".sv-bad").get_by_role("button", name="Close").click()
    expect(page.locator(".sv-bad")).to_have_count(0)


def test_a_setting_that_costs_the_memory_is_asked_about_first(page, memory):
    page.get_by_role("button", name="Settings").click()
    cap = page.get_by_label("Tokens held, at most")
    cap.fill("4096")
    cap.press("Enter")
    page.get_by_role("button", name="Cancel").click()
    expect(cap).to_have_value("16384")
    cap.fill("8192")
    cap.press("Enter")
    page.get_by_role("button", name="Begin").click()
    expect(page.get_by_text("Changed.")).to_be_visible()
    assert memory.settings["max_cache_tokens"] == 8192


def test_nothing_is_asked_about_a_size_that_is_refused(page, memory, monkeypatch):
    async def check(**settings):
        raise InvalidParameterError(f"{next(iter(settings))} does not fit")

    monkeypatch.setattr(memory, "check", check)
    page.get_by_role("button", name="Settings").click()
    cap = page.get_by_label("Tokens held, at most")
    cap.fill("64")
    cap.press("Enter")
    said = page.locator(".sv-setting", has=cap).get_by_role("alert")
    expect(said).to_have_text("Tokens held, at most does not fit.")
    expect(cap).to_have_value("16384")
    expect(page.get_by_role("button", name="Begin")).to_be_hidden()


def test_it_pauses_and_goes_on(page, memory):
    page.get_by_role("button", name="Pause").click()
    expect(page.get_by_role("status").first).to_have_text("Paused")
    assert memory.paused
    page.get_by_role("button", name="Resume").click()
    expect(page.get_by_role("status").first).to_have_text("Live")


def test_nothing_is_forgotten_before_it_is_asked_twice(page, memory):
    page.get_by_role("button", name="Reset").click()
    page.get_by_role("button", name="Cancel").click()
    expect(page.get_by_text("Forget everything?")).to_be_hidden()
    assert memory.seen_ns > 100 * SECOND
    page.get_by_role("button", name="Reset").click()
    page.get_by_role("button", name="Forget").click()
    expect(page.get_by_text("The memory is empty.")).to_be_visible()
    assert memory.seen_ns < 100 * SECOND


def test_a_memory_is_saved_and_loaded_by_its_name(page, memory):
    page.get_by_role("button", name="Save", exact=True).click()
    page.get_by_label("Name").fill("morning")
    page.get_by_role("button", name="Save", exact=True).last.click()
    expect(page.get_by_text("Saved as morning.")).to_be_visible()
    memory.seen_ns = 5 * SECOND
    page.get_by_role("button", name="Load", exact=True).click()
    page.get_by_role("button", name="morning").click()
    expect(page.get_by_text("Loaded morning.")).to_be_visible()
    assert memory.seen_ns > 100 * SECOND


def test_past_answers_are_searched(page, memory):
    expect(ask(page, "Is the ball red?")).to_contain_text(ANSWER)
    expect(ask(page, "Who came in?")).to_contain_text(ANSWER)
    page.get_by_role("button", name="Past answers").click()
    found = page.get_by_role("dialog").get_by_role("article")
    expect(found).to_have_count(2)
    page.get_by_label("Search questions and answers").fill("came")
    expect(found).to_have_count(1)
    expect(found).to_contain_text("Who came in?")


def test_the_conversation_is_downloaded_as_one_page(page, tmp_path):
    article = ask(page, "Is <b>it</b> red?")
    expect(article).to_contain_text(ANSWER)
    expect(article.get_by_role("group", name="Evidence")).to_be_visible()
    with page.expect_download() as download:
        page.get_by_role("button", name="Download").click()
    file = tmp_path / download.value.suggested_filename
    download.value.save_as(file)
    text = file.read_text()
    assert file.suffix == ".html" and ANSWER in text
    assert "Is &lt;b&gt;it&lt;/b&gt; red?" in text and text.count("data:image/jpeg;base64,") == 4


def test_each_camera_has_a_memory_of_its_own(page, memories):
    page.get_by_role("button", name="Camera hall").click()
    expect(page.locator(".sv-live > .sv-picture img")).to_have_attribute(
        "alt", "Live picture of hall"
    )
    expect(ask(page)).to_contain_text(ANSWER)
    expect(page.get_by_role("article")).to_contain_text("hall")
    assert [len(one.asked) for one in memories] == [0, 1]


def test_a_page_says_connecting_and_takes_nothing_until_its_connection_stands(
    address, browser, memory
):
    held = []
    page = browser.new_context().new_page()
    page.route_web_socket(re.compile("_nicegui_ws"), lambda one: held.append(one))
    page.goto(address)
    state, hall = page.get_by_role("status").first, page.locator(".sv-camera").nth(1)
    expect(state).to_have_text("Connecting")
    for one in (hall, page.locator("input[name=question]")):
        box = one.bounding_box()
        page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.keyboard.type("?")
    page.keyboard.press("Enter")
    held[0].connect_to_server()
    expect(state).to_have_text("Live")
    expect(hall).to_have_attribute("aria-pressed", "false")
    expect(ask(page, "Now?")).to_contain_text(ANSWER)
    assert [one.text for one in memory.asked] == ["Now?"]
    page.context.close()


def test_a_second_viewer_sees_the_same_memory_and_asks_for_himself(view, memory):
    first, second = view(), view()
    expect(ask(first, "Mine?")).to_contain_text(ANSWER)
    expect(ask(second, "Yours?")).to_contain_text(ANSWER)
    expect(first.get_by_role("article")).to_have_count(1)
    first.get_by_role("button", name="Pause").click()
    expect(second.get_by_role("status").first).to_have_text("Paused")


def test_a_viewer_who_leaves_costs_no_further_token(view, memory):
    memory.answer, memory.pace = "and so on " * 500, 0.05
    page = view()
    expect(ask(page)).to_contain_text("and so on")
    page.close()
    memory.wait_until_answered(PATIENCE)
    assert isinstance(memory.outcomes[-1].error, CancelledError)


def test_a_phones_width_is_enough(view):
    page = view(viewport={"width": 360, "height": 740}, has_touch=True)
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    expect(ask(page)).to_contain_text(ANSWER)
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    stills = page.get_by_role("group", name="Evidence").get_by_role("img")
    shown = page.locator(".sv-stills").bounding_box()
    last = stills.nth(3).bounding_box()
    assert last["x"] + last["width"] <= shown["x"] + shown["width"] + 0.5  # none is cut off
    for _ in range(3):  # the conversation grows, and the box is scrolled to
        expect(ask(page)).to_contain_text(ANSWER)
    assert page.evaluate("scrollY") > 100
    tools = page.get_by_role("navigation", name="Memory")
    assert 0 <= tools.bounding_box()["y"] < 60
    page.get_by_role("button", name="Settings").click()
    box = page.get_by_role("dialog").locator(".sv-dialog").bounding_box()
    assert box["x"] >= 0 and box["x"] + box["width"] <= 360


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_follows_the_systems_colors_and_can_be_read(view, scheme):
    page = view(color_scheme=scheme)
    expect(ask(page)).to_contain_text(ANSWER)
    expect(page.locator(".sv-meta")).to_be_visible()
    for text in (
        ".sv-answer-text",
        ".sv-meta",
        ".sv-brand",
        ".sv-legend li",
        ".sv-asked",
        ".sv-send",
    ):
        assert contrast(page, text) >= 4.5, text
    back = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", back))) < 200) == (scheme == "dark")


def contrast(page, selector):
    """Of a text against what is behind it, as WCAG 2 defines it."""
    text, back = page.locator(selector).first.evaluate(
        """one => {
            const text = getComputedStyle(one).color;
            while (getComputedStyle(one).backgroundColor === 'rgba(0, 0, 0, 0)')
                one = one.parentElement;
            return [text, getComputedStyle(one).backgroundColor];
        }"""
    )

    def light(color):
        parts = [int(part) / 255 for part in re.findall(r"\d+", color)[:3]]
        parts = [p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]

    low, high = sorted((light(text), light(back)))
    return (high + 0.05) / (low + 0.05)


def test_everything_that_is_pressed_or_filled_in_has_a_name(page):
    ask(page)
    unnamed = page.evaluate(
        """() => [...document.querySelectorAll('button, input, [role=slider], [role=meter], img')]
            .filter(one => one.offsetParent && one.getAttribute('aria-hidden') !== 'true')
            .filter(one => {
                const told = one.cloneNode(true);  // but for icons, whose text is their name
                told.querySelectorAll('.q-icon, [aria-hidden=true]').forEach(icon => icon.remove());
                return !(one.getAttribute('aria-label') || one.alt || told.textContent.trim()
                    || one.labels?.length || one.closest('[aria-hidden=true]'));
            })
            .map(one => one.outerHTML.slice(0, 200))"""
    )
    assert unnamed == []


def test_nothing_is_asked_of_another_host(browser, address, memory):
    context = browser.new_context()
    page = context.new_page()
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("websocket", lambda socket: asked.append(socket.url))
    page.goto(address)
    expect(ask(page)).to_contain_text(ANSWER)
    page.get_by_role("button", name="Settings").click()
    expect(page.get_by_label("Pictures a second")).to_be_visible()
    context.close()
    places = {urlsplit(url).netloc for url in asked if not url.startswith(("data:", "blob:"))}
    assert places == {urlsplit(address).netloc}
    assert any(url.startswith("ws:") for url in asked)


@pytest.mark.parametrize("path", ["docs", "redoc", "openapi.json", "nothing", "_nicegui/nothing"])
def test_there_is_nothing_but_the_console(address, path):
    with pytest.raises(HTTPError, match="404") as refused:
        urlopen(f"{address}/{path}", timeout=PATIENCE)
    assert refused.value.headers["content-type"] == "application/json"  # no page is built for it

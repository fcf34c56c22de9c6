# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""``~/annotated_image``: words on what was seen last, for whoever looks, and for nobody else."""

import sys
import threading
from types import SimpleNamespace

import numpy as np
import pytest
from matplotlib.font_manager import fontManager
from matplotlib.ft2font import FT2Font
from patience import PATIENCE

from stream_vlm_ros.node import captions
from stream_vlm_ros.node.captions import captioned

pytest.importorskip("rclpy")
from sensor_msgs.msg import Image
from std_msgs.msg import Header
from stream_vlm.msg import Answer, CacheStatus

from stream_vlm_ros.node.annotated_image import AnnotatedImage, answer_text
from stream_vlm_ros.node.images import chosen_encoder, image_to_rgb
from stream_vlm_ros.node.interfaces import to_header
from stream_vlm_ros.session.timed_frame import TimedFrame

pytestmark = pytest.mark.ros
GREY = np.full((240, 320, 3), 128, np.uint8)


class Watched:
    """A node that somebody watches, or nobody, and its camera."""

    def __init__(self):
        self.watchers, self.shown, self.faults = 1, [], []
        self.came = threading.Semaphore(0)

    def create_publisher(self, kind, topic, qos, **options):
        assert (kind, topic) == (Image, "~/annotated_image")
        return SimpleNamespace(topic_name=topic, get_subscription_count=lambda: self.watchers)

    def destroy_publisher(self, publisher):
        pass

    def topic(self, name):
        return f"~/{name}"

    def cache_status(self):
        return CacheStatus(state="active", length=295, cap=4096)

    def publish(self, publisher, message):
        self.shown.append(message)
        self.came.release()

    def report_fault(self, where, fault):
        self.faults.append(fault)
        self.came.release()

    def next(self):
        assert self.came.acquire(timeout=PATIENCE)
        assert not self.faults
        return self.shown[-1]


@pytest.fixture
def node():
    return Watched()


@pytest.fixture
def annotated(node):
    annotated = AnnotatedImage(node, node)
    yield annotated
    annotated.destroy(5.0)


def frame(stamp_ns=10 * 10**9, image=GREY):
    return TimedFrame(stamp_ns, image, to_header(stamp_ns, "camera"))


def test_a_frame_is_shown_with_its_own_header_and_the_last_answer(node, annotated):
    annotated.take(frame())
    plain = node.next()
    assert plain.header == to_header(10 * 10**9, "camera")
    # In the picture's middle are no words.
    assert (image_to_rgb(plain)[100:140] == 128).all() and (image_to_rgb(plain)[:20] != 128).any()
    annotated.tell(Answer(question="What?", text="a cat", header=to_header(8 * 10**9, "camera")))
    answered = node.next()  # at once, though no frame came
    assert answered.header == plain.header
    assert (image_to_rgb(plain)[-40:] == 128).all() and (image_to_rgb(answered)[-40:] != 128).any()
    assert (GREY == 128).all()  # the engine's own picture is left alone


def test_nothing_is_drawn_or_kept_while_nobody_subscribes(node, annotated, monkeypatch):
    node.watchers = 0
    for second in range(5):
        annotated.take(frame(second * 10**9))
    annotated.tell(Answer(question="What?", text="a cat"))
    assert not node.came.acquire(timeout=0.3) and node.shown == []
    node.watchers = 1
    annotated.take(frame())
    assert node.next().header.stamp.sec == 10


def test_a_picture_that_cannot_be_drawn_is_told_and_the_next_one_is_shown(node, annotated):
    annotated.take(frame(image=np.zeros((0, 0, 3), np.uint8)))
    assert node.came.acquire(timeout=PATIENCE) and len(node.faults) == 1
    node.faults.clear()
    annotated.take(frame())
    assert node.next().width == 320


def test_an_answer_says_how_long_ago_it_saw_its_newest_frame():
    answer = Answer(text="a cat", header=to_header(8 * 10**9, "camera"))
    assert answer_text(answer, 10_500_000_000) == "2.5 s ago: a cat"
    assert answer_text(answer, 7 * 10**9) == "a cat"  # the source's time ran back
    assert answer_text(Answer(text="a cat"), 7 * 10**9) == "a cat"  # the memory was empty
    failed = Answer(error_code=Answer.EMPTY_MEMORY, error_message="no image yet")
    assert answer_text(failed, 7 * 10**9) == "not answered: no image yet"


@pytest.mark.parametrize("size", [(1, 1), (48, 64), (480, 640), (1080, 1920), (600, 20)])
def test_long_and_strange_words_fit_into_pictures_of_any_size(size):
    image = np.full((*size, 3), 128, np.uint8)
    texts = ["x" * 5000, "word " * 999, "\x1b[2J\u202e\ud800 你好 🙂"]
    drawn = captioned(image, texts[:1], texts)
    assert drawn.dtype == np.uint8 and drawn.shape[2] == 3
    assert drawn.shape[1] >= max(320, size[1]) and (image == 128).all()


@pytest.fixture
def fonts(monkeypatch):
    """The fonts of the machine, by name, besides the usual one."""

    every = fontManager.ttflist

    def fonts(*names):
        found = [entry for entry in every if entry.name in names]
        monkeypatch.setattr(fontManager, "ttflist", found)
        captions.font_file.cache_clear()

    yield fonts
    captions.font_file.cache_clear()


def test_what_no_font_shows_is_told_in_words_and_not_drawn_as_a_box(fonts):
    fonts()
    black = np.zeros((480, 640, 3), np.uint8)
    drawn = captioned(black, ["Seen: 你好, twice"], ["one: 日"])
    told = ["Seen: [2 characters without a font], twice"], ["one: [1 character without a font]"]
    assert (drawn == captioned(black, *told)).all()


def test_what_the_usual_font_lacks_is_drawn_with_one_of_the_machine_that_has_it(fonts):
    usual, other = (
        set(FT2Font(fontManager.findfont(name)).get_charmap())
        for name in ("DejaVu Sans", "STIXGeneral")
    )
    text = "a" + next(chr(code) for code in sorted(other - usual) if chr(code).isprintable())
    black = np.zeros((480, 640, 3), np.uint8)
    fonts("Last Resort High-Efficiency", "STIXGeneral")
    drawn = captioned(black, [text], [])
    fonts("Last Resort High-Efficiency")
    assert (drawn != captioned(black, [text], [])).any()
    told = captioned(black, ["a[1 character without a font]"], [])
    assert (captioned(black, [text], []) == told).all() and (drawn != told).any()


def test_a_narrow_picture_is_enlarged_within_a_bound_of_its_area():
    for height, width in ((2000, 1), (3000, 16), (1200, 300)):
        drawn = captioned(np.zeros((height, width, 3), np.uint8), ["x"], ["y"])
        assert drawn.shape[0] * drawn.shape[1] <= 4_200_000
        assert drawn.shape[0] * width == drawn.shape[1] * height  # its shape stays
    longest = np.zeros((10_000, 300, 3), np.uint8)  # beyond the bound by itself
    assert captioned(longest, ["x"], []).shape == longest.shape


def bridge(of):
    return SimpleNamespace(CvBridge=lambda: SimpleNamespace(cv2_to_imgmsg=of))


def ours(image, header):
    height, width, _ = image.shape
    data = image.tobytes()
    return Image(
        header=header, height=height, width=width, encoding="rgb8", step=3 * width, data=data
    )


@pytest.mark.parametrize(
    ("cv_bridge", "used"),
    [
        (None, False),
        (bridge(lambda image, encoding, header: Image()), False),
        (bridge(lambda image, encoding, header: 1 / 0), False),
        (bridge(lambda image, encoding, header: ours(image, header)), True),
    ],
)
def test_cv_bridge_makes_the_message_where_it_makes_the_right_one(monkeypatch, cv_bridge, used):
    monkeypatch.setitem(sys.modules, "cv_bridge", cv_bridge)
    chosen_encoder.cache_clear()
    encode = chosen_encoder()
    chosen_encoder.cache_clear()
    assert (encode.__name__ == "by_bridge") == used
    noise = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    made = encode(noise, Header(frame_id="camera"))
    assert made == ours(noise, Header(frame_id="camera"))
    assert (image_to_rgb(made) == noise).all()

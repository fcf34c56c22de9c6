# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""CHANGELOG.rst is what catkin_prepare_release and bloom read (REP 132)."""

import re
from pathlib import Path

import docutils.core
import pytest
from catkin_pkg.changelog import Changelog, populate_changelog_from_rst
from catkin_pkg.package import parse_package
from catkin_pkg.package_version import get_forthcoming_label, rename_section
from docutils import nodes

# catkin_pkg calls what docutils has renamed.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:catkin_pkg")

ROOT = Path(__file__).resolve().parents[1]
# What REP 132 forbids in the section of a version.
FORBIDDEN = (
    nodes.definition_list,
    nodes.field_list,
    nodes.option_list,
    nodes.literal_block,
    nodes.line_block,
    nodes.block_quote,
    nodes.doctest_block,
    nodes.table,
)


@pytest.fixture(scope="module")
def text():
    return (ROOT / "CHANGELOG.rst").read_text()


def read(text):
    changelog = Changelog("stream_vlm")
    populate_changelog_from_rst(changelog, text)
    return changelog


def depth(node):
    """How many sections this one lies in, itself counted."""
    return 0 if node is None else isinstance(node, nodes.section) + depth(node.parent)


def test_it_is_sound_rst_without_what_the_format_forbids(text):
    settings = {"halt_level": 2, "doctitle_xform": False}  # a warning is an error
    document = docutils.core.publish_doctree(text, settings_overrides=settings)
    assert [str(found) for kind in FORBIDDEN for found in document.findall(kind)] == []
    # The title holds the versions, and a version no sections of its own ("Added", "Fixed").
    assert max(depth(section) for section in document.findall(nodes.section)) == 2
    # `code` of Markdown, which here means the title of a book.
    assert [str(found) for found in document.findall(nodes.title_reference)] == []


def test_its_newest_entry_is_forthcoming_or_the_packages_version(text):
    versions = [str(version) for version, _, _ in read(text).foreach_version()]
    if get_forthcoming_label(text) is None:
        assert versions[0] == parse_package(str(ROOT)).version


def test_a_release_takes_over_every_entry(text):
    label, number = get_forthcoming_label(text), parse_package(str(ROOT)).version
    if label:
        number = "9.9.9"
        text = rename_section(text, label, f"{number} (2026-11-28)")
    changelog = read(text)
    assert next(iter(changelog.foreach_version()))[0] == number
    taken = "\n".join(block.as_txt() for block in changelog.get_content_of_version(number))
    section = re.split(r"^\d+\.\d+\.\d+ \(", text.split(f"{number} (")[1], flags=re.M)[0]
    assert len(re.findall(r"^\* ", taken, re.M)) == len(re.findall(r"^[*-] ", section, re.M)) > 0

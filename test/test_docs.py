# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""What the documentation leaves out is missed; make site holds its links and its navigation."""

import re
from pathlib import Path

from PIL import Image

import stream_vlm_ros.engine

DOCS = Path(__file__).resolve().parents[1] / "docs"


def test_the_reference_names_the_whole_public_face_of_the_engine():
    documented = re.findall(
        r"^::: stream_vlm_ros\.engine\.(\w+)$", (DOCS / "api.md").read_text(), re.M
    )
    assert sorted(documented) == sorted(stream_vlm_ros.engine.__all__)


def test_the_index_leads_to_every_page_of_the_navigation():
    pages = re.findall(r": docs/(\S+\.md)$", (DOCS.parent / "mkdocs.yml").read_text(), re.M)
    assert len(pages) > 15
    index = (DOCS / "index.md").read_text()
    assert [page for page in pages if page != "index.md" and f"({page}" not in index] == []


def test_the_table_of_rooms_names_every_one():
    text = (DOCS.parent / "CONTRIBUTING.md").read_text()
    named = {name for cell in re.findall(r"^\| (`.+?) \|", text, re.M) for name in cell.split("`")}
    rooms = {
        f"{place.name}/" if place.is_dir() else place.name
        for place in Path(stream_vlm_ros.__file__).parent.glob("[a-z]*")
        if place.suffix == ".py" or (place / "__init__.py").is_file()
    }
    assert len(rooms) > 20
    assert [room for room in sorted(rooms) if room not in named] == []


def test_the_first_screen_of_the_readme_shows_a_picture_that_is_quickly_there():
    first_screen = (DOCS.parent / "README.md").read_text().splitlines()[:24]
    (picture,) = re.findall(r"!\[[^]]+\]\((docs/\S+)\)", "\n".join(first_screen))
    assert (DOCS.parent / picture).stat().st_size < 300_000
    with Image.open(DOCS.parent / picture) as shown:
        assert shown.width > 600

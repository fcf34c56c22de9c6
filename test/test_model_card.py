# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

import os

import pytest

from stream_vlm_ros.factory import default_model
from stream_vlm_ros.model_card import ModelCard


def card(folder, text):
    (folder / "README.md").write_bytes(text.encode() if isinstance(text, str) else text)
    return ModelCard.of(folder)


def test_the_small_model_of_the_package_says_what_it_knows():
    small = ModelCard.of(default_model())
    assert str(small) == "the small model of the package, which knows only its drawn world"
    assert small.warning("world:7") == ""
    for other in ("kitchen.mp4", "/dev/video0", ""):
        assert small.warning(other).startswith(f"The model is {small}: of anything else")


def test_a_checkpoint_whose_card_claims_nothing_is_called_by_its_folder(tmp_path):
    folder = tmp_path / "Qwen2.5-VL-3B-Instruct"
    folder.mkdir()
    for found in (ModelCard.of(folder), card(folder, "---\nlicense: other\n---\n# Qwen\n")):
        assert found == ModelCard("Qwen2.5-VL-3B-Instruct")
        assert str(found) == "Qwen2.5-VL-3B-Instruct" and found.warning("kitchen.mp4") == ""


def test_the_home_of_nobody_is_named_as_it_was_given():
    assert ModelCard.of("~nobody-of-that-name/Qwen").name == "Qwen"


@pytest.mark.parametrize(
    "text",
    ["", "---", "---\n", "---\n[\n---\n", "---\n- a\n---\n", "---\nstream_vlm: 5\n---\n",
     "---\nmodel_name: [1]\nstream_vlm: {knows_only: 3, sources: {}}\n---\n",
     b"---\n\xff\xfe: \x00\n---\n", "---\n" + "[" * 60_000 + "\n---\n",
     "---\nd: 2026-99-99\n---\n", "---\nx: !!bool maybe\n---\n", "---\nx: !!int ''\n---\n",
     "---\nx: !!timestamp foo\n---\n", "---\nmodel_name: !!binary x\n---\n",
     "---\na: &a x\nmodel_name: *a\n---\n", "---\nstream_vlm: {sources: [1, null, '', ' ']}\n---\n",
     "---\nm0: &m0 {a: 1}\n" + "".join(
         f"m{n}: &m{n} {{<<: [{', '.join([f'*m{n - 1}'] * 9)}]}}\n" for n in range(1, 20)
     ) + "---\n"],
)  # fmt: skip
def test_a_card_that_is_none_of_ours_is_no_error(tmp_path, text):
    assert card(tmp_path, text) == ModelCard(tmp_path.name)


def test_words_of_a_card_cannot_steer_the_terminal(tmp_path):
    found = card(tmp_path, '---\nmodel_name: "a\\x1b[2Jb"\n---\n')
    assert found.name == "a·[2Jb"


def test_a_card_that_is_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "README.md")
    assert ModelCard.of(tmp_path) == ModelCard(tmp_path.name)


def test_a_card_in_a_cache_is_a_link_to_it(tmp_path):
    (tmp_path / "blob").write_text("---\nmodel_name: linked\n---\n")
    (tmp_path / "README.md").symlink_to("blob")
    assert ModelCard.of(tmp_path).name == "linked"


def test_sources_without_a_name_hide_no_warning(tmp_path):
    text = "---\nstream_vlm: {knows_only: cats, sources: [1, null, '', 'cats:']}\n---\n"
    found = card(tmp_path, text)
    assert found.sources == ("cats:",) and found.warning("kitchen.mp4")


def test_a_byte_order_mark_and_what_lies_beyond_the_bound_do_not_hide_a_card(tmp_path):
    ours = "---\nmodel_name: ours\n"
    assert card(tmp_path, f"\ufeff{ours}---\n").name == "ours"
    long = f"{ours}license: other\nmodel-index:\n" + "  - {name: [x, y], value: 1}\n" * 3000
    assert len(long) > 65_536
    assert card(tmp_path, f"{long}---\n").name == "ours"

# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""The table of settings: its checks, the language of replays, and a setting added in one place."""

import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

import stream_vlm_ros
from stream_vlm_ros.cli import app, takes_settings
from stream_vlm_ros.config import AUTO, NODE, REPLAY, EvictionConfig, Settings, shared
from stream_vlm_ros.demo.settings import DEMO, ClientSettings, DemoOptions, SourceSettings
from stream_vlm_ros.errors import InvalidParameterError
from stream_vlm_ros.replay.command import settings_of
from stream_vlm_ros.replay.settings import changed
from stream_vlm_ros.setting import ALWAYS

TABLES = [Settings, SourceSettings, ClientSettings, DemoOptions]


def test_the_settings_need_nothing_but_the_standard_library():
    code = (
        "import sys; before = set(sys.modules); import stream_vlm_ros.config\n"
        "new = {name.split('.')[0] for name in set(sys.modules) - before}\n"
        "print(sorted(new - set(sys.stdlib_module_names)))"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "['stream_vlm_ros']"


@pytest.mark.parametrize("table", TABLES)
def test_every_row_says_what_it_means_and_its_default_is_allowed(table):
    table()
    spelled = [name for row in table.table().values() for name in {row.name, row.short}]
    assert len(spelled) == len(set(spelled))
    for row in table.table().values():
        assert row.text.endswith("."), row.name
        assert row.checked(row.default) == row.default or row.type is tuple
        assert row.type is not float or row.low is not None, row.name


def test_every_setting_is_read_somewhere():
    package = Path(stream_vlm_ros.__file__).parent
    code = "".join(path.read_text() for path in package.rglob("*.py") if path.stem != "config")
    own = Path(package, "config.py").read_text().partition("def check(self)")[2]
    unread = [
        name
        for name in Settings.table()
        if not re.search(rf"(parameters|settings|self)\.{name}\b", code + own)
    ]
    assert unread == []


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"sample_fps": -1.0}, r"sample_fps must lie in \[0.0, 120.0\], got -1.0"),
        ({"sample_fps": float("nan")}, "sample_fps must lie in"),
        ({"chunk_frames": 0}, r"chunk_frames must lie in \[1, 64\], got 0"),
        ({"layout": "segmentd"}, "did you mean 'segmented'"),
        ({"chunk_frames": 2.5}, r"chunk_frames must be of type int, got 2.5 .*\[1, 64\]"),
        ({"chunk_frames": True}, "chunk_frames must be of type int"),
        ({"autostart": "yes"}, "autostart must be of type bool"),
        ({"model_path": True}, "model_path must be of type str"),
        ({"question_path": "graphs"}, "did you mean 'graph'"),
        ({"device": "gpu"}, "device: must be auto, cpu, cuda or cuda:N"),
        ({"device": "cuda:"}, "device: must be"),
        ({"sampel_fps": 2.0}, "did you mean 'sample_fps'"),
        ({"min_pixels": 2000, "max_pixels": 1000}, r"min_pixels \(2000\) is above max_pixels"),
        ({"sink_size": 9000, "window_size": 9000}, "exceed max_cache_tokens 16384"),
        ({"sink_size": 16384}, "leaves no window"),
        ({"max_cache_tokens": 63}, r"must be 0 \(as many as fit\) or at least 64, got 63"),
        ({"sampled_share": -0.5}, r"sampled_share must be .* or -1 \(automatic\): -0.5"),
        ({"important_share": -0.1}, "important_share must be"),
        ({"sampled_share": 0.6, "important_share": 0.4}, "leave nothing for the window"),
        ({"max_new_tokens": 2048}, "below max_tail_tokens"),
        ({"history": "alwayz"}, "did you mean 'always'"),
        (
            {"engine": "delayed_batch", "history": "auto"},
            "delayed_batch is the history without a stream",
        ),
        ({"frame_store": "frames"}, "set history to auto or always"),
        ({"history_feature_megabytes": 9}, "auto or always, or leave it at 0"),
    ],
)
def test_a_bad_value_is_refused_with_a_reason(values, words):
    with pytest.raises(InvalidParameterError, match=words):
        Settings.of(values)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("rate", "fast", "must be of type float"),
        ("rate", -1.0, "must lie in"),
        ("rate", float("nan"), "must lie in"),
        ("loop", 1, "must be of type bool"),
        ("reliability", "perhaps", "must be one of reliable, best_effort"),
        ("depth", 0, "must lie in"),
    ],
)
def test_a_bad_value_of_a_node_of_the_demo_is_refused_with_its_name(name, value, words):
    with pytest.raises(InvalidParameterError, match=f"{name} {words}"):
        SourceSettings.of({name: value})


def test_a_cap_that_is_as_large_as_fits_takes_any_sink_and_window():
    assert Settings.of({"max_cache_tokens": 0, "sink_size": 9000, "window_size": 9000})


def test_a_value_is_kept_in_the_type_of_its_setting():
    assert repr(Settings(sample_fps=2).sample_fps) == "2.0"
    assert SourceSettings.of({"source": 0}).source == "0"  # `-p source:=0` is a camera
    assert ClientSettings.of({"questions": ["", "a?"]}).questions == ("a?",)
    assert Settings.of({"device": "cuda:1"}).device == "cuda:1"


@given(
    caps=st.tuples(*[st.integers(-1, 300)] * 3),
    shares=st.tuples(*[st.sampled_from([AUTO, -0.5, 0.0, 0.3, 0.7, 0.99])] * 2),
)
def test_settings_and_the_bound_of_the_engine_refuse_the_same(caps, shares):
    """But for caps below 64, too few for a picture, which only a script may set."""
    values = dict(zip(("max_cache_tokens", "sink_size", "window_size"), caps, strict=True))
    values |= dict(zip(("sampled_share", "important_share"), shares, strict=True))
    try:
        bound = EvictionConfig(**values)
    except InvalidParameterError:
        bound = None
    if 0 < caps[0] < 64:
        bound = None
    if bound is None:
        with pytest.raises(InvalidParameterError):
            Settings(**values)
    else:
        assert Settings(**values).eviction == bound


# The language of --engine and --compare -----------------------------------------------------------


def written(row):
    """Values that a setting takes, as one writes them."""
    if row.choices:
        return st.sampled_from(row.choices)
    if row.type is bool:
        return st.sampled_from(["true", "false"])
    if row.type is int:
        return st.integers(int(row.low), int(row.high)).map(str)
    if row.type is float:
        return st.floats(row.low, row.high).map(repr)
    if row.name == "importance":
        return st.sampled_from(["", "own_scores:Oldest", "a.b:c"])
    return st.sampled_from(["cpu", "cuda:1"])  # other texts: the device's is the one with a rule


@given(st.data())
def test_every_setting_of_a_replay_is_changed_by_its_name_or_its_short_one(data):
    rows = [row for row in Settings.table().values() if REPLAY in row.takers]
    row = data.draw(st.sampled_from(rows))
    text = data.draw(written(row))
    name = data.draw(st.sampled_from([row.name, row.short]))
    try:
        got = changed(Settings(), f"{name}={text}")
    except InvalidParameterError as refusal:  # not with the other defaults, such as a sink > cap
        assert row.name in str(refusal)
        assert row.checked(row.parsed(text)) == row.parsed(text)
        return
    now = getattr(got, row.name)
    assert now is (text == "true") if row.type is bool else str(now) == str(row.type(text))
    assert got.name == (text if row.name in ("name", "engine") else f"streaming,{row.name}={text}")


def test_a_run_is_named_and_changed_by_words():
    base = Settings(max_cache_tokens=100, max_new_tokens=4)
    big = changed(base, "big:max_cache_tokens=5000,layout=segmented,fps=4,max_pixels=0")
    assert (big.name, big.max_cache_tokens, big.sample_fps, big.max_pixels) == ("big", 5000, 4.0, 0)
    assert big.max_new_tokens == 4
    assert changed(base, "delayed_batch").engine == "delayed_batch"
    assert changed(base, "x: delayed_batch , keep_fps = 2 ").keep_fps == 2.0
    first, *others = settings_of(base, "fps=4", ["slow:fps=1", "delayed_batch"])
    assert [run.title for run in (first, *others)] == ["streaming", "slow", "delayed_batch"]
    assert [run.sample_fps for run in (first, *others)] == [4.0, 1.0, 4.0]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("cap=3", "no setting 'cap'"),
        ("max_cache_token=3", "did you mean 'max_cache_tokens'"),
        ("max_cache_tokens=many", "max_cache_tokens must be a whole number, got 'many'"),
        ("fps=often", "sample_fps must be a number, got 'often'"),
        (
            "streem",
            "engine must be one of streaming, delayed_batch, remote, got 'streem'; did you mean",
        ),
        ("compile_chunks=no", "compile_chunks must be one of auto, always, never"),
        ("queue_size=3", "queue_size is a setting of the node only; replays do not take it"),
    ],
)
def test_a_change_that_makes_no_sense_is_refused_in_words(text, words):
    with pytest.raises(InvalidParameterError, match=words):
        changed(Settings(), text)


# A setting is added in one place ------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class WithOneMore(Settings):
    """A copy of the table with a line more. test_write_settings.py and node/test_parameters.py
    look for it in the files and in the declaration."""

    blur: float = shared(
        0.5, "How much to blur.", 0.0, 9.0, change=ALWAYS, flag="--b", verbs=("ask",)
    )


def test_a_new_setting_is_in_the_language_and_given_to_the_node_of_a_replay():
    settings = changed(WithOneMore(), "soft:blur=0.25,fps=1")
    assert (settings.blur, settings.sample_fps) == (0.25, 1.0)
    assert changed(WithOneMore(), "b=0.75").values(NODE, REPLAY)["blur"] == 0.75
    with pytest.raises(InvalidParameterError, match=r"blur must lie in \[0.0, 9.0\], got 10.0"):
        changed(WithOneMore(), "blur=10")


def test_a_new_setting_is_an_option_of_the_verbs_that_it_names():
    verbs, seen = typer.Typer(), []

    @verbs.command()
    @takes_settings("ask", WithOneMore())
    def ask(settings: WithOneMore, loud: bool = False) -> None:
        seen.append(settings)

    told = CliRunner().invoke(verbs, ["--help"], env={"COLUMNS": "200"}).output
    assert "--b " in told and "How much to blur." in told and "0.5" in told
    assert CliRunner().invoke(verbs, ["--b", "2", "--fps", "3"]).exit_code == 0
    assert CliRunner().invoke(verbs, []).exit_code == 0
    assert [(given.blur, given.sample_fps) for given in seen] == [(2.0, 3.0), (0.5, 2.0)]


def test_the_options_of_every_verb_have_the_defaults_of_the_tables():
    commands = typer.main.get_command(app).commands
    commands = {**commands, **commands["demo-model"].commands}
    checked = set()
    for row in (*Settings.table().values(), *DemoOptions.table().values()):
        for verb in row.verbs:
            changed = DEMO.changes() if verb in ("demo", "web") else {}
            (option,) = (p for p in commands[verb].params if p.name == row.name)
            assert option.opts == [row.option]
            assert option.default == changed.get(row.name, row.default)
            checked.add(verb)
    verbs = {"ask", "replay", "rate", "info", "questions", "demo", "history", "web", "serve"}
    assert checked == verbs

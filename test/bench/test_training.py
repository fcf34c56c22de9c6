# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Training computes what the library's model computes, laid out as the engine lays it out."""

import numpy as np
import pytest
import torch
from training.config import model_config
from training.network import Network, norm
from training.rows import SIZES, RowMaker, Words, time_steps
from training.train import main

from stream_vlm_ros.world.draw import glyph_atlas

STREAM = {"rows": 4, "columns": 5}


@pytest.fixture(scope="module")
def model():
    from transformers import Qwen2_5_VLForConditionalGeneration

    torch.manual_seed(0)
    return Qwen2_5_VLForConditionalGeneration(model_config()).eval()


def row(layout, size="short", index=5):
    maker = RowMaker("test", {size: 1.0}, SIZES[size].total, layout=layout)
    batch = maker.batch(index)
    batch = {k: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for k, v in batch.items()}
    return {**batch, "atlas": torch.from_numpy(glyph_atlas())}


def test_a_batch_is_a_function_of_seed_and_index():
    one, other = (RowMaker("s", {"tiny": 1.0}, SIZES["tiny"].total * 2) for _ in range(2))
    other.batch(0)
    first, second = one.batch(7), other.batch(7)
    assert all(np.array_equal(first[key], second[key]) for key in ("ids", "positions", "shapes"))
    assert not np.array_equal(first["shapes"], one.batch(8)["shapes"])


@pytest.mark.parametrize("layout", ["continuous", "segmented"])
def test_many_questions_in_a_row_compute_what_each_alone_computes(model, layout):
    batch = row(layout)
    network = Network(model, compiled=False)
    video = model.config.video_token_id
    with torch.no_grad():
        patches = network.draw(batch)
        hidden = network.hidden(batch, network.see(patches))
        logits = norm(hidden, network.final) @ network.embedding.T
        ids, asked, limit = (batch[key][0] for key in ("ids", "asked", "limit"))
        for number in range(1, len(batch["types"][0]) + 1):
            own = torch.nonzero(asked == number).flatten()
            index = torch.cat([torch.arange(int(limit[own[0]])), own])
            tokens = ids[index][None].long()
            grids = int((tokens == video).sum()) // (batch["rows"] * batch["columns"])
            grid = torch.tensor([[grids, 2 * batch["rows"], 2 * batch["columns"]]])
            seen = model.model.visual(patches[:grids].flatten(0, 1), grid_thw=grid).pooler_output
            embedded = model.get_input_embeddings()(tokens)
            embedded[tokens == video] = seen
            out = model.model.language_model(
                inputs_embeds=embedded,
                position_ids=batch["positions"][0][:, index][:, None].long(),
                use_cache=False,
            )
            alone = model.lm_head(out.last_hidden_state)[0, -len(own) :]
            assert torch.allclose(alone, logits[0, own], atol=2e-5)


def test_a_question_in_training_has_the_positions_that_the_trained_rule_gives():
    batch = row("continuous", "tiny", 3)
    words = Words()
    ids, positions = batch["ids"][0], batch["positions"][0]
    header = len(words.header)
    assert positions[:, :header].tolist() == [list(range(header))] * 3
    cell = batch["rows"] * batch["columns"]
    first = positions[:, header : header + cell]
    assert first[0].unique().tolist() == [header]
    assert first[1].tolist() == [header + i // batch["columns"] for i in range(cell)]
    assert first[2].tolist() == [header + i % batch["columns"] for i in range(cell)]
    start = int(torch.nonzero(batch["asked"][0] == 1)[0])
    seen = int(batch["limit"][0][start])
    assert ids[start] == words.vision_end
    assert positions[:, start].tolist() == [int(positions[:, :seen].max()) + 1] * 3


@pytest.mark.parametrize("out", ["", "a file", "of another's", "nowhere/new"])
def test_training_refuses_a_folder_that_is_not_its_own(tmp_path, monkeypatch, capsys, out):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a file").touch()
    (tmp_path / "nowhere").symlink_to("/dev/null")
    (tmp_path / "of another's").mkdir()
    (tmp_path / "of another's" / "moments.txt").touch()
    with pytest.raises(SystemExit) as ended:
        main(["--out", out])
    assert ended.value.code == 2
    words = {
        "": "--out is empty",
        "a file": "a file is a file, not a folder",
        "of another's": "of another's holds moments.txt, which this program did not put there",
        "nowhere/new": "--out nowhere/new cannot be used",
    }
    assert f"error: {words[out]}" in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.rglob("*")) == [
        "a file", "moments.txt", "nowhere", "of another's",
    ]  # fmt: skip


def test_time_steps_are_two_a_second_rounded_down_but_for_a_hair():
    assert time_steps([0.0, 0.4999, 0.9, 1.0, 3599.9995]) == [0, 1, 1, 2, 7200]


def test_the_engine_lays_a_stream_out_as_training_did():
    from training.rows import Prefix

    from stream_vlm_ros.world.evaluate import MODEL, engine_for, load
    from stream_vlm_ros.world.questions import History
    from stream_vlm_ros.world.world import World

    trained, processor = load(MODEL)
    for layout in ("continuous", "segmented"):
        world, words = World(77), Words()
        stamps = [index / 2 for index in range(24)]
        assert History(world.sightings(stamps[-1]), stamps).now == 11.5
        engine = engine_for(trained, processor, layout)
        prefix = Prefix()
        prefix.text(words.header)
        base = prefix.next
        for first in range(0, 24, 4):
            times = stamps[first : first + 4]
            engine.append_video_chunk([world.render(t) for t in times], timestamps=times)
            steps = time_steps(times[::2])
            if layout == "continuous":
                prefix.vision(words.video, steps, **STREAM, base=base)
            else:
                if first:
                    prefix.text(words.open_video)
                steps = [step - time_steps(times[:1])[0] for step in steps]
                prefix.vision(words.video, steps, **STREAM, base=prefix.next)
                prefix.text(words.close_video)
        held = engine.cache_manager.ledger.positions().tolist()
        assert held == np.array(prefix.positions).T.tolist()

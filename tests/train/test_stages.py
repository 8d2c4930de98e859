"""Every stage from settings to a bundle that summarizes, on a tiny random model and 64 rows."""

from __future__ import annotations

import json
import math
import shutil
from collections import Counter
from pathlib import Path

import pytest
import synthetic
import torch
from commands import write_rows
from qdengine import Engine, checkpoint, jsonl
from qdengine.errors import ConfigError
from qdengine.train import config, rows, stages
from tiny import tiny_bundle


@pytest.fixture(scope="session")
def teacher(tmp_path_factory) -> Path:
    """Another model of the same vocabulary."""
    return tiny_bundle(tmp_path_factory.mktemp("teacher"), "qwen3")


def metrics(folder: Path) -> list[dict]:
    """Every line, which must be JSON without NaN."""

    def refuse(name):
        raise AssertionError(f"{name} is no JSON")

    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line, parse_constant=refuse) for line in lines]


def curve(folder: Path, name: str) -> list[float]:
    return [row[name] for row in metrics(folder) if name in row]


def check(bundle: Path, folder: Path) -> None:
    """Files are whole, the loss on other rows has fallen, and the bundle summarizes."""
    assert bundle == folder / "bundle"
    names = {path.name for path in folder.iterdir()}
    assert names == {
        "run.yaml", "inputs.json", ".lock", "metrics.jsonl", "loss.png", "bundle", "checkpoint-10", "checkpoint-12",
    }  # fmt: skip
    assert (folder / "loss.png").read_bytes().startswith(b"\x89PNG")
    # At step 1 the learning rate is still 0.
    first, *_, last = curve(folder, "eval_loss")
    assert last < first and curve(folder, "learning_rate")[0] == 0
    assert len(curve(folder, "loss")) == len(curve(folder, "eval_loss")) == 12
    loaded = checkpoint.load(bundle)
    assert all(tensor.dtype == torch.bfloat16 for tensor in loaded.weights().values())
    requests = [{name: row[name] for name in ("query", "title", "document")} for row in synthetic.rows(3)]
    with Engine.from_pretrained(bundle, "cpu", "float32") as engine:
        assert all(summary.error is None for summary in engine.summarize(requests))


SHORT = {"steps": 12, "evaluate_every": 1, "save_every": 5, "warmup": 1, "decay": 0.5}
SCRATCH = {"layers": 2, "width": 32, "heads": 2}
SFT = {
    "full": {},
    "lora": {"lora": {"rank": 8, "dropout": 0.1}, "training": SHORT | {"learning_rate": 1e-2}},
    "layers": {"student": {"layers": [0]}},
    "scratch": {"student": {"scratch": SCRATCH}},
    "query first": {"student": {"prompt": "query_first"}},
    "bfloat16": {"training": SHORT | {"precision": "bfloat16"}},
}


@pytest.mark.parametrize("case", SFT)
def test_sft(run, case):
    settings = run(**{"training": SHORT, **SFT[case]})
    short = settings.training.model_copy(update={"save_every": 10})
    settings = settings.model_copy(update={"training": short})
    check(stages.sft(settings), settings.output)
    assert config.load(config.Sft, settings.output / "run.yaml") == settings
    shape = checkpoint.load(settings.output / "bundle").config
    assert shape.layers == (1 if case == "layers" else 2)
    assert shape.family == ("gpt2" if case == "scratch" else "llama")
    assert all(0 <= value <= 1 for value in curve(settings.output, "accuracy"))


@pytest.mark.parametrize("kind", [None, "forward_kl", "reverse_kl", "jsd"])
def test_distill(run, teacher, kind):
    more = {} if kind is None else {"teacher": str(teacher), "divergence": {"kind": kind, "temperature": 2.0}}
    settings = run(config.Distill, training=SHORT | {"save_every": 10}, **more)
    check(stages.distill(settings), settings.output)
    assert bool(curve(settings.output, "divergence")) == (kind is not None)
    if kind is not None:
        for row in metrics(settings.output):
            if "loss" in row:
                assert row["loss"] == pytest.approx((row["label_loss"] + row["divergence"]) / 2, rel=1e-4)


@pytest.mark.parametrize("case", ["full", "lora", "sft_share"])
def test_dpo(run, pair_data, case):
    more = {"lora": {"lora": {"rank": 8}}, "sft_share": {"sft_share": 0.5}}.get(case, {})
    settings = run(config.Dpo, data=pair_data, training=SHORT | {"save_every": 10, "learning_rate": 1e-3}, **more)
    check(stages.dpo(settings), settings.output)
    first, *_, last = (row for row in metrics(settings.output) if "eval_loss" in row)
    assert first["eval_margin"] == 0 and last["eval_margin"] > 1 and last["eval_accuracy"] > 0.8
    if case != "sft_share":
        assert first["eval_loss"] == pytest.approx(math.log(2), rel=1e-5)
    assert all(row["items"] == 4 for row in metrics(settings.output) if "items" in row), "two packs of two pairs"


def test_both_models_compute_in_the_precision_that_is_asked(run, bundle, pair_data):
    """At step 1 they are one and the same model, in training as in evaluation."""
    training = {"steps": 1, "evaluate_every": 1, "precision": "bfloat16"}
    settings = run(config.Dpo, data=pair_data, training=training)
    stages.dpo(settings)
    assert curve(settings.output, "margin") == curve(settings.output, "eval_margin") == [0]
    settings = run(config.Distill, output=f"{settings.output}-2", teacher=str(bundle), training=training)
    stages.distill(settings)
    assert all(abs(value) < 1e-5 for value in curve(settings.output, "divergence"))


def test_without_validation(run):
    settings = run(training={"steps": 2}, data={"validation": []})
    stages.sft(settings)
    assert len(curve(settings.output, "loss")) == 2 and not curve(settings.output, "eval_loss")


def test_a_finished_run_is_left_alone(run, capsys, monkeypatch):
    settings = run(training={"steps": 1})
    bundle = stages.sft(settings)
    before = {path: path.stat().st_mtime_ns for path in settings.output.rglob("*")}
    monkeypatch.setattr("qdengine.train.rows.read", None)
    capsys.readouterr()
    assert stages.sft(settings) == bundle and "is there already" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in settings.output.rglob("*")} == before


def test_a_run_goes_on_with_what_it_began_with(run, bundle, teacher, tmp_path):
    """Rows or weights that changed under their names would make two runs of one."""
    rows_file = write_rows(tmp_path / "rows.jsonl", synthetic.rows(5))
    for name in ("student", "teacher"):
        shutil.copytree({"student": bundle, "teacher": teacher}[name], tmp_path / name)
    settings = run(
        config.Distill, data={"train": [rows_file]}, student={"init": str(tmp_path / "student")},
        teacher=str(tmp_path / "teacher"), training={"steps": 1},
    )  # fmt: skip
    shutil.rmtree(stages.distill(settings))
    write_rows(tmp_path / "rows.jsonl", [{**row, "query": row["query"] + "?"} for row in synthetic.rows(5)])
    with pytest.raises(ConfigError, match=r"the train of .* changed since the run began"):
        stages.distill(settings)
    write_rows(tmp_path / "rows.jsonl", synthetic.rows(5))
    for name in ("student", "teacher"):
        note = tmp_path / name / checkpoint.DESCRIPTION
        text = note.read_text(encoding="utf-8")
        note.write_text(text + "\n", encoding="utf-8")
        with pytest.raises(ConfigError, match=rf"the {name} of .* changed since the run began"):
            stages.distill(settings)
        note.write_text(text, encoding="utf-8")
    assert stages.distill(settings).is_dir()


def test_the_seed_decides(run, tmp_path):
    losses = []
    for seed, name in ((0, "a"), (0, "b"), (1, "c")):
        settings = run(output=str(tmp_path / name), training={"steps": 3, "seed": seed}, lora={"rank": 2})
        stages.sft(settings)
        losses.append(curve(settings.output, "loss"))
    assert losses[0] == losses[1] != losses[2]


def test_frozen_weights_stay(run, bundle):
    settings = run(student={"frozen": ["embed", "layers.0."]}, training={"steps": 3})
    found, before = checkpoint.load(stages.sft(settings)).weights(), checkpoint.load(bundle).weights()
    same = {name for name in found if torch.equal(found[name], before[name].bfloat16())}
    assert same >= {name for name in found if name.startswith(("embed", "layers.0."))}
    assert all(f"layers.1.{name}.weight" not in same for name in ("qkv", "out", "gate_up", "down"))


def test_what_is_trained_on_is_told(run, tmp_path, capsys):
    good = synthetic.rows(5)
    path = write_rows(tmp_path / "rows.jsonl", [*good, {**good[0], "id": "x", "query": "why " * 500}])
    stages.sft(run(data={"train": [path]}, training={"steps": 1}))
    assert "5 summaries in 3 packs of" in (told := capsys.readouterr().err)
    assert "left out: 1 no room for the document" in told


def test_packs_are_no_larger_than_asked(bundle, tmp_path, pair_data):
    """Also of pairs, which stand one after the other."""
    document, same = synthetic.page(0)[1], synthetic.pairs(2)
    many = [{**same[0], "query": f"Query {i}?", "document": document, "id": str(i)} for i in range(7)]
    path = write_rows(tmp_path / "pairs.jsonl", many)
    data = config.Data(train=[path], validation=[path], queries=3, max_tokens=256)
    loaded = checkpoint.load(bundle)
    packer = stages.Packer(loaded.tokenizer(), loaded.prompt, 1, 256, 512, data.absent)
    train, validation = stages._pair_packs(data, packer, Counter())
    for packs in (train, validation):
        assert [len(pack.branches) for pack in packs] == [6, 6, 2]
        for pack in packs:
            ids = [branch.id for branch in pack.branches]
            assert ids[::2] == ids[1::2], "the better one, then the worse"
    path = write_rows(tmp_path / "rows.jsonl", [{**row, "summary": row["chosen"]} for row in many])
    data = config.Data(train=[path], validation=[path], queries=3, packs=2, max_tokens=256)
    train, validation = stages.row_packs(data, packer, Counter())
    assert [len(pack.branches) for pack in train] == [3, 3]
    assert [len(pack.branches) for pack in validation] == [3, 3, 1]
    assert len(rows.read([path])) == len([*jsonl.read(path)]) == 7

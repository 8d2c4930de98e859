"""`qdengine train`, as a user meets it."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import synthetic
import yaml
from commands import fails, fine, write_rows
from qdengine import checkpoint
from qdengine.train import cli, config


@pytest.fixture
def settings_file(tmp_path, bundle, data) -> Path:
    whole = {
        "output": str(tmp_path / "run"), "data": data, "student": {"init": str(bundle)},
        "training": {"steps": 50, "device": "cpu", "save_every": 1},
    }  # fmt: skip
    path = tmp_path / "sft.yaml"
    path.write_text(yaml.safe_dump(whole), encoding="utf-8")
    return path


def test_help_needs_nothing(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    text = fine("train", "--help")
    assert all(name in text for name in ("sft", "distill", "dpo", "pairs"))


@pytest.mark.parametrize("missing", [("peft",), ("peft", "yaml")])
def test_missing_packages_are_named(monkeypatch, settings_file, missing):
    whole = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in missing else whole(name))
    message = f"training needs the packages {', '.join(missing)}: pip install 'qdengine[train]'"
    fails(message, "train", "sft", settings_file)


def test_what_is_needed_is_what_the_extra_installs():
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    listed = text.partition("\ntrain = [")[2].partition("]")[0]
    assert all({"yaml": "pyyaml"}.get(name, name) in listed for name in cli._NEEDED)


def test_sft(settings_file, tmp_path):
    out = fine("train", "sft", settings_file, "training.steps=2", "lora.rank=2", "data.rows=8")
    assert out == f"{tmp_path / 'run' / 'bundle'}\n"
    assert checkpoint.load(out.strip()).config.layers == 2
    noted = config.load(config.Sft, tmp_path / "run" / "run.yaml")
    assert (noted.training.steps, noted.lora, noted.data.rows) == (2, config.Lora(rank=2), 8)
    assert fine("train", "sft", settings_file, "training.steps=2", "lora.rank=2", "data.rows=8") == out
    fails("run.yaml has other settings", "train", "sft", settings_file, "training.steps=3")


def test_distill_and_dpo(settings_file, tmp_path, bundle, pair_data):
    out = fine("train", "distill", settings_file, "training.steps=1", f"teacher={bundle}", f"output={tmp_path / 'a'}")
    assert "divergence" in (Path(out.strip()).parent / "metrics.jsonl").read_text()
    data = [f"data.{name}=[{pair_data[name][0]}]" for name in ("train", "validation")]
    out = fine("train", "dpo", settings_file, "training.steps=1", f"output={tmp_path / 'b'}", *data)
    assert "margin" in (Path(out.strip()).parent / "metrics.jsonl").read_text()


def test_pairs(tmp_path, bundle):
    path = tmp_path / "pairs.yaml"
    rows = write_rows(tmp_path / "rows.jsonl", synthetic.rows(10))
    path.write_text(yaml.safe_dump({"output": str(tmp_path / "pairs.jsonl"), "train": [rows], "student": str(bundle)}))
    out = fine("train", "pairs", path, "precision=float32", "samples=4", "max_new_tokens=12", "margin=0.01")
    assert out == f"{tmp_path / 'pairs.jsonl'}\n" and Path(out.strip()).exists()


@pytest.mark.parametrize("stage", ["sft", "distill", "dpo", "pairs"])
def test_bad_settings_end_in_one_line(tmp_path, settings_file, stage):
    path = tmp_path / "bad.yaml"
    path.write_text("a: [")
    fails("bad.yaml is not YAML", "train", stage, path)
    path.write_text("{}")
    fails("output: Field required", "train", stage, path)
    fails("does not exist", "train", stage, tmp_path / "none.yaml", code=2)
    fails("give NAME=VALUE", "train", stage, settings_file, "steps")


def test_a_bad_row_ends_in_one_line(settings_file, tmp_path):
    path = write_rows(tmp_path / "rows.jsonl", [*synthetic.rows(1), {"query": "x"}])
    fails("rows.jsonl: row 2: the request has no 'document'", "train", "sft", settings_file, f"data.train=[{path}]")

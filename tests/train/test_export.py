"""The last stage: scores, model card, 8 bits, and the small file that restores the student."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from qdengine import Engine, checkpoint, delta, jsonl
from qdengine.errors import ConfigError
from qdengine.train import config, stages
from qdengine.train.export import _told_stage, export, history, inherited
from tiny import TEXT, tiny_bundle, tokenizer_json

DOCUMENT = TEXT.replace("\n", " ")
ROWS = [
    {"id": str(i), "query": query, "title": "", "document": DOCUMENT, "summary": summary}
    for i, (query, summary) in enumerate(
        [
            ("what jumps", "The quick brown fox jumps over the lazy dog."),
            ("when do trains leave", "Trains leave at night and arrive in the morning."),
            ("rain", "Rain falls on the roof and runs into the barrel."),
        ]
    )
]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A bfloat16 base, rows, and the bundle of two runs: SFT, and SFT once more on two of the base's layers."""
    folder = tmp_path_factory.mktemp("export")
    source = checkpoint.load(tiny_bundle(folder))
    weights = {name: tensor.bfloat16() for name, tensor in source.weights().items()}
    checkpoint.save_bundle(folder / "base", source.config, weights, tokenizer_json(), source.prompt, (1,), "test")
    (folder / "rows.jsonl").write_bytes(b"".join(map(jsonl.dumps, ROWS)))
    start = folder / "base"
    for name in ("first", "second"):
        start = stages.sft(
            config.Sft.model_validate(
                {
                    "output": folder / name,
                    "data": {
                        "train": [folder / "rows.jsonl"],
                        "validation": [folder / "rows.jsonl"],
                        "max_tokens": 400,
                    },
                    "student": {"init": str(start), "frozen": ["embed"]},
                    "training": {"steps": 2, "batch": 1, "learning_rate": 0.01, "evaluate_every": 2, "device": "cpu"},
                }
            )
        )
    return {"folder": folder, "base": folder / "base", "student": start}


def settings(made: dict[str, Path], output: Path, **changes: Any) -> config.Export:
    plain = {
        "output": output,
        "student": str(made["student"]),
        "name": "tiny",
        "data": ["three rows, written for the tests"],
        "licence": "Apache 2.0",
        "limits": ["It knows three answers."],
    }
    return config.Export.model_validate(plain | changes)


def logits(bundle: Path) -> torch.Tensor:
    loaded = checkpoint.load(bundle)
    from qdengine.model.reference import ReferenceModel

    weights = {name: tensor.float() for name, tensor in loaded.weights().items()}
    ids = torch.tensor(loaded.tokenizer().encode(DOCUMENT).ids).long().unsqueeze(0)
    with torch.no_grad():
        return ReferenceModel.from_weights(loaded.config, weights)(ids)


def test_the_bundle_is_the_student(made, tmp_path):
    bundle = export(settings(made, tmp_path / "out"))
    assert torch.equal(logits(bundle), logits(made["student"]))
    assert export(settings(made, tmp_path / "out")) == bundle
    with pytest.raises(ConfigError, match="has other settings"):
        export(settings(made, tmp_path / "out", name="other"))
    shutil.copytree(made["student"], tmp_path / "student")
    export(settings(made, tmp_path / "again", student=str(tmp_path / "student")))
    shutil.rmtree(tmp_path / "student")
    shutil.copytree(made["folder"] / "first" / "bundle", tmp_path / "student")
    with pytest.raises(ConfigError, match=r"the student of .*again changed since"):
        export(settings(made, tmp_path / "again", student=str(tmp_path / "student")))
    answers = []
    for path in (bundle, made["student"]):
        with Engine.from_pretrained(path, "cpu", "float32") as engine:
            answers.append([one.token_ids for one in engine.summarize(ROWS)])
    assert answers[0] == answers[1]


def test_scores_and_card(made, tmp_path):
    bundle = export(
        settings(made, tmp_path / "out", evaluate=[made["folder"] / "rows.jsonl"], precision="int8", rows=2)
    )
    report = json.loads((tmp_path / "out" / "report.json").read_text())["rows.jsonl"]
    with Engine.from_pretrained(bundle) as engine:
        assert set(report) == {engine.precision, "int8"}
    assert all(one["rows"] == 2 and one["failed"] == 0 for one in report.values())
    text = (bundle / "README.md").read_text(encoding="utf-8")
    scored = f"| rows.jsonl (2) | int8 | {report['int8']['scores']['rouge1']['mean']:.2f} |"
    for wanted in ("# tiny", "three rows, written for the tests", "It knows three answers.", "Apache 2.0", scored):
        assert wanted in text, wanted
    assert text.index("1. `qdengine train sft` of `base`") < text.index("2. `qdengine train sft` of `bundle`")
    assert "2 steps of 1 packs, learning rate 0.01" in text and "validation loss" in text
    stored = checkpoint._read(bundle / checkpoint.WEIGHTS)
    assert stored["layers.1.qkv.weight"].dtype == torch.int8


def test_history_is_the_chain_of_runs(made):
    first, second = history(made["student"])
    assert (first.command, second.command) == ("qdengine train sft", "qdengine train sft")
    assert Path(second.settings["student"]["init"]) == made["folder"] / "first" / "bundle"
    assert second.figures["step"] == 2 and second.figures["eval_loss"] > 0
    assert history(made["base"]) == []


def test_history_goes_through_an_export(made, tmp_path):
    """Of a bundle that was exported, and of what was trained from one."""
    again = export(settings(made, tmp_path / "out"))
    assert [stage.settings["output"] for stage in history(again)] == [
        str(made["folder"] / n) for n in ("first", "second")
    ]
    text = (
        export(settings(made, tmp_path / "more", student=str(again))).joinpath("README.md").read_text(encoding="utf-8")
    )
    assert "2. `qdengine train sft` of `bundle`" in text


def test_steps_of_tokens_are_told(made):
    stage = history(made["student"])[0]
    stage.settings["training"] |= {"tokens": 1024, "batch": 2}
    assert "2 steps of 2048 tokens, learning rate 0.01" in _told_stage(stage)


def test_what_travels_is_what_was_scored(made, tmp_path):
    bundle = export(settings(made, tmp_path / "out", base=str(made["base"]), evaluate=[made["folder"] / "rows.jsonl"]))
    installed = delta.install(tmp_path / "out" / "delta.safetensors", made["base"], tmp_path / "installed")
    assert torch.equal(logits(installed), logits(bundle)) and not (tmp_path / "out" / "restored").exists()
    assert (installed / "README.md").read_bytes() == (bundle / "README.md").read_bytes()
    start, end, found = logits(made["base"]), logits(made["student"]), logits(bundle)
    assert (found - end).norm() < 0.7 * (end - start).norm()


@pytest.mark.parametrize("place", ["_scores", "card", "delta.set_card", "checkpoint.save_bundle"])
def test_a_stopped_export_goes_on(made, tmp_path, monkeypatch, place):
    changes = {"base": str(made["base"]), "evaluate": [made["folder"] / "rows.jsonl"]}
    wanted = export(settings(made, tmp_path / "whole", **changes))
    with monkeypatch.context() as patch:
        # The first bundle that is saved is the one of which the scores are.
        left = iter([None] if place == "checkpoint.save_bundle" else [])
        owner, _, name = f"qdengine.train.export.{place}".rpartition(".")
        whole = checkpoint.save_bundle
        patch.setattr(f"{owner}.{name}", lambda *given: whole(*given) if next(left, 1) is None else 1 / 0)
        with pytest.raises(ZeroDivisionError):
            export(settings(made, tmp_path / "out", **changes))
    assert not (tmp_path / "out" / "bundle").exists()
    found = export(settings(made, tmp_path / "out", **changes))
    names = {path.name for path in found.iterdir()}
    assert names == {path.name for path in wanted.iterdir()}
    for name in names - {checkpoint.DESCRIPTION}:
        assert (found / name).read_bytes() == (wanted / name).read_bytes(), name
    assert {path.name for path in (tmp_path / "out").iterdir()} == {p.name for p in (tmp_path / "whole").iterdir()}


def test_stages_of_a_student_without_its_runs_are_those_on_its_card(made, tmp_path):
    bundle = export(settings(made, tmp_path / "out"))
    first, second = inherited(str(bundle))
    assert first.startswith("`qdengine train sft` of `base`") and second.startswith("`qdengine train sft` of `bundle`")
    assert inherited(str(made["base"])) == inherited(str(tmp_path / "gone")) == []


def test_layers_need_their_base(made, tmp_path):
    for alone in ({"layers": [0]}, {"rank": 2}):
        with pytest.raises(ValidationError, match="give base"):
            settings(made, tmp_path / "out", **alone)
    base = str(made["base"])
    with pytest.raises(ConfigError, match="has 2, and no layer 7"):
        export(settings(made, tmp_path / "out", layers=[0, 7], base=base))
    with pytest.raises(ConfigError, match=r"was not made of 1 layers of .*: layers\.1\..* and would be not there"):
        export(settings(made, tmp_path / "out", layers=[0], base=base))
    with pytest.raises(ValidationError, match="layers must ascend"):
        settings(made, tmp_path / "out", layers=[1, 0], base=base)
    other = tiny_bundle(tmp_path, "gpt2")
    with pytest.raises(ConfigError, match="give its own base"):
        export(settings(made, tmp_path / "out", base=str(other)))
    assert not (tmp_path / "out").exists()


def test_rows_that_changed_since(made, tmp_path):
    path = tmp_path / "rows.jsonl"
    shutil.copy(made["folder"] / "rows.jsonl", path)
    export(settings(made, tmp_path / "out", evaluate=[path]))
    path.write_bytes(b"".join(jsonl.dumps(row | {"summary": "Another."}) for row in ROWS))
    with pytest.raises(ConfigError, match=r"the rows\.jsonl of .* changed since"):
        export(settings(made, tmp_path / "out", evaluate=[path]))
    (tmp_path / "out" / "inputs.json").write_text("[")
    with pytest.raises(ConfigError, match=r"inputs\.json is damaged"):
        export(settings(made, tmp_path / "out", evaluate=[path]))
    (tmp_path / "out" / config.SETTINGS).write_bytes(b"\xff")
    with pytest.raises(ConfigError, match=r"run\.yaml is damaged"):
        export(settings(made, tmp_path / "out", evaluate=[path]))

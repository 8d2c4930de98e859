"""Settings: what is wrong is said before anything is loaded, and by its name."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import synthetic
import torch
import yaml
from commands import write_rows
from pydantic import ValidationError
from qdengine import checkpoint, convert
from qdengine.checkpoint import Checkpoint
from qdengine.errors import ConfigError, QdengineError, StudentError, TrainingError
from qdengine.jsonl import JsonlError
from qdengine.train import config, stages
from tiny import tiny_bundle, tiny_hf_folder


@pytest.fixture
def whole(bundle, data, tmp_path):
    return {"output": str(tmp_path / "run"), "data": data, "student": {"init": str(bundle)}}


def load(tmp_path: Path, settings, *overrides: str, kind=config.Sft):
    path = tmp_path / "settings.yaml"
    path.write_text(settings if isinstance(settings, str) else yaml.safe_dump(settings), encoding="utf-8")
    return config.load(kind, path, overrides)


def test_defaults_and_overrides(tmp_path, whole):
    assert load(tmp_path, whole) == config.Sft.model_validate(whole)
    found = load(
        tmp_path, {**whole, "lora": {"rank": 4}}, "training.steps=7", "training.learning_rate=1e-4", "lora=null",
        "data.share_answers=false", "student.layers=[0, 1]", "student.frozen=[embed]", "data.absent='No: x=y.'",
    )  # fmt: skip
    assert (found.training.steps, found.training.learning_rate, found.lora) == (7, 1e-4, None)
    assert (found.data.share_answers, found.student.layers, found.student.frozen) == (False, [0, 1], ["embed"])
    assert found.data.absent == "No: x=y."
    assert load(tmp_path, whole, "lora.rank=2").lora == config.Lora(rank=2), "a section that the file lacks"
    assert load(tmp_path, whole, "training.steps=1", "training.steps=2").training.steps == 2


def test_settings_come_back_as_they_were_noted(tmp_path, whole):
    found = load(tmp_path, whole, "lora.rank=2", "student.scratch={layers: 1, width: 8, heads: 2}")
    assert load(tmp_path, config.dump(found)) == found


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.step=1", "training.step: Extra inputs are not permitted, not '1'"),
        ("train.steps=1", "train: Extra inputs"),
        ("training.steps=0", "training.steps: .* greater than or equal to 1, not '0'"),
        ("training.steps=many", "training.steps: .*valid integer.*, not 'many'"),
        ("training.steps=1.5", "training.steps: .*integer.*, not '1.5'"),
        ("training.batch=null", "training.batch: .*, not 'None'"),
        ("training.learning_rate=0", "training.learning_rate: .*greater than 0"),
        ("training.learning_rate=.inf", "training.learning_rate: .*finite"),
        ("training.learning_rate=.nan", "training.learning_rate"),
        ("training.epochs=-1", "training.epochs"),
        ("training.decay=1.1", "training.decay: .*less than or equal to 1"),
        ("training.warmup=-1", "training.warmup"),
        ("training.precision=float16", "training.precision: .*'float32' or 'bfloat16', not 'float16'"),
        ("training.device=tpu", "training.device: "),
        ("training.seed=-1", "training.seed"),
        ("training.log_every=3", r"training: .*save_every \(100\) must be a multiple of log_every \(3\)$"),
        ("training=fast", "training: .*, not 'fast'"),
        ("data.train=[]", "data.train: .*at least 1"),
        ("data.train=[nowhere.jsonl]", "data.train.0: .*nowhere.jsonl is not there$"),
        ("data.validation=[nowhere.jsonl]", "data.validation.0: .*nowhere.jsonl is not there"),
        ("data.max_tokens=63", "data.max_tokens"),
        ("data.absent=''", "data.absent"),
        ("data.absent_share=2", "data.absent_share"),
        ("data.queries=0", "data.queries"),
        ("data.packs=0", "data.packs"),
        ("student.init=[a]", "student.init: .*valid string"),
        ("student.layers=[1, 0]", r"student\.layers: .*layers must ascend, not \[1, 0\]$"),
        ("student.layers=[0, 0]", r"student\.layers: .*layers must ascend"),
        ("student.layers=[-1]", "student.layers.0: "),
        ("student.layers=[]", "student.layers: "),
        ("student.prompt=query", "student.prompt: .*'document_first', 'query_first' or 'sentences'"),
        ("student.frozen=embed", "student.frozen: .*list"),
        ("student.scratch={layers: 1, width: 9, heads: 2}", r"student.scratch: .*width \(9\) must be a multiple of"),
        ("student.scratch={layers: 1, width: 8}", "student.scratch.heads: Field required$"),
        ("lora.dropout=1", "lora.dropout"),
        ("training.tokens=1000", "training.tokens: .*multiple of 128"),
        ("lora.rank=0", "lora.rank"),
        ("lora.alpha=1", "lora.alpha: Extra"),
        ("output=null", "output: "),
    ],
)  # fmt: skip
def test_the_setting_at_fault_is_named(tmp_path, whole, override, message):
    with pytest.raises(ConfigError, match=message) as error:
        load(tmp_path, whole, override)
    assert "settings.yaml" in str(error.value) and "\n" not in str(error.value)


def test_settings_that_exclude_each_other(tmp_path, whole):
    scratch = "student.scratch={layers: 1, width: 8, heads: 2}"
    with pytest.raises(ConfigError, match=r"student: .*layers and scratch exclude each other"):
        load(tmp_path, whole, scratch, "student.layers=[0]")
    for override in (scratch, "student.layers=[0]"):
        with pytest.raises(ConfigError, match=r"preferences are relative to student\.init"):
            load(tmp_path, whole, override, kind=config.Dpo)
    weights = {name: 0 for name in ("rouge", "verbatim", "coverage", "length")}
    pairs = {"output": "x", "train": whole["data"]["train"], "student": "x", "weights": weights}
    with pytest.raises(ConfigError, match=r"weights: .*one weight at least must be above 0"):
        load(tmp_path, pairs, kind=config.Pairs)


@pytest.mark.parametrize(
    ("kind", "override", "message"),
    [
        (config.Dpo, "beta=0", "beta: "),
        (config.Dpo, "sft_share=-1", "sft_share: "),
        (config.Dpo, "teacher=x", "teacher: Extra"),
        (config.Distill, "divergence.kind=kl", "divergence.kind: .*'forward_kl', 'reverse_kl' or 'jsd'"),
        (config.Distill, "divergence.temperature=0", "divergence.temperature: "),
        (config.Distill, "divergence.share=1.5", "divergence.share: "),
        (config.Sft, "divergence.share=0.5", "divergence: Extra"),
    ],
)
def test_settings_of_one_stage(tmp_path, whole, kind, override, message):
    with pytest.raises(ConfigError, match=message):
        load(tmp_path, whole, override, kind=kind)


def test_several_faults(tmp_path, whole):
    with pytest.raises(ConfigError, match=r"data\.queries: .* \(and 1 more\)$"):
        load(tmp_path, whole, "data.queries=0", "training.batch=0")
    with pytest.raises(ConfigError, match=r"output: Field required \(and 2 more\)$"):
        load(tmp_path, "")


@pytest.mark.parametrize(
    ("text", "message"), [("a: [", "is not YAML"), ("- a", "holds no settings, but list"), ("just text", "but str")]
)
def test_what_is_no_settings(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message) as error:
        load(tmp_path, text)
    assert "\n" not in str(error.value)
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"bytes\.yaml is not YAML"):
        config.load(config.Sft, tmp_path / "bytes.yaml")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.steps", "'training.steps': give NAME=VALUE"),
        ("=1", "'=1': give NAME=VALUE"),
        ("training.=1", "'training.=1': give NAME=VALUE"),
        ("output.x=1", "'output.x=1': output is no section"),
        ("data.packs=[", r"'data.packs=\[': the value is not YAML"),
    ],
)
def test_overrides_that_are_none(tmp_path, whole, override, message):
    with pytest.raises(ConfigError, match=message):
        load(tmp_path, whole, override)


@pytest.fixture
def no_weights(monkeypatch):
    def fail(self):
        raise AssertionError("the weights were loaded")

    monkeypatch.setattr(Checkpoint, "weights", fail)


WRONG = [
    ("student", {"init": "no-such-student"}, StudentError, "no-such-student"),
    ("student", {"layers": [0, 2]}, ConfigError, r"student\.layers: 2, and llama has 2 layers"),
    ("student", {"frozen": ["embed", "layer.0"]}, ConfigError, r"student\.frozen: no weight.* begins with 'layer\.0'"),
    ("student", {"frozen": ["embed", "layers", "norm"]}, ConfigError, r"student\.frozen: .*leaves nothing to train"),
    ("student", {"frozen": ["layers"], "lora": {}}, ConfigError, r"student\.frozen: .*leaves nothing to train"),
    ("data", {"max_tokens": 513}, ConfigError, r"data\.max_tokens is 513; there are 512 positions"),
    ("data", {"absent": "x " * 600, "train": "absent"}, TrainingError, r"data\.train .*: 4 summary too long"),
    ("data", {"train": "bad"}, JsonlError, "row 2: summary must be a text"),
    ("data", {"train": "empty"}, TrainingError, r"data\.train has nothing that can be used: no rows"),
    ("data", {"validation": "empty"}, TrainingError, r"data\.validation has nothing"),
    ("training", {"tokens": 128}, ConfigError, r"training\.tokens is 128, and a pack has [0-9]+; give [0-9]+$"),
    ("training", {"device": "cuda"}, ConfigError, r"training\.device is cuda, and there is none"),
]  # fmt: skip


@pytest.mark.parametrize(("section", "change", "kind", "message"), WRONG)
def test_before_the_model_loads(run, no_weights, tmp_path, monkeypatch, section, change, kind, message):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    good = synthetic.rows(4)
    files = {
        "bad": [good[0], {**good[1], "summary": 1}],
        "empty": [],
        "absent": [{**row, "summary": ""} for row in good],
    }
    change = copy.copy(change)
    for name in ("train", "validation"):
        if name in change:
            change[name] = [write_rows(tmp_path / "rows.jsonl", files[change[name]])]
    lora = {"lora": change.pop("lora")} if "lora" in change else {}
    settings = run(**{section: change}, **lora)
    with pytest.raises(kind, match=message):
        stages.sft(settings)
    assert not settings.output.exists(), "the folder is not taken by a run that cannot be"


def test_teachers_that_do_not_fit(run, request, tmp_path):
    folder = tiny_hf_folder(tmp_path / "other-hf")
    text = (folder / "tokenizer.json").read_text(encoding="utf-8")
    (folder / "tokenizer.json").write_text(text.replace("<|im_end|>", "<|end|>"), encoding="utf-8")
    assert text != (folder / "tokenizer.json").read_text(encoding="utf-8")
    other = convert.convert(folder, tmp_path / "other", dtype="float32")
    request.getfixturevalue("no_weights")
    with pytest.raises(ConfigError, match=r"has another vocabulary than .*; leave `teacher` out"):
        stages.distill(run(config.Distill, teacher=str(other)))
    with pytest.raises(QdengineError, match="no-such-teacher"):
        stages.distill(run(config.Distill, teacher="no-such-teacher"))
    file = other / checkpoint.DESCRIPTION
    short = json.loads(file.read_text())
    short["architecture"]["max_positions"] = 128
    file.write_text(json.dumps(short))
    with pytest.raises(ConfigError, match=r"data\.max_tokens is 256; there are 128 positions"):
        stages.distill(run(config.Distill, teacher=str(other)))
    assert not (tmp_path / "run").exists()


def test_a_student_without_a_stop_token(run, request, tmp_path):
    bundle = tiny_bundle(tmp_path)
    file = bundle / checkpoint.DESCRIPTION
    file.write_text(json.dumps({**json.loads(file.read_text()), "stop_ids": []}))
    request.getfixturevalue("no_weights")
    with pytest.raises(ConfigError, match="has no stop token"):
        stages.sft(run(student={"init": str(bundle)}))


def test_folders_of_others(run, no_weights, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="is not empty, and no run's folder"):
        stages.sft(run())
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["notes.txt"]


def test_folders_of_other_runs(run, no_weights, tmp_path):
    settings = run()
    with config.claim(settings.output, settings):
        pass
    with pytest.raises(ConfigError, match=r"other settings \(steps: 16\)"):
        stages.sft(run(training={"steps": 17}))
    train = settings.data.train + settings.data.validation
    (settings.output / config.SETTINGS).unlink()
    with config.claim(settings.output, run(data={"train": train})):
        pass
    with pytest.raises(ConfigError, match=r"other settings \(# qdengine train sft\)"):
        stages.distill(config.Distill.model_validate(run(data={"train": train}).model_dump()))
    with pytest.raises(ConfigError, match=r"other settings \(- .*\.jsonl\)"):
        stages.sft(run(data={"train": train[::-1]}))
    with pytest.raises(AssertionError, match="the weights were loaded"):
        stages.sft(run(data={"train": train}))


def test_two_runs_of_one_folder(run, data):
    settings = run()
    with config.claim(settings.output, settings), pytest.raises(ConfigError, match="another run is at work in"):
        stages.sft(settings)


def test_an_output_under_a_file(run, no_weights, tmp_path):
    (tmp_path / "file").touch()
    for output in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(ConfigError, match=r"output: .*file is a file, not a folder"):
            stages.sft(run(output=str(output)))


def test_scores_of_two_files_of_one_name(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "rows.jsonl").touch()
    export = {"output": "out", "student": "s", "name": "n", "data": ["d"], "licence": "l"}
    config.Export.model_validate(export | {"evaluate": [tmp_path / "a" / "rows.jsonl"]})
    with pytest.raises(ValidationError, match="two files are named rows"):
        config.Export.model_validate(export | {"evaluate": [tmp_path / f / "rows.jsonl" for f in ("a", "b")]})

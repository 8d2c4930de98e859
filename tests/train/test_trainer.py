"""The loop: what is logged, what a killed run leaves behind, and that it goes on as if nothing had been."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from qdengine import checkpoint, jsonl
from qdengine.errors import ConfigError, TrainingError
from qdengine.train import config, stages, trainer
from qdengine.train.objectives import Labels
from qdengine.train.trainer import METRICS, PackTrainer, _arguments, _forget_later

COMPARED = ("step", "loss", "eval_loss", "grad_norm", "learning_rate", "accuracy", "eval_accuracy", "items")
# 32 packs in steps of 3: the second epoch begins at step 12, after a step of 2.
TRAINING = {"steps": 16, "batch": 3, "save_every": 4, "evaluate_every": 3, "log_every": 2, "learning_rate": 1e-3}
RUNS: dict[str, tuple[type[config.Run], dict]] = {
    "sft": (config.Sft, {}),
    "lora": (config.Sft, {"lora": {"rank": 4, "dropout": 0.3}}),
    "dpo": (config.Dpo, {"lora": {"rank": 4}, "sft_share": 0.5}),
}

KILLED = """
import os, signal, sys
import torch
from qdengine.train import config, stages, trainer

torch.set_num_threads(1)
settings, place, step = sys.argv[1:]
whole = getattr(trainer.PackTrainer, place)

def killed(self, *given, **named):
    if self.state.global_step == int(step):
        os.kill(os.getpid(), signal.SIGKILL)
    return whole(self, *given, **named)

setattr(trainer.PackTrainer, place, killed)
stages.sft(config.load(config.Sft, settings))
"""


class Stopped(Exception):
    """As KeyboardInterrupt, which pytest would take for its own."""


def stop(monkeypatch, owner, place: str, step: int | None = None) -> None:
    """Let `owner.place` fail once, at that step."""
    whole = getattr(owner, place)

    def stopped(self, *given, **named):
        if step is None or self.state.global_step == step:
            monkeypatch.setattr(owner, place, whole)
            raise Stopped
        return whole(self, *given, **named)

    monkeypatch.setattr(owner, place, stopped)


def noted(folder: Path) -> list[dict]:
    """Lines of metrics without times, and without the last one, which sums up what one process did."""
    rows = [{name: row[name] for name in COMPARED if name in row} for row in jsonl.read(folder / METRICS)]
    return [row for row in rows if len(row) > 1]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return checkpoint.load(folder / stages.BUNDLE).weights()


def train(settings: config.Run) -> Path:
    return {config.Sft: stages.sft, config.Dpo: stages.dpo}[type(settings)](settings)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, bundle, data, pair_data):
    """For each kind of run: its settings in a file, and its folder when it was left alone."""
    made = {}
    for name, (kind, more) in RUNS.items():
        folder = tmp_path_factory.mktemp(name)
        whole = {"output": str(folder / "run"), "student": {"init": str(bundle)}, **more}
        whole["data"] = pair_data if kind is config.Dpo else data
        settings = kind.model_validate(whole | {"training": TRAINING | {"device": "cpu"}})
        train(settings)
        made[name] = settings
    return made


@pytest.fixture
def again(undisturbed, tmp_path):
    """Settings of the same run in a folder of its own."""
    return lambda name="sft": undisturbed[name].model_copy(update={"output": tmp_path / "run"})


def same(settings: config.Run, undisturbed: config.Run) -> None:
    assert noted(settings.output) == noted(undisturbed.output)
    found, wanted = weights(settings.output), weights(undisturbed.output)
    assert found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)
    names = {path.name for path in settings.output.iterdir()}
    assert names == {
        "run.yaml", "inputs.json", ".lock", "metrics.jsonl", "loss.png", "bundle", "checkpoint-12", "checkpoint-16",
    }  # fmt: skip


def test_what_is_logged(undisturbed):
    rows = noted(undisturbed["sft"].output)
    assert [row["step"] for row in rows if "loss" in row] == list(range(2, 17, 2))
    assert [row["step"] for row in rows if "eval_loss" in row] == [3, 6, 9, 12, 15, 16]
    assert all(0 <= row["accuracy"] <= 1 for row in rows if "loss" in row), "a mean of the items of both steps"


@pytest.mark.parametrize(
    ("name", "place", "step"),
    [("sft", "training_step", 14), ("lora", "_save_rng_state", 8)],
    ids=["in the second epoch", "in the middle of a checkpoint"],
)
def test_a_killed_run_goes_on_as_if_nothing_had_been(again, undisturbed, tmp_path, name, place, step):
    settings = again(name)
    (tmp_path / "run.yaml").write_text(config.dump(settings))
    command = [sys.executable, "-c", KILLED, str(tmp_path / "run.yaml"), place, str(step)]
    done = subprocess.run(command, capture_output=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=300)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    left = {path.name for path in settings.output.iterdir()}
    if place == "_save_rng_state":
        assert left >= {".saving", "checkpoint-4"} and "checkpoint-8" not in left
    else:
        assert left >= {"checkpoint-8", "checkpoint-12"} and noted(settings.output)[-1]["step"] == 14
    with (settings.output / METRICS).open("ab") as file:
        file.write(b'{"step": 15, "lo')
    stages.sft(settings)
    same(settings, undisturbed[name])


@pytest.mark.parametrize(
    ("name", "owner", "place", "step"),
    [
        ("sft", PackTrainer, "training_step", 2),
        ("sft", PackTrainer, "evaluate", 12),
        ("sft", PackTrainer, "_save_optimizer_and_scheduler", 16),
        ("sft", trainer.shutil, "rmtree", None),
        ("dpo", PackTrainer, "training_step", 14),
    ],
    ids=[
        "before the first checkpoint",
        "at an epoch's beginning",
        "in the last checkpoint",
        "before a checkpoint is made",
        "of preferences",
    ],
)
def test_a_stopped_run_goes_on(again, undisturbed, monkeypatch, name, owner, place, step):
    settings = again(name)
    stop(monkeypatch, owner, place, step)
    with pytest.raises(Stopped):
        train(settings)
    train(settings)
    same(settings, undisturbed[name])


@pytest.mark.parametrize("place", ["train.plot.plot", "train.model.save"])
def test_a_run_stopped_behind_its_last_step(again, undisturbed, monkeypatch, place):
    """It is not trained on for a step more, and its metrics do not grow."""
    settings = again()
    with monkeypatch.context() as patch:
        patch.setattr(f"qdengine.{place}", lambda *_: (_ for _ in ()).throw(Stopped()))
        with pytest.raises(Stopped):
            stages.sft(settings)
    before = (settings.output / METRICS).read_bytes()
    stages.sft(settings)
    assert (settings.output / METRICS).read_bytes() == before
    same(settings, undisturbed["sft"])


def test_other_settings_are_refused(undisturbed):
    settings = undisturbed["sft"]
    other = settings.model_copy(update={"training": settings.training.model_copy(update={"seed": 1})})
    with pytest.raises(ConfigError, match=r"run\.yaml has other settings \(seed: 0\)"):
        stages.sft(other)


def test_a_loss_that_is_no_number_ends_the_run(run):
    settings = run(training={"learning_rate": 1e25, "save_every": 1, "evaluate_every": 100, "warmup": 1})
    with pytest.raises(TrainingError, match=r"^step \d+: (loss|grad_norm) is (nan|inf); lower training\.learning_rate"):
        stages.sft(settings)
    rows = list(jsonl.read(settings.output / METRICS))
    assert rows and json.dumps(rows, allow_nan=False)
    assert not (settings.output / stages.BUNDLE).exists()
    for path in settings.output.glob("checkpoint-*"):
        assert int(path.name.partition("-")[2]) <= rows[-1]["step"]


def test_nan_in_validation_ends_the_run(run, monkeypatch):
    whole = PackTrainer.evaluate

    def broken(self):
        with monkeypatch.context() as patch:
            patch.setattr(Labels, "sums", lambda *_: {"loss": torch.tensor(float("nan"))})
            return whole(self)

    monkeypatch.setattr(PackTrainer, "evaluate", lambda self, *_, **__: broken(self))
    with pytest.raises(TrainingError, match=r"^step 8: eval_loss is nan"):
        stages.sft(run())


def test_the_gradient_is_that_of_the_mean_over_the_step(run, monkeypatch):
    """Of packs with different numbers of tokens, and where the last step of an epoch has fewer packs."""
    norms, losses = [], []

    def step(self, model, inputs, items=None):
        if not losses or self.state.global_step == len(losses):
            losses.append([])
        losses[-1].append((inputs, items))
        return whole(self, model, inputs, items)

    whole = PackTrainer.training_step
    monkeypatch.setattr(PackTrainer, "training_step", step)
    settings = run(training={"steps": None, "epochs": 1.0, "batch": 5, "max_grad_norm": 1e9, "warmup": 100})
    stages.sft(settings)
    assert [len(packs) for packs in losses] == [5] * 6 + [2], "an epoch is every pack once"
    rows = [row for row in jsonl.read(settings.output / METRICS) if "grad_norm" in row]
    assert len(rows) == 7
    for packs, row in zip(losses, rows, strict=True):
        counts = [len(inputs["labels"]) for inputs, _ in packs]
        assert {items for _, items in packs} == {sum(counts)} == {row["items"]}
    # The learning rate of the first step is 0, so the second one has the first one's weights.
    source, shape, _ = stages.model.open_student(settings.student)
    for packs, row in zip(losses[:2], rows[:2], strict=True):
        model = stages.model.make(settings, source, shape)
        sums = [Labels().sums(model, inputs) for inputs, _ in packs]
        loss = sum(one["loss"] for one in sums) / row["items"]
        loss.backward()
        norms.append(torch.stack([p.grad.norm() for p in model.parameters()]).norm().item())
        assert row["loss"] == pytest.approx(loss.item(), rel=1e-4)
        assert row["accuracy"] == pytest.approx(sum(int(one["accuracy"]) for one in sums) / row["items"])
    assert [row["grad_norm"] for row in rows[:2]] == pytest.approx(norms, rel=1e-3)


@pytest.mark.parametrize("tokens", [None, 1024], ids=["apart", "together"])
def test_evaluation_is_the_mean_over_all_items(run, bundle, tokens):
    settings = run(training={"steps": 1, "evaluate_every": 1, "tokens": tokens})
    stages.sft(settings)
    (found,) = (row for row in jsonl.read(settings.output / METRICS) if "eval_loss" in row)
    source, shape, prompt = stages.model.open_student(settings.student)
    packer = stages.Packer(source.tokenizer(), prompt, source.stop_ids[-1], 256, 512, settings.data.absent)
    _, validation = stages.row_packs(settings.data, packer, stages.Counter())
    model = stages.model.make(settings, source, shape)
    with torch.no_grad():
        sums = [Labels().sums(model, trainer.batch([pack])) for pack in validation]
    items = sum(branch.target for pack in validation for branch in pack.branches)
    assert found["eval_loss"] == pytest.approx(sum(one["loss"].item() for one in sums) / items, rel=1e-4)
    assert found["eval_accuracy"] == pytest.approx(sum(one["accuracy"].item() for one in sums) / items)


def test_evaluation_changes_nothing(run, tmp_path):
    """Neither what is trained nor the means of what is logged, whenever it comes."""
    found = []
    for name, validation in (("with", run().data.validation), ("without", [])):
        settings = run(output=str(tmp_path / name), data={"validation": validation}, training=TRAINING)
        stages.sft(settings)
        found.append([row for row in noted(settings.output) if "loss" in row])
    assert found[0] == found[1]


def test_packs_together_are_a_step_of_as_many(run, tmp_path):
    """The loss of the first step over all rows, whether their packs go through the model alone or together."""
    found = []
    for name, changes in (("apart", {"batch": 1000}), ("together", {"batch": 1000, "tokens": 1024})):
        settings = run(output=str(tmp_path / name), training={"steps": 1, **changes})
        stages.sft(settings)
        (row,) = (row for row in jsonl.read(settings.output / METRICS) if "items" in row)
        found.append(row)
    assert found[0]["items"] == found[1]["items"]
    for figure in ("loss", "grad_norm", "accuracy"):
        assert found[1][figure] == pytest.approx(found[0][figure], rel=1e-3), figure


@pytest.mark.parametrize(
    ("packs", "changes", "steps"),
    [
        (10, {"epochs": 1.0, "batch": 4}, 3),
        (10, {"epochs": 2.0, "batch": 5}, 4),
        (3, {"epochs": 0.1, "batch": 4}, 1),
        (10, {"steps": 7}, 7),
    ],
)
def test_steps_of_epochs(tmp_path, packs, changes, steps):
    assert _arguments(tmp_path, config.Training(device="cpu", **changes), packs, False).max_steps == steps


def test_one_device_however_many_there_are(tmp_path):
    assert _arguments(tmp_path, config.Training(device="cpu"), 3, True).n_gpu == 1


def test_the_learning_rate_rises_stays_and_falls(run):
    settings = run(training={"steps": 12, "warmup": 4, "decay": 0.5, "learning_rate": 8e-4, "evaluate_every": 99})
    stages.sft(settings)
    rates = [row["learning_rate"] for row in jsonl.read(settings.output / METRICS) if "learning_rate" in row]
    assert rates == pytest.approx([0, 2e-4, 4e-4, 6e-4, 8e-4, 8e-4, 8e-4, 8e-4, 8e-4, 6e-4, 4e-4, 2e-4])


@pytest.mark.parametrize(
    ("text", "step", "kept"),
    [
        (b'{"step": 1}\n{"step": 2}\n{"step": 3}\n', 2, 2),
        (b'{"step": 1}\n{"step": 2}\n{"step": 2, "lo', 2, 2),
        (b'{"step": 1}\n{"st', 0, 0),
        (b'{"step": 1}\n{"step": 2}', 2, 2),
        (b"", 5, 0),
    ],
)
def test_what_was_noted_behind_the_checkpoint_is_forgotten(tmp_path, text, step, kept):
    path = tmp_path / METRICS
    path.write_bytes(text)
    _forget_later(path, step)
    assert [row["step"] for row in jsonl.read(path)] == list(range(1, kept + 1))
    assert path.read_bytes() in (b"", path.read_bytes().rstrip(b"\n") + b"\n")
    _forget_later(tmp_path / "none", 3)
    assert not (tmp_path / "none").exists()

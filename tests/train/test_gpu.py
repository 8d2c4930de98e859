"""Stages on a GPU: the losses of the CPU, with teacher and reference beside the student."""

from __future__ import annotations

import pytest
import torch
from qdengine import jsonl
from qdengine.train import config, stages

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU here")]
CASES = {
    "sft": (config.Sft, {}),
    "lora": (config.Sft, {"lora": {"rank": 4}}),
    "distill": (config.Distill, {"teacher": True}),
    "dpo": (config.Dpo, {}),
}
TOGETHER = {"tokens": 1024}
"""Packs in one kernel, by compiled layers."""


@pytest.mark.parametrize("more_training", [{}, TOGETHER], ids=["apart", "together"])
@pytest.mark.parametrize("case", CASES)
def test_losses_are_those_of_the_cpu(run, tmp_path, bundle, pair_data, case, more_training):
    kind, more = CASES[case]
    more = more | ({"teacher": str(bundle)} if "teacher" in more else {})
    more |= {"data": pair_data} if kind is config.Dpo else {}
    losses = []
    for device in ("cpu", "cuda"):
        settings = run(
            kind, output=str(tmp_path / device), training={"device": device, "steps": 4} | more_training, **more
        )
        getattr(stages, kind.__name__.lower())(settings)
        rows = jsonl.read(settings.output / "metrics.jsonl")
        losses.append([row[name] for row in rows for name in ("loss", "eval_loss") if name in row])
    assert losses[1] == pytest.approx(losses[0], rel=1e-2)


def test_a_stopped_run_goes_on(run, tmp_path, monkeypatch):
    found = []
    for name in ("whole", "stopped"):
        settings = run(
            output=str(tmp_path / name), lora={"rank": 4, "dropout": 0.3},
            training={"device": "cuda", "steps": 8, "precision": "bfloat16"},
        )  # fmt: skip
        if name == "stopped":
            with monkeypatch.context() as patch:
                patch.setattr("qdengine.train.trainer.PackTrainer.evaluate", None)  # at step 8, behind a checkpoint
                with pytest.raises(TypeError):
                    stages.sft(settings)
        stages.sft(settings)
        found.append([row["loss"] for row in jsonl.read(settings.output / "metrics.jsonl") if "loss" in row])
    assert found[0] == pytest.approx(found[1], rel=1e-2)

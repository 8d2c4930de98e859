"""Rows a second of fine-tuning: packs (a document once, its queries behind it) against TRL, a row a sequence.

    python benchmarks/bench_training.py --data webqa_en.train.jsonl.gz --student qd-135m --json training.json

Both train all weights but the embedding in float32 on the same rows, with transformers' Trainer underneath; TRL
(pip install trl) gets padded batches of 4. In turn, in one run; the first step of each turn does not count.
"""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from common import facts, write
from qdengine import checkpoint, export, student
from qdengine.train import config, model, stages
from qdengine.train.objectives import Labels
from qdengine.train.packs import Pack
from transformers import TrainerCallback

PACKS = 3000
"""The packs are taken evenly from those that a run of so many would train."""
SEQUENCES = 4


class Clock(TrainerCallback):  # type: ignore[misc]
    """Seconds from the end of the first step."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.ends.append(time.perf_counter())

    @property
    def seconds(self) -> float:
        return self.ends[-1] - self.ends[0]


def settings(folder: Path, name: str, data: str, steps: int) -> config.Sft:
    return config.Sft.model_validate(
        {
            "output": folder,
            "data": {"train": [data], "packs": PACKS},
            "student": {"init": name, "frozen": ["embed"]},
            "training": {"steps": steps, "batch": 1, "save_every": 10**6},
        }
    )


def packs_of(run: config.Sft, count: int) -> list[Pack]:
    source, shape, prompt = model.open_student(run.student)
    packs, _ = stages.row_packs(run.data, stages.packer_of(run, source, prompt, shape.max_positions), Counter())
    return packs[:: max(1, len(packs) // count)][:count]


def sequences_of(packs: list[Pack]) -> list[dict[str, Any]]:
    """Each row alone, as TRL takes it."""
    return [
        {
            "input_ids": np.concatenate([pack.beginning, branch.ids]).tolist(),
            "completion_mask": [0] * (len(pack.beginning) + len(branch.ids) - branch.target) + [1] * branch.target,
        }
        for pack in packs
        for branch in pack.branches
    ]


def packed(run: config.Sft, packs: list[Pack]) -> float:
    """Rows a second."""
    from qdengine.train.trainer import PackTrainer

    source, shape, _ = model.open_student(run.student)
    clock = Clock()
    trainer = PackTrainer(run.output, model.make(run, source, shape), Labels(), packs, [], run.training)
    trainer.add_callback(clock)
    trainer.train()
    branches = sum(len(pack.branches) for pack in packs)
    return branches * (len(packs) - 1) / len(packs) / clock.seconds  # whichever of them was the first step


def by_row(folder: Path, name: str, sequences: list[dict[str, Any]]) -> float:
    """Rows a second by TRL."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    steps = max(2, len(sequences) // SEQUENCES)
    exported = folder / "exported"
    if not exported.exists():
        export.export(student.resolve(name), exported)
    loaded = AutoModelForCausalLM.from_pretrained(exported, dtype=torch.float32)
    loaded.get_input_embeddings().weight.requires_grad_(False)
    clock = Clock()
    trainer = SFTTrainer(
        model=loaded,
        args=SFTConfig(
            str(folder / "trl"),
            max_steps=steps,
            per_device_train_batch_size=SEQUENCES,
            max_length=None,
            completion_only_loss=True,
            gradient_checkpointing=False,
            optim="adamw_torch_fused",
            bf16=False,
            use_cpu=True,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_list(sequences),
        processing_class=AutoTokenizer.from_pretrained(exported),
        callbacks=[clock],
    )
    trainer.train()
    return SEQUENCES * (steps - 1) / clock.seconds


@click.command()
@click.option("--data", required=True, type=click.Path(exists=True, dir_okay=False))
@click.option("--student", "name", default="qd-135m", show_default=True)
@click.option("--packs", "count", type=click.IntRange(2), default=4, show_default=True, help="Of each turn.")
@click.option("--turns", type=click.IntRange(1), default=2, show_default=True)
@click.option("--json", "out", type=click.Path(dir_okay=False))
def main(data: str, name: str, count: int, turns: int, out: str | None) -> None:
    found: dict[str, list[float]] = {"packs": [], "trl": []}
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        packs = packs_of(settings(folder, name, data, count), count)
        sequences = sequences_of(packs)
        for turn in range(turns):
            found["packs"].append(packed(settings(folder / f"packs-{turn}", name, data, count), packs))
            found["trl"].append(by_row(folder, name, sequences))
    tokens = {
        "packs": sum(map(len, packs)) / len(sequences),
        "trl": sum(len(one["input_ids"]) for one in sequences) / len(sequences),
    }
    shape = checkpoint.load(student.resolve(name)).config
    told = {
        "layers": shape.layers,
        "threads": torch.get_num_threads(),
        "rows": len(sequences),
        "tokens_per_row": tokens,
    }
    write(facts() | told | {"rows_per_s": found}, out)


if __name__ == "__main__":
    main()

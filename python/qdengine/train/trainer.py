"""The loop of every run: transformers' Trainer over packs, with whole checkpoints and a file of metrics."""

from __future__ import annotations

import math
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import torch
from torch import nn
from transformers import PrinterCallback, Trainer, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from .. import jsonl
from ..errors import TrainingError
from . import config
from .model import PackModel, device
from .objectives import Inputs, Objective
from .packs import Pack, batch, together

METRICS = "metrics.jsonl"
_KEPT = 2
"""Checkpoints that are kept."""


class PackTrainer(Trainer):
    """Trains `model` on packs, as many at a time as `settings.tokens` hold, `settings.batch` times a step."""

    def __init__(
        self, folder: Path, model: PackModel, objective: Objective, packs: Sequence[Pack],
        validation: Sequence[Pack], settings: config.Training,
    ) -> None:  # fmt: skip
        self.objective: Objective = objective
        self.folder, self._staging = folder, False
        groups, self.validation = (together(some, settings.tokens, settings.seed) for some in (packs, validation))
        # Compiled layers are compiled again for every other number of tokens.
        self._size = (settings.tokens or 0) if device(settings).type == "cuda" else 0
        self._sums: dict[str, float] = {}
        super().__init__(
            model=model,
            args=_arguments(folder, settings, len(groups), bool(validation)),
            train_dataset=groups,  # type: ignore[arg-type]
            eval_dataset=self.validation,  # type: ignore[arg-type]
            data_collator=lambda items: batch(items[0], self._size),
        )
        self.remove_callback(PrinterCallback)
        # The loss is a sum over the items of the whole step, as `_get_num_items_in_batch` counts them.
        self.model_accepts_loss_kwargs = True

    def resume(self) -> None:
        """Train to the end, from the last checkpoint where there is one."""
        last = get_last_checkpoint(str(self.folder))
        step = int(last.rpartition("-")[2]) if last else 0
        _forget_later(self.folder / METRICS, step)
        if step < self.args.max_steps:
            self.train(resume_from_checkpoint=last)
        else:
            self._load_from_checkpoint(last)

    def compute_loss(
        self, model: Any, inputs: Inputs, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        with self.accelerator.autocast():
            sums = self.objective.sums(model, inputs)
        for name, value in sums.items():
            if name != "loss":
                self._sums[name] = self._sums.get(name, 0.0) + float(value)
        self._sums["items"] = self._sums.get("items", 0.0) + self.objective.items(inputs)
        return sums["loss"] / num_items_in_batch

    def _get_num_items_in_batch(self, batch_samples: list[Inputs], device: torch.device) -> int:
        return sum(self.objective.items(inputs) for inputs in batch_samples)

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Means over the validation packs, named eval_loss and so on."""
        model: Any = self.model
        totals: dict[str, float] = {}
        items = 0
        model.eval()
        for inputs in (batch(group, self._size) for group in self.validation):
            with torch.no_grad(), self.accelerator.autocast():
                inputs = self._prepare_inputs(inputs)
                for name, value in self.objective.sums(model, inputs).items():
                    totals[name] = totals.get(name, 0.0) + float(value)
            items += self.objective.items(inputs)
        model.train()
        means = {f"eval_{name}": value / items for name, value in totals.items()}
        self.log(means)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, means)
        return means

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Note `logs`, and with a training loss the means of the other figures since the last one."""
        if "loss" in logs:
            items = self._sums.pop("items")
            logs = logs | {name: value / items for name, value in self._sums.items()} | {"items": items}
            self._sums.clear()
        if wrong := [name for name, value in logs.items() if not math.isfinite(value)]:
            raise TrainingError(
                f"step {self.state.global_step}: {wrong[0]} is {logs[wrong[0]]}; lower training.learning_rate or "
                "training.max_grad_norm, and look at the rows"
            )
        super().log(logs, start_time)
        with (self.folder / METRICS).open("ab") as file:
            file.write(jsonl.dumps({"step": self.state.global_step} | logs))

    def _get_output_dir(self, trial: Any) -> str:
        return str(self.folder / ".saving" if self._staging else self.folder)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Whole or not at all: made aside, and renamed."""
        shutil.rmtree(self.folder / ".saving", ignore_errors=True)
        self._staging = True
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self._staging = False
        name = f"checkpoint-{self.state.global_step}"
        shutil.rmtree(self.folder / name, ignore_errors=True)
        os.replace(self.folder / ".saving" / name, self.folder / name)
        shutil.rmtree(self.folder / ".saving")
        kept = sorted(self.folder.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
        for old in kept[:-_KEPT]:
            shutil.rmtree(old)


def _arguments(folder: Path, settings: config.Training, groups: int, validate: bool) -> TrainingArguments:
    steps = settings.steps or max(1, round(settings.epochs * math.ceil(groups / settings.batch)))
    warmup = min(settings.warmup, steps)
    decay = round(settings.decay * (steps - warmup))
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=settings.batch,
        learning_rate=settings.learning_rate,
        warmup_steps=warmup,
        lr_scheduler_type="warmup_stable_decay",
        lr_scheduler_kwargs={"num_decay_steps": decay, "decay_type": "linear"},
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        adam_beta2=0.95,
        optim="adamw_torch_fused",
        bf16=settings.precision == "bfloat16",
        use_cpu=device(settings).type == "cpu",
        seed=settings.seed,
        data_seed=settings.seed,
        save_steps=settings.save_every,
        eval_strategy="steps" if validate else "no",
        eval_steps=settings.evaluate_every,
        logging_steps=settings.log_every,
        logging_nan_inf_filter=False,
        report_to="none",
        disable_tqdm=not sys.stderr.isatty(),
        dataloader_pin_memory=False,
        remove_unused_columns=False,
    )
    arguments._n_gpu = 1  # a pack is no batch that could be scattered over several
    return arguments


def _forget_later(metrics: Path, step: int) -> None:
    """Take off what an interrupted run noted behind its last checkpoint."""
    if metrics.exists():
        kept = [end for row, end in jsonl.written(metrics, b'{"step": ') if row["step"] <= step]
        jsonl.cut(metrics, max(kept, default=0))

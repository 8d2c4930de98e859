"""What a run minimises: for a pack's tensors, a sum of losses and how many items it is a sum of."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from . import config, losses
from .model import PackModel

Inputs = dict[str, Any]
Sums = dict[str, Tensor]


class Objective(Protocol):
    def items(self, inputs: Inputs) -> int:
        """What losses are averaged over."""

    def sums(self, model: PackModel, inputs: Inputs) -> Sums:
        """ "loss", to be minimised, and other figures, all summed over the items."""


class Labels:
    """-log p of the tokens to be learnt; `accuracy` of the likeliest token."""

    def items(self, inputs: Inputs) -> int:
        return len(inputs["labels"])

    def sums(self, model: PackModel, inputs: Inputs) -> Sums:
        logits = model(inputs)
        return self._figures(logits, inputs) | {"loss": losses.label_loss(logits, inputs["labels"])}

    def _figures(self, logits: Tensor, inputs: Inputs) -> Sums:
        return {"accuracy": (logits.detach().argmax(-1) == inputs["labels"]).sum()}


@dataclass
class Teacher(Labels):
    """Labels, and the divergence from a teacher with the same vocabulary."""

    teacher: PackModel
    settings: config.Divergence

    def sums(self, model: PackModel, inputs: Inputs) -> Sums:
        logits, share = model(inputs), self.settings.share
        with torch.no_grad():
            wanted = self.teacher(inputs)
        labels = losses.label_loss(logits, inputs["labels"])
        apart = losses.divergence(logits, wanted, self.settings.kind, self.settings.temperature)
        figures = {"label_loss": labels.detach(), "divergence": apart.detach()}
        return self._figures(logits, inputs) | figures | {"loss": (1 - share) * labels + share * apart}


@dataclass
class Preference:
    """DPO over branches that come in pairs, chosen and rejected. reference: None where the model without its adapters
    is the reference."""

    reference: PackModel | None
    beta: float
    sft_share: float

    def items(self, inputs: Inputs) -> int:
        return _branches(inputs) // 2

    def sums(self, model: PackModel, inputs: Inputs) -> Sums:
        own = self._likelihoods(model, inputs)
        with torch.no_grad(), self._without_adapters(model):
            other = self._likelihoods(self.reference or model, inputs)
        loss, margins = losses.preference_loss(own, other, self.beta)
        if self.sft_share:
            tokens = torch.bincount(inputs["branch"]).view(-1, 2)[:, 0]
            loss = loss - self.sft_share * (own[:, 0] / tokens).sum()
        margins = margins.detach()
        return {"loss": loss, "margin": margins.sum(), "accuracy": (margins > 0).sum()}

    def _likelihoods(self, model: PackModel, inputs: Inputs) -> Tensor:
        found = losses.log_likelihoods(model(inputs), inputs["labels"], inputs["branch"], _branches(inputs))
        return found.view(-1, 2)

    def _without_adapters(self, model: PackModel) -> AbstractContextManager[Any]:
        return model.model.disable_adapter() if self.reference is None else nullcontext()  # type: ignore[operator]


def _branches(inputs: Inputs) -> int:
    return sum(len(lengths) for _, lengths in inputs["shapes"])

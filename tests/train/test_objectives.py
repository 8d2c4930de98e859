"""What runs minimise, on tiny models."""

from __future__ import annotations

import copy
import math
from collections import Counter

import pytest
import synthetic
import torch
from qdengine import checkpoint
from qdengine.model.reference import ReferenceModel
from qdengine.prompt import DOCUMENT_FIRST
from qdengine.train import config, rows
from qdengine.train.losses import divergence, label_loss
from qdengine.train.model import PackModel, _with_adapters
from qdengine.train.objectives import Labels, Preference, Teacher
from qdengine.train.packs import Packer, batch
from qdengine.train.rows import Row


@pytest.fixture(scope="module")
def model(bundle) -> PackModel:
    loaded = checkpoint.load(bundle)
    return PackModel(ReferenceModel.from_weights(loaded.config, loaded.weights())).eval()


@pytest.fixture(scope="module")
def packer(bundle) -> Packer:
    return Packer(checkpoint.load(bundle).tokenizer(), DOCUMENT_FIRST, 1, 256, 512, synthetic.ABSENT)


@pytest.fixture(scope="module")
def inputs(packer):
    (pack,) = packer.packs(rows.by_document([Row(**row) for row in synthetic.rows(2)]), Counter())
    return batch([pack])


@pytest.fixture(scope="module")
def pair_inputs(packer):
    pairs = [
        Row(row["id"], row["query"], row["title"], row["document"], row[name])
        for row in synthetic.pairs(2)
        for name in ("chosen", "rejected")
    ]
    (pack,) = packer.packs(rows.by_document(pairs), Counter())
    return batch([pack])


def moved(model: PackModel) -> PackModel:
    """Another model: every weight a little elsewhere."""
    other = copy.deepcopy(model)
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return other


def test_labels(model, inputs):
    sums = Labels().sums(model, inputs)
    logits = model(inputs)
    assert logits.shape == (len(inputs["labels"]), model.model.config.vocab_size)
    assert Labels().items(inputs) == len(inputs["labels"])
    assert sums["loss"].item() == pytest.approx(label_loss(logits, inputs["labels"]).item())
    assert sums["accuracy"].item() == (logits.argmax(-1) == inputs["labels"]).sum().item()


def test_the_loss_of_a_pack_is_that_of_its_rows(model, packer):
    """Row by row, in plain forward passes over the prompt of inference and the target."""
    found = [Row(**row) for row in synthetic.rows(2)]
    (pack,) = packer.packs([found], Counter())
    total = 0.0
    for branch in pack.branches:
        ids = torch.tensor([*pack.beginning, *branch.ids], dtype=torch.long)
        logits = model.model(ids.unsqueeze(0))[0]
        at = slice(len(ids) - branch.target - 1, len(ids) - 1)
        total += label_loss(logits[at], ids[len(ids) - branch.target :]).item()
    assert Labels().sums(model, batch([pack]))["loss"].item() == pytest.approx(total, rel=1e-4)


@pytest.mark.parametrize("kind", ["forward_kl", "reverse_kl", "jsd"])
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_teacher(model, inputs, kind, share):
    teacher = moved(model)
    found = Teacher(teacher, config.Divergence(kind=kind, share=share, temperature=2.0)).sums(model, inputs)
    labels = Labels().sums(model, inputs)
    apart = divergence(model(inputs), teacher(inputs), kind, 2.0).item()
    assert apart > 0.1 and found["divergence"].item() == pytest.approx(apart)
    assert found["label_loss"].item() == pytest.approx(labels["loss"].item())
    assert found["accuracy"] == labels["accuracy"]
    assert found["loss"].item() == pytest.approx((1 - share) * labels["loss"].item() + share * apart)
    if share == 0:
        assert found["loss"].item() == labels["loss"].item()


def test_a_student_that_is_its_teacher(model, inputs):
    student, teacher = copy.deepcopy(model), copy.deepcopy(model)
    sums = Teacher(teacher, config.Divergence(share=1.0)).sums(student, inputs)
    assert abs(sums["loss"].item()) < 1e-3 and sums["divergence"].item() == sums["loss"].item()
    sums["loss"].backward()
    assert max(p.grad.abs().max().item() for p in student.parameters()) < 1e-2
    assert all(p.grad is None for p in teacher.parameters()), "the teacher learns nothing"


def test_preference_of_the_reference_itself(model, pair_inputs):
    objective = Preference(copy.deepcopy(model), 0.1, 0.0)
    sums = objective.sums(model, pair_inputs)
    assert objective.items(pair_inputs) == 2 and sums["margin"].item() == 0 and sums["accuracy"].item() == 0
    assert sums["loss"].item() == pytest.approx(2 * math.log(2))


def test_preference(model, pair_inputs):
    """Against likelihoods of each branch, summed one by one."""
    student, reference = moved(model), model

    def likelihoods(one: PackModel) -> list[float]:
        each = one(pair_inputs).double().log_softmax(-1).gather(1, pair_inputs["labels"].unsqueeze(1))[:, 0]
        return [each[pair_inputs["branch"] == i].sum().item() for i in range(4)]

    own, other = likelihoods(student), likelihoods(reference)
    margins = [(own[i] - other[i]) - (own[i + 1] - other[i + 1]) for i in (0, 2)]
    sums = Preference(reference, 0.3, 0.0).sums(student, pair_inputs)
    assert sums["margin"].item() == pytest.approx(sum(margins), rel=1e-3, abs=1e-2)
    assert sums["accuracy"].item() == sum(margin > 0 for margin in margins)
    loss = sum(math.log1p(math.exp(-0.3 * margin)) for margin in margins)
    assert sums["loss"].item() == pytest.approx(loss, rel=1e-3, abs=1e-2)
    counts = torch.bincount(pair_inputs["branch"]).tolist()
    more = Preference(reference, 0.3, 0.5).sums(student, pair_inputs)["loss"].item()
    assert more - loss == pytest.approx(-0.5 * sum(own[i] / counts[i] for i in (0, 2)), rel=1e-2)


def test_the_reference_of_adapters_is_the_model_without_them(model, pair_inputs):
    torch.manual_seed(0)
    adapted = PackModel(_with_adapters(copy.deepcopy(model.model), config.Lora(rank=4)))
    objective = Preference(None, 0.1, 0.0)
    sums = objective.sums(adapted, pair_inputs)
    assert sums["margin"].item() == 0 and sums["loss"].item() == pytest.approx(2 * math.log(2))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if parameter.requires_grad:
                assert "lora_" in name
                parameter.add_(0.05 * torch.randn_like(parameter))
    found = objective.sums(adapted, pair_inputs)
    wanted = Preference(model, 0.1, 0.0).sums(adapted, pair_inputs)
    assert found["margin"].item() == pytest.approx(wanted["margin"].item(), rel=1e-4) != 0
    found["loss"].backward()
    assert all((p.grad is not None) == p.requires_grad for p in adapted.parameters())

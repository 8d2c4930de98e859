"""Losses against their definitions, written out in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from qdengine.train.losses import divergence, label_loss, log_likelihoods, preference_loss

KINDS = ("forward_kl", "reverse_kl", "jsd")
SHAPE = (5, 17)


def drawn(seed: int, scale: float = 3.0) -> torch.Tensor:
    return scale * torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))


def log_softmax(x: np.ndarray) -> np.ndarray:
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def reference(student: torch.Tensor, teacher: torch.Tensor, kind: str, temperature: float) -> float:
    q, p = (np.exp(log_softmax(x.double().numpy() / temperature)) for x in (student, teacher))

    def kl(a: np.ndarray, b: np.ndarray) -> float:
        return float((a * np.log(a / b)).sum())

    mixture = (p + q) / 2
    value = {"forward_kl": kl(p, q), "reverse_kl": kl(q, p), "jsd": (kl(p, mixture) + kl(q, mixture)) / 2}[kind]
    return value * temperature**2


def test_label_loss():
    logits, labels = drawn(0), torch.tensor([3, 0, 16, 3, 9])
    wanted = -log_softmax(logits.double().numpy())[np.arange(5), labels.numpy()].sum()
    assert label_loss(logits, labels).item() == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_divergence(kind, temperature):
    student, teacher = drawn(1), drawn(2)
    found = divergence(student, teacher, kind, temperature).item()
    assert found == pytest.approx(reference(student, teacher, kind, temperature), rel=1e-5)


def test_kinds_differ():
    found = [divergence(drawn(1), drawn(2), kind, 1.0).item() for kind in KINDS]
    assert len({round(value, 3) for value in found}) == 3


@settings(max_examples=40, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    temperature=st.floats(0.25, 8),
    scale=st.floats(0, 60),
    seeds=st.tuples(st.integers(0, 99), st.integers(100, 199)),
)
def test_bounds_of_divergences(kind, temperature, scale, seeds):
    student, teacher = (drawn(seed, scale) for seed in seeds)
    found = divergence(student, teacher, kind, temperature).item()
    assert found >= -1e-4 * temperature**2
    if kind == "jsd":
        assert found <= SHAPE[0] * math.log(2) * temperature**2 * (1 + 1e-5)
        assert found == pytest.approx(divergence(teacher, student, kind, temperature).item(), rel=1e-4, abs=1e-4)
    assert abs(divergence(student, student.clone(), kind, temperature).item()) < 1e-4 * temperature**2


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_of_a_divergence(kind):
    """Against central differences of the reference."""
    student, teacher = drawn(3, 1.0), drawn(4, 1.0)
    student.requires_grad_()
    divergence(student, teacher, kind, 2.0).backward()
    step, base = 1e-5, student.detach().double()
    for place in ((0, 0), (2, 7), (4, 16)):
        ends = []
        for sign in (1, -1):
            moved = base.clone()
            moved[place] += sign * step
            ends.append(reference(moved, teacher, kind, 2.0))
        assert student.grad[place].item() == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-3, abs=1e-5)


def test_log_likelihoods():
    logits, labels, branch = drawn(5), torch.tensor([3, 0, 16, 3, 9]), torch.tensor([0, 0, 2, 2, 2])
    each = log_softmax(logits.double().numpy())[np.arange(5), labels.numpy()]
    found = log_likelihoods(logits, labels, branch, 3).tolist()
    assert found == pytest.approx([each[:2].sum(), 0.0, each[2:].sum()], rel=1e-6)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(*[st.floats(-50, 0, width=32)] * 4), min_size=1, max_size=5), st.floats(0.01, 2))
def test_preference_loss(rows, beta):
    student, other = (torch.tensor([row[i : i + 2] for row in rows]) for i in (0, 2))
    loss, margins = preference_loss(student, other, beta)
    wanted = [(a - c) - (b - d) for a, b, c, d in rows]
    assert margins.tolist() == pytest.approx(wanted, abs=1e-3)
    assert loss.item() == pytest.approx(sum(math.log1p(math.exp(-beta * m)) for m in wanted), rel=1e-4, abs=1e-3)


def test_preference_loss_of_the_reference_itself():
    same = torch.tensor([[-3.0, -5.0], [-1.0, -0.5]], requires_grad=True)
    loss, margins = preference_loss(same, same.detach(), 0.1)
    assert margins.tolist() == [0, 0] and loss.item() == pytest.approx(2 * math.log(2))
    loss.backward()
    assert same.grad.tolist() == [pytest.approx([-0.05, 0.05])] * 2  # beta / 2, up for the chosen

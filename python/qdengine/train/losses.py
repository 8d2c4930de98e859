"""Losses over the tokens to be learnt: logits [R, V], labels int64 [R]. Sums, which the caller divides."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def label_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Sum of -log p(label)."""
    return F.cross_entropy(logits.float(), labels, reduction="sum")


def divergence(student: Tensor, teacher: Tensor, kind: str, temperature: float) -> Tensor:
    """Sum over tokens of KL(p, q), KL(q, p), or their mean from the mixture (JSD), times temperature^2, for the
    teacher's p and the student's q, softmax of logits / temperature (arXiv 1503.02531, arXiv 2306.13649)."""
    q = F.log_softmax(student.float() / temperature, -1)
    p = F.log_softmax(teacher.float() / temperature, -1)
    if kind == "forward_kl":
        found = _kl(p, q)
    elif kind == "reverse_kl":
        found = _kl(q, p)
    else:
        mixture = torch.logaddexp(p, q) - torch.log(torch.tensor(2.0, dtype=p.dtype, device=p.device))
        found = (_kl(p, mixture) + _kl(q, mixture)) / 2
    return found * temperature**2


def _kl(p: Tensor, q: Tensor) -> Tensor:
    return F.kl_div(q, p, reduction="sum", log_target=True)


def log_likelihoods(logits: Tensor, labels: Tensor, branch: Tensor, branches: int) -> Tensor:
    """float32 [branches]: log p of each branch's target. branch: int64 [R], the branch of each token."""
    each = -F.cross_entropy(logits.float(), labels, reduction="none")
    return each.new_zeros(branches).index_add(0, branch, each)


def preference_loss(student: Tensor, reference: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """Sum of -log sigmoid(beta * margin) (arXiv 2305.18290, eq. 7), and the margins [N].

    student, reference: log-likelihoods [N, 2] of chosen and rejected.
    """
    ratios = student - reference
    margins = ratios[:, 0] - ratios[:, 1]
    return -F.logsigmoid(beta * margins).sum(), margins

"""Drafting never loses: the cost model against simulated machines, and what it learns."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from qdengine.engine.draft_cost import Acceptance, DraftCost

MAX_DRAFT = 64


def rate(costs, p, sequences, choose, seed=0, steps=300):
    """Tokens per second of a machine with these costs, whose drafted tokens are each kept with probability p."""
    generator = np.random.default_rng(seed)
    cost, own = DraftCost(MAX_DRAFT), [Acceptance() for _ in range(sequences)]
    fixed, row, token = costs
    seconds = tokens = 0.0
    for step in range(steps):
        drafted = [choose(cost, acceptance, sequences) for acceptance in own]
        size = sum(drafted) + sequences
        took = (fixed + row * sequences + token * size) * generator.uniform(0.9, 1.1)
        kept = [min(int(generator.geometric(1 - p)) - 1, n) for n in drafted]
        cost.observe_step(sequences, size, took)
        for acceptance, n, k in zip(own, drafted, kept, strict=True):
            cost.observe_draft(acceptance, n, k)
        if step >= steps // 3:
            seconds += took
            tokens += sum(kept) + sequences
    return tokens / seconds


@settings(max_examples=25, deadline=None)
@given(
    fixed=st.floats(5, 200),
    row=st.floats(0, 5),
    p=st.floats(0.02, 0.99),
    sequences=st.sampled_from([1, 4, 32]),
    unit=st.sampled_from([1e-5, 1e-2]),
)
def test_drafting_cannot_lose(fixed, row, p, sequences, unit):
    """Against never drafting and against always drafting all: at least as many tokens a second, but for noise."""
    costs = np.array([fixed, row, 1.0]) * unit
    adaptive = rate(costs, p, sequences, lambda c, own, s: c.length(own, s, MAX_DRAFT))
    never = rate(costs, p, sequences, lambda c, own, s: 0)
    always = rate(costs, p, sequences, lambda c, own, s: MAX_DRAFT)
    assert adaptive > 0.9 * max(never, always)


def test_a_free_token_is_drafted_and_a_dear_one_is_not():
    cost = DraftCost(MAX_DRAFT)
    for tokens in (1, 10, 65, 200) * 10:
        cost.observe_step(1, tokens, 1.0 + 1e-5 * tokens)
    assert cost.length(Acceptance(kept=50), 1, MAX_DRAFT) == MAX_DRAFT
    cost = DraftCost(MAX_DRAFT)
    for tokens in (1, 10, 65, 200) * 10:
        cost.observe_step(1, tokens, 1e-3 + 1.0 * tokens)
    assert cost.length(Acceptance(kept=1, failed=5), 1, MAX_DRAFT) == 0


def test_costs_are_found():
    cost = DraftCost(MAX_DRAFT)
    generator = np.random.default_rng(1)
    for _ in range(200):
        sequences, tokens = int(generator.integers(1, 40)), int(generator.integers(1, 200))
        cost.observe_step(sequences, tokens, 0.010 + 0.0005 * sequences + 0.001 * tokens)
    assert cost.costs == pytest.approx((0.010, 0.0005, 0.001), rel=0.3)


def test_a_sequence_that_copies_gets_longer_drafts():
    cost, copies, invents = DraftCost(MAX_DRAFT), Acceptance(), Acceptance()
    for _ in range(4):
        cost.observe_draft(copies, 20, 20)
        cost.observe_draft(invents, 20, 0)
    assert cost.length(copies, 1, MAX_DRAFT) > 2 * cost.length(invents, 1, MAX_DRAFT)
    assert cost.length(copies, 1, 3) == 3
    assert cost.length(copies, 1, 0) == 0
    assert cost.length(copies, 1, -1) == 0

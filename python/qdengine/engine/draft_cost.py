"""How many tokens to draft, so that drafting never costs more than it saves.

A step of S sequences and T tokens takes about  fixed + row * S + token * T  seconds. A draft of n tokens whose every
token is kept with probability p (given that those before it were) yields 1 + p + ... + p^n tokens (arXiv 2211.17192,
eq. 1), for a share of fixed / S + row + token * (1 + n). The length with the most tokens a second is chosen; n = 0 is
always among the choices. Both sides are measured as the engine runs: the three costs by least squares over the recent
steps, p from what became of the recent drafts, of this sequence and of all.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

# What holds before anything is measured: a step costs as much as 24 tokens, a sequence in it as much as one.
_PRIOR_COSTS = np.array([24.0, 1.0, 1.0])
_PRIOR_STEPS = np.array([[1.0, 1.0, 1.0], [1.0, 1.0, 65.0], [1.0, 32.0, 32.0], [1.0, 1.0, 512.0]])
_PRIOR_WEIGHT = 0.003
_STEP_MEMORY = 0.97  # weight of the steps so far when one is added: about 30 steps
_DRAFT_MEMORY = 0.99
_ROW_MEMORY = 0.5
_ROW_PRIOR = 2.0  # drafted tokens that the engine's average counts for beside a sequence's own


@dataclass(slots=True)
class Acceptance:
    """Decayed counts of drafted tokens that were kept, and of drafts that ended at one that was not."""

    kept: float = 0.0
    failed: float = 0.0

    def add(self, kept: int, failed: bool, memory: float) -> None:
        self.kept = memory * self.kept + kept
        self.failed = memory * self.failed + failed


@dataclass(slots=True)
class DraftCost:
    """Measures one engine's steps and drafts. max_draft: most tokens that it is ever asked for."""

    max_draft: int
    drafts: Acceptance = field(default_factory=lambda: Acceptance(kept=16.0, failed=1.0))
    _gram: np.ndarray = field(default_factory=lambda: np.zeros((3, 3)))
    _moment: np.ndarray = field(default_factory=lambda: np.zeros(3))
    _seconds: float = 0.0
    _prior_seconds: float = 0.0
    _costs: np.ndarray = field(default_factory=lambda: _PRIOR_COSTS.copy())

    @property
    def costs(self) -> tuple[float, float, float]:
        """Of a step, of a sequence in it, of a token: in seconds once a step was seen, in tokens before."""
        fixed, row, token = self._costs.tolist()
        return fixed, row, token

    def observe_step(self, sequences: int, tokens: int, seconds: float) -> None:
        """A step took `seconds`."""
        step = np.array([1.0, sequences, tokens])
        gram, moment = _normal(step[None], np.array([seconds]), 1.0)
        self._gram = _STEP_MEMORY * self._gram + gram
        self._moment = _STEP_MEMORY * self._moment + moment
        # The prior in this machine's seconds: the steps so far, had they cost what it says.
        self._seconds = _STEP_MEMORY * self._seconds + seconds
        self._prior_seconds = _STEP_MEMORY * self._prior_seconds + float(step @ _PRIOR_COSTS)
        expected = _PRIOR_STEPS @ _PRIOR_COSTS * (self._seconds / self._prior_seconds)
        prior = _normal(_PRIOR_STEPS, expected, _PRIOR_WEIGHT)
        costs = np.linalg.solve(self._gram + prior[0], self._moment + prior[1])
        # Noise may make a cost negative, which no step is.
        self._costs = np.maximum(costs, 1e-3 * seconds / tokens)

    def observe_draft(self, own: Acceptance, drafted: int, kept: int) -> None:
        """Of `drafted` tokens of the sequence with acceptance `own`, `kept` were kept."""
        if drafted:
            own.add(kept, kept < drafted, _ROW_MEMORY)
            self.drafts.add(kept, kept < drafted, _DRAFT_MEMORY)

    def length(self, own: Acceptance, sequences: int, limit: int) -> int:
        """The best draft length, at most `limit`, for a sequence in a step of `sequences`."""
        limit = min(limit, self.max_draft)
        if limit <= 0:
            return 0
        average = self.drafts.kept / (self.drafts.kept + self.drafts.failed)
        seen = own.kept + own.failed + _ROW_PRIOR
        p = (own.kept + _ROW_PRIOR * average) / seen
        fixed, row, token = self._costs
        n = np.arange(limit + 1)
        rate = np.cumsum(p**n) / (fixed / sequences + row + token * (1 + n))
        return int(rate.argmax())


def _normal(steps: np.ndarray, seconds: np.ndarray, weight: float) -> tuple[np.ndarray, np.ndarray]:
    """The normal equations of steps [N, 3] and their times [N], each step weighted by its relative error."""
    weights = weight / seconds**2
    return (steps * weights[:, None]).T @ steps, (steps * weights[:, None]).T @ seconds

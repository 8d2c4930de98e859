"""Temperature and top-p sampling whose tokens depend on the request alone.

The random number of a token is a function of (seed, position): a drafted token is then kept exactly when sampling would
have chosen it, and lookahead, batch and preemption change nothing.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from .scheduler import Entry


def sample(chosen: Tensor, logits: Callable[[], Tensor], row_indptr: Tensor, entries: list[Entry]) -> None:
    """Replace the greedy choice in `chosen` (int32 [R]) for the rows of entries that sample. logits: makes
    [R, V]; the rows of the sequence in row r are row_indptr[r] to row_indptr[r + 1]. Waits for the device, and asks for
    the logits, only when an entry samples."""
    sampling = [entry for entry in entries if entry.writes and entry.sequence.request.temperature > 0.0]
    if not sampling:
        return
    indptr, rows = row_indptr.tolist(), logits()
    for entry in sampling:
        request, begin = entry.sequence.request, indptr[entry.sequence.row]
        position = entry.begin + entry.new
        drawn = [
            draw(rows[begin + k], request.temperature, request.top_p, request.seed, position + k)
            for k in range(indptr[entry.sequence.row + 1] - begin)
        ]
        chosen[begin : begin + len(drawn)] = torch.tensor(drawn, dtype=torch.int32)


def draw(logits: Tensor, temperature: float, top_p: float, seed: int, position: int) -> int:
    """The token at `position`: inverse of the cumulative probability, kept tokens in falling order. logits: [V]."""
    uniform = np.random.Generator(np.random.Philox(key=seed, counter=position)).random()
    scaled = logits.double().cpu() / temperature
    probability, order = torch.softmax(scaled, -1).sort(descending=True, stable=True)
    cumulative = probability.cumsum(0)
    # The smallest set that reaches top_p: a token stays while the mass before it is below top_p.
    kept = max(1, int((cumulative - probability < top_p).sum()))
    place = int(torch.searchsorted(cumulative, uniform * cumulative[kept - 1], right=True))
    return int(order[min(place, kept - 1)])

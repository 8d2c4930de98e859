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

_LIKELY = 64
"""Tokens that are looked at first where `top_p` is below 1: mostly they hold it, and sorting all takes four times as
long."""


def sample(
    chosen: Tensor, logits: Callable[[], Tensor], row_indptr: Tensor, drafts: Tensor, entries: list[Entry]
) -> None:
    """Replace the greedy choice in `chosen` (int32 [R]) for the rows of entries that sample, up to the first that is
    not the drafted token (`drafts`, int32 [S, K]): nothing behind it counts. logits: makes [R, V]; the rows of the
    sequence in row r are row_indptr[r] to row_indptr[r + 1]. Waits for the device, and asks for the logits, only when
    an entry samples."""
    sampling = [entry for entry in entries if entry.writes and entry.sequence.request.temperature > 0.0]
    if not sampling:
        return
    indptr, drafted, rows = row_indptr.tolist(), drafts.cpu().numpy(), logits()
    for entry in sampling:
        request, row = entry.sequence.request, entry.sequence.row
        begin, end = indptr[row : row + 2]
        position = entry.begin + entry.new - begin
        drawn: list[int] = []
        for i in range(begin, end):
            drawn.append(draw(rows[i], request.temperature, request.top_p, request.seed, position + i))
            if i + 1 < end and drawn[-1] != drafted[row, i - begin]:
                break
        chosen[begin : begin + len(drawn)] = torch.tensor(drawn, dtype=torch.int32)


def draw(logits: Tensor, temperature: float, top_p: float, seed: int, position: int) -> int:
    """The token at `position`: inverse of the cumulative probability, kept tokens in falling order. logits: [V]."""
    uniform = np.random.Generator(np.random.Philox(key=seed, counter=position)).random()
    probability = torch.softmax(logits.double().cpu() / temperature, -1)
    likely = torch.arange(len(probability))
    if top_p < 1.0 and len(probability) > _LIKELY:
        first = (probability >= probability.topk(_LIKELY).values[-1]).nonzero().squeeze(1)
        if probability[first].sum() > top_p + 1e-9:  # sums in another order differ by less
            likely = first
    falling, order = probability[likely].sort(descending=True, stable=True)
    cumulative = falling.cumsum(0)
    # The smallest set that reaches top_p: a token stays while the mass before it is below top_p.
    kept = max(1, int((cumulative - falling < top_p).sum()))
    place = int(torch.searchsorted(cumulative, uniform * cumulative[kept - 1], right=True))
    return int(likely[order[min(place, kept - 1)]])

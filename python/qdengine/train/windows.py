"""Pieces of long documents: with the answer inside, and without it."""

from __future__ import annotations

from bisect import bisect_right

import numpy as np

from .._host import sentence_starts
from ..tokenizer import Tokenizer


def windows(tokenizer: Tokenizer, document: str, tokens: int) -> list[tuple[int, int]]:
    """Every window of whole sentences that holds as many as fit in `tokens` tokens: characters (begin, end), one for
    each sentence that a window can begin with, up to the one that reaches the end. A document that fits is one window.
    A sentence longer than that is cut."""
    offsets = tokenizer.encode(document).offsets
    if len(offsets) <= tokens:
        return [(0, len(document))]
    starts = [0, *(start for start in sentence_starts(document) if start)]
    counts = [int(n) for n in np.searchsorted(offsets[:, 1], starts, "right")] + [len(offsets)]
    ends = [*starts[1:], len(document)]
    found = []
    for i, begin in enumerate(starts):
        last = bisect_right(counts, counts[i] + tokens) - 2  # the last sentence that ends in time
        end = ends[last] if last >= i else int(offsets[counts[i] + tokens - 1, 1])
        found.append((begin, end))
        if end == len(document):
            break
    return found


def with_answer(found: list[tuple[int, int]], begin: int, end: int) -> list[tuple[int, int]]:
    """The windows that hold all of the answer, characters `begin` to `end`."""
    return [window for window in found if window[0] <= begin and end <= window[1]]


def without_answer(found: list[tuple[int, int]], begin: int, end: int) -> list[tuple[int, int]]:
    """The windows that hold nothing of it."""
    return [window for window in found if window[1] <= begin or end <= window[0]]

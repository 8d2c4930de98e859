"""Where sentences begin, and how much of a query each one holds."""

from __future__ import annotations

import re

import numpy as np

# A Latin stop counts before white space alone; a Chinese one, and a line's end, always.
_END = re.compile(r"(?:[.!?…]+[\"'”’»)\]]*(?=\s)|[。！？]+[”’」』）]*|\n)\s*")
_TERM = re.compile(r"[\u3400-\u9fff\uf900-\ufaff]|[^\W_\u3400-\u9fff\uf900-\ufaff]+")
_COMMON = frozenset(
    "a an and are as at be been but by can could did do does for from had has have how i if in into is it its me my of on or "
    "should so such than that the their them then there these they this those to was were what when where which who whom "
    "whose why will with would you your".split()
)


def sentence_starts(text: str) -> list[int]:
    """Characters at which a sentence begins, rising; white space before a sentence belongs to the one before."""
    first = len(text) - len(text.lstrip())
    starts = [first, *(match.end() for match in _END.finditer(text))]
    return sorted({start for start in starts if first <= start < len(text)})


def terms(text: str) -> list[tuple[str, int]]:
    """Words (lower case, without a plural s) and single Chinese characters, with their places."""
    return [(_stem(match[0]), match.start()) for match in _TERM.finditer(text.lower())]


def _stem(word: str) -> str:
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word


def sentence_ranks(text: str, query: str, offsets: np.ndarray) -> np.ndarray:
    """int32 [T] for the tokens of `text` (offsets: [T, 2] characters): 2 * overlap + (1 where a sentence starts).

    The overlap of a sentence is the sum, over the distinct terms that it shares with the query, of 8 ln(1 + sentences /
    sentences with the term), rounded: a rare term says more.
    """
    starts = np.array(sentence_starts(text) or [0])
    wanted = {term for term, _ in terms(query) if term not in _COMMON}
    # `lower` can change lengths (İ): places past the end belong to the last sentence.
    found = {
        (term, int(np.searchsorted(starts, at, "right")) - 1) for term, at in terms(text) if term in wanted
    }  # fmt: skip
    overlap = np.zeros(len(starts))
    for term in wanted:
        holders = [max(sentence, 0) for other, sentence in found if other == term]
        overlap[holders] += np.log1p(len(starts) / max(1, len(holders)))
    of_token = np.maximum(np.searchsorted(starts, np.maximum(offsets[:, 1] - 1, offsets[:, 0]), "right") - 1, 0)
    ranks = 2 * np.rint(8 * overlap[of_token]).astype(np.int32) if len(offsets) else np.zeros(0, np.int32)
    at_start = np.searchsorted(offsets[:, 1], starts, "right")
    ranks[at_start[at_start < len(ranks)]] |= 1
    return ranks.astype(np.int32)

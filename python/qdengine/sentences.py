"""Where sentences begin, and which of them are likely to begin the answer to a query."""

from __future__ import annotations

import re

import numpy as np

from . import _host

_TERM = re.compile(r"[\u3400-\u9fff\uf900-\ufaff]|[^\W_\u3400-\u9fff\uf900-\ufaff]+")
_COMMON = frozenset(
    re.findall(
        r"\w+",
        """
        a an and are as at be been but by can could did do does for from had has have how i if in into is it
        its me my of on or should so such than that the their them then there these they this those to was
        were what when where which who whom whose why will with would you your
        """,
    )
)
_STEM = 5
"""Words that share this many letters count as one: absorb, absorbs, absorption."""


def query_terms(query: str) -> set[str]:
    """Stems of the words (lower case, common ones dropped) and single Chinese characters."""
    return {word[:_STEM] for word in _TERM.findall(query.lower()) if word not in _COMMON}


class Sentences:
    """What is known of a text's n sentences before any query."""

    __slots__ = ("_found", "_size")

    def __init__(self, text: str) -> None:
        lowered = text.lower()
        if len(lowered) != len(text):  # a few capitals have two small letters
            lowered = "".join(c.lower() if len(c.lower()) == 1 else c for c in text)
        self._found, self._size = _host.Sentences(text, lowered), len(text)

    def scores(self, query: str) -> np.ndarray:
        """int32 [n], 0 or more: how likely the answer to `query` begins there, in eighths of a nat.

        The overlap of a sentence is the sum of ln(1 + sentences / sentences with the term) over the terms it shares
        with the query: a rare term says more. A question, or a short line without a stop, is a heading: no answer
        itself, and its overlap goes to the sentence after it. A section, a paragraph with its headings, has an overlap
        too; its first sentence answers more often, and so do earlier ones. The weights are those of a softmax
        regression on 8,000 rows of webqa_en.train; on its validation rows the first sentence of the reference is the
        top one in 63%, and one of the top four in 88% (by the overlap of the sentence alone 45%).
        """
        # In one order, for sums of floats; `ngram_propose` packs a score in 16 bits.
        return self._found.scores(sorted(query_terms(query)), _STEM)

    def best(self, query: str, count: int) -> list[tuple[int, int]]:
        """Characters (begin, end) of the `count` sentences with the highest scores, the highest first; of equals the
        first in the text."""
        ends = [*self._found.starts[1:], self._size]
        order = np.argsort(-self.scores(query), kind="stable")[:count]
        return [(self._found.starts[i], ends[i]) for i in order]

    def ranks(self, query: str, offsets: np.ndarray, head: int = 0) -> np.ndarray:
        """int32 [T] for tokens whose `offsets` [T, 2] count from `head` characters before the text: 2 * (score of the
        sentence) + (1 where a sentence starts, for the first token that ends behind the start: with byte-level BPE it
        begins with the space before the word). Tokens before the text (the title's) have rank 0."""
        return self._found.ranks(self.scores(query), offsets, head)

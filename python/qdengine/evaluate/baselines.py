"""What costs no model: summaries that a student has to beat."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any

from .._host import sentence_starts
from ..errors import ConfigError
from ..sentences import Sentences
from .rouge import rouge, tokenize

BASELINES = ("lead", "query-match", "ranked", "oracle")
_K1, _B = 1.5, 0.75


def baseline(
    name: str, rows: Iterable[dict[str, Any]], lang: str = "en", sentences: int = 1
) -> Iterator[dict[str, Any]]:
    """A prediction for every row, of whole sentences of its document, in their order and joined by a space.

    lead: the first `sentences`. query-match: those with the highest BM25 score for the query (k1 1.5, b 0.75, document
    frequencies of the page's own sentences); of equals the first. ranked: those that the engine itself holds likeliest
    to begin the answer (`Sentences.scores`), which its drafts and the format {sentences} go by. oracle: the one
    sentence nearest to the reference by ROUGE-2, ROUGE-1 where no pair of words is shared. Raises `ConfigError` for
    another name.
    """
    if name not in BASELINES:
        raise ConfigError(f"baseline {name!r}; expected {', '.join(BASELINES)}")
    for row in rows:
        document, query = row.get("document") or "", row.get("query") or ""
        found = split(document)
        if name == "lead":
            chosen = list(range(len(found)))[:sentences]
        elif name == "query-match":
            chosen = _highest(bm25(tokenize(query, lang), [tokenize(text, lang) for text in found]), sentences)
        elif name == "ranked":
            chosen = _highest(Sentences(document).scores(query).tolist(), sentences)
        else:
            chosen = [max(range(len(found)), key=lambda i: _nearness(found[i], row, lang))] if found else []
        yield {"id": row.get("id"), "summary": " ".join(found[i] for i in chosen)}


def _highest(scores: Sequence[float], count: int) -> list[int]:
    return sorted(sorted(range(len(scores)), key=lambda i: -scores[i])[:count])


def split(document: str) -> list[str]:
    """The sentences of a document."""
    bounds = [*sentence_starts(document), len(document)]
    return [document[a:b].strip() for a, b in pairwise(bounds)]


def bm25(query: list[str], texts: list[list[str]]) -> list[float]:
    """Okapi BM25 (Robertson and Zaragoza 2009) of each text, with idf ln(1 + (n - d + 0.5) / (d + 0.5)) >= 0."""
    counts = [Counter(text) for text in texts]
    mean = sum(map(len, texts)) / max(1, len(texts)) or 1.0
    held = Counter(word for count in counts for word in count)
    idf = {word: math.log(1 + (len(texts) - held[word] + 0.5) / (held[word] + 0.5)) for word in set(query)}
    return [
        sum(
            idf[word] * count[word] * (_K1 + 1) / (count[word] + _K1 * (1 - _B + _B * len(text) / mean))
            for word in sorted(set(query))
            if word in count
        )
        for count, text in zip(counts, texts, strict=True)
    ]


def _nearness(text: str, row: dict[str, Any], lang: str) -> tuple[float, float]:
    found = rouge(text, row.get("references") or [row["summary"]], lang)
    return found["rouge2"], found["rouge1"]

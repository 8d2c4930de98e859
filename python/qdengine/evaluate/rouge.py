"""ROUGE by the rouge-score package, with words for English and characters for Chinese."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

from ..errors import ConfigError

LANGUAGES = ("en", "zh")
METRICS = ("rouge1", "rouge2", "rougeL")
_ENGLISH = re.compile(r"[a-z0-9]+")
# One token for each Chinese character; Latin words and numbers stay whole; punctuation does not count.
_CHINESE = re.compile(r"[\u3400-\u9fff\uf900-\ufaff]|[^\W_\u3400-\u9fff\uf900-\ufaff]+")


def tokenize(text: str, lang: str) -> list[str]:
    """Lower-cased tokens without stemming. Raises `ConfigError` for an unknown language."""
    if lang not in LANGUAGES:
        raise ConfigError(f"language {lang!r}; expected {' or '.join(LANGUAGES)}")
    return (_ENGLISH if lang == "en" else _CHINESE).findall(text.lower())


def rouge(summary: str, references: list[str], lang: str) -> dict[str, float]:
    """ROUGE-1, 2 and L: F1 in percent, for each the best of the references."""
    scores = [_scorer(lang).score(reference, summary) for reference in references]
    return {metric: 100 * max(score[metric].fmeasure for score in scores) for metric in METRICS}


@cache
def _scorer(lang: str) -> Any:
    try:
        from rouge_score import rouge_scorer, tokenizers
    except ImportError:
        raise ConfigError("ROUGE needs the rouge-score package: pip install 'qdengine[eval]'") from None

    class Tokenizer(tokenizers.Tokenizer):
        def tokenize(self, text: str) -> list[str]:
            return tokenize(text, lang)

    return rouge_scorer.RougeScorer(list(METRICS), tokenizer=Tokenizer())

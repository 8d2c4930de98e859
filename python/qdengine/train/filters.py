"""Which of a teacher's answers are no labels, and why. Rates of false rejections are in docs/training.md."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from ..evaluate.report import copy_share
from ..evaluate.rouge import tokenize
from ..sentences import query_terms
from . import config, label_config
from .rows import Row
from .teachers import Answer

REASONS = ("duplicate", "empty", "refusal", "long", "abstractive", "off-query")
"""In the order in which they are looked for; an answer has the first one that holds."""

_REFUSALS = re.compile(
    r"""\W*(
        (i['’]m|i\ am)\ (very\ |so\ )?(sorry|afraid|unable|not\ able) | sorry\b | (my\ )?apologies | i\ apologi[sz]e
        | i\ (can['’]t|cannot|can\ not|could\ not|couldn['’]t|won['’]t|do\ not|don['’]t)\b | unfortunately\b
        | as\ an?\ (ai|artificial|large|language)\b
        | (the|this)\ ((given|provided)\ )?(document|text|passage|article|context)
          \ (does\ not|doesn['’]t|did\ not|didn['’]t|has\ no|contains\ no)\b
        | (there\ is\ )?no\ (such\ )?(information|mention|answer)\b | not\ (mentioned|stated|specified|answered)\b
        | (很|非常)?抱歉 | 对不起 | 對不起 | 我(无法|無法|不能) | 作为一个 | 作為一個
        | (该|該|本|此)?(文档|文檔|文章|文中|文本)(中|里|裡)?(没有|沒有|并未|並未|未)
    )""",
    re.IGNORECASE | re.VERBOSE,
)
_OPENING = 24
"""Characters of an answer; where the document has them, they are the document's and no refusal."""
_NEAR = 40
"""Words on each side of a place in the document."""


def duplicates(rows: Iterable[Row]) -> set[str]:
    """Ids of rows whose query, but for case and white space, an earlier row has about the same title and document.
    Several queries may have one answer: a document is asked in many words."""
    seen, found = set(), set()
    for row in rows:
        key = (" ".join(row.query.casefold().split()), row.title, row.document)
        if key in seen:
            found.add(row.id)
        seen.add(key)
    return found


def reason(row: Row, answer: Answer, settings: label_config.Filters) -> str | None:
    """Why the answer is no label, one of `REASONS` but "duplicate"; None for one that is."""
    if not answer.text:
        return "empty" if settings.empty else None
    if settings.refusal and _refuses(answer.text, row.document):
        return "refusal"
    words, document = (tokenize(text, settings.language) for text in (answer.text, row.document))
    if settings.words is not None and (len(words) > settings.words or not answer.whole):
        return "long"
    if settings.verbatim is not None and (copy_share(words, document) or 0.0) < 100 * settings.verbatim:
        return "abstractive"
    if settings.query is not None and query_share(row.query, words, document) < settings.query:
        return "off-query"
    return None


def _refuses(text: str, document: str) -> bool:
    if not text.startswith(config.ABSENT) and not _REFUSALS.match(text):
        return False
    return " ".join(text.split())[:_OPENING] not in " ".join(document.split())


def query_share(query: str, answer: Sequence[str], document: Sequence[str]) -> float:
    """Share of the query's terms that are in the answer's words or near places in the document's that have a 4-gram of
    it; 1 for a query without terms. A sentence often answers in words of its own, but seldom out of reach of the
    query's."""
    terms = query_terms(query)
    if not terms:
        return 1.0
    n = min(4, len(answer))
    grams = {tuple(answer[i : i + n]) for i in range(len(answer) - n + 1)} if n else set()
    places = [i for i in range(len(document) - n + 1) if tuple(document[i : i + n]) in grams]
    near = {word for i in places for word in document[max(0, i - _NEAR) : i + n + _NEAR]}
    return len(terms & query_terms(" ".join(near.union(answer)))) / len(terms)

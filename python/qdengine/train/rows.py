"""Rows to train on: a query, its document, and the summary that is wanted."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from .. import jsonl
from .._host import sentence_starts
from ..errors import RequestError
from ..jsonl import JsonlError
from ..request import Request

_OPENING = 30
"""Characters by which a summary is looked for among the sentences of all documents; a shorter one is not shared."""


@dataclass(frozen=True, slots=True)
class Row:
    """One thing to learn. summary: "" where the document holds no answer."""

    id: str
    query: str
    title: str
    document: str
    summary: str


def read(paths: Sequence[str | os.PathLike[str]], most: int | None = None) -> list[Row]:
    """The first `most` rows of JSON Lines files, or of folders with shards of them (part-*.jsonl). Raises `JsonlError`
    naming file and line of a row that cannot be used."""
    return list(islice((row for path in _files(paths) for row in _rows(path)), most))


def read_requests(paths: Sequence[str | os.PathLike[str]], most: int | None = None) -> list[Row]:
    """As `read`, of rows that need no summary, and without it."""
    numbered = (found for path in _files(paths) for found in enumerate(_requests(path), 1))
    return [
        Row(str(found.get("id", number)), request.query, request.title, request.document, "")
        for number, (_, request, found) in islice(numbered, most)
    ]


def _files(paths: Sequence[str | os.PathLike[str]]) -> Iterator[str | os.PathLike[str]]:
    for path in paths:
        if not os.path.isdir(path):
            yield path
        elif shards := sorted(Path(path).glob("part-*.jsonl")):
            yield from shards
        else:
            raise JsonlError(f"{path} is a folder without part-*.jsonl; give a file, or the folder of a run's labels")


def read_pairs(paths: Sequence[str | os.PathLike[str]], most: int | None = None) -> list[tuple[Row, Row]]:
    """The first `most` pairs of a better and a worse summary of one row, which stand under `chosen` and `rejected`.
    Raises `JsonlError` as `read` does."""
    pairs: list[tuple[Row, Row]] = []
    for place, request, found in islice((one for path in _files(paths) for one in _requests(path)), most):
        texts = [_text(found, name, place) for name in ("chosen", "rejected")]
        identity = str(len(pairs))
        better, worse = (Row(identity, request.query, request.title, request.document, text) for text in texts)
        pairs.append((better, worse))
    return pairs


def _rows(path: str | os.PathLike[str]) -> Iterator[Row]:
    for number, (place, request, found) in enumerate(_requests(path), 1):
        identity = str(found.get("id", number))
        yield Row(identity, request.query, request.title, request.document, _text(found, "summary", place))


def _requests(path: str | os.PathLike[str]) -> Iterator[tuple[str, Request, dict[str, Any]]]:
    """Place, request, and the whole object, of every row."""
    for number, found in enumerate(jsonl.read(path), 1):
        if isinstance(found, JsonlError):
            raise JsonlError(f"{path}: {found}")
        place = f"{path}: row {number}"
        given: dict[str, Any] = {name: found[name] for name in ("query", "title", "document") if name in found}
        try:
            request = Request.parse(given)
        except RequestError as error:
            raise JsonlError(f"{place}: {error}") from None
        yield place, request, found


def _text(found: dict[str, Any], name: str, place: str) -> str:
    value = found.get(name)
    if not isinstance(value, str):
        raise JsonlError(f"{place}: {name} must be a text, not {type(value).__name__}")
    return value.strip()


def by_document(rows: Sequence[Row]) -> list[list[Row]]:
    """The rows of each document, in the order in which the documents come."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.title, row.document), []).append(row)
    return list(groups.values())


def share_answers(groups: Sequence[list[Row]]) -> list[list[Row]]:
    """Each document's rows, and after them those of other documents whose summary it holds word for word.

    Neighbouring windows of a page, and pages mixed of paragraphs, answer each other's queries. A summary that stands
    under several titles is a set phrase that may be about something else here: it is not shared.
    """
    titles, places = defaultdict(set), defaultdict(set)
    for i, group in enumerate(groups):
        for row in group:
            titles[row.summary].add(row.title)
        document = group[0].document
        for start in sentence_starts(document):
            places[document[start : start + _OPENING]].add(i)
    shared = [list(group) for group in groups]
    queries = [{row.query for row in group} for group in groups]
    for group in groups:
        for row in group:
            if len(titles[row.summary]) > 1 or len(row.summary) < _OPENING:
                continue
            for i in sorted(places.get(row.summary[:_OPENING], ())):
                own = groups[i][0]
                if row.query not in queries[i] and row.summary in own.document:
                    queries[i].add(row.query)
                    shared[i].append(replace(row, title=own.title, document=own.document))
    return shared


def cover(groups: Sequence[list[Row]], most: int) -> list[list[Row]]:
    """Every row once, in groups of at most `most` rows of one document, those of most rows first: the order in which a
    budget of documents trains most rows. Greedy, the usual approximation of a maximum cover."""
    waiting: dict[int, list[int]] = defaultdict(list)  # by how many rows they would give, or gave when last looked at
    for i, group in enumerate(groups):
        waiting[min(most, len(group))].append(i)
    taken: set[tuple[str, str, str]] = set()
    chosen = []
    for size in range(most, 0, -1):
        for i in waiting[size]:  # grows by documents that have as many rows again
            left = {key: row for row in groups[i] if (key := (row.id, row.query, row.summary)) not in taken}
            if len(left) < size:
                waiting[len(left)].append(i)
                continue
            part = dict(islice(left.items(), size))
            taken.update(part)
            chosen.append(list(part.values()))
            waiting[min(size, len(left) - size)].append(i)
    return chosen

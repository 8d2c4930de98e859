"""What a student is trained on: a document, and behind it every query about it with the text that is wanted.

A pack runs the document through the model once for all its queries, so that a query costs its own tokens alone. Its
ids are those of `prompt.encode`, which the engine uses as well.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
import torch

from ..errors import RequestError
from ..model.reference import Shape
from ..prompt import SENTENCE_CHARACTERS, Prompt, PromptFormat, encode
from ..request import Request
from ..tokenizer import Tokenizer
from .rows import Row
from .windows import windows, with_answer, without_answer

_ENCODED = 256
"""Documents given to the tokenizer at a time."""
_SENTENCE_TOKENS = SENTENCE_CHARACTERS // 3
"""Of a sentence in a prompt at most, or nearly so."""


@dataclass(frozen=True, slots=True)
class Branch:
    """ids: int32, what follows the pack's beginning; the last `target` of them are to be learnt. id: the row's."""

    id: str
    ids: np.ndarray
    target: int


@dataclass(frozen=True, slots=True)
class Pack:
    """beginning: int32 [P], P >= 1, what all branches continue."""

    beginning: np.ndarray
    branches: tuple[Branch, ...]

    def __len__(self) -> int:
        return len(self.beginning) + sum(len(branch.ids) for branch in self.branches)


def batch(packs: Sequence[Pack], tokens: int = 0) -> dict[str, Any]:
    """Tensors of packs of T tokens together, R of which are to be learnt: ids int64 [1, T]; shapes, for `Tree.of`; rows
    int64 [R], the tokens before those; labels int64 [R]; branch int64 [R], which of all branches each is of; fused,
    whether T is the same for all: with `tokens`, up to which they are filled with a beginning that is not learnt from.
    """
    parts: list[np.ndarray] = []
    rows: list[np.ndarray] = []
    branch: list[np.ndarray] = []
    shapes: list[Shape] = []
    end = 0
    for pack in packs:
        end += len(pack.beginning)
        parts.append(pack.beginning)
        shapes.append((len(pack.beginning), [len(one.ids) for one in pack.branches]))
        for one in pack.branches:
            end += len(one.ids)
            parts.append(one.ids)
            branch.append(np.full(one.target, len(rows)))
            rows.append(np.arange(end - one.target - 1, end - 1))
    if end < tokens:
        parts.append(np.zeros(tokens - end, np.int32))
        shapes.append((tokens - end, []))
    ids = torch.from_numpy(np.concatenate(parts).astype(np.int64))
    at = torch.from_numpy(np.concatenate(rows))
    labels, of = ids[at + 1], torch.from_numpy(np.concatenate(branch))
    return {"ids": ids.unsqueeze(0), "shapes": shapes, "rows": at, "labels": labels, "branch": of, "fused": tokens > 0}


def together(packs: Sequence[Pack], tokens: int | None, seed: int) -> list[list[Pack]]:
    """The packs at random in groups of at most `tokens` tokens, which no pack exceeds; of one pack where it is None."""
    if tokens is None:
        return [[pack] for pack in packs]
    groups: list[list[Pack]] = []
    room = 0
    for i in np.random.default_rng(seed).permutation(len(packs)):
        if len(packs[i]) > room:
            groups.append([])
            room = tokens
        groups[-1].append(packs[i])
        room -= len(packs[i])
    return groups


def digest(packs: Sequence[Pack]) -> str:
    """Hex SHA-256 of what a run on these packs learns from."""
    found = hashlib.sha256()
    for pack in packs:
        sizes = [len(pack.beginning), *(len(one.ids) for one in pack.branches), *(one.target for one in pack.branches)]
        found.update(np.array(sizes, np.int64).tobytes())
        for ids in (pack.beginning, *(one.ids for one in pack.branches)):
            found.update(ids.tobytes())
    return found.hexdigest()


@dataclass(frozen=True, slots=True)
class Packer:
    """Makes packs of rows.

    stop_id: ends every target. max_tokens: most tokens of a prompt, beside those of its {sentences}; of a longer
    document a window is taken.
    positions: most tokens of a prompt and its target. absent: the target where a document holds no answer.
    absent_share: of the rows with a window of a long document, how many get one without the answer.
    """

    tokenizer: Tokenizer
    prompt: PromptFormat
    stop_id: int
    max_tokens: int
    positions: int
    absent: str
    absent_share: float = 0.0
    seed: int = 0

    def packs(self, groups: Sequence[list[Row]], skipped: Counter[str]) -> Iterator[Pack]:
        """The packs of groups of rows, each about one document. What cannot be used is counted in `skipped`."""
        for i in range(0, len(groups), _ENCODED):
            some = enumerate(groups[i : i + _ENCODED], i)
            parts = [part for number, group in some for part in self._fit(group, number, skipped)]
            requests = [Request(row.query, row.document, row.title) for part in parts for row in part]
            most = self.max_tokens + self.prompt.sentences * _SENTENCE_TOKENS
            prompts = iter(encode(self.tokenizer, self.prompt, requests, most))
            for part in parts:
                yield from self._join(part, list(islice(prompts, len(part))), skipped)

    def _fit(self, group: list[Row], number: int, skipped: Counter[str]) -> list[list[Row]]:
        """The group, or where its document is too long: the rows that a window with the first answer holds, and
        perhaps that answer's row with a window without it."""
        document = group[0].document
        first = next((row for row in group if row.summary and row.summary in document), None)
        room = self.max_tokens - self._room(group)
        if first is None or room < 1 or len(found := windows(self.tokenizer, document, room)) == 1:
            return [group]  # `encode` refuses what does not fit
        begin = document.find(first.summary)
        end = begin + len(first.summary)
        generator = np.random.default_rng((self.seed, number))
        parts = []
        if inside := with_answer(found, begin, end):
            a, b = inside[generator.integers(len(inside))]
            text = document[a:b]
            parts.append([replace(row, document=text) for row in group if row.summary and row.summary in text])
        skipped["answer not in the window"] += len(group) - sum(map(len, parts))
        if generator.random() < self.absent_share and (outside := without_answer(found, begin, end)):
            a, b = outside[generator.integers(len(outside))]
            parts.append([replace(first, document=document[a:b], summary="")])
        return parts

    def _room(self, group: list[Row]) -> int:
        """Tokens that the prompt needs beside the document, and a few for seams."""
        texts = ["".join(self.prompt.parts), group[0].title, *(row.query for row in group)]
        parts, title, *queries = (len(encoding.ids) for encoding in self.tokenizer.encode_batch(texts))
        return parts + title + max(queries) + 8

    def _join(self, rows: list[Row], prompts: Sequence[Prompt | RequestError], skipped: Counter[str]) -> Iterator[Pack]:
        waiting: dict[bytes, tuple[np.ndarray, list[Branch]]] = {}
        for row, prompt in zip(rows, prompts, strict=True):
            if isinstance(prompt, RequestError):
                skipped["no room for the document"] += 1
                continue
            if prompt.truncated:
                skipped["document cut"] += 1
                continue
            target = target_ids(self.tokenizer, self.prompt, prompt, row.document, row.summary or self.absent)
            target = np.append(target, np.int32(self.stop_id))
            if len(prompt.ids) + len(target) > self.positions:
                skipped["summary too long"] += 1
                continue
            beginning, rest = np.split(prompt.ids, [prompt.shareable])
            branch = Branch(row.id, np.concatenate([rest, target]), len(target))
            waiting.setdefault(beginning.tobytes(), (beginning, []))[1].append(branch)
        for beginning, branches in waiting.values():
            yield Pack(beginning, tuple(branches))


def target_ids(tokenizer: Tokenizer, prompt: PromptFormat, encoded: Prompt, document: str, summary: str) -> np.ndarray:
    """int32: the document's own tokens where `summary` is a run of it, so that copying is exact; else the tokens of
    `summary` behind the format's `output_prefix`."""
    begins, ends = encoded.offsets.T
    begin = document.find(summary)
    while begin >= 0:
        end = begin + len(summary)
        # A character can be several tokens, which end where it ends; and its last bytes a token with the next one's.
        first, last = (int(i) for i in np.searchsorted(ends, [begin, end], "right"))
        whole = ends[last - 1] == end and all(begins[last : last + 1] >= end)
        if first < last and whole and not document[begins[first] : begin].strip():
            return encoded.ids[encoded.document_begin + first : encoded.document_begin + last]
        begin = document.find(summary, begin + 1)
    return tokenizer.encode(prompt.output_prefix + summary).ids


def pairs_only(pack: Pack, skipped: Counter[str]) -> Pack | None:
    """The pack with those branches that have their partner: of each row two, the better one first."""
    count = Counter(branch.id for branch in pack.branches)
    kept = tuple(branch for branch in pack.branches if count[branch.id] == 2)
    skipped["pair not in one window"] += len(pack.branches) - len(kept)
    return Pack(pack.beginning, kept) if kept else None

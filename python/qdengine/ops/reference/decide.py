"""Which tokens come next: argmax, spans, drafts and what is kept of them."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .numbers import at_least_float32

MAX_MATCH = 32
"""Matches longer than this count as this long in `ngram_propose`, so that a scan is O(C) for any text."""


def greedy_argmax(out: Tensor, logits: Tensor) -> None:
    """out[r] = the lowest id with the highest logit; NaN is below everything. out: int32 [R]; logits: [R, V]."""
    clean = torch.where(logits.isnan(), -math.inf, logits)
    # torch.max does not promise which of several maxima it returns.
    best = clean == clean.amax(-1, keepdim=True)
    out.copy_(best.to(torch.int8).argmax(-1))


def allowed_argmax(
    chosen: Tensor,
    logits: Tensor,
    row_indptr: Tensor,
    tokens: Tensor,
    ranks: Tensor,
    bounds: Tensor,
    drafts: Tensor,
    verbatim: Tensor,
    twins: Tensor,
    stop_ids: Tensor,
    break_id: int,
) -> None:
    """Choose again for sequences that are verbatim: among the tokens that go on with whole sentences of the document.

    chosen: int32 [R] in and out, the choice of every row; those of a sequence with verbatim[s] != 0 (int32 [S]) are
    replaced, the others are left as they are. logits: [R, V]. row_indptr: int32 [S + 1], rows of each sequence, K + 1
    at most. tokens, ranks: int32 [S, C], bounds: int32 [S, 4], as in `ngram_propose`; drafts: int32 [S, K].

    Row k stands behind the output and the first k drafted tokens, its context. What follows the last `break_id` (int,
    -1 for none) there is the open span. A place is a sentence start of the document (the lowest bit of its rank) whose
    tokens from there on begin with the open span. A sentence may end before the next start, before a break_id and at
    the document's end, white space ahead of these not counted. One that the context has, up to where it may end, is
    not begun again: what stands before the open span forbids places, and the whole context forbids to go on into it.

    Allowed are, and NaN counts as -inf, ties go to the lowest id:

    - the token that a place goes on with, break_id only where the open span is not empty. Where it is empty, a token
      counts as much as its twin does if that is more;
    - break_id and stop_ids (int32 [1 or more]) behind an open span which may end there, and stop_ids behind a break_id.

    Nothing allowed: stop_ids[0]. twins: int32 [V], the token that has a space before it where this one has none, and
    the other way round; itself for none, -1 for white space. Tokens outside [0, V) are never allowed.
    """
    indptr, stops, pairs = row_indptr.tolist(), stop_ids.tolist(), twins.tolist()
    for s in torch.nonzero(verbatim).flatten().tolist():
        row, rank = tokens[s].tolist(), ranks[s].tolist()
        begin, end, output, length = bounds[s].tolist()
        written = row[output:length] + drafts[s].tolist()
        document = _Document(row[:end], rank[:end], begin, pairs, break_id)
        for k, r in enumerate(range(indptr[s], indptr[s + 1])):
            wide = at_least_float32(logits[r])
            worth = torch.where(wide.isnan(), -math.inf, wide).tolist()
            context = written[: max(length - output, 0) + k]
            allowed = _allowed(document, context, stops, worth)
            chosen[r] = max(allowed, key=lambda token: (allowed[token], -token), default=stops[0])


class _Document(NamedTuple):
    """What `allowed_argmax` copies from: tokens[begin:]."""

    tokens: list[int]
    ranks: list[int]
    begin: int
    twins: list[int]
    break_id: int

    def starts(self, place: int) -> bool:
        return place < len(self.tokens) and bool(self.ranks[place] & 1)

    def ends(self, place: int) -> bool:
        """Whether a sentence may end before `place`."""
        while place < len(self.tokens) and self.tokens[place] != self.break_id and self._blank(self.tokens[place]):
            place += 1
        return place >= len(self.tokens) or self.starts(place) or self.tokens[place] == self.break_id

    def written(self, place: int, context: list[int]) -> bool:
        """Whether `context` has the sentence at `place`."""
        for i in range(len(context)):
            t = 0
            while i + t < len(context) and place + t < len(self.tokens) and context[i + t] == self.tokens[place + t]:
                t += 1
                if self.ends(place + t):
                    return True
        return False

    def _blank(self, token: int) -> bool:
        return 0 <= token < len(self.twins) and self.twins[token] < 0


def _allowed(document: _Document, context: list[int], stops: list[int], worth: list[float]) -> dict[int, float]:
    """The tokens allowed behind `context`, with their worth."""
    opened = next((i for i in range(len(context), 0, -1) if context[i - 1] == document.break_id), 0)
    closed, span = context[:opened], context[opened:]
    found: list[tuple[int, float]] = []
    may_end = False
    for place in filter(document.starts, range(document.begin, len(document.tokens))):
        e = place + len(span)
        if document.tokens[place:e] != span or document.written(place, closed):
            continue
        may_end |= document.ends(e)
        if e == len(document.tokens) or (span and document.starts(e) and document.written(e, context)):
            continue
        token = document.tokens[e]
        if 0 <= token < len(worth) and (span or token != document.break_id):
            twin = document.twins[token] if not span else token
            found.append((token, max(worth[token], worth[twin] if 0 <= twin < len(worth) else -math.inf)))
    if span and may_end:
        found += [(token, worth[token]) for token in (*stops, document.break_id) if 0 <= token < len(worth)]
    elif context and not span:
        found += [(token, worth[token]) for token in stops if 0 <= token < len(worth)]
    # A token may be there twice, with its twin's worth and without.
    return dict(sorted(found))


def ngram_propose(
    drafts: Tensor,
    draft_lens: Tensor,
    tokens: Tensor,
    ranks: Tensor,
    bounds: Tensor,
    limits: Tensor,
) -> None:
    """Draft what follows the longest match of the recent output in the document and in the output itself.

    drafts: int32 [S, K] out (entries past draft_lens are left as they are); draft_lens: int32 [S] out.
    tokens: int32 [S, C], prompt and output of each sequence. bounds: int32 [S, 4]: document begin, document end, output
    begin, length. limits: int32 [S], most tokens to draft, cut to K.
    ranks: int32 [S, C], for tokens of the document: 2 * (overlap of the token's sentence with the query) + (1 where a
    sentence starts).

    A candidate is a place e whose m tokens before it equal the last m of the output, m as large as possible up to
    MAX_MATCH, all of them in the document (begin < e < document end) or all in the output. Longest first; ties go to a
    match that begins at a sentence start, then to the higher overlap there, then to the latest e. An output that
    is still empty matches every sentence start with m = 0; otherwise m is at least 1. The draft is the tokens from e to
    the end of the document, or of the output, up to the limit.
    """
    for s in range(tokens.shape[0]):
        row, rank = tokens[s].tolist(), ranks[s].tolist()
        limit = max(0, min(int(limits[s]), drafts.shape[1]))
        begin, end = _match(row, rank, *bounds[s].tolist())
        found = row[begin : min(end, begin + limit)]
        drafts[s, : len(found)] = torch.tensor(found, dtype=torch.int32, device=drafts.device)
        draft_lens[s] = len(found)


def _match(
    row: list[int], rank: list[int], doc_begin: int, doc_end: int, out_begin: int, length: int
) -> tuple[int, int]:
    """Where the best continuation begins, and where its region ends; (0, 0) for none."""
    best, place = (-1, 0, 0, 0), (0, 0)
    most = min(length - out_begin, MAX_MATCH)
    for low, high, in_document in ((doc_begin, doc_end, True), (out_begin, length, False)):
        for e in range(low, high):
            m = 0
            while m < most and e - m > low and row[e - 1 - m] == row[length - 1 - m]:
                m += 1
            here = rank[e - m] if in_document else 0
            if m == 0 and (most > 0 or not here & 1):
                continue
            score = (m, here & 1, here >> 1, e)
            if score > best:
                best, place = score, (e, high)
    return place


def verify_draft(
    out: Tensor, out_lens: Tensor, drafts: Tensor, draft_lens: Tensor, sampled: Tensor, row_indptr: Tensor
) -> None:
    """Keep the longest prefix of each draft that the model would have written, and the model's next token after it.

    out: int32 [S, K + 1] (entries past out_lens are left as they are); out_lens: int32 [S], accepted + 1, or 0 for a
    sequence without rows. drafts: int32 [S, K]; draft_lens: int32 [S]; sampled: int32 [R], the model's token after
    each row. row_indptr: int32 [S + 1]: sequence s has draft_lens[s] + 1 rows (the last known token, then the
    draft), or none.
    """
    bounds = row_indptr.tolist()
    for s in range(drafts.shape[0]):
        rows = sampled[bounds[s] : bounds[s + 1]].tolist()
        draft = drafts[s, : int(draft_lens[s])].tolist()
        accepted = 0
        while rows and accepted < len(draft) and rows[accepted] == draft[accepted]:
            accepted += 1
        count = accepted + 1 if rows else 0
        out[s, :count] = torch.tensor(rows[:count], dtype=torch.int32, device=out.device)
        out_lens[s] = count

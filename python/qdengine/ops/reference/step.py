"""What stands around a forward pass: its inputs, its results, and new sequences."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor


def pack_step(
    ids: Tensor,
    positions: Tensor,
    slots: Tensor,
    rows: Tensor,
    kv_lens: Tensor,
    q_indptr: Tensor,
    row_indptr: Tensor,
    drafted: Tensor,
    tokens: Tensor,
    bounds: Tensor,
    computed: Tensor,
    most: Tensor,
    reach: Tensor,
    drafts: Tensor,
    draft_lens: Tensor,
    block_tables: Tensor,
    block_tokens: int,
) -> None:
    """Lay the tokens of the next step end to end: the known ones of each sequence, then its draft.

    Sequence s gives its tokens from computed[s] on, at most most[s] of them (int32 [S]; 0 leaves it out), none at
    position reach[s] or beyond (int32 [S]). Where they reach its newest one the step is to write: its draft follows,
    as far as reach[s] allows, and the rows of the newest token and of the drafted ones are wanted. All known tokens
    must fit the step, and the rows of the newest ones; drafts are dropped from the last ones on where T or R is full.

    Out, int32: ids, positions, slots [T], the padding behind the step's tokens being 0, 0 and -1 (as is the slot of a
    position outside the block table); rows [R], tokens whose output is wanted, padded with 0; kv_lens [S], tokens with
    the new ones; q_indptr, row_indptr [S + 1], tokens and rows of each sequence; drafted [S], what is left of drafts.
    In, int32: tokens [S, C]; bounds [S, 4], of which the last is the length; drafts [S, K], draft_lens [S];
    block_tables [S, B] of blocks of `block_tokens`.
    """
    for out in (ids, positions, rows, q_indptr, row_indptr):
        out.zero_()
    slots.fill_(-1)
    lengths, firsts, limits, lens = bounds[:, 3].tolist(), computed.tolist(), most.tolist(), draft_lens.tolist()
    ends = reach.tolist()
    known = [
        max(0, min(m, n - first, end - first)) for n, first, m, end in zip(lengths, firsts, limits, ends, strict=True)
    ]
    writes = [k > 0 and first + k == n for k, first, n in zip(known, firsts, lengths, strict=True)]
    room = max(0, min(len(ids) - sum(known), len(rows) - sum(writes)))
    token = row = 0
    for s, first in enumerate(firsts):
        count = min(lens[s], room, ends[s] - lengths[s]) if writes[s] else 0
        room -= count
        taken = torch.cat([tokens[s, first : first + known[s]], drafts[s, :count]])
        end = token + len(taken)
        position = torch.arange(first, first + len(taken), dtype=torch.int32, device=ids.device)
        block = position // block_tokens
        inside = block < block_tables.shape[1]
        slot = block_tables[s, block[inside].long()] * block_tokens + position[inside] % block_tokens
        ids[token:end], positions[token:end] = taken, position
        slots[token:end][inside] = slot
        if writes[s]:
            rows[row : row + count + 1] = torch.arange(end - count - 1, end)
            row += count + 1
        drafted[s], kv_lens[s] = count, first + len(taken) if len(taken) else 0
        token = end
        q_indptr[s + 1], row_indptr[s + 1] = token, row


def commit_step(
    tokens: Tensor,
    bounds: Tensor,
    computed: Tensor,
    finished: Tensor,
    kept: Tensor,
    out: Tensor,
    out_lens: Tensor,
    drafted: Tensor,
    q_indptr: Tensor,
    ends: Tensor,
    stop_ids: Tensor,
) -> None:
    """Take a step's result into the sequences: what was computed counts, and what was written is appended.

    Of sequence s the step computed its q_indptr[s + 1] - q_indptr[s] tokens, drafted[s] of them a draft, and wrote
    out[s, :out_lens[s]] (`verify_draft`). computed[s] grows by the known tokens and the kept draft; the written tokens
    are appended up to a stop id, which is not, and up to a length of ends[s]. A sequence that so ended has
    finished[s] = 1 (a stop id) or 2 (ends[s] reached) and computed[s] = its length, so that no later step takes it in.

    In and out, int32: tokens [S, C]; bounds [S, 4], of which the last is the length; computed, finished [S]. Out: kept
    [S], tokens appended. In: out [S, K + 1], out_lens, drafted [S], q_indptr [S + 1], ends [S], stop_ids [any].
    """
    stops, indptr = set(stop_ids.tolist()), q_indptr.tolist()
    for s in range(tokens.shape[0]):
        kept[s] = 0
        share, written = indptr[s + 1] - indptr[s], out[s, : int(out_lens[s])].tolist()
        if share <= 0:
            continue
        computed[s] += share - int(drafted[s]) + max(len(written) - 1, 0)
        length, end = int(bounds[s, 3]), min(int(ends[s]), tokens.shape[1])
        taken = list(itertools.takewhile(lambda token: token not in stops, written))[: max(0, end - length)]
        tokens[s, length : length + len(taken)] = torch.tensor(taken, dtype=torch.int32, device=tokens.device)
        length += len(taken)
        bounds[s, 3], kept[s] = length, len(taken)
        if written and (length >= end or len(taken) < len(written)):
            finished[s] = 2 if length >= end else 1
            computed[s] = length


def admit_rows(
    tokens: Tensor,
    ranks: Tensor,
    bounds: Tensor,
    computed: Tensor,
    finished: Tensor,
    ends: Tensor,
    admitted: Tensor,
    staged: Tensor,
) -> None:
    """Put sequences into their rows of the arrays.

    admitted: int32 [A, 8], for each: row, document begin, document end, output begin, length, computed, end, and where
    in `staged` (int32 [N]) its `length` tokens begin, with as many ranks behind them. Out, int32, in those rows
    alone: tokens, ranks [S, C] up to the length; bounds [S, 4]; computed, ends [S]; finished [S] = 0. Rows outside the
    arrays, and records that `staged` does not hold whole, are left out.
    """
    for row, begin, end, output, length, done, limit, at in admitted.tolist():
        if not (0 <= row < len(tokens) and 0 <= length <= tokens.shape[1] and 0 <= at <= len(staged) - 2 * length):
            continue
        tokens[row, :length], ranks[row, :length] = staged[at : at + length], staged[at + length : at + 2 * length]
        bounds[row] = torch.tensor([begin, end, output, length], dtype=torch.int32, device=bounds.device)
        computed[row], ends[row], finished[row] = done, limit, 0

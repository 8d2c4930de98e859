"""allowed_argmax on the device. The contract is ops/reference, the logic that of csrc's span.h.

Bound by latency: of a document's places few are sentence starts, and of the logits those are read that go on with one.
Plan: a program a row, which looks at BLOCK places at a time and compares further only while one of them still matches;
programs of other rows leave at once. Limits: V below 2^31. Bounds may be anything: no read is outside the row.
Not measured on a GPU yet.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .common import OPTIONS

BLOCK = 1024
NO_TOKEN = tl.constexpr(0x7FFFFFFF)


@triton.jit
def _clamped(x, high):
    return tl.minimum(tl.maximum(x, 0), high)


@triton.jit
def _any(mask):
    return tl.max(mask.to(tl.int32), 0)


@triton.jit
def _at(output, draft, written, i, valid):
    """Token i of the context: the output, then drafted tokens."""
    known = tl.load(output + i, valid & (i < written), 0)
    return tl.where(i < written, known, tl.load(draft + i - written, valid & (i >= written), 0))


@triton.jit
def _ends(tokens, ranks, twins, end, vocab, break_id, place, alive):
    """Of `alive` places, those before which a sentence may end."""
    skipping = alive
    going = _any(skipping)
    while going > 0:
        token = tl.load(tokens + place, skipping & (place < end), break_id)
        known = (token != break_id) & (token >= 0) & (token < vocab)
        skipping = skipping & known & (tl.load(twins + token, skipping & known, 0) < 0)
        place += skipping.to(tl.int32)
        going = _any(skipping)
    token = tl.load(tokens + place, alive & (place < end), 0)
    start = tl.load(ranks + place, alive & (place < end), 0) & 1
    return alive & ((place >= end) | (start > 0) | (token == break_id))


@triton.jit
def _has(tokens, ranks, twins, end, vocab, break_id, output, draft, written, length, place, alive):
    """Of `alive` places, those whose sentence the first `length` tokens of the context have."""
    found = alive & (place < 0)
    for i in range(0, length):
        same = alive
        t = 0
        going = _any(same)
        while going > 0:
            given = _at(output, draft, written, i + t, i + t < length)
            same = same & (place + t < end)
            same = same & (tl.load(tokens + place + t, same, 0) == given)
            t += 1
            going = _any(same)
            if going > 0:
                done = _ends(tokens, ranks, twins, end, vocab, break_id, place + t, same)
                found = found | done
                same = same & (done == 0)
                going = tl.where(i + t < length, _any(same), 0)
    return found


@triton.jit
def _last_break(output, draft, written, length, break_id, BLOCK: tl.constexpr):
    """Where the open span begins."""
    opened = 0
    for begin in range(0, length, BLOCK):
        i = begin + tl.arange(0, BLOCK)
        broken = (i < length) & (_at(output, draft, written, i, i < length) == break_id)
        opened = tl.maximum(opened, tl.max(tl.where(broken, i + 1, 0), 0))
    return opened


@triton.jit
def _better(best, chosen, value, token):
    """The best of some tokens (`token`, NO_TOKEN for none) with their logits, and of the one so far."""
    value = tl.where(value == value, value, float("-inf"))  # NaN is below everything
    value = tl.where(token == NO_TOKEN, float("-inf"), value)
    top = tl.max(value, 0)
    first = tl.min(tl.where(value == top, token, NO_TOKEN), 0)
    wins = (first != NO_TOKEN) & ((chosen == NO_TOKEN) | (top > best) | ((top == best) & (first < chosen)))
    return tl.where(wins, top, best), tl.where(wins, first, chosen)


@triton.jit(do_not_specialize=["sequences", "vocab", "capacity", "max_draft", "stops", "break_id"])
def _allowed_kernel(
    chosen, logits, row_indptr, tokens, ranks, bounds, drafts, verbatim, twins, stop_ids, break_id, sequences, vocab,
    capacity, max_draft, stops, logits_stride, tokens_stride, ranks_stride, drafts_stride, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    owner = -1
    for begin in range(0, sequences, BLOCK):
        j = begin + tl.arange(0, BLOCK)
        mine = (j < sequences) & (tl.load(verbatim + j, j < sequences, 0) != 0)
        mine = mine & (tl.load(row_indptr + j, mine, 0) <= row) & (tl.load(row_indptr + j + 1, mine, 0) > row)
        owner = tl.maximum(owner, tl.max(tl.where(mine, j, -1), 0))
    if owner < 0:
        return
    s = owner.to(tl.int64)
    low = _clamped(tl.load(bounds + 4 * s), capacity)
    end = _clamped(tl.load(bounds + 4 * s + 1), capacity)
    output_begin = _clamped(tl.load(bounds + 4 * s + 2), capacity)
    written = tl.maximum(_clamped(tl.load(bounds + 4 * s + 3), capacity) - output_begin, 0)
    length = written + _clamped(row - tl.load(row_indptr + s), max_draft)
    document = tokens + s * tokens_stride
    rank = ranks + s * ranks_stride
    output = document + output_begin
    draft = drafts + s * drafts_stride
    logit = logits + row.to(tl.int64) * logits_stride
    opened = _last_break(output, draft, written, length, break_id, BLOCK)
    count = length - opened
    best = float("-inf")
    choice = NO_TOKEN
    may_end = 0
    for begin in range(low, end, BLOCK):
        place = begin + tl.arange(0, BLOCK)
        alive = (place < end) & ((tl.load(rank + place, place < end, 0) & 1) > 0) & (count <= end - place)
        t = 0
        going = tl.where(_any(alive) > 0, count, 0)
        while going > t:
            given = _at(output, draft, written, opened + t, opened + t < length)
            alive = alive & (tl.load(document + place + t, alive, 0) == given)
            t += 1
            going = tl.where(_any(alive) > 0, count, 0)
        alive = alive & (
            _has(document, rank, twins, end, vocab, break_id, output, draft, written, opened, place, alive) == 0
        )
        e = place + count
        spanning = alive & (e > place)
        may_end = tl.maximum(may_end, _any(_ends(document, rank, twins, end, vocab, break_id, e, spanning)))
        again = spanning & (e < end)
        again = again & ((tl.load(rank + e, again, 0) & 1) > 0)
        again = _has(document, rank, twins, end, vocab, break_id, output, draft, written, length, e, again)
        goes_on = alive & (e < end) & (again == 0)
        token = tl.load(document + e, goes_on, -1)
        goes_on = goes_on & (token >= 0) & (token < vocab) & ((e > place) | (token != break_id))
        twin = tl.load(twins + token, goes_on & (e == place), -1)
        value = tl.load(logit + token, goes_on, float("-inf")).to(tl.float32)
        paired = tl.load(logit + twin, (twin >= 0) & (twin < vocab), float("-inf")).to(tl.float32)
        token = tl.where(goes_on, token, NO_TOKEN)
        best, choice = _better(best, choice, value, token)
        best, choice = _better(best, choice, paired, token)
    closing = tl.where(count > 0, (stops + 1) * may_end, tl.where(length > 0, stops, 0))
    for begin in range(0, closing, BLOCK):
        i = begin + tl.arange(0, BLOCK)
        token = tl.where(i < stops, tl.load(stop_ids + i, i < stops, -1), break_id)
        fits = (i < closing) & (token >= 0) & (token < vocab)
        value = tl.load(logit + token, fits, float("-inf")).to(tl.float32)
        best, choice = _better(best, choice, value, tl.where(fits, token, NO_TOKEN))
    tl.store(chosen + row, tl.where(choice == NO_TOKEN, tl.load(stop_ids), choice))


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
    rows, vocab = logits.shape
    sequences = len(verbatim)
    if rows == 0 or sequences == 0:
        return
    block = triton.next_power_of_2(min(max(tokens.shape[1], 1), BLOCK))
    _allowed_kernel[(rows,)](
        chosen, logits, row_indptr, tokens, ranks, bounds, drafts, verbatim, twins, stop_ids, break_id, sequences,
        vocab, tokens.shape[1], drafts.shape[1], len(stop_ids), logits.stride(0), tokens.stride(0), ranks.stride(0),
        drafts.stride(0), BLOCK=block, **OPTIONS,
    )  # fmt: skip

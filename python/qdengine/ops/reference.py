"""The contract of every op, in plain torch. Other backends have the same names and are tested against this.

Outputs come first and are written in place; nothing is returned. Dimension letters: T tokens, S sequences, R rows of
logits, E width, F ffn width, H query heads, G kv heads, D head width, V vocabulary, N blocks, P tokens per block,
B blocks per sequence, C tokens a sequence may have, K drafted tokens at most. Floating tensors are float32, bfloat16 or
float16, all of one dtype in a call unless said otherwise; arithmetic is at least float32 (float64 for float64 inputs:
the truth that tests compare with). Index tensors are int32. The last dimension of every tensor is contiguous.
"""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import torch
from torch import Tensor

MAX_MATCH = 32
"""Matches longer than this count as this long in `ngram_propose`, so that a scan is O(C) for any text."""

SPLIT_KEYS = 256
"""`paged_attention` may work on this many keys of a row apart from the others."""


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _write(out: Tensor, scales: Tensor | None, y: Tensor, dtype: torch.dtype) -> None:
    """The result y, which is rounded to `dtype`, and where `out` is of 8 bits quantised."""
    if scales is None:
        out.copy_(y)
    else:
        numbers, scale = _quantize(y.to(dtype), out.dtype)
        out.copy_(numbers)
        scales.copy_(scale)


def rms_norm(out: Tensor, scales: Tensor | None, x: Tensor, weight: Tensor, eps: float) -> None:
    """out[t] = x[t] / sqrt(mean(x[t]^2) + eps) * weight (arXiv 1910.07467). out, x: [T, E]; weight: [E].

    As of every op with `scales`, out has the dtype of the inputs and scales is None, or out is int8 or float8_e4m3fn
    and scales float32 [T]: the result, rounded to the dtype of the inputs, is then written as by `quantize`.
    """
    wide = _wide(x)
    scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    _write(out, scales, wide * scale * _wide(weight), x.dtype)


def layer_norm(out: Tensor, scales: Tensor | None, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> None:
    """out[t] = (x[t] - mean) / sqrt(var + eps) * weight + bias (arXiv 1607.06450). out, x: [T, E]; others: [E]."""
    wide = _wide(x)
    centred = wide - wide.mean(-1, keepdim=True)
    scale = torch.rsqrt(centred.square().mean(-1, keepdim=True) + eps)
    _write(out, scales, centred * scale * _wide(weight) + _wide(bias), x.dtype)


def add_rms_norm(out: Tensor, scales: Tensor | None, residual: Tensor, x: Tensor, weight: Tensor, eps: float) -> None:
    """residual += x (rounded to its dtype), then out = rms_norm(residual). out, residual, x: [T, E]; weight: [E]."""
    residual.add_(x)
    rms_norm(out, scales, residual, weight, eps)


def add_layer_norm(
    out: Tensor, scales: Tensor | None, residual: Tensor, x: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> None:
    """residual += x (rounded to its dtype), then out = layer_norm(residual). out, residual, x: [T, E]; others: [E]."""
    residual.add_(x)
    layer_norm(out, scales, residual, weight, bias, eps)


def silu_mul(out: Tensor, scales: Tensor | None, gate_up: Tensor) -> None:
    """out = silu(gate) * up with gate, up = the halves of gate_up (arXiv 2002.05202). out: [T, F]; gate_up: [T, 2F]."""
    gate, up = _wide(gate_up).chunk(2, -1)
    _write(out, scales, gate * torch.sigmoid(gate) * up, gate_up.dtype)


def gelu(out: Tensor, scales: Tensor | None, x: Tensor) -> None:
    """out = x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))): GPT-2's GELU (arXiv 1606.08415). out, x: [T, F]."""
    wide = _wide(x)
    y = 0.5 * wide * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (wide + 0.044715 * wide**3)))
    _write(out, scales, y, x.dtype)


def quantize(out: Tensor, scales: Tensor, x: Tensor) -> None:
    """out[t] = round(x[t] * (largest / max |x[t]|)), to nearest, ties to even, and scales[t] = max |x[t]| / largest.

    out: int8 (largest = 127) or float8_e4m3fn (448) [T, F]; scales: float32 [T]; x: [T, F]. So x ~ out * scales. A row
    with max |x| < 2^-116 has zeros. In float32 whatever x is.
    """
    _write(out, scales, x, x.dtype)


def dequantize(out: Tensor, sums: Tensor, scales: Tensor, weight_scales: Tensor, bias: Tensor | None) -> None:
    """out[t, f] = sums[t, f] * scales[t] * weight_scales[f] + bias[f]: what a product of int8 matrices stands for.

    out: [T, F]; sums: int32 [T, F], the products' exact sums; scales: float32 [T], of the rows (`quantize`);
    weight_scales: float32 [F], of the weight's rows; bias: [F] or None.
    """
    wide = sums.to(_wide(out).dtype) * (weight_scales * scales.unsqueeze(1))
    out.copy_(wide if bias is None else wide + _wide(bias))


def rope_append(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    k_scales: Tensor | None,
    v_scales: Tensor | None,
    qkv: Tensor,
    positions: Tensor,
    slots: Tensor,
    cos: Tensor | None,
    sin: Tensor | None,
    q_weight: Tensor | None,
    k_weight: Tensor | None,
    eps: float,
) -> None:
    """Normalise and rotate q and k of every token, write q, and append k and v to the paged cache.

    q: [T, H, D] out; k_cache, v_cache: [N, P, G, D] out; qkv: [T, (H + 2G) D], the heads of q, then of k, then of v.
    positions: int32 [T]; slots: int32 [T], block * P + place, or -1 for "do not append".
    cos, sin: float32 [C, D/2] (float64 in float64 calls), rows by position; None for no rotation (learned positions).
    The pairs rotated are (i, i + D/2), as in Llama and Qwen checkpoints (arXiv 2104.09864).
    q_weight, k_weight: [D], an RMS norm of each head with eps before the rotation (Qwen 3); None for none.

    The caches have the dtype of q, or are int8 or float8_e4m3fn, and then k_scales, v_scales: float32 [N, P, G] out.
    Each head x of a token, rounded to q's dtype, has a scale of its own, in float32: x is stored as
    round(x * (largest / max |x|)), to nearest, ties to even, with scale max |x| / largest; largest is 127 or 448. A
    head of zeros has zeros and scale 0.
    """
    tokens, heads, width = q.shape
    kv_heads = k_cache.shape[2]
    parts = qkv.view(tokens, heads + 2 * kv_heads, width)
    query, key, value = parts.split([heads, kv_heads, kv_heads], 1)
    query, key = _wide(query), _wide(key)
    if q_weight is not None and k_weight is not None:
        query = query * torch.rsqrt(query.square().mean(-1, keepdim=True) + eps) * _wide(q_weight)
        key = key * torch.rsqrt(key.square().mean(-1, keepdim=True) + eps) * _wide(k_weight)
    if cos is not None and sin is not None:
        c, s = cos[positions.long()].unsqueeze(1), sin[positions.long()].unsqueeze(1)
        query, key = _rotate(query, c, s), _rotate(key, c, s)
    q.copy_(query)
    kept = slots >= 0
    where = slots[kept].long()
    for x, cache, scales in ((key, k_cache, k_scales), (value, v_cache, v_scales)):
        new = x[kept].to(q.dtype)
        if scales is not None:
            new, scale = _quantize(new, cache.dtype)
            scales.view(-1, kv_heads)[where] = scale.to(scales.dtype)
        # float8 has no scatter of its own; its bytes do.
        _bytes(cache).view(-1, kv_heads, width)[where] = _bytes(new)


def _bytes(x: Tensor) -> Tensor:
    return x.view(torch.uint8) if x.itemsize == 1 else x


def _widened(cache: Tensor, scales: Tensor | None, q: Tensor) -> Tensor:
    """The cache's numbers in the type that is computed in."""
    wide = cache.to(torch.float64 if q.dtype == torch.float64 else torch.float32)
    return wide if scales is None else wide * scales.unsqueeze(-1)


def _quantize(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The rows of x in 8 bits, and their scales in float32."""
    wide = x.float()
    top = wide.abs().amax(-1, keepdim=True)
    # A tensor: of numbers torch takes the reciprocal, and rounds once more.
    largest = torch.full_like(top, 127 if dtype == torch.int8 else torch.finfo(dtype).max)
    numbers = wide * torch.where(top >= 2.0**-116, largest / top, 0.0)  # else the factor would be infinite
    return (numbers.round() if dtype == torch.int8 else numbers).to(dtype), (top / largest).squeeze(-1)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    low, high = x.chunk(2, -1)
    return torch.cat([low * cos - high * sin, high * cos + low * sin], -1)


def paged_attention(
    out: Tensor,
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    k_scales: Tensor | None,
    v_scales: Tensor | None,
    workspace: Tensor | None,
    block_tables: Tensor,
    kv_lens: Tensor,
    q_indptr: Tensor,
    scale: float,
) -> None:
    """Causal attention of the new tokens of every sequence over its paged keys and values, be it prefill or decode.

    out, q: [T, H, D]; k_cache, v_cache: [N, P, G, D] in the dtype of q, or in 8 bits with k_scales, v_scales: float32
    [N, P, G], as `rope_append` writes them. Query head h reads kv head h // (H / G). scale: positive.
    block_tables: int32 [S, B], block ids in order; entries past ceil(kv_lens / P) are never read.
    kv_lens: int32 [S], tokens of each sequence including the new ones; q_indptr: int32 [S + 1], rows of sequence s
    are q_indptr[s] to q_indptr[s + 1]. Row i of n new ones has position kv_len - n + i and sees the
    positions up to its own.
    workspace: float32 [any] or None, contents of no matter. Where it has `attention_workspace` numbers for this call, a
    backend may work on every SPLIT_KEYS keys apart, for a GPU to be busy with few tokens. No result depends on it.
    """
    group = q.shape[1] // k_cache.shape[2]
    size = k_cache.shape[1]
    bounds = q_indptr.tolist()
    for s, length in enumerate(kv_lens.tolist()):
        begin, end = bounds[s], bounds[s + 1]
        if begin == end:
            continue
        blocks = block_tables[s, : -(-length // size)].long()
        key, value = (
            _widened(cache[blocks], None if scales is None else scales[blocks], q).flatten(0, 1)[:length]
            for cache, scales in ((k_cache, k_scales), (v_cache, v_scales))
        )
        key, value = key.repeat_interleave(group, 1), value.repeat_interleave(group, 1)
        scores = torch.einsum("qhd,khd->hqk", _wide(q[begin:end]), key) * scale
        position = torch.arange(length - (end - begin), length, device=q.device).unsqueeze(1)
        scores.masked_fill_(torch.arange(length, device=q.device) > position, -math.inf)
        out[begin:end] = torch.einsum("hqk,khd->qhd", torch.softmax(scores, -1), value).to(out.dtype)


def attention_workspace(tokens: int, heads: int, head_width: int, keys: int) -> int:
    """float32 numbers of a `paged_attention` workspace, for T = tokens and block tables of `keys` = B P keys: of each
    split and row (token, head) the values' weighted sum, the largest score and the sum of weights."""
    return -(-keys // SPLIT_KEYS) * tokens * heads * (head_width + 2)


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
            wide = _wide(logits[r])
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
    must fit the step; drafts are dropped from the last ones on where it is full.

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
    room = max(0, len(ids) - sum(known))
    token = row = 0
    for s, first in enumerate(firsts):
        writes = known[s] > 0 and first + known[s] == lengths[s]
        count = min(lens[s], room, ends[s] - lengths[s]) if writes else 0
        room -= count
        taken = torch.cat([tokens[s, first : first + known[s]], drafts[s, :count]])
        end = token + len(taken)
        position = torch.arange(first, first + len(taken), dtype=torch.int32, device=ids.device)
        block = position // block_tokens
        inside = block < block_tables.shape[1]
        slot = block_tables[s, block[inside].long()] * block_tokens + position[inside] % block_tokens
        ids[token:end], positions[token:end] = taken, position
        slots[token:end][inside] = slot
        if writes:
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

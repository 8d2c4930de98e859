"""The case list that every backend runs: inputs by op, dtype and shape. Shared with benchmarks/."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from qdengine.ops.reference import attention_workspace
from torch import Tensor

ROWS = (0, 1, 2, 7, 33)
WIDTHS = (1, 15, 64, 100, 576)
# heads, kv heads, head width, tokens per block
ATTENTION = ((9, 3, 64, 16), (4, 4, 32, 1), (8, 1, 80, 5), (2, 1, 128, 64), (3, 3, 6, 16))
# (length in the cache, new tokens) of each sequence
BATCHES = (
    ((1, 1),),
    ((40, 40), (17, 1)),
    ((130, 5), (16, 16), (64, 0), (65, 65), (63, 1)),
    ((200, 70), (33, 33), (32, 2)),
)
SPLIT_BATCH = ((600, 3), (300, 50), (257, 1), (256, 2))
EIGHT_BIT = (torch.int8, torch.float8_e4m3fn)


@dataclass(frozen=True)
class Case:
    """Arguments of one call. `outputs` are the positions that it writes."""

    op: str
    name: str
    args: tuple[Any, ...]
    outputs: tuple[int, ...] = field(default=(0,))


def _random(generator: torch.Generator, dtype: torch.dtype, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator).to(dtype)


def row_cases(dtype: torch.dtype) -> list[Case]:
    g = torch.Generator().manual_seed(1)
    cases = []
    for rows in ROWS:
        for width in WIDTHS:
            # A view of a wider buffer: rows need not be adjacent.
            x = _random(g, dtype, rows, width + 3)[:, :width]
            weight, bias = _random(g, dtype, width), _random(g, dtype, width)
            name = f"{rows}x{width}"
            for kind in (dtype, EIGHT_BIT[len(cases) // 16 % 2]):
                out = torch.empty(rows, width, dtype=torch.uint8 if kind in EIGHT_BIT else kind)
                out = out.zero_().view(kind)
                scales, outputs = (None, (0,)) if kind == dtype else (torch.full((rows,), -7.0), (0, 1))
                residual, gate_up = _random(g, dtype, rows, width), _random(g, dtype, rows, 2 * width) * 8
                calls: list[tuple[str, tuple[Any, ...]]] = [
                    ("rms_norm", (x, weight, 1e-5)),
                    ("layer_norm", (x, weight, bias, 1e-5)),
                    ("add_rms_norm", (residual, x, weight, 1e-5)),
                    ("add_layer_norm", (residual, x, weight, bias, 1e-5)),
                    ("silu_mul", (gate_up,)),
                    ("gelu", (x * 4,)),
                ]
                cases += [
                    Case(op, f"{name}-{kind}", (out, scales, *args), (*outputs, 2) if op.startswith("add") else outputs)
                    for op, args in calls
                ]
                if scales is not None:
                    spread = x * torch.logspace(-3, 3, rows, dtype=torch.float32).to(dtype)[:, None]
                    spread[1::3] = 0.0
                    cases.append(Case("quantize", f"{name}-{kind}", (out, scales, spread), outputs))
            sums = torch.randint(-(2**25), 2**25, (rows, width + 3), generator=g, dtype=torch.int32)[:, :width]
            factors = (torch.rand(rows, generator=g) * 1e-3, torch.rand(width, generator=g) * 1e-3)
            empty = torch.empty(rows, width, dtype=dtype)
            for kind, given in (("", None), ("-bias", bias)):
                cases.append(Case("dequantize", name + kind, (empty, sums, *factors, given)))
    return cases


def argmax_cases(dtype: torch.dtype) -> list[Case]:
    g = torch.Generator().manual_seed(2)
    cases = []
    for rows, vocab in ((0, 7), (1, 1), (5, 33), (3, 49152), (4, 1000)):
        # Few distinct values, so that ties are common.
        logits = torch.randint(-4, 4, (rows, vocab), generator=g).to(dtype)
        cases.append(Case("greedy_argmax", f"{rows}x{vocab}", (torch.empty(rows, dtype=torch.int32), logits)))
    odd = torch.full((3, 50), -torch.inf).to(dtype)
    odd[0, 3], odd[0, 20] = torch.nan, 1.0
    odd[1] = torch.nan
    cases.append(Case("greedy_argmax", "nan", (torch.empty(3, dtype=torch.int32), odd)))
    return cases


def allowed_cases(dtype: torch.dtype) -> list[Case]:
    """Outputs and drafts that copy from the document, more or less: token 0 breaks spans, and 1 is white space."""
    g = torch.Generator().manual_seed(6)
    cases = []
    # Sequences, capacity, drafts, letters of the document, vocabulary; how often a sentence starts.
    for n, (sequences, capacity, draft, letters, vocab, often) in enumerate(
        (
            (0, 12, 2, 3, 4, 0.5),
            (1, 12, 0, 3, 4, 1.0),
            (7, 40, 5, 6, 8, 0.4),
            (6, 90, 6, 9, 900, 0.2),
            (3, 60, 5, 8, 6, 0),
        )
    ):
        for break_id in (0, -1):
            tokens = torch.randint(0, 2 * letters, (sequences, capacity), generator=g, dtype=torch.int32) % (
                letters + 1
            )
            ranks = 6 + (torch.rand(sequences, capacity, generator=g) < often).int()
            bounds = torch.zeros(sequences, 4, dtype=torch.int32)
            drafts = torch.randint(-1, letters, (sequences, draft + 1), generator=g, dtype=torch.int32)[:, :draft]
            for s in range(sequences):
                begin, end, output = s % 3, capacity // 2 - s, capacity // 2 + s % 2
                length = output + (5 * s) % (capacity // 2 - 1)
                written = _copied(tokens[s, begin:end], ranks[s, begin:end], break_id, g) + [2] * capacity
                tokens[s, output:length] = torch.tensor(written[: length - output], dtype=torch.int32)
                if s % 5 != 3:
                    drafts[s] = torch.tensor(written[length - output :][:draft], dtype=torch.int32)
                bounds[s] = torch.tensor([begin, end, output, length])
            counts = torch.randint(0, draft + 2, (sequences,), generator=g)
            indptr = torch.cat([torch.zeros(1), counts.cumsum(0)]).int()
            rows = int(indptr[-1]) + 2
            logits = torch.randint(-4, 4, (rows, vocab + 3), generator=g).to(dtype)[:, :vocab]
            logits[::5, 1], logits[::7] = torch.nan, -torch.inf
            twins = torch.randint(-1, vocab + 1, (vocab,), generator=g, dtype=torch.int32)
            twins[:3] = torch.tensor([0, -1, 3])
            verbatim = (torch.arange(sequences) % 5 != 4).int()
            stops = torch.tensor([vocab - 1, vocab, 2], dtype=torch.int32)
            given = (indptr, tokens, ranks, bounds, drafts, verbatim, twins, stops, break_id)
            chosen = torch.full((rows,), -7, dtype=torch.int32)
            cases.append(Case("allowed_argmax", f"{n} {break_id}", (chosen, logits, *given)))
    return cases


def _copied(document: Tensor, ranks: Tensor, break_id: int, g: torch.Generator) -> list[int]:
    """Spans of a document in any order, each with what may follow the one before."""
    starts = torch.nonzero(ranks & 1).flatten()
    written: list[int] = []
    for start in starts[torch.randperm(len(starts), generator=g)].tolist():
        ends = [*starts[starts > start].tolist(), len(document)]
        written += document[start : ends[int(torch.randint(0, min(len(ends), 2), (1,), generator=g))]].tolist()
        if break_id < 0:
            return document[start:].tolist()
        written.append(break_id)
    return written


def paged(batch: tuple[tuple[int, int], ...], size: int, seed: int) -> dict[str, Tensor]:
    """A block table with shuffled blocks and illegal ids in its unused tails, and what goes with it."""
    needed = [-(-length // size) for length, _ in batch]
    blocks = sum(needed) + 2
    order = torch.randperm(blocks, generator=torch.Generator().manual_seed(seed)).tolist()
    table = torch.full((len(batch), max(needed) + 3), 2**30, dtype=torch.int32)
    positions: list[int] = []
    slots: list[int] = []
    for s, (length, new) in enumerate(batch):
        mine = [order.pop() for _ in range(needed[s])]
        table[s, : len(mine)] = torch.tensor(mine, dtype=torch.int32)
        positions += range(length - new, length)
        slots += [mine[p // size] * size + p % size for p in range(length - new, length)]
    int32 = {"dtype": torch.int32}
    return {
        "blocks": torch.tensor(blocks),
        "table": table,
        "positions": torch.tensor(positions, **int32),
        "slots": torch.tensor(slots, **int32),
        "kv_lens": torch.tensor([length for length, _ in batch], **int32),
        "q_indptr": torch.tensor([0, *torch.tensor([new for _, new in batch]).cumsum(0).tolist()], **int32),
    }


def kv_cache(g: torch.Generator, dtype: torch.dtype, *shape: int) -> list[Tensor | None]:
    """k_cache, v_cache, k_scales, v_scales of shape [N, P, G, D]; of 8 bits in every number."""
    if dtype not in EIGHT_BIT:
        return [_random(g, dtype, *shape), _random(g, dtype, *shape), None, None]
    # float8 has two bytes that are no number.
    most = 255 if dtype == torch.int8 else 127
    signs = torch.randint(0, 2, (2, *shape), generator=g) * 128 if dtype != torch.int8 else 0
    caches = (torch.randint(0, most, (2, *shape), generator=g) + signs).to(torch.uint8).view(dtype)
    largest = 127 if dtype == torch.int8 else 448
    return [*caches, *(2 * torch.rand(2, *shape[:-1], generator=g) / largest)]


def attention_cases(dtype: torch.dtype) -> list[Case]:
    g = torch.Generator().manual_seed(3)
    cases = []
    for n, (heads, kv_heads, width, size) in enumerate(ATTENTION):
        # Of more than one split, for the widths that tensor cores take.
        batches = (*BATCHES, SPLIT_BATCH) if width in (64, 128) else BATCHES
        for i, batch in enumerate(batches):
            p = paged(batch, size, i)
            tokens, blocks = len(p["positions"]), int(p["blocks"])
            q, out = _random(g, dtype, tokens, heads, width), torch.empty(tokens, heads, width, dtype=dtype)
            tables = (p["table"], p["kv_lens"], p["q_indptr"])
            qkv = _random(g, dtype, tokens, (heads + 2 * kv_heads) * width)
            slots = p["slots"].clone()
            slots[::5] = -1
            angle = torch.randn(1024, width // 2, generator=g)
            norms = (_random(g, dtype, width), _random(g, dtype, width)) if i >= 2 else (None, None)
            for cached in (dtype, EIGHT_BIT[(n + i) % 2]):
                name = f"H{heads}G{kv_heads}D{width}P{size}-{i}-{str(cached).removeprefix('torch.')}"
                cache = kv_cache(g, cached, blocks, size, kv_heads, width)
                space = attention_workspace(tokens, heads, width, p["table"].shape[1] * size)
                workspace = torch.empty(space) if i % 2 else None
                cases.append(
                    Case("paged_attention", name, (out, q, *cache, workspace, *tables, width**-0.5)),
                )
                if cached == dtype:
                    extra, outputs = (angle.cos(), angle.sin(), *norms), (0, 1, 2)
                else:  # quarter turns, which round nothing: every bit is then defined
                    quarters = angle.mul(9).round().long() % 4
                    turns = (torch.tensor(x)[quarters] for x in ([1.0, 0.0, -1.0, 0.0], [0.0, 1.0, 0.0, -1.0]))
                    extra, outputs = (*turns, None, None), (0, 1, 2, 3, 4)
                if i % 2:
                    extra = (None, None, *extra[2:])
                args = (torch.empty_like(q), *cache, qkv, p["positions"], slots, *extra, 1e-6)
                cases.append(Case("rope_append", name, args, outputs))
    return cases


def draft_cases() -> list[Case]:
    g = torch.Generator().manual_seed(4)
    cases = []
    for n, (sequences, capacity, draft, letters) in enumerate(
        ((0, 10, 4, 5), (1, 12, 4, 2), (5, 60, 8, 3), (9, 200, 64, 20), (3, 100, 1, 1), (2, 50, 0, 4))
    ):
        tokens = torch.randint(0, letters, (sequences, capacity), generator=g, dtype=torch.int32)
        ranks = torch.randint(0, 6, (sequences, capacity), generator=g, dtype=torch.int32)
        cuts = torch.randint(0, capacity + 1, (sequences, 4), generator=g, dtype=torch.int32)
        bounds = cuts.sort(1).values.int().contiguous()
        limits = torch.randint(0, draft + 3, (sequences,), generator=g, dtype=torch.int32)
        drafts = torch.full((sequences, draft), -7, dtype=torch.int32)
        lens = torch.full((sequences,), -7, dtype=torch.int32)
        cases.append(Case("ngram_propose", str(n), (drafts, lens, tokens, ranks, bounds, limits), (0, 1)))
        drafted = torch.randint(0, draft + 1, (sequences,), generator=g, dtype=torch.int32)
        rows = torch.where(torch.arange(sequences) % 3 == 2, 0, drafted + 1)
        indptr = torch.cat([torch.zeros(1), rows.cumsum(0)]).int()
        sampled = torch.randint(0, min(letters, 2), (int(indptr[-1]),), generator=g, dtype=torch.int32)
        given = torch.randint(0, min(letters, 2), (sequences, draft), generator=g, dtype=torch.int32)
        out = torch.full((sequences, draft + 1), -7, dtype=torch.int32)
        cases.append(Case("verify_draft", str(n), (out, lens.clone(), given, drafted, sampled, indptr), (0, 1)))
    return cases


def pack_cases() -> list[Case]:
    g = torch.Generator().manual_seed(5)
    cases = []
    # Sequences, capacity, drafts; tokens beyond the known ones, and rows beyond the newest ones', that the step has.
    for n, (sequences, capacity, draft, room, rows) in enumerate((
        (0, 8, 4, 0, 0), (0, 8, 4, 5, 5), (1, 9, 0, 3, 1), (4, 40, 8, 100, 100), (7, 60, 64, 20, 24),
        (300, 30, 5, 0, 0), (260, 300, 3, 50, 60), (30, 6, 9, 80, 7), (300, 3, 5, 200, 0),
    )):  # fmt: skip
        one = {"generator": g, "dtype": torch.int32}
        tokens = torch.randint(0, 99, (sequences, capacity), **one)
        drafts = torch.randint(0, 99, (sequences, draft + 2), **one)[:, :draft]
        bounds = torch.randint(0, capacity + 1, (sequences, 4), **one)
        computed = (torch.rand(sequences, generator=g) * (bounds[:, 3] + 1)).int()
        most = torch.randint(0, capacity + 1, (sequences,), **one)
        draft_lens = torch.randint(0, draft + 1, (sequences,), **one)
        size = 4
        table = torch.randint(0, 1000, (sequences, (capacity + draft) // size), **one)
        reach = torch.randint(0, capacity + draft + 4, (sequences,), **one)
        known = torch.minimum(torch.minimum(bounds[:, 3], reach) - computed, most).clamp(min=0)
        writes = int(((known > 0) & (computed + known == bounds[:, 3])).sum())
        given = (tokens, bounds, computed, most, reach, drafts, draft_lens, table, size)
        t, s = int(known.sum()) + room, sequences
        shapes = (t, t, t, writes + rows, s, s + 1, s + 1, s)
        outputs = tuple(torch.full((k,), -7, dtype=torch.int32) for k in shapes)
        cases.append(Case("pack_step", str(n), (*outputs, *given), tuple(range(len(outputs)))))
    return cases


def commit_cases() -> list[Case]:
    g = torch.Generator().manual_seed(6)
    one = {"generator": g, "dtype": torch.int32}
    cases = []
    # Sequences, capacity, drafts, stop ids among 12 tokens.
    for n, (sequences, capacity, draft, stops) in enumerate(
        ((0, 8, 4, 1), (1, 9, 0, 1), (40, 30, 8, 0), (60, 90, 64, 1), (9, 400, 300, 2), (300, 30, 5, 3))
    ):
        tokens = torch.randint(0, 12, (sequences, capacity + 3), **one)[:, :capacity]
        bounds = torch.randint(0, capacity, (sequences, 4), **one)
        ends = torch.minimum(bounds[:, 3] + torch.randint(1, draft + 5, (sequences,), **one), torch.tensor(capacity))
        computed = (torch.rand(sequences, generator=g) * (bounds[:, 3] + 1)).int()
        drafted = torch.randint(0, draft + 1, (sequences,), **one)
        lens = (torch.rand(sequences, generator=g) * (drafted + 2)).int()  # 0: a share that does not write
        share = torch.where(torch.arange(sequences) % 5 == 4, 0, torch.randint(1, 20, (sequences,), **one) + drafted)
        lens = torch.where(share > 0, lens, 0)
        indptr = torch.cat([torch.zeros(1), share.cumsum(0)]).int()
        out = torch.randint(0, 12, (sequences, draft + 1), **one)
        finished, kept = torch.zeros(sequences, dtype=torch.int32), torch.full((sequences,), -7, dtype=torch.int32)
        stop_ids = torch.arange(stops, dtype=torch.int32) * 5
        given = (out, lens.int(), drafted, indptr, ends.int(), stop_ids)
        args = (tokens, bounds, computed, finished, kept, *given)
        cases.append(Case("commit_step", str(n), args, (0, 1, 2, 3, 4)))
    return cases


def admit_cases() -> list[Case]:
    g = torch.Generator().manual_seed(7)
    one = {"generator": g, "dtype": torch.int32}
    cases = []
    for n, (sequences, capacity, count) in enumerate(((0, 8, 0), (3, 9, 0), (1, 9, 1), (12, 700, 8))):
        rows = torch.randperm(sequences, generator=g)[:count].int()
        lengths = torch.randint(0, capacity + 1, (count,), **one)
        places = torch.cat([torch.zeros(1), 2 * lengths.cumsum(0)]).int()
        admitted = torch.randint(0, 99, (count, 8), **one)
        admitted[:, 0], admitted[:, 4], admitted[:, 7] = rows, lengths, places[:-1]
        staged = torch.randint(0, 99, (int(places[-1]),), **one)
        if count > 4:  # records that the arrays or what is staged cannot hold are left out
            admitted[0, 0], admitted[1, 0], admitted[2, 4], admitted[3, 7] = -1, sequences, capacity + 1, len(staged)
            admitted[4, 4] = -3
        arrays = (torch.full(shape, -7, dtype=torch.int32) for shape in (
            (sequences, capacity), (sequences, capacity), (sequences, 4), (sequences,), (sequences,), (sequences,)
        ))  # fmt: skip
        cases.append(Case("admit_rows", str(n), (*arrays, admitted, staged), (0, 1, 2, 3, 4, 5)))
    return cases


def cases(dtype: torch.dtype) -> list[Case]:
    step_cases = pack_cases() + commit_cases() + admit_cases()
    choices = argmax_cases(dtype) + allowed_cases(dtype) + draft_cases()
    return row_cases(dtype) + attention_cases(dtype) + choices + step_cases

"""Every op at the shapes of SmolLM2-135M, and what bounds it.

    python benchmarks/bench_ops.py                        # every backend that runs here
    python benchmarks/bench_ops.py --backend cuda --op paged_attention --json out.json

Sizes: `token` is one row or sequence; `verify` 65 rows, or sequences; `prefill` 1,024 rows, or 256 sequences.
Documents of `ngram_propose` have 4,000 tokens. Beside each time stand the bytes that must move (what is read or
written, once each) and the operations, and on a GPU that benchmarks/limits.py knows, the share of its limit.
"""

from __future__ import annotations

import click
import torch
from common import BACKENDS, DTYPES, SHAPE, Arguments, device_of, facts, on_device, paged, timed, write
from limits import Work, limit, named
from qdengine import ops
from qdengine.model.kv_cache import SPLIT_TOKENS
from qdengine.ops.reference import attention_workspace
from tqdm import tqdm

SIZES = {"token": 1, "verify": 65, "prefill": 1024}
SEQUENCES = 256  # most, of ops whose rows are sequences
CONTEXT, DOCUMENT, DRAFT = 640, 4000, 64
E, F, H, G, D = SHAPE.width, SHAPE.ffn_width, SHAPE.heads, SHAPE.kv_heads, SHAPE.head_width
# Arithmetic operations an element, for the row ops; a square root or an exponential counts as one.
OPERATIONS = {"rms_norm": 4, "layer_norm": 7, "add_rms_norm": 5, "add_layer_norm": 8, "silu_mul": 5, "gelu": 9}
OPERATIONS |= {"quantize": 4, "dequantize": 3}


def _x(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    return torch.randn(*shape).to(dtype)


def _ids(*shape: int, high: int = 50) -> torch.Tensor:
    return torch.randint(0, high, shape, dtype=torch.int32)


def row_arguments(op: str, rows: int, dtype: torch.dtype) -> Arguments:
    x = _x(dtype, rows, E)
    if op == "silu_mul":
        return _x(dtype, rows, F), None, _x(dtype, rows, 2 * F)
    if op == "gelu":
        return _x(dtype, rows, F), None, _x(dtype, rows, F)
    if op == "quantize":
        return torch.empty(rows, E, dtype=torch.int8), torch.empty(rows), x
    if op == "dequantize":
        return _x(dtype, rows, 2 * F), _ids(rows, 2 * F), torch.rand(rows), torch.rand(2 * F), None
    residual = (torch.zeros_like(x),) if op.startswith("add") else ()
    weights = (_x(dtype, E),) * (2 if op.endswith("layer_norm") else 1)
    return (torch.empty_like(x), None, *residual, x, *weights, 1e-5)


def attention_arguments(batch: tuple[tuple[int, int], ...], dtype: torch.dtype) -> tuple[Arguments, Arguments]:
    """Of `rope_append` and `paged_attention`, for sequences of (tokens in the cache, new ones)."""
    p = paged(batch, 16, 0)
    tokens = len(p["positions"])
    cache = [_x(dtype, int(p["blocks"]), 16, G, D) for _ in range(2)]
    angle = torch.randn(SHAPE.max_positions, D // 2)
    q, qkv = _x(dtype, tokens, H, D), _x(dtype, tokens, (H + 2 * G) * D)
    rotation = (angle.cos(), angle.sin(), None, None, 1e-5)
    tables = (p["table"], p["kv_lens"], p["q_indptr"])
    space = attention_workspace(tokens, H, D, p["table"].shape[1] * 16)
    workspace = torch.empty(space) if tokens <= SPLIT_TOKENS else None
    rope = (q, *cache, None, None, qkv, p["positions"], p["slots"], *rotation)
    return rope, (torch.empty_like(q), q, *cache, None, None, workspace, *tables, D**-0.5)


def step_arguments(op: str, n: int) -> Arguments:
    """Of the ops around a step, for `n` sequences."""
    lens, indptr = torch.full((n,), DRAFT).int(), (torch.arange(n + 1) * (DRAFT + 1)).int()
    length = torch.full((n,), DOCUMENT).int()
    bounds = torch.stack([0 * length, length - 50, length - 20, length], 1).contiguous()
    tokens, drafts = _ids(n, DOCUMENT, high=2000), _ids(n, DRAFT, high=2)
    if op == "ngram_propose":
        return _ids(n, DRAFT), _ids(n), tokens, _ids(n, DOCUMENT, high=6), bounds, lens
    if op == "verify_draft":
        return _ids(n, DRAFT + 1), _ids(n), drafts, lens, _ids((DRAFT + 1) * n, high=2), indptr
    if op == "commit_step":  # sequences that end with this step: another call then does the same again
        out = _ids(n, DRAFT + 1)
        return tokens, bounds, length - 1, _ids(n), _ids(n), out, lens + 1, lens, indptr, length, _ids(2) + 10**6
    if op == "admit_rows":
        at = 2 * DOCUMENT * torch.arange(n).int()
        records = (torch.arange(n).int(), *bounds.T, 0 * length, length, at)
        rows = (tokens, _ids(n, DOCUMENT), bounds, _ids(n), _ids(n), _ids(n))
        return *rows, torch.stack(records, 1).contiguous(), _ids(2 * DOCUMENT * n)
    t = 5 * n  # pack_step: one known token and four drafted ones each
    step = (_ids(t), _ids(t), _ids(t), _ids(t), _ids(n), _ids(n + 1), _ids(n + 1), _ids(n))
    most, table = 0 * length + 1, _ids(n, DOCUMENT // 16 + 5)
    return *step, tokens, bounds, length - 1, most, length + 5, drafts, most + 3, table, 16


def arguments(op: str, rows: int, dtype: torch.dtype) -> Arguments:
    if op in OPERATIONS:
        return row_arguments(op, rows, dtype)
    if op in ("rope_append", "paged_attention"):
        return attention_arguments(((max(rows, CONTEXT), rows),), dtype)[op == "paged_attention"]
    n = min(rows, SEQUENCES)
    if op == "greedy_argmax":
        return _ids(n), _x(dtype, n, SHAPE.vocab_size)
    if op in ("ngram_propose", "verify_draft", "pack_step", "commit_step", "admit_rows"):
        return step_arguments(op, n)
    if op == "allowed_argmax":  # of one sequence, which copies from a document of 200 sentences
        n, begins = min(rows, DRAFT + 1), (torch.arange(DOCUMENT) % 20 == 0).int()[None]
        tokens, all_of_it = _ids(1, DOCUMENT, high=2000), torch.tensor([[0, DOCUMENT, DOCUMENT, DOCUMENT]]).int()
        chosen = _ids(n), _x(dtype, n, SHAPE.vocab_size)
        given = torch.tensor([0, n]).int(), tokens, begins, all_of_it, tokens[:, :DRAFT].clone(), _ids(1, high=1) + 1
        return *chosen, *given, torch.arange(SHAPE.vocab_size, dtype=torch.int32), _ids(2), 198
    raise KeyError(f"{op} has no benchmark; add its arguments to benchmarks/bench_ops.py")


def attention_work(batch: tuple[tuple[int, int], ...], element: int, kv_element: int | None = None) -> Work:
    """Of `paged_attention`: q and out, the visible keys and values once a sequence; 4 H D FLOPs a (row, key)."""
    rows = sum(new for _, new in batch)
    pairs = sum(new * (length - new) + new * (new + 1) // 2 for length, new in batch)
    kv = 2 * sum(length for length, new in batch if new) * G * D * (kv_element or element)
    return Work(2 * rows * H * D * element + kv, 4 * pairs * H * D, "matrix")


def work(op: str, args: Arguments, rows: int) -> Work:
    """What the op must move and compute."""
    sizes = [t.numel() * t.element_size() if isinstance(t, torch.Tensor) else 0 for t in args]
    if op == "paged_attention":
        return attention_work(((max(rows, CONTEXT), rows),), args[1].element_size(), args[2].element_size())
    n = min(rows, SEQUENCES)
    if op == "rope_append":  # q, k and v in; q and the caches' rows out; a row of cosines and sines each
        return Work(2 * sizes[5] + rows * (8 + 4 * D), 3 * args[5].numel())
    if op == "ngram_propose":  # every token is compared once; ranks matter at the few matches
        return Work(sizes[2] + sizes[4] + sizes[0], n * DOCUMENT)
    if op in ("commit_step", "pack_step"):  # of long rows a few tokens
        return Work(sum(s for s, t in zip(sizes, args, strict=True) if s and t.numel() < n * DOCUMENT), 0)
    if op == "admit_rows":
        return Work(2 * sizes[-1], 0)
    if op in OPERATIONS:
        in_place = sizes[2] if op.startswith("add") else 0
        return Work(sum(sizes) + in_place, OPERATIONS[op] * args[0].numel())
    return Work(sum(sizes), max(t.numel() for t in args if isinstance(t, torch.Tensor)))


def cases(chosen: tuple[str, ...], sizes: tuple[str, ...], dtypes: tuple[str, ...]) -> list[tuple[str, str, str]]:
    """(op, size, dtype); ops on integers alone come once, as int32."""
    made = []
    for op in chosen:
        real = any(isinstance(a, torch.Tensor) and a.is_floating_point() for a in arguments(op, 1, torch.float32))
        made += [(op, size, dtype) for size in sizes for dtype in (dtypes if real else ("int32",))]
    return made


def measure(backend: str, op: str, size: str, dtype: str, budget: float) -> dict[str, object]:
    device, rows = device_of(backend), SIZES[size]
    args = on_device(arguments(op, rows, DTYPES.get(dtype, torch.float32)), device)
    seconds, least = timed(getattr(ops.load(backend), op), args, device, budget), work(op, args, rows)
    row: dict[str, object] = {"op": op, "size": size, "backend": backend, "dtype": dtype, "us": 1e6 * seconds}
    row |= {"bytes": least.bytes, "flops": least.flops, "unit": least.unit}
    gpu = named(torch.cuda.get_device_name()) if device.type == "cuda" else None
    return row | ({"share_of_limit": limit(gpu, least) / seconds} if gpu else {})


@click.command()
@click.option("--backend", "backends", type=click.Choice(BACKENDS), multiple=True, help="[default: all that run here]")
@click.option("--op", "chosen", type=click.Choice(ops.OPS), multiple=True, help="[default: all]")
@click.option("--size", "sizes", type=click.Choice(list(SIZES)), multiple=True, default=list(SIZES))
@click.option("--dtype", "dtypes", type=click.Choice(list(DTYPES)), multiple=True, default=list(DTYPES))
@click.option("--seconds", default=0.2, show_default=True, help="Spent on each.")
@click.option("--json", "out", type=click.Path(dir_okay=False), help="Written anew after every backend.")
def main(
    backends: tuple[str, ...], chosen: tuple[str, ...], sizes: tuple[str, ...], dtypes: tuple[str, ...],
    seconds: float, out: str | None,
) -> None:  # fmt: skip
    """Time ops."""
    torch.manual_seed(0)
    rows = []
    for backend in backends or BACKENDS:
        for op, size, dtype in tqdm(cases(chosen or ops.OPS, sizes, dtypes), unit="case", disable=None):
            if backend == "reference" and op in ("allowed_argmax", "ngram_propose"):
                continue  # a plain loop, which documents the op; it takes seconds
            rows.append(measure(backend, op, size, dtype, seconds))
        write(facts() | {"rows": rows}, out)
    for row in rows:
        us, share = float(row["us"]), row.get("share_of_limit")
        rate = f"{row['bytes'] / us / 1e3:8.1f} GB/s{row['flops'] / us / 1e6:9.3f} TFLOP/s"
        name = f"{row['op']:18}{row['size']:9}{row['dtype']:10}{row['backend']:10}"
        click.echo(f"{name}{us:11.2f} us{rate}" + (f"{share:7.1%} of the limit" if share else ""))


if __name__ == "__main__":
    main()

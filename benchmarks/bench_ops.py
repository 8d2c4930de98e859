"""Every op at the shapes of SmolLM2-135M: one token, a verification of 65, a prefill of 1,024.

`extra_info` has the bytes that must move (read or written once) and the FLOPs, for a roofline.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import paged
from common import SHAPE, device_of, finished
from qdengine import ops
from qdengine.ops.reference import attention_workspace

ROWS = {"token": 1, "verify": 65, "prefill": 1024}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
CONTEXT = 640
E, F, H, G, D = SHAPE.width, SHAPE.ffn_width, SHAPE.heads, SHAPE.kv_heads, SHAPE.head_width


def arguments(op: str, rows: int, dtype: torch.dtype) -> tuple[Any, ...]:
    def x(*shape: int) -> torch.Tensor:
        return torch.randn(*shape).to(dtype)

    def ids(*shape: int, high: int = 50) -> torch.Tensor:
        return torch.randint(0, high, shape, dtype=torch.int32)

    if op in ("rms_norm", "add_rms_norm"):
        return (x(rows, E), *([x(rows, E)] if op.startswith("add") else []), x(rows, E), x(E), 1e-5)
    if op in ("layer_norm", "add_layer_norm"):
        return (x(rows, E), *([x(rows, E)] if op.startswith("add") else []), x(rows, E), x(E), x(E), 1e-5)
    if op == "silu_mul":
        return x(rows, F), x(rows, 2 * F)
    if op == "gelu":
        return x(rows, F), x(rows, F)
    if op == "greedy_argmax":
        return ids(min(rows, 65)), x(min(rows, 65), SHAPE.vocab_size)
    if op == "ngram_propose":  # `rows` documents of 4,000 tokens, 64 at most
        n, length = min(rows, 64), 4000
        bounds = torch.tensor([[0, length - 50, length - 20, length]] * n, dtype=torch.int32)
        return ids(n, 64), ids(n), ids(n, length, high=2000), ids(n, length, high=6), bounds, torch.full((n,), 64).int()
    if op == "pack_step":  # a step of `rows` sequences, 64 at most, 4 drafted tokens each
        n = min(rows, 64)
        step, lens = ids(5 * n), torch.full((n,), 500).int()
        bounds = lens[:, None].repeat(1, 4)
        out = (step, step.clone(), step.clone(), step.clone(), ids(n), ids(n + 1), ids(n + 1), ids(n))
        return *out, ids(n, 600), bounds, lens - 1, ids(n, high=1) + 1, ids(n, 64), ids(n, high=1) + 4, ids(n, 40), 16
    if op == "verify_draft":
        n = min(rows, 64)
        lens, indptr = torch.full((n,), 64).int(), (torch.arange(n + 1) * 65).int()
        return ids(n, 65), ids(n), ids(n, 64, high=2), lens, ids(65 * n, high=2), indptr
    p = paged(((max(rows, CONTEXT), rows),), 16, 0)
    cache = [x(int(p["blocks"]), 16, G, D) for _ in range(2)]
    if op == "rope_append":
        angle = torch.randn(2048, D // 2)
        qkv = x(rows, (H + 2 * G) * D)
        return (
            x(rows, H, D),
            *cache,
            None,
            None,
            qkv,
            p["positions"],
            p["slots"],
            angle.cos(),
            angle.sin(),
            None,
            None,
            1e-5,
        )
    workspace = torch.empty(attention_workspace(rows, H, D, p["table"].shape[1] * 16)) if rows <= 65 else None
    where = p["table"], p["kv_lens"], p["q_indptr"]
    return (x(rows, H, D), x(rows, H, D), *cache, None, None, workspace, *where, D**-0.5)


def work(op: str, args: tuple[Any, ...], rows: int) -> dict[str, int]:
    """Bytes of the tensors, of attention's cache what is visible; FLOPs of attention's products."""
    sizes = [t.numel() * t.element_size() for t in args if isinstance(t, torch.Tensor)]
    if op == "paged_attention":
        length = max(rows, CONTEXT)
        pairs = rows * (length - rows) + rows * (rows + 1) // 2
        kv = 2 * length * G * D * args[0].element_size()
        return {"bytes": sizes[0] + sizes[1] + kv, "flops": 4 * pairs * H * D}
    return {"bytes": sum(sizes) if op != "rope_append" else 2 * sizes[3], "flops": 0}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("op", ops.OPS)
def test_op(benchmark, backend, op, rows, dtype):
    if backend == "reference" and op == "ngram_propose":
        pytest.skip("a plain loop, which documents the op; it takes seconds")
    device = device_of(backend)
    args = arguments(op, ROWS[rows], DTYPES[dtype])
    benchmark.extra_info |= work(op, args, ROWS[rows]) | {"device": str(device)}
    benchmark.group = f"{op} {rows} {dtype}"
    moved = [a.to(device) if isinstance(a, torch.Tensor) else a for a in args]
    call = getattr(ops.load(backend), op)
    benchmark(finished(lambda: call(*moved), device))

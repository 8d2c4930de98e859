"""The ops of every backend behind one table. A backend is chosen once; a missing one is an error, never a fallback."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, fields

from ..errors import BackendError

BACKENDS = ("reference", "cpu", "cuda", "triton")

Op = Callable[..., None]


@dataclass(frozen=True, slots=True)
class OpTable:
    """The ops of one backend; `qdengine.ops.reference` documents each."""

    backend: str
    rms_norm: Op
    layer_norm: Op
    add_rms_norm: Op
    add_layer_norm: Op
    silu_mul: Op
    gelu: Op
    quantize: Op
    dequantize: Op
    rope_append: Op
    paged_attention: Op
    greedy_argmax: Op
    allowed_argmax: Op
    ngram_propose: Op
    verify_draft: Op
    pack_step: Op
    commit_step: Op
    admit_rows: Op


OPS = tuple(f.name for f in fields(OpTable) if f.name != "backend")


def usable_threads() -> int:
    """Threads of a CPU that this process may keep busy: its affinity, its control group's quota, OMP_NUM_THREADS."""
    return importlib.import_module(".native", __name__).usable_threads()


def set_thread_limit(limit: int) -> None:
    """Most threads of the CPU's ops that the calling thread runs; 0 for all that are usable."""
    importlib.import_module(".native", __name__).set_thread_limit(limit)


def load(backend: str) -> OpTable:
    """The ops of `backend`, one of BACKENDS. Raises `BackendError` that names cause and remedy."""
    if backend not in BACKENDS:
        raise BackendError(f"unknown backend {backend!r}; there are {', '.join(BACKENDS)}")
    module = importlib.import_module(f".{'native' if backend in ('cpu', 'cuda') else backend}", __name__)
    if backend == "cpu":
        module.require_isa()
    elif backend == "cuda":
        module.require_cuda()
    return OpTable(backend, **{op: getattr(module, op) for op in OPS})

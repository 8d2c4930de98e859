"""The compiled ops (csrc/), for CPU and CUDA tensors. Same names and signatures as `qdengine.ops.reference`.

Of a CPU alone, for `model.linear`: `linear` over packed weights, `Layers`; and its threads.
"""

from __future__ import annotations

import torch

from ..errors import BackendError

try:
    from .._native import (
        Layers,
        add_layer_norm,
        add_rms_norm,
        admit_rows,
        allowed_argmax,
        build_info,
        commit_step,
        dequantize,
        gelu,
        greedy_argmax,
        layer_norm,
        linear,
        ngram_propose,
        pack_linear,
        pack_step,
        packed_bytes,
        paged_attention,
        quantize,
        rms_norm,
        rope_append,
        set_thread_limit,
        silu_mul,
        usable_threads,
        verify_draft,
    )
except ImportError as error:
    raise BackendError(
        f"the compiled extension qdengine._native does not load ({error}); install the package with "
        "'pip install .' for this Python, or choose backend 'reference'"
    ) from error

if not hasattr(torch.Tensor, "__dlpack_c_exchange_api__"):
    raise BackendError(f"torch {torch.__version__} has no DLPack C exchange API; install torch 2.11 or later")


def require_isa() -> None:
    """Raise `BackendError` when QDENGINE_ISA names no instruction set that this build and this CPU have."""
    try:
        build_info()
    except RuntimeError as error:
        raise BackendError(f"{error}; unset QDENGINE_ISA for the best one of this CPU") from None


def require_cuda() -> None:
    """Raise `BackendError` unless this build has CUDA kernels and torch sees a GPU that they run on."""
    if not build_info()["cuda"]:
        raise BackendError("this build of qdengine has no CUDA kernels; rebuild with QDENGINE_CUDA=ON and nvcc on PATH")
    if not torch.cuda.is_available():
        raise BackendError("torch sees no CUDA device; install a CUDA build of torch and a driver, or use device='cpu'")


__all__ = [
    "Layers",
    "add_layer_norm",
    "add_rms_norm",
    "admit_rows",
    "allowed_argmax",
    "build_info",
    "commit_step",
    "dequantize",
    "gelu",
    "greedy_argmax",
    "layer_norm",
    "linear",
    "ngram_propose",
    "pack_linear",
    "pack_step",
    "packed_bytes",
    "paged_attention",
    "quantize",
    "require_cuda",
    "require_isa",
    "rms_norm",
    "rope_append",
    "set_thread_limit",
    "silu_mul",
    "usable_threads",
    "verify_draft",
]

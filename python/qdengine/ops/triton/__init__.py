"""The Triton kernels (triton_kernels/), for NVIDIA GPUs, and for CPU tensors where TRITON_INTERPRET=1 interprets them.

Same names and signatures as `qdengine.ops.reference`. Wrong arguments raise `ValueError` that says op, argument,
expected and got, as the compiled ops do.
"""

from __future__ import annotations

import torch

from ...errors import BackendError

try:
    from .check import INTERPRETED
except ImportError as error:
    raise BackendError(
        f"the package triton does not load ({error}); install it with pip install 'qdengine[triton]' (Linux only), "
        "or choose another backend"
    ) from error

if not INTERPRETED and not torch.cuda.is_available():
    raise BackendError(
        "torch sees no CUDA device, which the Triton kernels need; install a CUDA build of torch and a driver, choose "
        "backend 'cpu', or set TRITON_INTERPRET=1 to interpret the kernels on the CPU (slow: for tests)"
    )

try:
    from .attention import paged_attention, rope_append
    from .decide import allowed_argmax, greedy_argmax, ngram_propose, verify_draft
    from .rows import add_layer_norm, add_rms_norm, dequantize, gelu, layer_norm, quantize, rms_norm, silu_mul
    from .step import admit_rows, commit_step, pack_step
except ImportError as error:
    raise BackendError(
        f"the Triton kernels do not load ({error}); install the package with 'pip install .', with triton 3.4 or later"
    ) from error

__all__ = [
    "add_layer_norm",
    "add_rms_norm",
    "admit_rows",
    "allowed_argmax",
    "commit_step",
    "dequantize",
    "gelu",
    "greedy_argmax",
    "layer_norm",
    "ngram_propose",
    "pack_step",
    "paged_attention",
    "quantize",
    "rms_norm",
    "rope_append",
    "silu_mul",
    "verify_draft",
]

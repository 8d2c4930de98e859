"""The Triton kernels (triton_kernels/), for NVIDIA GPUs, and for CPU tensors where TRITON_INTERPRET=1 interprets them.

Same names and signatures as `qdengine.ops.reference`. Wrong arguments raise `ValueError` that says op, argument,
expected and got, as the compiled ops do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

import torch
from torch import Tensor

from ..errors import BackendError

try:
    import triton
except ImportError as error:
    raise BackendError(
        f"the package triton does not load ({error}); install it with pip install 'qdengine[triton]' (Linux only), "
        "or choose another backend"
    ) from error

_INTERPRETED = bool(triton.knobs.runtime.interpret)
if not _INTERPRETED and not torch.cuda.is_available():
    raise BackendError(
        "torch sees no CUDA device, which the Triton kernels need; install a CUDA build of torch and a driver, choose "
        "backend 'cpu', or set TRITON_INTERPRET=1 to interpret the kernels on the CPU (slow: for tests)"
    )

try:
    from .. import triton_kernels as kernels
except ImportError as error:
    raise BackendError(
        f"the Triton kernels do not load ({error}); install the package with 'pip install .', with triton 3.4 or later"
    ) from error

_FLOATING = (torch.float32, torch.bfloat16, torch.float16)
_MAX_HEAD_WIDTH, _MAX_GROUP = 512, 16


class _Check:
    """The checks of one call; `like` is the tensor whose device and dtype count."""

    def __init__(self, op: str, arg: str, like: Tensor, floating: bool = True) -> None:
        self.op, self.like = op, like
        _require_tensor(op, arg, like)
        if not like.is_cuda and not (_INTERPRETED and like.device.type == "cpu"):
            self.fail(arg, "a CUDA tensor (or a CPU tensor and TRITON_INTERPRET=1)", f"one on {like.device}")
        if floating and like.dtype not in _FLOATING:
            self.fail(arg, "float32, bfloat16 or float16", _name(like.dtype))

    def fail(self, arg: str, expected: str, got: object) -> NoReturn:
        raise ValueError(f"{self.op}: {arg}: expected {expected}, got {got}")

    def __call__(
        self, arg: str, tensor: Tensor, shape: Sequence[int], dtype: torch.dtype | None = None, dense: bool = False
    ) -> None:
        """Shape with -1 for "any", dtype (None: that of `like`), device, and a contiguous last dimension, or all."""
        _require_tensor(self.op, arg, tensor)
        if tensor.ndim != len(shape) or any(want not in (-1, n) for want, n in zip(shape, tensor.shape, strict=True)):
            self.fail(arg, f"shape {_show(shape)}", _show(tensor.shape))
        if dense and not tensor.is_contiguous():
            self.fail(arg, "a contiguous tensor", f"strides {_show(tensor.stride())}")
        if tensor.ndim and tensor.shape[-1] > 1 and tensor.stride(-1) != 1:
            self.fail(arg, "a contiguous last dimension", f"stride {tensor.stride(-1)}")
        if tensor.device != self.like.device:
            self.fail(arg, f"the device of the first argument, {self.like.device}", tensor.device)
        if tensor.dtype != (dtype or self.like.dtype):
            self.fail(arg, _name(dtype or self.like.dtype), _name(tensor.dtype))

    def index(self, arg: str, tensor: Tensor, *shape: int, dense: bool = True) -> None:
        self(arg, tensor, shape, torch.int32, dense)

    def positive(self, arg: str, value: float) -> None:
        if not value > 0:
            self.fail(arg, "a positive number", value)

    def both(self, first: str, second: str, *given: bool) -> None:
        """Two optional arguments are both given, or neither is."""
        if any(given) and not all(given):
            self.fail(second, f"{first} and {second} together, or neither", "one of them")

    def caches(self, q: Tensor, k_cache: Tensor, v_cache: Tensor) -> None:
        """k_cache and v_cache, and how they fit q."""
        heads, width = q.shape[1:]
        if not 1 <= width <= _MAX_HEAD_WIDTH:
            self.fail("q", f"a head width of 1 to {_MAX_HEAD_WIDTH}", width)
        self("k_cache", k_cache, (-1, -1, -1, width), dense=True)
        self("v_cache", v_cache, k_cache.shape, dense=True)
        blocks, size, kv_heads, _ = k_cache.shape
        if kv_heads == 0 or heads % kv_heads or not 1 <= heads // kv_heads <= _MAX_GROUP:
            groups = f"kv heads that divide the {heads} query heads into groups of at most {_MAX_GROUP}"
            self.fail("k_cache", groups, kv_heads)
        if blocks * size >= 2**31:
            self.fail("k_cache", "fewer than 2^31 slots", blocks * size)


def _require_tensor(op: str, arg: str, value: object) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{op}: {arg}: expected a torch.Tensor, got {type(value).__name__}")


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _show(shape: Sequence[int]) -> str:
    return f"[{', '.join('any' if n < 0 else str(n) for n in shape)}]"


def _check_norm(
    op: str, out: Tensor, residual: Tensor | None, x: Tensor, weight: Tensor, bias: Tensor | None, eps: float
) -> None:
    check = _Check(op, "out", out)
    check("out", out, (-1, -1))
    if out.shape[1] > kernels.MAX_WIDTH:
        check.fail("out", f"a width of at most {kernels.MAX_WIDTH}", out.shape[1])
    if residual is not None:
        check("residual", residual, out.shape)
    check("x", x, out.shape)
    check("weight", weight, out.shape[1:])
    if bias is not None:
        check("bias", bias, out.shape[1:])
    check.positive("eps", eps)


def rms_norm(out: Tensor, x: Tensor, weight: Tensor, eps: float) -> None:
    _check_norm("rms_norm", out, None, x, weight, None, eps)
    with torch.cuda.device_of(out):
        kernels.rms_norm(out, x, weight, eps)


def layer_norm(out: Tensor, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> None:
    _require_tensor("layer_norm", "bias", bias)
    _check_norm("layer_norm", out, None, x, weight, bias, eps)
    with torch.cuda.device_of(out):
        kernels.layer_norm(out, x, weight, bias, eps)


def add_rms_norm(out: Tensor, residual: Tensor, x: Tensor, weight: Tensor, eps: float) -> None:
    _require_tensor("add_rms_norm", "residual", residual)
    _check_norm("add_rms_norm", out, residual, x, weight, None, eps)
    with torch.cuda.device_of(out):
        kernels.add_rms_norm(out, residual, x, weight, eps)


def add_layer_norm(out: Tensor, residual: Tensor, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> None:
    _require_tensor("add_layer_norm", "residual", residual)
    _require_tensor("add_layer_norm", "bias", bias)
    _check_norm("add_layer_norm", out, residual, x, weight, bias, eps)
    with torch.cuda.device_of(out):
        kernels.add_layer_norm(out, residual, x, weight, bias, eps)


def silu_mul(out: Tensor, gate_up: Tensor) -> None:
    check = _Check("silu_mul", "out", out)
    check("out", out, (-1, -1))
    check("gate_up", gate_up, (out.shape[0], 2 * out.shape[1]))
    with torch.cuda.device_of(out):
        kernels.silu_mul(out, gate_up)


def gelu(out: Tensor, x: Tensor) -> None:
    check = _Check("gelu", "out", out)
    check("out", out, (-1, -1))
    check("x", x, out.shape)
    with torch.cuda.device_of(out):
        kernels.gelu(out, x)


def rope_append(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    qkv: Tensor,
    positions: Tensor,
    slots: Tensor,
    cos: Tensor | None,
    sin: Tensor | None,
    q_weight: Tensor | None,
    k_weight: Tensor | None,
    eps: float,
) -> None:
    check = _Check("rope_append", "q", q)
    check("q", q, (-1, -1, -1), dense=True)
    check.caches(q, k_cache, v_cache)
    tokens, heads, width = q.shape
    check("qkv", qkv, (tokens, (heads + 2 * k_cache.shape[2]) * width))
    check.index("positions", positions, tokens)
    check.index("slots", slots, tokens)
    check.both("cos", "sin", cos is not None, sin is not None)
    check.both("q_weight", "k_weight", q_weight is not None, k_weight is not None)
    if cos is not None and sin is not None:
        if width % 2:
            check.fail("q", "an even head width for a rotation", width)
        check("cos", cos, (-1, width // 2), torch.float32, dense=True)
        check("sin", sin, cos.shape, torch.float32, dense=True)
        if len(cos) == 0:
            check.fail("cos", "at least one position", "none")
    if q_weight is not None and k_weight is not None:
        check("q_weight", q_weight, (width,))
        check("k_weight", k_weight, (width,))
        check.positive("eps", eps)
    with torch.cuda.device_of(q):
        kernels.rope_append(q, k_cache, v_cache, qkv, positions, slots, cos, sin, q_weight, k_weight, eps)


def paged_attention(
    out: Tensor,
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_tables: Tensor,
    kv_lens: Tensor,
    q_indptr: Tensor,
    scale: float,
) -> None:
    check = _Check("paged_attention", "out", out)
    check("out", out, (-1, -1, -1), dense=True)
    check("q", q, out.shape, dense=True)
    check.caches(q, k_cache, v_cache)
    check.index("block_tables", block_tables, -1, -1, dense=False)
    check.index("kv_lens", kv_lens, len(block_tables))
    check.index("q_indptr", q_indptr, len(block_tables) + 1)
    with torch.cuda.device_of(out):
        kernels.paged_attention(out, q, k_cache, v_cache, block_tables, kv_lens, q_indptr, scale)


def greedy_argmax(out: Tensor, logits: Tensor) -> None:
    check = _Check("greedy_argmax", "logits", logits)
    check("logits", logits, (-1, -1))
    check.index("out", out, len(logits))
    if logits.shape[1] == 0:
        check.fail("logits", "at least one column", "none")
    with torch.cuda.device_of(out):
        kernels.greedy_argmax(out, logits)


def ngram_propose(
    drafts: Tensor, draft_lens: Tensor, tokens: Tensor, ranks: Tensor, bounds: Tensor, limits: Tensor
) -> None:
    check = _Check("ngram_propose", "drafts", drafts, floating=False)
    check.index("drafts", drafts, -1, -1, dense=False)
    sequences = len(drafts)
    check.index("draft_lens", draft_lens, sequences)
    check.index("tokens", tokens, sequences, -1, dense=False)
    check.index("ranks", ranks, *tokens.shape, dense=False)
    check.index("bounds", bounds, sequences, 4)
    check.index("limits", limits, sequences)
    with torch.cuda.device_of(drafts):
        kernels.ngram_propose(drafts, draft_lens, tokens, ranks, bounds, limits)


def verify_draft(
    out: Tensor, out_lens: Tensor, drafts: Tensor, draft_lens: Tensor, sampled: Tensor, row_indptr: Tensor
) -> None:
    check = _Check("verify_draft", "drafts", drafts, floating=False)
    check.index("drafts", drafts, -1, -1, dense=False)
    sequences = len(drafts)
    check.index("out", out, sequences, drafts.shape[1] + 1, dense=False)
    check.index("out_lens", out_lens, sequences)
    check.index("draft_lens", draft_lens, sequences)
    check.index("sampled", sampled, -1)
    check.index("row_indptr", row_indptr, sequences + 1)
    with torch.cuda.device_of(drafts):
        kernels.verify_draft(out, out_lens, drafts, draft_lens, sampled, row_indptr)


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
    drafts: Tensor,
    draft_lens: Tensor,
    block_tables: Tensor,
    block_tokens: int,
) -> None:
    check = _Check("pack_step", "ids", ids, floating=False)
    check.index("ids", ids, -1)
    check.index("computed", computed, -1)
    step, sequences = len(ids), len(computed)
    check.index("positions", positions, step)
    check.index("slots", slots, step)
    check.index("rows", rows, -1)
    check.index("kv_lens", kv_lens, sequences)
    check.index("q_indptr", q_indptr, sequences + 1)
    check.index("row_indptr", row_indptr, sequences + 1)
    check.index("drafted", drafted, sequences)
    check.index("tokens", tokens, sequences, -1, dense=False)
    check.index("bounds", bounds, sequences, 4)
    check.index("most", most, sequences)
    check.index("drafts", drafts, sequences, -1, dense=False)
    check.index("draft_lens", draft_lens, sequences)
    check.index("block_tables", block_tables, sequences, -1, dense=False)
    check.positive("block_tokens", block_tokens)
    with torch.cuda.device_of(ids):
        kernels.pack_step(
            ids, positions, slots, rows, kv_lens, q_indptr, row_indptr, drafted,
            tokens, bounds, computed, most, drafts, draft_lens, block_tables, block_tokens,
        )  # fmt: skip

"""The compiled ops. What each computes, with shapes and dtypes: `qdengine.ops.reference`."""

from typing import TypedDict

from torch import Tensor

class _BuildInfo(TypedDict):
    version: str
    isas: list[str]
    isa: str
    cuda: bool
    cuda_archs: list[str]

def build_info() -> _BuildInfo:
    """Version, CPU instruction sets built and resolved, CUDA architectures built."""

def rms_norm(out: Tensor, scales: Tensor | None, x: Tensor, weight: Tensor, eps: float) -> None: ...
def layer_norm(out: Tensor, scales: Tensor | None, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> None: ...
def add_rms_norm(
    out: Tensor, scales: Tensor | None, residual: Tensor, x: Tensor, weight: Tensor, eps: float
) -> None: ...
def add_layer_norm(
    out: Tensor, scales: Tensor | None, residual: Tensor, x: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> None: ...
def silu_mul(out: Tensor, scales: Tensor | None, gate_up: Tensor) -> None: ...
def gelu(out: Tensor, scales: Tensor | None, x: Tensor) -> None: ...
def quantize(out: Tensor, scales: Tensor, x: Tensor) -> None: ...
def dequantize(out: Tensor, sums: Tensor, scales: Tensor, weight_scales: Tensor, bias: Tensor | None) -> None: ...
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
) -> None: ...
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
) -> None: ...
def greedy_argmax(out: Tensor, logits: Tensor) -> None: ...
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
) -> None: ...
def ngram_propose(
    drafts: Tensor, draft_lens: Tensor, tokens: Tensor, ranks: Tensor, bounds: Tensor, limits: Tensor
) -> None: ...
def verify_draft(
    out: Tensor, out_lens: Tensor, drafts: Tensor, draft_lens: Tensor, sampled: Tensor, row_indptr: Tensor
) -> None: ...
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
) -> None: ...
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
) -> None: ...
def admit_rows(
    tokens: Tensor,
    ranks: Tensor,
    bounds: Tensor,
    computed: Tensor,
    finished: Tensor,
    ends: Tensor,
    admitted: Tensor,
    staged: Tensor,
) -> None: ...
def packed_bytes(weight: Tensor) -> int:
    """Bytes that `pack_linear` takes for a weight [F, E] of float32, bfloat16 or int8."""

def pack_linear(packed: Tensor, weight: Tensor, weight_scales: Tensor | None) -> None:
    """Lays a weight [F, E] out for this instruction set. packed: uint8 [packed_bytes(weight)]; weight_scales:
    float32 [F] of int8, else None."""

def linear(out: Tensor, x: Tensor, scales: Tensor | None, packed: Tensor, bias: Tensor | None) -> None:
    """out = x weight^T + bias. x: [T, E] of the weight's dtype, of int8 with scales, float32 [T]; out: [T, F], float32
    or bfloat16, which bias [F] has as well."""

def take_rows(out: Tensor, table: Tensor, ids: Tensor) -> None:
    """out[t] = table[ids[t]]. table: [V, E], float32 or bfloat16; ids: int32 [T]; out: [T, E] of the table's dtype."""

def usable_threads() -> int:
    """Threads that this process may keep busy: of its affinity mask, its control group's quota and
    OMP_NUM_THREADS."""

def set_thread_limit(limit: int) -> None:
    """Most threads of the CPU ops that this thread calls; 0: all that are usable."""

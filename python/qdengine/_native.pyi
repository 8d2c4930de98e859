"""The compiled ops. What each computes, with shapes and dtypes: `qdengine.ops.reference`."""

from collections.abc import Sequence
from typing import TypedDict

from torch import Tensor

class _BuildInfo(TypedDict):
    version: str
    isas: list[str]
    isa: str
    largest_pair: int
    gates: bool
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
    float32 [F] of int8, else None. AVX2 and AVX-512 without VNNI add products of int8 two by two in 16 bits: a row of
    the weight of which |w[2k]| + |w[2k + 1]| reaches p > 128, `largest_pair` of `build_info`, is kept as
    round(127 w / p)."""

def linear(out: Tensor, x: Tensor, scales: Tensor | None, packed: Tensor, bias: Tensor | None, gated: bool) -> None:
    """out = x weight^T + bias. x: [T, E] of the weight's dtype, of int8 with scales, float32 [T]; out: [T, F], float32
    or bfloat16, which bias [F] has as well. gated: silu of the first half of that times the second, [T, F / 2], each
    rounded first, as by `silu_mul` behind it; where `build_info` has `gates`, and F / 2 is a multiple of 16."""

def usable_threads() -> int:
    """Threads that this process may keep busy: of its affinity mask, its control group's quota and
    OMP_NUM_THREADS."""

def set_thread_limit(limit: int) -> None:
    """Most threads of the CPU ops that this thread calls; 0: all that are usable."""

class Layers:
    """A decoder on a CPU from its tables to its last norm; the caller keeps the tensors. embed: [V, E]; places: [C, E]
    or None; cos, sin: float32 [C, D / 2] or None; layers: of each weight and bias of norm1, qkv, out, norm2, up and
    down, matrices packed, then q_norm and k_norm."""

    def __init__(
        self, heads: int, kv_heads: int, head_width: int, ffn_width: int, gated: bool, int8: bool, eps: float,
        embed: Tensor, places: Tensor | None, cos: Tensor | None, sin: Tensor | None,
        layers: Sequence[Sequence[Tensor | None]], norm: Tensor, norm_bias: Tensor | None,
    ) -> None: ...  # fmt: skip
    def forward(
        self, out: Tensor, scales: Tensor | None, ids: Tensor, positions: Tensor, slots: Tensor, rows: Tensor,
        block_tables: Tensor, kv_lens: Tensor, q_indptr: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor],
        key_scales: Sequence[Tensor | None], value_scales: Sequence[Tensor | None],
    ) -> None:  # fmt: skip
        """The last norm of `rows` to out [R, E], in the tables' dtype or int8 with scales, float32 [R]; keys and values
        of all tokens to the caches, one for every layer."""

    def seconds(self) -> list[tuple[str, float]]:
        """Spent since it was made, by op."""

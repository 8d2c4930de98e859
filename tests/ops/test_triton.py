"""The Triton backend beyond the shared cases: errors, odd arguments, big sizes, the engine on it, compilation."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from cases import EIGHT_BIT, Case, cases
from ops.test_ops import EIGHT_BIT_ERRORS, check_any_bounds, rows_stand_alone
from ops.test_ops import check as check_on
from qdengine import Engine, EngineConfig, ops
from qdengine.errors import BackendError
from qdengine.ops.reference import attention_workspace
from tiny import TEXT, tiny_bundle

GPU = torch.cuda.is_available()
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cuda" if GPU else "cpu"
REFERENCE = ops.load("reference")

pytestmark = [pytest.mark.gpu] if GPU else []
needs_triton = pytest.mark.skipif(not (GPU or INTERPRETED), reason="needs a GPU or TRITON_INTERPRET=1")
on_host = pytest.mark.skipif(GPU or not INTERPRETED, reason="about CPU tensors in the interpreter")


@pytest.fixture(scope="module")
def table():
    return ops.load("triton")


def check(table: ops.OpTable, case: Case) -> None:
    check_on(table, case, DEVICE)


def load_in_a_fresh_process(code: str, **env: str) -> str:
    """The error that `ops.load('triton')` ends with."""
    clean = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    code += "\nfrom qdengine import ops\nops.load('triton')"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env={**clean, "CUDA_VISIBLE_DEVICES": "", **env}, capture_output=True, text=True)
    assert done.returncode == 1
    return done.stderr.strip().splitlines()[-1]


def test_without_a_gpu_the_remedies_are_named():
    error = load_in_a_fresh_process("")
    assert error.startswith("qdengine.errors.BackendError: torch sees no CUDA device")
    assert "driver" in error and "backend 'cpu'" in error and "TRITON_INTERPRET=1" in error


def test_without_the_package_the_remedy_is_named():
    error = load_in_a_fresh_process("import sys; sys.modules['triton'] = None", TRITON_INTERPRET="1")
    assert error.startswith("qdengine.errors.BackendError: the package triton does not load")
    assert "pip install 'qdengine[triton]'" in error


def test_a_broken_backend_is_no_fallback(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    for name in [name for name in sys.modules if name.startswith("qdengine.ops.triton")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(BackendError, match="triton does not load"):
        ops.load("triton")


F32, I32 = torch.empty(2, 8), torch.zeros(2, dtype=torch.int32)
I8, W70 = torch.zeros(2, 8, dtype=torch.int8), torch.empty(0, 70000)
Q, KV, TABLES = torch.empty(2, 4, 8), torch.empty(3, 4, 2, 8), torch.zeros(1, 3, dtype=torch.int32)
ROPE = (Q, KV, KV, None, None, torch.empty(2, 64), I32, I32)
TAIL = (TABLES, I32[:1], I32, 1.0)


@needs_triton
@pytest.mark.parametrize(
    ("op", "args", "message"),
    [
        ("rms_norm", (F32, None, torch.empty(2, 9), F32[0], 1e-5), r"norm: x: expected shape \[2, 8\], got \[2, 9\]"),
        ("rms_norm", (F32.double(), None, F32, F32[0], 1e-5), "rms_norm: out: expected float32, bfloat16 or float16"),
        ("rms_norm", (F32, None, F32.half(), F32[0], 1e-5), "rms_norm: x: expected float32, got float16"),
        ("rms_norm", (F32, None, F32, F32[0], 0.0), r"rms_norm: eps: expected a positive number, got 0\.0"),
        ("rms_norm", (F32, None, torch.empty(8, 2).T, F32[0], 1e-5), "x: expected a contiguous last dimension"),
        ("layer_norm", (W70, None, W70, F32[0], F32[0], 1e-5), "expected a width of at most 65536"),
        ("add_rms_norm", (F32, None, F32[:1], F32, F32[0], 1e-5), r"residual: expected shape \[2, 8\], got \[1, 8\]"),
        ("rms_norm", (I8, None, F32, F32[0], 1e-5), r"scales: expected float32 \[T\] for an output in int8, got"),
        ("gelu", (F32, F32[:, 0], F32), "gelu: scales: expected [nN]one for an output in float32, got a tensor"),
        ("gelu", (I8, F32[0], F32), r"gelu: scales: expected shape \[2\], got \[8\]"),
        ("quantize", (F32, F32[0, :2], F32), "quantize: out: expected int8 or float8_e4m3fn, got float32"),
        ("dequantize", (F32, I8, F32[0, :2], F32[0], None), "dequantize: sums: expected int32, got int8"),
        ("silu_mul", (F32, None, F32), r"silu_mul: gate_up: expected shape \[2, 16\], got \[2, 8\]"),
        ("gelu", (F32[0], None, F32), r"gelu: out: expected shape \[any, any\], got \[8\]"),
        ("greedy_argmax", (torch.empty(2, dtype=torch.int64), F32), "greedy_argmax: out: expected int32, got int64"),
        ("greedy_argmax", (I32, F32[:, :0]), "greedy_argmax: logits: expected at least one column"),
        ("rope_append", (*ROPE, F32[:, :4], None, None, None, 1e-6), "sin: expected cos and sin together"),
        ("rope_append", (*ROPE, F32[:0, :4], F32[:0, :4], None, None, 1e-6), "cos: expected at least one position"),
        ("rope_append", (Q, KV[:, ::2], *ROPE[2:], None, None, None, None, 1e-6), "k_cache: expected a contiguous te"),
        ("paged_attention", (Q, Q, KV[:, :, :0], KV[:, :, :0], *(None,) * 3, *TAIL), "4 query heads into groups"),
        ("paged_attention", (Q, Q, KV, KV, *(None,) * 3, *TAIL[:2], I32[:1], 1.0), r"indptr: expected shape \[2\]"),
        *EIGHT_BIT_ERRORS,
        ("allowed_argmax", (I32, F32, TABLES[0], *(TABLES,) * 4, I32, I32, I32, 0), r"tokens: expected shape \[2, any"),
        ("ngram_propose", (TABLES.long(), *(I32,) * 5), "ngram_propose: drafts: expected int32, got int64"),
        ("verify_draft", (TABLES, I32[:1], TABLES, *(I32,) * 3), r"verify_draft: out: expected shape \[1, 4\]"),
    ],
)  # fmt: skip
def test_wrong_arguments_are_named(table, op, args, message):
    args = [x.to(DEVICE) if isinstance(x, torch.Tensor) else x for x in args]
    with pytest.raises(ValueError, match=message):
        getattr(table, op)(*args)


@needs_triton
def test_not_a_tensor(table):
    with pytest.raises(TypeError, match=r"gelu: out: expected a torch\.Tensor, got list"):
        table.gelu([1.0], None, F32)
    with pytest.raises(TypeError, match="layer_norm: bias"):
        table.layer_norm(F32.to(DEVICE), None, F32.to(DEVICE), F32[0].to(DEVICE), None, 1e-5)


@on_host
def test_cpu_tensors_need_the_interpreter(table, monkeypatch):
    monkeypatch.setattr(sys.modules["qdengine.ops.triton.check"], "INTERPRETED", False)
    with pytest.raises(ValueError, match=r"gelu: out: expected a CUDA tensor \(.*TRITON_INTERPRET=1\), got one on cpu"):
        table.gelu(F32, None, F32)
    with pytest.raises(ValueError, match="ngram_propose: drafts: expected a CUDA tensor"):
        table.ngram_propose(*(TABLES,) * 6)


@needs_triton
@pytest.mark.parametrize("op", ops.OPS)
def test_float16(table, op):
    for case in [case for case in cases(torch.float16) if case.op == op][::6]:
        check(table, case)


@needs_triton
def test_big_sizes(table):
    """Rows wider than a tile, wide heads, many sequences, histories and drafts longer than a block."""
    g = torch.Generator().manual_seed(5)
    x, w = torch.randn(3, 5000, generator=g), torch.randn(5000, generator=g)
    check(table, Case("add_layer_norm", "5000", (torch.empty_like(x), None, x.clone(), x, w, w, 1e-5), (0, 2)))
    check(table, Case("silu_mul", "2500", (torch.empty(3, 2500), None, x)))
    for width, dtype in ((160, torch.bfloat16), (512, torch.float16), (256, torch.float32), (320, torch.float32)):
        q = torch.randn(5, 16, width, generator=g).to(dtype)
        cache = torch.randn(2, 4, 32, 1, width, generator=g).to(dtype)
        tables = torch.tensor([[2, 0, 1]]), torch.tensor([70]), torch.tensor([0, 5])
        args = (torch.empty_like(q), q, *cache, *(None,) * 3, *(t.int() for t in tables), width**-0.5)
        check(table, Case("paged_attention", f"D{width}", args))
    lengths = torch.randint(1, 40, (140,), generator=g, dtype=torch.int32)
    starts = torch.arange(141, dtype=torch.int32)
    q, cache = torch.randn(140, 1, 16, generator=g), torch.randn(2, 140, 40, 1, 16, generator=g)
    args = (torch.empty_like(q), q, *cache, *(None,) * 3, starts[:140, None].contiguous(), lengths, starts, 0.25)
    check(table, Case("paged_attention", "S140", args))
    tokens = torch.randint(0, 3, (4, 5000), generator=g, dtype=torch.int32)
    tokens[1] = 1  # every place matches MAX_MATCH tokens
    ranks = torch.randint(0, 6, (4, 5000), generator=g, dtype=torch.int32)
    bounds = torch.tensor([[10, 3000, 3000, 5000], [0, 2000, 2100, 5000], [0, 5000, 5000, 5000], [0, 0, 0, 5000]])
    limits = torch.tensor([4000, 3000, 5000, 2000], dtype=torch.int32)
    drafts, lens = torch.full((4, 3500), -7, dtype=torch.int32), torch.empty(4, dtype=torch.int32)
    check(table, Case("ngram_propose", "long", (drafts, lens, tokens, ranks, bounds.int(), limits), (0, 1)))
    given = torch.ones(3, 300, dtype=torch.int32)
    given[0, 290] = 0
    drafted = torch.tensor([300, 300, 128], dtype=torch.int32)
    indptr = torch.tensor([0, 301, 602, 731], dtype=torch.int32)
    out, lens = torch.full((3, 301), -7, dtype=torch.int32), torch.empty(3, dtype=torch.int32)
    args = (out, lens, given, drafted, torch.ones(731, dtype=torch.int32), indptr)
    check(table, Case("verify_draft", "long", args, (0, 1)))


@needs_triton
def test_illegal_slots_and_positions(table):
    """Slots outside the cache store nothing; positions outside the tables read their first or last row."""
    positions = torch.tensor([-5, 0, 3, 4, 2**31 - 1, -(2**31)], dtype=torch.int32)
    slots = torch.tensor([12, 2**31 - 1, -1, -(2**31), 11, 0], dtype=torch.int32)
    qkv = torch.randn(6, 2 * 8 + 4 * 8)
    cos, sin = torch.randn(4, 4), torch.randn(4, 4)
    q, k, v = torch.empty(6, 2, 8), torch.zeros(3, 4, 2, 8), torch.zeros(3, 4, 2, 8)
    args = [q, k, v, None, None, qkv, positions, slots, cos, sin, None, None, 1e-6]
    moved = [x.to(DEVICE) if isinstance(x, torch.Tensor) else x for x in args]
    table.rope_append(*moved)
    args[6:8] = positions.clamp(0, 3), torch.where(slots < 12, slots, -1)
    REFERENCE.rope_append(*args)
    for got, want in zip(moved[:3], args[:3], strict=True):
        torch.testing.assert_close(got.cpu(), want)
    assert not k[0, 1:].any() and not k[1].any() and k[2, 3].any() and k[0, 0].any()


@needs_triton
def test_any_bounds_are_safe(table):
    """Histories and row counts that make no sense draft and keep nothing outside their rows."""
    g = torch.Generator().manual_seed(6)
    bounds = torch.randint(-50, 100, (40, 4), generator=g, dtype=torch.int32)
    bounds[0] = torch.tensor([-(2**31), 2**31 - 1, -(2**31), 2**31 - 1])
    limits = torch.randint(-2, 40, (40,), generator=g, dtype=torch.int32)
    tokens = torch.randint(0, 2, (40, 30), generator=g, dtype=torch.int32)
    drafts, lens = torch.full((40, 8), -7, dtype=torch.int32), torch.empty(40, dtype=torch.int32)
    args = [x.to(DEVICE) for x in (drafts, lens, tokens, tokens, bounds, limits)]
    table.ngram_propose(*args)
    drafts, lens = args[0].cpu(), args[1].cpu()
    inside = torch.arange(8) < lens[:, None]
    assert ((lens >= 0) & (lens <= limits.clamp(0, 8))).all()
    assert ((drafts == -7) != inside).all()
    indptr = torch.tensor([-9, 3, 2, 50], dtype=torch.int32)
    out, kept = torch.full((3, 9), -7, dtype=torch.int32), torch.empty(3, dtype=torch.int32)
    drafted = torch.tensor([99, 4, -3], dtype=torch.int32)
    given, sampled = torch.ones(3, 8, dtype=torch.int32), torch.ones(4, dtype=torch.int32)
    args = [x.to(DEVICE) for x in (out, kept, given, drafted, sampled, indptr)]
    table.verify_draft(*args)
    assert args[1].tolist() == [3, 0, 1]
    assert ((args[0].cpu() == -7) != (torch.arange(9) < args[1].cpu()[:, None])).all()
    check_any_bounds(table, DEVICE)


@needs_triton
def test_rows_four_gigabytes_apart(table):
    """Row offsets do not fit 32 bits."""
    try:
        buffer = torch.empty(2**31 + 64, dtype=torch.bfloat16, device=DEVICE)  # pages never touched cost nothing
    except RuntimeError:
        pytest.skip("no room for 4 GiB")
    far = buffer.as_strided((3, 64), (2**30, 1))
    far.copy_(torch.randn(3, 64))
    near = far.contiguous()
    for op, args, width in (("rms_norm", (near[0], 1e-5), 64), ("gelu", (), 64), ("silu_mul", (), 32)):
        got, want = (near.new_empty(3, width) for _ in range(2))
        getattr(table, op)(got, None, far, *args)
        getattr(table, op)(want, None, near, *args)
        assert torch.equal(got, want)
    ids, index = (torch.arange(3, dtype=torch.int32, device=DEVICE) for _ in range(2))
    table.greedy_argmax(ids, far)
    assert torch.equal(ids.long(), near.argmax(-1))
    caches, out = [near.new_zeros(1, 3, 1, 16) for _ in range(4)], near.new_empty(3, 2, 16)
    for rows, (k, v) in ((far, caches[:2]), (near, caches[2:])):
        table.rope_append(out, k, v, None, None, rows, index, index, None, None, None, None, 1e-6)
        assert torch.equal(out.flatten(1), near[:, :32])
    assert torch.equal(caches[0], caches[2]) and torch.equal(caches[1], caches[3])


@needs_triton
@pytest.mark.parametrize(
    ("dtype", "cached"),
    [(torch.float32, torch.float32), (torch.float32, torch.float8_e4m3fn), (torch.bfloat16, torch.int8)],
)
def test_rows_do_not_depend_on_the_batch(table, dtype, cached, monkeypatch):
    """Attention of a sequence is bit-equal alone, in a batch, whole or in chunks, and split over its keys or not."""
    if INTERPRETED:
        # The interpreter multiplies tiles with a BLAS that, on some CPUs, sums a row differently by where it stands.
        monkeypatch.setattr(np, "matmul", lambda a, b, dtype: np.einsum("ik,kj->ij", a, b, dtype=dtype))
    rows_stand_alone(table, dtype, cached, DEVICE)


@on_host
@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2"])
def test_engine(tmp_path, family):
    """The same tokens as the cpu backend, drafts, chunks and a batch included."""
    bundle = tiny_bundle(tmp_path, family)
    batch = [{"query": "fox", "document": TEXT[:150]}, {"query": "rain", "document": TEXT[150:220], "verbatim": True}]
    config = EngineConfig(kv_bytes=1 << 21, max_new_tokens=8, max_step_tokens=64)

    def ids(backend: str) -> list[list[int]]:
        with Engine.from_pretrained(bundle, "cpu", "float32", config, backend) as engine:
            assert engine.backend == backend
            summaries = engine.summarize(batch)
        assert not any(summary.error for summary in summaries)
        return [summary.token_ids for summary in summaries]

    assert ids("triton") == ids("cpu")


@pytest.mark.slow
@pytest.mark.parametrize("arch", [80, 89, 90])
def test_compiles(tmp_path, arch):
    """Every kernel, as launched for common shapes, compiles without a GPU and fits that GPU's shared memory."""
    pytest.importorskip("triton")
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    env |= {"TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run([sys.executable, __file__, str(arch)], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    shared = dict(line.split() for line in done.stdout.splitlines())
    kernels = {
        "_norm",
        "_activation",
        "_rope_append",
        "_attention",
        "_fold",
        "_argmax",
        "_allowed",
        "_propose",
        "_verify",
    }
    kernels |= {"_dequantize", "_linear", "_linear_argmax", "_best", "_pack", "_commit", "_admit"}
    assert set(shared) == {f"{name}_kernel" for name in kernels}
    assert max(map(int, shared.values())) <= {80: 163, 89: 99, 90: 227}[arch] * 1024


def compile_everything(arch: int) -> None:
    """Run the launchers with a driver that only knows `arch`, and print each kernel's most shared memory."""
    from qdengine import triton_kernels
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction

    class Driver:
        def get_current_target(self) -> GPUTarget:
            return GPUTarget("cuda", arch, 32)

        def get_current_device(self) -> int:
            return 0

        def get_current_stream(self, device: int) -> int:
            return 0

    shared: dict[str, int] = {}
    launch = JITFunction.run

    def compile_only(self, *args, grid, warmup, **options):
        compiled = launch(self, *args, grid=grid, warmup=True, **options)
        shared[self.__name__] = max(shared.get(self.__name__, 0), compiled.metadata.shared)

    driver.set_active(Driver())
    JITFunction.run = compile_only
    for op, args in launches(arch):
        getattr(triton_kernels, op)(*args)
    print(*(f"{name} {size}" for name, size in shared.items()), sep="\n")


def launches(arch: int):
    """Calls that between them reach every branch of every kernel, in the shapes of SmolLM2-135M and wider heads."""

    def index(*shape):
        return torch.zeros(*shape, dtype=torch.int32)

    for dtype in (torch.bfloat16, torch.float32, torch.float16):
        x, up = torch.empty(32, 576, dtype=dtype), torch.empty(32, 3072, dtype=dtype)
        yield "rms_norm", (x, None, x, x[0], 1e-5)
        yield "add_layer_norm", (x, None, x, x, x[0], x[0], 1e-5)
        yield "silu_mul", (up[:, :1536], None, up)
        yield "gelu", (up, None, up)
        for number in (torch.int8, torch.float8_e4m3fn):
            numbers, scales = torch.empty(32, 3072, dtype=number), torch.empty(32)
            yield "add_rms_norm", (numbers[:, :576], scales, x, x, x[0], 1e-5)
            yield "layer_norm", (numbers[:, :576], scales, x, x[0], x[0], 1e-5)
            yield "silu_mul", (numbers[:, :1536], scales, up)
            yield "gelu", (numbers, scales, up)
            yield "quantize", (numbers, scales, up)
        for bias in (None, up[0]):
            yield "dequantize", (up, index(32, 3072), scales, torch.empty(3072), bias)
            yield "linear", (up, x, None, torch.empty(3072, 576, dtype=dtype), None, bias)
            if arch >= 89:
                small, weight = numbers[:, :576], torch.empty(3072, 576, dtype=number)
                yield "linear", (up, small, scales, weight, torch.empty(3072), bias)
        ids, workspace = index(32), torch.empty(32, 384, dtype=torch.int64)
        yield "linear_argmax", (ids, workspace, x, torch.empty(49152, 576, dtype=dtype))
        yield "greedy_argmax", (index(4), torch.empty(4, 49152, dtype=dtype))
        for capacity in (512, 8192):
            arrays = (*[index(4, capacity)] * 2, index(4, 4), index(4, 64), index(4), index(49152), index(2))
            yield "allowed_argmax", (index(4), torch.empty(4, 49152, dtype=dtype), index(5), *arrays, 198)
        for heads, groups, width, size in ((9, 3, 64, 16), (32, 8, 128, 16), (8, 1, 256, 5)):
            if dtype == torch.float16 and width != 64:
                continue
            q, cache = torch.empty(32, heads, width, dtype=dtype), torch.empty(10, size, groups, width, dtype=dtype)
            scales = torch.empty(10, size, groups)
            dtypes = EIGHT_BIT if dtype == torch.bfloat16 else EIGHT_BIT[:1] if width == 64 else ()
            eight_bit = [[torch.empty_like(cache, dtype=t)] * 2 + [scales] * 2 for t in dtypes]
            workspace = torch.empty(attention_workspace(32, heads, width, 40 * size))
            for kv in ([cache, cache, None, None], *eight_bit):
                yield "paged_attention", (q, q, *kv, workspace, index(4, 40), index(4), index(5), 0.1)
            angles, weight = torch.empty(50, width // 2), q[0, 0]
            extra = (angles, angles, None, None) if width == 64 else (None, None, weight, weight)
            qkv = torch.empty(32, (heads + 2 * groups) * width, dtype=dtype)
            for kv in ([cache, cache, None, None], *eight_bit):
                yield "rope_append", (q, *kv, qkv, index(32), index(32), *extra, 1e-6)
    yield "ngram_propose", (index(4, 64), index(4), index(4, 512), index(4, 512), index(4, 4), index(4))
    yield "verify_draft", (index(4, 65), index(4), index(4, 64), index(4), index(40), index(5))
    rows, bounds, each = index(4, 512), index(4, 4), index(4)
    step = (*[index(64)] * 3, index(40), each, index(5), index(5), each)
    yield "pack_step", (*step, rows, bounds, each, each, each, index(4, 64), each, index(4, 40), 16)
    yield "commit_step", (rows, bounds, each, each, each, index(4, 65), each, each, index(5), each, index(2))
    yield "admit_rows", (rows, rows, bounds, each, each, each, index(2, 8), index(100))


if __name__ == "__main__":
    compile_everything(int(sys.argv[1]))

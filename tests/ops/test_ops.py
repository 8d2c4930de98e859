"""Every backend against the reference in float64, over one case list."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cases import EIGHT_BIT, Case, cases, kv_cache, paged
from qdengine import ops
from qdengine.errors import BackendError
from qdengine.ops.native import build_info
from qdengine.ops.reference import SPLIT_KEYS, attention_workspace
from tolerances import TOLERANCES

REFERENCE = ops.load("reference")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
GUARD = 77


GPU = torch.cuda.is_available()
on_gpu = [pytest.mark.gpu, pytest.mark.skipif(not GPU, reason="no NVIDIA GPU here")]
interpreted = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1", reason="needs a GPU or TRITON_INTERPRET=1 (make test sets it)"
)
BACKENDS = [
    pytest.param("reference"),
    pytest.param("cpu"),
    pytest.param("cuda", marks=on_gpu),
    pytest.param("triton", marks=pytest.mark.gpu if GPU else interpreted),
]


def device_of(backend: str) -> str:
    return "cuda" if GPU and backend in ("cuda", "triton") else "cpu"


def guarded(x: torch.Tensor, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """A copy of `x` in the middle of a buffer whose other elements must survive the call."""
    dtype = torch.uint8 if x.dtype == torch.float8_e4m3fn else x.dtype
    buffer = torch.full((x.numel() + 64,), GUARD, dtype=dtype, device=device)
    view = buffer[32 : 32 + x.numel()].view(x.shape)
    view.copy_(x.view(dtype))
    return view.view(x.dtype), buffer


def wide(x):
    return x.double() if isinstance(x, torch.Tensor) and x.is_floating_point() and x.itemsize > 1 else x


def run(table: ops.OpTable, case: Case, device: str) -> list[torch.Tensor]:
    args, buffers = list(case.args), []
    for i, arg in enumerate(args):
        if isinstance(arg, torch.Tensor):
            args[i] = arg.to(device)
            if i in case.outputs:
                args[i], buffer = guarded(arg, device)
                buffers.append(buffer)
    getattr(table, case.op)(*args)
    for buffer in buffers:
        assert (buffer[:32] == GUARD).all() and (buffer[-32:] == GUARD).all(), "wrote outside an output"
    return [args[i].cpu() for i in case.outputs]


def expected(case: Case) -> list[torch.Tensor]:
    args = [wide(arg).clone() if isinstance(arg, torch.Tensor) else arg for arg in case.args]
    if case.op.startswith("add_"):  # the sum is rounded to the residual's dtype: start from the rounded sum
        args[2] = (case.args[2] + case.args[3]).double()
        args[3] = torch.zeros_like(args[2])
    if case.op == "quantize":
        return [args[2]]
    getattr(REFERENCE, case.op)(*args)
    return [args[i] for i in case.outputs]


def has_scales(case: Case) -> bool:
    return case.args[0].dtype in EIGHT_BIT and case.op != "rope_append"


def plain(case: Case) -> Case:
    """The case with a whole result in place of one of 8 bits and its scales."""
    if not has_scales(case):
        return case
    out, _, *args = case.args
    return Case(case.op, case.name, (torch.empty(out.shape, dtype=torch.float64), None, *args), (0, *case.outputs[2:]))


def half_distance(numbers: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Half the distance of neighbouring numbers; of float8 those around each number."""
    if numbers.dtype == torch.int8:
        return 0.5 * scales
    return 2**-4 * torch.maximum(numbers.double().abs(), torch.tensor(2.0**-6)) * scales


def slack(case: Case, backend: str) -> torch.Tensor | float:
    """Absolute error that is allowed on top: CUDA's tensor cores and AMX's tiles take attention's weights p rounded to
    the inputs' type, which moves a result by up to 2^-9 (bfloat16) of sum p |v|."""
    rounds = backend == "cuda" or (backend == "cpu" and build_info()["isa"] == "amx")
    if not rounds or case.op != "paged_attention" or case.args[1].dtype == torch.float32:
        return 0.0
    args = list(case.args)
    args[3] = args[3].float().abs()
    magnitude = expected(Case(case.op, case.name, tuple(args), case.outputs))[0]
    return TOLERANCES[case.args[1].dtype][0] * magnitude


def check(table: ops.OpTable, case: Case, device: str) -> None:
    """Runs a case, and compares with float64."""
    results, truth = run(table, case, device), expected(plain(case))
    numbers, scales = results[0], results[1][:, None].double() if has_scales(case) else None
    if scales is not None:  # numbers of 8 bits stand for the result, to half the distance of two of them
        results = [numbers.double() * scales, *results[2:]]
    for i, (got, want) in enumerate(zip(results, truth, strict=True)):
        if got.dtype == torch.float8_e4m3fn:
            assert torch.equal(got.view(torch.uint8), want.view(torch.uint8)), f"{case.op} {case.name}"
        elif got.is_floating_point():
            relative, absolute = TOLERANCES[tolerance_of(case, got)]
            allowed = relative * want.abs() + absolute + slack(case, table.backend)
            if i == 0 and scales is not None:
                allowed += half_distance(numbers, scales)
            worst = ((got.double() - want).abs() / allowed).max().item() if want.numel() else 0.0
            assert worst <= 1.0, f"{case.op} {case.name}: {worst:.2f} times the tolerance"
        else:
            assert torch.equal(got, want.to(got.dtype)), f"{case.op} {case.name}: {got} != {want}"


def tolerance_of(case: Case, got: torch.Tensor) -> torch.dtype:
    """That of the result's dtype; where it has 8 bits, of the inputs'."""
    return case.args[2].dtype if has_scales(case) else got.dtype


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("op", ops.OPS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_against_float64(backend, op, dtype):
    device, table = device_of(backend), ops.load(backend)
    chosen = [case for case in cases(DTYPES[dtype]) if case.op == op]
    assert chosen
    for case in chosen:
        check(table, case, device)


def rows_stand_alone(table: ops.OpTable, dtype: torch.dtype, cached: torch.dtype, device: str) -> None:
    """Attention of a sequence is bit-equal alone, in a batch, whole or in chunks, and split over its keys or not."""
    g = torch.Generator().manual_seed(9)
    p = paged(((1300, 9), (300, 0), (257, 2), (70, 70)), 16, 2)
    tokens, heads, width = len(p["positions"]), 3, 64
    cache = [None if x is None else x.to(device) for x in kv_cache(g, cached, int(p["blocks"]), 16, 1, width)]
    q = torch.randn(tokens, heads, width, generator=g).to(device, dtype)
    blocks, lens, indptr = (p[name].to(device) for name in ("table", "kv_lens", "q_indptr"))
    space = attention_workspace(tokens, heads, width, blocks.shape[1] * 16)
    whole, split = torch.empty_like(q), torch.empty_like(q)
    table.paged_attention(whole, q, *cache, None, blocks, lens, indptr, 0.1)
    workspace = torch.full((space,), torch.nan, device=device)
    table.paged_attention(split, q, *cache, workspace, blocks, lens, indptr, 0.1)
    assert torch.equal(whole, split)
    if table.backend == "cpu":  # one thread takes all splits of a row, more take one each
        ops.set_thread_limit(1)
        table.paged_attention(split, q, *cache, None, blocks, lens, indptr, 0.1)
        ops.set_thread_limit(0)
        assert torch.equal(whole, split)
    want = [x.double() if x is not None and x.itemsize > 1 else x for x in (torch.empty_like(q), q, *cache)]
    REFERENCE.paged_attention(*want, None, blocks, lens, indptr, 0.1)
    assert torch.allclose(whole.double(), want[0], rtol=0.02, atol=0.02)
    for s, (length, begin) in enumerate(zip(lens.tolist(), indptr.tolist(), strict=False)):
        end = int(indptr[s + 1])
        for first, last in ((begin, (begin + end) // 2), ((begin + end) // 2, end)):
            part, bounds = torch.empty_like(q[first:last]), torch.tensor([0, last - first], dtype=torch.int32)
            known = torch.tensor([length - (end - last)], dtype=torch.int32, device=device)
            rows = (q[first:last].clone(), *cache, workspace, blocks[s : s + 1], known, bounds.to(device), 0.1)
            table.paged_attention(part, *rows)
            assert torch.equal(part, whole[first:last])


@pytest.mark.parametrize("cached", ["same", *EIGHT_BIT], ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("backend", BACKENDS[1:3])
def test_rows_do_not_depend_on_the_batch(backend, dtype, cached):
    dtype = DTYPES[dtype]
    rows_stand_alone(ops.load(backend), dtype, dtype if cached == "same" else cached, device_of(backend))


def test_the_kernels_split_where_the_workspace_is_counted():
    """One number of keys in three languages."""
    root = Path(__file__).parents[2]
    cpp = (root / "csrc" / "include" / "qdengine" / "attention.h").read_text(encoding="utf-8")
    triton = (root / "triton_kernels" / "paged_attention.py").read_text(encoding="utf-8")
    assert f"kSplitKeys = {SPLIT_KEYS};" in cpp and f"SPLIT_KEYS = tl.constexpr({SPLIT_KEYS})" in triton


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("backend", BACKENDS[1:])
def test_numbers_of_8_bits_are_the_references(backend, dtype):
    """Where the rotation rounds nothing, every bit of caches and scales is defined."""
    device = device_of(backend)
    chosen = [c for c in cases(DTYPES[dtype]) if c.op == "rope_append" and len(c.outputs) == 5][::4]
    for case in chosen:
        args = [x.clone() if isinstance(x, torch.Tensor) else x for x in case.args]
        REFERENCE.rope_append(*args)
        for i, got in enumerate(run(ops.load(backend), case, device)):
            assert torch.equal(got.view(torch.uint8), args[i].view(torch.uint8)), f"{case.name}: output {i}"


@pytest.mark.parametrize("cached", EIGHT_BIT, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_numbers_of_8_bits_are_near(backend, cached):
    """Rotated, normalised, tiny, huge and zero heads come back to within half the distance of two numbers."""
    device = device_of(backend)
    case = next(c for c in cases(torch.float32) if c.op == "rope_append" and c.name == "H9G3D64P16-2-float32")
    q, k, v, _, _, qkv, positions, slots, *rest = case.args
    qkv, positions = qkv * torch.logspace(-15, 15, len(qkv))[:, None], positions.clamp(max=3)
    qkv[3] = 0.0
    want = [torch.zeros_like(k), torch.zeros_like(v)]
    REFERENCE.rope_append(torch.empty_like(q), *want, None, None, qkv, positions, slots, *rest)
    numbers = [torch.zeros(k.shape, dtype=cached, device=device) for _ in range(2)]
    scales = [torch.zeros(k.shape[:-1], device=device) for _ in range(2)]
    rest = [x.to(device) if isinstance(x, torch.Tensor) else x for x in (qkv, positions, slots, *rest)]
    ops.load(backend).rope_append(torch.empty_like(q, device=device), *numbers, *scales, *rest)
    for number, scale, x in zip(numbers, scales, want, strict=True):
        got, step = number.cpu().float() * scale.cpu()[..., None], scale.cpu()[..., None].expand(x.shape)
        # float8: three bits behind the leading one.
        apart = step if cached == torch.int8 else torch.maximum(x.abs() / 8, step * 2**-9)
        assert ((got - x).abs() <= 0.501 * apart + 1e-5 * x.abs()).all()


def check_any_bounds(table: ops.OpTable, device: str) -> None:
    """allowed_argmax with bounds, rows and tokens that make no sense chooses tokens that there are, in its own rows."""
    g = torch.Generator().manual_seed(7)
    bounds = torch.randint(-50, 60, (9, 4), generator=g, dtype=torch.int32)
    bounds[0] = torch.tensor([-(2**31), 2**31 - 1, -(2**31), 2**31 - 1])
    tokens = torch.randint(-1, 4, (9, 30), generator=g, dtype=torch.int32)
    tokens[:, ::9] = 2**31 - 1
    indptr = torch.tensor([-9, 2, 1, 5, 5, 6, 7, 9, 12, 2**31 - 1], dtype=torch.int32)
    twins = torch.tensor([-1, 2**31 - 1, -(2**31), 1], dtype=torch.int32)
    stops = torch.tensor([3, -1, 4], dtype=torch.int32)
    chosen, logits = torch.full((12,), -7, dtype=torch.int32), torch.randn(12, 4, generator=g)
    verbatim = torch.tensor([1, 1, 1, -1, 1, 1, 0, 1, 1], dtype=torch.int32)
    args = (chosen, logits, indptr, tokens, tokens.flip(0), bounds, tokens[:, :3], verbatim, twins, stops)
    case = Case("allowed_argmax", "any bounds", (*args, 0))
    (got,) = run(table, case, device)
    plain = torch.tensor([False] * 7 + [True] * 2 + [False] * 3)
    assert ((got == -7) == plain).all() and (got[~plain] >= 0).all() and (got < 4).all()


def test_any_bounds_are_safe():
    check_any_bounds(ops.load("cpu"), "cpu")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_numbers_of_8_bits_are_those_of_the_whole_result(backend, dtype):
    """`quantize` gives the contract's bits, and every op with scales those of `quantize` behind the op without."""
    device, table = device_of(backend), ops.load(backend)
    for case in [c for c in cases(DTYPES[dtype]) if c.args[0].dtype in EIGHT_BIT and c.args[1] is not None]:
        got, scales = run(table, case, device)[:2]
        whole, numbers, top = case.args[2], torch.zeros_like(case.args[0]), torch.zeros_like(case.args[1])
        if case.op != "quantize":
            plain = (torch.empty(got.shape, dtype=DTYPES[dtype]), None, *case.args[2:])
            whole = run(table, Case(case.op, case.name, plain), device)[0]
        REFERENCE.quantize(numbers, top, whole)
        assert torch.equal(got.view(torch.uint8), numbers.view(torch.uint8)), f"{case.op} {case.name}"
        assert torch.equal(scales, top), f"{case.op} {case.name}"


@pytest.mark.parametrize("width", [4096, 5000])
def test_wide_rows_in_8_bits(width):
    """Rows that a CPU kernel does not hold while it looks for their largest number."""
    x = torch.randn(3, 2 * width, generator=torch.Generator().manual_seed(1))
    out, scales, plain = torch.empty(3, width, dtype=torch.int8), torch.empty(3), torch.empty(3, width)
    table = ops.load("cpu")
    table.silu_mul(plain, None, x)
    table.silu_mul(out, scales, x)
    want = torch.empty_like(out)
    REFERENCE.quantize(want, torch.empty(3), plain)
    assert torch.equal(out, want)
    assert torch.equal(scales, plain.abs().amax(1) / torch.full((3,), 127.0))


@pytest.mark.parametrize("isa", ["generic", "avx2", "avx512"])
def test_forced_isa_passes_the_same_cases(isa):
    from qdengine import _native

    if isa not in _native.build_info()["isas"]:
        pytest.skip(f"{isa} is not built for this processor family")
    code = "from qdengine import _native; print(_native.build_info()['isa'])"
    env = {**os.environ, "QDENGINE_ISA": isa, "OMP_NUM_THREADS": "2"}
    probe = subprocess.run([sys.executable, "-c", f"import torch; {code}"], env=env, capture_output=True, text=True)
    if probe.returncode and "does not have it" in probe.stderr:
        pytest.skip(f"this CPU has no {isa}")
    assert probe.stdout.strip() == isa
    if isa == _native.build_info()["isa"]:
        return  # the cases above ran on it
    chosen = "cpu and (against_float64 or 8_bits) or batch"
    command = [sys.executable, "-m", "pytest", "-q", "-x", __file__, "-k", chosen]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]


def test_unknown_isa_is_named():
    env = {**os.environ, "QDENGINE_ISA": "mmx"}
    code = "import torch; from qdengine import _native; _native.build_info()"
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert "QDENGINE_ISA=mmx: expected generic, avx2, avx2_vnni, avx512, avx512_vnni, avx512_bf16 or amx" in done.stderr


F32, I32 = torch.empty(2, 8), torch.zeros(2, 4, dtype=torch.int32)
ALLOWED = (I32[:, 0].clone(), F32, I32[0, :3], I32, I32, I32, I32, I32[0, :2])
I8 = torch.zeros(2, 8, dtype=torch.int8)
Q, KV, TABLES = torch.empty(2, 4, 8), torch.empty(3, 4, 2, 8), torch.zeros(1, 3, dtype=torch.int32)
KV8, SCALES = KV.to(torch.int8), torch.empty(3, 4, 2)
TAIL = (TABLES, torch.ones(1, dtype=torch.int32), torch.zeros(2, dtype=torch.int32), 1.0)
EIGHT_BIT_ERRORS = [
    (
        "paged_attention",
        (Q, Q, KV8, KV8, None, None, None, *TAIL),
        "k_scales: expected scales of the 8-bit cache, got no",
    ),
    ("paged_attention", (Q, Q, KV8, KV8, SCALES, None, None, *TAIL), "v_scales: expected scales of the 8-bit cache"),
    ("paged_attention", (Q, Q, KV, KV, SCALES, SCALES, None, *TAIL), "k_scales: expected none for a cache of float32"),
    ("paged_attention", (Q, Q, KV8, KV, SCALES, SCALES, None, *TAIL), "v_cache: expected int8, got float32"),
    (
        "paged_attention",
        (Q, Q, KV.half(), KV, None, None, None, *TAIL),
        "k_cache: expected float32, int8 or float8_e4m3fn",
    ),
    (
        "paged_attention",
        (Q, Q, KV8, KV8, SCALES[:2], SCALES, None, *TAIL),
        r"k_scales: expected shape \[3, 4, 2\], got",
    ),
    ("paged_attention", (Q, Q, KV, KV, None, None, F32, *TAIL), r"workspace: expected shape \[any\], got \[2, 8\]"),
    ("paged_attention", (Q, Q, KV, KV, None, None, None, *TAIL[:3], -1.0), "scale: expected a positive number"),
    ("rope_append", (Q, KV8, KV8, SCALES, F32, F32, *(TABLES,) * 6, 1.0), r"v_scales: expected shape \[3, 4, 2\], got"),
]


@pytest.mark.parametrize(
    ("op", "args", "message"),
    [
        ("rms_norm", (F32, None, torch.empty(2, 9), F32[0], 1e-5), r"norm: x: expected shape \[2, 8\], got \[2, 9\]"),
        ("rms_norm", (F32.double(), None, F32, F32[0], 1e-5), "rms_norm: out: expected float32 or bfloat16"),
        ("rms_norm", (F32, None, F32, F32[0], 0.0), "rms_norm: eps: expected a positive number"),
        ("rms_norm", (F32, None, torch.empty(8, 2).T, F32[0], 1e-5), "contiguous last dimension"),
        ("rms_norm", (I8, None, F32, F32[0], 1e-5), r"scales: expected float32 \[T\] for an output in int8, got"),
        ("gelu", (F32, F32[:, 0], F32), "gelu: scales: expected [nN]one for an output in float32, got a tensor"),
        ("gelu", (I8, F32[0], F32), r"gelu: scales: expected shape \[2\], got \[8\]"),
        ("quantize", (F32, F32[0, :2], F32), "quantize: out: expected int8 or float8_e4m3fn, got float32"),
        ("dequantize", (F32, I8, F32[0, :2], F32[0], None), "dequantize: sums: expected int32, got int8"),
        ("silu_mul", (F32, None, F32), r"silu_mul: gate_up: expected shape \[2, 16\]"),
        ("greedy_argmax", (torch.empty(2, dtype=torch.int64), F32), "greedy_argmax: out: expected int32"),
        ("allowed_argmax", (*ALLOWED, I32[0, :2], I32[0], 0), r"argmax: twins: expected shape \[8\], got \[2\]"),
        ("allowed_argmax", (*ALLOWED, I32.view(8), I32[0, :0], 0), "stop_ids: expected at least one id"),
        *EIGHT_BIT_ERRORS,
    ],
)  # fmt: skip
def test_wrong_arguments_are_named(op, args, message):
    with pytest.raises(ValueError, match=message):
        getattr(ops.load("cpu"), op)(*args)


def test_not_a_tensor():
    with pytest.raises(TypeError):
        ops.load("cpu").gelu([1.0], None, torch.empty(1, 1))


def test_unknown_backend():
    with pytest.raises(BackendError, match="unknown backend 'tpu'"):
        ops.load("tpu")

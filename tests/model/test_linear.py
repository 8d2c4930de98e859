"""Linear layers: near the float64 product of what they multiply, and the same bits for every number of rows."""

from __future__ import annotations

import gc
import os
import weakref

import pytest
import torch
from qdengine import ops
from qdengine.errors import BackendError, ConfigError
from qdengine.model import linear
from qdengine.model.head import Head
from qdengine.ops import native

CPU = ops.load("cpu")
DTYPES = (torch.float32, torch.bfloat16)
SHAPES = ((576, 96), (100, 33), (16, 1), (1, 17), (1536, 70))  # in, out
MOST = 130
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
needs_interpreter = pytest.mark.skipif(not INTERPRETED, reason="needs TRITON_INTERPRET=1 (make test sets it)")
GENERATOR = torch.Generator().manual_seed(11)


def random(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=GENERATOR).to(dtype)


def int8(x: torch.Tensor, number: torch.dtype = torch.int8) -> tuple[torch.Tensor, torch.Tensor]:
    numbers, scales = torch.empty(x.shape, dtype=number), torch.empty(len(x))
    CPU.quantize(numbers, scales, x)
    return numbers, scales


PAIR = native.build_info()["largest_pair"]


def kept(weight: torch.Tensor, scales: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of an int8 weight, what the packed product multiplies."""
    size = torch.nn.functional.pad(weight.int().abs(), (0, weight.shape[1] % 2))
    divisors = size.unflatten(1, (-1, 2)).sum(2).amax(1)
    divisors[divisors <= (PAIR or 256)] = 127
    numbers = (254 * weight.int().abs() + divisors[:, None]) // (2 * divisors[:, None])
    return (numbers * weight.sign()).to(torch.int8), scales * (divisors / 127)


def truth(
    x: tuple[torch.Tensor, torch.Tensor], weight: tuple[torch.Tensor, torch.Tensor], bias: torch.Tensor | None
) -> torch.Tensor:
    """The float64 product of numbers of 8 bits with their scales."""
    a, b = (numbers.double() * scales.double().flatten()[:, None] for numbers, scales in (x, weight))
    return a @ b.T if bias is None else a @ b.T + bias.double()


def assert_near(got: torch.Tensor, want: torch.Tensor) -> None:
    allowed = {torch.float32: 1e-5, torch.bfloat16: 2**-8}[got.dtype] * want.abs() + 1e-5 * want.abs().max()
    assert ((got.double() - want).abs() <= allowed).all()


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("number", [None, torch.int8], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_packed_rows_are_the_same_for_any_number_of_them(shape, number, dtype, biased):
    """Bit-equal wherever they stand, widths that fill no panel, group or tile among them."""
    weight, bias = random(dtype, *shape[::-1]), random(dtype, shape[1]) if biased else None
    layer = linear.make(CPU, weight, bias, dtype, number, True)
    assert isinstance(layer, linear.PackedLinear)
    x = (random(dtype, MOST, shape[0]), None)
    if number is None:
        want = x[0].double() @ weight.double().T + (0 if bias is None else bias.double())
    else:
        x = int8(x[0])
        want = truth(x, kept(*int8(weight)), bias)
    whole = layer(*x)
    assert whole.dtype == dtype
    assert_near(whole, want)
    for rows in (*range(1, 19), 31, 32, 33, 48, 95, 96, 97, 113, 129):
        for part in (slice(rows), slice(MOST - rows, MOST)):
            scales = None if x[1] is None else x[1][part]
            assert torch.equal(layer(x[0][part], scales), whole[part]), (rows, part)
    assert layer(x[0][:0], None if x[1] is None else x[1][:0]).shape == (0, shape[1])


@pytest.mark.parametrize("width", [1, 2, 3, 63, 65, 576, 1041, 3072])
def test_packed_sums_of_the_largest_numbers_are_exact(width):
    for sign in (1, -1):
        x, weight = (
            torch.full((17, width), 127 * sign, dtype=torch.int8),
            torch.full((33, width), -127, dtype=torch.int8),
        )
        packed = torch.empty(native.packed_bytes(weight), dtype=torch.uint8)
        native.pack_linear(packed, weight, torch.ones(33))
        out = torch.empty(17, 33)
        native.linear(out, x, torch.ones(17), packed, None, False)
        multiplied, factors = kept(weight, torch.ones(33))
        assert (out == 127 * sign * multiplied.int().sum(1).float() * factors).all()


def test_packed_rows_may_be_views():
    """Rows with others between them, at addresses that no vector is aligned to."""
    for dtype in (torch.float32, torch.bfloat16, torch.int8):
        weight = random(torch.float32, 50, 70).mul(20).to(dtype)
        scales = torch.ones(50) if dtype == torch.int8 else None
        memory = torch.empty(native.packed_bytes(weight) + 64, dtype=torch.uint8)
        packed = memory[4:-60]
        native.pack_linear(packed, weight, scales)
        x = random(torch.float32, 9, 80).mul(20).to(dtype)[:, 3:73]
        out = torch.empty(9, 60)[:, 5:55] if dtype != torch.bfloat16 else torch.empty(9, 60, dtype=dtype)[:, 5:55]
        native.linear(out, x, torch.ones(9) if dtype == torch.int8 else None, packed, None, False)
        multiplied, factors = kept(weight, torch.ones(50)) if dtype == torch.int8 else (weight, torch.ones(50))
        assert_near(out, x.double() @ (multiplied.double() * factors.double()[:, None]).T)


PACKED = torch.empty(native.packed_bytes(torch.empty(32, 64)), dtype=torch.uint8)
native.pack_linear(PACKED, torch.randn(32, 64), None)


Y, X = torch.empty(2, 32), torch.empty(2, 64)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((Y, X[:, :63], None, PACKED, None), "a float32 matrix of 63 to 32 .*, got another"),
        ((Y[:, :31], X, None, PACKED, None), "a float32 matrix of 64 to 31 .*, got another"),
        ((Y, X, None, PACKED[1:], None), "that pack_linear packed for .*, got another"),
        ((Y, X, None, PACKED.view(torch.int8), None), "packed: expected uint8, got int8"),
        ((Y, X.half(), None, PACKED, None), "x: expected float32 or bfloat16, got float16"),
        ((torch.empty(3, 32), X, None, PACKED, None), r"out: expected shape \[2, any\], got \[3, 32\]"),
        ((Y, X.char(), None, PACKED, None), "scales: expected float32 for int8, got none"),
        ((Y, X, torch.ones(2), PACKED, None), "scales: expected none for float32, got a tensor"),
        ((Y, X, None, PACKED, torch.empty(32).bfloat16()), "bias: expected float32, got bfloat16"),
    ],
)
def test_wrong_arguments_of_the_packed_product_are_named(args, message):
    with pytest.raises(ValueError, match=message):
        native.linear(*args, False)


@pytest.mark.skipif(not native.build_info()["gates"], reason="this instruction set does not gate")
@pytest.mark.parametrize("number", [torch.float32, torch.bfloat16, torch.int8], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("biased", [False, True])
def test_a_gated_product_is_the_product_and_its_activation(number, dtype, biased):
    if number != torch.int8 and number != dtype:
        pytest.skip("rows and results have one dtype")
    weight, scales = random(torch.float32, 2 * 48, 200).mul(20).to(number), torch.full((96,), 0.01)
    bias = random(dtype, 96) if biased else None
    packed = torch.empty(native.packed_bytes(weight), dtype=torch.uint8)
    native.pack_linear(packed, weight, scales if number == torch.int8 else None)
    for rows in (1, 16, 33, 100):
        x = random(torch.float32, rows, 200).mul(20).to(number)
        row_scales = torch.full((rows,), 0.01) if number == torch.int8 else None
        wide, active, gated = (torch.empty(rows, n, dtype=dtype) for n in (96, 48, 48))
        native.linear(wide, x, row_scales, packed, bias, False)
        native.silu_mul(active, None, wide)
        native.linear(gated, x, row_scales, packed, bias, True)
        assert torch.equal(gated, active)


def test_what_cannot_be_gated_is_told():
    with pytest.raises(ValueError, match="gated: expected an instruction set that gates, and a multiple of 16 columns"):
        native.linear(torch.empty(2, 15), X, None, PACKED, None, True)


def test_packed_weights_free_the_given_ones():
    weight = random(torch.bfloat16, 64, 576)
    layer = linear.PackedLinear(CPU, weight, None, torch.float32, torch.int8)
    assert layer(*int8(random(torch.float32, 3, 576))).shape == (3, 64)
    gone = weakref.ref(weight)
    del weight
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("width", [1, 576, 1041, 3072])
def test_int8_away_from_a_gpu_is_exact(width):
    weight = random(torch.float32, 48, width)
    layer = linear.Int8Linear(CPU, weight, None, weight.dtype)
    for x in (int8(random(torch.float32, 17, width))[0], torch.full((3, width), 127, dtype=torch.int8)):
        assert torch.equal(layer._sums(x).long(), x.long() @ layer.weight.T.long())


def multiplies_float8() -> bool:
    """Some releases of torch take one scale for all rows alone, on a CPU that has bfloat16."""
    try:
        ones = torch.ones(16, 16).to(torch.float8_e4m3fn)
        torch._scaled_mm(ones, ones.T, torch.ones(16, 1), torch.ones(1, 16), out_dtype=torch.bfloat16)
    except RuntimeError:
        return False
    return True


@pytest.mark.skipif(not multiplies_float8(), reason="torch multiplies no float8 with scales of rows here")
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("rows", [1, 16, 33])
def test_float8_is_near(rows, biased):
    weight, bias = random(torch.bfloat16, 96, 576), random(torch.bfloat16, 96) if biased else None
    layer = linear.Float8Linear(CPU, weight, bias, weight.dtype)
    x = int8(random(torch.bfloat16, rows, 576), torch.float8_e4m3fn)
    assert_near(layer(*x), truth(x, (layer.weight, layer.scales), bias))


def test_the_reference_is_not_batch_invariant():
    with pytest.raises(ConfigError, match=r"backend 'reference' multiplies by the library.* use backend 'cpu'"):
        linear.make(ops.load("reference"), random(torch.float32, 8, 4), None, torch.float32, None, True)


def numpy_rounds_rows_alike() -> bool:
    x, weight = (random(torch.float32, 64, 64).numpy() for _ in range(2))
    return all(((x @ weight)[i:] == (x[i:].repeat(2, 0) @ weight)[::2]).all() for i in range(64))


@needs_interpreter
@pytest.mark.parametrize(("dtype", "number"), [*((dtype, None) for dtype in DTYPES), (DTYPES[1], torch.float8_e4m3fn)])
def test_batch_invariant_in_triton(dtype, number):
    """Tiles that rows, columns and the inner width do not fill; every number of rows."""
    weight, bias = random(dtype, 70, 75), random(dtype, 70)
    layer = linear.TiledLinear(CPU, weight, bias, weight.dtype, number)
    x = (random(dtype, MOST, 75), None)
    if number is not None:
        x = int8(x[0], number)
    whole = layer(*x)
    want = (
        x[0].double() @ weight.double().T + bias.double()
        if number is None
        else truth(x, (layer.weight, layer.scales), bias)
    )
    assert_near(whole, want)
    if number is None and not numpy_rounds_rows_alike():
        pytest.skip("the interpreter multiplies by numpy, which rounds a row by its place on this CPU")
    for rows in range(1, MOST + 1):
        last = layer(x[0][-rows:], None if x[1] is None else x[1][-rows:])
        assert torch.equal(last, whole[-rows:]), rows


@pytest.mark.parametrize(("name", "capability"), [("cpu", (9, 0)), ("cuda", (8, 0))])
def test_float8_needs_a_gpu_that_has_it(monkeypatch, name, capability):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    with pytest.raises(BackendError, match=r"'float8' needs a GPU of compute capability 8\.9 .*and c.* is none; use"):
        linear.require(torch.float8_e4m3fn, torch.device(name))


def test_float8_widths_are_checked():
    with pytest.raises(
        ConfigError, match=r"multiples of 16; this model has one of 100 to 32; use precision 'bfloat16'"
    ):
        linear.Float8Linear(CPU, random(torch.bfloat16, 32, 100), None, torch.bfloat16)


@needs_interpreter
@pytest.mark.filterwarnings("ignore:invalid value encountered in matmul")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_fused_head_chooses_as_the_plain_one(dtype):
    """Few distinct logits, all exact: every tie is the same tie, in one tile and across tiles."""
    weight = torch.randint(-1, 2, (300, 40), generator=GENERATOR).to(dtype)
    x = torch.randint(-2, 3, (70, 40), generator=GENERATOR).to(dtype)
    x[1], x[2, 0], x[3], x[4, :] = 0.0, torch.nan, -0.0, torch.inf
    plain, fused = Head(CPU, weight, None, False, False), Head(ops.load("triton"), weight, None, False, True)
    want, got = torch.empty(70, dtype=torch.int32), torch.empty(70, dtype=torch.int32)
    for rows in (70, 1, 0):
        kept = fused(x[:rows])
        fused.argmax(got[:rows], kept)
        plain.argmax(want[:rows], plain(x[:rows]))
        assert torch.equal(got, want)
        assert torch.equal(fused.logits(kept).nan_to_num(), plain(x[:rows]).nan_to_num())
    assert len(set(want.tolist())) > 5


@needs_interpreter
def test_the_fused_head_rounds_before_it_compares():
    """1 and 1 + 2^-10 are one bfloat16: the lower id wins."""
    weight = torch.tensor([[0.5, 0.0], [1.0, 0.0], [1.0, 2**-10]]).bfloat16()
    fused, out = Head(ops.load("triton"), weight, None, False, True), torch.empty(1, dtype=torch.int32)
    fused.argmax(out, torch.ones(1, 2).bfloat16())
    assert out.item() == 1


def test_the_fused_head_needs_triton():
    with pytest.raises(
        ConfigError, match=r"EngineConfig\.fused_head is a Triton kernel for a GPU; backend 'cpu' has none"
    ):
        Head(CPU, random(torch.float32, 8, 4), None, False, True)

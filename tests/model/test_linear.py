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

CPU = ops.load("cpu")
DTYPES = (torch.float32, torch.bfloat16)
SHAPES = ((576, 96), (100, 33), (16, 1), (1536, 64))  # in, out
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


def truth(x: tuple[torch.Tensor, torch.Tensor], layer, bias: torch.Tensor | None) -> torch.Tensor:
    """The float64 product of the numbers that a layer has and gets."""
    scales = layer.scales.double().flatten()
    y = (x[0].double() * x[1].double()[:, None]) @ (layer.weight.double() * scales[:, None]).T
    return y if bias is None else y + bias.double()


def assert_near(got: torch.Tensor, want: torch.Tensor) -> None:
    allowed = {torch.float32: 1e-5, torch.bfloat16: 2**-8}[got.dtype] * want.abs() + 1e-5 * want.abs().max()
    assert ((got.double() - want).abs() <= allowed).all()


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_int8_is_exact_in_its_sums_for_any_rows(shape, dtype, biased):
    weight, bias = random(dtype, *shape[::-1]), random(dtype, shape[1]) if biased else None
    layer = linear.make(CPU, weight, bias, weight.dtype, torch.int8, False)
    x = int8(random(dtype, MOST, shape[0]))
    whole = layer(*x)
    assert whole.dtype == dtype
    assert_near(whole, truth(x, layer, bias))
    for rows in (1, 2, 15, 16, 17, 64, 65, 129):
        assert torch.equal(layer(x[0][-rows:], x[1][-rows:]), whole[-rows:]), rows


def test_int8_weights_stand_for_the_given_ones_and_free_them():
    weight = random(torch.bfloat16, 64, 576)
    layer = linear.Int8Linear(CPU, weight, None, weight.dtype)
    assert layer.weight.dtype == torch.int8
    back = layer.weight.float() * layer.scales[:, None]
    assert ((back - weight.float()).abs() <= 0.501 * layer.scales[:, None]).all()
    gone = weakref.ref(weight)
    del weight
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("rows", [1, 16, 33])
def test_float8_is_near(rows, biased):
    weight, bias = random(torch.bfloat16, 96, 576), random(torch.bfloat16, 96) if biased else None
    layer = linear.Float8Linear(CPU, weight, bias, weight.dtype)
    x = int8(random(torch.bfloat16, rows, 576), torch.float8_e4m3fn)
    assert_near(layer(*x), truth(x, layer, bias))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_batch_invariant_on_a_cpu(shape, dtype):
    """Bit-equal rows for every number of them, wherever they stand."""
    weight, bias = random(dtype, *shape[::-1]), random(dtype, shape[1])
    layer = linear.make(CPU, weight, bias, weight.dtype, None, True)
    assert isinstance(layer, linear.FixedRowsLinear)
    x = random(dtype, MOST, shape[0])
    whole = layer(x)
    assert_near(whole, x.double() @ weight.double().T + bias.double())
    for rows in range(1, MOST + 1):
        assert torch.equal(layer(x[:rows]), whole[:rows]), rows
        assert torch.equal(layer(x[-rows:]), whole[-rows:]), rows
    assert layer(x[:0]).shape == (0, shape[1])


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
    want = x[0].double() @ weight.double().T + bias.double() if number is None else truth(x, layer, bias)
    assert_near(whole, want)
    if number is None and not numpy_rounds_rows_alike():
        pytest.skip("the interpreter multiplies by numpy, which rounds a row by its place on this CPU")
    for rows in range(1, MOST + 1):
        last = layer(x[0][-rows:], None if x[1] is None else x[1][-rows:])
        assert torch.equal(last, whole[-rows:]), rows


@pytest.fixture
def without_int8(monkeypatch):
    """A CPU whose library adds pairs of products in 16 bits."""
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: True)
    monkeypatch.setattr(torch, "_int_mm", lambda x, w: (x.float() @ w.float()).clamp(max=32767).int())
    linear.has_int8.cache_clear()
    yield
    linear.has_int8.cache_clear()


@pytest.mark.parametrize("width", [1, 576, 1040, 1041, 3072])
@pytest.mark.usefixtures("without_int8")
def test_sums_are_exact_on_any_cpu(width):
    assert not linear.has_int8()
    weight = random(torch.float32, 48, width)
    layer = linear.Int8Linear(CPU, weight, None, weight.dtype)
    for x in (int8(random(torch.float32, 17, width))[0], torch.full((3, width), 127, dtype=torch.int8)):
        assert torch.equal(layer._sums(x).long(), x.long() @ layer.weight.T.long())
    layer = linear.Int8Linear(CPU, torch.ones(48, width), None, torch.float32)
    assert (layer._sums(torch.full((2, width), -127, dtype=torch.int8)) == -127 * 127 * width).all()


def test_bfloat16_on_a_cpu_without_it(monkeypatch):
    monkeypatch.setattr(linear, "_packs", lambda dtype: dtype != torch.bfloat16)
    weight, x = random(torch.bfloat16, 96, 64), random(torch.bfloat16, 5, 64)
    layer = linear.Linear(weight)
    assert not layer.packed
    assert_near(layer(x), x.double() @ weight.double().T)


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
    plain, fused = Head(CPU, weight, False, False), Head(ops.load("triton"), weight, False, True)
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
    fused, out = Head(ops.load("triton"), weight, False, True), torch.empty(1, dtype=torch.int32)
    fused.argmax(out, torch.ones(1, 2).bfloat16())
    assert out.item() == 1


def test_the_fused_head_needs_triton():
    with pytest.raises(
        ConfigError, match=r"EngineConfig\.fused_head is a Triton kernel for a GPU; backend 'cpu' has none"
    ):
        Head(CPU, random(torch.float32, 8, 4), False, True)

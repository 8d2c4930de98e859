"""Ops on a GPU beyond the shared cases: what a captured step needs of them, and whose stream they run on."""

from __future__ import annotations

import pytest
import torch
from cases import Case, cases
from ops.test_ops import DTYPES, run
from qdengine import ops

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU here")]
BACKENDS = ("cuda", "triton")


def moved(case: Case) -> list:
    return [arg.to("cuda", copy=True) if isinstance(arg, torch.Tensor) else arg for arg in case.args]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("op", ops.OPS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_captured_call_is_the_call(backend, op, dtype):
    """One graph of all cases: replayed it gives every output to the bit; a host wait would break its capture."""
    table = ops.load(backend)
    chosen = [case for case in cases(DTYPES[dtype]) if case.op == op]
    eager = [run(table, case, "cuda") for case in chosen]
    warm, args = [moved(case) for case in chosen], [moved(case) for case in chosen]
    for one in warm:
        getattr(table, op)(*one)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for one in args:
            getattr(table, op)(*one)
    graph.replay()
    for case, one, want in zip(chosen, args, eager, strict=True):
        for i, expected in zip(case.outputs, want, strict=True):
            found, wanted = (x.cpu().float().nan_to_num() for x in (one[i], expected))  # 8 bits have no nan_to_num
            assert torch.equal(found, wanted), f"{case.name}: output {i}"


@pytest.mark.parametrize("op", ops.OPS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_ops_allocate_nothing(backend, op):
    table = ops.load(backend)
    for case in [case for case in cases(torch.bfloat16) if case.op == op]:
        args = moved(case)
        getattr(table, op)(*args)
        before = torch.cuda.memory_stats()["allocation.all.allocated"]
        getattr(table, op)(*args)
        assert torch.cuda.memory_stats()["allocation.all.allocated"] == before, case.name


@pytest.mark.parametrize("backend", BACKENDS)
def test_ops_run_on_the_callers_stream(backend):
    """What the stream writes before the call is what the op reads, however long that takes."""
    call = ops.load(backend).gelu
    x, late, out = torch.zeros(4, 64, device="cuda"), torch.randn(4, 64, device="cuda"), torch.empty(4, 64).cuda()
    call(out, x)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        x.copy_(late)
        call(out, x)
    stream.synchronize()
    want = torch.nn.functional.gelu(late, approximate="tanh")
    torch.testing.assert_close(out, want, rtol=1e-5, atol=1e-5)

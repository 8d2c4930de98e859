"""Bytes, operations and limits by hand; that every op has a benchmark, and that it runs."""

from __future__ import annotations

import bench_attention
import bench_ops
import bench_step
import common
import pytest
import torch
from limits import GPUS, Gpu, Work, Workload, limit, matrices, named, request_work
from qdengine import ops
from qdengine.model.reference import ReferenceModel

CHIP = Gpu("X1", bf16=100.0, eight_bit=200.0, vector=10.0, memory=50.0, reached=0.5)
CPU = torch.device("cpu")


def test_a_limit_is_bytes_or_operations():
    assert limit(CHIP, Work(100, 1)) == 2
    assert limit(CHIP, Work(100, 30, "vector")) == 3
    assert limit(CHIP, Work(100, 200, "matrix"), Work(50, 200, "eight_bit")) == 4 + 2
    assert [gpu.name for gpu in GPUS] == ["L20", "H100", "H200"]


def test_devices_are_known_by_their_names():
    assert named("NVIDIA H100 80GB HBM3").name == "H100" and named("NVIDIA L20").name == "L20"
    assert named("NVIDIA L2") is None and named("") is None


def test_parameters_are_those_of_the_model():
    with torch.device("meta"):
        model = ReferenceModel(common.SHAPE)
    layers = [p for name, p in model.named_parameters() if name.startswith("layers.") and p.ndim == 2]
    assert matrices(common.SHAPE) == sum(p.numel() for p in layers) == 30 * (576 * 960 + 576 * 576 + 3 * 576 * 1536)


def test_a_request_costs_what_its_tokens_cost():
    work = Workload(document=600, query=20, verified=50, steps=2)
    cold, warm = (request_work(work, state, 16) for state in (False, True))
    behind = 576 * 576 + 3 * 576 * 1536  # of the last layer, for the wanted rows alone
    saved = 2 * (matrices(common.SHAPE) - behind) * 600
    assert cold[0].flops - warm[0].flops == saved and cold[1] == warm[1]
    assert cold[2].flops > warm[2].flops
    half = request_work(work, False, 8)
    assert half[0].unit == "eight_bit" and half[2].bytes == cold[2].bytes / 2
    alone = request_work(work, False, 16, alone=True)
    assert alone[0].bytes == 2 * 2 * matrices(common.SHAPE) and cold[0].bytes == 0


def test_a_workload_is_read_from_figures():
    figures = {"prompt_tokens": 600.0, "warm_reused_share": 0.9, "drafted": 80.0, "steps": 3.0}
    assert Workload.measured(figures) == Workload(540, 60, 82, 3)


@pytest.mark.parametrize("op", ops.OPS)
def test_every_op_has_a_benchmark_that_runs(op):
    for _, size, dtype in bench_ops.cases((op,), ("token",), ("float32", "bfloat16")):
        row = bench_ops.measure("cpu", op, size, dtype, budget=0.0)
        assert row["us"] > 0 and row["bytes"] > 0 and row["flops"] >= 0


def test_what_ops_must_move():
    """Attention by hand: 40 keys, the last 3 of them new."""
    least = bench_ops.attention_work(((40, 3),), 2)
    assert least.bytes == 2 * 2 * 3 * 9 * 64 + 2 * 2 * 40 * 3 * 64
    assert least.flops == 4 * (38 + 39 + 40) * 9 * 64
    args = bench_ops.arguments("add_rms_norm", 10, torch.bfloat16)
    assert bench_ops.work("add_rms_norm", args, 10).bytes == 2 * (4 * 10 * 576 + 576)
    tokens, head, attention = bench_step.work_of("2x3", 6, 2)
    assert tokens.flops == 2 * 6 * matrices(common.SHAPE) and tokens.bytes == 2 * matrices(common.SHAPE)
    assert head.flops == 2 * 6 * 576 * 49152
    assert attention.flops == 30 * 2 * 4 * (638 + 639 + 640) * 9 * 64


def test_an_op_without_a_benchmark_is_named():
    with pytest.raises(KeyError, match="conv has no benchmark"):
        bench_ops.arguments("conv", 1, torch.float32)


def test_repeated_calls_do_the_same_work():
    """Ops that write to their inputs: another call on the same arguments gives the same again."""
    for op in ("commit_step", "admit_rows"):
        args = bench_ops.arguments(op, 3, torch.float32)
        call = getattr(ops.load("reference"), op)
        call(*args)
        once = [a.clone() for a in args]
        call(*args)
        assert all(torch.equal(a, b) for a, b in zip(args, once, strict=True)), op


@pytest.mark.parametrize("batch", [((7, 7), (20, 20)), ((40, 5), (9, 5), (33, 5)), ((50, 1),)])
def test_the_rivals_of_attention_compute_the_same(batch):
    torch.manual_seed(0)
    args = bench_ops.attention_arguments(batch, torch.float32)[1]
    ops.load("cpu").paged_attention(*args)
    for how, make in bench_attention.rivals(batch, args).items():
        rival = make()
        torch.testing.assert_close(rival.rows(rival.call(*rival.args)), args[0], msg=lambda m, how=how: f"{how}: {m}")


def test_a_rival_that_fails_is_reported():
    def broken():
        raise NotImplementedError("no kernel")

    row = bench_attention.against("x", broken, torch.empty(0), CPU, 0.0)
    assert row == {"how": "x", "error": "NotImplementedError: no kernel"}

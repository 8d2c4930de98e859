"""Where a CPU's forward pass spends its time, by op, beside what each must take at least.

    python benchmarks/profile_step.py                                # a prefill and a verify step, float32 and int8
    python benchmarks/profile_step.py --step 1x616 --precision int8 --json out.json

Steps are those of bench_step.py. A part's floor is the larger of its operations at the rate of a large product alone,
of the numbers that it multiplies, and its bytes at the bandwidth of a large copy, both measured in the same run.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from functools import cache
from typing import Any

import click
import torch
from bench_step import inputs_of, weights, work_of
from common import SHAPE, facts, timed, write
from limits import matrices
from qdengine import ops
from qdengine.engine.device import chosen_precision
from qdengine.model.decoder import Decoder
from qdengine.model.kv_cache import KVCache
from qdengine.model.linear import PackedLinear
from tqdm import tqdm

CPU = torch.device("cpu")
PRECISIONS = {
    "float32": (torch.float32, None), "bfloat16": (torch.bfloat16, None),
    "int8": (getattr(torch, chosen_precision("auto", CPU)), torch.int8),
}  # fmt: skip


def fastest(call: Callable[..., Any], args: tuple[Any, ...]) -> float:
    """Seconds of it in the best of five moments: a floor is not to depend on who else uses the machine."""
    return min(timed(call, args, CPU, 0.2) for _ in range(5))


@cache
def product_rate(precision: str) -> float:
    """Operations/s of a large product alone."""
    dtype, number = PRECISIONS[precision]
    table, x = ops.load("cpu"), torch.randn(1024, SHAPE.ffn_width).to(dtype)
    layer = PackedLinear(table, torch.randn(SHAPE.ffn_width, SHAPE.ffn_width).to(dtype), None, dtype, number)
    scales = None
    if number is not None:
        rows, x, scales = x, torch.empty(x.shape, dtype=number), torch.empty(len(x))
        table.quantize(x, scales, rows)
    return 2 * 1024 * SHAPE.ffn_width**2 / fastest(layer, (x, scales))


@cache
def bandwidth() -> float:
    """Bytes/s that a copy of 128 MB reads and writes."""
    source = torch.zeros(32 << 20)
    target = torch.zeros_like(source)
    return 2 * source.numel() * 4 / fastest(target.copy_, (source,))


def elementwise_bytes(tokens: int, rows: int, element: int, number: int) -> dict[str, float]:
    """Of each op that is no product, its inputs and outputs once; of a row in 8 bits `number` is 1. Behind the last
    attention there are only the wanted rows."""
    width, ffn, whole = SHAPE.width, SHAPE.ffn_width, (SHAPE.layers - 1) * tokens + rows
    qkv = (SHAPE.heads + 2 * SHAPE.kv_heads) * SHAPE.head_width
    return {
        "take_rows": 2 * (tokens + 2 * rows) * width * element,
        "norm": 2 * whole * width * (3 * element + number),  # x, residual in and out, and the result
        "rope_append": 2 * SHAPE.layers * tokens * qkv * element,
        "activation": whole * ffn * (2 * element + number),
        "quantize": whole * width * (element + number) if number != element else 0,
        "argmax": rows * SHAPE.vocab_size * element,
    }


@torch.inference_mode()
def profile(precision: str, step: str, random: dict[str, torch.Tensor], passes: int) -> list[dict[str, Any]]:
    dtype, number = PRECISIONS[precision]
    decoder = Decoder(SHAPE, random, ops.load("cpu"), dtype, CPU, number)
    inputs, blocks = inputs_of(step, CPU)
    memory = KVCache(SHAPE, blocks * 16 * 2 * SHAPE.layers * SHAPE.kv_heads * SHAPE.head_width * 4, 16, dtype, CPU)
    sampled = torch.empty(len(inputs.rows), dtype=torch.int32)
    parts: dict[str, float] = defaultdict(float)

    def forward() -> None:
        times = [time.perf_counter()]
        x = decoder.layers(inputs, memory)
        times.append(time.perf_counter())
        logits = decoder.head(*x)
        times.append(time.perf_counter())
        decoder.head.argmax(sampled, logits)
        times.append(time.perf_counter())
        for part, begin, end in zip(("layers", "head", "argmax"), times[:-1], times[1:], strict=True):
            parts[part] += end - begin

    forward()
    parts.clear()
    before = dict(decoder.layers.seconds())
    for _ in range(passes):
        forward()
    whole = sum(parts.values())
    ops_seconds = {op: seconds - before[op] for op, seconds in decoder.layers.seconds()}
    parts["dispatch"] = parts.pop("layers") - sum(ops_seconds.values())
    parts |= {op: seconds for op, seconds in ops_seconds.items() if seconds}
    floors = floors_of(precision, step, len(inputs.ids), len(inputs.rows))
    made = []
    for part, seconds in sorted(parts.items(), key=lambda item: -item[1]):
        size, flops, rate = floors.get(part, (0.0, 0.0, 1.0))
        found = {
            "precision": precision,
            "dtype": str(dtype).removeprefix("torch."),
            "step": step,
            "part": part,
            "ms": 1e3 * seconds / passes,
        }
        floor = 1e3 * max(flops / rate, size / bandwidth())
        made.append(found | {"share": seconds / whole, "bytes": size, "flops": flops, "floor_ms": floor})
    return made


def floors_of(precision: str, step: str, tokens: int, rows: int) -> dict[str, tuple[float, float, float]]:
    """Of every part its bytes, its operations, and how many of those a second there can be."""
    dtype, number = PRECISIONS[precision]
    element, stored = dtype.itemsize, (number or dtype).itemsize
    layers, head, attention = work_of(step, rows, element)
    # With AMX attention multiplies in its dtype, else in float32.
    wide = "bfloat16" if dtype == torch.bfloat16 and facts()["isa"] == "amx" else "float32"
    return {
        "linear": (matrices(SHAPE) * stored, layers.flops, product_rate(precision)),
        "head": (SHAPE.width * SHAPE.vocab_size * stored, head.flops, product_rate(precision)),
        "paged_attention": (attention.bytes, attention.flops, product_rate(wide)),
    } | {op: (size, 0.0, 1.0) for op, size in elementwise_bytes(tokens, rows, element, stored).items()}


@click.command()
@click.option("--step", "steps", multiple=True, default=["1x616", "1x65"], show_default=True)
@click.option(
    "--precision", "precisions", type=click.Choice(list(PRECISIONS)), multiple=True, default=["float32", "int8"]
)
@click.option("--passes", default=5, show_default=True)
@click.option("--json", "out", type=click.Path(dir_okay=False))
def main(steps: tuple[str, ...], precisions: tuple[str, ...], passes: int, out: str | None) -> None:
    """Time the parts of forward passes."""
    random, found = weights(), []
    for precision in precisions:
        for step in tqdm(steps, desc=precision, unit="step", disable=None):
            found += profile(precision, step, random, passes)
    click.echo("| precision, step | part | ms | share | GFLOP | MB | floor, ms |\n|---|---|---|---|---|---|---|")
    for row in found:
        work = f"{row['flops'] / 1e9:.1f} | {row['bytes'] / 1e6:.0f} | {row['floor_ms']:.1f}"
        spent = f"{row['ms']:.2f} | {row['share']:.1%}"
        click.echo(f"| {row['precision']}, {row['step']} | {row['part']} | {spent} | {work} |")
    write(facts() | {"rows": found}, out)


if __name__ == "__main__":
    main()

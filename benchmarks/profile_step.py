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
from typing import Any

import click
import torch
from bench_step import inputs_of, weights, work_of
from common import SHAPE, facts, timed, write
from limits import matrices
from qdengine import ops
from qdengine.model.decoder import Decoder
from qdengine.model.kv_cache import KVCache
from qdengine.model.linear import PackedLinear
from tqdm import tqdm

CPU = torch.device("cpu")
PARTS = {"rope_append": "elementwise", "paged_attention": "attention"}  # of an op; of the rest "elementwise" too
LAYERS = ("qkv", "out", "up", "down")
PRECISIONS = {
    "float32": (torch.float32, None), "bfloat16": (torch.bfloat16, None), "int8": (torch.float32, torch.int8),
}  # fmt: skip


class Clock:
    """Seconds and calls of what it wraps, by part."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.calls: dict[str, int] = defaultdict(int)

    def wrap(self, part: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any) -> Any:
            begin = time.perf_counter()
            result = call(*args)
            self.seconds[part] += time.perf_counter() - begin
            self.calls[part] += 1
            return result

        return wrapped

    def decoder(self, random: dict[str, torch.Tensor], precision: str) -> Decoder:
        dtype, number = PRECISIONS[precision]
        table = ops.load("cpu")
        wrapped = {name: self.wrap(PARTS.get(name, "elementwise"), getattr(table, name)) for name in ops.OPS}
        made = Decoder(SHAPE, random, ops.OpTable("cpu", **wrapped), dtype, CPU, number)
        for layer in made.layers:
            for name in LAYERS:
                setattr(layer, name, self.wrap("layers' products", getattr(layer, name)))
        made.head._linear = self.wrap("head", made.head._linear)
        return made


def product_rate(precision: str) -> float:
    """Operations/s of a large product alone."""
    dtype, number = PRECISIONS[precision]
    table, x = ops.load("cpu"), torch.randn(1024, SHAPE.ffn_width).to(dtype)
    layer = PackedLinear(table, torch.randn(SHAPE.ffn_width, SHAPE.ffn_width).to(dtype), None, dtype, number)
    scales = None
    if number is not None:
        rows, x, scales = x, torch.empty(x.shape, dtype=number), torch.empty(len(x))
        table.quantize(x, scales, rows)
    return 2 * 1024 * SHAPE.ffn_width**2 / timed(layer, (x, scales), CPU, 0.5)


def bandwidth() -> float:
    """Bytes/s that a copy of 128 MB reads and writes."""
    source = torch.zeros(32 << 20)
    target = torch.zeros_like(source)
    return 2 * source.numel() * 4 / timed(target.copy_, (source,), CPU, 0.5)


def elementwise_bytes(tokens: int, rows: int, element: int, number: int) -> float:
    """Of the ops between products, inputs and outputs once each; of a row in 8 bits `number` is 1."""
    width, ffn = SHAPE.width, SHAPE.ffn_width
    qkv = (SHAPE.heads + 2 * SHAPE.kv_heads) * SHAPE.head_width
    norms = 2 * (3 * width * element + width * number)  # x, residual in and out, and the result
    quantized = width * (element + number) if number != element else 0
    layer = norms + 2 * qkv * element + 2 * ffn * element + ffn * number + quantized
    return SHAPE.layers * tokens * layer + rows * SHAPE.vocab_size * element


def profile(precision: str, step: str, random: dict[str, torch.Tensor], passes: int) -> list[dict[str, Any]]:
    dtype, _ = PRECISIONS[precision]
    clock = Clock()
    decoder = clock.decoder(random, precision)
    inputs, blocks = inputs_of(step, CPU)
    cache = KVCache(SHAPE, blocks * 16 * 2 * SHAPE.layers * SHAPE.kv_heads * SHAPE.head_width * 4, 16, dtype, CPU)
    sampled = torch.empty(len(inputs.rows), dtype=torch.int32)

    def forward() -> None:
        decoder.head.argmax(sampled, decoder.forward(inputs, cache))

    forward()
    clock.seconds.clear(), clock.calls.clear()
    begin = time.perf_counter()
    for _ in range(passes):
        forward()
    whole = time.perf_counter() - begin
    clock.seconds["Python, copies of rows"] = whole - sum(clock.seconds.values())
    return [part | {"precision": precision, "step": step} for part in parts(clock, inputs, precision, passes, whole)]


def parts(clock: Clock, inputs: Any, precision: str, passes: int, whole: float) -> list[dict[str, Any]]:
    dtype, number = PRECISIONS[precision]
    element, stored = dtype.itemsize, (number or dtype).itemsize
    tokens, rows = len(inputs.ids), len(inputs.rows)
    step = f"{len(inputs.kv_lens)}x{tokens // len(inputs.kv_lens)}"
    layers, head, attention = work_of(step, rows, element)
    rate, wide, memory = product_rate(precision), product_rate("float32"), bandwidth()
    if precision == "bfloat16" and facts()["isa"] == "amx":  # else attention multiplies in float32
        wide = rate
    work = {
        "layers' products": (matrices(SHAPE) * stored, layers.flops, rate),
        "head": (SHAPE.width * SHAPE.vocab_size * stored, head.flops, rate),
        "attention": (attention.bytes, attention.flops, wide),
        "elementwise": (elementwise_bytes(tokens, rows, element, stored), 0.0, rate),
    }
    made = []
    for part, seconds in sorted(clock.seconds.items(), key=lambda item: -item[1]):
        size, flops, speed = work.get(part, (0.0, 0.0, rate))
        made.append(
            {
                "part": part, "calls": clock.calls[part] // passes, "ms": 1e3 * seconds / passes,
                "share": seconds / whole, "bytes": size, "flops": flops,
                "floor_ms": 1e3 * max(flops / speed, size / memory),
            }
        )  # fmt: skip
    return made


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
    click.echo(
        "| precision, step | part | calls | ms | share | GFLOP | MB | floor, ms |\n|---|---|---|---|---|---|---|---|"
    )
    for row in found:
        work = f"{row['flops'] / 1e9:.1f} | {row['bytes'] / 1e6:.0f} | {row['floor_ms']:.1f}"
        spent = f"{row['calls']} | {row['ms']:.1f} | {row['share']:.0%}"
        click.echo(f"| {row['precision']}, {row['step']} | {row['part']} | {spent} | {work} |")
    write(facts() | {"rows": found}, out)


if __name__ == "__main__":
    main()

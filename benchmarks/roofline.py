"""What ops and requests must cost at least on L20, H100 and H200, and what was measured beside it.

    python benchmarks/roofline.py                    # bytes, operations and limits: computed, nothing is measured
    python benchmarks/roofline.py --gpu gpu.json     # and the measurements of benchmarks/gpu_suite.sh

A limit is the larger of operations over the rate of the unit that does them, and bytes over the memory bandwidth. A
request has a document part, which costs nothing where its keys and values are in memory, a query part, and steps that
verify drafts; a large batch shares the weights.

L20 estimate: a figure measured elsewhere, at the same share of the limit on an L20. An estimate, not a measurement.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import torch
from bench_ops import SIZES, arguments, work
from common import DTYPES
from limits import GPUS, Gpu, Work, Workload, arithmetic, limit, named, request_work
from qdengine import ops

L20 = GPUS[0]


def requests_table(work: Workload) -> list[str]:
    """Limits of one request in requests/s, and alone in milliseconds."""
    lines = [f"{'':6}{'document':>10}{'bits':>6}{'GFLOP':>9}{'MB':>8}{'requests/s':>12}{'ms alone':>10}  bound by"]
    for gpu in GPUS:
        for warm in (False, True):
            for bits in (16, 8):
                parts, alone = request_work(work, warm, bits), request_work(work, warm, bits, alone=True)
                seconds = limit(gpu, *parts)
                bound = "arithmetic" if arithmetic(gpu, parts) == seconds else "memory"
                flops, moved = sum(p.flops for p in parts), sum(p.bytes for p in parts)
                lines.append(
                    f"{gpu.name:6}{'warm' if warm else 'cold':>10}{bits:>6}{flops / 1e9:9.1f}{moved / 1e6:8.1f}"
                    f"{1 / seconds:12.0f}{1e3 * limit(gpu, *alone):10.2f}  {bound}"
                )
    return lines


def limits_table() -> list[str]:
    """Every op at every size in bfloat16."""
    lines = [f"{'op':18}{'size':9}{'MB':>9}{'MFLOP':>9}" + "".join(f"{gpu.name + ' us':>9}" for gpu in GPUS)]
    for op in ops.OPS:
        for size, rows in SIZES.items():
            least = work(op, arguments(op, rows, DTYPES["bfloat16"]), rows)
            times = "".join(f"{1e6 * limit(gpu, least):9.3f}" for gpu in GPUS)
            lines.append(f"{op:18}{size:9}{least.bytes / 1e6:9.3f}{least.flops / 1e6:9.1f}{times}")
    return lines


def measured_table(rows: list[dict[str, Any]], gpu: Gpu, key: tuple[str, ...]) -> list[str]:
    """Measured rows beside their limit."""
    lines = [f"{'measured on ' + gpu.name:46}{'us':>10}{'GB/s':>9}{'TFLOPS':>9}{'of limit':>10}{'L20 est. us':>13}"]
    for row in rows:
        name = " ".join(str(row[k]) for k in key)
        if "error" in row:
            lines.append(f"{name:46}{row['error'][:70]}")
            continue
        least, us = Work(row["bytes"], row["flops"], row["unit"]), row["us"]
        share = 1e6 * limit(gpu, least) / us
        lines.append(
            f"{name:46}{us:10.2f}{row['bytes'] / us / 1e3:9.1f}"
            f"{row['flops'] / us / 1e6:9.2f}{share:10.1%}{1e6 * limit(L20, least) / share:13.2f}"
        )
    return lines


def engine_table(engines: dict[str, dict[str, Any]], gpu: Gpu) -> list[str]:
    """Whole requests of `qdengine bench`, by precision, beside the limit of the tokens that they took."""
    lines = [f"{'measured on ' + gpu.name:30}{'figure':>10}{'limit':>10}{'of limit':>10}{'L20 estimate':>14}"]
    for figures in engines.values():
        work, bits = Workload.measured(figures), 16 if figures["precision"] in ("float32", "bfloat16") else 8
        for name, value, warm in (
            ("cold requests/s", figures["requests_per_s"], False),
            ("warm requests/s", figures["warm_requests_per_s"], True),
        ):
            most, here = (1 / limit(g, *request_work(work, warm, bits)) for g in (gpu, L20))
            lines.append(
                f"{figures['precision'] + ', ' + name:30}{value:10.1f}{most:10.1f}{value / most:10.1%}"
                f"{here * value / most:14.1f}"
            )
        alone = request_work(work, False, bits, alone=True)
        value, least, here = figures["latency_ms"]["p50"], 1e3 * limit(gpu, *alone), 1e3 * limit(L20, *alone)
        lines.append(
            f"{figures['precision'] + ', ms alone, p50':30}{value:10.2f}{least:10.2f}{least / value:10.1%}"
            f"{here * value / least:14.2f}"
        )
    return lines


def print_measured(data: dict[str, Any]) -> None:
    gpu = named(data["gpu"] or "")
    if gpu is None:
        raise click.ClickException(f"no limits are known for {data['gpu']!r}; add it to benchmarks/limits.py")
    results = {name: step["result"] for name, step in data["steps"].items() if step.get("result")}
    if "ops" in results:
        print("\n" + "\n".join(measured_table(results["ops"]["rows"], gpu, ("op", "size", "dtype", "backend"))))
    if "steps" in results:
        print("\n" + "\n".join(measured_table(results["steps"]["rows"], gpu, ("step", "precision", "backend"))))
    if "attention" in results:
        print("\n" + "\n".join(measured_table(results["attention"]["rows"], gpu, ("case", "dtype", "how"))))
    engines = {name: result for name, result in results.items() if name.startswith("engine-")}
    if engines:
        print("\n" + "\n".join(engine_table(engines, gpu)))


@click.command()
@click.option("--gpu", "measured", type=click.Path(exists=True, dir_okay=False), help="gpu_suite.sh's gpu.json.")
def main(measured: str | None) -> None:
    """Limits, and measurements beside them."""
    torch.manual_seed(0)
    print("\n".join(requests_table(Workload())))
    print("\n" + "\n".join(limits_table()))
    if measured:
        print_measured(json.loads(Path(measured).read_text(encoding="utf-8")))


if __name__ == "__main__":
    main()

"""What a request must cost at least on a GPU, and what was measured beside it.

    python benchmarks/roofline.py                      # limits of a whole request on L20, H100 and H200
    python benchmarks/roofline.py --ops ops.json       # and the share of its limit that each op reached

A limit is the larger of FLOPs over the peak rate and bytes over the memory bandwidth. A request has a document part,
which costs nothing where its keys and values are in memory, a query part, and steps that verify drafts. Weights are
read once a step for the whole batch.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch
from common import SHAPE
from qdengine.config import ModelConfig
from qdengine.model.reference import ReferenceModel


@dataclass(frozen=True)
class Gpu:
    """Dense peak rates in FLOP/s, memory in bytes/s. matmul: highest measured share of the peak on random data."""

    name: str
    bf16: float
    eight_bit: float
    memory: float
    matmul: float


# Vendors' datasheets; the Hopper chips' share is what a large bf16 product reached on an H200, the L20's is assumed.
GPUS = (
    Gpu("L20", 119.5e12, 239e12, 864e9, 0.8),
    Gpu("H100", 989e12, 1979e12, 3.35e12, 0.8),
    Gpu("H200", 989e12, 1979e12, 4.8e12, 0.8),
)


@dataclass(frozen=True)
class Workload:
    """Tokens of one request: its document, the rest of its prompt, and the verified rows of all its steps."""

    document: int = 590
    query: int = 30
    verified: int = 100
    steps: float = 2.0


def matrices(config: ModelConfig) -> int:
    """Parameters of the layers' matrices."""
    with torch.device("meta"):
        model = ReferenceModel(config)
    return sum(p.numel() for name, p in model.named_parameters() if name.startswith("layers.") and p.ndim == 2)


def request_cost(config: ModelConfig, work: Workload, warm: bool, element: int) -> tuple[float, float]:
    """FLOPs and bytes of one request in a large batch, with keys and values of `element` bytes."""
    fresh = work.query + (0 if warm else work.document)
    rows = fresh + work.verified
    length = work.document + work.query
    head = 2 * config.width * config.vocab_size * (work.verified + 1)
    pairs = work.verified * length + (work.query * length if warm else length * length / 2)
    attention = 4 * pairs * config.heads * config.head_width * config.layers
    kv_token = 2 * config.layers * config.kv_heads * config.head_width * element
    moved = kv_token * (fresh + length * (work.steps + (1 if warm else 0)))
    logits = 2 * config.vocab_size * (work.verified + 1)
    return 2 * matrices(config) * rows + head + attention, moved + logits


def limit(gpu: Gpu, flops: float, moved: float, eight_bit: bool = False) -> float:
    """Seconds."""
    peak = (gpu.eight_bit if eight_bit else gpu.bf16) * gpu.matmul
    return max(flops / peak, moved / gpu.memory)


def requests_table(config: ModelConfig, work: Workload) -> list[str]:
    lines = [f"{'':6}{'document':>10}{'bits':>6}{'GFLOP':>9}{'MB':>8}{'requests/s':>12}  bound by"]
    for gpu in GPUS:
        for warm in (False, True):
            for bits in (16, 8):
                flops, moved = request_cost(config, work, warm, bits // 8)
                seconds = limit(gpu, flops, moved, bits == 8)
                bound = "memory" if moved / gpu.memory == seconds else "arithmetic"
                lines.append(
                    f"{gpu.name:6}{'warm' if warm else 'cold':>10}{bits:>6}{flops / 1e9:9.1f}{moved / 1e6:8.1f}"
                    f"{1 / seconds:12.0f}  {bound}"
                )
    return lines


def ops_table(data: dict[str, Any], gpu: Gpu) -> list[str]:
    """Measured ops of a pytest-benchmark file beside their limit."""
    lines = [f"{'op':52}{'us':>10}{'GB/s':>9}{'TFLOPS':>9}{'of limit':>10}"]
    for bench in data["benchmarks"]:
        info, seconds = bench["extra_info"], bench["stats"]["median"]
        if "bytes" in info:
            least = limit(gpu, info["flops"], info["bytes"])
            lines.append(
                f"{bench['name'][:50]:52}{1e6 * seconds:10.1f}{info['bytes'] / seconds / 1e9:9.1f}"
                f"{info['flops'] / seconds / 1e12:9.2f}{least / seconds:10.1%}"
            )
    return lines


@click.command()
@click.option("--ops", "ops_file", type=click.Path(exists=True, dir_okay=False), help="bench_ops.py's JSON.")
@click.option("--gpu", type=click.Choice([gpu.name for gpu in GPUS]), default="H200", show_default=True)
def main(ops_file: str | None, gpu: str) -> None:
    print("\n".join(requests_table(SHAPE, Workload())))
    if ops_file:
        data = json.loads(Path(ops_file).read_text(encoding="utf-8"))
        print("\n" + "\n".join(ops_table(data, next(g for g in GPUS if g.name == gpu))))


if __name__ == "__main__":
    main()

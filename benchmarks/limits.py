"""What an op or a request must cost at least on a GPU: peak rates, and the work of a request."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from common import SHAPE
from qdengine.config import ModelConfig
from qdengine.model.reference import ReferenceModel


@dataclass(frozen=True)
class Gpu:
    """Dense peak rates in operations/s, memory in bytes/s. reached: the share of a matrix rate that a large product of
    random numbers was seen to reach; limits of matrix work are that share."""

    name: str
    bf16: float
    eight_bit: float
    vector: float
    memory: float
    reached: float

    def rate(self, unit: str) -> float:
        return {
            "matrix": self.bf16 * self.reached, "eight_bit": self.eight_bit * self.reached, "vector": self.vector,
        }[unit]  # fmt: skip


# Vendors' datasheets; the Hopper chips' share is what a large bf16 product reached on an H200, the L20's is assumed.
GPUS = (
    Gpu("L20", 119.5e12, 239e12, 59.8e12, 864e9, 0.8),
    Gpu("H100", 989e12, 1979e12, 67e12, 3.35e12, 0.8),
    Gpu("H200", 989e12, 1979e12, 67e12, 4.8e12, 0.8),
)


def named(name: str) -> Gpu | None:
    """The GPU of GPUS that a driver's name for a device means."""
    return next((gpu for gpu in GPUS if gpu.name in name.split()), None)


@dataclass(frozen=True)
class Work:
    """bytes: that must move between memory and chip. flops: operations, by the unit "matrix" (tensor cores, 16 bits),
    "eight_bit" (tensor cores) or "vector" that does them."""

    bytes: float
    flops: float
    unit: str = "vector"


def limit(gpu: Gpu, *work: Work) -> float:
    """Seconds: all bytes over the bandwidth, or all operations over their units' rates, whichever is more."""
    return max(arithmetic(gpu, work), sum(w.bytes for w in work) / gpu.memory)


def arithmetic(gpu: Gpu, work: Iterable[Work]) -> float:
    return sum(w.flops / gpu.rate(w.unit) for w in work)


@dataclass(frozen=True)
class Workload:
    """Means of one request. document: tokens that a warm request finds in memory; query: the rest of its prompt.
    verified: rows of its steps beside the prompt; steps: forward passes that write."""

    document: float = 590
    query: float = 30
    verified: float = 100
    steps: float = 2.0

    @classmethod
    def measured(cls, figures: dict[str, Any]) -> Workload:
        """From `qdengine bench`'s figures."""
        document = figures["prompt_tokens"] * figures["warm_reused_share"]
        rows = figures["drafted"] + figures["steps"] - 1
        return cls(document, figures["prompt_tokens"] - document, rows, figures["steps"])


@cache
def matrices(config: ModelConfig, begin: str = "layers.") -> int:
    """Parameters of the layers' matrices whose names begin so."""
    with torch.device("meta"):
        model = ReferenceModel(config)
    return sum(p.numel() for name, p in model.named_parameters() if name.startswith(begin) and p.ndim == 2)


def product_flops(config: ModelConfig, tokens: float, rows: float) -> float:
    """Of the layers' products: behind the last layer's attention only the wanted rows are computed."""
    last = f"layers.{config.layers - 1}."
    behind = matrices(config, last) - matrices(config, last + "qkv")
    return 2 * ((matrices(config) - behind) * tokens + behind * rows)


def request_work(
    work: Workload, warm: bool, bits: int, alone: bool = False, config: ModelConfig = SHAPE
) -> tuple[Work, Work, Work]:
    """Layers' products, head and attention of one request, with weights, keys and values of `bits` bits (the head and
    attention compute in 16). alone: it reads the weights for itself at every step; else a large batch shares them."""
    fresh = work.query + (0 if warm else work.document)
    length = work.document + work.query
    written = work.verified + 1
    passes = work.steps if alone else 0.0
    head = config.width * config.vocab_size
    products = Work(
        passes * matrices(config) * bits / 8, product_flops(config, fresh + work.verified, written),
        "matrix" if bits == 16 else "eight_bit",
    )  # fmt: skip
    pairs = work.verified * length + (work.query * length if warm else length * length / 2)
    kv_token = 2 * config.layers * config.kv_heads * config.head_width * bits / 8
    read = length * (work.steps + (1 if warm else 0))
    attention = Work(kv_token * (fresh + read), 4 * pairs * config.heads * config.head_width * config.layers, "matrix")
    return products, Work(2 * (passes * head + config.vocab_size * written), 2 * head * written, "matrix"), attention

"""One forward pass of a model of SmolLM2-135M's shape (random weights), by what is in the step.

    python benchmarks/bench_step.py                                  # every backend that runs here
    python benchmarks/bench_step.py --step 256x33 --backend cuda --json out.json

A step SxT computes T tokens of each of S sequences, the last of 640 in the cache (of as many as T, where that is more):
what decoding, verification and a prefill cost. The rows of up to 65 tokens a sequence are wanted, else the last one's.
"""

from __future__ import annotations

from typing import Any

import click
import torch
from bench_ops import CONTEXT, attention_work
from common import BACKENDS, DTYPES, SHAPE, device_of, facts, paged, timed, write
from limits import Work, limit, matrices, named, product_flops
from qdengine import ops
from qdengine.model.decoder import Decoder
from qdengine.model.kv_cache import KVCache
from qdengine.model.layers import StepInputs
from qdengine.model.reference import ReferenceModel
from tqdm import tqdm

STEPS = {
    "cpu": ("1x1", "1x8", "1x16", "1x33", "1x65", "1x256", "1x1024"),
    "cuda": ("1x1", "1x33", "1x65", "1x1024", "64x1", "64x33", "256x33", "8x1024"),
}


def weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {name: 0.02 * torch.randn_like(tensor) for name, tensor in ReferenceModel(SHAPE).state_dict().items()}


def batch_of(step: str) -> tuple[tuple[int, int], ...]:
    """(tokens in the cache, new ones) of each sequence."""
    sequences, new = map(int, step.split("x"))
    return ((max(new, CONTEXT), new),) * sequences


def inputs_of(step: str, device: torch.device) -> tuple[StepInputs, int]:
    """A step's inputs, and the blocks that the cache must have."""
    sequences, new = map(int, step.split("x"))
    p = paged(batch_of(step), 16, 0)
    last = torch.arange(new - 1, sequences * new, new, dtype=torch.int32)
    rows = last if new > 65 else torch.arange(sequences * new, dtype=torch.int32)
    made = {"ids": p["positions"] % 1000, "positions": p["positions"], "slots": p["slots"], "block_tables": p["table"]}
    made |= {"kv_lens": p["kv_lens"], "q_indptr": p["q_indptr"], "rows": rows}
    return StepInputs(**{name: tensor.to(device) for name, tensor in made.items()}), int(p["blocks"])


def work_of(step: str, rows: int, element: int) -> tuple[Work, ...]:
    """Layers' products, head, attention: weights are read once, keys and values once, the logits written."""
    batch = batch_of(step)
    tokens = sum(new for _, new in batch)
    attention, parameters, head = attention_work(batch, element), matrices(SHAPE), SHAPE.width * SHAPE.vocab_size
    return (
        Work(parameters * element, product_flops(SHAPE, tokens, rows), "matrix"),
        Work((head + rows * SHAPE.vocab_size) * element, 2 * head * rows, "matrix"),
        Work(attention.bytes * SHAPE.layers, attention.flops * SHAPE.layers, "matrix"),
    )


def measure(decoder: Decoder, step: str, budget: float) -> dict[str, Any]:
    device = decoder.device
    inputs, blocks = inputs_of(step, device)
    token_bytes = 2 * SHAPE.layers * SHAPE.kv_heads * SHAPE.head_width * decoder.dtype.itemsize
    cache = KVCache(SHAPE, blocks * 16 * token_bytes, 16, decoder.dtype, device)
    for tensor in (*cache.keys, *cache.values):
        tensor.normal_()
    seconds = timed(lambda: decoder.forward(inputs, cache), (), device, budget)
    parts = work_of(step, len(inputs.rows), decoder.dtype.itemsize)
    row: dict[str, Any] = {"step": step, "tokens": len(inputs.ids), "us": 1e6 * seconds, "unit": "matrix"}
    row |= {"bytes": sum(p.bytes for p in parts), "flops": sum(p.flops for p in parts)}
    gpu = named(torch.cuda.get_device_name()) if device.type == "cuda" else None
    return row | ({"share_of_limit": limit(gpu, *parts) / seconds} if gpu else {})


@click.command()
@click.option("--backend", "backends", type=click.Choice(BACKENDS), multiple=True, help="[default: all that run here]")
@click.option("--step", "steps", multiple=True, help="SEQUENCESxTOKENS. [default: by device]")
@click.option("--precision", "precisions", type=click.Choice(list(DTYPES)), multiple=True, default=list(DTYPES))
@click.option("--seconds", default=0.5, show_default=True, help="Spent on each.")
@click.option("--json", "out", type=click.Path(dir_okay=False))
def main(
    backends: tuple[str, ...], steps: tuple[str, ...], precisions: tuple[str, ...], seconds: float, out: str | None
) -> None:
    """Time forward passes."""
    rows, random = [], weights()
    for backend in backends or BACKENDS:
        device = device_of(backend)
        for precision in precisions:
            decoder = Decoder(SHAPE, random, ops.load(backend), DTYPES[precision], device)
            for step in tqdm(steps or STEPS[device.type], unit="step", disable=None):
                row = {"backend": backend, "precision": precision} | measure(decoder, step, seconds)
                click.echo(f"{step:10}{precision:10}{backend:10}{row['us']:12.1f} us")
                rows.append(row)
    write(facts() | {"rows": rows}, out)


if __name__ == "__main__":
    main()

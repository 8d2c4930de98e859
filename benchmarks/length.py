"""What a summary costs against the length of its document: cold, warm (the document's keys and values in memory), and
the process's peak memory. Documents are real pages laid end to end and cut to a number of tokens.

    python benchmarks/length.py --data webqa_en.test.jsonl.gz --json out.json
"""

from __future__ import annotations

import json
import resource
import statistics
import time
from typing import Any

import click
import torch
from common import facts, write
from qdengine import Engine, EngineConfig
from qdengine.config import DEFAULT_STUDENT
from qdengine.summarize_file import valid_rows
from tqdm import tqdm

LENGTHS = (256, 512, 1024, 2048, 4096, 7000)


def documents(engine: Engine, rows: list[dict[str, Any]], tokens: int, count: int) -> list[str]:
    """`count` different documents of about `tokens` tokens."""
    text = "\n".join(row["document"] for row in rows)
    offsets = engine.tokenizer.encode(text).offsets
    made = []
    for i in range(count):
        begin = (i * tokens) % max(1, len(offsets) - tokens)
        made.append(text[offsets[begin, 0] : offsets[begin + tokens - 1, 1]])
    return made


def measure(engine: Engine, texts: list[str], query: str) -> dict[str, float]:
    """Medians over the documents, in milliseconds; steps of the cold requests."""
    times: dict[str, list[float]] = {"cold": [], "warm": []}
    prefill, decode, steps = [], [], []
    for text in texts:
        for phase, ms in times.items():
            begin = time.perf_counter()
            summary = engine.summarize([{"query": query, "document": text}])[0]
            ms.append(1e3 * (time.perf_counter() - begin))
            if summary.error:
                raise summary.error
            if phase == "cold":
                prefill.append(summary.stats.prefill_ms)
                decode.append(summary.stats.decode_ms)
                steps.append(summary.stats.steps)
    return {
        "cold_ms": statistics.median(times["cold"]),
        "warm_ms": statistics.median(times["warm"]),
        "prefill_ms": statistics.median(prefill),
        "decode_ms": statistics.median(decode),
        "steps": statistics.mean(steps),
    }


@click.command()
@click.option("--data", required=True, type=click.Path(exists=True, dir_okay=False))
@click.option("--model", default=DEFAULT_STUDENT, show_default=True)
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option("--tokens", "lengths", type=click.IntRange(1), multiple=True, default=LENGTHS, show_default=True)
@click.option("--precision", "precisions", multiple=True, default=["bfloat16", "float32"], show_default=True)
@click.option("--documents", "count", default=3, show_default=True, help="Documents of each length.")
@click.option("--threads", default=2, show_default=True)
@click.option("--json", "out", type=click.Path(dir_okay=False))
def main(
    data: str, model: str, device: str, lengths: tuple[int, ...], precisions: tuple[str, ...], count: int, threads: int,
    out: str | None,
) -> None:  # fmt: skip
    """Measure one request alone, by the length of its document."""
    torch.set_num_threads(threads)
    rows = valid_rows(data, 200)
    result: dict[str, Any] = facts() | {"threads": threads, "lengths": []}
    engines = {
        name: Engine.from_pretrained(model, device, name, EngineConfig(kv_bytes=1 << 30, max_new_tokens=48))
        for name in precisions
    }
    for tokens in tqdm(lengths, unit="length", disable=None):
        for name, engine in engines.items():
            texts = documents(engine, rows, tokens, count + 1)
            engine.summarize([{"query": rows[0]["query"], "document": texts.pop()}])  # warm-up
            figures = measure(engine, texts, rows[0]["query"])
            result["lengths"].append({"precision": name, "tokens": tokens} | figures)
    result["peak_rss_bytes"] = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps(result, indent=2))
    write(result, out)


if __name__ == "__main__":
    main()

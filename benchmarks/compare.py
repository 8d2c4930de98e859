"""qdengine against transformers' `generate`, plain and with prompt lookup, on the same rows, weights and threads.

    python benchmarks/compare.py --data webqa_en.test.jsonl.gz --rows 128 --json out.json

The bundle's weights are exported once and every engine loads them. transformers runs as it is commonly run on a CPU:
one request at a time. Engines take turns over slices of the rows, so that a change of the machine's speed falls on all
of them; requests/s is rows over the sum of an engine's slices, latency is of single requests. All documents are cold.
"""

from __future__ import annotations

import json
import platform
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import torch
from qdengine import Engine, EngineConfig, doctor, student
from qdengine.evaluate.rouge import rouge
from qdengine.export import export
from qdengine.prompt import encode
from qdengine.request import Request
from qdengine.summarize_file import valid_rows
from tqdm import tqdm

Run = Callable[[list[dict[str, Any]]], list[list[int]]]


@dataclass(slots=True)
class Peer:
    """One engine. run: requests to token ids. slice: rows given at once for requests/s."""

    name: str
    run: Run
    slice: int
    seconds: float = 0.0
    latency_ms: list[float] = field(default_factory=list)
    ids: list[list[int]] = field(default_factory=list)


def ours(engine: Engine, lookahead: int | None, calls: list[int]) -> Run:
    def run(rows: list[dict[str, Any]]) -> list[list[int]]:
        calls[0] += 1  # a namespace of its own: nothing is warm
        extra = {"namespace": f"call-{calls[0]}"} | ({} if lookahead is None else {"lookahead": lookahead})
        summaries = engine.summarize(
            [{k: r[k] for k in ("query", "title", "document") if k in r} | extra for r in rows]
        )
        failed = next((s.error for s in summaries if s.error), None)
        if failed:
            raise failed
        return [s.token_ids for s in summaries]

    return run


def theirs(model: Any, engine: Engine, max_new_tokens: int, **options: Any) -> Run:
    stops = list(engine.checkpoint.stop_ids)

    def run(rows: list[dict[str, Any]]) -> list[list[int]]:
        requests = [Request(r["query"], r["document"], r.get("title", "")) for r in rows]
        room = engine.checkpoint.config.max_positions - max_new_tokens
        prompts = [p.ids.tolist() for p in encode(engine.tokenizer, engine.checkpoint.prompt, requests, room)]
        width = max(map(len, prompts))
        ids = torch.tensor([[stops[0]] * (width - len(p)) + p for p in prompts])
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
        with torch.inference_mode():
            out = model.generate(
                input_ids=ids, attention_mask=mask, max_new_tokens=max_new_tokens, do_sample=False,
                eos_token_id=stops, pad_token_id=stops[0], **options,
            )  # fmt: skip
        return [cut(row, stops) for row in out[:, width:].tolist()]

    return run


def cut(ids: list[int], stops: list[int]) -> list[int]:
    return ids[: next((i for i, token in enumerate(ids) if token in stops), len(ids))]


def measure(peers: list[Peer], rows: list[dict[str, Any]], slice_rows: int, latency_rows: int) -> None:
    """Fills the peers' figures."""
    for peer in peers:
        peer.run(rows[:1])  # warm-up
    for begin in tqdm(range(0, len(rows), slice_rows), unit="slice", disable=None):
        part = rows[begin : begin + slice_rows]
        for peer in peers:
            start = time.perf_counter()
            for i in range(0, len(part), peer.slice):
                peer.ids += peer.run(part[i : i + peer.slice])
            peer.seconds += time.perf_counter() - start
    for row in tqdm(rows[:latency_rows], unit="row", disable=None):
        for peer in peers:
            start = time.perf_counter()
            peer.run([row])
            peer.latency_ms.append(1e3 * (time.perf_counter() - start))


def figures(peer: Peer, rows: list[dict[str, Any]], engine: Engine, same_as: Peer) -> dict[str, Any]:
    texts = [engine.tokenizer.decode(ids).strip() for ids in peer.ids]
    scores = [rouge(text, [row["summary"]], "en") for text, row in zip(texts, rows, strict=True)]
    return {
        "requests_per_s": len(rows) / peer.seconds,
        "latency_p50_ms": statistics.median(peer.latency_ms),
        "output_tokens": statistics.mean(map(len, peer.ids)),
        "rouge": {name: statistics.mean(score[name] for score in scores) for name in scores[0]},
        f"rows_equal_to_{same_as.name}": sum(a == b for a, b in zip(peer.ids, same_as.ids, strict=True)),
    }


def shared_document(engine: Engine, rows: list[dict[str, Any]], calls: list[int]) -> dict[str, float]:
    """Requests/s of 8 queries on one document, and of 8 documents, all cold at the start; in turns over the rows."""
    run, seconds = ours(engine, None, calls), {"one_document": 0.0, "eight_documents": 0.0}
    groups = [rows[i : i + 8] for i in range(0, len(rows) - 7, 8)]
    for group in groups:
        one = [{**group[0], "query": row["query"]} for row in group]
        for name, batch in (("one_document", one), ("eight_documents", group)):
            start = time.perf_counter()
            run(batch)
            seconds[name] += time.perf_counter() - start
    return {f"{name}_requests_per_s": 8 * len(groups) / total for name, total in seconds.items()}


@click.command()
@click.option("--data", required=True, type=click.Path(exists=True, dir_okay=False))
@click.option("--model", default="smollm2-135m", show_default=True)
@click.option("--rows", default=128, show_default=True)
@click.option("--latency-rows", default=32, show_default=True)
@click.option("--slice", "slice_rows", default=64, show_default=True, help="Rows between turns.")
@click.option("--precision", "precisions", multiple=True, default=["bfloat16"], show_default=True)
@click.option("--max-new-tokens", default=96, show_default=True)
@click.option("--threads", default=2, show_default=True)
@click.option("--json", "out", type=click.Path(dir_okay=False))
def main(
    data: str, model: str, rows: int, latency_rows: int, slice_rows: int, precisions: tuple[str, ...],
    max_new_tokens: int, threads: int, out: str | None,
) -> None:  # fmt: skip
    import transformers as hf

    torch.set_num_threads(threads)
    chosen, found = valid_rows(data, rows), doctor.examine()
    result: dict[str, Any] = {
        "data": Path(data).name, "model": model, "rows": rows, "max_new_tokens": max_new_tokens, "threads": threads,
        "cpu": found["cpu"], "isa": found["isa"], "amx": found["amx"], "torch": torch.__version__,
        "transformers": hf.__version__, "platform": platform.platform(), "date": time.strftime("%Y-%m-%d"),
    }  # fmt: skip
    hf.logging.set_verbosity_error()
    with tempfile.TemporaryDirectory() as folder:
        exported = export(student.resolve(model), Path(folder) / "model")
        for precision in precisions:
            config = EngineConfig(max_new_tokens=max_new_tokens)
            with Engine.from_pretrained(model, "cpu", precision, config) as engine:
                peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
                calls = [0]
                loaded = hf.AutoModelForCausalLM.from_pretrained(
                    exported, dtype=getattr(torch, engine.precision)
                ).eval()
                peers = [
                    Peer("qdengine", ours(engine, None, calls), slice_rows),
                    Peer("qdengine_no_lookahead", ours(engine, 0, calls), slice_rows),
                    Peer("transformers_plain", theirs(loaded, engine, max_new_tokens), 1),
                    Peer("transformers_lookup", theirs(loaded, engine, max_new_tokens, prompt_lookup_num_tokens=10), 1),
                ]
                measure(peers, chosen, slice_rows, latency_rows)
                of = {peer.name: figures(peer, chosen, engine, peers[2]) for peer in peers}
                base = of["qdengine"]
                result[precision] = {
                    "engine_precision": engine.precision,
                    "peers": of,
                    "requests_per_s_over": {n: base["requests_per_s"] / f["requests_per_s"] for n, f in of.items()},
                    "latency_share_of": {n: base["latency_p50_ms"] / f["latency_p50_ms"] for n, f in of.items()},
                    "shared_document": shared_document(engine, chosen, calls),
                    "rss_with_engine_bytes": peak,
                }
                print(json.dumps(result[precision], indent=2), flush=True)
    if out:
        Path(out).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

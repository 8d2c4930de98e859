"""qdengine against transformers on the same rows, weights, device and threads.

    python benchmarks/compare.py --data webqa_en.test.jsonl.gz --rows 128 --json out.json

The bundle's weights are exported once and every engine loads them; peers.py says which engines there are. On a CPU
transformers' plain and lookup generation are the default, on a GPU all, where those that take one request at a time
have a latency and no requests/s. Engines take turns over slices of the rows, so that a change of the machine's speed
falls on all of them; requests/s is rows over the sum of an engine's slices, latency is of other rows one by one. All
documents are cold, and every engine tokenises them anew. A peer that fails has an `error`, and is measured no further.
"""

from __future__ import annotations

import importlib.util
import json
import platform
import resource
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import torch
from common import facts, write
from peers import ALL, PEERS, Peer, Rows, ours, theirs
from qdengine import Engine, student
from qdengine.cli import make_engine
from qdengine.config import DEFAULT_STUDENT
from qdengine.evaluate.rouge import rouge
from qdengine.export import export
from qdengine.summarize_file import valid_rows
from tqdm import tqdm


def measure(peers: list[Peer], rows: Rows, slice_rows: int, latency_rows: Rows) -> None:
    """Fills the peers' figures."""
    for peer in tqdm(peers, desc="warm-up", unit="engine", disable=None):
        peer.timed(rows[: peer.warm_up])
    for begin in tqdm(range(0, len(rows), slice_rows), unit="slice", disable=None):
        for peer in peers:
            if peer.offline:
                ids, seconds = peer.timed(rows[begin : begin + slice_rows])
                peer.ids += ids
                peer.seconds += seconds
    for row in tqdm(latency_rows, unit="row", disable=None):
        for peer in peers:
            if peer.alone:
                peer.latency_ms.append(1e3 * peer.timed([row])[1])


def figures(peer: Peer, rows: Rows, engine: Engine, same_as: Peer) -> dict[str, Any]:
    if peer.error is not None:
        return {"error": peer.error}
    found: dict[str, Any] = {"latency_p50_ms": statistics.median(peer.latency_ms)} if peer.alone else {}
    if peer.offline:
        found |= {"requests_per_s": len(rows) / peer.seconds, "output_tokens": statistics.mean(map(len, peer.ids))}
        found |= quality([engine.tokenizer.decode(ids).strip() for ids in peer.ids], rows)
        if not same_as.error:
            equal = sum(a == b for a, b in zip(peer.ids, same_as.ids, strict=True))
            found[f"rows_equal_to_{same_as.name}"] = equal
    return found


def quality(texts: list[str], rows: Rows) -> dict[str, Any]:
    """ROUGE, where its package is installed."""
    if importlib.util.find_spec("rouge_score") is None:
        return {}
    scores = [rouge(text, [row["summary"]], "en") for text, row in zip(texts, rows, strict=True)]
    return {"rouge": {name: statistics.mean(score[name] for score in scores) for name in scores[0]}}


def ratios(of: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """How many times a peer's requests/s ours are, and what share of its latency; `best` is of transformers' best."""
    base = of["qdengine"]
    over = {n: base["requests_per_s"] / f["requests_per_s"] for n, f in of.items() if "requests_per_s" in f}
    share = {n: base["latency_p50_ms"] / f["latency_p50_ms"] for n, f in of.items() if "latency_p50_ms" in f}
    found: dict[str, Any] = {"requests_per_s_over": over, "latency_share_of": share}
    for ratio, best in ((over, "requests_per_s_over_best"), (share, "latency_share_of_best")):
        known = [value for name, value in ratio.items() if not name.startswith("qdengine")]
        if known:
            found[best] = min(known) if ratio is over else max(known)
    return found


def shared_document(engine: Engine, rows: Rows, calls: list[int]) -> dict[str, float]:
    """Requests/s of 8 queries on one document, and of 8 documents, all cold at the start; in turns over the rows."""
    run, seconds = ours(engine, None, calls), {"one_document": 0.0, "eight_documents": 0.0}
    groups = [rows[i : i + 8] for i in range(0, len(rows) - 7, 8)]
    for group in groups:
        one = [{**group[0], "query": row["query"]} for row in group]
        for name, batch in (("one_document", one), ("eight_documents", group)):
            start = time.perf_counter()
            run(batch)
            seconds[name] += time.perf_counter() - start
    return {f"{name}_requests_per_s": 8 * len(groups) / total for name, total in seconds.items() if groups}


def compare(
    engine: Engine, folder: Path, names: tuple[str, ...], rows: Rows, latency_rows: Rows, slice_rows: int, new: int
) -> dict[str, Any]:
    peak, calls = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, [0]
    peers = [Peer("qdengine", ours(engine, None, calls)), Peer("qdengine_no_lookahead", ours(engine, 0, calls))]
    peers += theirs(names, folder, engine, new, slice_rows)
    measure(peers, rows, slice_rows, latency_rows)
    same_as = next((p for p in peers[2:] if p.offline and not p.error), peers[0])
    of = {peer.name: figures(peer, rows, engine, same_as) for peer in peers}
    found = {"engine_precision": engine.precision, "peers": of} | ratios(of)
    return found | {"shared_document": shared_document(engine, rows, calls), "rss_with_engine_bytes": peak}


@click.command()
@click.option("--data", required=True, type=click.Path(exists=True, dir_okay=False))
@click.option("--model", default=DEFAULT_STUDENT, show_default=True)
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option("--peer", "names", type=click.Choice(ALL), multiple=True, help="Of transformers. [default: by device]")
@click.option("--rows", default=128, show_default=True)
@click.option("--latency-rows", default=32, show_default=True)
@click.option("--slice", "slice_rows", default=64, show_default=True, help="Rows given at once, between turns.")
@click.option("--precision", "precisions", multiple=True, default=["bfloat16"], show_default=True)
@click.option("--max-new-tokens", default=96, show_default=True)
@click.option("--engine", "others", multiple=True, metavar="NAME=VALUE", help="A field of qdengine's EngineConfig.")
@click.option("--threads", default=2, show_default=True)
@click.option("--json", "out", type=click.Path(dir_okay=False), help="Written anew after every precision.")
def main(
    data: str, model: str, device: str, names: tuple[str, ...], rows: int, latency_rows: int, slice_rows: int,
    precisions: tuple[str, ...], max_new_tokens: int, others: tuple[str, ...], threads: int, out: str | None,
) -> None:  # fmt: skip
    """Measure qdengine and transformers."""
    import transformers as hf

    torch.set_num_threads(threads)
    chosen = valid_rows(data, rows + latency_rows)
    chosen, alone = chosen[:rows], chosen[rows:] or chosen[:latency_rows]
    result: dict[str, Any] = facts() | {
        "data": Path(data).name, "model": model, "device": device, "rows": len(chosen), "slice": slice_rows,
        "max_new_tokens": max_new_tokens, "engine": list(others), "threads": threads,
        "transformers": hf.__version__, "platform": platform.platform(),
    }  # fmt: skip
    hf.logging.set_verbosity_error()
    hf.logging.disable_progress_bar()
    others = ("document_cache_bytes=0", *others)
    with tempfile.TemporaryDirectory() as folder:
        exported = export(student.resolve(model), Path(folder) / "model")
        for precision in precisions:
            with make_engine(model, device, precision, "auto", None, max_new_tokens, others) as engine:
                result[precision] = compare(
                    engine, exported, names or PEERS[device], chosen, alone, slice_rows, max_new_tokens
                )
            print(json.dumps(result[precision], indent=2), flush=True)
            write(result, out)


if __name__ == "__main__":
    main()

"""Plots for docs/ from measured JSON:

python benchmarks/plot.py --peers benchmarks/results/peers/cold.json   # of benchmarks/peers, a section
python benchmarks/plot.py --gpu gpu.json                         # of gpu_suite.sh: load, requests/s, share of the limit
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

DOCS = Path(__file__).parent.parent / "docs" / "plots"


def read(path: str) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
    return data


def save(figure: Any, folder: Path, name: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    figure.tight_layout()
    figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
    plt.close(figure)


def plot_cold(data: dict[str, Any], folder: Path, name: str = "compare") -> None:
    """Bars by engine; an engine that has no such figure has no bar."""
    cold = {peer: found for peer, found in data["cold"].items() if "error" not in found}
    figure, axes = plt.subplots(1, 2, figsize=(9, 1.2 + 0.25 * len(cold)), sharey=True)
    colours = ["C0" if peer.startswith("qdengine") else "C1" for peer in cold]
    for axis, key in zip(axes, ("requests_per_s", "latency_p50_ms"), strict=True):
        axis.barh(range(len(cold)), [found.get(key, 0) for found in cold.values()], color=colours)
    labels = [f"{said(peer)}, {data['engines'].get(peer, {}).get('precision', '')}".rstrip(", ") for peer in cold]
    axes[0].set_yticks(range(len(cold)), labels, fontsize=8)
    axes[0].invert_yaxis()
    axes[0].set_xlabel("requests/s, all rows at once")
    axes[1].set_xlabel("median latency of one request, ms")
    where = data.get("gpu") or f"{data['threads']} threads"
    figure.suptitle(f"{Path(data['model']).name}, {data['rows']} rows of {data['data']}, {where}", fontsize=9)
    save(figure, folder, name)


def said(peer: str) -> str:
    return peer.replace("_", " ")


def plot_curves(lines: dict[str, dict[int, float]], x: str, y: str, folder: Path, name: str) -> None:
    """A line for each name, ours drawn through and the others dashed; both axes by powers."""
    figure, axis = plt.subplots(figsize=(7, 4.2))
    for label, points in lines.items():
        style = "o-" if label.startswith("qdengine") else "s--"
        axis.plot(list(points), list(points.values()), style, markersize=4, label=label)
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    axis.set_xlabel(x)
    axis.set_ylabel(y)
    axis.grid(True, which="both", alpha=0.3)
    axis.legend(fontsize=7)
    save(figure, folder, name)


def plot_batches(data: dict[str, Any], folder: Path) -> None:
    known = {peer: found for peer, found in data["batches"].items() if "error" not in found}
    lines = {said(peer): {int(size): rate for size, rate in found.items()} for peer, found in known.items()}
    plot_curves(lines, "requests at once", "requests/s", folder, "batches")


def plot_lengths(data: dict[str, Any], folder: Path) -> None:
    lines: dict[str, dict[int, float]] = {}
    for peer, found in data["lengths"].items():
        for phase in ("cold_ms", "warm_ms"):
            points = {int(n): row[phase] for n, row in found.items() if n.isdigit() and phase in row}
            if points:
                lines[f"{said(peer)}, {phase.removesuffix('_ms')}"] = points
    plot_curves(lines, "document, tokens", "one summary, ms", folder, "length")


def plot_peers(data: dict[str, Any], folder: Path) -> None:
    for section, plot in (("cold", plot_cold), ("batches", plot_batches), ("lengths", plot_lengths)):
        if section in data:
            plot(data, folder)


def plot_load(engines: dict[str, dict[str, Any]], gpu: str, folder: Path) -> None:
    """Latency against the arrivals offered, of `qdengine bench --load`."""
    figure, axis = plt.subplots(figsize=(6, 3.6))
    for figures in engines.values():
        loads = sorted(figures["load"], key=lambda load: load["rate"])
        for q, style in (("p50", "o-"), ("p99", "s--")):
            known = [(load["rate"], load["latency_ms"][q]) for load in loads if load["latency_ms"]]
            axis.plot(*zip(*known, strict=True), style, label=f"{figures['precision']}, {q}")
    axis.set_yscale("log")
    axis.set_xlabel("requests/s offered (Poisson arrivals, new documents)")
    axis.set_ylabel("arrival to summary, ms")
    axis.set_title(gpu, fontsize=9)
    axis.grid(True, which="both", alpha=0.3)
    axis.legend()
    save(figure, folder, "gpu-load")


def plot_share(results: dict[str, dict[str, Any]], gpu: str, folder: Path) -> None:
    """Share of its limit that each op and step reached, the sizes side by side."""
    ops, steps = (results.get(name, {}).get("rows", []) for name in ("ops", "steps"))
    rows = [(f"{row['op']} {row['size']} {row['dtype']} {row['backend']}", row) for row in ops]
    rows += [(f"step {row['step']} {row['precision']} {row['backend']}", row) for row in steps]
    known = [(name, row["share_of_limit"]) for name, row in rows if "share_of_limit" in row and "token" not in name]
    if not known:
        return
    figure, axis = plt.subplots(figsize=(7, 1 + 0.16 * len(known)))
    axis.barh(range(len(known)), [100 * share for _, share in known])
    axis.set_yticks(range(len(known)), [name for name, _ in known], fontsize=6)
    axis.invert_yaxis()
    axis.set_xlabel(f"share of the limit on {gpu}, %")
    save(figure, folder, "gpu-share")


def plot_attention(found: dict[str, Any], gpu: str, folder: Path) -> None:
    """Times of every batch by who computes it, over those of qdengine's first backend."""
    rows = [row for row in found["rows"] if "us" in row]
    cases, names = (list(dict.fromkeys(row[key] for row in rows)) for key in ("case", "how"))
    base = {row["case"]: row["us"] for row in rows if row["how"] == names[0]}
    figure, axis = plt.subplots(figsize=(9, 4))
    for i, name in enumerate(names):
        own = [(cases.index(row["case"]), row["us"] / base[row["case"]]) for row in rows if row["how"] == name]
        axis.bar([at + 0.8 * i / len(names) for at, _ in own], [y for _, y in own], 0.8 / len(names), label=name)
    axis.axhline(1, color="grey", linewidth=1)
    axis.set_yscale("log")
    axis.set_xticks([at + 0.35 for at in range(len(cases))], cases, rotation=20, fontsize=8)
    axis.set_ylabel(f"time over that of {names[0]}\n{gpu}, {rows[0]['dtype']}")
    axis.legend(fontsize=7, ncols=2)
    save(figure, folder, "gpu-attention")


def plot_gpu(data: dict[str, Any], folder: Path) -> None:
    results = {name: step["result"] for name, step in data["steps"].items() if "result" in step}
    gpu = data["gpu"] or "no GPU"
    engines = {name: found for name, found in results.items() if name.startswith("engine-") and found["load"]}
    if engines:
        plot_load(engines, gpu, folder)
    plot_share(results, gpu, folder)
    if "attention" in results:
        plot_attention(results["attention"], gpu, folder)
    if "compare" in results:
        plot_cold(results["compare"], folder, "gpu-compare")


@click.command()
@click.option("--peers", multiple=True, type=click.Path(exists=True, dir_okay=False))
@click.option("--gpu", type=click.Path(exists=True, dir_okay=False))
@click.option("--out", default=DOCS, type=click.Path(file_okay=False, path_type=Path), show_default=True)
def main(peers: tuple[str, ...], gpu: str | None, out: Path) -> None:
    """Draw what was measured; --peers of several runs with sections of their own."""
    for path in peers:
        plot_peers(read(path), out)
    if gpu:
        plot_gpu(read(gpu), out)


if __name__ == "__main__":
    main()

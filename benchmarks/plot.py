"""Plots for docs/ from the JSON of compare.py and length.py:

python benchmarks/plot.py --compare benchmarks/results/A.json --length benchmarks/results/B.json
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


def save(figure: Any, name: str) -> None:
    DOCS.mkdir(parents=True, exist_ok=True)
    figure.tight_layout()
    figure.savefig(DOCS / f"{name}.svg", metadata={"Date": None})


def plot_compare(data: dict[str, Any]) -> None:
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.2))
    precisions = [name for name in ("bfloat16", "float32") if name in data]
    for i, precision in enumerate(precisions):
        peers = data[precision]["peers"]
        places = [k + i * 0.8 / len(precisions) for k in range(len(peers))]
        for axis, key in zip(axes, ("requests_per_s", "latency_p50_ms"), strict=True):
            axis.barh(places, [p[key] for p in peers.values()], 0.8 / len(precisions), label=precision)
            axis.set_yticks(range(len(peers)), [name.replace("_", " ") for name in peers])
            axis.invert_yaxis()
    axes[0].set_xlabel("requests/s, all rows at once")
    axes[1].set_xlabel("median latency of one request, ms")
    axes[1].set_yticklabels([])
    axes[0].legend()
    figure.suptitle(f"{data['model']}, {data['rows']} rows of {data['data']}, {data['threads']} threads", fontsize=9)
    save(figure, "compare")


def plot_length(data: dict[str, Any]) -> None:
    figure, axis = plt.subplots(figsize=(6, 3.6))
    for precision in dict.fromkeys(row["precision"] for row in data["lengths"]):
        rows = [row for row in data["lengths"] if row["precision"] == precision]
        for phase, style in (("cold", "o-"), ("warm", "s--")):
            axis.plot(
                [r["tokens"] for r in rows], [r[f"{phase}_ms"] for r in rows], style, label=f"{precision}, {phase}"
            )
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    axis.set_xlabel("document, tokens")
    axis.set_ylabel("one summary, ms")
    axis.grid(True, which="both", alpha=0.3)
    axis.legend()
    save(figure, "length")


@click.command()
@click.option("--compare", type=click.Path(exists=True, dir_okay=False))
@click.option("--length", type=click.Path(exists=True, dir_okay=False))
def main(compare: str | None, length: str | None) -> None:
    if compare:
        plot_compare(read(compare))
    if length:
        plot_length(read(length))


if __name__ == "__main__":
    main()

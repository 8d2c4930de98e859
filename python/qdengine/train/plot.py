"""The curves of a run."""

from __future__ import annotations

from pathlib import Path

from .. import jsonl


def plot(metrics: Path, picture: Path) -> None:
    """Draw the losses in a run's file of metrics."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = [row for row in jsonl.read(metrics) if isinstance(row, dict)]
    figure, axes = pyplot.subplots(figsize=(7, 4))
    for name, label in (("loss", "training"), ("eval_loss", "validation")):
        points = [(row["step"], row[name]) for row in rows if name in row]
        if points:
            axes.plot(*zip(*points, strict=True), label=label, alpha=0.8)
    axes.set(xlabel="step", ylabel="loss")
    axes.legend()
    figure.savefig(picture, bbox_inches="tight")
    pyplot.close(figure)

"""Students side by side: how well they answer, and what that costs.

    python benchmarks/students.py A=runs/sft/bundle B=runs/dpo/bundle --data webqa_en.test.jsonl.gz --json students.json
    python benchmarks/students.py --plot students.json

For every student and precision: ROUGE with intervals, exact answers and verbatim runs over the rows of each --data file
(predictions lie in --work and are gone on with after an interruption), how much they differ row by row from those of
the first student in the first precision, and requests/s, tokens a step and steps over --speed-rows of the first file,
each phase in turn for all students in one run.
"""

from __future__ import annotations

import sys
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import click
from common import facts, write
from plot import DOCS, plt, read, save
from qdengine import Engine, jsonl, ops, student
from qdengine.checkpoint import load
from qdengine.evaluate.baselines import BASELINES, baseline
from qdengine.evaluate.latency import measure
from qdengine.evaluate.report import evaluate
from qdengine.evaluate.score import score
from qdengine.summarize_file import to_request, valid_rows
from tqdm import tqdm

LANGUAGES = {"webqa_zh": "zh"}


def language(path: Path) -> str:
    return LANGUAGES.get(path.name.partition(".")[0], "en")


def name_of(path: Path) -> str:
    return path.name.partition(".jsonl")[0]


def baselines(paths: list[Path], rows: int | None) -> dict[str, Any]:
    """What a student has to beat: no model, one sentence."""
    found: dict[str, Any] = {}
    for path in paths:
        wanted = list(islice(jsonl.read(path), rows))
        for name in BASELINES:
            predicted = baseline(name, wanted, language(path))  # type: ignore[arg-type]
            scores = evaluate(predicted, wanted, language(path))
            found.setdefault(name, {})[name_of(path)] = scores
    return found


def speed(engine: Engine, path: Path, rows: int) -> dict[str, Any]:
    requests = [to_request(row) for row in valid_rows(path, rows + 4)]
    return measure(engine, requests[:rows], 8, requests[rows:] or requests[:1])


def plot(data: dict[str, Any], folder: Path) -> None:
    """ROUGE-2 of the first file against requests/s, with 95% intervals."""
    figure, axes = plt.subplots(figsize=(6.4, 4))
    file = data["files"][0]
    for name, found in data["students"].items():
        for marker, (precision, one) in zip(cycle("os^D"), found["precisions"].items(), strict=False):
            rouge, x = one["scores"][file]["scores"]["rouge2"], one["speed"]["requests_per_s"]
            error = [[rouge["mean"] - rouge["low"]], [rouge["high"] - rouge["mean"]]]
            axes.errorbar(x, rouge["mean"], error, fmt=marker, capsize=3)
            axes.annotate(f"{name}, {precision}", (x, rouge["mean"]), (6, 4), textcoords="offset points", fontsize=8)
    for name, scores in data["baselines"].items():
        mean = scores[file]["scores"]["rouge2"]["mean"]
        axes.axhline(mean, linestyle=":", color="grey", linewidth=1)
        place = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points"}
        axes.annotate(name, (0, mean), (2, 2), fontsize=8, **place)
    axes.set_xlim(left=0)  # or what is noise looks like a difference
    axes.set_xlabel(f"requests/s, {data['threads']} threads")
    axes.set_ylabel(f"ROUGE-2, {file}")
    save(figure, folder, "students")


@click.command()
@click.argument("students", nargs=-1, metavar="[NAME=BUNDLE]...")
@click.option("--data", "paths", multiple=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--rows", type=click.IntRange(1), help="First rows of every file. [default: all]")
@click.option("--speed-rows", type=click.IntRange(1), default=64, show_default=True)
@click.option("--precision", "precisions", multiple=True, default=["auto", "int8"], show_default=True)
@click.option("--work", type=click.Path(file_okay=False, path_type=Path), default="build/students", show_default=True)
@click.option("--json", "out", type=click.Path(dir_okay=False))
@click.option("--plot", "plotted", type=click.Path(exists=True, dir_okay=False), help="Only draw what this file has.")
@click.option("--plots", default=DOCS, type=click.Path(file_okay=False, path_type=Path), show_default=True)
def main(
    students: tuple[str, ...], paths: tuple[Path, ...], rows: int | None, speed_rows: int, precisions: tuple[str, ...],
    work: Path, out: str | None, plotted: str | None, plots: Path,
) -> None:  # fmt: skip
    if plotted is not None:
        plot(read(plotted), plots)
        return
    if not students or not paths or not all("=" in one for one in students):
        raise click.UsageError("give students as NAME=BUNDLE, and --data")
    given = [(name, bundle) for name, _, bundle in (one.partition("=") for one in students)]
    for what, names in (("students", [name for name, _ in given]), ("files", [name_of(path) for path in paths])):
        if len(set(names)) < len(names) or any("/" in name for name in names):
            raise click.UsageError(f"{what} need names of their own, without a slash: {', '.join(names)}")
    work.mkdir(parents=True, exist_ok=True)
    named = {name: student.resolve(bundle) for name, bundle in given}
    found: dict[str, Any] = {}
    for name, bundle in named.items():
        shape = load(bundle).config
        found[name] = {"layers": shape.layers, "width": shape.width, "precisions": {}}
    runs = [(precision, name, bundle) for precision in precisions for name, bundle in named.items()]
    for precision, name, bundle in tqdm(runs, desc="speed", disable=not sys.stderr.isatty()):
        with Engine.from_pretrained(bundle, precision=precision) as engine:
            found[name]["precisions"][engine.precision] = {"speed": speed(engine, paths[0], speed_rows), "scores": {}}
    first: dict[Path, Path] = {}
    for precision, name, bundle in runs:
        with Engine.from_pretrained(bundle, precision=precision) as engine:
            for path in paths:
                print(f"{name}, {engine.precision}, {name_of(path)}", file=sys.stderr)
                predictions = work / f"{name}.{engine.precision}.{name_of(path)}.{rows or 'all'}.jsonl"
                against = first.setdefault(path, predictions)
                scores = score(engine, path, rows, language(path), predictions, against)
                found[name]["precisions"][engine.precision]["scores"][name_of(path)] = scores
    files = [name_of(path) for path in paths]
    result = facts() | {
        "threads": ops.usable_threads(),
        "files": files,
        "students": found,
        "baselines": baselines(list(paths), rows),
    }
    write(result, out)


if __name__ == "__main__":
    main()

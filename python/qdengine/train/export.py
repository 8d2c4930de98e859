"""The last stage: a student as a bundle with a model card, in 16 or 8 bits, and as a small file of what was changed."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from .. import checkpoint, delta, jsonl, student
from ..checkpoint import Checkpoint
from ..errors import ConfigError
from ..evaluate.score import score
from . import config
from .config import SETTINGS
from .stages import BUNDLE
from .trainer import METRICS

DELTA = "delta.safetensors"
REPORT = "report.json"
_RESTORED = "restored"
_METRICS = ("rouge1", "rouge2", "rougeL", "exact", "run", "length")


@dataclass(frozen=True, slots=True)
class Stage:
    """A run that made a student: its command, its settings, and the last figures of its metrics."""

    command: str
    settings: dict[str, Any]
    figures: dict[str, float]


def export(settings: config.Export) -> Path:
    """Write `settings.output`: the bundle, its scores in report.json, and delta.safetensors with `base`. Returns the
    bundle. Scores are gone on with where they were interrupted."""
    tuned = checkpoint.load(student.resolve(settings.student))
    base = None if settings.base is None else checkpoint.load(student.resolve(settings.base))
    inputs = {"student": tuned.digest} | {path.name: checkpoint.sha256(path) for path in settings.evaluate}
    if base is not None:
        _check_base(settings, base, tuned)
        inputs["base"] = base.digest
    with config.claim(settings.output, settings):
        config.check_inputs(settings.output, inputs)
        bundle = settings.output / BUNDLE
        return bundle if bundle.is_dir() else _export(settings, base, tuned, bundle)


def _check_base(settings: config.Export, base: Checkpoint, tuned: Checkpoint) -> None:
    """Raise `ConfigError` unless the student has the tensors of the base, or of those layers of it."""
    layers = base.config.layers if settings.layers is None else len(settings.layers)
    if settings.layers is not None and settings.layers[-1] >= base.config.layers:
        raise ConfigError(f"layers: {settings.base} has {base.config.layers}, and no layer {settings.layers[-1]}")
    wanted, found = checkpoint.shapes(replace(base.config, layers=layers)), checkpoint.shapes(tuned.config)
    if wrong := sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name)):
        raise ConfigError(
            f"base: {settings.student} was not made of {layers} layers of {settings.base}: {wrong[0]} is "
            f"{found.get(wrong[0], 'not there')}, and would be {wanted.get(wrong[0], 'not there')}; give its own base, "
            "and the layers that were kept"
        )


def _export(settings: config.Export, base: Checkpoint | None, tuned: Checkpoint, bundle: Path) -> Path:
    stages = history(tuned.path)
    source = f"{settings.name}, from {stages[0].settings['student']['init'] if stages else tuned.name}"
    shipped = tuned if base is None else _restored(settings, base, tuned, source)
    report = {str(path.name): _scores(settings, shipped, path) for path in settings.evaluate}
    (settings.output / REPORT).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    text = card(settings, shipped, stages, report)
    if base is not None:
        delta.set_card(settings.output / DELTA, text)
    weights = (
        shipped.weights()
        if settings.precision == "bfloat16"
        else checkpoint.quantized(shipped.config, shipped.weights(), smooth=not shipped.holds_int8())
    )
    checkpoint.save_bundle(
        bundle, shipped.config, weights, shipped.tokenizer_json(), shipped.prompt, shipped.stop_ids, source, text
    )
    shutil.rmtree(settings.output / _RESTORED, ignore_errors=True)
    return bundle


def inherited(init: str) -> list[str]:
    """What the model card of a student says of its stages, where it has one."""
    folder = Path(init) if Path(init).is_dir() else student.installed().get(init)
    text = folder and folder / checkpoint.CARD
    lines = text.read_text(encoding="utf-8").splitlines() if text and text.is_file() else []
    return [line.partition(" ")[2] for line in lines if re.match(r"\d+\. `qdengine train ", line)]


def history(bundle: Path) -> list[Stage]:
    """The runs that made a bundle, first one first, as far as their folders are there."""
    stages: list[Stage] = []
    seen: set[Path] = set()  # a folder can be made anew of what was made of it
    while (noted := bundle.parent / SETTINGS).is_file() and noted.resolve() not in seen:
        seen.add(noted.resolve())
        text = noted.read_text(encoding="utf-8")
        settings = yaml.safe_load(text)
        if isinstance(settings["student"], str):  # of an export, which trains nothing
            bundle = Path(settings["student"])
            continue
        figures: dict[str, float] = {}
        for row in jsonl.read(bundle.parent / METRICS):
            figures |= row if isinstance(row, dict) else {}
        stages.append(Stage(text.partition("\n")[0].removeprefix("# "), settings, figures))
        bundle = Path(settings["student"]["init"])
    return stages[::-1]


def card(settings: config.Export, shipped: Checkpoint, stages: list[Stage], report: dict[str, Any]) -> str:
    """The model card, in Markdown."""
    shape = shipped.config
    lines = [
        f"# {settings.name}",
        "",
        f"A student of qdengine: {shape.layers} layers of width {shape.width}, {shape.vocab_size} tokens. It answers a "
        "query with a short summary in the document's own words.",
        "",
        f"Licence: {settings.licence}",
        "",
        "## Data",
        "",
        *(f"- {source}" for source in settings.data),
        "",
        "## Stages",
        "",
        *(f"{i}. {told}" for i, told in enumerate(_told(stages), 1)),
        "",
        "## Scores",
        "",
        *_score_table(report),
        "",
        "## Limits",
        "",
        *(f"- {limit}" for limit in settings.limits),
        "",
    ]
    return "\n".join(lines)


def _told(stages: list[Stage]) -> list[str]:
    before = inherited(stages[0].settings["student"]["init"]) if stages else []
    return before + [_told_stage(stage) for stage in stages]


def _told_stage(stage: Stage) -> str:
    own = stage.settings
    files = ", ".join(Path(path).name for path in own["data"]["train"])
    how = "low-rank adapters" if own["lora"] else "full parameters"
    training, figures = own["training"], stage.figures
    size = (
        f"{training['batch'] * tokens} tokens" if (tokens := training.get("tokens")) else f"{training['batch']} packs"
    )
    told = f"`{stage.command}` of `{Path(own['student']['init']).name}` on {files}: {how}, {figures['step']} steps of "
    told += f"{size}, learning rate {training['learning_rate']}, seed {training['seed']}"
    return told + (f"; validation loss {figures['eval_loss']:.3f}" if "eval_loss" in figures else "")


def _score_table(report: dict[str, Any]) -> list[str]:
    if not report:
        return ["None were measured."]
    lines = ["| rows | precision | " + " | ".join(_METRICS) + " |", "|" + "---|" * (len(_METRICS) + 2)]
    for name, found in report.items():
        for precision, one in found.items():
            means = " | ".join(f"{one['scores'][metric]['mean']:.2f}" for metric in _METRICS if metric in one["scores"])
            lines.append(f"| {name} ({one['rows']}) | {precision} | {means} |")
    return lines


def _restored(settings: config.Export, base: Checkpoint, tuned: Checkpoint, source: str) -> Checkpoint:
    """The student as the small file restores it, in a bundle for the time of its evaluation."""
    bundle = settings.output / _RESTORED
    if not (bundle.is_dir() and (settings.output / DELTA).is_file()):
        shutil.rmtree(bundle, ignore_errors=True)
        delta.write(settings.output / DELTA, base, tuned, settings.layers, source, settings.rank)
        delta.install(settings.output / DELTA, base.path, bundle)
    return checkpoint.load(bundle)


def _scores(settings: config.Export, shipped: Checkpoint, references: Path) -> dict[str, Any]:
    """Precision (that of `auto` here, and int8) to the report of `evaluate`, over the first rows of a file."""
    from .. import Engine

    found = {}
    for precision in ("auto", "int8"):
        predictions = settings.output / f"{references.name.partition('.jsonl')[0]}.{precision}.jsonl"
        with Engine(shipped, precision=precision) as engine:
            found[engine.precision] = score(engine, references, settings.rows, settings.language, predictions)
    return found

"""The stages of a student: fine-tuning, distillation, preferences. Each makes a bundle in its run's folder."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from .. import checkpoint, student
from ..checkpoint import Checkpoint
from ..errors import ConfigError, TrainingError
from ..model.reference import ReferenceModel
from ..prompt import PromptFormat
from . import config, model, rows
from .model import PackModel
from .objectives import Labels, Objective, Preference, Teacher
from .packs import Pack, Packer, digest, pairs_only
from .rows import Row

BUNDLE = "bundle"


def sft(settings: config.Sft) -> Path:
    """Fine-tune on rows. Returns the bundle."""
    return _run(settings, lambda source: Labels(), row_packs)


def distill(settings: config.Distill) -> Path:
    """Train on a teacher's labels, and towards its distribution. Returns the bundle."""
    if settings.teacher is None:
        return _run(settings, lambda source: Labels(), row_packs)
    opened = checkpoint.load(student.resolve(settings.teacher))

    def objective(source: Checkpoint) -> Objective:
        own, theirs = ((one.tokenizer().vocabulary, one.config.vocab_size) for one in (source, opened))
        if own != theirs:
            raise ConfigError(
                f"teacher {settings.teacher!r} has another vocabulary than {settings.student.init!r}: distributions "
                "cannot be compared; leave `teacher` out, and train on its labels alone"
            )
        return Teacher(_frozen(opened, settings), settings.divergence)

    return _run(settings, objective, row_packs, opened)


def dpo(settings: config.Dpo) -> Path:
    """Train on pairs of a better and a worse summary. Returns the bundle."""

    def objective(source: Checkpoint) -> Objective:
        reference = _frozen(source, settings) if settings.lora is None else None
        return Preference(reference, settings.beta, settings.sft_share)

    return _run(settings, objective, _pair_packs)


def _frozen(source: Checkpoint, settings: config.Run) -> PackModel:
    weights = {name: tensor.float() for name, tensor in source.weights().items()}
    frozen = PackModel(ReferenceModel.from_weights(source.config, weights)).requires_grad_(False).eval()
    return frozen.to(model.device(settings.training))


def _run(
    settings: config.Run,
    objective: Callable[[Checkpoint], Objective],
    make_packs: Callable[[config.Data, Packer, Counter[str]], tuple[list[Pack], list[Pack]]],
    teacher: Checkpoint | None = None,
) -> Path:
    source, shape, prompt = model.open_student(settings.student, settings.lora)
    if not source.stop_ids:
        raise ConfigError(f"{source.name} has no stop token to end a summary with; convert it again")
    positions = min(one.max_positions for one in (shape, teacher.config if teacher else shape))
    if settings.data.max_tokens > positions:
        raise ConfigError(f"data.max_tokens is {settings.data.max_tokens}; there are {positions} positions")
    model.device(settings.training)
    folder, bundle = settings.output, settings.output / BUNDLE
    config.check_folder(folder, settings)
    if bundle.is_dir():
        print(f"{bundle} is there already", file=sys.stderr)
        return bundle
    data = settings.data
    skipped: Counter[str] = Counter()
    train, validation = make_packs(data, packer_of(settings, source, prompt, positions), skipped)
    for name, packs, wanted in (("train", train, True), ("validation", validation, data.validation)):
        if wanted and not packs:
            raise TrainingError(f"data.{name} has nothing that can be used: {_counted(skipped)}")
    longest, together = max(map(len, [*train, *validation])), settings.training.tokens
    if together and longest > together:
        raise ConfigError(f"training.tokens is {together}, and a pack has {longest}; give {-(-longest // 128) * 128}")
    _tell(train, skipped)
    goal = objective(source)
    inputs = {"student": source.digest, "train": digest(train), "validation": digest(validation)}
    if teacher is not None:
        inputs["teacher"] = teacher.digest
    with config.claim(folder, settings):
        config.check_inputs(folder, inputs)
        if bundle.is_dir():  # by a run that ended while this one made its packs
            return bundle
        trained = model.make(settings, source, shape)
        from .plot import plot
        from .trainer import METRICS, PackTrainer

        PackTrainer(folder, trained, goal, train, validation, settings.training).resume()
        plot(folder / METRICS, folder / "loss.png")
        origin = f"{source.name}, {type(settings).__name__.lower()}"
        return model.save(bundle, trained, source, shape, prompt, origin)


def packer_of(settings: config.Run, source: Checkpoint, prompt: PromptFormat, positions: int) -> Packer:
    """What makes the packs of a run of the student `source`. positions: most tokens of a prompt and its target."""
    data = settings.data
    return Packer(
        source.tokenizer(), prompt, source.stop_ids[-1], data.max_tokens, positions, data.absent, data.absent_share,
        settings.training.seed,
    )  # fmt: skip


def row_packs(data: config.Data, packer: Packer, skipped: Counter[str]) -> tuple[list[Pack], list[Pack]]:
    groups = rows.by_document(rows.read(data.train, data.rows))
    if data.share_answers:
        groups = rows.share_answers(groups)
    groups = rows.cover(groups, data.queries)[: data.packs]
    checked = rows.cover(rows.by_document(rows.read(data.validation, data.validation_rows)), data.queries)
    return list(packer.packs(groups, skipped)), list(packer.packs(checked, Counter()))


def _pair_packs(data: config.Data, packer: Packer, skipped: Counter[str]) -> tuple[list[Pack], list[Pack]]:
    def made(pairs: list[tuple[Row, Row]], skipped: Counter[str]) -> list[Pack]:
        groups = rows.by_document([row for pair in pairs for row in pair])
        most = 2 * data.queries
        cut = [group[i : i + most] for group in groups for i in range(0, len(group), most)]
        return [pack for found in packer.packs(cut, skipped) if (pack := pairs_only(found, skipped))]

    train, checked = rows.read_pairs(data.train, data.rows), rows.read_pairs(data.validation, data.validation_rows)
    return made(train, skipped)[: data.packs], made(checked, Counter())


def _counted(skipped: Counter[str]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in (+skipped).items()) or "no rows"


def _tell(train: list[Pack], skipped: Counter[str]) -> None:
    branches, tokens = sum(len(pack.branches) for pack in train), sum(map(len, train))
    left_out = f"; left out: {_counted(skipped)}" if +skipped else ""
    print(f"{branches} summaries in {len(train)} packs of {tokens / len(train):.0f} tokens{left_out}", file=sys.stderr)

"""A training run as data: one YAML file, every value of which can be given on the command line instead.

All of it is checked before anything is loaded.
"""

from __future__ import annotations

import difflib
import fcntl
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from ..errors import ConfigError
from ..files import aside

SETTINGS = "run.yaml"
_INPUTS = "inputs.json"
_LOCK = ".lock"
ABSENT = "The document does not say."

Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]


def _is_there(path: Path) -> Path:
    if not path.exists():
        raise ValueError(f"{path} is not there")
    return path


def _ascending(layers: list[int]) -> list[int]:
    if sorted(set(layers)) != layers:
        raise ValueError(f"layers must ascend, not {layers}")
    return layers


Source = Annotated[Path, AfterValidator(_is_there)]
Layers = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1), AfterValidator(_ascending)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Data(Section):
    """train, validation: JSON Lines files of rows (id, query, title, document, summary), or of pairs for DPO.

    rows, validation_rows: how many of them. packs: how many to train on, those with most rows first; None for all.
    queries: most rows of a document in one pack. share_answers: a document also gets the queries of other
    rows whose summary it holds. max_tokens: of a prompt; longer documents are trained on in windows. absent: the
    target where a document holds no answer; absent_share: of the rows with long documents, how many are shown without
    their answer.
    """

    train: list[Source] = Field(min_length=1)
    validation: list[Source] = []
    rows: Count | None = None
    validation_rows: Count = 128
    packs: Count | None = None
    queries: Count = 12
    share_answers: bool = True
    max_tokens: Annotated[int, Field(ge=64)] = 1024
    absent: str = Field(ABSENT, min_length=1)
    absent_share: Share = 0.0


class Shape(Section):
    """A GPT-2 with random weights."""

    layers: Count
    width: Count
    heads: Count

    @model_validator(mode="after")
    def _heads_divide(self) -> Shape:
        if self.width % self.heads:
            raise ValueError(f"width ({self.width}) must be a multiple of heads ({self.heads})")
        return self


class Student(Section):
    """init: a student's name, bundle or Hugging Face folder: weights, tokenizer, prompt and stop tokens.

    layers: which of its layers to keep, in order; None for all. scratch: a new model with the tokenizer of `init`.
    prompt: the order of document and query; None for that of `init`. frozen: what is not trained, as beginnings of
    weight names: "embed", "layers.0.".
    """

    init: str
    layers: Layers | None = None
    scratch: Shape | None = None
    prompt: Literal["document_first", "query_first", "sentences"] | None = None
    frozen: list[str] = []

    @model_validator(mode="after")
    def _one_origin(self) -> Student:
        if self.layers is not None and self.scratch is not None:
            raise ValueError("layers and scratch exclude each other: a new model has no layers to keep")
        return self


class Lora(Section):
    """Low-rank adapters (arXiv 2106.09685) on every linear layer, merged at the end; scale: of their product."""

    rank: Count = 64
    scale: Positive = 1.0
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0


class Training(Section):
    """steps: of the optimizer, or None for `epochs`. tokens: packs go through the model together up to so many tokens,
    by kernels compiled for them where the device is CUDA; None for a pack at a time. batch: how often so in a step.
    warmup: steps to the full learning rate; decay: share of the steps, the last ones, in which it falls to 0.
    precision: of the products; weights are float32. save_every, evaluate_every, log_every: steps.
    """

    steps: Count | None = None
    epochs: Positive = 1.0
    tokens: Annotated[int, Field(ge=128, multiple_of=128)] | None = None
    batch: Count = 4
    learning_rate: Positive = 3e-4
    warmup: Annotated[int, Field(ge=0)] = 20
    decay: Share = 1.0
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    max_grad_norm: Positive = 1.0
    precision: Literal["float32", "bfloat16"] = "float32"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    save_every: Count = 100
    evaluate_every: Count = 100
    log_every: Count = 1

    @model_validator(mode="after")
    def _resumed_runs_log_the_same(self) -> Training:
        if self.save_every % self.log_every:
            raise ValueError(f"save_every ({self.save_every}) must be a multiple of log_every ({self.log_every})")
        return self


class Run(Section):
    """output: the run's folder."""

    output: Path
    data: Data
    student: Student
    lora: Lora | None = None
    training: Training = Training()


class Sft(Run):
    """Supervised fine-tuning: the likelihood of the summaries."""


class Divergence(Section):
    """Of the teacher's distribution p from the student's q: forward KL(p, q), reverse KL(q, p) or JSD, the mean of
    both from their mixture. temperature: divides the logits of both, and its square multiplies the result
    (arXiv 1503.02531). share: its weight; the labels' loss has the rest."""

    kind: Literal["forward_kl", "reverse_kl", "jsd"] = "forward_kl"
    temperature: Positive = 1.0
    share: Share = 0.5


class Distill(Run):
    """The likelihood of a teacher's labels, which are the rows' summaries; with `teacher`, its distribution too."""

    teacher: str | None = None
    divergence: Divergence = Divergence()


class Dpo(Run):
    """Direct preference optimization (arXiv 2305.18290) on pairs. beta: how far from the reference, which is `init`.
    sft_share: weight of the chosen summaries' own loss, which keeps their likelihood up (arXiv 2404.19733)."""

    beta: Positive = 0.1
    sft_share: Annotated[float, Field(ge=0)] = 0.0

    @model_validator(mode="after")
    def _reference_is_init(self) -> Dpo:
        if self.student.layers is not None or self.student.scratch is not None:
            raise ValueError("preferences are relative to student.init: it must be trained as it is")
        return self


class Weights(Section):
    """Of the figures that make a sample's score."""

    rouge: Annotated[float, Field(ge=0)] = 1.0
    verbatim: Annotated[float, Field(ge=0)] = 1.0
    coverage: Annotated[float, Field(ge=0)] = 0.5
    length: Annotated[float, Field(ge=0)] = 0.5

    @model_validator(mode="after")
    def _some(self) -> Weights:
        if not any(self.model_dump().values()):
            raise ValueError("one weight at least must be above 0")
        return self


class Pairs(Section):
    """samples: of `student` for each row. margin: least difference of the scores, in [0, 1], of chosen and rejected."""

    output: Path
    train: list[Source] = Field(min_length=1)
    rows: Count | None = None
    student: str
    precision: str = "auto"
    samples: Annotated[int, Field(ge=2)] = 6
    temperature: Annotated[float, Field(ge=1e-6)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.95
    max_new_tokens: Count = 96
    weights: Weights = Weights()
    margin: Annotated[float, Field(gt=0, le=1)] = 0.1
    language: Literal["en", "zh"] = "en"
    seed: Annotated[int, Field(ge=0)] = 0


class Export(Section):
    """student: the bundle of a run. base: where given, a small file is made as well, of what was changed in it; the
    bundle then has what that file restores. layers: of `base`, those that the student was made of. rank: of what
    the file keeps of each matrix beside its packed rows: a student that was trained on from a packed one by adapters of
    this rank loses little then.

    evaluate: files of rows for the scores, in `auto` and in int8. name, data, licence, limits:
    for the model card; data names each source with its licence.
    """

    output: Path
    student: str
    base: str | None = None
    layers: Layers | None = None
    rank: Annotated[int, Field(ge=0)] = 0
    precision: Literal["bfloat16", "int8"] = "bfloat16"
    evaluate: list[Source] = []
    rows: Count | None = None
    language: Literal["en", "zh"] = "en"
    name: str
    data: list[str] = Field(min_length=1)
    licence: str
    limits: list[str] = []

    @model_validator(mode="after")
    def _of_the_small_file(self) -> Export:
        if self.base is None and (self.layers is not None or self.rank):
            raise ValueError("layers and rank are of the small file, which is made with a base: give base")
        return self

    @field_validator("evaluate")
    @classmethod
    def _names_differ(cls, paths: list[Path]) -> list[Path]:
        names = [path.name.partition(".jsonl")[0] for path in paths]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"two files are named {twice}, which is what their scores are kept under")
        return paths


Model = TypeVar("Model", bound=BaseModel)


def load(kind: type[Model], path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> Model:
    """The settings in the YAML file `path`, with `overrides` such as "training.steps=10", values as in YAML. Raises
    `ConfigError` that names the setting at fault."""
    try:
        data = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(data, dict):
        raise ConfigError(f"{path} holds no settings, but {type(data).__name__}")
    for override in overrides:
        _override(data, override)
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "settings"
        more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
        raise ConfigError(f"{path}: {where}: {first['msg']}{_given(first)}{more}") from None


def _given(error: Any) -> str:
    return "" if error["type"] in ("missing", "value_error") else f", not {str(error['input'])[:80]!r}"


def _override(data: dict[str, Any], override: str) -> None:
    name, equals, value = override.partition("=")
    *sections, last = name.split(".")
    if not equals or not last:
        raise ConfigError(f"{override!r}: give NAME=VALUE, with a dot between section and setting")
    for section in sections:
        data = data.setdefault(section, {})
        if not isinstance(data, dict):
            raise ConfigError(f"{override!r}: {section} is no section")
    try:
        data[last] = yaml.safe_load(value)
    except yaml.YAMLError:
        raise ConfigError(f"{override!r}: the value is not YAML") from None


def dump(settings: BaseModel, without: Mapping[str, Any] | None = None) -> str:
    """As YAML; `without` as pydantic's `exclude`."""
    return yaml.safe_dump(settings.model_dump(mode="json", exclude=without), sort_keys=False)  # type: ignore[arg-type]


def check_folder(folder: Path, settings: BaseModel, without: Mapping[str, Any] | None = None) -> None:
    """Raise `ConfigError` where a run's folder is another run's, no run's, or cannot be one; settings in `without` may
    be others."""
    check_output(folder / SETTINGS)
    noted = folder / SETTINGS
    if noted.exists():
        old, new = _text(noted), _header(settings) + dump(settings, without)
        if changed := [line[2:] for line in difflib.ndiff(old.splitlines(), new.splitlines()) if line[0] in "+-"]:
            raise ConfigError(
                f"{noted} has other settings ({changed[0].strip()}); give the run's own to go on with it, or another "
                "output"
            )
    elif folder.exists() and any(path.name not in (_LOCK, f".{SETTINGS}") for path in folder.iterdir()):
        raise ConfigError(f"{folder} is not empty, and no run's folder; choose another output")


def check_output(path: Path) -> None:
    """Raise `ConfigError` where a file stands in the place of a folder that `path` is to lie in."""
    if wrong := next((folder for folder in path.parents if folder.exists() and not folder.is_dir()), None):
        raise ConfigError(f"output: {wrong} is a file, not a folder; choose another output")


@contextmanager
def claim(folder: Path, settings: BaseModel, without: Mapping[str, Any] | None = None) -> Iterator[None]:
    """Note the settings in the run's folder, or find them there, and keep other runs out of it in the block. Raises as
    `check_folder` does, and where another run is at work there."""
    check_folder(folder, settings, without)
    folder.mkdir(parents=True, exist_ok=True)
    with alone(folder / _LOCK, folder):
        check_folder(folder, settings, without)  # what another run noted until it let go of the lock
        with aside(folder / SETTINGS) as part:
            part.write_text(_header(settings) + dump(settings, without), encoding="utf-8")
        yield


@contextmanager
def alone(lock: Path, output: Path) -> Iterator[None]:
    """Keep other runs out of the block. Raises `ConfigError` where one is in it."""
    with lock.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"another run is at work in {output}; wait for its end") from None
        yield


def check_inputs(folder: Path, digests: dict[str, str]) -> None:
    """Note what a run is made of, or compare with what it began with. Raises `ConfigError` that names what changed."""
    noted = folder / _INPUTS
    try:
        old = dict(json.loads(_text(noted))) if noted.exists() else {}
    except (TypeError, ValueError):
        raise ConfigError(f"{noted} is damaged; choose another output") from None
    if changed := [name for name, digest in digests.items() if old.get(name, digest) != digest]:
        raise ConfigError(
            f"the {changed[0]} of {folder} changed since the run began, and it would not be one run; choose another "
            "output"
        )
    if digests.keys() - old.keys():
        with aside(noted) as part:
            part.write_text(json.dumps(old | digests, indent=2) + "\n", encoding="utf-8")


def _text(noted: Path) -> str:
    try:
        return noted.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ConfigError(f"{noted} is damaged; choose another output") from None


def _header(settings: BaseModel) -> str:
    return f"# qdengine train {type(settings).__name__.lower()}\n"

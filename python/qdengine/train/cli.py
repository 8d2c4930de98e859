"""`qdengine train`: each stage is one command with one YAML file."""

from __future__ import annotations

import importlib
import importlib.util

import click

from ..errors import ConfigError

_NEEDED = ("accelerate", "aiolimiter", "matplotlib", "openai", "peft", "pydantic", "transformers", "yaml")


@click.group()
def train() -> None:
    """Make students: label, sft, pairs, dpo, distill, export."""
    if missing := [name for name in _NEEDED if importlib.util.find_spec(name) is None]:
        raise ConfigError(f"training needs the packages {', '.join(missing)}: pip install 'qdengine[train]'")


def _stage(name: str, function: str, kind: str, help: str) -> None:
    """A command that calls `function` with settings of this `kind`; both are names in modules of this package."""

    @train.command(name, help=help)
    @click.argument("settings", type=click.Path(exists=True, dir_okay=False))
    @click.argument("overrides", nargs=-1, metavar="[NAME=VALUE]...")
    def command(settings: str, overrides: tuple[str, ...]) -> None:
        from . import config

        click.echo(_named(function)(config.load(_named(kind), settings, overrides)))


def _named(name: str) -> type:
    module, _, attribute = name.partition(".")
    return getattr(importlib.import_module(f"{__package__}.{module}"), attribute)


_stage(
    "label", "label.make_labels", "label_config.Label",
    "Ask a teacher about rows, and keep its good answers as labels; prints their folder.",
)  # fmt: skip
_stage("sft", "stages.sft", "config.Sft", "Fine-tune a student on rows; prints the bundle that it makes.")
_stage(
    "pairs",
    "pairs.make_pairs",
    "config.Pairs",
    "Sample a student, and write pairs of its better and worse summaries.",
)
_stage("dpo", "stages.dpo", "config.Dpo", "Train a student on pairs of a better and a worse summary.")
_stage(
    "distill", "stages.distill", "config.Distill",
    "Train a student on a teacher's labels and, with `teacher`, towards its distribution.",
)  # fmt: skip
_stage(
    "export", "export.export", "config.Export",
    "Write a student's bundle with its scores and model card, and what was changed in its base as a small file.",
)  # fmt: skip

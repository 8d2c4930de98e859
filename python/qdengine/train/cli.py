"""`qdengine train`: each stage is one command with one YAML file."""

from __future__ import annotations

import importlib.util
from typing import Any

import click

from ..errors import ConfigError

_NEEDED = ("accelerate", "aiolimiter", "matplotlib", "openai", "peft", "pydantic", "transformers", "yaml")


@click.group()
def train() -> None:
    """Make students: label, sft, pairs, dpo, distill, export."""
    if missing := [name for name in _NEEDED if importlib.util.find_spec(name) is None]:
        raise ConfigError(f"training needs the packages {', '.join(missing)}: pip install 'qdengine[train]'")


def _stage(name: str, kind: str, help: str) -> None:
    @train.command(name, help=help)
    @click.argument("settings", type=click.Path(exists=True, dir_okay=False))
    @click.argument("overrides", nargs=-1, metavar="[NAME=VALUE]...")
    def command(settings: str, overrides: tuple[str, ...]) -> Any:
        from . import config, stages

        click.echo(getattr(stages, name)(config.load(getattr(config, kind), settings, overrides)))


@train.command()
@click.argument("settings", type=click.Path(exists=True, dir_okay=False))
@click.argument("overrides", nargs=-1, metavar="[NAME=VALUE]...")
def label(settings: str, overrides: tuple[str, ...]) -> None:
    """Ask a teacher about rows, and keep its good answers as labels; prints their folder."""
    from . import config
    from .label import make_labels

    click.echo(make_labels(config.load(config.Label, settings, overrides)))


@train.command()
@click.argument("settings", type=click.Path(exists=True, dir_okay=False))
@click.argument("overrides", nargs=-1, metavar="[NAME=VALUE]...")
def pairs(settings: str, overrides: tuple[str, ...]) -> None:
    """Sample the student, and write pairs of its better and worse summaries."""
    from . import config
    from .pairs import make_pairs

    click.echo(make_pairs(config.load(config.Pairs, settings, overrides)))


_stage("sft", "Sft", "Fine-tune a student on rows, by the run in SETTINGS (YAML); prints the bundle that it makes.")
_stage("distill", "Distill", "Train a student on a teacher's labels and, with `teacher`, towards its distribution.")
_stage("dpo", "Dpo", "Train a student on pairs of a better and a worse summary.")


@train.command("export")
@click.argument("settings", type=click.Path(exists=True, dir_okay=False))
@click.argument("overrides", nargs=-1, metavar="[NAME=VALUE]...")
def export(settings: str, overrides: tuple[str, ...]) -> None:
    """Write a student's bundle with its scores and model card, and what was changed in its base as a small file."""
    from . import config
    from .export import export as run

    click.echo(run(config.load(config.Export, settings, overrides)))

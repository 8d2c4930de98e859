"""The one file that gpu_suite.sh writes: facts about the machine, and under "steps" how each ended, with its JSON.

python benchmarks/gpu_json.py add gpu.json NAME EXIT SECONDS LOG [RESULT]     # what the suite does after each step
python benchmarks/gpu_json.py merge gpu.json first/gpu.json second/gpu.json   # steps of several runs, the last wins
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click


def read(path: str | Path) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
    return data


def merged(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """Raises `ValueError` for parts of different GPUs."""
    total: dict[str, Any] = {"steps": {}}
    for part in parts:
        if total.get("gpu", part.get("gpu")) != part.get("gpu"):
            raise ValueError(f"a run on {part.get('gpu')} cannot be merged with one on {total['gpu']}")
        total = {**total, **part, "steps": total["steps"] | part["steps"]}
    return total


def save(path: str, data: dict[str, Any]) -> None:
    Path(path).write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")


@click.group()
def main() -> None:
    """Add to gpu.json, and merge several of them."""


@main.command()
@click.argument("path", type=click.Path(dir_okay=False))
@click.argument("name")
@click.argument("exit_code", type=int)
@click.argument("seconds", type=int)
@click.argument("log", type=click.Path(exists=True, dir_okay=False))
@click.argument("result", required=False, type=click.Path(dir_okay=False))
def add(path: str, name: str, exit_code: int, seconds: int, log: str, result: str | None) -> None:
    """Note how a step ended, with the last line of its LOG and the JSON that it wrote, if it did. The result of the
    step "facts" is what is known about the machine."""
    data = read(path) if Path(path).exists() else {"steps": {}}
    lines = Path(log).read_text(encoding="utf-8", errors="replace").strip().splitlines()
    entry: dict[str, Any] = {"exit": exit_code, "seconds": seconds, "last_line": lines[-1][:300] if lines else ""}
    found = read(result) if result and Path(result).exists() else None
    if name == "facts" and found is not None:
        data |= found
    elif found is not None:
        entry["result"] = found
    data["steps"][name] = entry
    save(path, data)


@main.command("merge")
@click.argument("path", type=click.Path(dir_okay=False))
@click.argument("parts", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False))
def merge_files(path: str, parts: tuple[str, ...]) -> None:
    """Write PARTS as one file to PATH."""
    try:
        save(path, merged([read(part) for part in parts]))
    except ValueError as error:
        raise click.ClickException(str(error)) from None


if __name__ == "__main__":
    main()

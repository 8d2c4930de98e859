"""Measure qdengine and every other engine that is installed.

The bundle's weights are exported once and converted once for each engine that needs it, by that engine's own
interpreter. A section starts the engines that it measures, each in a process of its own, and ends them. An engine whose
library is missing is `not_installed`; one that fails has an `error`, and is measured no further.
"""

from __future__ import annotations

import os
import platform
import shutil
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

import click
import torch
from common import facts, write
from qdengine import checkpoint, student
from qdengine.config import DEFAULT_STUDENT, PRECISIONS
from qdengine.engine.device import chosen_precision
from qdengine.export import export
from tqdm import tqdm

from peers.link import LinkError
from peers.peer import Peer, Setup, started
from peers.report import markdown, ratios
from peers.sections import LENGTHS, Section
from peers.table import CONVERTED_HERE, INSTALL, SECTIONS, Spec, specs
from peers.workload import Workload


def exported(bundle: Path, models: Path) -> Path:
    """The bundle's folder in `models`, with its Hugging Face folder `hf`."""
    folder = models / checkpoint.load(bundle).digest[:12]
    if not (folder / "hf").exists():
        shutil.rmtree(folder / "hf.part", ignore_errors=True)
        export(bundle, folder / "hf.part").rename(folder / "hf")
    return folder


def prepare(chosen: list[Spec], setup: Setup, bundle: Path, folder: Path) -> tuple[list[Peer], dict[str, Any]]:
    """The engines that are installed, with their weights; and what is said of all of them."""
    peers, engines = [], {}
    versions: dict[str, dict[str, Any]] = {}
    for spec in tqdm(chosen, desc="prepare", unit="engine", disable=None):
        if spec.adapter not in versions:
            versions[spec.adapter] = installed(spec, setup)
        facts = versions[spec.adapter].copy()
        model = bundle if spec.ours else folder / (f"{spec.adapter}-{spec.weights}" if spec.weights else "hf")
        peer = Peer(spec, model, setup, facts)
        engines[spec.name] = facts
        if "versions" not in facts:
            continue
        if spec.weights and not model.exists():
            peer.error = converted(spec, setup, folder / "hf", model)
        peers.append(peer)
    return peers, engines


def installed(spec: Spec, setup: Setup) -> dict[str, Any]:
    """Versions, or what would install it."""
    link = setup.link(spec.adapter)
    arguments = {"server": spec.options["server"]} if "server" in spec.options else {}
    try:
        return link.call("versions", setup.limit, **arguments)
    except LinkError as error:
        if spec.ours:
            raise click.ClickException(f"qdengine: {error}") from None
        return {"not_installed": INSTALL[spec.adapter]} if error.missing else {"error": str(error)}
    finally:
        link.close()


def converted(spec: Spec, setup: Setup, source: Path, destination: Path) -> str | None:
    """None, or why the weights could not be converted."""
    link = setup.link(spec.adapter, sys.executable if spec.adapter in CONVERTED_HERE else None)
    paths = {"source": str(source), "destination": str(destination)}
    try:
        link.call("convert", setup.limit, kind=str(spec.weights), **paths)
    except LinkError as error:
        return f"conversion: {error}"
    finally:
        link.close()
    return None


def measure(
    result: dict[str, Any], peers: list[Peer], work: Workload, sections: tuple[str, ...], size: int,
    lengths: tuple[int, ...], out: str | None,
) -> None:  # fmt: skip
    """Every section in turn into `result`, which is written after each."""
    for name in (section for section in SECTIONS if section in sections):
        with started([peer for peer in peers if name in peer.spec.sections], work, size) as ready:
            section = Section(ready, work, size)
            result[name] = section.lengths(lengths) if name == "lengths" else getattr(section, name)()
        for peer in peers:
            if peer.error is not None:
                peer.facts["error"] = peer.error
        result["ratios"] = ratios(result)
        write(result, out)


def usual_dtype(device: str, precision: str) -> str:
    """In which the others compute: ours, where it is no 8-bit one, else what ours would choose."""
    if precision in ("float32", "bfloat16"):
        return precision
    return chosen_precision("auto", torch.device(device))


def interpreters(given: tuple[str, ...]) -> dict[str, str]:
    pythons = dict(one.partition("=")[::2] for one in given)
    for adapter, python in pythons.items():
        if adapter not in INSTALL or not shutil.which(python):
            raise click.UsageError(f"--python {adapter}={python}: give an interpreter to one of {', '.join(INSTALL)}")
    return pythons


def select(
    known: list[Spec], names: tuple[str, ...], without: tuple[str, ...], sections: tuple[str, ...]
) -> list[Spec]:  # fmt: skip
    """`qdengine`, and those that are named, or all, but `without`; as far as a section measures them."""
    unknown = {*names, *without} - {spec.name for spec in known}
    if unknown:
        raise click.UsageError(f"{min(unknown)} is no engine; there are {', '.join(spec.name for spec in known)}")
    chosen = {"qdengine"} | set(names or (spec.name for spec in known)) - set(without)
    wanted = [spec for spec in known if spec.name in chosen]
    return [spec for spec in wanted if set(spec.sections) & set(sections)]


@click.command(help=__doc__)
@click.option("--data", required=True, type=click.Path(exists=True, dir_okay=False))
@click.option("--model", default=DEFAULT_STUDENT, show_default=True)
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option("--peer", "names", multiple=True, help="Beside qdengine. [default: all of the device]")
@click.option("--without", multiple=True, help="Of these.")
@click.option("--python", "pythons", multiple=True, metavar="ADAPTER=PATH", help="The interpreter that has an engine.")
@click.option("--llama-server", default=shutil.which("llama-server"), help="[default: on PATH]")
@click.option("--models", type=click.Path(file_okay=False, path_type=Path), help="Keeps converted weights.")
@click.option("--section", "sections", type=click.Choice(SECTIONS), multiple=True, default=SECTIONS, show_default=True)
@click.option("--rows", type=click.IntRange(1), default=128, show_default=True)
@click.option("--latency-rows", type=click.IntRange(1), default=32, show_default=True)
@click.option("--slice", "size", type=click.IntRange(1), default=64, show_default=True, help="Rows given at once.")
@click.option("--tokens", type=click.IntRange(1), multiple=True, default=LENGTHS, show_default=True, help="Of lengths.")
@click.option("--precision", "precisions", type=click.Choice(PRECISIONS), multiple=True, default=["auto"])
@click.option("--max-new-tokens", type=click.IntRange(1), default=96, show_default=True)
@click.option("--engine", "others", multiple=True, metavar="NAME=VALUE", help="A field of qdengine's EngineConfig.")
@click.option("--threads", type=click.IntRange(1), help="[default: the cores that are usable]")
@click.option("--limit", default=1800.0, show_default=True, help="Seconds of one call of an engine.")
@click.option("--json", "out", type=click.Path(dir_okay=False), help="Written anew after every section.")
def main(
    data: str, model: str, device: str, names: tuple[str, ...], without: tuple[str, ...], pythons: tuple[str, ...],
    llama_server: str | None, models: Path | None, sections: tuple[str, ...], rows: int, latency_rows: int, size: int,
    tokens: tuple[int, ...], precisions: tuple[str, ...], max_new_tokens: int, others: tuple[str, ...],
    threads: int | None, limit: float, out: str | None,
) -> None:  # fmt: skip
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the engines are ended
    threads = threads or len(os.sched_getaffinity(0))
    bundle = student.resolve(model)
    work = Workload(bundle, data, rows, latency_rows, max_new_tokens)
    setup = Setup(interpreters(pythons), device, usual_dtype(device, precisions[0]), threads, limit)
    # As much memory for keys and values as the others have, unless another size is given.
    known = specs(device, precisions, (f"kv_bytes={4 << 30}", *others), llama_server)
    result: dict[str, Any] = facts() | {
        "data": Path(data).name, "model": model, "device": device, "rows": len(work.rows),
        "latency_rows": len(work.latency_rows), "slice": size, "max_new_tokens": max_new_tokens,
        "engine": list(others), "threads": threads, "platform": platform.platform(),
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as temporary:
        folder = exported(bundle, models or Path(temporary))
        peers, result["engines"] = prepare(select(known, names, without, sections), setup, bundle, folder)
        measure(result, peers, work, sections, size, tokens, out)
    print(markdown(result))

"""A tuned student as what it changed in another one: a few bits for each weight, so that it travels with the package.

Each row of a matrix is stored as -1, 0 and 1 with one scale, the nearest such row by least squares; five of them fit in
a byte (1.6 bits a weight). What that misses is stored as a product of two thin matrices, its best approximation of a
low rank. Other tensors are stored as they are. What is restored is the same on every machine, to the bit, and its
digest is checked.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from . import checkpoint
from .checkpoint import Checkpoint
from .config import ModelConfig
from .errors import CheckpointError
from .files import aside
from .prompt import PromptFormat

FORMAT = "1"
_SCALES, _LEFT, _RIGHT = ".scales", ".left", ".right"
_POWERS = (1, 3, 9, 27, 81)

Weights = dict[str, Tensor]


def make(base: Weights, tuned: Weights, rank: int = 0) -> Weights:
    """What `apply` needs beside `base`. Matrices that are equal in both are left out. rank: of the product that stands
    for what the packed rows of a matrix miss; 0 for none."""
    found: Weights = {}
    for name, weight in tuned.items():
        if weight.ndim < 2:
            found[name] = weight.clone()
        elif not torch.equal(weight, base[name]):
            change = weight.float() - base[name].float()
            signs, scales = ternary(change)
            found[name], found[name + _SCALES] = _pack(signs), scales
            if rank:
                missed = change - signs * scales.unsqueeze(1)
                found[name + _LEFT], found[name + _RIGHT] = low_rank(missed, rank)
    return found


def apply(base: Weights, delta: Weights) -> Weights:
    """`base`, bfloat16, with the changes of `delta`."""
    tuned = dict(base)
    for name, change in delta.items():
        if name not in base:
            continue  # belongs to a matrix
        scales, left = delta.get(name + _SCALES), delta.get(name + _LEFT)
        if scales is None:
            tuned[name] = change
            continue
        step = _unpack(change, base[name].shape).float() * scales.unsqueeze(1)
        if left is not None:
            # The products are exact in float64, and sums in any order agree far below what float32 keeps.
            step += (left.double() @ delta[name + _RIGHT].double()).float()
        tuned[name] = (base[name].float() + step).to(base[name].dtype)
    return tuned


def low_rank(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """left [N, rank] and right [rank, K], bfloat16, whose product is nearest to `matrix` [N, K] by least squares
    (Eckart and Young, 1936), but for their rounding."""
    left, sizes, right = torch.linalg.svd(matrix.double(), full_matrices=False)
    roots = sizes[:rank].sqrt()
    return (left[:, :rank] * roots).bfloat16(), (roots.unsqueeze(1) * right[:rank]).bfloat16()


def ternary(rows: Tensor) -> tuple[Tensor, Tensor]:
    """signs int8 [N, K] in {-1, 0, 1} and scales float32 [N] that make sum((rows - scales * signs)^2) least.

    With the k largest of a row kept, the best scale is their mean, and the error sum(row^2) - (sum of the k)^2 / k.
    """
    sizes, order = rows.abs().sort(1, descending=True)
    sums = sizes.double().cumsum(1)
    count = torch.arange(1, rows.shape[1] + 1, dtype=torch.float64)
    kept = (sums.square() / count).argmax(1, keepdim=True)
    scales = (sums.gather(1, kept) / (kept + 1)).squeeze(1).float()
    chosen = torch.zeros_like(rows, dtype=torch.bool).scatter(1, order, torch.arange(rows.shape[1]) <= kept)
    return (rows.sign() * chosen).to(torch.int8), scales


def digest(weights: Weights) -> str:
    """Hex SHA-256 of names, types, shapes and numbers."""
    found = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        found.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        found.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def write(
    path: Path, base: Checkpoint, tuned: Checkpoint, layers: list[int] | None, source: str, rank: int = 0
) -> None:
    """Write the file that `install` reads, without a card. layers: of `base`, those that `tuned` was made of; None for
    all. source: of the bundle that it will make. rank: as for `make`.
    """
    weights = _selected(base, layers)
    changes = make(weights, tuned.weights(), rank)
    facts = {
        "architecture": asdict(tuned.config),
        "prompt": tuned.prompt.to_dict(),
        "stop_ids": tuned.stop_ids,
        "layers": layers,
        "source": source,
        "card": "",
    }
    about = {
        "format": FORMAT,
        "base": digest(weights),
        "tuned": digest(apply(weights, changes)),
        "facts": json.dumps(facts),
    }
    _save(path, about, changes)


def set_card(path: Path, card: str) -> None:
    """Give a file that `write` wrote the card of the bundle that it will make."""
    about, changes = _read(path)
    _save(path, about | {"facts": json.dumps(json.loads(about["facts"]) | {"card": card})}, changes)


def _save(path: Path, about: dict[str, str], changes: Weights) -> None:
    with aside(path) as part:
        save_file({name: tensor.contiguous() for name, tensor in changes.items()}, part, about)
        part.chmod(0o644)  # safetensors makes it readable for its owner alone


def _selected(base: Checkpoint, layers: list[int] | None) -> Weights:
    weights = base.weights()
    return weights if layers is None else checkpoint.select_layers(weights, layers)


def install(path: str | os.PathLike[str], base: str | os.PathLike[str], destination: str | os.PathLike[str]) -> Path:
    """Make the bundle of a file that `write` wrote, of the bundle `base`. Raises `CheckpointError` where the file is
    damaged or made for another base."""
    about, changes = _read(Path(path))
    source, facts = checkpoint.load(base), json.loads(about["facts"])
    weights = _selected(source, facts["layers"])
    if digest(weights) != about["base"]:
        raise CheckpointError(f"{path} changes other weights than those of {source.path}; install that one again")
    tuned = apply(weights, changes)
    if digest(tuned) != about["tuned"]:
        raise CheckpointError(f"{path} is damaged: the weights that it makes are not those that it was made of")
    config, prompt = ModelConfig.from_dict(facts["architecture"]), PromptFormat.from_dict(facts["prompt"])
    text, stops, card = source.tokenizer_json(), tuple(facts["stop_ids"]), facts["card"]
    return checkpoint.save_bundle(destination, config, tuned, text, prompt, stops, facts["source"], card)


def _read(path: Path) -> tuple[dict[str, str], Weights]:
    try:
        with safe_open(path, "pt") as file:
            about = file.metadata() or {}
            changes = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from None
    if about.get("format") != FORMAT:
        raise CheckpointError(f"{path}: format {about.get('format')!r}; this version reads format {FORMAT!r}")
    return about, changes


def _pack(signs: Tensor) -> Tensor:
    """uint8 [ceil(n / 5)] of int8 in {-1, 0, 1}, in base 3."""
    flat = (signs.flatten() + 1).to(torch.int16)
    padded = torch.nn.functional.pad(flat, (0, -len(flat) % 5)).view(-1, 5)
    return (padded * torch.tensor(_POWERS, dtype=torch.int16)).sum(1).to(torch.uint8)


def _unpack(packed: Tensor, shape: torch.Size) -> Tensor:
    digits = torch.arange(3**5, dtype=torch.int16).unsqueeze(1) // torch.tensor(_POWERS, dtype=torch.int16) % 3 - 1
    return digits.to(torch.int8)[packed.long()].flatten()[: shape.numel()].view(shape)

"""The inputs of a step, in memory that lives as long as the engine: one piece on the host, and one on the device."""

from __future__ import annotations

import torch
from torch import Tensor

from ..model.decoder import StepInputs


class StepBuffers:
    """Views of one int32 buffer, so that a step's inputs travel to a GPU in one copy. On a CPU both pieces are one.

    ids, positions, slots, rows: [T]; kv_lens, drafted: [S]; q_indptr, row_indptr: [S + 1]; block_tables: [S, B].
    All on the host: `pack_step` fills them.
    """

    ids: Tensor
    positions: Tensor
    slots: Tensor
    rows: Tensor
    kv_lens: Tensor
    q_indptr: Tensor
    row_indptr: Tensor
    drafted: Tensor
    block_tables: Tensor

    def __init__(self, tokens: int, sequences: int, blocks: int, device: torch.device) -> None:
        host_only = {"row_indptr": (sequences + 1,), "drafted": (sequences,)}
        shapes = {
            "ids": (tokens,), "positions": (tokens,), "slots": (tokens,), "rows": (tokens,), "kv_lens": (sequences,),
            "q_indptr": (sequences + 1,), "block_tables": (sequences, blocks),
        }  # fmt: skip
        size = sum(torch.Size(shape).numel() for shape in shapes.values())
        self._host = torch.zeros(size, dtype=torch.int32, pin_memory=device.type == "cuda")
        self._device = self._host if device.type == "cpu" else torch.zeros_like(self._host, device=device)
        self._views = _views(self._device, shapes)
        for name, view in _views(self._host, shapes).items():
            setattr(self, name, view)
        for name, shape in host_only.items():
            setattr(self, name, torch.zeros(shape, dtype=torch.int32))

    def send(self) -> None:
        """Copy what the host has laid out to the device."""
        if self._device is not self._host:
            self._device.copy_(self._host, non_blocking=True)

    def inputs(self, tokens: int, rows: int) -> StepInputs:
        """Views on the device: of the first `tokens` tokens and `rows` rows."""
        views = self._views
        return StepInputs(
            ids=views["ids"][:tokens],
            positions=views["positions"][:tokens],
            slots=views["slots"][:tokens],
            block_tables=views["block_tables"],
            kv_lens=views["kv_lens"],
            q_indptr=views["q_indptr"],
            rows=views["rows"][:rows],
        )


def _views(buffer: Tensor, shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    parts = buffer.split([torch.Size(shape).numel() for shape in shapes.values()])
    return {name: part.view(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}

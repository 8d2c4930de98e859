"""Arrays that host and device share, and what the host sends: each travels in one copy, and nobody waits for it."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

Shapes = dict[str, tuple[int, ...]]


class Mirror:
    """Named int32 arrays on a device, and `copies` of them on the host, pinned where the device is a GPU.

    A copy is filled or read while another one is on its way.
    """

    def __init__(self, shapes: Shapes, device: torch.device, copies: int) -> None:
        sizes = [torch.Size(shape).numel() for shape in shapes.values()]
        pinned = device.type == "cuda"
        self._device = torch.zeros(sum(sizes), dtype=torch.int32, device=device)
        self._host = [torch.zeros(sum(sizes), dtype=torch.int32, pin_memory=pinned) for _ in range(copies)]
        self.device: dict[str, Tensor] = _views(self._device, shapes, sizes)
        self.host: list[dict[str, np.ndarray]] = [
            {name: view.numpy() for name, view in _views(piece, shapes, sizes).items()} for piece in self._host
        ]

    def send(self, copy: int) -> None:
        """Queue the way from host copy number `copy` to the device."""
        self._device.copy_(self._host[copy], non_blocking=True)

    def fetch(self, copy: int) -> None:
        """Queue the way from the device to host copy number `copy`."""
        self._host[copy].copy_(self._device, non_blocking=True)


class Staging:
    """Memory in which the host lays out int32 numbers of any count for the device, pinned where that is a GPU."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._size = 0
        self._turn = 0
        self._pieces = [torch.zeros(0, dtype=torch.int32)] * 2
        self._sent: list[torch.cuda.Event | None] = [None, None]

    def begin(self, size: int) -> np.ndarray:
        """`size` numbers to fill, that no earlier copy still reads."""
        self._turn, self._size = 1 - self._turn, size
        sent = self._sent[self._turn]
        if sent is not None:
            sent.synchronize()
        if len(self._pieces[self._turn]) < size:
            room = 1 << (size - 1).bit_length()
            self._pieces[self._turn] = torch.zeros(room, dtype=torch.int32, pin_memory=self._device.type == "cuda")
        return self._pieces[self._turn][:size].numpy()

    def send(self) -> Tensor:
        """Queue the way to the device; the numbers there."""
        moved = self._pieces[self._turn][: self._size].to(self._device, non_blocking=True)
        if self._device.type == "cuda":
            self._sent[self._turn] = event = torch.cuda.Event()
            event.record()
        return moved


def _views(piece: Tensor, shapes: Shapes, sizes: list[int]) -> dict[str, Tensor]:
    parts = piece.split(sizes)
    return {name: part.view(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}

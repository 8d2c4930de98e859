"""Arrays that host and device share: one piece of memory on either side, so that all of them travel in one copy."""

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


def _views(piece: Tensor, shapes: Shapes, sizes: list[int]) -> dict[str, Tensor]:
    parts = piece.split(sizes)
    return {name: part.view(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}

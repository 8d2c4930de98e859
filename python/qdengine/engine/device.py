"""What an engine runs on, and in which precision."""

from __future__ import annotations

import torch

from ..config import PRECISIONS
from ..errors import BackendError, ConfigError


def chosen_device(name: str) -> torch.device:
    """ "auto" is a GPU where there is one. Raises `ConfigError` or `BackendError`."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError):
        raise ConfigError(f"device {name!r}; expected 'auto', 'cpu' or 'cuda[:n]'") from None
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"device {name!r}; expected 'auto', 'cpu' or 'cuda[:n]'")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise BackendError("torch sees no CUDA device; install a CUDA build of torch and a driver, or use device='cpu'")
    return device


def chosen_precision(name: str, device: torch.device) -> str:
    """ "auto" is bfloat16 where `device` multiplies it fast. Raises `ConfigError`."""
    if name not in PRECISIONS:
        raise ConfigError(f"precision {name!r}; expected {', '.join(PRECISIONS)}")
    if name != "auto":
        return name
    # A CPU without bfloat16 products (avx512_bf16; every CPU with AMX has them) is faster in float32.
    fast = device.type == "cuda" or torch.cpu._is_avx512_bf16_supported()
    return "bfloat16" if fast else "float32"


def free_memory(device: torch.device) -> int | None:
    """Bytes of a GPU, with those that torch only keeps for later; None for a CPU."""
    if device.type != "cuda":
        return None
    torch.cuda.empty_cache()
    return torch.cuda.mem_get_info(device)[0]

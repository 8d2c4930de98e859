"""Rotary position tables (arXiv 2104.09864), with Llama 3's frequency scaling (arXiv 2407.21783)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..config import ModelConfig


def rope_tables(config: ModelConfig, length: int) -> tuple[Tensor, Tensor]:
    """cos and sin, float32 [length, D/2], of position * theta^(-2i/D)."""
    # In float32, as the checkpoints were trained: float64 frequencies differ in the last bits at far positions.
    exponent = torch.arange(0, config.head_width, 2, dtype=torch.int64).float() / config.head_width
    frequency = 1.0 / (config.rope_theta**exponent)
    if config.rope_scaling is not None:
        frequency = _scaled(frequency, config)
    angle = torch.arange(length).float().unsqueeze(1) * frequency
    return angle.cos(), angle.sin()


def _scaled(frequency: Tensor, config: ModelConfig) -> Tensor:
    """Long wavelengths are divided by `factor`, short ones kept, those between blended."""
    scaling = config.rope_scaling
    assert scaling is not None
    turns = scaling.original_max_positions * frequency / (2 * math.pi)
    blend = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    blend = blend.clamp(0.0, 1.0)
    return (1 - blend) * frequency / scaling.factor + blend * frequency

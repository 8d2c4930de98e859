"""The ops of `qdengine.ops.reference` as Triton kernels and their launchers, which check nothing: `qdengine.ops.triton`
does. Imports torch and triton only."""

from .activation import dequantize, gelu, quantize, silu_mul
from .argmax import greedy_argmax
from .draft import ngram_propose, verify_draft
from .linear import argmax_tiles, linear, linear_argmax
from .norm import MAX_WIDTH, add_layer_norm, add_rms_norm, layer_norm, rms_norm
from .paged_attention import paged_attention
from .rope_append import rope_append
from .span import allowed_argmax
from .step import admit_rows, commit_step, pack_step

__all__ = [
    "MAX_WIDTH",
    "add_layer_norm",
    "add_rms_norm",
    "admit_rows",
    "allowed_argmax",
    "argmax_tiles",
    "commit_step",
    "dequantize",
    "gelu",
    "greedy_argmax",
    "layer_norm",
    "linear",
    "linear_argmax",
    "ngram_propose",
    "pack_step",
    "paged_attention",
    "quantize",
    "rms_norm",
    "rope_append",
    "silu_mul",
    "verify_draft",
]

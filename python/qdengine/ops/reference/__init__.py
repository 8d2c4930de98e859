"""The contract of every op, in plain torch. Other backends have the same names and are tested against this.

Outputs come first and are written in place; nothing is returned. Dimension letters: T tokens, S sequences, R rows of
logits, E width, F ffn width, H query heads, G kv heads, D head width, V vocabulary, N blocks, P tokens per block,
B blocks per sequence, C tokens a sequence may have, K drafted tokens at most. Floating tensors are float32, bfloat16 or
float16, all of one dtype in a call unless said otherwise; arithmetic is at least float32 (float64 for float64 inputs:
the truth that tests compare with). Index tensors are int32. The last dimension of every tensor is contiguous.
"""

from __future__ import annotations

from .attention import SPLIT_KEYS, attention_workspace, paged_attention, rope_append
from .decide import MAX_MATCH, allowed_argmax, greedy_argmax, ngram_propose, verify_draft
from .rows import add_layer_norm, add_rms_norm, dequantize, gelu, layer_norm, quantize, rms_norm, silu_mul
from .step import admit_rows, commit_step, pack_step

__all__ = [
    "MAX_MATCH",
    "SPLIT_KEYS",
    "add_layer_norm",
    "add_rms_norm",
    "admit_rows",
    "allowed_argmax",
    "attention_workspace",
    "commit_step",
    "dequantize",
    "gelu",
    "greedy_argmax",
    "layer_norm",
    "ngram_propose",
    "pack_step",
    "paged_attention",
    "quantize",
    "rms_norm",
    "rope_append",
    "silu_mul",
    "verify_draft",
]

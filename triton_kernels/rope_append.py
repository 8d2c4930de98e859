"""rope_append: per token and head the optional RMS norm, the rotation, and the copy of k and v into the paged cache.

    x[i], x[i + D/2] = x[i] cos - x[i + D/2] sin, x[i + D/2] cos + x[i] sin

qkv [T, (H + 2G) D] -> q [T, H, D], k_cache and v_cache [N, P, G, D], of 8 bits with a scale for every head where the
caches have them. Bound by memory: a head is read and written once.
Plan: the heads of q, k and v of all tokens are one list; a program takes about 1024 pairs of it, so that one token's
heads and a thousand tokens' are spread alike. A slot outside the cache stores nothing, a position outside the tables
is clamped.
Limits: fewer than 2^31 heads in a call. Not measured on a GPU yet.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .common import OPTIONS, narrow
from .eight_bit import numbers, quantize, scale_of


@triton.jit(do_not_specialize=["count", "cache_slots", "max_positions"])
def _rope_append_kernel(
    q, k_cache, v_cache, k_scales, v_scales, qkv, positions, slots, cos, sin, q_weight, k_weight,
    count, cache_slots, max_positions, qkv_stride, eps,
    H: tl.constexpr, G: tl.constexpr, D: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    ALL: tl.constexpr = H + 2 * G
    HALF: tl.constexpr = (D + 1) // 2  # an odd width has no rotation, and one element more in its low half
    item = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    live = item < count
    token = (item // ALL).to(tl.int64)
    head = item % ALL
    i = tl.arange(0, COLS)[None, :]
    inside, above = i < HALF, i + HALF < D
    source = qkv + token * qkv_stride + head * D + i
    low = tl.load(source, live & inside, 0.0).to(tl.float32)
    high = tl.load(source + HALF, live & above, 0.0).to(tl.float32)
    x = low
    y = high
    is_q = head < H
    is_v = head >= H + G
    if q_weight is not None:
        squares = tl.sum(low * low + high * high, 1, keep_dims=True)
        scale = tl.rsqrt(squares / D + eps)
        x *= scale * tl.where(is_q, tl.load(q_weight + i, inside, 0.0), tl.load(k_weight + i, inside, 0.0))
        y *= scale * tl.where(is_q, tl.load(q_weight + HALF + i, above, 0.0), tl.load(k_weight + HALF + i, above, 0.0))
    if cos is not None:
        position = tl.load(positions + token, live, 0)
        angle = tl.minimum(tl.maximum(position, 0), max_positions - 1).to(tl.int64) * HALF + i
        c = tl.load(cos + angle, inside, 0.0)
        s = tl.load(sin + angle, inside, 0.0)
        turned = x * c - y * s
        y = y * c + x * s
        x = turned
    low = narrow(tl.where(is_v, low, x), q.dtype.element_ty)
    high = narrow(tl.where(is_v, high, y), q.dtype.element_ty)

    to_q = live & is_q
    place = q + (token * H + head) * D + i
    tl.store(place, low, to_q & inside)
    tl.store(place + HALF, high, to_q & above)
    slot = tl.load(slots + token, live, -1).to(tl.int64)
    kept = live & (head >= H) & (slot >= 0) & (slot < cache_slots)
    if k_scales is not None:
        dtype: tl.constexpr = k_cache.dtype.element_ty
        wide_low = low.to(tl.float32)
        wide_high = high.to(tl.float32)
        top = tl.max(tl.maximum(tl.abs(wide_low), tl.abs(wide_high)), 1, keep_dims=True)
        scale, by = scale_of(top, dtype)
        tl.store(k_scales + slot * G + head - H, scale, kept & (head < H + G))
        tl.store(v_scales + slot * G + head - H - G, scale, kept & is_v)
        low = quantize(wide_low * by, dtype)
        high = quantize(wide_high * by, dtype)
    place = k_cache + (slot * G + head - H) * D + i
    tl.store(place, low, kept & (head < H + G) & inside)
    tl.store(place + HALF, high, kept & (head < H + G) & above)
    place = v_cache + (slot * G + head - H - G) * D + i
    tl.store(place, low, kept & is_v & inside)
    tl.store(place + HALF, high, kept & is_v & above)


def rope_append(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    k_scales: Tensor | None,
    v_scales: Tensor | None,
    qkv: Tensor,
    positions: Tensor,
    slots: Tensor,
    cos: Tensor | None,
    sin: Tensor | None,
    q_weight: Tensor | None,
    k_weight: Tensor | None,
    eps: float,
) -> None:
    tokens, heads, width = q.shape
    if tokens == 0:
        return
    blocks, size, kv_heads, _ = k_cache.shape
    count = tokens * (heads + 2 * kv_heads)
    cols = triton.next_power_of_2((width + 1) // 2)
    rows = min(64, max(1, 1024 // cols))
    _rope_append_kernel[(triton.cdiv(count, rows),)](
        q, numbers(k_cache), numbers(v_cache), k_scales, v_scales, qkv, positions, slots, cos, sin, q_weight, k_weight,
        count, blocks * size, 1 if cos is None else len(cos), qkv.stride(0), eps,
        H=heads, G=kv_heads, D=width, ROWS=rows, COLS=cols, **OPTIONS,
    )  # fmt: skip

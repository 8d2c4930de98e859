"""What the kernels share: number formats, and what TRITON_INTERPRET=1 needs of them.

The interpreter truncates where a GPU rounds a float32 to bfloat16, and multiplies bfloat16 matrices as the integers it
stores them in. `narrow` and `factor` put that right, so that interpreted results are those of a GPU; compiled, they are
a plain conversion and nothing.
"""

from __future__ import annotations

import triton
import triton.language as tl

INTERPRETED = tl.constexpr(bool(triton.knobs.runtime.interpret))

# For every launch. Triton's default changes in 3.10; results should not change with the compiler's version.
OPTIONS = {"enable_fp_fusion": True}


@triton.jit
def narrow(x, dtype: tl.constexpr):
    """float32 `x` in `dtype`, rounded to nearest even."""
    if INTERPRETED and dtype == tl.bfloat16:
        bits = x.to(tl.uint32, bitcast=True)
        bits += 0x7FFF + ((bits >> 16) & 1)
        return (bits >> 16).to(tl.uint16).to(tl.bfloat16, bitcast=True)
    return x.to(dtype)


@triton.jit
def factor(x):
    """`x` as tl.dot takes it."""
    return x.to(tl.float32) if INTERPRETED else x

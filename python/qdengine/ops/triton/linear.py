"""Products with a weight that only Triton has: not in the table of ops, but used by `model.linear` and `model.head`."""

from __future__ import annotations

import torch
from torch import Tensor

from ... import triton_kernels as kernels
from .check import Check

argmax_tiles = kernels.argmax_tiles


def linear(
    out: Tensor, x: Tensor, scales: Tensor | None, weight: Tensor, weight_scales: Tensor | None, bias: Tensor | None
) -> None:
    """out = x weight^T + bias, in tiles of one size: a row's bits do not depend on the rows beside it.

    out: [M, N]; x: [M, K]; weight: [N, K]; bias: [N] or None. x and weight have the dtype of out, or both are
    float8_e4m3fn with scales: float32 [M] and weight_scales: float32 [N], by which the sums are multiplied.
    """
    check = Check("linear", "out", out)
    check("out", out, (-1, -1))
    number = out.dtype if scales is None else torch.float8_e4m3fn
    check("x", x, (out.shape[0], -1), number)
    check("weight", weight, (out.shape[1], x.shape[1]), number)
    check.both("scales", "weight_scales", scales is not None, weight_scales is not None)
    if scales is not None and weight_scales is not None:
        check("scales", scales, out.shape[:1], torch.float32, dense=True)
        check("weight_scales", weight_scales, out.shape[1:], torch.float32, dense=True)
    if bias is not None:
        check("bias", bias, out.shape[1:])
    with torch.cuda.device_of(out):
        kernels.linear(out, x, scales, weight, weight_scales, bias)


def linear_argmax(out: Tensor, workspace: Tensor, x: Tensor, weight: Tensor) -> None:
    """out[r] = the lowest id with the highest logit, of logits x weight^T in the dtype of x that are never written.

    Ties and NaN as `greedy_argmax`. out: int32 [R]; x: [R, E]; weight: [V, E], both of one dtype. workspace: int64
    [R, argmax_tiles(V)], contents of no matter.
    """
    check = Check("linear_argmax", "x", x)
    check("x", x, (-1, -1))
    check("weight", weight, (-1, x.shape[1]))
    if len(weight) == 0:
        check.fail("weight", "at least one row", 0)
    check.index("out", out, len(x))
    check("workspace", workspace, (len(x), argmax_tiles(len(weight))), torch.int64)
    with torch.cuda.device_of(out):
        kernels.linear_argmax(out, workspace, x, weight)

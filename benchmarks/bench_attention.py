"""`paged_attention` against torch's own attention on the same ragged batches, at SmolLM2-135M's heads.

    python benchmarks/bench_attention.py --json out.json

Batches: documents' prefill; verification of 33 tokens and decoding of one, at about 620 and 4,000 keys, of one sequence
and of many. qdengine reads a paged cache. Its peers get keys and values that lie contiguously, padded or packed before
the clock starts, and masks made before it starts:

  sdpa padded      scaled_dot_product_attention, padded to the longest, a mask, heads of keys repeated beforehand.
  sdpa padded gqa  the same with enable_gqa instead of repeated heads.
  sdpa nested      nested (jagged) tensors; where every token is new, as it knows no other causal mask. On a GPU.
  varlen           torch.nn.attention.varlen: flash attention over packed rows. On a GPU, in 16 bits.
  flex             FlexAttention, padded, with a block mask that leaves the padding out; compiled on a GPU, and on a CPU
                   not, where its time says nothing.

Every peer's result is compared with ours: `difference` is the largest of an element. A peer that fails has an `error`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import click
import torch
from bench_ops import CONTEXT, G, H, attention_arguments, attention_work
from common import BACKENDS, DTYPES, Arguments, device_of, facts, on_device, timed, write
from limits import limit, named
from qdengine import ops
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention
from tqdm import tqdm

Batch = tuple[tuple[int, int], ...]
LONG, DRAFTED = 4000, 33


@dataclass(frozen=True)
class Rival:
    """One way to do it. rows: its output as [T, H, D]."""

    call: Callable[..., Any]
    args: Arguments
    rows: Callable[[Any], Tensor]
    capture: bool = True


def batches(documents: int, many: int) -> dict[str, Batch]:
    """Lengths that differ by up to a quarter around the nominal one."""
    draw = torch.Generator().manual_seed(0)

    def ragged(count: int, length: int) -> list[int]:
        return (length * (0.75 + 0.5 * torch.rand(count, generator=draw))).int().tolist()

    made: dict[str, Batch] = {f"prefill {documents}": tuple((n, n) for n in ragged(documents, CONTEXT))}
    for new, what in ((DRAFTED, "verify"), (1, "decode")):
        for length in (620, LONG):
            made[f"{what} 1 x {length}"] = ((length, new),)
            made[f"{what} {many} x {length}"] = tuple((n, new) for n in ragged(many, length))
    return made


class Contiguous:
    """The batch as torch's attention wants it: packed q [T, H, D] and k, v [L, G, D], taken out of the paged cache."""

    def __init__(self, batch: Batch, args: Arguments) -> None:
        _, self.q, k_cache, v_cache, _, _, _, table, *_ = args
        self.batch, self.device = batch, self.q.device
        self.new = torch.tensor([new for _, new in batch], device=self.device)
        self.lens = torch.tensor([length for length, _ in batch], device=self.device)
        self.k, self.v = (
            torch.cat([self._taken(cache, table[s], length) for s, (length, _) in enumerate(batch)])
            for cache in (k_cache, v_cache)
        )

    @staticmethod
    def _taken(cache: Tensor, blocks: Tensor, length: int) -> Tensor:
        return cache[blocks[: -(-length // cache.shape[1])].long()].flatten(0, 1)[:length]

    def padded(self, packed: Tensor, counts: Tensor, heads: int) -> Tensor:
        """[S, heads, longest, D]"""
        most = int(counts.max())
        parts = [pad(x, (0, 0, 0, 0, 0, most - len(x))) for x in packed.split(counts.tolist())]
        return torch.stack(parts).repeat_interleave(heads // packed.shape[1], 2).transpose(1, 2).contiguous()

    def all_padded(self, kv_heads: int) -> tuple[Tensor, Tensor, Tensor]:
        kv = (self.padded(x, self.lens, kv_heads) for x in (self.k, self.v))
        return self.padded(self.q, self.new, H), *kv

    def rows(self, out: Tensor) -> Tensor:
        """The rows of a padded output, packed."""
        return torch.cat([out[s, :, :new].transpose(0, 1) for s, (_, new) in enumerate(self.batch)])

    def visible(self, s: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (k <= q + self.lens[s] - self.new[s]) & (k < self.lens[s])

    def sdpa_padded(self, gqa: bool) -> Rival:
        s, q, k = (torch.arange(int(n), device=self.device) for n in (len(self.new), self.new.max(), self.lens.max()))
        # A row of padding sees the first key, for a softmax over nothing is NaN.
        mask = self.visible(s[:, None, None], q[:, None], k) | (k == 0)
        args = (*self.all_padded(G if gqa else H), mask[:, None])
        return Rival(lambda *a: scaled_dot_product_attention(*a, enable_gqa=gqa), args, self.rows)

    def sdpa_nested(self) -> Rival:
        indptr = pad(self.new.cumsum(0), (1, 0))
        most = int(self.new.max())
        wide = (x.repeat_interleave(H // x.shape[1], 1) for x in (self.q, self.k, self.v))

        def call(*packed: Tensor) -> Tensor:
            q, k, v = (
                torch.nested.nested_tensor_from_jagged(x, indptr, min_seqlen=1, max_seqlen=most).transpose(1, 2)
                for x in packed
            )
            return scaled_dot_product_attention(q, k, v, is_causal=True)

        return Rival(call, tuple(wide), lambda out: out.transpose(1, 2).values(), capture=False)

    def varlen(self) -> Rival:
        from torch.nn.attention.varlen import varlen_attn

        known = inspect.signature(varlen_attn).parameters
        causal: dict[str, Any] = {"window_size": (-1, 0)} if "window_size" in known else {"is_causal": True}
        gqa = "enable_gqa" in known
        kv = [x if gqa else x.repeat_interleave(H // G, 1) for x in (self.k, self.v)]
        indptr = [pad(n.cumsum(0), (1, 0)).int() for n in (self.new, self.lens)]
        most = int(self.new.max()), int(self.lens.max())
        options = causal | ({"enable_gqa": True} if gqa else {})
        return Rival(lambda q, k, v: varlen_attn(q, k, v, *indptr, *most, **options), (self.q, *kv), lambda out: out)

    def flex(self) -> Rival:
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention

        q, k, v = self.all_padded(G)

        def mask_mod(s: Tensor, h: Tensor, q_at: Tensor, k_at: Tensor) -> Tensor:
            return self.visible(s, q_at, k_at) & (q_at < self.new[s])

        mask = create_block_mask(mask_mod, len(q), None, q.shape[2], k.shape[2], device=str(self.device))
        call = torch.compile(flex_attention, dynamic=False) if self.device.type == "cuda" else flex_attention
        return Rival(lambda *a: call(*a, block_mask=mask, enable_gqa=True), (q, k, v), self.rows)


def rivals(batch: Batch, args: Arguments) -> dict[str, Callable[[], Rival]]:
    """The peers that can do this batch; each is set up when it is called."""
    data = Contiguous(batch, args)
    found = {"sdpa padded": lambda: data.sdpa_padded(False), "sdpa padded gqa": lambda: data.sdpa_padded(True)}
    on_gpu = data.device.type == "cuda"
    if on_gpu and all(length == new for length, new in batch):
        found["sdpa nested"] = data.sdpa_nested
    if on_gpu and data.q.element_size() == 2:
        found["varlen"] = data.varlen
    return found | {"flex": data.flex}


def against(how: str, make: Callable[[], Rival], ours: Tensor, device: torch.device, budget: float) -> dict[str, Any]:
    try:
        rival = make()
        difference = float((rival.rows(rival.call(*rival.args)) - ours).abs().max())
        us = 1e6 * timed(rival.call, rival.args, device, budget, rival.capture)
    except Exception as error:  # a kernel that torch does not have, or a compiler's own classes: it is reported
        return {"how": how, "error": f"{type(error).__name__}: {error}"[:300]}
    return {"how": how, "us": us, "difference": difference}


@click.command()
@click.option("--backend", "backends", type=click.Choice(BACKENDS), multiple=True, help="[default: the device's own]")
@click.option("--dtype", type=click.Choice(list(DTYPES)), default="bfloat16", show_default=True)
@click.option("--documents", default=16, show_default=True, help="Of the prefill.")
@click.option("--batch", "many", default=256, show_default=True, help="Sequences, where there are many.")
@click.option("--case", "wanted", default="", help="Only batches whose name has this.")
@click.option("--without", multiple=True, help="Peers to leave out.")
@click.option("--seconds", default=0.2, show_default=True, help="Spent on each.")
@click.option("--json", "out", type=click.Path(dir_okay=False), help="Written anew after every batch.")
@torch.inference_mode()
def main(
    backends: tuple[str, ...], dtype: str, documents: int, many: int, wanted: str, without: tuple[str, ...],
    seconds: float, out: str | None,
) -> None:  # fmt: skip
    """Time attention."""
    torch.manual_seed(0)
    backends = backends or ("cuda" if "cuda" in BACKENDS else "cpu",)
    device, found = device_of(backends[0]), facts()
    gpu, element = named(found["gpu"] or ""), DTYPES[dtype].itemsize
    rows: list[dict[str, Any]] = []
    for case, batch in tqdm(batches(documents, many).items(), unit="batch", disable=None):
        if wanted not in case:
            continue
        args, least = on_device(attention_arguments(batch, DTYPES[dtype])[1], device), attention_work(batch, element)
        took = []
        for backend in backends:
            call = ops.load(backend).paged_attention
            took.append({"how": f"qdengine {backend}", "us": 1e6 * timed(call, args, device, seconds)})
        call(*args)  # what is timed on a GPU writes into copies
        ours = args[0].clone()
        for how, make in rivals(batch, args).items():
            if how not in without:
                took.append(against(how, make, ours, device, seconds))
        for row in took:
            row |= {"case": case, "dtype": dtype}
            if "us" in row:
                row |= {"bytes": least.bytes, "flops": least.flops, "unit": least.unit}
                row |= {"share_of_limit": 1e6 * limit(gpu, least) / row["us"]} if gpu else {}
            shown = f"{row['us']:12.1f} us" if "us" in row else row["error"][:60]
            click.echo(f"{case:20}{row['how']:20}{shown}")
        rows += took
        write(found | {"rows": rows}, out)


if __name__ == "__main__":
    main()

"""How many forward passes a summary takes, from reference summaries alone: no model runs.

Every row's prompt is made by the engine's own function, and its reference summary plays the model: draft, compare with
what the "model" writes, keep the accepted tokens and one more, until the stop token. Two policies:

  qdengine       the `ngram_propose` op, as the engine calls it.
  prompt-lookup  transformers' `PromptLookupCandidateGenerator`: the first place of the whole context that continues
                 its last 3 (else 2, else 1) tokens.

Prints one JSON line for each policy and lookahead. Figures are means over summaries:

  steps                forward passes that give tokens. The first draft rides on the pass that completes the prefill,
                       in both engines, so that pass is one of them.
  steps_after_prefill  steps - 1: passes that are only verification.
  tokens_per_step      tokens of all summaries (the stop token included) over all steps.
  drafted, accepted    drafted tokens of a summary, and those kept.

    python benchmarks/bench_draft.py --data webqa_en.test.jsonl.gz --lookahead 10 --lookahead 64
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice

import click
import numpy as np
import torch
from qdengine import checkpoint, jsonl, ops, student
from qdengine.config import DEFAULT_STUDENT
from qdengine.errors import RequestError
from qdengine.prompt import Prompt, encode
from qdengine.request import Request
from qdengine.tokenizer import Tokenizer

BATCH = 128
POLICIES = ("qdengine", "prompt-lookup")


@dataclass(slots=True)
class Replay:
    """One row: `tokens` is prompt and target, int32; the first `length` are known, `begin` of them are the prompt."""

    prompt: Prompt
    tokens: np.ndarray
    length: int
    steps: int = 0
    drafted: int = 0
    accepted: int = 0

    @property
    def begin(self) -> int:
        return len(self.prompt.ids)

    @property
    def left(self) -> int:
        return len(self.tokens) - self.length

    def step(self, draft: np.ndarray) -> None:
        draft = draft[: self.left]
        wrong = np.flatnonzero(draft != self.tokens[self.length : self.length + len(draft)])
        # The model adds one token to what it accepts, except after the stop token.
        accepted = min(int(wrong[0]) if len(wrong) else len(draft), self.left - 1)
        self.steps += 1
        self.drafted += len(draft)
        self.accepted += accepted
        self.length += accepted + 1


Propose = Callable[[list[Replay], int], Iterator[np.ndarray]]


def op_proposals(table: ops.OpTable) -> Propose:
    """Drafts by the backend's `ngram_propose`, a batch a call."""

    def propose(replays: list[Replay], lookahead: int) -> Iterator[np.ndarray]:
        tokens = np.zeros((len(replays), max(len(r.tokens) for r in replays)), np.int32)
        ranks, bounds = np.zeros_like(tokens), np.zeros((len(replays), 4), np.int32)
        for i, r in enumerate(replays):
            tokens[i, : r.length], ranks[i, : r.begin] = r.tokens[: r.length], r.prompt.ranks
            bounds[i] = r.prompt.document_begin, r.prompt.document_end, r.begin, r.length
        drafts, lengths = np.zeros((len(replays), lookahead), np.int32), np.zeros(len(replays), np.int32)
        limits = np.full(len(replays), lookahead, np.int32)
        table.ngram_propose(*map(torch.from_numpy, (drafts, lengths, tokens, ranks, bounds, limits)))
        yield from (draft[:length] for draft, length in zip(drafts, lengths, strict=True))

    return propose


def prompt_lookup(replays: list[Replay], lookahead: int, most: int = 3) -> Iterator[np.ndarray]:
    for r in replays:
        known = r.tokens[: r.length]
        draft = known[:0]
        for size in range(min(most, len(known) - 1), 0, -1):
            windows = np.lib.stride_tricks.sliding_window_view(known[:-1], size)
            found = np.flatnonzero((windows == known[-size:]).all(1))
            if len(found):
                draft = known[found[0] + size : found[0] + size + lookahead]
                break
        yield draft


def target_ids(tokenizer: Tokenizer, prefix: str, request: Request, prompt: Prompt, summary: str) -> np.ndarray:
    """The summary as a student writes it: where it is a run of the document, by the document's own tokens."""
    text = prefix + summary.strip()
    own = tokenizer.encode(text).ids
    ids, offsets = prompt.ids[prompt.document_begin : prompt.document_end], prompt.offsets
    runs = []
    place = request.document.find(summary.strip())
    while place >= 0:
        end = place + len(summary.strip())
        inside = np.flatnonzero((offsets[:, 1] > place) & (offsets[:, 0] < end) & (offsets[:, 0] >= 0))
        if len(inside) and offsets[inside[0], 0] >= place - 1 and offsets[inside[-1], 1] == end:
            runs.append(ids[inside])
        place = request.document.find(summary.strip(), place + 1)
    # Of several places the one that is tokenised as free text is.
    return next((run for run in runs if np.array_equal(run, own)), runs[0] if runs else own)


def replay_rows(data: str, rows: int | None, loaded: checkpoint.Checkpoint) -> list[Replay]:
    tokenizer, stop = loaded.tokenizer(), np.array(loaded.stop_ids[:1], np.int32)
    parsed = [row for row in islice(jsonl.read(data), rows) if isinstance(row, dict)]
    requests = [Request.parse({k: row.get(k, "") for k in ("query", "document", "title")}) for row in parsed]
    prompts = encode(tokenizer, loaded.prompt, requests, [loaded.config.max_positions - 96] * len(requests))
    replays = []
    for row, request, prompt in zip(parsed, requests, prompts, strict=True):
        if isinstance(prompt, RequestError):
            raise click.ClickException(f"row {row.get('id')}: {prompt}")
        target = target_ids(tokenizer, loaded.prompt.output_prefix, request, prompt, row["summary"])
        replays.append(Replay(prompt, np.concatenate([prompt.ids, target, stop]), len(prompt.ids)))
    return replays


def replay(rows: list[Replay], propose: Propose, lookahead: int) -> dict[str, float]:
    """Replay every row to its end; the mean figures."""
    for r in rows:
        r.length, r.steps, r.drafted, r.accepted = r.begin, 0, 0, 0
    # Rows of one length share a call, so that little of it is padding.
    ordered = sorted(rows, key=lambda r: len(r.tokens))
    for begin in range(0, len(ordered), BATCH):
        active = ordered[begin : begin + BATCH]
        while active:
            for r, draft in zip(active, propose(active, lookahead), strict=True):
                r.step(draft)
            active = [r for r in active if r.left]
    steps = sum(r.steps for r in rows)
    tokens = sum(len(r.tokens) - r.begin for r in rows)
    return {
        "rows": len(rows),
        "tokens": round(tokens / len(rows), 2),
        "steps": round(steps / len(rows), 3),
        "steps_after_prefill": round(steps / len(rows) - 1, 3),
        "tokens_per_step": round(tokens / steps, 2),
        "drafted": round(sum(r.drafted for r in rows) / len(rows), 2),
        "accepted": round(sum(r.accepted for r in rows) / len(rows), 2),
    }


@click.command()
@click.option("--data", required=True, type=click.Path(exists=True, dir_okay=False), help="Rows with summaries.")
@click.option("--rows", type=click.IntRange(1), help="Only the first rows.")
@click.option("--lookahead", type=click.IntRange(1), multiple=True, default=(10, 32, 64), show_default=True)
@click.option("--policy", type=click.Choice(POLICIES), multiple=True, default=POLICIES, show_default=True)
@click.option("--model", default=DEFAULT_STUDENT, show_default=True, help="Whose tokenizer and prompt format.")
@click.option("--backend", type=click.Choice(["cpu", "reference"]), default="cpu", show_default=True)
def main(
    data: str, rows: int | None, lookahead: tuple[int, ...], policy: tuple[str, ...], model: str, backend: str
) -> None:
    """Replay reference summaries through a drafting policy."""
    replays = replay_rows(data, rows, checkpoint.load(student.resolve(model)))
    if not replays:
        raise click.ClickException(f"{data} has no rows")
    for name in policy:
        propose = op_proposals(ops.load(backend)) if name == "qdengine" else prompt_lookup
        for most in lookahead:
            click.echo(json.dumps({"policy": name, "lookahead": most, **replay(replays, propose, most)}))


if __name__ == "__main__":
    main()

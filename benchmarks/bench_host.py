"""What the host does for a request, alone: the engine over a null model that keeps every draft and then stops.

`extra_info` has microseconds of one core a request (the median of five batches, in processor time) with everything, and
those of tokenising and of decoding text, which a library does. Cold documents are new texts, warm ones known ones.
The library has one thread. Skipped where the student is not installed.
"""

from __future__ import annotations

import itertools
import random
import statistics
import time
from pathlib import Path

import pytest
import torch
from qdengine import Engine, EngineConfig
from qdengine.config import DEFAULT_STUDENT
from qdengine.errors import StudentError
from qdengine.model.decoder import Decoder
from qdengine.model.layers import StepInputs

PAGES = [
    page.read_text("utf-8") for page in sorted((Path(__file__).parent.parent / "examples" / "pages").glob("*.txt"))
]
QUERIES = ("When is the best time?", "How much does it cost?", "What can go wrong?")
BATCH = 256


class NullDecoder:
    """Writes what a step holds next, and the stop token after a sequence's last one, at no cost."""

    def __init__(self, decoder: Decoder, stop: int) -> None:
        self.config, self.dtype, self.device = decoder.config, decoder.dtype, decoder.device
        self.ops, self.head = decoder.ops, self
        self._stop = stop

    def forward(self, step: StepInputs, cache: object) -> torch.Tensor:
        self._step = step
        return torch.empty(len(step.rows), 1)

    def argmax(self, out: torch.Tensor, logits: torch.Tensor) -> None:
        following = self._step.ids.roll(-1)
        following[(self._step.q_indptr[1:] - 1).clamp(min=0).long()] = self._stop
        out.copy_(following[self._step.rows])


@pytest.fixture(scope="module")
def engine():
    sizes = {"kv_bytes": 8 << 30, "max_sequences": 128, "max_step_tokens": 8192}
    config = EngineConfig(**sizes, adaptive_lookahead=False, threads=1)
    try:
        with Engine.from_pretrained(DEFAULT_STUDENT, "cpu", "bfloat16", config) as engine:
            runner = engine._runner
            runner.decoder = NullDecoder(runner.decoder, engine.checkpoint.stop_ids[0])
            runner._ops = runner.decoder.ops
            yield engine
    except StudentError as error:
        pytest.skip(str(error))


def requests(seed: int) -> list[dict]:
    """Documents of about 600 tokens: the pages' sentences in an order of their own."""
    chance = random.Random(seed)
    sentences = ". ".join(PAGES).split(". ")
    made = []
    for query in itertools.islice(itertools.cycle(QUERIES), BATCH):
        chance.shuffle(sentences)
        made.append({"query": query, "document": ". ".join(sentences)[:3000]})
    return made


@pytest.mark.parametrize("documents", ["cold", "warm"])
def test_host(benchmark, engine, documents, monkeypatch):
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    batches = itertools.count() if documents == "cold" else itertools.repeat(0)
    library = [0.0]

    def timed(call):
        def run(*args):
            begin = time.thread_time()
            result = call(*args)
            library[0] += time.thread_time() - begin
            return result

        return run

    tokenizer = engine.tokenizer
    monkeypatch.setattr(tokenizer, "encode_batch", timed(tokenizer.encode_batch), raising=False)
    monkeypatch.setattr(tokenizer, "decode", timed(tokenizer.decode), raising=False)

    def setup():
        library[0] = 0.0
        return (requests(next(batches)),), {}

    spent = []

    def run(batch):
        begin = time.process_time()
        summaries = engine.summarize(batch)
        spent.append((time.process_time() - begin, library[0]))
        assert all(s.error is None for s in summaries)

    benchmark.pedantic(run, setup=setup, rounds=5, warmup_rounds=1)
    total, tokenising = (1e6 * statistics.median(times) / BATCH for times in zip(*spent[1:], strict=True))
    benchmark.extra_info |= {"us": total, "tokenising_us": tokenising, "beyond_tokenising_us": total - tokenising}

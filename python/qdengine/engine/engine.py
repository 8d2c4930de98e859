"""The engine: requests in, summaries out."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch

from .. import ops, student
from ..checkpoint import Checkpoint
from ..checkpoint import load as load_checkpoint
from ..config import PRECISIONS, EngineConfig
from ..documents import DocumentCache
from ..errors import BackendError, ConfigError, EngineError, LimitError, QdengineError, RequestError
from ..model.decoder import Decoder
from ..model.kv_cache import KVCache, shortage
from ..prompt import Prompt, encode
from ..request import Request, Summary
from .block_pool import BlockPool, prefix_keys
from .draft_cost import DraftCost
from .runner import Runner
from .scheduler import Entry, Scheduler
from .sequence import Sequence

Item = Request | Mapping[str, Any]


class Engine:
    """Summarizes with one model on one device.

    Several engines live side by side, and any number of threads may call one engine: whoever waits for a summary also
    runs steps, and a step serves every caller's sequences.

    device: "auto" (a GPU where there is one), "cpu" or "cuda[:n]". precision: "auto" (bfloat16 where the hardware
    multiplies it fast, else float32), "float32" or "bfloat16".
    backend: None (the device's own) or one of `qdengine.ops.BACKENDS`.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        device: str = "auto",
        precision: str = "auto",
        config: EngineConfig | None = None,
        backend: str | None = None,
    ) -> None:
        self.checkpoint = checkpoint
        self.config = config or EngineConfig()
        self.device = _device(device)
        self.precision = _precision(precision, self.device)
        self.tokenizer = checkpoint.tokenizer()
        dtype = getattr(torch, self.precision)
        table = ops.load(backend or self.device.type)
        host = table if table.backend == "reference" else ops.load("cpu")
        shape = checkpoint.config
        decoder = Decoder(shape, checkpoint.weights(), table, dtype, self.device)
        cache = KVCache(shape, self.config.kv_bytes, self.config.block_tokens, dtype, self.device)
        self.backend = table.backend
        self._context = min(shape.max_positions, cache.blocks * self.config.block_tokens)
        self._runner = self._make_runner(decoder, cache, host)
        self._scheduler = Scheduler(
            BlockPool(cache.blocks), self.config.block_tokens, self.config.max_sequences, self.config.max_step_tokens
        )
        self._documents = DocumentCache(self.config.document_cache_bytes)
        self._draft_cost = DraftCost(self.config.lookahead)
        self._stop_ids = frozenset(checkpoint.stop_ids)
        self._lock = threading.Lock()
        self._closed = False

    @classmethod
    def from_pretrained(
        cls,
        path_or_name: str | os.PathLike[str],
        device: str = "auto",
        precision: str = "auto",
        config: EngineConfig | None = None,
        backend: str | None = None,
    ) -> Engine:
        """Load a bundle, a Hugging Face folder or an installed student by name. Raises `CheckpointError`,
        `StudentError`, `BackendError` or `ConfigError`; the message names the remedy."""
        return cls(load_checkpoint(student.resolve(path_or_name)), device, precision, config, backend)

    def _make_runner(self, decoder: Decoder, cache: KVCache, host: ops.OpTable) -> Runner:
        config = self.config
        graphs = config.cuda_graphs and self.device.type == "cuda" and decoder.ops.backend != "reference"
        try:
            return Runner(decoder, cache, host, config.max_sequences, config.lookahead, config.max_step_tokens, graphs)
        except shortage(self.device) as error:
            raise ConfigError(
                f"there is no memory for steps of EngineConfig.max_step_tokens = {config.max_step_tokens}, "
                f"max_sequences = {config.max_sequences} and lookahead = {config.lookahead}; lower them, or kv_bytes"
            ) from error

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the model and the KV memory. Calls still running end with an `EngineError` for what is unfinished."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            for sequence in self._scheduler.running + self._scheduler.waiting:
                self._scheduler.abort(sequence, EngineError("the engine was closed before this request was done"))
            del self._runner

    def summarize(self, batch: Iterable[Item]) -> list[Summary]:
        """One `Summary` per item, in order. A bad item gets `error` set and does not affect the others; this call
        raises only for a closed engine or a `batch` that cannot be iterated."""
        if isinstance(batch, (Request, Mapping, str, bytes)):
            raise TypeError("summarize takes a list of requests; for one request pass [request]")
        items = list(batch)
        self._check_open()
        summaries: list[Summary | None] = [None] * len(items)
        active: dict[int, Sequence] = {}
        window = 2 * self.config.max_sequences  # encoded at a time: bounds memory, and keeps steps full
        begin = 0
        try:
            while begin < len(items) or active:
                if len(active) < self.config.max_sequences and begin < len(items):
                    end = min(len(items), begin + window - len(active))
                    for i, made in enumerate(self._submit(items[begin:end]), begin):
                        if isinstance(made, Sequence):
                            active[i] = made
                        else:
                            summaries[i] = Summary.failed(made)
                    begin = end
                    continue
                self._step_unless_done(active.values())
                for i in [i for i, sequence in active.items() if sequence.finished]:
                    summaries[i] = self._summary(active.pop(i))
        finally:
            self._abort(active.values())
        return [summary for summary in summaries if summary is not None]

    def stream(self, request: Item) -> Iterator[str]:
        """Yield the text as it is accepted; the pieces joined are `Summary.text`. Raises the request's error."""
        self._check_open()
        made = self._submit([request])[0]
        if not isinstance(made, Sequence):
            raise made
        sent = ""
        try:
            while not made.finished:
                self._step_unless_done([made])
                # A character may still lack bytes, and white space at the end may turn out to be the end.
                text = self._text(made) if made.finished else self._text(made).rstrip("\ufffd").rstrip()
                if len(text) > len(sent):
                    yield text[len(sent) :]
                    sent = text
            if made.error is not None:
                raise made.error
        finally:
            self._abort([made])

    def _submit(self, items: list[Item]) -> list[Sequence | QdengineError]:
        """Parse, encode and queue items; the errors of those that cannot be."""
        made: list[Sequence | RequestError | Request] = []
        for item in items:
            try:
                made.append(self._parse(item))
            except RequestError as error:
                made.append(error)
        requests = [x for x in made if isinstance(x, Request)]
        room = [self._context - self._new_tokens(request) for request in requests]
        prompts = iter(encode(self.tokenizer, self.checkpoint.prompt, requests, room, self._documents))
        sequences: list[Sequence | QdengineError] = []
        with self._lock:
            if self._closed:
                return [EngineError("the engine was closed before this request was begun")] * len(items)
            for x in made:
                sequences.append(self._queue(x, next(prompts)) if isinstance(x, Request) else x)  # type: ignore[arg-type]
        return sequences

    def _parse(self, item: Item) -> Request:
        request = Request.parse(item)
        most = self._new_tokens(request)
        if most >= self._context:
            raise LimitError(
                f"max_new_tokens is {most}; with {self._context} tokens of context it must be less, and leave room "
                "for the document"
            )
        return request

    def _new_tokens(self, request: Request) -> int:
        return self.config.max_new_tokens if request.max_new_tokens is None else request.max_new_tokens

    def _queue(self, request: Request, prompt: Prompt | RequestError) -> Sequence | RequestError:
        if isinstance(prompt, RequestError):
            return prompt
        sequence = Sequence(
            request,
            prompt,
            self._new_tokens(request),
            self.config.lookahead if request.lookahead is None else min(request.lookahead, self.config.lookahead),
            prefix_keys(request.namespace, prompt.ids[: prompt.shareable], self.config.block_tokens),
        )
        try:
            self._scheduler.add(sequence)
        except LimitError as error:
            return error
        return sequence

    def _step_unless_done(self, sequences: Iterable[Sequence]) -> None:
        """Run one step, unless another thread's step has just finished one of `sequences`."""
        with self._lock:
            if not any(sequence.finished for sequence in sequences):
                self._check_open()
                try:
                    self._step()
                except Exception as error:
                    self._fail(error)
                except BaseException:
                    self._scheduler.restart()
                    raise

    def _step(self) -> None:
        scheduler, runner = self._scheduler, self._runner
        now = time.perf_counter()
        for sequence in scheduler.admit():
            runner.admit(sequence)
            sequence.stats.reused_tokens = sequence.computed
            sequence.started = sequence.started or now
        begin = time.perf_counter()
        running = scheduler.running
        entries = scheduler.plan(runner.propose(running, [self._most_drafted(s, len(running)) for s in running]))
        written = runner.run(entries)
        now = time.perf_counter()
        self._draft_cost.observe_step(len(entries), sum(e.new + e.drafted for e in entries), now - begin)
        for entry, tokens in zip(entries, written, strict=True):
            self._count(entry, len(tokens), now)
            kept = scheduler.commit(entry, tokens, self._stop_ids)
            if entry.sequence.finished:
                self._time(entry.sequence, now)
            else:
                runner.append(entry.sequence, kept)

    def _most_drafted(self, sequence: Sequence, sequences: int) -> int:
        if sequence.pending > self.config.max_step_tokens:
            return 0  # its prompt takes more than this step
        if not self.config.adaptive_lookahead:
            return sequence.draft_limit
        return self._draft_cost.length(sequence.acceptance, sequences, sequence.draft_limit)

    def _count(self, entry: Entry, tokens: int, now: float) -> None:
        if entry.writes:
            self._draft_cost.observe_draft(entry.sequence.acceptance, entry.drafted, tokens - 1)
            stats = entry.sequence.stats
            stats.steps += 1
            stats.drafted += entry.drafted
            stats.accepted += tokens - 1
            entry.sequence.first_token = entry.sequence.first_token or now

    @staticmethod
    def _time(sequence: Sequence, now: float) -> None:
        stats = sequence.stats
        stats.queue_ms = 1e3 * (sequence.started - sequence.arrived)
        stats.prefill_ms = 1e3 * (sequence.first_token - sequence.started)
        stats.decode_ms = 1e3 * (now - sequence.first_token)

    def _fail(self, cause: Exception) -> None:
        """A step broke: every sequence in it ends with an error, and the engine goes on with an empty slate."""
        error = EngineError(f"a step failed: {type(cause).__name__}: {cause}")
        error.__cause__ = cause
        for sequence in list(self._scheduler.running):
            self._scheduler.abort(sequence, error)

    def _abort(self, sequences: Iterable[Sequence]) -> None:
        with self._lock:
            for sequence in sequences:
                if not sequence.finished:
                    self._scheduler.abort(sequence)

    def _check_open(self) -> None:
        if self._closed:
            raise EngineError("the engine is closed; make a new one with Engine.from_pretrained")

    def _text(self, sequence: Sequence) -> str:
        return self.tokenizer.decode(sequence.output.tolist()).strip()

    def _summary(self, sequence: Sequence) -> Summary:
        if sequence.error is not None:
            return Summary.failed(sequence.error)
        return Summary(
            text=self._text(sequence),
            token_ids=sequence.output.tolist(),
            finish_reason=sequence.finish_reason,
            truncated=sequence.prompt.truncated,
            stats=sequence.stats,
        )


def _device(name: str) -> torch.device:
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


def _precision(name: str, device: torch.device) -> str:
    if name not in PRECISIONS:
        raise ConfigError(f"precision {name!r}; expected {', '.join(PRECISIONS)}")
    if name != "auto":
        return name
    # A CPU without bfloat16 products (avx512_bf16; every CPU with AMX has them) is faster in float32.
    fast = device.type == "cuda" or torch.cpu._is_avx512_bf16_supported()
    return "bfloat16" if fast else "float32"

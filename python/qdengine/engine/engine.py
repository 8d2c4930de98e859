"""The engine: requests in, summaries out."""

from __future__ import annotations

import math
import os
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

from .. import ops, student, verbatim
from .._host import BlockPool
from ..checkpoint import Checkpoint
from ..checkpoint import load as load_checkpoint
from ..config import EngineConfig
from ..documents import DocumentCache
from ..errors import ConfigError, EngineError, LimitError, QdengineError, RequestError
from ..model.decoder import Decoder
from ..model.kv_cache import EIGHT_BITS, KVCache, shortage
from ..prompt import Prompt, encode
from ..request import Request, Summary
from .device import chosen_device, chosen_precision, free_memory
from .draft_cost import DraftCost
from .runner import FINISH_REASONS, Flight, Runner
from .scheduler import Scheduler
from .sequence import Sequence
from .turns import Turns

Item = Request | Mapping[str, Any]


class Engine:
    """Summarizes with one model on one device.

    Several engines live side by side, and any number of threads may call one engine: whoever waits for a summary also
    runs steps, and a step serves every caller's sequences.

    device: "auto" (a GPU where there is one), "cpu" or "cuda[:n]". precision: "auto" (bfloat16 where the hardware
    multiplies it fast, else float32), "float32", "bfloat16", or "int8" or "float8": weights and inputs of the layers
    are then of 8 bits, made when the engine starts, and the rest is as in "auto".
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
        self.config = config = config or EngineConfig()
        self.device = chosen_device(device)
        self.precision = chosen_precision(precision, self.device)
        self.tokenizer = checkpoint.tokenizer()
        self._break_id = verbatim.break_id(self.tokenizer)
        number = EIGHT_BITS.get(self.precision)
        dtype = getattr(torch, self.precision if number is None else chosen_precision("auto", self.device))
        table = ops.load(backend or self.device.type)
        shape = checkpoint.config
        self.backend = table.backend
        with self._threads_limited():
            decoder = Decoder(
                shape, checkpoint.weights(), table, dtype, self.device, number,
                self.config.batch_invariant, self.config.fused_head, checkpoint.holds_int8(),
            )  # fmt: skip
        kv_bytes, self._max_sequences, self._max_step_tokens = config.sizes(free_memory(self.device))
        cache = KVCache(shape, kv_bytes, self.config.block_tokens, dtype, self.device, self.config.kv_dtype)
        self._context = min(shape.max_positions, cache.blocks * self.config.block_tokens)
        self._runner = self._make_runner(decoder, cache)
        self._flight: Flight | None = None  # the step on its way, where steps are planned ahead
        self._scheduler = Scheduler(
            BlockPool(cache.blocks, self.config.block_tokens), self._max_sequences, self._max_step_tokens
        )
        self._documents = DocumentCache(self.config.document_cache_bytes)
        self._draft_cost = DraftCost(self.config.lookahead)
        self._usual_draft = float(self.config.lookahead)  # tokens, of a sequence that writes
        self._turns = Turns()
        self._lock = threading.Lock()
        self._ended: str | None = None  # why the engine takes no more requests

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

    def _make_runner(self, decoder: Decoder, cache: KVCache) -> Runner:
        config, on_gpu = self.config, self.device.type == "cuda"
        try:
            return Runner(
                decoder, cache, list(self.checkpoint.stop_ids), self._break_id,
                self.tokenizer.twins(decoder.config.vocab_size), self._max_sequences, config.lookahead,
                self._max_step_tokens, lag=on_gpu,
                graphs=config.cuda_graphs and on_gpu and decoder.ops.backend != "reference",
            )  # fmt: skip
        except shortage(self.device) as error:
            raise ConfigError(
                f"there is no memory for steps of EngineConfig.max_step_tokens = {self._max_step_tokens}, "
                f"max_sequences = {self._max_sequences} and lookahead = {config.lookahead}; lower them, or kv_bytes"
            ) from error

    @contextmanager
    def _threads_limited(self) -> Iterator[None]:
        if self.backend != "cpu":
            yield
            return
        ops.set_thread_limit(self.threads)
        try:
            yield
        finally:
            ops.set_thread_limit(0)

    @property
    def threads(self) -> int:
        """Most threads of a step on a CPU."""
        usable = ops.usable_threads()
        return min(self.config.threads or usable, usable)

    @property
    def memory(self) -> dict[str, int]:
        """Bytes on the device: of keys and values, and of captured steps."""
        runner = self._runner
        return {"kv": runner.cache.nbytes, "graphs": runner.graphs.nbytes if runner.graphs else 0}

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the model and the KV memory. Calls still running end with an `EngineError` for what is unfinished."""
        if self._ended is None:  # before the lock, for whoever runs steps to see
            self._ended = "the engine is closed; make a new one with Engine.from_pretrained"
        with self._lock:
            self._end(self._ended)
            self._flight = None
            self._runner = None  # type: ignore[assignment]

    def summarize(self, batch: Iterable[Item]) -> list[Summary]:
        """One `Summary` per item, in order. A bad item gets `error` set and does not affect the others; this call
        raises only for a closed engine or a `batch` that cannot be iterated."""
        if isinstance(batch, (Request, Mapping, str, bytes)):
            raise TypeError("summarize takes a list of requests; for one request pass [request]")
        items = list(batch)
        self._check_open()
        summaries: list[Summary | None] = [None] * len(items)
        for i, made in self._finished(items):
            summaries[i] = self._summary(made) if isinstance(made, Sequence) else Summary.failed(made)
        return [summary for summary in summaries if summary is not None]

    def _finished(self, items: list[Item]) -> Iterator[tuple[int, Sequence | QdengineError]]:
        """Place and finished sequence, or error, of every item. A window of items is encoded by another thread while
        steps run over those before: that bounds memory, and lets no device wait for the tokenizer."""
        window = self._max_sequences
        begins = deque(range(0, len(items), window))
        encoder = ThreadPoolExecutor(1) if len(items) > window else None
        active: dict[int, Sequence] = {}
        coming: tuple[int, Future[list[Sequence | QdengineError]]] | None = None
        try:
            while begins or coming or active:
                if coming is None and begins and len(active) <= window:
                    begin = begins.popleft()
                    coming = begin, self._encoded(items[begin : begin + window], encoder)
                if coming is not None and (coming[1].done() or not active):
                    for i, made in enumerate(coming[1].result(), coming[0]):
                        if isinstance(made, Sequence):
                            active[i] = made
                        else:
                            yield i, made
                    coming = None
                    continue
                encoded = coming[1] if coming is not None else None
                self._turns.run(self._run_step, partial(_any_done, active, encoded))
                for i in [i for i, sequence in active.items() if sequence.finished]:
                    yield i, active.pop(i)
        finally:
            if encoder is not None:
                encoder.shutdown()
            if coming is not None and coming[1].exception() is None:
                self._abort(made for made in coming[1].result() if isinstance(made, Sequence))
            self._abort(active.values())

    def _encoded(self, items: list[Item], encoder: ThreadPoolExecutor | None) -> Future[list[Sequence | QdengineError]]:
        if encoder is not None:
            return encoder.submit(self._submit, items)
        done: Future[list[Sequence | QdengineError]] = Future()
        done.set_result(self._submit(items))
        return done

    def stream(self, request: Item) -> Iterator[str]:
        """Yield the text as it is accepted; the pieces joined are `Summary.text`. Raises the request's error."""
        self._check_open()
        made = self._submit([request])[0]
        if not isinstance(made, Sequence):
            raise made
        sent = ""
        try:
            while not made.finished:
                self._turns.run(self._run_step, partial(_goes_on, made, made.length))
                text = self._summary(made).text if made.finished else self._settled(made)
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
        return [self._queue(x, next(prompts)) if isinstance(x, Request) else x for x in made]  # type: ignore[arg-type]

    def _parse(self, item: Item) -> Request:
        request = Request.parse(item)
        if request.verbatim and not self.checkpoint.stop_ids:
            raise RequestError("the model has no stop token, which ends a verbatim summary; convert it with stop_ids")
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
            self._scheduler.pool.keys(request.namespace, prompt.ids[: prompt.shareable]),
        )
        try:
            self._scheduler.add(sequence)
        except LimitError as error:
            return error
        return sequence

    def _run_step(self) -> None:
        """One step for everybody, or the end of everybody when the engine has ended."""
        with self._lock:
            if self._ended is not None:
                self._end(self._ended)
                return
            try:
                with self._threads_limited():  # of the thread that steps, whoever that is
                    self._step()
            except Exception as error:
                self._fail(error)
            except BaseException:
                self._flight = None
                self._scheduler.restart()
                raise

    def _step(self) -> None:
        """Start a step, and take the result of the one before where steps are planned ahead, else its own."""
        before, self._flight = self._flight, None
        # Sampling counts positions on the host, which then must know them.
        if before is not None and any(s.request.temperature > 0.0 for s in self._scheduler.running):
            self._collect(before)
            before = None
        flight = self._launch()
        if before is not None:
            self._collect(before)
        if flight is not None and self._runner.lag:
            self._flight = flight
        elif flight is not None:
            self._collect(flight)

    def _launch(self) -> Flight | None:
        """The next step, under way; None when nothing is left to compute."""
        scheduler, runner = self._scheduler, self._runner
        admitted, now = scheduler.admit(), time.perf_counter()
        runner.admit(admitted)
        for sequence in admitted:
            sequence.stats.reused_tokens = sequence.computed
            sequence.started = sequence.started or now
        running = scheduler.running
        most = [self._most_drafted(sequence, len(running)) for sequence in running]
        if runner.lag:  # what is drafted is not known yet; a bit more than usual finds room
            drafts = math.ceil(1.25 * self._usual_draft * len(running))
        else:
            most = runner.propose(running, most)
            drafts = sum(most)
        entries = scheduler.plan(most, drafts)
        if not entries:
            return None
        flight = runner.launch(entries, drafts)
        for entry in entries:
            scheduler.launch(entry)
        return flight

    def _collect(self, flight: Flight) -> None:
        """Take the result of a step, when it is there."""
        result, seconds = self._runner.collect(flight)
        now = time.perf_counter()
        self._draft_cost.observe_step(len(flight.entries), flight.tokens, seconds)
        out = result["out"]
        out_lens, kept, finished, drafted = (
            result[name].tolist() for name in ("out_lens", "kept", "finished", "drafted")
        )
        for entry in flight.entries:
            if not entry.lives:
                continue
            sequence, row = entry.sequence, entry.sequence.row
            accepted = max(out_lens[row] - 1, 0)
            if entry.writes:
                self._count(sequence, drafted[row], accepted, now)
            self._scheduler.commit(entry, accepted, out[row, : kept[row]], FINISH_REASONS[finished[row]])
            if sequence.finished:
                self._time(sequence, now)

    def _most_drafted(self, sequence: Sequence, sequences: int) -> int:
        if sequence.pending > self._max_step_tokens:
            return 0  # its prompt takes more than this step
        if not self.config.adaptive_lookahead:
            return sequence.draft_limit
        return self._draft_cost.length(sequence.acceptance, sequences, sequence.draft_limit)

    def _count(self, sequence: Sequence, drafted: int, accepted: int, now: float) -> None:
        self._draft_cost.observe_draft(sequence.acceptance, drafted, accepted)
        self._usual_draft += 0.05 * (drafted - self._usual_draft)
        stats = sequence.stats
        stats.steps += 1
        stats.drafted += drafted
        stats.accepted += accepted
        sequence.first_token = sequence.first_token or now

    @staticmethod
    def _time(sequence: Sequence, now: float) -> None:
        stats = sequence.stats
        stats.queue_ms = 1e3 * (sequence.started - sequence.arrived)
        stats.prefill_ms = 1e3 * (sequence.first_token - sequence.started)
        stats.decode_ms = 1e3 * (now - sequence.first_token)

    def _fail(self, cause: Exception) -> None:
        """A step broke: every sequence in it ends with an error, and the engine goes on with an empty slate, unless the
        device is lost."""
        self._flight = None
        first, _, _ = str(cause).strip().partition("\n")  # the other lines of CUDA's are how to debug it
        told = f"{type(cause).__name__}: {first}"
        if self._runner.works():
            error = EngineError(f"a step failed: {told}")
            error.__cause__ = cause
            for sequence in list(self._scheduler.running):
                self._scheduler.abort(sequence, error)
        else:
            self._end(
                f"the device failed, and takes no more work from this process ({told}); start a new process", cause
            )

    def _end(self, why: str, cause: Exception | None = None) -> None:
        """Take no more requests, and end those there are with an error that says why."""
        self._ended = why
        self._scheduler.receive()
        for sequence in self._scheduler.running + self._scheduler.waiting:
            error = EngineError(why)
            error.__cause__ = cause
            self._scheduler.abort(sequence, error)

    def _abort(self, sequences: Iterable[Sequence]) -> None:
        with self._lock:
            for sequence in sequences:
                if not sequence.finished:
                    self._scheduler.abort(sequence)

    def _check_open(self) -> None:
        if self._ended is not None:
            raise EngineError(self._ended)

    def _settled(self, sequence: Sequence) -> str:
        """The text so far that what follows cannot change."""
        if sequence.request.verbatim:
            return verbatim.settled(sequence.prompt, sequence.request.document, sequence.output, self._break_id)
        # A character may still lack bytes, and white space at the end may turn out to be the end.
        return self.tokenizer.decode(sequence.output.tolist()).strip().rstrip("\ufffd").rstrip()

    def _summary(self, sequence: Sequence) -> Summary:
        if sequence.error is not None:
            return Summary.failed(sequence.error)
        ids, document, spans = sequence.output, sequence.request.document, None
        if sequence.request.verbatim:
            spans = verbatim.spans(sequence.prompt, document, ids, self._break_id)
        return Summary(
            text=self.tokenizer.decode(ids.tolist()).strip() if spans is None else verbatim.text(document, spans),
            spans=spans,
            token_ids=ids.tolist(),
            finish_reason=sequence.finish_reason,
            truncated=sequence.prompt.truncated,
            stats=sequence.stats,
        )


def _any_done(active: dict[int, Sequence], encoded: Future[list[Sequence | QdengineError]] | None) -> bool:
    return any(sequence.finished for sequence in active.values()) or (encoded is not None and encoded.done())


def _goes_on(sequence: Sequence, length: int) -> bool:
    return sequence.finished or sequence.length > length

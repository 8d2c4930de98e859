"""The engine: requests in, summaries out."""

from __future__ import annotations

import math
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
from .runner import FINISH_REASONS, Flight, Runner
from .scheduler import Scheduler
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
        shape = checkpoint.config
        decoder = Decoder(shape, checkpoint.weights(), table, dtype, self.device)
        cache = KVCache(shape, self.config.kv_bytes, self.config.block_tokens, dtype, self.device, self.config.kv_dtype)
        self.backend = table.backend
        self._context = min(shape.max_positions, cache.blocks * self.config.block_tokens)
        self._runner = self._make_runner(decoder, cache)
        self._flight: Flight | None = None  # the step on its way, where steps are planned ahead
        self._collected = 0.0  # when the last result was there
        self._scheduler = Scheduler(
            BlockPool(cache.blocks), self.config.block_tokens, self.config.max_sequences, self.config.max_step_tokens
        )
        self._documents = DocumentCache(self.config.document_cache_bytes)
        self._draft_cost = DraftCost(self.config.lookahead)
        self._usual_draft = float(self.config.lookahead)  # tokens, of a sequence that writes
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
                decoder, cache, list(self.checkpoint.stop_ids), config.max_sequences, config.lookahead,
                config.max_step_tokens, lag=on_gpu,
                graphs=config.cuda_graphs and on_gpu and decoder.ops.backend != "reference",
            )  # fmt: skip
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
            if self._ended is None:
                self._end("the engine is closed; make a new one with Engine.from_pretrained")
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
            if self._ended is not None:
                return [EngineError(self._ended)] * len(items)
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
        result = self._runner.collect(flight)
        now = time.perf_counter()
        self._draft_cost.observe_step(len(flight.entries), flight.tokens, now - max(flight.began, self._collected))
        self._collected = now
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
        if sequence.pending > self.config.max_step_tokens:
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
        told = f"{type(cause).__name__}: {cause}"
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

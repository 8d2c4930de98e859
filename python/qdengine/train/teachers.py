"""Teachers: who answers rows. A model on this machine, a server, or qdengine's own engine."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ..errors import ConfigError, LimitError, QdengineError
from . import label_config
from .rows import Row


class TeacherError(QdengineError):
    """A teacher gave no answer, or none that can be read."""


@dataclass(frozen=True, slots=True)
class Answer:
    """whole: the teacher ended it, and was not cut at `max_new_tokens`."""

    text: str
    whole: bool


Tell = Callable[[Row, Answer | QdengineError], None]


class Teacher(Protocol):
    """`name` and `prompt` need no model: it is loaded when the first row is asked."""

    name: str

    def prompt(self, row: Row) -> str:
        """The text that the row is asked with."""

    def ask(self, rows: Sequence[Row], tell: Tell) -> None:
        """Call `tell` once for every row, in any order, with its answer or what was wrong with it alone. Raises a
        `QdengineError` where the teacher itself cannot go on."""


def open_teacher(settings: label_config.Label) -> Teacher:
    """Raises a `QdengineError` where the settings name no such teacher."""
    teacher = settings.teacher
    if teacher.kind == "openai":
        return OpenAITeacher(teacher, settings)
    if teacher.kind == "transformers":
        return TransformersTeacher(teacher, settings)
    return EngineTeacher(teacher, settings)


def fill(template: str, row: Row) -> str:
    """The row's texts are inserted once and never read as a template."""
    return re.sub(r"\{(query|title|document)\}", lambda place: getattr(row, place[1]).strip(), template)


class OpenAITeacher:
    """A server with OpenAI's chat completions. Retries and their waits are the client's; the limit of requests holds
    for retries as well."""

    def __init__(self, teacher: label_config.OpenAITeacher, settings: label_config.Label) -> None:
        self.name = teacher.model
        self._teacher, self._settings = teacher, settings
        self._key = "none" if teacher.api_key is None else os.environ.get(teacher.api_key, "")
        if not self._key:
            raise ConfigError(f"teacher.api_key: there is no environment variable {teacher.api_key}; set it to the key")
        self._patience = 20 + 2 * teacher.concurrency
        self._failures = 0

    def prompt(self, row: Row) -> str:
        return fill(self._settings.instruction, row)

    def ask(self, rows: Sequence[Row], tell: Tell) -> None:
        try:
            asyncio.run(self._ask_all(rows, tell))
        except ExceptionGroup as group:
            raise group.exceptions[0] from None

    async def _ask_all(self, rows: Sequence[Row], tell: Tell) -> None:
        from openai import AsyncOpenAI, DefaultAsyncHttpxClient

        teacher, waiting, hooks = self._teacher, iter(rows), {}
        if teacher.requests_per_minute is not None:
            hooks["request"] = [_limiter(teacher.requests_per_minute)]
        client = AsyncOpenAI(
            base_url=str(teacher.base_url), api_key=self._key, max_retries=teacher.retries, timeout=teacher.timeout,
            http_client=DefaultAsyncHttpxClient(event_hooks=hooks, timeout=teacher.timeout),
        )  # fmt: skip

        async def work() -> None:
            for row in waiting:  # which all workers share
                tell(row, await self._ask(client, row))

        async with client, asyncio.TaskGroup() as group:
            for _ in range(min(teacher.concurrency, len(rows))):
                group.create_task(work())

    async def _ask(self, client: Any, row: Row) -> Answer | QdengineError:
        import openai

        settings = self._settings
        body = {"max_tokens": settings.max_new_tokens, "temperature": settings.temperature} | self._teacher.body
        body = {name: value for name, value in body.items() if value is not None}
        messages = [{"role": "user", "content": self.prompt(row)}]
        try:
            for attempt in range(self._teacher.retries + 1):
                if attempt:
                    await asyncio.sleep(min(8.0, 0.5 * 2 ** (attempt - 1)))
                made = client.chat.completions.create(model=self._teacher.model, messages=messages, extra_body=body)
                try:
                    answer = _read(await made)
                    break
                except ValueError as error:  # a body that is no JSON, or no answer: the client leaves those to us
                    unread = error
            else:
                return self._failed(TeacherError(f"the server's answer cannot be read: {unread}"))
        except (openai.AuthenticationError, openai.NotFoundError) as error:
            raise TeacherError(f"{self._teacher.base_url} refuses: {error}") from None
        except openai.OpenAIError as error:
            failure = TeacherError(f"{type(error).__name__}: {error.__cause__ or error}")
            own = getattr(error, "status_code", None) in (400, 413, 422)
            return failure if own else self._failed(failure)
        self._failures = 0
        return answer

    def _failed(self, error: TeacherError) -> TeacherError:
        """Raises where the server rather than the row must be at fault."""
        self._failures += 1
        if self._failures >= self._patience:
            raise TeacherError(
                f"{self._teacher.base_url} failed {self._failures} times in a row, the last time with {error}; "
                "give the same command again when it works"
            )
        return error


def _limiter(per_minute: float) -> Callable[[Any], Any]:
    from aiolimiter import AsyncLimiter

    limiter = AsyncLimiter(1, 60 / per_minute)  # one at a time, and not a minute's at once

    async def wait(request: Any) -> None:
        await limiter.acquire()

    return wait


def _read(completion: Any) -> Answer:
    """Raises `ValueError` for what is no chat completion; the client checks no types."""
    try:
        choice = completion.choices[0]
        text = choice.message.content
        if text is None:
            text = choice.message.refusal or ""
        whole = choice.finish_reason != "length"
    except (AttributeError, IndexError, KeyError, TypeError):
        raise ValueError(f"it has no choices[0].message: {str(completion)[:200]}") from None
    if not isinstance(text, str):
        raise ValueError(f"its content is no text but {type(text).__name__}")
    return Answer(text.encode("utf-8", "replace").decode("utf-8").strip(), whole)  # JSON can hold lone surrogates


_MARK = "\ue000"
"""Stands for the text in a chat template."""


class TransformersTeacher:
    """A causal language model in a local folder, by transformers: no network, no code from the folder, no pickle."""

    def __init__(self, teacher: label_config.TransformersTeacher, settings: label_config.Label) -> None:
        self.name = teacher.folder.resolve().name
        self._teacher, self._settings = teacher, settings

    def prompt(self, row: Row) -> str:
        return fill(self._settings.instruction, row)

    def ask(self, rows: Sequence[Row], tell: Tell) -> None:
        os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
        import torch
        import transformers as hf

        if not sys.stderr.isatty():
            hf.utils.logging.disable_progress_bar()
        local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        folder, precision = self._teacher.folder, self._teacher.precision
        try:
            tokenizer = hf.AutoTokenizer.from_pretrained(folder, **local)
            model: Any = hf.AutoModelForCausalLM.from_pretrained(
                folder, **local, use_safetensors=True, device_map=self._teacher.device, dtype=precision
            ).eval()
        except (OSError, ValueError, RuntimeError) as error:
            raise ConfigError(f"teacher.folder: {folder} cannot be loaded: {error}") from error
        stop = _stop_ids(model, tokenizer)
        # What the folder says of sampling and penalties is not asked for.
        temperature = self._settings.temperature
        model.generation_config = hf.GenerationConfig(
            max_new_tokens=self._settings.max_new_tokens, eos_token_id=stop or None, pad_token_id=0,
            do_sample=temperature > 0, temperature=temperature or None, top_k=0, top_p=1.0,
        )  # fmt: skip
        prompts = list(self._fitting(rows, tokenizer, model, tell))
        prompts.sort(key=lambda item: len(item[1]), reverse=True)  # little padding, and no memory runs out late
        for begin in range(0, len(prompts), self._teacher.batch):
            batch = prompts[begin : begin + self._teacher.batch]
            try:
                made = _generate(model, [ids for _, ids in batch])
            except torch.OutOfMemoryError as error:
                raise ConfigError(
                    f"there is no memory for teacher.batch = {self._teacher.batch} rows of {len(batch[0][1])} tokens; "
                    f"lower it: {error}"
                ) from error
            for (row, _), ids in zip(batch, made, strict=True):
                end = next((i for i, token in enumerate(ids) if token in stop), None)
                text = str(tokenizer.decode(ids[:end], skip_special_tokens=True))
                tell(row, Answer(text.strip(), end is not None))

    def _fitting(self, rows: Sequence[Row], tokenizer: Any, model: Any, tell: Tell) -> Iterator[tuple[Row, list[int]]]:
        """Each row's token ids; of one that is too long `tell` is told."""
        encode = self._encoder(tokenizer)
        context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        for row in rows:
            ids, new = encode(self.prompt(row)), self._settings.max_new_tokens
            if context is not None and len(ids) + new > context:
                tell(row, LimitError(f"the prompt has {len(ids)} tokens, and {new} new ones: of {context} positions"))
            else:
                yield row, ids

    def _encoder(self, tokenizer: Any) -> Callable[[str], list[int]]:
        """To the ids of a text as the user's turn of a chat, or as it is where there is no chat template. Text that
        spells a special token is plain text."""

        def plain(text: str) -> list[int]:
            return tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids

        if not tokenizer.chat_template:
            begin = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
            return lambda text: begin + plain(text)
        turn = tokenizer.apply_chat_template(
            [{"role": "user", "content": _MARK}], tokenize=False, add_generation_prompt=True, **self._teacher.template
        )
        around = turn.split(_MARK)
        if len(around) != 2:
            raise ConfigError(
                f"teacher.folder: the chat template puts the user's text {len(around) - 1} times, not once"
            )
        head, tail = (tokenizer(text, add_special_tokens=False).input_ids for text in around)
        return lambda text: head + plain(text) + tail


def _stop_ids(model: Any, tokenizer: Any) -> list[int]:
    found = model.generation_config.eos_token_id
    if found is None:
        found = tokenizer.eos_token_id
    return found if isinstance(found, list) else [] if found is None else [found]


def _generate(model: Any, prompts: list[list[int]]) -> list[list[int]]:
    """The new ids of each, those behind its stop token included."""
    import torch

    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(one)) + one for one in prompts], device=model.device)
    mask = torch.tensor([[0] * (longest - len(one)) + [1] * len(one) for one in prompts], device=model.device)
    with torch.inference_mode():
        return model.generate(input_ids=ids, attention_mask=mask)[:, longest:].tolist()


_BATCH = 256
"""Rows given to the engine at a time."""


class EngineTeacher:
    """A student in qdengine's own engine."""

    def __init__(self, teacher: label_config.EngineTeacher, settings: label_config.Label) -> None:
        from .. import checkpoint, student

        self._checkpoint = checkpoint.load(student.resolve(teacher.student))
        self.name = self._checkpoint.name
        self._teacher, self._settings = teacher, settings

    def prompt(self, row: Row) -> str:
        return fill("".join(self._checkpoint.prompt.parts), row)

    def ask(self, rows: Sequence[Row], tell: Tell) -> None:
        from .. import Engine

        with Engine(self._checkpoint, self._teacher.device, self._teacher.precision) as engine:
            for begin in range(0, len(rows), _BATCH):
                batch = rows[begin : begin + _BATCH]
                for row, summary in zip(batch, engine.summarize(map(self._request, batch)), strict=True):
                    tell(row, summary.error or Answer(summary.text, summary.finish_reason == "stop"))

    def _request(self, row: Row) -> dict[str, Any]:
        return {
            "query": row.query,
            "title": row.title,
            "document": row.document,
            "max_new_tokens": self._settings.max_new_tokens,
            "temperature": self._settings.temperature,
            "verbatim": self._teacher.verbatim,
        }

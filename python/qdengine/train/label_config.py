"""Settings of `qdengine train label`: the rows, the teacher, and what makes an answer a label."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import DirectoryPath, Field, HttpUrl, field_validator, model_validator

from .config import ABSENT, Count, Positive, Section, Share

CONCISE = f"""Answer the query with a short summary of the document, in the document's own words: copy the sentences \
that answer the query, and change, add and explain nothing. If the document does not answer the query, write only: \
{ABSENT}

Title: {{title}}
Document:
{{document}}

Query: {{query}}
Summary:"""
"""The default instruction: concise, and as close to the document as an answer can be."""


class TransformersTeacher(Section):
    """folder: a causal language model in Hugging Face format, with its tokenizer. device: as `device_map` of
    transformers. batch: rows at a time. template: more arguments of the tokenizer's chat template."""

    kind: Literal["transformers"]
    folder: DirectoryPath
    device: str = "auto"
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    batch: Count = 8
    template: dict[str, Any] = Field(default_factory=dict)


class OpenAITeacher(Section):
    """base_url: of a server with OpenAI's chat completions, up to and with "/v1". api_key: the NAME of the environment
    variable that holds the key; None for a server that wants none. concurrency: requests at a time.
    requests_per_minute: most of them, retries included; None for no limit. retries: of a request, with waits that
    double or that the server asks for. timeout: seconds without a byte. body: more fields of the request's body; null
    takes one out.
    """

    kind: Literal["openai"]
    base_url: HttpUrl
    model: str = Field(min_length=1)
    api_key: str | None = Field(None, pattern="^[A-Za-z_][A-Za-z0-9_]*$")
    concurrency: Count = 8
    requests_per_minute: Positive | None = None
    retries: Annotated[int, Field(ge=0)] = 5
    timeout: Positive = 120.0
    body: dict[str, Any] = Field(default_factory=dict)


class EngineTeacher(Section):
    """student: a student's name, bundle or Hugging Face folder, for qdengine's own engine, which asks in the student's
    own prompt format: the instruction is not used. verbatim: whole sentences of the document alone."""

    kind: Literal["engine"]
    student: str
    device: str = "auto"
    precision: str = "auto"
    verbatim: bool = False


class Filters(Section):
    """What of the answers is rejected; null or false switches a filter off.

    empty: no text. refusal: the teacher says that it cannot answer, or that the document does not. words: most of an
    answer; one that was cut at `max_new_tokens` is too long as well. verbatim: least share of an answer's 4-grams that
    the document has. query: least share of the query's terms that are in the answer or near the places in the document
    that it is from. duplicate: an earlier row has the same query and document; it is not asked. language: "zh" counts
    every Chinese character as a word.
    """

    empty: bool = True
    refusal: bool = True
    words: Count | None = 128
    verbatim: Share | None = 0.8
    query: Share | None = 0.1
    duplicate: bool = True
    language: Literal["en", "zh"] = "en"


class Label(Section):
    """requests: JSON Lines files of rows (id, query, title, document). rows: how many of them. instruction: what the
    teacher is told, with {query}, {title} and {document} once each. shard: most labels of a file."""

    output: Path
    requests: list[Path] = Field(min_length=1)
    rows: Count | None = None
    teacher: TransformersTeacher | OpenAITeacher | EngineTeacher = Field(discriminator="kind")
    instruction: str = CONCISE
    max_new_tokens: Count = 192
    temperature: Annotated[float, Field(ge=0)] = 0.0
    filters: Filters = Filters()
    shard: Count = 10_000

    @field_validator("instruction")
    @classmethod
    def _places(cls, instruction: str) -> str:
        found = sorted(re.findall(r"\{(query|title|document)\}", instruction))
        if found != ["document", "query", "title"]:
            raise ValueError("{query}, {title} and {document} must stand in it once each")
        return instruction

    @model_validator(mode="after")
    def _engine_asks_itself(self) -> Label:
        if self.teacher.kind == "engine":
            if self.instruction != CONCISE:
                raise ValueError("an engine asks in its student's own prompt format: leave instruction out")
            if self.teacher.verbatim and self.temperature:
                raise ValueError("verbatim summaries are greedy: temperature must be 0")
        return self

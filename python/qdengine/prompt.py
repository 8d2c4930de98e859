"""From a request to token ids: one function for engine, training and evaluation.

A format is data: templates of parts that are tokenised apart, so that a document's ids never depend on the query. With
the document first, its keys and values can be kept and used for every query about it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

import numpy as np

from ._host import sentence_starts
from .documents import Document, DocumentCache, DocumentKey
from .errors import ConfigError, LimitError, RequestError
from .request import Request
from .tokenizer import Tokenizer

_PLACE = re.compile(r"\{(title|document|query)\}")
# Text beyond this many characters for every token of the limit is not tokenised: ordinary text has about 4.
_CHARACTERS_PER_TOKEN = 16


@dataclass(frozen=True, slots=True)
class PromptFormat:
    """parts: templates with {title}, {document} and {query}. One part ends with the document, another one holds the
    query.

    bos_id: a token before everything, or None. output_prefix: what a summary's text starts with, so that the first
        word's token is the one it has inside a document.
    """

    parts: tuple[str, ...]
    bos_id: int | None = None
    output_prefix: str = " "

    def __post_init__(self) -> None:
        if not self.parts or not all(isinstance(part, str) for part in self.parts):
            raise ConfigError(f"prompt format: parts must be texts, not {self.parts!r}")
        if self.bos_id is not None and (isinstance(self.bos_id, bool) or not isinstance(self.bos_id, int)):
            raise ConfigError(f"prompt format: bos_id must be a token id or null, not {self.bos_id!r}")
        if not isinstance(self.output_prefix, str):
            raise ConfigError(f"prompt format: output_prefix must be a text, not {self.output_prefix!r}")
        held = {
            name: [i for i, part in enumerate(self.parts) if f"{{{name}}}" in part] for name in ("document", "query")
        }
        for name, found in held.items():
            if len(found) != 1 or self.parts[found[0]].count(f"{{{name}}}") != 1:
                raise ConfigError(f"prompt format: {{{name}}} must stand once, in one of the parts {self.parts!r}")
        if held["document"] == held["query"]:
            raise ConfigError("prompt format: {document} and {query} must stand in different parts")
        # So that a document can be cut, and that every token from the first of its own on is a piece of it.
        if not self.parts[held["document"][0]].endswith("{document}"):
            raise ConfigError("prompt format: what follows {document} must be a part of its own")

    @property
    def document_part(self) -> int:
        """Which of `parts` holds the document."""
        return _document_part(self.parts)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> PromptFormat:
        """Inverse of `to_dict`. Raises `ConfigError`."""
        try:
            return cls(**{**data, "parts": tuple(data["parts"])})
        except (TypeError, KeyError) as error:
            raise ConfigError(f"prompt format: {error}") from None


DOCUMENT_FIRST = PromptFormat(("{title}\n{document}", "\n\nQuery: {query}\nSummary:"))
QUERY_FIRST = PromptFormat(("Query: {query}\n", "{title}\n{document}", "\n\nSummary:"))


@dataclass(slots=True)
class Prompt:
    """ids: int32 [T]. The document part (title included) is ids[document_begin:document_end].

    shareable: leading tokens that every request with the same text up to the document's end has, too.
    ranks: int32 [T], what `ngram_propose` prefers: 2 * (overlap of the token's sentence with the query) + (1 at a
        sentence start) for the document's tokens, 0 elsewhere. truncated: the document was cut.
    part_offsets: int32 [document_end - document_begin, 2], characters of the part, in which the document begins at
        `head`, less `indent` characters of white space.
    """

    ids: np.ndarray
    document_begin: int
    document_end: int
    shareable: int
    ranks: np.ndarray
    truncated: bool
    part_offsets: np.ndarray
    head: int
    indent: int

    @property
    def offsets(self) -> np.ndarray:
        """int32 [document_end - document_begin, 2], characters of `Request.document`; (-1, -1) for the title's
        tokens."""
        offsets, head = self.part_offsets, self.head
        return np.where(offsets[:, 1:] > head, np.maximum(offsets - head, 0) + self.indent, -1).astype(np.int32)


def encode(
    tokenizer: Tokenizer, prompt: PromptFormat, requests: Sequence[Request], max_tokens: Sequence[int] | int,
    cache: DocumentCache | None = None,
) -> list[Prompt | RequestError]:  # fmt: skip
    """The prompt of every request, at most `max_tokens` (of each, or of all) tokens long.

    A document is tokenised once for all requests about it, and not at all when `cache` has it.

    A document that is too long is cut at the last sentence end that fits, and its ids are the first ones of the whole
    document's. Where query, title and format leave no room for the document, the result is a `LimitError`.
    """
    limits = [max_tokens] * len(requests) if isinstance(max_tokens, int) else max_tokens
    rendered = [_render(prompt, request, most) for request, most in zip(requests, limits, strict=True)]
    keys = dict.fromkeys(one.document for one in rendered)
    documents = {key: found for key in keys if cache and (found := cache.get(key))}
    unknown = [key for key in keys if key not in documents]
    encodings = iter(tokenizer.encode_batch([*(k.text for k in unknown), *(t for one in rendered for t in one.others)]))
    for key in unknown:
        documents[key] = document = Document(key, next(encodings))
        if cache:
            cache.put(document)
    result: list[Prompt | RequestError] = []
    for request, one, most in zip(requests, rendered, limits, strict=True):
        others = [next(encodings).ids for _ in one.others]
        try:
            result.append(_assemble(prompt, request, one, documents[one.document], others, most))
        except RequestError as error:
            result.append(error)
    return result


@cache
def _pieces(template: str) -> tuple[tuple[str, bool], ...]:
    """Literal text, and names of places, in turns."""
    return tuple((piece, i % 2 == 1) for i, piece in enumerate(_PLACE.split(template)))


@cache
def _document_part(parts: tuple[str, ...]) -> int:
    return next(i for i, part in enumerate(parts) if "{document}" in part)


@dataclass(slots=True)
class _Rendered:
    """document: the part that holds it. others: texts of the other parts. overlong: fields of which only the beginning
    is in."""

    document: DocumentKey
    others: list[str]
    overlong: set[str]


def _render(prompt: PromptFormat, request: Request, max_tokens: int) -> _Rendered:
    """The text of every part. User text is inserted once and never read as a template."""
    most = max(1, max_tokens) * _CHARACTERS_PER_TOKEN
    fields = {name: getattr(request, name).strip() for name in ("title", "document", "query")}
    overlong = {name for name, text in fields.items() if len(text) > most}
    # Bounded work for any input: what is cut off here would not fit, or nearly so.
    fields = {name: text[:most] for name, text in fields.items()}

    def fill(template: str) -> str:
        return "".join(fields[piece] if place else piece for piece, place in _pieces(template))

    texts = [fill(part) for part in prompt.parts]
    document = texts.pop(prompt.document_part)
    return _Rendered(DocumentKey(request.namespace, document, len(document) - len(fields["document"])), texts, overlong)


def _assemble(
    prompt: PromptFormat, request: Request, rendered: _Rendered, document: Document, others: list[np.ndarray],
    max_tokens: int,
) -> Prompt:  # fmt: skip
    which, head = prompt.document_part, rendered.document.head
    before = [] if prompt.bos_id is None else [np.array([prompt.bos_id], dtype=np.int32)]
    before += others[:which]
    begin, rest = sum(map(len, before)), sum(map(len, others[which:]))
    room = max_tokens - begin - rest
    text, offsets = rendered.document.text, document.encoding.offsets
    truncated = len(offsets) > room or "document" in rendered.overlong
    kept = _cut(text, offsets, min(max(room, 0), len(offsets)), head) if truncated else len(offsets)
    title_tokens = int(np.searchsorted(offsets[:, 1], head, "right")) if head else 0
    if kept <= title_tokens or rendered.overlong & {"query", "title"}:
        raise LimitError(
            f"query, title and the prompt's own words take {max_tokens - room + title_tokens} tokens or more, and "
            f"leave no room for the document in {max_tokens}; shorten the query or the title, or ask for fewer "
            "max_new_tokens"
        )
    ids = np.concatenate([*before, document.encoding.ids[:kept], *others[which:]])
    ranks = np.zeros(len(ids), dtype=np.int32)
    ranks[begin : begin + kept] = document.ranks(request.query, kept)
    return Prompt(
        ids=ids,
        document_begin=begin,
        document_end=begin + kept,
        shareable=begin + kept,
        ranks=ranks,
        truncated=truncated,
        part_offsets=offsets[:kept],
        head=head,
        indent=len(request.document) - len(request.document.lstrip()),
    )


def _cut(text: str, offsets: np.ndarray, room: int, head: int) -> int:
    """How many tokens to keep, at most `room`: up to the last sentence end in the second half of that room, else up to
    the last whole character."""
    starts = np.array(sentence_starts(text))
    counts = np.searchsorted(offsets[:, 1], starts, "right")
    fitting = counts[(starts > head) & (counts > room // 2) & (counts <= room)]
    if len(fitting):
        return int(fitting[-1])
    # Byte-level tokens can share a character.
    while 0 < room < len(offsets) and offsets[room, 0] < offsets[room - 1, 1]:
        room -= 1
    return room

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

_PLACE = re.compile(r"\{(title|document|query|sentences)\}")
# Text beyond this many characters for every token of the limit is not tokenised: ordinary text has about 4.
_CHARACTERS_PER_TOKEN = 16
SENTENCE_CHARACTERS = 400
"""Of a sentence in {sentences} at most: a text without stops is one sentence."""


@dataclass(frozen=True, slots=True)
class PromptFormat:
    """parts: templates with {title}, {document}, {query} and {sentences}. One part ends with the document, another one
    holds the query.

    bos_id: a token before everything, or None. output_prefix: what a summary's text starts with, so that the first
        word's token is the one it has inside a document. sentences: how many of the document's {sentences} holds: those
        that likeliest begin the answer (`Sentences.scores`), the likeliest first, a line each behind `output_prefix`.
    """

    parts: tuple[str, ...]
    bos_id: int | None = None
    output_prefix: str = " "
    sentences: int = 0

    def __post_init__(self) -> None:
        if not self.parts or not all(isinstance(part, str) for part in self.parts):
            raise ConfigError(f"prompt format: parts must be texts, not {self.parts!r}")
        if self.bos_id is not None and (isinstance(self.bos_id, bool) or not isinstance(self.bos_id, int)):
            raise ConfigError(f"prompt format: bos_id must be a token id or null, not {self.bos_id!r}")
        if not isinstance(self.output_prefix, str):
            raise ConfigError(f"prompt format: output_prefix must be a text, not {self.output_prefix!r}")
        if isinstance(self.sentences, bool) or not isinstance(self.sentences, int) or self.sentences < 0:
            raise ConfigError(f"prompt format: sentences must be an int from 0 on, not {self.sentences!r}")
        for name in ("document", "query", "sentences"):
            times = int(name != "sentences" or self.sentences > 0)
            if sum(part.count(f"{{{name}}}") for part in self.parts) != times:
                told = "must stand once, in one of" if times else "with sentences = 0 must not stand in"
                raise ConfigError(f"prompt format: {{{name}}} {told} the parts {self.parts!r}")
        with_document = next(part for part in self.parts if "{document}" in part)
        for name in ("query", "sentences"):
            if f"{{{name}}}" in with_document:
                raise ConfigError(f"prompt format: {{document}} and {{{name}}} must stand in different parts")
        # So that a document can be cut, and that every token from the first of its own on is a piece of it.
        if not with_document.endswith("{document}"):
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
SENTENCES = PromptFormat(("{title}\n{document}", "\n\nQuery: {query}\nSentences:\n{sentences}\nSummary:"), sentences=4)
"""The document first, and behind the query the sentences that may answer it: the student reads these again, knowing
the query, while the document's keys and values still serve every query."""
QUERY_FIRST = PromptFormat(("Query: {query}\n", "{title}\n{document}", "\n\nSummary:"))


@dataclass(slots=True)
class Prompt:
    """ids: int32 [T]. The document part (title included) is ids[document_begin:document_end].

    shareable: leading tokens that every request with the same text up to the document's end has, too.
    ranks: int32 [T], what `ngram_propose` prefers: 2 * (the token's sentence's score for the query) + (1 at a
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
    documents |= {key: Document(key) for key in unknown}
    texts = [text for one in rendered for text in _others(prompt, one, documents[one.document])]
    encodings = iter(tokenizer.encode_batch([*(key.text for key in unknown), *texts]))
    for key in unknown:
        documents[key].encoding = next(encodings)
        if cache:
            cache.put(documents[key])
    result: list[Prompt | RequestError] = []
    for request, one, most in zip(requests, rendered, limits, strict=True):
        others = [next(encodings).ids for _ in prompt.parts[1:]]
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
    """document: the part that holds it. fields: the texts that are inserted. overlong: those of which only the
    beginning is."""

    document: DocumentKey
    fields: dict[str, str]
    overlong: set[str]


def _fill(template: str, fields: dict[str, str]) -> str:
    """User text is inserted once and never read as a template."""
    return "".join(fields[piece] if place else piece for piece, place in _pieces(template))


def _render(prompt: PromptFormat, request: Request, max_tokens: int) -> _Rendered:
    most = max(1, max_tokens) * _CHARACTERS_PER_TOKEN
    fields = {name: getattr(request, name).strip() for name in ("title", "document", "query")}
    overlong = {name for name, text in fields.items() if len(text) > most}
    # Bounded work for any input: what is cut off here would not fit, or nearly so.
    fields = {name: text[:most] for name, text in fields.items()}
    document = _fill(prompt.parts[prompt.document_part], fields)
    key = DocumentKey(request.namespace, document, len(document) - len(fields["document"]))
    return _Rendered(key, fields, overlong)


def _others(prompt: PromptFormat, rendered: _Rendered, document: Document) -> list[str]:
    """The texts of the parts without the document."""
    fields, which = rendered.fields, prompt.document_part
    if prompt.sentences:
        best = document.best(fields["query"], prompt.sentences)
        lines = (prompt.output_prefix + text[:SENTENCE_CHARACTERS] for text in best)
        fields = fields | {"sentences": "\n".join(lines)}
    return [_fill(part, fields) for i, part in enumerate(prompt.parts) if i != which]


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

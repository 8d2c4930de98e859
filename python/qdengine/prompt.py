"""From a request to token ids: one function for engine, training and evaluation.

A format is data: templates of parts that are tokenised apart, so that a document's ids never depend on the query. With the
document first, its keys and values can be kept and used for every query about it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from .errors import ConfigError, LimitError, RequestError
from .request import Request
from .sentences import sentence_ranks, sentence_starts
from .tokenizer import Encoding, Tokenizer

_PLACE = re.compile(r"\{(title|document|query)\}")
# No tokenizer in use makes tokens that average more characters than this over a whole document.
_CHARACTERS_PER_TOKEN = 16


@dataclass(frozen=True, slots=True)
class PromptFormat:
    """parts: templates with {title}, {document} and {query}; one part holds the document, another one the query.

    bos_id: a token before everything, or None. output_prefix: what a summary's text starts with, so that the first word's
    token is the one it has inside a document.
    """

    parts: tuple[str, ...]
    bos_id: int | None = None
    output_prefix: str = " "

    def __post_init__(self) -> None:
        held = {name: [i for i, part in enumerate(self.parts) if f"{{{name}}}" in part] for name in ("document", "query")}
        for name, found in held.items():
            if len(found) != 1 or self.parts[found[0]].count(f"{{{name}}}") != 1:
                raise ConfigError(f"prompt format: {{{name}}} must stand once, in one of the parts {self.parts!r}")
        if held["document"] == held["query"]:
            raise ConfigError("prompt format: {document} and {query} must stand in different parts")

    @property
    def document_part(self) -> int:
        return next(i for i, part in enumerate(self.parts) if "{document}" in part)

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
    ranks: int32 [T], what `ngram_propose` prefers: 2 * (overlap of the token's sentence with the query) + (1 at a sentence
    start) inside the document part, 0 elsewhere.
    offsets: int32 [document_end - document_begin, 2], characters of `Request.document`; (-1, -1) for the title's tokens.
    """

    ids: np.ndarray
    document_begin: int
    document_end: int
    shareable: int
    ranks: np.ndarray
    truncated: bool
    offsets: np.ndarray


def encode(
    tokenizer: Tokenizer, prompt: PromptFormat, requests: Sequence[Request], max_tokens: Sequence[int]
) -> list[Prompt | RequestError]:
    """The prompt of every request, at most `max_tokens[i]` tokens long; a `LimitError` for one whose query leaves no room.

    A document that is too long is cut at the last sentence end that fits.
    """
    rendered = [_render(prompt, request, most) for request, most in zip(requests, max_tokens, strict=True)]
    encodings = iter(tokenizer.encode_batch([text for texts in rendered for text in texts]))
    result: list[Prompt | RequestError] = []
    for request, texts, most in zip(requests, rendered, max_tokens, strict=True):
        parts = [next(encodings) for _ in texts]
        try:
            result.append(_assemble(tokenizer, prompt, request, texts, parts, most))
        except RequestError as error:
            result.append(error)
    return result


def _fields(request: Request) -> dict[str, str]:
    return {"title": request.title.strip(), "document": request.document.strip(), "query": request.query.strip()}


def _render(prompt: PromptFormat, request: Request, max_tokens: int) -> list[str]:
    """The text of every part. User text is inserted once and never read as a template."""
    fields = _fields(request)
    most = max(1, max_tokens) * _CHARACTERS_PER_TOKEN
    # Bounded work for any input: what is cut here could not fit anyway. One more character tells `_assemble` of the cut.
    fields = {name: text if len(text) <= most else text[: most + 1] for name, text in fields.items()}
    return [_PLACE.sub(lambda match: fields[match[1]], part) for part in prompt.parts]


def _assemble(
    tokenizer: Tokenizer,
    prompt: PromptFormat,
    request: Request,
    texts: list[str],
    parts: list[Encoding],
    max_tokens: int,
) -> Prompt:
    which = prompt.document_part
    bos = [] if prompt.bos_id is None else [prompt.bos_id]
    others = len(bos) + sum(len(part.ids) for i, part in enumerate(parts) if i != which)
    room = max_tokens - others
    # Where the document's own characters begin in its part.
    head = len(_PLACE.sub(lambda match: _fields(request)[match[1]], prompt.parts[which].partition("{document}")[0]))
    document, text, truncated = parts[which], texts[which], False
    if room >= 1 and (len(document.ids) > room or _overlong(request, max_tokens)):
        truncated = True
        document, text = _cut(tokenizer, text, document, room, head)
    if room < 1 or not (document.offsets[:, 1] > head).any():
        raise LimitError(
            f"the query, the title and the prompt's own words take {others} tokens and leave {max(room, 0)} of "
            f"{max_tokens} for title and document; shorten the query or title, or ask for fewer max_new_tokens"
        )
    ids = [np.array(bos, dtype=np.int32)] + [document.ids if i == which else part.ids for i, part in enumerate(parts)]
    begin = sum(len(x) for x in ids[: which + 1])
    end = begin + len(document.ids)
    ranks = np.zeros(sum(len(x) for x in ids), dtype=np.int32)
    ranks[begin:end] = sentence_ranks(text, request.query, document.offsets)
    return Prompt(
        ids=np.concatenate(ids),
        document_begin=begin,
        document_end=end,
        shareable=end,
        ranks=ranks,
        truncated=truncated,
        offsets=_document_offsets(request, document.offsets, head),
    )


def _overlong(request: Request, max_tokens: int) -> bool:
    return len(request.document.strip()) > max(1, max_tokens) * _CHARACTERS_PER_TOKEN


def _cut(tokenizer: Tokenizer, text: str, encoding: Encoding, room: int, head: int) -> tuple[Encoding, str]:
    """The longest beginning of the part's `text` that ends at a sentence end and takes at most `room` tokens; where no
    sentence ends in the second half of that room, it ends at a token."""
    room = min(room, len(encoding.ids))
    while True:
        limit = int(encoding.offsets[room - 1, 1])
        starts = [start for start in sentence_starts(text) if max(head, limit // 2) < start <= limit]
        kept = text[: starts[-1] if starts else limit].rstrip()
        shorter = tokenizer.encode(kept)
        # Cutting can change how the last characters are tokenised: try again with less.
        if len(shorter.ids) <= room or room == 1:
            return shorter, kept
        text, encoding, room = kept, shorter, room - 1


def _document_offsets(request: Request, offsets: np.ndarray, head: int) -> np.ndarray:
    moved = offsets + (len(request.document) - len(request.document.lstrip()) - head)
    return np.where(offsets[:, 1:] > head, np.maximum(moved, 0), -1).astype(np.int32)

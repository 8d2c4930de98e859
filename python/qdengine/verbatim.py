"""What a verbatim summary is made of: spans of the document, read off the tokens that were written.

`allowed_argmax` lets through whole sentences of the document, token by token, and between them the token of `JOINER`. A
document's own tokens of that kind end a span as well, so a break is never in doubt; spans that only such a token parts
are one again here.
"""

from __future__ import annotations

import itertools

import numpy as np

from .prompt import Prompt
from .tokenizer import Tokenizer

JOINER = "\n"

Span = tuple[int, int]
"""Characters [begin, end) of `Request.document`."""


def break_id(tokenizer: Tokenizer) -> int:
    """The token of `JOINER`; -1 where there is none, and a summary is then one span."""
    last = tokenizer.encode(JOINER).ids[-1:].tolist()
    return last[0] if tokenizer.decode(last) == JOINER else -1


def text(document: str, spans: list[Span]) -> str:
    return JOINER.join(document[begin:end] for begin, end in spans)


def spans(prompt: Prompt, document: str, output: np.ndarray, break_id: int) -> list[Span]:
    """The spans of `output` (int32, what a verbatim sequence wrote), not empty, white space at their ends left out.

    Where several places have the same tokens, one where a sentence ends with them is meant; of these the one that only
    a break parts from the span before, else that of the highest rank, else the latest.
    """
    found: list[Span] = []
    behind = -1
    for piece in _pieces(output, break_id):
        count = len(piece)
        place = max(
            _places(prompt, piece),
            key=lambda place: (_ends(prompt, document, place + count), place == behind, prompt.ranks[place], place),
        )
        broken = prompt.ids[place + count : place + count + 1].tolist() == [break_id]
        behind = place + count + 1 if broken else -1
        begin, end = _characters(prompt, document, place, count)
        if begin == end:
            continue
        if found and document[found[-1][1] : begin] == JOINER:
            begin = found.pop()[0]
        found.append((begin, end))
    return found


def settled(prompt: Prompt, document: str, output: np.ndarray, break_id: int) -> str:
    """The text that `output` has in any case, whatever follows it."""
    opened = max(np.flatnonzero(output == break_id).tolist(), default=-1) + 1
    piece = output[opened:]
    parts = [text(document, spans(prompt, document, output[:opened], break_id))]
    if len(piece):
        # A tokenizer that folds characters may give the same tokens to places that differ.
        ends = [_characters(prompt, document, place, len(piece)) for place in _places(prompt, piece)]
        parts.append(_common_prefix([document[begin:end] for begin, end in ends]))
    return JOINER.join(part for part in parts if part)


def _common_prefix(texts: list[str]) -> str:
    same = itertools.takewhile(lambda characters: len(set(characters)) == 1, zip(*texts, strict=False))
    return "".join(characters[0] for characters in same)


def _pieces(output: np.ndarray, break_id: int) -> list[np.ndarray]:
    """The runs of tokens between breaks."""
    return [
        output[list(run)]
        for broken, run in itertools.groupby(range(len(output)), lambda i: output[i] == break_id)
        if not broken
    ]


def _places(prompt: Prompt, piece: np.ndarray) -> list[int]:
    """The sentence starts of the document that have the tokens of `piece`: one at least."""
    document = prompt.ids[: prompt.document_end]
    starts = np.flatnonzero(prompt.ranks[: prompt.document_end - len(piece) + 1] & 1).tolist()
    return [place for place in starts if np.array_equal(document[place : place + len(piece)], piece)]


def _ends(prompt: Prompt, document: str, place: int) -> bool:
    """Whether a sentence ends before `place`, white space not counted."""
    for begin, end in prompt.offsets[place - prompt.document_begin :].tolist():
        if document[begin:end].strip() or prompt.ranks[place] & 1:
            return bool(prompt.ranks[place] & 1)
        place += 1
    return True


def _characters(prompt: Prompt, document: str, place: int, count: int) -> Span:
    """The whole characters of `count` tokens from `place` on. Byte-level tokens can share one: it belongs to neither
    span when they part there."""
    offsets, first = prompt.offsets, place - prompt.document_begin
    last = first + count
    begin, end = int(offsets[first, 0]), int(offsets[last - 1, 1])
    if first > 0:
        begin = max(begin, int(offsets[first - 1, 1]))
    if last < len(offsets):
        end = min(end, int(offsets[last, 0]))
    kept = document[begin:end]
    end = begin + len(kept.rstrip())
    return min(begin + len(kept) - len(kept.lstrip()), end), end

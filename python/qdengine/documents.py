"""Documents as tokens and sentences: made once for a text, whatever is asked about it."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from .sentences import Sentences
from .tokenizer import Encoding


class DocumentKey(NamedTuple):
    """text: of the prompt's part; the document begins at `head`. Callers of different namespaces share nothing."""

    namespace: str
    text: str
    head: int


@dataclass(slots=True)
class Document:
    """The part's tokens, once it is encoded; its offsets count from the start of the part."""

    key: DocumentKey
    encoding: Encoding = field(init=False)
    _sentences: dict[int, Sentences] = field(default_factory=dict, init=False)  # of the text up to a character

    def ranks(self, query: str, kept: int) -> np.ndarray:
        """int32 [kept]: `Sentences.ranks` of the first `kept` tokens; the title's are 0."""
        offsets = self.encoding.offsets[:kept]
        return self._sentences_up_to(int(offsets[-1, 1])).ranks(query, offsets, self.key.head)

    def best(self, query: str, count: int) -> list[str]:
        """The sentences that likeliest begin the answer to `query`, at most `count`, the likeliest first."""
        text = self.key.text[self.key.head :]
        return [text[a:b].strip() for a, b in self._sentences_up_to(len(self.key.text)).best(query, count)]

    def _sentences_up_to(self, end: int) -> Sentences:
        made = self._sentences
        if end not in made:
            # Of the whole text, and of the part that was asked for last: it depends on the query's length. Another
            # thread may ask for another part meanwhile, so that what is made is replaced and never changed.
            whole = {n: one for n, one in made.items() if n == len(self.key.text)}
            made = self._sentences = whole | {end: Sentences(self.key.text[self.key.head : end])}
        return made[end]

    @property
    def nbytes(self) -> int:
        """About what it takes in memory, with the text as it is and in lower case, in Python's widest characters."""
        return self.encoding.ids.nbytes + self.encoding.offsets.nbytes + 8 * len(self.key.text)


class DocumentCache:
    """Documents by text, least recently used first out. Safe for several threads.

    capacity: bytes, by `Document.nbytes`; 0 keeps nothing.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.nbytes = 0
        self._lock = threading.Lock()
        self._documents: OrderedDict[DocumentKey, Document] = OrderedDict()  # oldest first

    def get(self, key: DocumentKey) -> Document | None:
        with self._lock:
            document = self._documents.get(key)
            if document is not None:
                self._documents.move_to_end(key)
            return document

    def put(self, document: Document) -> None:
        with self._lock:
            if document.nbytes > self.capacity or document.key in self._documents:
                return
            self._documents[document.key] = document
            self.nbytes += document.nbytes
            while self.nbytes > self.capacity:
                self.nbytes -= self._documents.popitem(last=False)[1].nbytes

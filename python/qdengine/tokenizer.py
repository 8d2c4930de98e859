"""Text to token ids with character offsets, and back."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tokenizers

from .errors import CheckpointError

_SPACES = "Ġ▁"
"""A space at a token's beginning, as byte-level and SentencePiece vocabularies write it."""


@dataclass(frozen=True, slots=True)
class Encoding:
    """ids: int32 [T]; offsets: int32 [T, 2], the characters [begin, end) of each token in the text."""

    ids: np.ndarray
    offsets: np.ndarray


class Tokenizer:
    """A `tokenizer.json`. Text that spells a special token is plain text, and nothing is added to what the caller
    gives."""

    def __init__(self, tokenizer: tokenizers.Tokenizer) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        tokenizer.encode_special_tokens = True
        self._tokenizer = tokenizer

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> Tokenizer:
        """Raises `CheckpointError` when the file is missing or is not a tokenizer."""
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
            # Only "special" added tokens can be switched off, so all of them are made special.
            for token in data.get("added_tokens", []):
                token["special"] = True
            # It would add tokens, or take the space before a word out of the word's offsets.
            data["post_processor"] = None
            return cls(tokenizers.Tokenizer.from_str(json.dumps(data)))
        except FileNotFoundError:
            raise CheckpointError(
                f"{path} is missing; a model folder needs the fast tokenizer's tokenizer.json"
            ) from None
        except Exception as error:  # tokenizers raises a bare Exception
            raise CheckpointError(
                f"{path} is not a tokenizer.json that the tokenizers library reads: {error}"
            ) from error

    def encode(self, text: str) -> Encoding:
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[Encoding]:
        """Encode many texts, in parallel threads."""
        return [
            Encoding(np.array(e.ids, dtype=np.int32), np.array(e.offsets, dtype=np.int32).reshape(-1, 2))
            for e in self._tokenizer.encode_batch(list(texts), add_special_tokens=False)
        ]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`, special tokens included: what the model wrote is what is shown."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=False)

    def token_id(self, token: str) -> int | None:
        return self._tokenizer.token_to_id(token)

    def twins(self, size: int) -> np.ndarray:
        """int32 [size]: for each of so many tokens the one that has a space before it where this one has none, and the
        other way round; itself for none, -1 for white space."""
        twins = np.arange(size, dtype=np.int32)
        vocabulary = self.vocabulary
        for token, i in vocabulary.items():
            other = vocabulary.get(token[1:], size) if token[0] in _SPACES and token[1:2] not in _SPACES else size
            if max(i, other) < size:
                twins[i], twins[other] = other, i
        texts = self._tokenizer.decode_batch([[i] for i in range(self.vocab_size)], skip_special_tokens=False)
        twins[[i for i, text in enumerate(texts[:size]) if not text.strip()]] = -1
        return twins

    @property
    def vocabulary(self) -> dict[str, int]:
        """Every token's id."""
        return self._tokenizer.get_vocab()

    @property
    def vocab_size(self) -> int:
        return self._tokenizer.get_vocab_size()

"""What the host does for every request, where Python is too slow. No tensors, no torch, no threads."""

import numpy as np

def siphash(key: bytes, data: bytes | str) -> bytes:
    """SipHash-2-4 with 128 bits: 16 bytes. key: 16 bytes, else `ValueError`."""

def sentence_starts(text: str) -> list[int]:
    """Characters at which a sentence begins, rising; white space before a sentence belongs to the one before.

    A Latin stop (with closing quotes and brackets) ends a sentence before white space alone, a Chinese one and a
    line's end always. Time is linear in any text.
    """

class Keys:
    """Keys of a prompt's whole blocks, of 16 bytes: `BlockPool.keys`."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> bytes: ...

class BlockPool:
    """Who owns which block of KV memory: pure bookkeeping. Not for several threads at a time.

    A block is *free*, *held* (one or more sequences refer to it) or *idle* (nobody refers to it, but its contents are a
    known piece of a document, kept until the memory is wanted: least recently used first). A key is *expected* while it
    is the next one that a running sequence will publish.
    """

    blocks: int
    block_tokens: int
    available: int
    """Blocks that `allocate` can still give."""

    def __init__(self, blocks: int, block_tokens: int) -> None: ...
    def keys(self, namespace: str, tokens: np.ndarray) -> Keys:
        """Keys of the whole blocks of `tokens` (int32). A key covers the namespace, its block and all before it: 128
        bits of a hash that is secret to this pool, so that nobody can make two of them meet."""

    def allocate(self, count: int) -> list[int] | None:
        """`count` blocks for one holder, their contents unknown; None, and none taken, where so many are not left."""

    def known(self, keys: Keys, most: int) -> int:
        """How many leading keys, at most `most`, a block holds."""

    def acquire(self, keys: Keys, count: int) -> list[int]:
        """The blocks of the leading keys that are known, at most `count`, with one more holder each."""

    def expect(self, keys: Keys, index: int) -> None:
        """Say that key `index`, if there is one, is being computed."""

    def give_up(self, keys: Keys, index: int) -> None:
        """Take back one `expect`."""

    def expected(self, keys: Keys, index: int) -> bool:
        """Whether key `index` is there and is being computed."""

    def publish(self, keys: Keys, begin: int, blocks: list[int]) -> None:
        """Say that held blocks are filled with the keys from `begin` on. The first block to say so keeps the key."""

    def release(self, blocks: list[int]) -> None:
        """One holder less for each. Give a sequence's blocks in order: its last ones are then evicted first."""

    def release_all(self) -> None:
        """No block is held and no key expected any more; what is known stays."""

class Sentences:
    """What is known of a text's n sentences before any query. lowered: the text in lower case, character by
    character; `ValueError` for another length."""

    starts: list[int]
    """As `sentence_starts`."""

    def __init__(self, text: str, lowered: str) -> None: ...
    def scores(self, terms: list[str], stem: int) -> np.ndarray:
        """int32 [n]: see `qdengine.sentences.Sentences.scores`. terms: stems, of `stem` letters or whole words."""

    def ranks(self, scores: np.ndarray, offsets: np.ndarray, head: int) -> np.ndarray:
        """int32 [T]: see `qdengine.sentences.Sentences.ranks`. offsets: int32 [T, 2], of which the ends rise."""

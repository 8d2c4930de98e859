"""Files that are there whole, or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def aside(path: Path) -> Iterator[Path]:
    """Where to make the file that takes the place of `path` when the block is left without an exception."""
    part = path.with_name(f".{path.name}")
    yield part
    os.replace(part, path)

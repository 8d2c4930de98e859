"""How each engine is loaded and run, in a worker of its own; a module imports its library, or is not installed.

versions() -> dict                              of the libraries that count
convert(source, destination, kind)              the weights, from a Hugging Face folder; where the engine needs that
load(model, settings) -> (run, facts)           settings: device, dtype, threads, new_tokens, stops, context, and the
                                                options of table.py; run: requests, all at once, to token ids
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Run = Callable[[list[dict[str, Any]]], list[list[int]]]


def cut(ids: list[int], stops: list[int]) -> list[int]:
    """Up to the first stop token."""
    return ids[: next((i for i, token in enumerate(ids) if token in stops), len(ids))]

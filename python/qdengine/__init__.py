"""Query-driven summaries in the document's own words, at search-engine speed.

import qdengine
with qdengine.Engine.from_pretrained("qd-135m") as engine:
    engine.summarize([{"query": "...", "document": "..."}])
"""

from __future__ import annotations

import importlib
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from . import errors
from .config import EngineConfig
from .errors import QdengineError
from .request import Request, Stats, Summary

if TYPE_CHECKING:
    from .engine.engine import Engine as Engine

try:
    __version__ = version("qdengine")
except PackageNotFoundError:  # a source tree on the path, not installed
    __version__ = "0+unknown"

__all__ = ["Engine", "EngineConfig", "QdengineError", "Request", "Stats", "Summary", "__version__", "errors"]


def __getattr__(name: str) -> Any:
    # The engine imports torch; the command line's help and the dataclasses do without.
    if name == "Engine":
        return importlib.import_module(".engine.engine", __name__).Engine
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

"""qdengine. It gets texts, and tokenises them; every other engine gets the tokens."""

from __future__ import annotations

from typing import Any

import qdengine
import torch
from qdengine.cli import make_engine

from peers.adapters import Run


def versions() -> dict[str, str]:
    return {"qdengine": qdengine.__version__, "torch": torch.__version__}


def load(model: str, settings: dict[str, Any]) -> tuple[Run, dict[str, Any]]:
    engine = make_engine(
        model, settings["device"], settings["precision"], "auto", settings.get("lookahead"), settings["new_tokens"],
        (f"threads={settings['threads']}", *settings["engine"]),
    )  # fmt: skip

    def run(requests: list[dict[str, Any]]) -> list[list[int]]:
        wanted = ("query", "title", "document", "namespace")
        summaries = engine.summarize([{name: request[name] for name in wanted} for request in requests])
        failed = next((summary.error for summary in summaries if summary.error), None)
        if failed:
            raise failed
        return [summary.token_ids for summary in summaries]

    return run, {"precision": engine.precision}

"""What is made of the figures: quality, ratios, a table."""

from __future__ import annotations

import importlib.util
import statistics
from typing import Any

from qdengine.evaluate.rouge import rouge

Figures = dict[str, dict[str, Any]]


def quality(texts: list[str], rows: list[dict[str, Any]]) -> dict[str, Any]:
    """ROUGE, where its package is installed."""
    if importlib.util.find_spec("rouge_score") is None:
        return {}
    scores = [rouge(text, [row["summary"]], "en") for text, row in zip(texts, rows, strict=True)]
    return {"rouge": {name: statistics.mean(score[name] for score in scores) for name in scores[0]}}


def is_ours(name: str) -> bool:
    return name.startswith("qdengine")


def best_rival(figures: Figures, key: str) -> str | None:
    """Whose requests/s are the most, or whose latency is the least."""
    known = {name: found[key] for name, found in figures.items() if key in found and not is_ours(name)}
    return (max if key == "requests_per_s" else min)(known, key=known.__getitem__, default=None)


def ratios(result: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Of each of our engines: how many times a rival's requests/s its own are, what share of its latency, and how many
    times the best rival's cold requests/s it has where it knows the documents."""
    cold, warm = result.get("cold", {}), result.get("warm", {})
    found: dict[str, dict[str, Any]] = {}
    for name in filter(is_ours, cold):
        ours = found[name] = {}
        for key, what in (("requests_per_s", "requests_per_s_over"), ("latency_p50_ms", "latency_share_of")):
            ours[what] = {n: cold[name][key] / f[key] for n, f in cold.items() if key in f and n != name}
            if best := best_rival(cold, key):
                ours |= {f"{what}_best": ours[what][best], f"{what}_best_is": best}
        best = best_rival(cold, "requests_per_s")
        if best and "requests_per_s" in warm.get(name, {}):
            ours["warm_over_best_cold"] = warm[name]["requests_per_s"] / cold[best]["requests_per_s"]
    return found


def table(heads: list[str], rows: list[list[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"


def number(found: dict[str, Any], key: str, digits: int) -> str:
    return f"{found[key]:.{digits}f}" if key in found else ""


def said(result: dict[str, Any], name: str) -> str:
    return f"{name.replace('_', ' ')} ({result['engines'].get(name, {}).get('precision', '?')})"


def rates(result: dict[str, Any], section: str) -> str:
    rows = []
    for name, found in result[section].items():
        if "error" in found:
            rows.append([said(result, name), found["error"], "", "", ""])
            continue
        rouge2 = f"{found['rouge']['rouge2']:.1f}" if "rouge" in found else ""
        figures = [number(found, "requests_per_s", 2), number(found, "latency_p50_ms", 0)]
        rows.append([said(result, name), *figures, number(found, "output_tokens", 1), rouge2])
    return table([section, "requests/s", "latency alone, ms", "tokens", "ROUGE-2"], rows)


def curve(result: dict[str, Any], section: str, head: str) -> str:
    """Engines down, sizes across."""
    sizes = list(dict.fromkeys(size for found in result[section].values() for size in found if size.isdigit()))
    rows = [
        [said(result, name), *(cell(found.get(size)) for size in sizes)] if "error" not in found
        else [said(result, name), found["error"], *[""] * (len(sizes) - 1)]
        for name, found in result[section].items()
    ]  # fmt: skip
    return table([head, *sizes], rows)


def cell(found: Any) -> str:
    if isinstance(found, float):
        return f"{found:.2f}"
    if not found or "skipped" in found:
        return ""
    return ", ".join(f"{phase.removesuffix('_ms')} {ms:.0f}" for phase, ms in found.items())


def markdown(result: dict[str, Any]) -> str:
    made = [rates(result, section) for section in ("cold", "warm") if section in result]
    if "batches" in result:
        made.append(curve(result, "batches", "requests/s, by requests at once"))
    if "lengths" in result:
        made.append(curve(result, "lengths", "latency in ms, by the document's tokens"))
    for name, found in result["ratios"].items():
        figures = {key: value for key, value in found.items() if not isinstance(value, dict)}
        made.append(
            f"{name}: {', '.join(f'{k} {v if isinstance(v, str) else round(v, 2)}' for k, v in figures.items())}\n"
        )
    missing = {n: f["not_installed"] for n, f in result["engines"].items() if "not_installed" in f}
    made += [f"{name} is not installed: {hint}\n" for name, hint in missing.items()]
    return "\n".join(made)

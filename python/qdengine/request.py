"""What goes into the engine and what comes out: `Request`, `Summary`, `Stats`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from .errors import EmptyInputError, InvalidTextError, InvalidTypeError, LimitError, QdengineError, UnknownFieldError


@dataclass(frozen=True, slots=True)
class Request:
    """One query about one document.

    query, document, title: plain text. `document` and `query` must hold more than white space.
    max_new_tokens: most tokens of the summary; None means the engine's `max_new_tokens`.
    lookahead: most drafted tokens a step, 0 for none; None means the engine's `lookahead`, which is also the maximum.
        It changes the speed and never the tokens.
    temperature: 0 is greedy (the product); in [1e-6, 1e6] samples.
    top_p: share of the probability mass that sampling keeps, in (0, 1].
    seed: of the sampling; the same seed gives the same tokens in any batch.
    namespace: requests share a document's keys and values only within one namespace.
    verbatim: write whole sentences of the document and nothing else; `Summary.spans` says which. Greedy alone.
    """

    query: str
    document: str
    title: str = ""
    max_new_tokens: int | None = None
    lookahead: int | None = None
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    namespace: str = ""
    verbatim: bool = False

    @classmethod
    def parse(cls, item: Request | Mapping[str, Any]) -> Request:
        """Return `item` as a valid request. Raises a `RequestError` that names the field at fault."""
        if isinstance(item, Mapping):
            try:
                item = dict(item)
            except Exception as error:  # a caller's own class may fail in any way
                raise InvalidTypeError(
                    f"the request cannot be read ({type(error).__name__}: {error}); give a dict"
                ) from error
            unknown = sorted(str(key) for key in item if key not in _FIELDS)
            if unknown:
                raise UnknownFieldError(f"unknown key {unknown[0]!r}; a request has {', '.join(sorted(_FIELDS))}")
            for name in ("query", "document"):
                if name not in item:
                    raise EmptyInputError(f"the request has no {name!r}; give its text")
            item = cls(**item)
        if not isinstance(item, cls):
            raise InvalidTypeError(f"a request is a qdengine.Request or a dict, not {type(item).__name__}")
        item._check()
        return item

    def _check(self) -> None:
        for name in ("query", "document", "title", "namespace"):
            _check_text(name, getattr(self, name))
        for name in ("query", "document"):
            if not getattr(self, name).strip():
                raise EmptyInputError(f"{name} is empty; give its text")
        for name, least in (("max_new_tokens", 1), ("lookahead", 0)):
            value = getattr(self, name)
            if value is not None:
                _check_number(name, value, int)
                if not least <= value < 2**31:
                    raise LimitError(f"{name} is {_shown(value)}; it must be in [{least}, 2**31)")
        _check_number("seed", self.seed, int)
        if not 0 <= self.seed < 2**64:
            raise LimitError(f"seed is {_shown(self.seed)}; it must be in [0, 2**64)")
        _check_number("temperature", self.temperature, float)
        if self.temperature and not 1e-6 <= self.temperature <= 1e6:
            raise LimitError(f"temperature is {_shown(self.temperature)}; it must be 0 (greedy) or in [1e-6, 1e6]")
        _check_number("top_p", self.top_p, float)
        if not 0.0 < self.top_p <= 1.0:
            raise LimitError(f"top_p is {_shown(self.top_p)}; it must be in (0, 1]")
        if not isinstance(self.verbatim, bool):
            raise InvalidTypeError(f"verbatim must be True or False, not {type(self.verbatim).__name__}")
        if self.verbatim and self.temperature:
            raise LimitError(f"temperature is {_shown(self.temperature)}; verbatim requests are greedy: it must be 0")


_FIELDS = frozenset(f.name for f in fields(Request))


def _shown(number: float) -> str:
    """A number for a message; Python refuses to write out an int of thousands of digits."""
    return str(number) if isinstance(number, float) or abs(number) < 10**30 else "an int of more than 30 digits"


def _check_text(name: str, value: Any) -> None:
    if not isinstance(value, str):
        raise InvalidTypeError(f"{name} must be a str, not {type(value).__name__}")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InvalidTextError(
            f"{name} has a lone surrogate at character {error.start}; decode the text with errors='replace'"
        ) from None


def _check_number(name: str, value: Any, kind: type) -> None:
    allowed = (int,) if kind is int else (int, float)
    if isinstance(value, bool) or not isinstance(value, allowed):
        raise InvalidTypeError(f"{name} must be {'an int' if kind is int else 'a number'}, not {type(value).__name__}")


@dataclass(slots=True)
class Stats:
    """What one request cost. Times in milliseconds.

    prompt_tokens: tokens of the prompt; reused_tokens: those whose keys and values were already in memory.
    steps: forward passes that gave tokens; drafted, accepted: tokens proposed by lookahead, and those kept.
    queue_ms: arrival to first forward pass; prefill_ms: from there to the first token; decode_ms: the rest.
    """

    prompt_tokens: int = 0
    reused_tokens: int = 0
    steps: int = 0
    drafted: int = 0
    accepted: int = 0
    queue_ms: float = 0.0
    prefill_ms: float = 0.0
    decode_ms: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(slots=True)
class Summary:
    """The answer to one request.

    spans: of a verbatim request, characters (begin, end) of its document: `text` is these pieces of it, joined by
        "\\n". None for other requests.
    finish_reason: "stop" (the model ended it), "length" (`max_new_tokens` reached) or "error".
    truncated: the document was longer than the context and was cut at a sentence end.
    error: what was wrong with this request, or None.
    """

    text: str = ""
    spans: list[tuple[int, int]] | None = None
    token_ids: list[int] = field(default_factory=list)
    finish_reason: str = "stop"
    truncated: bool = False
    error: QdengineError | None = None
    stats: Stats = field(default_factory=Stats)

    @classmethod
    def failed(cls, error: QdengineError) -> Summary:
        return cls(finish_reason="error", error=error)

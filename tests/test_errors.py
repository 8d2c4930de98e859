"""What the errors are, and what those of requests say. See engine/test_engine.py, too."""

from __future__ import annotations

import inspect
import pickle
from collections.abc import Mapping

import pytest
from qdengine import Engine, EngineConfig, QdengineError, Request, errors
from qdengine.config import ModelConfig, RopeScaling
from qdengine.errors import (
    ConfigError,
    EmptyInputError,
    InvalidTextError,
    InvalidTypeError,
    LimitError,
    RequestError,
    UnknownFieldError,
    UnsupportedModelError,
)
from qdengine.jsonl import JsonlError
from tiny import TEXT, tiny_bundle

CLASSES = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if kind.__module__ == errors.__name__]
GOOD = {"query": "Where does rain fall?", "document": TEXT, "max_new_tokens": 8}
LONE = "half \udcff"

# What is changed in a good request, the error, and how its message begins and ends: field, value, remedy.
BAD = [
    ({"query": None}, InvalidTypeError, "query must be a str, not NoneType"),
    ({"query": b"bytes"}, InvalidTypeError, "query must be a str, not bytes"),
    ({"query": "\u3000\u2009"}, EmptyInputError, "query is empty; give its text"),
    ({"query": LONE}, InvalidTextError, "query has a lone surrogate at character 5; decode .* with errors='replace'"),
    ({"document": ["text"]}, InvalidTypeError, "document must be a str, not list"),
    ({"document": ""}, EmptyInputError, "document is empty; give its text"),
    ({"title": None}, InvalidTypeError, "title must be a str, not NoneType"),
    ({"title": LONE}, InvalidTextError, "title has a lone surrogate"),
    ({"title": "long " * 600}, LimitError, "query, title and .*; shorten the query or the title, or ask for fewer max"),
    ({"namespace": 1}, InvalidTypeError, "namespace must be a str, not int"),
    ({"namespace": LONE}, InvalidTextError, "namespace has a lone surrogate"),
    ({"max_new_tokens": 0}, LimitError, r"max_new_tokens is 0; it must be in \[1, 2\*\*31\)"),
    ({"max_new_tokens": 5.0}, InvalidTypeError, "max_new_tokens must be an int, not float"),
    ({"max_new_tokens": 512}, LimitError, "max_new_tokens is 512; with 512 tokens of context it must be less"),
    ({"lookahead": "64"}, InvalidTypeError, "lookahead must be an int, not str"),
    ({"seed": -1}, LimitError, r"seed is -1; it must be in \[0, 2\*\*64\)"),
    ({"seed": 2**64}, LimitError, "seed is 18446744073709551616; it must be in"),
    ({"seed": True}, InvalidTypeError, "seed must be an int, not bool"),
    ({"temperature": -0.1}, LimitError, r"temperature is -0.1; it must be 0 \(greedy\) or in \[1e-6, 1e6\]"),
    ({"temperature": float("inf")}, LimitError, "temperature is inf; it must be"),
    ({"temperature": 10**400}, LimitError, "temperature is an int of more than 30 digits; it must be"),
    ({"temperature": 1e-320}, LimitError, "temperature is 1e-320; it must be"),
    ({"seed": 10**5000}, LimitError, "seed is an int of more than 30 digits; it must be in"),
    ({"max_new_tokens": 10**5000}, LimitError, "max_new_tokens is an int of more than 30 digits; it must be in"),
    ({"temperature": "hot"}, InvalidTypeError, "temperature must be a number, not str"),
    ({"top_p": 1.01}, LimitError, r"top_p is 1.01; it must be in \(0, 1\]"),
    ({"top_p": float("nan")}, LimitError, "top_p is nan; it must be in"),
    ({"top_p": None}, InvalidTypeError, "top_p must be a number, not NoneType"),
    ({"Query": "x"}, UnknownFieldError, "unknown key 'Query'; a request has document, lookahead, .*query"),
    ({7: "x"}, UnknownFieldError, "unknown key '7'; a request has document"),
]


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    bundle = tiny_bundle(tmp_path_factory.mktemp("tiny"))
    with Engine.from_pretrained(bundle, "cpu", "float32", EngineConfig(kv_bytes=1 << 22)) as engine:
        yield engine


def test_one_base_for_all():
    assert len(CLASSES) > 10 and errors.QdengineError is QdengineError
    for kind in [*CLASSES, JsonlError]:
        assert issubclass(kind, QdengineError) and kind.__doc__
        again = pickle.loads(pickle.dumps(kind("what; remedy")))
        assert type(again) is kind and str(again) == "what; remedy"
    # Who expects Python's own kinds finds them.
    assert issubclass(ConfigError, ValueError) and issubclass(RequestError, ValueError)
    assert issubclass(InvalidTypeError, TypeError) and issubclass(errors.EngineError, RuntimeError)


def test_every_kind_of_request_error_has_a_case():
    kinds = {kind for kind in CLASSES if issubclass(kind, RequestError) and kind is not RequestError}
    assert {kind for _, kind, _ in BAD} == kinds


def test_bad_requests_among_good_ones(engine):
    """All of them in one batch, a good one after each."""
    alone = engine.summarize([GOOD])[0]
    summaries = engine.summarize([item for change, _, _ in BAD for item in ({**GOOD, **change}, GOOD)])
    assert len(summaries) == 2 * len(BAD)
    for bad, good, (change, kind, message) in zip(summaries[::2], summaries[1::2], BAD, strict=True):
        assert type(bad.error) is kind, change
        with pytest.raises(kind, match=f"^{message}"):
            raise bad.error
        assert (bad.finish_reason, bad.text, bad.token_ids) == ("error", "", [])
        assert good.error is None and good.token_ids == alone.token_ids, change


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ({"document": "x"}, "the request has no 'query'; give its text"),
        ({}, "the request has no 'query'; give its text"),
        ([("query", "q")], "a request is a qdengine.Request or a dict, not list"),
        (Request(query="q", document=7), "document must be a str, not int"),
        (Request(query="q", document="d", lookahead=-1), "lookahead is -1; it must be in [0, 2**31)"),
    ],
)
def test_items_of_other_shapes(engine, item, message):
    bad, good = engine.summarize([item, GOOD])
    assert str(bad.error) == message and isinstance(bad.error, RequestError)
    assert good.error is None
    with pytest.raises(type(bad.error)):
        next(engine.stream(item))


@pytest.mark.parametrize("value", [0, -5, 1.5, "1", True])
@pytest.mark.parametrize("name", ["kv_bytes", "block_tokens", "max_sequences", "max_step_tokens", "max_new_tokens"])
def test_engine_options_are_named(name, value):
    with pytest.raises(ConfigError, match=rf"EngineConfig\.{name} is {value!r}; it must be an int in "):
        EngineConfig(**{name: value})


SHAPE = {
    "family": "llama", "vocab_size": 9, "width": 8, "ffn_width": 8, "layers": 1, "heads": 4, "kv_heads": 2,
    "head_width": 2, "max_positions": 16,
}  # fmt: skip
SCALING = ("factor", "low_freq_factor", "high_freq_factor", "original_max_positions")


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"family": "mamba"}, UnsupportedModelError, "model family 'mamba'; qdengine has llama, gpt2"),
        ({"layers": 0}, ConfigError, "ModelConfig.layers is 0; it must be an int in "),
        ({"heads": 3}, ConfigError, r"heads \(3\) must be a multiple of kv_heads \(2\)"),
        ({"head_width": 3}, ConfigError, "head_width is 3; rotary positions need an even one"),
        ({"colour": "red"}, ConfigError, "architecture: .*colour"),
        ({"rope_scaling": {"factor": 2.0}}, ConfigError, "architecture: .*missing"),
        (
            {"rope_scaling": dict.fromkeys(SCALING, "x")},
            ConfigError,
            r"RopeScaling\.factor is 'x'; it must be a positive",
        ),
        ({"layers": 10**7}, ConfigError, r"ModelConfig.layers is 10000000; it must be an int in \[1, 1024\]"),
        ({"width": 10**15}, ConfigError, "ModelConfig.width is 1000000000000000; it must be"),
        ({"norm_eps": "x"}, ConfigError, "ModelConfig.norm_eps is 'x'; it must be a positive number"),
        ({"rope_theta": -1}, ConfigError, "ModelConfig.rope_theta is -1; it must be a positive number"),
        ({"qk_norm": "no"}, ConfigError, "ModelConfig.qk_norm is 'no'; it must be True or False"),
    ],
)
def test_shapes_of_models_are_checked(change, kind, message):
    with pytest.raises(kind, match=message):
        ModelConfig.from_dict({**SHAPE, **change})


def test_shapes_of_models_are_read():
    scaling = {"factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_positions": 64}
    assert ModelConfig.from_dict({**SHAPE, "rope_scaling": scaling}).rope_scaling == RopeScaling(**scaling)
    assert ModelConfig.from_dict({**SHAPE, "head_width": 3, "family": "gpt2"}).head_width == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"kv_bytes": 1 << 50},
            "EngineConfig.kv_bytes is 1125899906842624, and cpu has not that much memory; lower it",
        ),
        ({"lookahead": 10**9}, "no memory for steps of .*lookahead = 1000000000; lower them"),
        ({"max_sequences": 10**9}, "no memory for steps of .*max_sequences = 1000000000"),
    ],
)
def test_more_memory_than_there_is(tmp_path, options, message):
    with pytest.raises(ConfigError, match=message):
        Engine.from_pretrained(
            tiny_bundle(tmp_path), "cpu", "float32", EngineConfig(**{"kv_bytes": 1 << 22, **options})
        )


def test_a_mapping_that_fails(engine):
    class Broken(Mapping):
        def __getitem__(self, key):
            raise OSError("gone")

        def __iter__(self):
            raise OSError("gone")

        def __len__(self):
            return 1

    bad, good = engine.summarize([Broken(), GOOD])
    assert str(bad.error) == "the request cannot be read (OSError: gone); give a dict" and good.error is None

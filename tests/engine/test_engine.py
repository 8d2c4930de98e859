"""The engine on tiny random models: lossless in every mode, robust to bad items, bounded."""

from __future__ import annotations

import threading
import time

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from qdengine import Engine, EngineConfig, Request, errors
from tiny import TEXT, tiny_bundle

PIECES = [s.strip() for s in TEXT.replace("\n", " ").split(".") if s.strip()]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return tiny_bundle(tmp_path_factory.mktemp("tiny"))


def open_engine(bundle, **options):
    options = {"kv_bytes": 1 << 22, "max_new_tokens": 40, **options}
    return Engine.from_pretrained(bundle, device="cpu", precision="float32", config=EngineConfig(**options))


@pytest.fixture(scope="module")
def engine(bundle):
    with open_engine(bundle) as engine:
        yield engine


requests = st.builds(
    lambda pieces, query, title: {"document": ". ".join(pieces) + ".", "query": query, "title": title},
    st.lists(st.sampled_from(PIECES), min_size=1, max_size=12),
    st.sampled_from(["fox dog", "When do trains leave?", "雨水", "the the the"]),
    st.sampled_from(["", "A title"]),
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    batch=st.lists(requests, min_size=1, max_size=6),
    lookahead=st.integers(0, 70),
    step_tokens=st.sampled_from([1, 7, 64, 1024]),
    sequences=st.integers(1, 6),
    blocks=st.sampled_from([24, 30, 400]),
    size=st.sampled_from([1, 5, 16]),
    adaptive=st.booleans(),
    lag=st.booleans(),
)
def test_lossless(bundle, plain, batch, lookahead, step_tokens, sequences, blocks, size, adaptive, lag):
    """Any draft length, batch, chunking, block size, memory short enough to preempt, steps planned ahead as on a GPU:
    the same tokens."""
    per_token = 2 * 2 * 2 * 16 * 4
    config = {
        "kv_bytes": max(blocks * 16, 260) * per_token,
        "block_tokens": size,
        "max_step_tokens": step_tokens,
        "max_sequences": sequences,
        "lookahead": 80,
        "adaptive_lookahead": adaptive,
    }
    with open_engine(bundle, **config) as other:
        other._runner.lag = lag
        got = other.summarize([{**r, "lookahead": lookahead} for r in batch])
        again = other.summarize([{**r, "lookahead": 0} for r in batch[:1]])
    want = [plain(r) for r in batch]
    assert [s.token_ids for s in got] == want
    assert again[0].token_ids == want[0], "a warm document changes nothing"
    assert all(s.error is None for s in got)


@pytest.fixture(scope="module")
def plain(engine):
    """Alone, without drafts, cold (a fresh namespace): what every other way must equal."""
    known = {}

    def ids(request):
        key = tuple(sorted(request.items()))
        if key not in known:
            alone = {**request, "lookahead": 0, "namespace": str(len(known))}
            known[key] = engine.summarize([alone])[0].token_ids
        return known[key]

    return ids


@pytest.mark.parametrize("lag", [False, True])
def test_preemption_happens_and_changes_nothing(bundle, plain, lag):
    batch = [{"query": "fox", "document": " ".join(PIECES[i:] + PIECES[:i])} for i in range(6)]
    with open_engine(bundle, kv_bytes=24 * 16 * 512, lookahead=0) as small:
        small._runner.lag = lag
        preempted = []
        original = small._scheduler._preempt
        small._scheduler._preempt = lambda s: (preempted.append(s), original(s))
        got = small.summarize(batch)
    assert preempted
    assert [s.token_ids for s in got] == [plain(r) for r in batch]


@pytest.mark.parametrize("kv_dtype", ["int8", "float8"])
def test_lossless_in_8_bits(bundle, kv_dtype):
    """A token's keys and values are quantised by themselves: drafts, rejected ones too, batches, chunks, a short memory
    and warm documents change no token."""
    batch = [{"query": "fox", "document": ". ".join(PIECES[i:] + PIECES[:i]) + "."} for i in range(4)]
    with open_engine(bundle, kv_dtype=kv_dtype) as engine:
        cache = engine._runner.cache
        assert cache.keys[0].itemsize == 1 and cache.block_bytes == 16 * 2 * 2 * 2 * (16 + 4)
        alone = [{**r, "lookahead": 0, "namespace": str(i)} for i, r in enumerate(batch)]
        want = [engine.summarize([r])[0].token_ids for r in alone]
        drafted = engine.summarize(batch)
        assert [s.token_ids for s in drafted] == want and sum(s.stats.drafted - s.stats.accepted for s in drafted)
        assert [s.token_ids for s in engine.summarize(batch)] == want
    for options in (
        {"max_step_tokens": 7},
        {"block_tokens": 5, "kv_bytes": 120 * 5 * 160},
        {"adaptive_lookahead": False},
    ):
        with open_engine(bundle, kv_dtype=kv_dtype, **options) as other:
            assert [s.token_ids for s in other.summarize(batch)] == want


def test_8_bits_write_nearly_the_same(bundle, plain):
    """Most first tokens are those of float32."""
    batch = [{"query": q, "document": d + "."} for q in ("fox", "rain", "when?") for d in PIECES]
    for kv_dtype in ("int8", "float8"):
        with open_engine(bundle, kv_dtype=kv_dtype) as engine:
            got = [s.token_ids[:1] for s in engine.summarize(batch)]
        assert sum(a == plain(r)[:1] for a, r in zip(got, batch, strict=True)) >= 0.7 * len(batch)


def test_drafts_are_kept(engine):
    """A model that copies (as random ones with tied weights often do) needs fewer steps than tokens."""
    summary = engine.summarize([{"query": "a", "document": "a a a a a a a a a a a a"}])[0]
    stats = summary.stats
    assert stats.drafted >= stats.accepted
    assert len(summary.token_ids) in (stats.accepted + stats.steps, stats.accepted + stats.steps - 1)


def test_a_document_is_computed_once(engine):
    document = " ".join(PIECES * 3)
    requests = [{"query": f"query {i}", "document": document, "namespace": "once"} for i in range(5)]
    cold = engine.summarize(requests)
    assert cold[0].stats.reused_tokens == 0
    whole = cold[1].stats.reused_tokens
    assert whole >= 100 and all(s.stats.reused_tokens == whole for s in cold[1:])
    warm = engine.summarize(requests)
    assert [s.stats.reused_tokens for s in warm] == [whole] * 5
    assert [s.token_ids for s in warm] == [s.token_ids for s in cold]
    apart = engine.summarize([{**requests[0], "namespace": "another"}])[0]
    assert apart.stats.reused_tokens == 0 and apart.token_ids == cold[0].token_ids


GOOD = {"query": "Where does rain fall?", "document": TEXT}
BAD = [
    ({"query": "", "document": "x"}, errors.EmptyInputError, "query is empty"),
    ({"query": "q", "document": " \n\t"}, errors.EmptyInputError, "document is empty"),
    ({"query": "q"}, errors.EmptyInputError, "no 'document'"),
    ({"query": "q", "document": 5}, errors.InvalidTypeError, "document must be a str, not int"),
    ({"query": "q", "document": "x\ud800"}, errors.InvalidTextError, "lone surrogate at character 1"),
    ({"query": "q " * 600, "document": "x"}, errors.LimitError, "shorten the query"),
    ({"query": "q", "document": "x", "max_new_tokens": -1}, errors.LimitError, "max_new_tokens is -1"),
    ({"query": "q", "document": "x", "max_new_tokens": 10**9}, errors.LimitError, "512 tokens of context"),
    ({"query": "q", "document": "x", "lookahead": -1}, errors.LimitError, "lookahead is -1"),
    ({"query": "q", "document": "x", "max_new_tokens": True}, errors.InvalidTypeError, "an int, not bool"),
    ({"query": "q", "document": "x", "temperature": float("nan")}, errors.LimitError, "temperature"),
    ({"query": "q", "document": "x", "top_p": 0}, errors.LimitError, "top_p"),
    ({"query": "q", "document": "x", "body": "y"}, errors.UnknownFieldError, "unknown key 'body'"),
    (None, errors.InvalidTypeError, "not NoneType"),
    ("text", errors.InvalidTypeError, "not str"),
]


@pytest.mark.parametrize(("item", "kind", "message"), BAD, ids=range(len(BAD)))
def test_a_bad_item_harms_itself_alone(engine, item, kind, message):
    alone = engine.summarize([GOOD])[0]
    first, bad, last = engine.summarize([GOOD, item, GOOD])
    assert type(bad.error) is kind and message in str(bad.error)
    assert bad.finish_reason == "error" and bad.text == "" and bad.token_ids == []
    assert first.token_ids == last.token_ids == alone.token_ids


def test_empty_batch_and_wrong_batch(engine):
    assert engine.summarize([]) == []
    with pytest.raises(TypeError, match="list of requests"):
        engine.summarize(GOOD)


@pytest.mark.parametrize(
    "document", ["a" * 1_000_000, "\0" * 5000, "\u202e\u2067" * 500, " ." * 300_000, "雨" * 100_000], ids=range(5)
)
def test_strange_documents_end_in_time(engine, document):
    begin = time.perf_counter()
    summary = engine.summarize([{"query": "what?", "document": document}])[0]
    assert summary.error is None
    assert summary.truncated
    assert time.perf_counter() - begin < 15


def test_ten_thousand_items(bundle):
    with open_engine(bundle, max_new_tokens=1) as engine:
        items = [{"query": "x", "document": f"word {i % 7}"} if i % 2 else None for i in range(10_000)]
        summaries = engine.summarize(items)
    assert [s.error is None for s in summaries] == [i % 2 == 1 for i in range(10_000)]


def test_truncation_ends_at_a_sentence(engine):
    document = "Rain falls on the roof. " * 200
    summary = engine.summarize([{"query": "rain", "document": document}])[0]
    assert summary.truncated and summary.error is None
    assert summary.stats.prompt_tokens <= 512 - 40
    assert not engine.summarize([{"query": "rain", "document": document[:48]}])[0].truncated


def test_stream_equals_summarize(engine):
    want = engine.summarize([GOOD])[0].text
    pieces = list(engine.stream(GOOD))
    assert "".join(pieces) == want
    with pytest.raises(errors.EmptyInputError):
        next(engine.stream({"query": "", "document": "x"}))


def test_abandoned_stream_gives_its_memory_back(engine):
    free = engine._scheduler.pool.available
    stream = engine.stream({**GOOD, "lookahead": 0})
    next(stream)
    stream.close()
    assert engine._scheduler.pool.available == free and not engine._scheduler.running


def test_two_threads(bundle, plain):
    batch = [{"query": "fox", "document": ". ".join(PIECES[i:] + PIECES[:i])} for i in range(5)]
    results = {}
    with open_engine(bundle) as engine:
        threads = [threading.Thread(target=lambda n=n: results.update({n: engine.summarize(batch)})) for n in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    expected = [plain(r) for r in batch]
    assert sorted(results) == [0, 1, 2]
    assert all([s.token_ids for s in summaries] == expected for summaries in results.values())


def test_a_failing_step_is_reported_once(bundle, plain):
    with open_engine(bundle) as engine:
        forward = engine._runner.decoder.forward
        engine._runner.decoder.forward = lambda *_: (_ for _ in ()).throw(MemoryError("no more"))
        broken = engine.summarize([GOOD])[0]
        assert isinstance(broken.error, errors.EngineError) and "MemoryError: no more" in str(broken.error)
        engine._runner.decoder.forward = forward
        assert engine.summarize([GOOD])[0].token_ids == plain(GOOD)


def test_a_lost_device_is_said_once_and_for_all(bundle):
    """After some errors a CUDA device takes no more work: whoever waits hears it, and so does whoever comes later."""
    with open_engine(bundle, max_sequences=2) as engine:
        engine._runner.decoder.forward = lambda *_: (_ for _ in ()).throw(RuntimeError("CUDA error: illegal access"))
        engine._runner.works = lambda: False
        summaries = engine.summarize([GOOD] * 5)
        for summary in summaries:
            assert isinstance(summary.error, errors.EngineError)
            assert "illegal access" in str(summary.error) and "start a new process" in str(summary.error)
        assert not engine._scheduler.running and not engine._scheduler.waiting
        with pytest.raises(errors.EngineError, match="takes no more work"):
            engine.summarize([GOOD])


def test_interrupted_call_leaves_nothing_behind(bundle):
    with open_engine(bundle) as engine:
        forward = engine._runner.decoder.forward

        def interrupt(*_):
            raise KeyboardInterrupt

        engine._runner.decoder.forward = interrupt
        with pytest.raises(KeyboardInterrupt):
            engine.summarize([GOOD] * 3)
        engine._runner.decoder.forward = forward
        assert not engine._scheduler.running and not engine._scheduler.waiting
        assert engine.summarize([GOOD])[0].error is None


@pytest.mark.parametrize("lag", [False, True])
@pytest.mark.parametrize(
    "where", ["_runner.admit", "_runner.launch", "_runner.collect", "_scheduler.commit", "_scheduler._publish"]
)
def test_an_interrupt_anywhere_harms_nobody(bundle, plain, where, lag):
    """Another caller's sequence that stood in the broken step ends with its own tokens, and so does a later one."""
    holder, name = where.split(".")
    with open_engine(bundle) as engine:
        engine._runner.lag = lag
        victim = {**GOOD, "document": TEXT[::-1]}
        sequence = engine._submit([victim])[0]
        target = getattr(engine, holder)
        whole = getattr(type(target), name)

        def interrupted(self, *args):
            monkey.undo()
            if name in ("commit", "_publish"):
                whole(self, *args)
            raise KeyboardInterrupt

        with pytest.MonkeyPatch.context() as monkey:
            monkey.setattr(type(target), name, interrupted)
            with pytest.raises(KeyboardInterrupt):
                engine.summarize([GOOD])
        while not sequence.finished:
            engine._run_step()
        assert sequence.error is None and sequence.output.tolist() == plain(victim)
        assert engine.summarize([victim])[0].token_ids == plain(victim)
        assert not engine._scheduler.running and not engine._scheduler.waiting
        pool = engine._scheduler.pool
        assert pool.available == pool.blocks


def test_close_loses_no_finished_summary(bundle):
    engine = open_engine(bundle, max_sequences=2, max_new_tokens=4)
    items = [{**GOOD, "query": f"what {i}?"} for i in range(200)]
    done = []
    forward, begun = engine._runner.decoder.forward, threading.Event()

    def slow(*args):
        begun.set()
        time.sleep(0.005)
        return forward(*args)

    engine._runner.decoder.forward = slow
    thread = threading.Thread(target=lambda: done.append(engine.summarize(items)))
    thread.start()
    assert begun.wait(60)
    time.sleep(0.2)
    engine.close()
    thread.join(60)
    summaries = done[0]
    assert len(summaries) == len(items) and summaries[0].error is None
    assert isinstance(summaries[-1].error, errors.EngineError) and "closed" in str(summaries[-1].error)


def test_closed(bundle):
    engine = open_engine(bundle)
    engine.close()
    engine.close()
    with pytest.raises(errors.EngineError, match="closed"):
        engine.summarize([GOOD])


def test_sampling_depends_on_the_request_alone(engine):
    base = {**GOOD, "temperature": 1.5, "top_p": 0.9}
    alone = [engine.summarize([{**base, "seed": s, "lookahead": 0}])[0].token_ids for s in range(4)]
    together = engine.summarize([{**base, "seed": s} for s in range(4)] + [GOOD])
    assert [s.token_ids for s in together[:4]] == alone
    assert len({tuple(ids) for ids in alone}) > 1
    assert together[4].token_ids == engine.summarize([GOOD])[0].token_ids


def test_sampling_follows_the_distribution():
    from qdengine.engine.sampling import draw

    logits = torch.tensor([2.0, 1.0, 0.0, -1.0])
    want = torch.softmax(logits / 0.7, -1)
    want[3] = 0.0  # the first three reach 0.95
    counts = torch.zeros(4)
    for seed in range(4000):
        counts[draw(logits, 0.7, 0.95, seed, position=5)] += 1
    assert torch.allclose(counts / 4000, want / want.sum(), atol=0.03)


def test_sampling_looks_at_the_likely_first_and_sorts_all_where_it_must():
    """What sorting the whole vocabulary gives, whether the likely tokens hold top_p, tie, or do not."""
    import numpy as np
    from qdengine.engine.sampling import draw

    generator = torch.Generator().manual_seed(3)
    whole = {}
    for scale in (0.0, 0.1, 3.0, 30.0):
        logits = (scale * torch.randn(500, generator=generator)).round(decimals=0 if scale == 3.0 else 6)
        for seed in range(50):
            probability, order = torch.softmax(logits.double(), -1).sort(descending=True, stable=True)
            mass = probability.cumsum(0)
            kept = max(1, int((mass - probability < 0.9).sum()))
            uniform = np.random.Generator(np.random.Philox(key=seed, counter=7)).random()
            place = int(torch.searchsorted(mass, uniform * mass[kept - 1], right=True))
            assert draw(logits, 1.0, 0.9, seed, 7) == int(order[min(place, kept - 1)])
            whole[scale] = whole.get(scale, set()) | {place >= 64}
    assert whole[0.0] == {False, True} and whole[30.0] == {False}


def test_options_are_checked(bundle):
    with pytest.raises(errors.ConfigError, match="precision 'int3'"):
        Engine.from_pretrained(bundle, precision="int3")
    with pytest.raises(errors.ConfigError, match="device 'tpu'"):
        Engine.from_pretrained(bundle, device="tpu")
    with pytest.raises(errors.ConfigError, match="lookahead is -1"):
        EngineConfig(lookahead=-1)
    with pytest.raises(errors.ConfigError, match=r"kv_dtype is 'int4'; it must be one of auto, int8, float8"):
        EngineConfig(kv_dtype="int4")
    with pytest.raises(errors.ConfigError, match="less than one block"):
        open_engine(bundle, kv_bytes=10)
    if not torch.cuda.is_available():
        with pytest.raises(errors.BackendError, match="no CUDA device"):
            Engine.from_pretrained(bundle, device="cuda")


def test_two_engines_and_request_objects(bundle, engine, plain):
    with open_engine(bundle) as other:
        assert other.summarize([Request(**GOOD)])[0].token_ids == engine.summarize([GOOD])[0].token_ids == plain(GOOD)

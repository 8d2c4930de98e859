"""What a tuned student changed in its base: packing, restoring to the bit, and files that do not fit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from qdengine import Engine, checkpoint, delta, student
from qdengine.errors import CheckpointError, StudentError
from qdengine.prompt import QUERY_FIRST
from qdengine.student import STUDENTS, Tuned
from tiny import tiny_bundle


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> checkpoint.Checkpoint:
    """A bfloat16 bundle, as students have them."""
    made = tmp_path_factory.mktemp("base")
    loaded = checkpoint.load(tiny_bundle(made))
    weights = {name: tensor.bfloat16() for name, tensor in loaded.weights().items()}
    return saved(made / "bfloat16", loaded, weights)


def saved(path: Path, like: checkpoint.Checkpoint, weights: delta.Weights) -> checkpoint.Checkpoint:
    text = (like.path / checkpoint.TOKENIZER).read_text(encoding="utf-8")
    checkpoint.save_bundle(path, like.config, weights, text, like.prompt, like.stop_ids, "test")
    return checkpoint.load(path)


def changed(weights: delta.Weights, size: float = 0.02) -> delta.Weights:
    torch.manual_seed(3)
    return {
        name: tensor if name == "embed.weight" else (tensor + size * torch.randn(tensor.shape)).bfloat16()
        for name, tensor in weights.items()
    }


@given(st.integers(1, 12), st.integers(1, 30), st.integers(0, 99))
def test_ternary_rows_are_the_nearest(rows, width, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, width, generator=generator)
    signs, scales = delta.ternary(x)
    error = (x - signs * scales.unsqueeze(1)).square().sum(1)
    assert set(signs.unique().tolist()) <= {-1, 0, 1}
    for threshold in (0.0, 0.3, 0.6, 1.0):  # no row kept by a threshold is nearer
        kept = (x.abs() > threshold) * x.sign()
        best = (x * kept).sum(1) / kept.abs().sum(1).clamp(min=1)
        assert (error <= (x - kept * best.unsqueeze(1)).square().sum(1) + 1e-4).all()


@given(st.integers(1, 7), st.integers(1, 23), st.integers(0, 99))
def test_packing_loses_nothing(rows, width, seed):
    signs = torch.randint(-1, 2, (rows, width), generator=torch.Generator().manual_seed(seed)).to(torch.int8)
    packed = delta._pack(signs)
    assert packed.dtype == torch.uint8 and len(packed) == -(-signs.numel() // 5)
    assert torch.equal(delta._unpack(packed, signs.shape), signs)


@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 4), st.integers(0, 99))
def test_low_rank_is_the_nearest(rows, width, rank, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, width, generator=generator)
    left, right = delta.low_rank(x, rank)
    sizes = torch.linalg.svdvals(x.double())
    error = (x.double() - left.double() @ right.double()).norm()
    assert left.dtype == right.dtype == torch.bfloat16
    assert error <= sizes[rank:].norm() + 0.02 * sizes[0] * min(rank, rows, width)


def test_adapters_over_packed_changes_are_kept(base):
    """What a packed student learnt in a low rank comes through packing again, where packed rows alone lose it."""
    weights = base.weights()
    packed = delta.apply(weights, delta.make(weights, changed(weights)))
    torch.manual_seed(5)
    adapted = {
        name: (tensor + 2e-3 * torch.randn(len(tensor), 2) @ torch.randn(2, tensor.shape[1])).bfloat16()
        if tensor.ndim == 2 and name != "embed.weight" else tensor
        for name, tensor in packed.items()
    }  # fmt: skip
    lost = []
    for rank in (0, 2):
        again = delta.apply(weights, delta.make(weights, adapted, rank))
        pairs = [(again[n].float(), adapted[n].float(), packed[n].float()) for n in adapted if n.endswith("out.weight")]
        lost.append(sum(float((a - b).square().sum() / (b - c).square().sum()) for a, b, c in pairs) / len(pairs))
    assert lost[0] > 0.7 and lost[1] < 0.15, lost


def test_a_row_without_change_stays(base):
    weights = base.weights()
    tuned = weights | {"layers.0.out.weight": weights["layers.0.out.weight"].clone()}
    tuned["layers.0.out.weight"][1:] += 0.25
    made = delta.make(weights, tuned)
    assert set(made) == {n for n, t in weights.items() if t.ndim < 2} | {
        "layers.0.out.weight", "layers.0.out.weight.scales",
    }  # fmt: skip
    restored = delta.apply(weights, made)
    assert torch.equal(restored["layers.0.out.weight"][0], weights["layers.0.out.weight"][0])
    torch.testing.assert_close(restored["layers.0.out.weight"], tuned["layers.0.out.weight"], rtol=0, atol=2**-8)


@pytest.mark.parametrize(("layers", "rank"), [(None, 0), ([1], 0), (None, 2)])
def test_a_file_restores_the_same_student(base, tmp_path, layers, rank):
    start = base.weights() if layers is None else checkpoint.select_layers(base.weights(), layers)
    shape = base.config if layers is None else replace(base.config, layers=1)
    like = replace(base, config=shape, prompt=replace(base.prompt, parts=QUERY_FIRST.parts), stop_ids=(1,))
    tuned = saved(tmp_path / "tuned", like, changed(start))
    delta.write(tmp_path / "delta.safetensors", base, tuned, layers, "source", rank)
    delta.set_card(tmp_path / "delta.safetensors", "# A card\n")
    made = checkpoint.load(delta.install(tmp_path / "delta.safetensors", base.path, tmp_path / "made"))
    assert (made.config, made.prompt, made.stop_ids) == (shape, like.prompt, (1,))
    assert (made.path / "README.md").read_text() == "# A card\n"
    again = checkpoint.load(delta.install(tmp_path / "delta.safetensors", base.path, tmp_path / "again"))
    want, found, second = tuned.weights(), made.weights(), again.weights()
    for name, tensor in want.items():
        assert torch.equal(found[name], second[name])
        if tensor.ndim == 2 and name != "embed.weight":
            change, rest = tensor.float() - start[name].float(), tensor.float() - found[name].float()
            assert rest.square().sum() < 0.25 * change.square().sum()  # 0.19 of normal numbers, and bfloat16
        else:
            assert torch.equal(found[name], tensor)
    assert (tmp_path / "delta.safetensors").stat().st_size < 0.6 * (tuned.path / "model.safetensors").stat().st_size


def test_files_that_do_not_fit(base, tmp_path):
    tuned = saved(tmp_path / "tuned", base, changed(base.weights()))
    file = tmp_path / "delta.safetensors"
    delta.write(file, base, tuned, None, "source")
    with pytest.raises(CheckpointError, match="changes other weights"):
        delta.install(file, tuned.path, tmp_path / "made")
    about, changes = delta._read(file)
    changes["layers.0.out.weight.scales"][0] += 1
    delta.save_file(changes, file, about)
    with pytest.raises(CheckpointError, match="is damaged"):
        delta.install(file, base.path, tmp_path / "made")
    delta.save_file(changes, file, about | {"format": "9"})
    with pytest.raises(CheckpointError, match="this version reads format"):
        delta.install(file, base.path, tmp_path / "made")
    file.write_bytes(b"torn")
    with pytest.raises(CheckpointError, match="cannot be read"):
        delta.install(file, base.path, tmp_path / "made")
    assert not (tmp_path / "made").exists()


def test_every_tuned_student_has_its_file():
    from importlib.resources import files

    for name, entry in STUDENTS.items():
        if isinstance(entry, Tuned):
            assert checkpoint.sha256(files("qdengine") / "students" / entry.file) == entry.sha256, name
            assert entry.base in STUDENTS


def test_installing_a_tuned_student_installs_its_base(base, tmp_path, monkeypatch):
    tuned = saved(tmp_path / "tuned", base, changed(base.weights()))
    delta.write(tmp_path / "tiny.safetensors", base, tuned, None, "tiny")
    monkeypatch.setenv("QDENGINE_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "tiny.safetensors"
    entry = Tuned("smollm2-135m", str(file), checkpoint.sha256(file), "for the test")
    monkeypatch.setitem(STUDENTS, "tiny", entry)
    cached = tmp_path / "cache" / "students" / "smollm2-135m"
    saved(cached, base, base.weights())
    bundle = student.install("tiny")
    assert bundle == student.path("tiny") and student.install("tiny") == bundle
    assert not list(bundle.parent.glob(".install-*"))
    monkeypatch.setitem(STUDENTS, "tiny", replace(entry, sha256="0" * 64))  # another version's
    with pytest.raises(StudentError, match="is not installed"):
        student.path("tiny")
    with pytest.raises(StudentError, match="expected 0000"):
        student.install("tiny")
    assert student.remove("tiny") and not bundle.exists() and cached.exists() and not student.remove("tiny")
    monkeypatch.setitem(STUDENTS, "tiny", entry)
    assert student.install("tiny") == bundle
    with Engine.from_pretrained("tiny", precision="float32") as engine:
        summary = engine.summarize([{"query": "When do trains leave?", "document": "Trains leave at night."}])[0]
        assert summary.error is None and summary.token_ids

import functools
from pathlib import Path

import pytest
import torch
import transformers
from exported import dense
from toy import FAMILIES, compress, logits, save_base

import kanna
from kanna.checkpoint import lineage
from kanna.checkpoint.reader import Checkpoint
from kanna.checkpoint.writer import write_tensors
from kanna.errors import InputError
from kanna.runs import output


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_dense_export_is_the_same_model_under_the_names_of_the_source(name: str, tmp_path: Path) -> None:
    base = save_base(name, tmp_path / "base")
    small = compress(base, tmp_path / "small", FAMILIES[name])
    out = dense(small, tmp_path / "dense")
    source, exported = Checkpoint.open(base), Checkpoint.open(out)
    assert {n: (s.shape, s.dtype) for n, s in source.tensors.items()} == {
        n: (s.shape, s.dtype) for n, s in exported.tensors.items()
    }
    assert exported.config == source.config
    factored, _ = kanna.load(small)
    plain, _ = kanna.load(out)
    assert not any("kanna" in type(m).__module__ for m in plain.modules())
    torch.testing.assert_close(logits(plain), logits(factored), rtol=1e-4, atol=1e-5)


def test_dense_export_has_history_and_a_card_that_needs_no_kanna(tmp_path: Path) -> None:
    small = compress(save_base("llama", tmp_path / "base"), tmp_path / "small", FAMILIES["llama"])
    out = dense(small, tmp_path / "dense")
    history = lineage.verify(out)
    assert history is not None
    assert history.base.name == "base"
    assert [step.method for step in history.steps] == ["toy", "export"]
    assert "import kanna" not in (out / "README.md").read_text()


def test_dense_export_keeps_bfloat16_and_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(
        save_base("llama", tmp_path / "full"), dtype=torch.bfloat16
    )
    model.save_pretrained(tmp_path / "base")
    small = compress(tmp_path / "base", tmp_path / "small", FAMILIES["llama"])
    monkeypatch.setattr(output, "write_tensors", functools.partial(write_tensors, max_shard_bytes=20_000))
    exported = Checkpoint.open(dense(small, tmp_path / "dense"))
    assert len(exported.files) > 1
    assert {stored.dtype for stored in exported.tensors.values()} == {"BF16"}


def test_nothing_compressed_is_refused(tmp_path: Path) -> None:
    base = save_base("llama", tmp_path / "base")
    with pytest.raises(InputError, match="nothing to multiply out"):
        dense(base, tmp_path / "dense")
    assert not (tmp_path / "dense").exists()

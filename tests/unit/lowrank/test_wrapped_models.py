"""Models that take pictures beside text: the text tower is compressed, all else stays as it lies."""

from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import load_file
from torch.nn import functional
from wrappers import VOCAB, WRAPPERS, wrapper

import kanna
from kanna.forms import FormModule
from kanna.tasks.options import EvalOptions

IDS = torch.arange(3, 23)[None]


@pytest.fixture(scope="module", params=WRAPPERS)
def written(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[torch.nn.Module, Path, Path]:
    """(the model in memory, its directory, that of its plain compression)."""
    room = tmp_path_factory.mktemp(request.param)
    real = wrapper(request.param)
    base = tiny.save(real, room / "base")
    result = tiny.compress(base, room / "out", None, room / "cache", keep=0.5, method="plain")
    assert result.passed
    return real, base, room / "out"


def test_it_computes_what_truncated_matrices_of_the_text_tower_compute(
    written: tuple[torch.nn.Module, Path, Path],
) -> None:
    real, _, out = written
    small = type(real).from_pretrained(out, dtype=torch.float32).eval()
    modules = {path: module for path, module in small.named_modules() if isinstance(module, FormModule)}
    assert len(modules) == 14
    assert all("language_model" in path for path in modules)
    for path, module in modules.items():
        layer = real.get_submodule(path)
        left, values, right = torch.linalg.svd(layer.weight.detach().double(), full_matrices=False)
        rank = module.form.rank
        layer.weight.data = ((left[:, :rank] * values[:rank]) @ right[:rank]).float()
    with torch.no_grad():
        torch.testing.assert_close(small(IDS).logits, real(IDS).logits, rtol=1e-3, atol=1e-3)


def test_the_rest_lies_where_it_lay(written: tuple[torch.nn.Module, Path, Path]) -> None:
    _, base, out = written
    before, after = load_file(base / "model.safetensors"), load_file(out / "model.safetensors")
    same = [name for name in before if name in after and before[name].shape == after[name].shape]
    assert all(torch.equal(before[name], after[name]) for name in same)
    assert any("vis" in name for name in same)
    for name in before.keys() - set(same):  # the sentinel of a form has the name of the weight
        moved = f"{name.removesuffix('.bias')}.expand.bias"
        assert after[name if name in after else moved].shape in ((1,), before[name].shape)


def test_an_edit_is_the_truncated_matrix(written: tuple[torch.nn.Module, Path, Path], tmp_path: Path) -> None:
    _, base, _ = written
    edit = kanna.LaserConfig(edits=("mlp_out:-1:k=3",))
    assert kanna.laser_apply(base, tmp_path / "edited", edit).passed
    before, after = load_file(base / "model.safetensors"), load_file(tmp_path / "edited/model.safetensors")
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert len(changed) == 1
    assert changed[0].endswith("layers.1.mlp.down_proj.weight")
    left, values, right = torch.linalg.svd(before[changed[0]].double(), full_matrices=False)
    expected = (left[:, :3] * values[:3]) @ right[:3]
    torch.testing.assert_close(after[changed[0]].double(), expected, rtol=1e-4, atol=1e-5)


def test_it_is_scored_on_text(written: tuple[torch.nn.Module, Path, Path], tmp_path: Path) -> None:
    real, _, out = written
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "abc", "answer": "d"}\n{"prompt": "bcd", "answer": "ef"}\n')
    whole = type(real).from_pretrained(out, dtype=torch.float32).eval()
    scored = kanna.evaluate(out, [rows], EvalOptions(metric="log_loss"), cache=tmp_path / "cache")
    tokens = tiny.tokenizer(VOCAB)
    for record, (prompt, answer) in zip(scored.scores[0].records, [("abc", "d"), ("bcd", "ef")], strict=True):
        ids, wanted = tokens(prompt)["input_ids"], tokens(answer)["input_ids"]
        with torch.no_grad():
            logits = whole(torch.tensor([ids + wanted])).logits[0, len(ids) - 1 : -1]
        expected = functional.cross_entropy(logits, torch.tensor(wanted), reduction="sum")
        assert record.values["log_loss"] == pytest.approx(float(expected), rel=1e-3)

"""Sets of scales: which is in use, on disk and in memory, and which are refused."""

import hashlib
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save, save_file
from torch import Tensor
from transformers import AutoModel, AutoModelForCausalLM

import kanna
from kanna.errors import InputError

IDS = torch.tensor([[3, 7, 11, 5, 2, 9, 4, 8], [1, 2, 3, 4, 5, 6, 7, 8], [9, 9, 8, 8, 7, 7, 6, 6]])


def run(model: torch.nn.Module, ids: Tensor = IDS) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(ids).logits
    return found


def plain(base: Path) -> Tensor:
    """As somebody loads it who knows transformers alone."""
    return run(AutoModelForCausalLM.from_pretrained(base))


def stored(base: Path, name: str) -> dict[str, Tensor]:
    return load_file(base / "scales" / name / "scales.safetensors")


def change_record(base: Path, name: str, **values: object) -> None:
    path = base / "scales" / name / "scales.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_what_is_in_use_is_loaded(base: Path) -> None:
    """To the bit: back to the base, and to a set that was in use before."""
    before = plain(base)
    kanna.scales.activate(base, "law")
    law = plain(base)
    kanna.scales.activate(base, "support")
    support = plain(base)
    assert not torch.equal(before, law) and not torch.equal(law, support)
    assert kanna.scales.rollback(base) == "law" and torch.equal(plain(base), law)
    assert kanna.scales.rollback(base) is None and torch.equal(plain(base), before)
    with pytest.raises(InputError, match="nothing to go back to"):
        kanna.scales.rollback(base)
    kanna.scales.activate(base, "law")
    assert kanna.scales.rollback(base, "support") == "support" and torch.equal(plain(base), support)
    assert kanna.scales.rollback(base, "base") is None and torch.equal(plain(base), before)
    assert torch.equal(run(kanna.load(base, scales="law")[0]), law)
    entries = json.loads((base / "scales" / "active.json").read_text())["entries"]
    assert [entry["verb"] for entry in entries] == ["use", "use", *["rollback"] * 2, "use", *["rollback"] * 2]


def test_a_base_class_takes_the_set_too(base: Path) -> None:
    """Paths of a model without its head lack their beginning."""
    kanna.scales.activate(base, "law")
    whole = AutoModelForCausalLM.from_pretrained(base)
    with torch.no_grad():
        expected = whole(IDS, output_hidden_states=True).hidden_states[-1]
        assert torch.equal(AutoModel.from_pretrained(base)(IDS).last_hidden_state, expected)


def test_sets_in_memory(base: Path) -> None:
    model, _ = kanna.load(base)
    before = run(model)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    kanna.scales.use(model, "law")
    law = run(model)
    with kanna.scales.use(model, "fine"):
        fine = run(model)
        assert not torch.equal(fine, law)
    assert torch.equal(run(model), law)
    kanna.scales.use(model, "fine")
    assert torch.equal(run(model), fine)
    kanna.scales.use(model, None)
    assert torch.equal(run(model), before)
    assert model.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("family", ["llama", "gpt2", "phi3"])
def test_rows_of_a_batch_with_sets_of_their_own(
    family: str, quantised: Callable[[str], Path], tmp_path: Path
) -> None:
    base = Path(shutil.copytree(quantised(family), tmp_path / "base"))
    draw = torch.Generator().manual_seed(0)
    for name in ("law", "support"):
        model, _ = kanna.load(base)
        for change in kanna.scales.trainable(model).values():
            change.data.copy_(torch.randn(change.shape, generator=draw) / 5)
        kanna.scales.save(model, name)
    model, _ = kanna.load(base)
    names = ["law", "support", None]
    with kanna.scales.mixed(model, names):
        together = run(model)
    for row, name in enumerate(names):
        with kanna.scales.use(model, name):
            alone = run(model, IDS[row : row + 1])[0]
        assert float((together[row] - alone).abs().max()) < 1e-5 * float(alone.abs().max())
    assert float((together[0] - run(model, IDS[:1])[0]).abs().max()) > 1e-3
    with kanna.scales.mixed(model, names), pytest.raises(InputError, match="not 3 rows"):
        run(model, IDS[:2])


def test_sets_of_groups_cannot_be_mixed(base: Path) -> None:
    model, _ = kanna.load(base)
    with pytest.raises(InputError, match="of groups"):
        kanna.scales.mixed(model, ["law", "fine"])


def test_switching_is_quicker_than_loading(base: Path) -> None:
    model, _ = kanna.load(base)
    kanna.scales.use(model, "law")
    loading, switching = [], []
    for name in ("support", "law", "support"):
        start = time.perf_counter()
        kanna.load(base)
        between = time.perf_counter()
        kanna.scales.use(model, name)
        loading.append(between - start)
        switching.append(time.perf_counter() - between)
    assert min(switching) < 0.5 * min(loading)


def test_a_set_travels_as_one_file(base: Path, tuned: Path, tmp_path: Path) -> None:
    """Into a copy in other files, where it does the same."""
    kanna.scales.export(base, "law", tmp_path / "law.safetensors")
    copy = Path(shutil.copytree(tuned, tmp_path / "copy"))
    shutil.rmtree(copy / "scales")
    tensors = load_file(copy / "model.safetensors")
    (copy / "model.safetensors").unlink()
    (copy / "kanna.json").unlink()
    parts = sorted(tensors)
    index = {}
    for number, some in enumerate((parts[::2], parts[1::2]), 1):
        file = f"model-0000{number}-of-00002.safetensors"
        save_file({name: tensors[name] for name in some}, copy / file, metadata={"format": "pt"})
        index |= dict.fromkeys(some, file)
    (copy / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    assert kanna.scales.take(copy, tmp_path / "law.safetensors", "german") == "german"
    kanna.scales.activate(copy, "german")
    assert torch.equal(plain(copy), run(kanna.load(base, scales="law")[0]))
    assert kanna.scales.verify(copy) == ["german"]
    with pytest.raises(InputError, match="exists already"):
        kanna.scales.take(copy, tmp_path / "law.safetensors", "german")
    with pytest.raises(InputError, match="exists already"):
        kanna.scales.export(base, "law", tmp_path / "law.safetensors")


def test_a_set_of_another_model_is_refused(base: Path, bases: Callable[[str], Path], tmp_path: Path) -> None:
    """Even where nothing but a scale differs: both hashes are named."""
    file = base / "model.safetensors"
    tensors = load_file(file)
    name = next(name for name in tensors if name.endswith("weight_scale"))
    tensors[name][0, 0] *= 1.5
    save_file(tensors, file, metadata={"format": "pt"})
    recorded = json.loads((base / "scales" / "law" / "scales.json").read_text())["codes"]
    with pytest.raises(InputError, match=recorded) as refused:
        kanna.load(base, verify=False, scales="law")
    assert len([word for word in str(refused.value).split() if len(word.strip(".,")) == 64]) == 2
    with pytest.raises(InputError, match=recorded):
        kanna.scales.activate(base, "law")
    assert not (base / "scales" / "active.json").exists()
    with pytest.raises(InputError, match="no whole numbers"):
        kanna.scales.listed(bases("llama"))


def rewritten(base: Path, tensors: dict[str, Tensor]) -> None:
    """A set with other tensors, whose record says that they are right."""
    file = base / "scales" / "law" / "scales.safetensors"
    data = save(tensors)
    file.write_bytes(data)
    change_record(base, "law", tensors=hashlib.sha256(data).hexdigest())


def test_layers_that_do_not_fit_are_named(base: Path) -> None:
    held = stored(base, "law")
    path = "model.layers.0.mlp.down_proj"
    rewritten(base, {name: value for name, value in held.items() if name != path})
    with pytest.raises(InputError, match=path):
        kanna.load(base, scales="law")
    rewritten(base, {**held, path: held[path][:-1].contiguous()})
    with pytest.raises(InputError, match=rf"{path}.* shape"):
        kanna.load(base, scales="law")
    rewritten(base, {**held, "model.layers.9.mlp.down_proj": held[path].clone()})
    with pytest.raises(InputError, match=r"layers\.9"):
        kanna.load(base, scales="law")
    rewritten(base, {**held, path: torch.full_like(held[path], float("nan"))})
    with pytest.raises(InputError, match="finite"):
        kanna.load(base, scales="law")


def test_damaged_files_are_refused(base: Path) -> None:
    file = base / "scales" / "law" / "scales.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-8])
    with pytest.raises(InputError, match="damaged"):
        kanna.load(base, scales="law")
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(InputError, match="sha256"):
        kanna.scales.verify(base)
    file.write_bytes(whole)
    change_record(base, "law", format_version=2)
    with pytest.raises(InputError, match="upgrade kanna"):
        kanna.load(base, scales="law")
    (base / "scales" / "active.json").write_text('{"format_version": 9, "entries": []}')
    with pytest.raises(InputError, match="upgrade kanna"):
        AutoModelForCausalLM.from_pretrained(base)


def test_what_is_not_there(base: Path) -> None:
    with pytest.raises(InputError, match="fine, law, support"):
        kanna.load(base, scales="lav")
    kanna.scales.activate(base, "law")
    with pytest.raises(InputError, match="in use"):
        kanna.scales.remove(base, "law")
    kanna.scales.rollback(base)
    kanna.scales.remove(base, "law")
    assert [one.record.name for one in kanna.scales.listed(base)] == ["fine", "support"]
    with pytest.raises(InputError, match="nothing to go back to"):
        kanna.scales.rollback(base)


def test_how_far_sets_lie_apart(base: Path) -> None:
    law, fine = stored(base, "law"), stored(base, "fine")
    for one, other, expected in (
        ("law", "base", law),
        ("law", "fine", {path: value[:, None] - fine[path] for path, value in law.items()}),
    ):
        found = kanna.scales.diff(base, one, other)
        assert [moved.mean for moved in found] == sorted((moved.mean for moved in found), reverse=True)
        for moved in found:
            assert moved.mean == pytest.approx(float(expected[moved.path].square().mean() ** 0.5))
            assert moved.most == pytest.approx(float(expected[moved.path].abs().max()))


def test_a_model_that_was_cast_says_so(base: Path) -> None:
    model, _ = kanna.load(base)
    model.half()
    with pytest.raises(InputError, match="float16"):
        kanna.scales.use(model, "law")
    with pytest.raises(InputError, match="float16"):
        kanna.scales.trainable(model)
    low, _ = kanna.load(base, dtype="bfloat16")
    kanna.scales.use(low, "law")
    assert low.model.layers[0].mlp.down_proj.weight_scale.dtype == torch.float32


def test_what_is_saved_while_a_set_lies_over_it(base: Path, tmp_path: Path) -> None:
    """It is loaded as it was; steps of kanna refuse it, since they know no scales but those of sets."""
    model, _ = kanna.load(base, scales="law")
    expected = run(model)
    model.save_pretrained(tmp_path / "saved")
    assert torch.equal(plain(tmp_path / "saved"), expected)
    with pytest.raises(InputError, match="a set of scales lay over it"):
        kanna.export_dense(tmp_path / "saved", tmp_path / "dense")


def test_an_export_has_the_set_in_use(base: Path, tmp_path: Path) -> None:
    """Multiplied out it does the same, and holds no sets: they belong to codes that are gone."""
    kanna.scales.activate(base, "fine")
    expected = plain(base)
    kanna.export_dense(base, tmp_path / "dense")
    found = plain(tmp_path / "dense")
    assert float((found - expected).abs().max()) < 1e-5 * float(expected.abs().max())
    assert not (tmp_path / "dense" / "scales").exists()
    for name in ("law", "base"):
        kanna.export_dense(base, tmp_path / f"dense-{name}", scales=name)
        expected = run(kanna.load(base, scales=name)[0])
        assert float((plain(tmp_path / f"dense-{name}") - expected).abs().max()) < 1e-5 * float(
            expected.abs().max()
        )
    kanna.export_quantized(base, tmp_path / "ct", "compressed-tensors", scales="law")
    kept = load_file(tmp_path / "ct" / "model.safetensors")
    path = "model.layers.0.mlp.down_proj"
    scale = load_file(base / "model.safetensors")[f"{path}.weight_scale"]
    expected = scale * (1 + stored(base, "law")[path][:, None])
    assert torch.allclose(kept[f"{path}.weight_scale"].float(), expected, rtol=1e-3)
    assert not torch.allclose(expected, scale, rtol=3e-3)
    with pytest.raises(InputError, match="lav"):
        kanna.export_dense(base, tmp_path / "none", scales="lav")


def test_scores_are_those_of_the_set(base: Path, asked: Path, tmp_path: Path) -> None:
    """A score that was kept of the base is not taken for that of what is in use now."""
    first = kanna.evaluate(base, [asked], cache=tmp_path)
    kanna.scales.activate(base, "law")
    second = kanna.evaluate(base, [asked], cache=tmp_path)
    pairs = zip(first.scores[0].records, second.scores[0].records, strict=True)
    assert any(one.values != other.values for one, other in pairs)

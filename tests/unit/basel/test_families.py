"""Every architecture: fused, transposed, grouped, biased and tied matrices end at the size that was said."""

from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any

import exported
import family_configs
import pytest
import torch
from safetensors import safe_open

import kanna
from kanna.methods.basel.config import BaselConfig
from kanna.runs.source import Source

Base = Callable[[str], Path]
_MASKED = ("bert_mlm", "roberta_mlm", "modernbert", "distilbert")
FAMILIES = [name for name in {**family_configs.FAMILIES, **family_configs.OTHERS} if name not in _MASKED]


def shapes(directory: Path) -> dict[str, tuple[int, ...]]:
    with safe_open(directory / "model.safetensors", "pt") as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118


@pytest.fixture(scope="session")
def labelled(rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The rows with choices, for heads of three labels."""
    path = tmp_path_factory.mktemp("labelled") / "train.jsonl"
    choices = '"choices": ["LABEL_0", "LABEL_1", "LABEL_2"], "label": '
    lines = rows.read_text().splitlines()
    path.write_text(
        "".join(line.split(', "answer"')[0] + f", {choices}{i % 3}}}\n" for i, line in enumerate(lines))
    )
    return path


@pytest.mark.parametrize("family", FAMILIES)
def test_parameters_are_as_many_as_the_formula_says(
    family: str, bases: Base, rows: Path, labelled: Path, tmp_path: Path
) -> None:
    """In the files, too: (kept + extra) (m + n) of a matrix, or m n where that would be no less."""
    base, out, extra = bases(family), tmp_path / "out", 2
    data = labelled if "classifier" in family else rows
    given = {"data": data, "keep": 0.5, "rows": 36, "epochs": (1, 1, 0), "extra_rank": extra}
    result = kanna.basel(base, out, BaselConfig(**given, prune_events=1))
    assert result.passed
    selected = result.plan.selected
    ranks = result.figures["ranks"]
    assert selected and ranks and all(rank > extra for rank in ranks.values())
    expected = 0
    for matrix in selected:
        m, n = matrix.shape
        rank = ranks.get(matrix.name)
        assert rank is None or rank * (m + n) < m * n
        expected += m * n if rank is None else rank * (m + n)
    before, after = shapes(base), shapes(out)
    # Where factors are, one number has the dense name, so that nobody takes the file for a dense model.
    left = {name for name, shape in after.items() if shape == (1,) and before.get(name) != (1,)}
    assert bool(left) == bool(ranks)
    change = sum(prod(shape) for name, shape in after.items() if name not in left)
    change -= sum(map(prod, before.values()))
    dense = sum(prod(matrix.shape) for matrix in selected)
    assert change == expected - dense
    dearest = max(sum(matrix.shape) for matrix in selected)
    assert abs(expected - 0.5 * dense) <= dearest
    assert not any("embed" in path or "wte" in path or "head" in path for path in Source.open(out).forms)


@pytest.mark.parametrize("family", ["mixtral", "gpt_oss"])
def test_stacked_experts_are_refused_by_name(family: str, bases: Base, rows: Path) -> None:
    """The rest is trained, and the plan says what is left out; alone they are an error."""
    plan = kanna.basel(bases(family), None, BaselConfig(data=rows, keep=0.5, rows=4), dry_run=True).plan
    refused = [matrix for matrix in plan.inventory.matrices if matrix.refused]
    assert refused and not {matrix.name for matrix in refused} & set(plan.sizes)
    told = [note for note in plan.notes if "left out" in note]
    assert len(told) == 1 and f"{len(refused)} matrices" in told[0] and "expert" in told[0]
    role = refused[0].role
    with pytest.raises(
        kanna.InputError, match=f"matches only what cannot be compressed: .*{refused[0].name}"
    ):
        kanna.basel(bases(family), None, BaselConfig(data=rows, keep=0.5, select=role), dry_run=True)


@pytest.mark.parametrize("family", ["llama", "gpt_neox", "phi"])
def test_an_output_head_of_its_own_is_factors_where_it_is_named(
    family: str, bases: Base, rows: Path, tmp_path: Path
) -> None:
    """`phi` has a bias there; it is trained, written, loaded, multiplied out and scored like the others."""
    base, out = bases(family), tmp_path / "out"
    given = {"data": rows, "rows": 36, "epochs": (1, 1, 1), "prune_events": 1, "extra_rank": 1}
    plan = kanna.basel(base, None, BaselConfig(**given, keep=0.5, select="all@-1;lm_head"), dry_run=True).plan
    everything = kanna.basel(base, None, BaselConfig(**given, keep=0.5), dry_run=True).plan
    assert {m.layer for m in plan.selected} == {family_configs.LAYERS - 1}
    assert [m.name for m in plan.selected if m.role == "lm_head"] == [plan.selected[-1].name]
    assert not any(m.role == "lm_head" for m in everything.selected)
    criteria = kanna.criteria_of([str(rows)], "99pt", accept_empty=True)
    config = BaselConfig(**given, keep=0.3, select="lm_head", allow_overlap=True)
    result = kanna.basel(base, out, config, criteria=criteria)
    (head,) = result.plan.selected
    assert result.passed and result.comparison and result.figures["ranks"] == {head.name: 5}  # 0.3 of 61 x 24
    assert set(Source.open(out).forms) == {head.module}
    model, _ = kanna.load(out, dtype="float32")
    merged, _ = kanna.load(exported.dense(out, tmp_path / "dense"), dtype="float32")
    ids = torch.arange(3, 15)[None]
    with torch.no_grad():
        mine, theirs, old = (m(ids).logits for m in (model, merged, kanna.load(base, dtype="float32")[0]))
    assert float((mine - theirs).abs().max()) <= 1e-4 * float(mine.abs().max())
    assert float((mine - old).abs().max()) > 1e-2 * float(mine.abs().max())
    assert torch.equal(model.get_input_embeddings().weight, kanna.load(base)[0].get_input_embeddings().weight)
    _check_inspected(base, out, head.module)


def _check_inspected(base: Path, out: Path, path: str) -> None:
    """A head that is factors is among the matrices, not among what is left alone; a dense one if named."""
    for directory, select, rank in ((out, None, 5), (out, "lm_head", 5), (base, "lm_head", None)):
        found = kanna.inspect(directory, select=select)
        (head,) = [entry for entry in found.entries if entry.matrix.module == path]
        assert head.rank == rank and head.matrix.shape == (61, 24)
        assert f"{path}.weight" not in [one.name for one in found.inventory.skipped]
    dense = kanna.inspect(base)
    assert not any(entry.matrix.module == path for entry in dense.entries)
    assert f"{path}.weight" in [one.name for one in dense.inventory.skipped]


@pytest.mark.parametrize("start", [False, True])
@pytest.mark.parametrize("keep", [0.4, 0.97])
@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "phi3"])
def test_what_is_not_selected_stays_to_the_bit(
    family: str, keep: float, start: bool, bases: Base, rows: Path, tmp_path: Path
) -> None:
    """In fused modules, too, beside factors and beside dense rows; with a start some have no factors."""
    base, low, out = bases(family), tmp_path / "low", tmp_path / "out"
    given: dict[str, Any] = {"data": rows, "rows": 36, "epochs": (1, 1, 1), "select": "q"}
    if start:
        how = kanna.LowRankConfig(keep=keep, select="q@-1", align=1, method="plain", allocation="uniform")
        kanna.lowrank(base, low, how)
        # What training begins with is kept unless it gets better, which rows that it learns make sure of.
        given |= {"start": low, "validation": rows, "allow_overlap": True, "factor_rate": 0.01}
    else:
        given |= {"keep": keep, "prune_events": 1, "extra_rank": 0}
    kanna.basel(base, out, BaselConfig(**given))
    before, after = Source.open(base), Source.open(out)
    for matrix in before.inventory.matrices:
        equal = torch.equal(before.weight(matrix), after.weight(matrix))
        assert equal == (matrix.role != "q"), matrix.name


@pytest.mark.parametrize("family", ["qwen2", "gpt2", "bert_classifier"])
def test_a_head_that_is_none_of_its_own_is_refused(
    family: str, bases: Base, rows: Path, labelled: Path
) -> None:
    data = labelled if "classifier" in family else rows
    with pytest.raises(kanna.InputError, match="output head") as error:
        kanna.basel(bases(family), None, BaselConfig(data=data, keep=0.5, select="mlp,lm_head"), dry_run=True)
    assert "leave lm_head out" in str(error.value.remedy)
    assert ("once more" in error.value.problem) == (family != "bert_classifier")


@pytest.mark.parametrize("family", ["qwen2", "gpt2"])
def test_embeddings_that_the_head_shares_are_never_factors(
    family: str, bases: Base, rows: Path, tmp_path: Path
) -> None:
    base, out = bases(family), tmp_path / "out"
    kanna.basel(base, out, BaselConfig(data=rows, keep=0.4, rows=36, epochs=(1, 1, 0), prune_events=1))
    model, _ = kanna.load(out)
    old, _ = kanna.load(base)
    head, embedding = model.get_output_embeddings().weight, model.get_input_embeddings().weight
    assert head is embedding and torch.equal(embedding, old.get_input_embeddings().weight)


def test_a_model_that_asks_for_weights_when_it_learns(bases: Base, rows: Path, tmp_path: Path) -> None:
    """Mamba hands them to a kernel that is not there, and then calls its layers."""
    config = BaselConfig(data=rows, keep=0.5, rows=36, epochs=(1, 1, 1), prune_events=1)
    assert kanna.basel(bases("mamba"), tmp_path / "out", config).passed

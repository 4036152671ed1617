"""Methods that mergekit has not, against numpy's decompositions and plain loops."""

from pathlib import Path

import numpy as np
import pytest
import torch
from merge_models import run, weights
from test_merge_methods import COUNT, same_for_all_sizes, some
from torch import Tensor

import kanna
from kanna.methods.merge.rules.pruning import trimmed
from kanna.methods.merge.rules.spectral import Spectral, calibrated, isotropic, task_vectors
from kanna.methods.merge.rules.stitching import Stitched

ROWS, COLUMNS = 30, 20


def matrices(number: int, rank: int = COLUMNS) -> list[Tensor]:
    random = torch.Generator().manual_seed(6)
    return [
        torch.randn(ROWS, rank, generator=random, dtype=torch.float64)
        @ torch.randn(rank, COLUMNS, generator=random, dtype=torch.float64)
        for _ in range(number)
    ]


@pytest.mark.parametrize("rank", [COLUMNS, 3])
def test_iso_c_makes_the_directions_of_the_sum_equal_and_no_others(rank: int) -> None:
    changes = matrices(2, rank)
    found = isotropic(changes).numpy()
    total = (changes[0] + changes[1]).numpy()
    before, after = (np.linalg.svd(one, compute_uv=False) for one in (total, found))
    real = min(COLUMNS, 2 * rank)
    assert after[:real] == pytest.approx(np.full(real, before[:real].mean()), rel=1e-9)
    assert after.sum() == pytest.approx(before.sum(), rel=1e-9)
    u, _, vt = np.linalg.svd(total)
    assert np.allclose(found, before[:real].mean() * u[:, :real] @ vt[:real], atol=1e-8)


@pytest.mark.parametrize("alpha", [1.0, 0.1])
def test_svc_divides_singular_values_by_how_often_they_are_counted(alpha: float) -> None:
    """By a loop over singular values and differences."""
    changes = [one.numpy() for one in matrices(3)]
    u, s, vt = np.linalg.svd(sum(changes), full_matrices=False)
    wanted = np.zeros((ROWS, COLUMNS))
    for place, value in enumerate(s):
        counts = []
        for change in changes:
            own = u[:, place] @ change
            counts.append(max(alpha, value * vt[place] @ own / (own @ own)))
        wanted += value * 3 / sum(counts) * np.outer(u[:, place], vt[place])
    found = calibrated([torch.from_numpy(one) for one in changes], alpha).numpy()
    assert np.allclose(found, wanted, atol=1e-9)
    assert not np.allclose(found, sum(changes), atol=1e-3)


def test_svc_takes_back_what_all_share_and_leaves_what_one_has() -> None:
    (shared,) = matrices(1)
    assert torch.allclose(calibrated([shared, shared, shared]), shared, atol=1e-9)
    left, right = torch.zeros(ROWS, COLUMNS).double(), torch.zeros(ROWS, COLUMNS).double()
    left[:10, :8], right[10:, 8:] = torch.randn(10, 8).double(), torch.randn(ROWS - 10, COLUMNS - 8).double()
    assert torch.allclose(calibrated([left, right]), left + right, atol=1e-9)
    assert torch.allclose(calibrated([left]), left, atol=1e-9)
    assert torch.equal(calibrated([left * 0, left * 0]), left * 0)


def test_tsv_m_of_one_is_itself_and_of_two_has_orthogonal_vectors() -> None:
    (one,) = matrices(1)
    assert torch.allclose(task_vectors([one]), one, atol=1e-9)
    first, second = matrices(2)
    found = task_vectors([first, second]).numpy()
    kept = COLUMNS // 2
    parts = [np.linalg.svd(side.numpy(), full_matrices=False) for side in (first, second)]

    def polar(matrix: np.ndarray) -> np.ndarray:
        p, _, q = np.linalg.svd(matrix, full_matrices=False)
        return p @ q

    left = polar(np.concatenate([u[:, :kept] for u, _, _ in parts], 1))
    right = polar(np.concatenate([vt[:kept].T for _, _, vt in parts], 1))
    values = np.concatenate([s[:kept] for _, s, _ in parts])
    assert np.allclose(found, left @ np.diag(values) @ right.T, atol=1e-8)
    assert np.linalg.svd(found, compute_uv=False) == pytest.approx(np.sort(values)[::-1], rel=1e-8)
    assert torch.equal(task_vectors([first * 0, second * 0]), first * 0)


def test_vectors_are_averaged() -> None:
    models = [torch.tensor(values) for values in ([1.0, 2.0], [2.0, 2.0], [1.0, 5.0])]
    for combine in (task_vectors, isotropic, calibrated):
        found = run(Spectral(0, [0, 1.0, 2.0], 2, 0.5, combine), models, 2)
        assert found.tolist() == [1.25, 3.5]


def test_localize_and_stitch_averages_only_where_entries_overlap() -> None:
    base = torch.zeros(5)
    models = [torch.tensor(values) for values in ([4.0, -3, 0.1, 0, 0], [2.0, 0.2, 0, -5, 0.1])]

    def make() -> Stitched:
        return Stitched(0, [None, *(trimmed(0.4, 0.0, 5, torch.float32) for _ in range(2))], 5, 1.0)

    assert run(make(), [base, *models], 5).tolist() == [3.0, -3.0, 0, -5.0, 0]
    assert make().kept == (4, 10)
    large = some(3)
    found = same_for_all_sizes(
        lambda: Stitched(0, [None, *(trimmed(0.1, 0.0, COUNT, torch.float32) for _ in "ab")], COUNT, 0.7),
        large,
    )
    changes = [(one - large[0]).numpy() for one in large[1:]]
    masks = [np.isin(np.arange(COUNT), np.argsort(-np.abs(c), kind="stable")[: COUNT // 10]) for c in changes]
    total = sum(c * m for c, m in zip(changes, masks, strict=True)) / np.maximum(1, masks[0] * 1 + masks[1])
    assert np.allclose(found.numpy(), large[0].numpy() + 0.7 * total, atol=1e-6)


@pytest.mark.parametrize("method", ["tsv_m", "iso_c", "svc", "localize_and_stitch"])
def test_recipes_run(method: str, models: dict[str, Path], tmp_path: Path) -> None:
    listed = [{"model": str(models[name])} for name in ("a", "b")]
    given = {"merge_method": method, "models": listed, "base_model": str(models["base"])}
    assert kanna.merge(given, tmp_path / "out").passed
    nothing = {**given, "parameters": {"lambda": 0}, "out_dtype": "float32"}
    assert kanna.merge(nothing, tmp_path / "base").passed
    base, found = weights(models["base"]), weights(tmp_path / "base")
    assert all(torch.equal(found[name], base[name].float()) for name in base)


def test_whole_tensors_need_their_memory(models: dict[str, Path]) -> None:
    listed = [{"model": str(models[name])} for name in ("a", "b")]
    given = {"merge_method": "iso_c", "models": listed, "base_model": str(models["base"])}
    largest = max(values.numel() for values in weights(models["base"]).values())
    plan = kanna.merge_plan(given)
    assert plan.chunk >= largest
    with pytest.raises(kanna.InputError, match="too little for 3 models"):
        kanna.merge_plan(given, max_memory=plan.memory - 1)

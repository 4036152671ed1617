"""What theory promises of the factors, held against what lies on disk after a run on a whole model."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import naive
import pytest
import tiny
import torch
from exported import dense
from torch import Tensor

from kanna.checkpoint.loader import load
from kanna.linalg.allocation import Ranks
from kanna.linalg.whitening import basis, factors
from kanna.models.inventory import Inventory

FAMILIES = ["llama", "gpt2", "gpt_neox", "phi3", "falcon_40b", "bert_mlm"]
BIASED = ["gpt2", "opt", "gpt_neox", "roberta_classifier"]
# No ridge, and nothing that changes the objective: the theorems are of ||(W - W') X||^2 alone.
PURE: dict[str, Any] = {
    "keep": 0.6, "allocation": "uniform", "outputs": "equal", "ridge": 0.0, "bias_correction": False
}  # fmt: skip
# Stored factors are float32, statistics are products in float32.
ROUNDING = 1 + 1e-4

Weights = dict[str, tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Measured:
    """A run, with the model's inputs before and after it.

    Args:
        before, after: By matrix name, (weight, bias) of the source and of the result multiplied out.
        x, x_hat: By matrix name, what each reads in the source and in the result.
    """

    found: Inventory
    ranks: Ranks
    before: Weights
    after: Weights
    x: dict[str, Tensor]
    x_hat: dict[str, Tensor]

    def error(self, name: str, x_hat: Tensor | None = None, replaced: Tensor | None = None) -> float:
        """|| (W x + b) - (W' x^ + b') ||^2 of one matrix; W' and x^ as after the run unless given."""
        after = self.after[name] if replaced is None else (replaced, self.before[name][1])
        return naive.error(self.x[name], self.x[name] if x_hat is None else x_hat, self.before[name], after)

    def of_rank(self, name: str, metric: Tensor | None) -> Tensor:
        """The replacement of W at the rank of the run under another input metric."""
        weight = self.before[name][0]
        rank = self.ranks[name]
        assert rank is not None
        expand, reduce = factors(weight, basis(weight, metric), rank)
        return expand @ reduce


@pytest.fixture(scope="module")
def measured(
    bases: Callable[[str], Path], text: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Measured]:
    made: dict[str, Measured] = {}

    def measure(name: str, **settings: Any) -> Measured:
        key = f"{name}-{settings}"
        if key not in made:
            root = tmp_path_factory.mktemp("theorems")
            result = tiny.compress(bases(name), root / "out", text, cache, **(PURE | settings))
            dense(root / "out", root / "dense")
            found, windows = result.plan.inventory, naive.calibration(bases(name), text)
            model, _ = load(root / "out", dtype=torch.float32)
            made[key] = Measured(
                found,
                result.figures["ranks"],
                naive.weights(bases(name), found),
                naive.weights(root / "dense", found),
                naive.inputs(tiny.whole(bases(name)), found.compressible, windows),
                naive.inputs(model, found.compressible, windows),
            )
        return made[key]

    return measure


@pytest.mark.parametrize("name", FAMILIES)
def test_c1_the_loss_is_the_sum_of_the_energies_left_out(
    name: str, measured: Callable[..., Measured]
) -> None:
    run = measured(name, method="whitened")
    assert run.ranks
    for matrix, rank in run.ranks.items():
        x = run.x[matrix]
        assert rank is not None
        predicted = float(basis(run.before[matrix][0], x.T @ x).tails()[rank])
        assert run.error(matrix) == pytest.approx(predicted, rel=1e-4), matrix


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("other", ["plain", "asvd", "fwsvd"])
def test_c2_whitened_is_never_worse_on_any_matrix(
    name: str, other: str, measured: Callable[..., Measured]
) -> None:
    best, rival = measured(name, method="whitened"), measured(name, method=other)
    assert best.ranks == rival.ranks
    errors = {matrix: (best.error(matrix), rival.error(matrix)) for matrix in best.ranks}
    assert all(mine <= its * ROUNDING for mine, its in errors.values()), errors
    assert any(mine < 0.99 * its for mine, its in errors.values()), "the comparison compares something"


@pytest.mark.parametrize("name", FAMILIES)
def test_c4_anchored_is_never_worse_on_what_reaches_the_matrix(
    name: str, measured: Callable[..., Measured]
) -> None:
    """Against the factors of the original inputs, and those of the shifted ones with the original weight."""
    run = measured(name, method="anchored")
    gains = []
    for matrix in run.ranks:
        x, x_hat = run.x[matrix], run.x_hat[matrix]
        mine = run.error(matrix, x_hat)
        for metric in (x.T @ x, x_hat.T @ x_hat, None):
            other = run.error(matrix, x_hat, run.of_rank(matrix, metric))
            assert mine <= other * ROUNDING, matrix
            gains.append(mine / other)
    assert min(gains) < 0.9, "some prefix is shifted enough to matter"


@pytest.mark.parametrize("method", ["whitened", "anchored"])
@pytest.mark.parametrize("name", BIASED)
def test_bias_correction_never_raises_the_error(
    name: str, method: str, measured: Callable[..., Measured]
) -> None:
    bare = measured(name, method=method)
    mended = measured(name, method=method, bias_correction=True)
    biased = {m.name: m.layer for m in bare.found.compressible if m.has_bias and m.name in bare.ranks}
    assert biased
    changed = [matrix for matrix in biased if not bare.after[matrix][1].equal(mended.after[matrix][1])]
    assert changed == list(biased)
    if method == "anchored":
        # Behind the first matrices the two runs see different inputs and are not to be compared.
        biased = {
            matrix: layer for matrix, layer in biased.items() if bare.x[matrix].equal(bare.x_hat[matrix])
        }
    for matrix in biased:
        assert mended.error(matrix) <= bare.error(matrix) * ROUNDING, matrix
    assert any(mended.error(matrix) < 0.99 * bare.error(matrix) for matrix in biased)


def test_the_mean_output_is_kept(measured: Callable[..., Measured]) -> None:
    run = measured("gpt2", method="anchored", bias_correction=True)
    for matrix in run.ranks:
        before, after = run.before[matrix], run.after[matrix]
        wanted = run.x[matrix].mean(0) @ before[0].T + before[1]
        got = run.x_hat[matrix].mean(0) @ after[0].T + after[1]
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))

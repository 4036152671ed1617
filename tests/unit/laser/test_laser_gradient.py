"""The singular-value gradient against differences of the real loss, in float64."""

import math
import random
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import family_configs
import pytest
import tiny_encoders
import torch
from torch import Tensor, nn

from kanna.linalg.decomposition import decompose, singular_gradient
from kanna.methods.laser.arena import SearchOptions, open_arena
from kanna.methods.laser.gradient import loss_weights, predicted_changes, weight_gradients
from kanna.models.inventory import inventory
from kanna.models.matrix import Matrix
from kanna.models.views import read, write
from kanna.tasks.data.rows import Row
from kanna.tasks.options import EvalOptions
from kanna.tasks.scorers.edited import EditedTask
from kanna.tasks.scorers.likelihood import Passes, build
from kanna.tasks.scorers.masked import MaskedScorer
from kanna.tasks.scorers.planning import plan_batches
from kanna.tasks.scorers.resumed import Edit, applied
from kanna.tasks.tokens.cloze import Cloze
from kanna.tasks.tokens.encode import Piece

# Step of the differences, and what they may be off: relative, absolute. The norms of some models compute in
# float32 whatever they are given.
DOUBLE, SINGLE = (1e-5, 1e-6, 1e-9), (3e-3, 1e-3, 1e-4)


def plain_logits(
    model: nn.Module, inputs: dict[str, Tensor], places: Tensor, gradients: bool = False
) -> Tensor:
    """As `logits_at`, in the model's own dtype."""
    with torch.set_grad_enabled(gradients):
        return model(**inputs).logits.flatten(0, 1)[places]


def causal(name: str, choices: bool) -> tuple[nn.Module, list[Row], Passes]:
    model = family_configs.model(name).double()
    draw = random.Random(3)
    rows, pieces = [], []
    for i in range(5):
        context = tuple(draw.randrange(3, family_configs.VOCAB) for _ in range(draw.randrange(3, 9)))
        rows.append(
            Row("", f"p{i}", choices=("a", "b", "c") if choices else (), label=i % 3 if choices else None)
        )
        for _ in range(3):  # of rows without choices: three right answers
            target = tuple(draw.randrange(3, family_configs.VOCAB) for _ in range(draw.randrange(1, 4)))
            pieces.append(Piece(context, target, 3))
    plan = plan_batches(model, pieces, 64, True)
    batches = tuple(partial(build, some, pieces, model) for some in plan.batches)
    return model, rows, Passes(batches, (3,) * 5, plain_logits)


def masked(family: str) -> tuple[nn.Module, list[Row], Passes]:
    model, tokenizer = tiny_encoders.encoder(family)
    model = model.double()
    answers = ("ka", "lo mi", "nu po ra")
    rows = [
        Row("", f"{one} is [MASK] .", choices=answers, label=i) for i, one in enumerate(["ka lo", "mi", "se"])
    ]
    rows = [replace(row, prompt=row.prompt.replace("[MASK]", tokenizer.mask_token)) for row in rows]
    scorer = MaskedScorer(model, Cloze(tokenizer, 40))
    passes = scorer.passes([row.prompt for row in rows], [answers] * 3)
    return model, rows, replace(passes, logits=plain_logits)


def loss(model: nn.Module, rows: Sequence[Row], passes: Passes) -> float:
    """Mean cross-entropy among the choices, or of the likeliest right answer."""
    found = passes.run(model, False, lambda *_: None)
    costs = []
    for row, some in zip(rows, found, strict=True):
        sums = [one.sum for one in some]
        if row.label is None:
            costs.append(-max(sums))
        else:
            costs.append(math.log(sum(math.exp(one) for one in sums)) - sums[row.label])
    return sum(costs) / len(costs)


def moved(model: nn.Module, matrix: Matrix, change: Tensor) -> Edit:
    parameter = model.get_parameter(matrix.tensor).detach()
    weight = read(parameter, matrix.view)
    return Edit(matrix.module, matrix.parameter, write(parameter, matrix.view, weight + change), matrix.layer)


def check(
    model: nn.Module,
    rows: Sequence[Row],
    passes: Passes,
    precision: tuple[float, float, float] = DOUBLE,
) -> None:
    step, relative, absolute = precision
    found = inventory(model)
    flags = [parameter.requires_grad for parameter in model.parameters()]
    likelihoods = passes.run(model, False, lambda *_: None)
    gradients = weight_gradients(model, [(passes, loss_weights(rows, likelihoods))], found.compressible)
    assert [parameter.requires_grad for parameter in model.parameters()] == flags
    assert all(parameter.grad is None for parameter in model.parameters())
    layers = {0, len(found.blocks) - 1}
    for matrix in (one for one in found.compressible if one.layer in layers):
        parts = decompose(read(model.get_parameter(matrix.tensor).detach(), matrix.view))
        slopes = singular_gradient(parts, gradients[matrix.name])
        for i in (0, len(parts.values) // 2, len(parts.values) - 1):
            direction = torch.outer(parts.left[:, i], parts.right[i])
            sides = []
            for sign in (1, -1):
                with applied(model, [moved(model, matrix, sign * step * direction)]):
                    sides.append(loss(model, rows, passes))
            measured = (sides[0] - sides[1]) / (2 * step)
            assert float(slopes[i]) == pytest.approx(measured, rel=relative, abs=absolute), matrix.name


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox", "gemma2", "phi"])
@pytest.mark.parametrize("choices", [False, True])
def test_causal_models(name, choices):
    check(*causal(name, choices), DOUBLE if name in ("gpt2", "gpt_neox", "phi") else SINGLE)


@pytest.mark.parametrize("family", ["Bert", "Roberta"])
def test_masked_models(family):
    check(*masked(family))


def test_predicted_changes_are_sums_of_what_goes():
    values, slopes = torch.rand(7).double().sort(descending=True).values, torch.randn(7).double()
    found = predicted_changes(values, slopes)
    assert found == pytest.approx([-float((values * slopes)[rank:].sum()) for rank in range(8)])


def test_weights_of_a_row_with_choices_are_softmax_less_one():
    _, rows, passes = causal("llama", True)
    model = family_configs.model("llama").double()
    found = passes.run(model, False, lambda *_: None)
    weights = loss_weights(rows, found)
    for number, (row, some) in enumerate(zip(rows, found, strict=True)):
        total = sum(math.exp(one.sum) for one in some)
        expected = [math.exp(one.sum) / total - (i == row.label) for i, one in enumerate(some)]
        assert weights[3 * number : 3 * number + 3] == pytest.approx([one / 5 for one in expected])


def test_small_edits_change_the_loss_as_predicted(planted, task):
    """To first order: the sum over what an edit takes away, of components scaled down a little."""
    arena = open_arena(planted, task, SearchOptions(share=0.4, roles="all"), EvalOptions())
    tried = EditedTask(arena.plan, arena.validation_task, arena.model, arena.found, 2**30)
    base = tried.base()
    weights = loss_weights(tried.rows, tried.base_rows)
    gradients = weight_gradients(arena.model, [(tried.resumed.passes, weights)], arena.matrices)
    share = 1e-2
    for matrix in arena.matrices[::4]:
        parts = arena.weights.decomposition(matrix)
        changes = predicted_changes(parts.values, singular_gradient(parts, gradients[matrix.name]))
        for rank in (0, 8):
            edits = [moved(arena.model, matrix, -share * parts.bottom(rank).float())]
            score = tried.edited([edits])[0]
            difference = score.metrics["log_loss"] - base.metrics["log_loss"]
            assert difference == pytest.approx(share * changes[rank], rel=0.1, abs=3e-5)
    tried.close()

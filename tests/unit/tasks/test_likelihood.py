"""Log-likelihoods against a plain float64 loop, one row at a time, for every family."""

import copy
import random

import family_configs
import pytest
import torch

from kanna.errors import InputError
from kanna.tasks.scorers.planning import likelihoods
from kanna.tasks.tokens.encode import Piece

PACKED = [
    "llama",
    "qwen3",
    "gemma2",
    "phi",
    "phi3",
    "gpt2",
    "gpt_neox",
    "gptj",
    "falcon_7b",
    "cohere",
    "olmo2",
    "falcon_rw",
]
# Positions or masks that only come with plain rows.
PLAIN = ["bloom", "mpt"]


def pieces(seed: int, count: int = 12) -> list[Piece]:
    """Contexts that share beginnings, with continuations of one to four tokens."""
    draw = random.Random(seed)

    def some(n: int) -> tuple[int, ...]:
        return tuple(draw.randrange(3, family_configs.VOCAB) for _ in range(n))

    starts = [some(draw.randrange(1, 6)) for _ in range(3)]
    contexts = [draw.choice(starts) + some(draw.randrange(0, 5)) for _ in range(count)]
    return [Piece(context, some(draw.randrange(1, 5)), 1) for context in contexts for _ in range(2)]


def naive(model: torch.nn.Module, piece: Piece) -> tuple[float, bool, int]:
    ids = torch.tensor([piece.context + piece.target])
    with torch.no_grad():
        logits = model(ids).logits[0].double()
    total, greedy, worst = 0.0, True, 0
    for j, token in enumerate(piece.target):
        row = logits[len(piece.context) - 1 + j]
        total += float(row[token] - row.logsumexp(0))
        greedy &= int(row.argmax()) == token
        worst = max(worst, int((row > row[token]).sum()))
    return total, greedy, worst


@pytest.mark.parametrize("family", PACKED + PLAIN)
@pytest.mark.parametrize("share", [True, False])
def test_it_equals_one_row_at_a_time_in_float64(family: str, share: bool) -> None:
    model = family_configs.model(family)
    asked = pieces(len(family))
    found = likelihoods(model, asked, batch_tokens=60, ranks=True, share=share)
    double = copy.deepcopy(model).double()
    for piece, one in zip(asked, found.found, strict=True):
        total, greedy, worst = naive(double, piece)
        assert one.sum == pytest.approx(total, abs=1e-4)
        assert (one.greedy, one.worst_rank, one.tokens) == (greedy, worst, len(piece.target))
    if share:
        assert found.packed == (family in PACKED)
        assert (found.forward_tokens < found.naive_tokens) or not found.packed


def test_results_do_not_depend_on_the_batch() -> None:
    model, asked = family_configs.model("llama"), pieces(1, 30)
    sums = [
        torch.tensor([one.sum for one in likelihoods(model, asked, batch_tokens=size).found])
        for size in (1, 37, 100_000)
    ]
    assert all(torch.allclose(sums[0], other, atol=1e-4) for other in sums[1:])


def test_sliding_windows_get_plain_rows_where_they_would_matter() -> None:
    model = family_configs.model("mistral")
    model.config.sliding_window = 5  # type: ignore[union-attr, assignment]
    found = likelihoods(model, pieces(4))
    assert not found.packed
    for piece, one in zip(pieces(4), found.found, strict=True):
        assert one.sum == pytest.approx(naive(model, piece)[0], abs=1e-4)


def test_the_model_is_left_as_it_was() -> None:
    model = family_configs.model("llama")
    likelihoods(model, pieces(2))
    assert not model.get_output_embeddings()._forward_pre_hooks  # type: ignore[operator]


def test_logits_that_are_not_finite_are_refused() -> None:
    model = family_configs.model("llama")
    with torch.no_grad():
        model.get_output_embeddings().weight[5] = float("nan")  # type: ignore[operator]
    with pytest.raises(InputError, match="not finite"):
        likelihoods(model, pieces(3))


def test_nothing_asked_is_nothing_found() -> None:
    assert likelihoods(family_configs.model("llama"), []).found == ()

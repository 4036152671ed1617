"""Rows beside others against each by itself: no model is scored in a way that it does not compute right."""

import random
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import family_configs
import pytest
import torch
import transformers
from disturbed import DISTURBED, VOCAB, disturbed
from torch import Tensor, nn

from kanna.tasks.scorers.layout import Layout, layout_of, seen
from kanna.tasks.scorers.likelihood import most_logits
from kanna.tasks.scorers.perplexity import perplexity
from kanna.tasks.scorers.planning import PACK_TOKENS, likelihoods, plan_batches
from kanna.tasks.tokens.encode import Piece
from kanna.tasks.tokens.lots import Bounds, bounds_of, lots
from kanna.tasks.tokens.padded import pad_token, vocabulary_of


def questions(seed: int = 0, count: int = 24) -> list[Piece]:
    """Contexts of 6 to 36 tokens, some of which begin alike, each with four choices of one token.

    They fill more than one pack; a question by itself is four times the same input.
    """
    draw = random.Random(seed)

    def some(n: int) -> tuple[int, ...]:
        return tuple(draw.randrange(3, VOCAB) for _ in range(n))

    starts = [some(4), some(8)]
    contexts = [(*draw.choice(starts), *some(draw.randrange(2, 29))) for _ in range(count)]
    return [Piece(context, (letter,), 1) for context in contexts for letter in (5, 6, 7, 8)]


def alone(model: nn.Module, asked: Sequence[Piece]) -> list[float]:
    """Log-probability of each last token, one unpadded row at a time."""
    logs = {}
    for inputs in dict.fromkeys(piece.inputs for piece in asked):
        with torch.no_grad():
            logs[inputs] = model(torch.tensor([inputs])).logits[0, -1].double().log_softmax(-1)
    return [float(logs[piece.inputs][piece.target[0]]) for piece in asked]


@pytest.mark.parametrize("name", DISTURBED)
def test_choices_of_one_token_are_scored_as_single_rows(name: str) -> None:
    model, asked = disturbed(name), questions()
    assert sum(len(piece.inputs) for piece in asked[::4]) > PACK_TOKENS
    found = likelihoods(model, asked)
    assert [one.sum for one in found.found] == pytest.approx(alone(model, asked), abs=5e-5)
    if name != "phi3":  # which takes packs of rows on one side of its bound
        assert not found.packed and found.notes


@pytest.mark.parametrize("count", [1, 24])
def test_a_model_that_takes_packs_still_shares_what_is_alike(count: int) -> None:
    found = likelihoods(family_configs.model("llama"), questions(3, count))
    assert found.packed and not found.notes
    assert found.forward_tokens < found.naive_tokens / 3


def test_nothing_is_shared_where_that_is_not_wanted() -> None:
    model, asked = family_configs.model("llama"), questions(4)
    apart = plan_batches(model, asked, 2048, share=False)
    assert {group.layout for group in apart.batches} == {Layout.PADDED} and not apart.notes
    assert sum(len(group.packs) for group in apart.batches) == len(asked) // 4


def test_short_rows_do_not_change_beside_long_ones() -> None:
    model, asked = disturbed("phi3"), questions(5)
    short = [piece for piece in asked if len(piece.inputs) <= 24]
    assert 0 < len(short) < len(asked)
    by_piece = dict(zip(asked, likelihoods(model, asked).found, strict=True))
    for piece, one in zip(short, likelihoods(model, short).found, strict=True):
        assert by_piece[piece].sum == pytest.approx(one.sum, abs=1e-5)


@pytest.mark.parametrize("name", ["mamba2", "bamba", "lfm2", "rwkv"])
def test_one_long_question_does_not_vouch_for_strangers_in_packs(name: str) -> None:
    draw = random.Random(1)
    contexts = [(first, *(draw.randrange(3, VOCAB) for _ in range(30))) for first in range(3, 17)]
    contexts.append(tuple(draw.randrange(20, VOCAB) for _ in range(PACK_TOKENS + 4)))
    asked = [Piece(context, (letter,), 1) for context in contexts for letter in (5, 6, 7, 8)]
    model = disturbed(name)
    found = likelihoods(model, asked)
    assert not found.packed
    assert [one.sum for one in found.found] == pytest.approx(alone(model, asked), abs=5e-5)


def test_one_pack_does_not_vouch_for_several_in_a_pass() -> None:
    draw = random.Random(2)
    contexts = [(first, *(draw.randrange(3, VOCAB) for _ in range(49))) for first in range(3, 18)]
    plan = plan_batches(Coupled("rows", masks=True), [Piece(some, (5,), 1) for some in contexts], 2048, True)
    assert not plan.packed and all(len(group.packs) == 1 for group in plan.batches)


class Coupled(nn.Module):
    """A causal model whose logits move with what else is in the batch, as experts that run full make it."""

    def __init__(self, by: str, masks: bool = False) -> None:
        super().__init__()
        self.inner, self.by, self.masks = family_configs.model("llama"), by, masks
        self.config = self.inner.config

    def get_output_embeddings(self) -> nn.Module:
        return self.inner.get_output_embeddings()  # type: ignore[operator, no-any-return]

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, **given: Any) -> Any:
        rows, width = input_ids.shape
        off = {"rows": rows, "width": width}.get(self.by, 0)
        given = {**given, "attention_mask": attention_mask} if self.masks else {}
        return SimpleNamespace(logits=self.inner(input_ids, **given).logits * (1 + 0.1 * off))


@pytest.mark.parametrize(
    ("by", "layout", "words"),
    [("width", Layout.EQUAL, "rows of equal length"), ("rows", Layout.SINGLE, "by itself")],
)
def test_what_padding_or_other_rows_change_is_computed_apart(by: str, layout: Layout, words: str) -> None:
    model, asked = Coupled(by), questions(6)
    plan = plan_batches(model, asked, 2048, share=True)
    assert {group.layout for group in plan.batches} == {layout} and words in plan.notes[0]
    found = likelihoods(model, asked).found
    assert [one.sum for one in found] == pytest.approx(alone(model, asked), abs=1e-5)


def test_windows_of_text_beside_others() -> None:
    ids = torch.randint(3, VOCAB, (60,), generator=torch.Generator().manual_seed(1))
    apart = perplexity(Coupled("rows"), ids, context=12, stride=6, batch=4)
    single = perplexity(Coupled("rows"), ids, context=12, stride=6, batch=1)
    assert apart.log_likelihood == pytest.approx(single.log_likelihood, rel=1e-6)
    assert "by itself" in apart.notes[0] and not single.notes
    assert "notes" not in perplexity(family_configs.model("llama"), ids, context=12, stride=6).to_dict()


class Counting(Coupled):
    """Counts the rows that it reads, and fails beyond some tokens in a pass or where a mask comes."""

    def __init__(self, by: str = "nothing", most: int = 10**6, masks: bool = False) -> None:
        super().__init__(by, masks)
        self.most, self.rows, self.masked = most, 0, 0

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, **given: Any) -> Any:
        if input_ids.numel() > self.most:
            raise RuntimeError("CUDA error: out of memory")
        self.rows += len(input_ids)
        self.masked += attention_mask is not None
        return super().forward(input_ids, attention_mask, **given)


@pytest.mark.parametrize(("by", "computed"), [("width", 12), ("rows", 15)])
def test_windows_that_were_tried_are_not_computed_again(by: str, computed: int) -> None:
    ids = torch.randint(3, VOCAB, (122,), generator=torch.Generator().manual_seed(1))
    model = Counting(by)
    found = perplexity(model, ids, context=12, stride=12, batch=4)
    assert len(found.windows) == 11 and model.rows == computed
    single = perplexity(Coupled(by), ids, context=12, stride=12, batch=1)
    assert found.log_likelihood == pytest.approx(single.log_likelihood, rel=1e-6)


def test_what_is_tried_needs_no_more_room_than_what_is_computed() -> None:
    draw = random.Random(3)
    contexts = [(first, *(draw.randrange(3, VOCAB) for _ in range(39))) for first in range(3, 18)]
    asked = [Piece(context, (5,), 1) for context in (*contexts, contexts[0] + contexts[1])]
    found = likelihoods(Counting(most=90), asked, batch_tokens=90, share=False)
    assert not found.notes
    assert [one.sum for one in found.found] == pytest.approx(alone(Counting(), asked), abs=5e-5)


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("no"), RuntimeError("CUDA error: device-side assert")]
)
def test_a_device_that_fails_says_nothing_about_the_model(error: RuntimeError) -> None:
    def failing(*_: Any) -> Any:
        raise error

    whole = seen(torch.zeros(1, 3))
    with pytest.raises(RuntimeError):
        layout_of(nn.Linear(1, 1), [3, 3], failing, lambda row: {row: whole})


def test_equal_rows_are_tried_as_they_are_computed() -> None:
    asked: list[tuple[Layout, list[int]]] = []

    def computed(rows: Any, layout: Layout) -> dict[Any, Any]:
        asked.append((layout, list(rows)))
        return {row: seen(torch.tensor([[1.0, float(layout is Layout.PADDED)]])) for row in rows}

    found = layout_of(
        nn.Linear(1, 1),
        [3, 5, 5, 9],
        computed,
        lambda row: computed([row], Layout.SINGLE),
        lambda rows: 3 not in rows,
    )
    assert found == Layout.EQUAL
    assert [one for one in asked if one[0] is not Layout.SINGLE] == [
        (Layout.PADDED, [0, 2]),
        (Layout.EQUAL, [1, 2]),
    ]


def test_the_vocabulary_of_a_model_with_several_parts() -> None:
    model = nn.Module()
    model.config = transformers.Gemma3Config(text_config={"vocab_size": 262_208})  # type: ignore[assignment]
    assert vocabulary_of(model) == 262_208
    assert most_logits(model) == 2**28 // (4 * 262_208)
    assert vocabulary_of(nn.Linear(1, 1)) is None and most_logits(nn.Linear(1, 1)) == 2**11


def test_a_model_that_reads_letters_has_no_vocabulary() -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    with torch.device("meta"):
        model = transformers.CanineForSequenceClassification(transformers.CanineConfig(**sizes))
    assert vocabulary_of(model) is None and pad_token(model) == 0


@pytest.mark.parametrize("wrong", [None, "width", "rows"])
def test_rows_of_encoders(wrong: str | None) -> None:
    sizes = [3, 5, 5, 8]

    def computed(rows: Any, _: Layout = Layout.PADDED) -> dict[Any, Any]:
        off = {None: 0, "width": max(sizes[row] for row in rows), "rows": len(rows)}[wrong]
        return {row: seen(torch.tensor([[float(sizes[row]), float(off)]])) for row in rows}

    model = nn.Linear(1, 1)
    found = layout_of(model, sizes, computed, lambda row: computed([row]))
    assert found == {None: Layout.PADDED, "width": Layout.EQUAL, "rows": Layout.SINGLE}[wrong]


def test_numbers_that_are_none_prove_nothing() -> None:
    nothing = seen(torch.full((2, 3), float("nan")))
    model = nn.Linear(1, 1)
    assert (
        layout_of(model, [2, 3, 3], lambda rows, _: dict.fromkeys(rows, nothing), lambda row: {row: nothing})
        == "single"
    )


def test_lengths_are_found_wherever_a_configuration_says_them() -> None:
    assert bounds_of(disturbed("phi3")).turns == (24,)
    assert bounds_of(disturbed("gpt_neo")).windows == (16,)
    assert bounds_of(disturbed("llama4")).windows == (20,)
    assert bounds_of(disturbed("recurrent_gemma")).windows == (30,)
    assert bounds_of(nn.Linear(1, 1)) == Bounds()


def test_a_row_as_long_as_a_bound_is_still_below_it() -> None:
    found = lots([5, 24, 25, 40, 41], Bounds(turns=(24,), windows=(40,)))
    assert [(lot.rows, lot.over, lot.windowed) for lot in found] == [
        ((0, 1), 0, False),
        ((2, 3), 24, False),
        ((4,), 40, True),
    ]

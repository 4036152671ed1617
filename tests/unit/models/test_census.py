"""Arithmetic against the published figures, on configurations alone."""

import pytest
from family_configs import config
from transformers import BertConfig, LlamaConfig

from kanna.errors import InputError
from kanna.models.inventory import Inventory, inventory
from kanna.models.selection import select, selection_from
from kanna.models.skeleton import skeleton
from kanna.search.explore import (
    kept_parameters,
    ladder,
    parameters_by_layer,
    parameters_by_role,
    removed_parameters,
    space_size,
)


@pytest.fixture(scope="module")
def llama2_7b() -> Inventory:
    settings = LlamaConfig(
        architectures=["LlamaForCausalLM"],
        vocab_size=32000,
        hidden_size=4096,
        intermediate_size=11008,
        num_hidden_layers=32,
        num_attention_heads=32,
    )
    return inventory(skeleton(settings))


@pytest.fixture(scope="module")
def bert_base() -> Inventory:
    return inventory(skeleton(BertConfig(architectures=["BertModel"])))


def test_llama_2_7b_sizes(llama2_7b: Inventory) -> None:
    assert llama2_7b.parameters == 6_738_415_616
    assert set(parameters_by_layer(llama2_7b.matrices).values()) == {202_375_168}
    assert parameters_by_role(llama2_7b.matrices)["down"] == 32 * 4096 * 11008


def test_three_layers_at_rank_one(llama2_7b: Inventory) -> None:
    chosen = select(llama2_7b.matrices, selection_from(layers="3,18,30"))
    assert removed_parameters(chosen, rank=1, fold_core=False) == 606_891_243
    assert removed_parameters(chosen, rank=1, fold_core=True) == 606_891_264
    assert round(100 * 606_891_264 / llama2_7b.parameters, 2) == 9.01


def test_ladder(llama2_7b: Inventory) -> None:
    rungs = ladder(llama2_7b)
    assert [rung.target for rung in rungs] == [6, 9, 15, 21, 33, 48, 60, 75, 84, 96]
    assert [rung.layers for rung in rungs] == [2, 3, 5, 7, 11, 16, 20, 25, 28, 32]
    assert [round(rung.share) for rung in rungs] == [6, 9, 15, 21, 33, 48, 60, 75, 84, 96]
    assert rungs[1].removed == 606_891_264
    assert ladder(llama2_7b, fold_core=False)[1].removed == 606_891_243


def test_design_space(llama2_7b: Inventory, bert_base: Inventory) -> None:
    sizes = [space_size(len(i.blocks), len(i.roles)) for i in (llama2_7b, bert_base)]
    assert sizes == [(2**32 - 1) * (2**7 - 1), (2**12 - 1) * (2**6 - 1)]
    assert [(size - 1).bit_length() for size in sizes] == [39, 18]


def test_bert_base_sizes(bert_base: Inventory) -> None:
    assert bert_base.parameters == 109_482_240
    assert set(parameters_by_layer(bert_base.matrices).values()) == {7_077_888}


def test_ladder_snaps_to_what_a_model_can_reach(bert_base: Inventory) -> None:
    rungs = ladder(bert_base)
    layers = [rung.layers for rung in rungs]
    assert layers == sorted(set(layers))
    assert layers[-1] == 12
    assert rungs[-1].share < 78


def test_small_rank_never_adds_parameters() -> None:
    matrices = inventory(skeleton(config("llama"))).matrices
    for matrix in matrices:
        even = matrix.break_even_rank
        assert kept_parameters(matrix, even, fold_core=True) < matrix.parameters
        assert kept_parameters(matrix, even + 1, fold_core=True) == matrix.parameters
    assert removed_parameters(matrices, rank=10_000, fold_core=False) == 0


def test_rank_below_one() -> None:
    with pytest.raises(InputError, match="at least 1, found 0"):
        removed_parameters((), rank=0, fold_core=True)


def test_ladder_of_a_rank_that_saves_nothing() -> None:
    with pytest.raises(InputError, match="removes nothing"):
        ladder(inventory(skeleton(config("llama"))), rank=10_000)

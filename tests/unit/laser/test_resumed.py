"""Scoring from the edited block on gives what a whole pass of the edited model gives."""

import random
from collections.abc import Sequence
from functools import partial
from itertools import pairwise

import family_configs
import pytest
import tiny_encoders
import torch
import transformers
from torch import Tensor, nn

from kanna.calibration.states import States
from kanna.models.inventory import Inventory, inventory
from kanna.models.matrix import Matrix
from kanna.models.views import read, write
from kanna.tasks.scorers.likelihood import Likelihood, Passes, build, logits_at
from kanna.tasks.scorers.masked import MaskedScorer
from kanna.tasks.scorers.planning import plan_batches
from kanna.tasks.scorers.resumed import Edit, Resumed, feed_forward
from kanna.tasks.tokens.cloze import Cloze
from kanna.tasks.tokens.encode import Piece

EXACT = 1e-4
ROWS = 40  # more than one pack's tokens
CAUSAL = [
    name
    for name, (_, architecture, _) in (family_configs.FAMILIES | family_configs.OTHERS).items()
    if "CausalLM" in architecture or "LMHead" in architecture
]
# Every role of these in every layer; of the others one of attention and one feed-forward matrix.
THOROUGH = ("llama", "gpt2", "gpt_neox", "phi", "opt", "gemma2", "qwen2")
# The feed-forward part's output is added as it is, found by hand in the modelling code of transformers.
ADDED = ("llama", "mistral", "qwen2", "qwen3", "phi", "gpt2", "gpt_neox", "gptj", "falcon_7b", "stablelm")
# A norm behind it, a factor, or a part that is no module of its own.
NOT_ADDED = ("gemma2", "gemma3", "olmo2", "glm4", "opt", "bloom", "mpt")


@torch.random.fork_rng(devices=[])
def causal(name: str) -> nn.Module:
    """Weights larger than at birth, so that every block matters."""
    settings = family_configs.config(name)
    for key, size in (("moe_intermediate_size", 16), ("shared_expert_intermediate_size", 20)):
        if hasattr(settings, key):  # torch's grouped products take no other sizes
            setattr(settings, key, size)
    torch.manual_seed(0)
    model: nn.Module = getattr(transformers, settings.architectures[0])(settings).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4.0)
            else:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def causal_passes(model: nn.Module, seed: int = 0, share: bool = True) -> Passes:
    draw = random.Random(seed)
    pieces = []
    for _ in range(ROWS):
        context = tuple(draw.randrange(3, family_configs.VOCAB) for _ in range(draw.randrange(3, 12)))
        for _ in range(2):  # which share their context
            target = tuple(draw.randrange(3, family_configs.VOCAB) for _ in range(draw.randrange(1, 4)))
            pieces.append(Piece(context, target, 3))
    plan = plan_batches(model, pieces, 48, share)
    batches = tuple(partial(build, some, pieces, model) for some in plan.batches)
    assert len(batches) > 1
    return Passes(batches, (2,) * ROWS, logits_at)


def masked_passes(model: nn.Module, tokenizer: object) -> Passes:
    prompts = [f"{' '.join(tiny_encoders.HEADS[i : i + 3])} is [MASK] ." for i in range(5)]
    prompts = [prompt.replace("[MASK]", str(tokenizer.mask_token)) for prompt in prompts]  # type: ignore[attr-defined]
    scorer = MaskedScorer(model, Cloze(tokenizer, 40), batch_tokens=24)
    return scorer.passes(prompts, [["ka", "lo mi"]] * 5)


def edit(model: nn.Module, matrix: Matrix, value: Tensor) -> Edit:
    whole = model.get_parameter(matrix.tensor).detach()
    return Edit(matrix.module, matrix.parameter, write(whole, matrix.view, value), matrix.layer)


def halved(model: nn.Module, matrix: Matrix) -> Edit:
    """Something else in its place: as different as a reduction may be, and as large."""
    weight = read(model.get_parameter(matrix.tensor).detach(), matrix.view)
    left, values, right = torch.linalg.svd(weight, full_matrices=False)
    rank = max(1, len(values) // 4)
    return edit(model, matrix, left[:, :rank] * values[:rank] @ right[:rank])


def whole_pass(model: nn.Module, passes: Passes, edits: Sequence[Edit]) -> list[list[Likelihood]]:
    """The plainest way: overwrite, run all, and write back."""
    before = [
        (parameter, parameter.clone())
        for parameter in (model.get_submodule(one.module).get_parameter(one.parameter) for one in edits)
    ]
    with torch.no_grad():
        for (parameter, _), one in zip(before, edits, strict=True):
            parameter.copy_(one.value)
        found = passes.run(model, True, lambda *_: None)
        for parameter, old in before:
            parameter.copy_(old)
    return found


def assert_alike(found: list[list[Likelihood]], expected: list[list[Likelihood]]) -> None:
    for some, others in zip(found, expected, strict=True):
        for one, other in zip(some, others, strict=True):
            assert one.sum == pytest.approx(other.sum, abs=EXACT * max(1.0, abs(other.sum)))
            assert (one.tokens, one.greedy) == (other.tokens, other.greedy)


def chosen(found: Inventory, thorough: bool) -> list[Matrix]:
    """Matrices of the first, a middle and the last layer: every role, or one of each group."""
    layers = (0, len(found.blocks) // 2, len(found.blocks) - 1)
    every = [one for one in found.compressible if one.layer in layers]
    if thorough:
        return every
    return list({(one.layer, one.group): one for one in every}.values())


def check(model: nn.Module, passes: Passes, states: States | None = None, thorough: bool = False) -> Resumed:
    """Single edits, and several together, against whole passes."""
    found = inventory(model)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    objects = {name: id(parameter) for name, parameter in model.named_parameters()}
    work = Resumed(model, found, passes, True, states or States())
    matrices = chosen(found, thorough)
    unedited = passes.run(model, True, lambda *_: None)
    assert_alike(work.base(), unedited)
    for layer in sorted({one.layer for one in matrices}):
        here = [one for one in matrices if one.layer == layer]
        later = [one for one in matrices if one.layer > layer]
        variants = [[halved(model, one)] for one in here]
        together = here if len({one.tensor for one in here}) == len(here) else here[-1:]
        variants.append([halved(model, one) for one in together])
        variants.append([halved(model, here[-1]), *(halved(model, one) for one in later[-1:])])
        expected = [whole_pass(model, passes, edits) for edits in variants]
        assert all(one != unedited for one in expected)
        for some, other in zip(work.edited(variants), expected, strict=True):
            assert_alike(some, other)
    assert model.state_dict().keys() == state.keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert {name: id(parameter) for name, parameter in model.named_parameters()} == objects
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    return work


@pytest.mark.parametrize("name", CAUSAL)
def test_edits_of_every_role_score_as_a_whole_pass(name):
    model = causal(name)
    work = check(model, causal_passes(model), thorough=name in THOROUGH)
    parts = [work._part(layer) is not None for layer in range(len(work.found.blocks))]
    assert all(parts) if name in ADDED else not any(parts) if name in NOT_ADDED else True


@pytest.mark.parametrize("family", ["Bert", "Roberta", "DistilBert", "Electra", "MPNet", "ConvBert"])
def test_masked_models(family):
    model, tokenizer = tiny_encoders.encoder(family, num_hidden_layers=3, n_layers=3)
    check(model, masked_passes(model, tokenizer))


def test_models_that_hand_more_than_states_from_block_to_block_are_run_whole():
    """A convolution between two blocks, and blocks that read the positions beside the states."""
    tokenizer = tiny_encoders.word_pieces()
    settings = transformers.DebertaV2Config(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=3,
        num_attention_heads=4, max_position_embeddings=40, initializer_range=0.2, relative_attention=True,
        pos_att_type=["c2p"], conv_kernel_size=3, conv_act="gelu", pad_token_id=0,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.DebertaV2ForMaskedLM(settings).eval()
    assert not check(model, masked_passes(model, tokenizer)).is_chain


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2"])
def test_states_on_disk(name, tmp_path):
    model = causal(name)
    states = States(limit=0, directory=tmp_path)
    check(model, causal_passes(model), states)
    assert list(tmp_path.rglob("*.safetensors"))
    states.close()
    assert list(tmp_path.iterdir()) == []


def test_rows_that_are_not_packed():
    model = causal("llama")
    check(model, causal_passes(model, share=False))


def test_states_of_some_layers_only(tmp_path):
    model = causal("llama")
    work = Resumed(model, inventory(model), causal_passes(model), states=States(0, tmp_path))
    work.base(layers={1})
    assert {path.name.partition("-")[0] for path in tmp_path.rglob("*.safetensors")} == {"1", "2"}
    edits = [halved(model, next(one for one in work.found.matrices if one.layer == 1))]
    assert_alike(work.edited([edits])[0], whole_pass(model, work.passes, edits))
    with pytest.raises(KeyError):
        work.edited([[halved(model, work.found.matrices[0])]])
    work.states.close()


@pytest.mark.parametrize("name", ["gemma2", "olmo2", "llama"])
def test_a_feed_forward_part_that_was_zero_when_it_was_first_seen(name):
    """Zeros look as if they were added, even behind a norm; the next edit must not believe that."""
    model = causal(name)
    work = Resumed(model, inventory(model), causal_passes(model))
    work.base()
    last = len(work.found.blocks) - 1
    first = next(one for one in work.found.matrices if one.layer == 0)
    out = next(one for one in work.found.matrices if one.layer == last and one.role == "down")
    nothing = edit(model, out, torch.zeros(out.shape))
    edits = [halved(model, first), nothing]
    assert_alike(work.edited([edits])[0], whole_pass(model, work.passes, edits))
    edits = [halved(model, out)]
    assert_alike(work.edited([edits])[0], whole_pass(model, work.passes, edits))


def test_a_model_whose_feed_forward_part_is_zero():
    model = causal("gemma2")
    found = inventory(model)
    downs = [one for one in found.matrices if one.role == "down"]
    with torch.no_grad():
        for one in downs:
            model.get_parameter(one.tensor).zero_()
    work = Resumed(model, found, causal_passes(model))
    work.base()
    value = torch.randn(downs[1].shape, generator=torch.Generator().manual_seed(0))
    edits = [edit(model, downs[1], value)]
    assert_alike(work.edited([edits])[0], whole_pass(model, work.passes, edits))


def test_less_is_computed_the_later_the_edit():
    model = causal("llama")
    passes = causal_passes(model)
    tokens = sum(make().inputs["input_ids"].numel() for make in passes.batches)
    work = Resumed(model, inventory(model), passes)
    work.base()
    assert work.effort.layer_tokens == 3 * tokens
    spent = []
    for layer in range(3):
        before = work.effort.layer_tokens
        matrix = next(one for one in work.found.matrices if one.layer == layer and one.role == "q")
        work.edited([[halved(model, matrix)]])
        spent.append(work.effort.layer_tokens - before)
        assert (2 - layer) * tokens < spent[-1] <= (3 - layer) * tokens
    before = work.effort.layer_tokens
    many = [one for one in work.found.matrices if one.layer == 2 and one.role == "up"] * 5
    work.edited([[halved(model, one)] for one in many])
    assert work.effort.layer_tokens - before < 5 * spent[-1]
    assert all(one > other for one, other in pairwise(spent))


def test_parameters_are_back_after_an_error():
    model = causal("llama")
    work = Resumed(model, inventory(model), causal_passes(model))
    work.base()
    matrix = work.found.matrices[0]
    kept = model.get_parameter(matrix.tensor)
    with pytest.raises(RuntimeError):
        work.edited([[Edit(matrix.module, matrix.parameter, torch.zeros(2, 3), matrix.layer)]])
    assert model.get_parameter(matrix.tensor) is kept
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert_alike(work.base(), work.passes.run(model, False, lambda *_: None))


def test_variants_begin_in_one_block():
    model = causal("llama")
    work = Resumed(model, inventory(model), causal_passes(model))
    work.base()
    with pytest.raises(ValueError, match=r"blocks \[0, 2\]"):
        work.edited(
            [[halved(model, one)] for one in work.found.matrices if one.role == "q" and one.layer != 1]
        )


def test_feed_forward_part_needs_a_module_of_its_own():
    assert feed_forward(inventory(causal("opt")), 0) is None
    assert feed_forward(inventory(causal("llama")), 1) == "model.layers.1.mlp"

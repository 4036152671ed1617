"""The loop against plain PyTorch, killed and resumed, cut between steps, and where it gives up."""

import copy
import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import Gemma2Config, Gemma2ForCausalLM, LlamaConfig, LlamaForCausalLM

from kanna.errors import InputError
from kanna.training import loss as losses
from kanna.training.batches import mixed
from kanna.training.examples import Example
from kanna.training.loop import Course, Material, Nothing, train
from kanna.training.loss import reads_in_parts, summed_loss
from kanna.training.optimiser import BETAS, Group, Optimiser
from kanna.training.schedule import warm_cosine

VOCABULARY = 40


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, pad_token_id=0, **sizes)).eval()


def examples(count: int, seed: int = 1) -> list[Example]:
    draw = torch.Generator().manual_seed(seed)
    made = []
    for _ in range(count):
        length, answer = (
            int(torch.randint(low, high, (), generator=draw)) for low, high in ((6, 14), (1, 5))
        )
        ids = torch.randint(1, VOCABULARY, (length,), generator=draw).tolist()
        made.append(Example(tuple(ids), (False,) * (length - answer) + (True,) * answer))
    return made


def named(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if "proj" in name}


def material(count: int = 24, rows: int = 4) -> Material:
    task = examples(count)
    return Material(task, mixed([len(e) for e in task], [], rows, 0.0, 0), validation=examples(5, 9))


def plain_loss(model: nn.Module, some: list[Example]) -> Tensor:
    """Summed over scored tokens, one unpadded row at a time."""
    total = torch.zeros(())
    for example in some:
        ids = torch.tensor([example.ids])
        rates = model(ids).logits[0].log_softmax(-1)
        for place, scored in enumerate(example.scored):
            if scored:
                total = total - rates[place - 1, example.ids[place]]
    return total


def by_hand(model: nn.Module, given: Material, course: Course, rate: float) -> list[float]:
    """The same run, written out."""
    trained = named(model)
    adam = torch.optim.AdamW(trained.values(), lr=rate, betas=BETAS, weight_decay=0.1)
    seen = []
    for step in range(course.steps):
        some = given.at(step)
        mean = plain_loss(model, some) / sum(e.targets for e in some)
        grads = torch.autograd.grad(mean, list(trained.values()))
        for parameter, gradient in zip(trained.values(), grads, strict=True):
            parameter.grad = gradient
        nn.utils.clip_grad_norm_(trained.values(), course.clip or math.inf)
        for group in adam.param_groups:
            group["lr"] = rate * warm_cosine(step, course.steps, course.warm_up, course.last)
        adam.step()
        seen.append(float(mean.detach()))
    return seen


def optimiser(model: nn.Module, rate: float = 0.01) -> Optimiser:
    return Optimiser([Group(named(model), rate, 0.1)])


def test_a_run_equals_a_plain_loop(tmp_path: Path) -> None:
    course, given = Course(steps=12, clip=0.5), material()
    mine, theirs = llama(), llama()
    result = train(mine, optimiser(mine), given, course, tmp_path)
    expected = by_hand(theirs, given, course, 0.01)
    assert result.losses == pytest.approx(expected, rel=1e-4)
    for name, parameter in theirs.named_parameters():
        torch.testing.assert_close(dict(mine.named_parameters())[name], parameter, rtol=1e-3, atol=1e-5)
    assert result.losses[-1] < result.losses[0]


def test_accumulated_passes_equal_one(tmp_path: Path) -> None:
    given = material(32, rows=16)
    whole, parts = llama(), llama()
    train(whole, optimiser(whole), given, Course(steps=3), tmp_path / "whole")
    train(parts, optimiser(parts), given, Course(steps=3, tokens=40), tmp_path / "parts")
    for name, parameter in whole.named_parameters():
        torch.testing.assert_close(dict(parts.named_parameters())[name], parameter, rtol=1e-5, atol=1e-5)


class Cutting(Nothing):
    """Drops a row of a parameter after some steps, and remembers how often."""

    def __init__(self, name: str, every: int) -> None:
        self.name, self.every, self.cuts = name, every, torch.zeros(1)
        self.seen: list[int] = []

    def after(self, step: int, optimiser: Optimiser) -> None:
        parameter = optimiser.parameters[self.name]
        if (step + 1) % self.every == 0:
            optimiser.cut(self.name, torch.arange(1, len(parameter)))
            self.cuts += 1
        self.seen.append(len(parameter))

    def tensors(self) -> Mapping[str, Tensor]:
        return {"cuts": self.cuts}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        self.cuts = tensors["cuts"].clone()


class Shrinking(nn.Module):
    """A vector that multiplies what a linear layer gives; it may lose entries together with their rows."""

    def __init__(self, inner: nn.Linear) -> None:
        super().__init__()
        self.inner, self.scale = inner, nn.Parameter(torch.ones(inner.out_features))
        self.places = inner.out_features

    def forward(self, hidden: Tensor) -> Tensor:
        scale = functional.pad(self.scale, (self.places - len(self.scale), 0))
        return self.inner(hidden) * scale


def shrinking() -> tuple[LlamaForCausalLM, Optimiser]:
    model = llama()
    layer = Shrinking(model.model.layers[0].mlp.up_proj)
    model.model.layers[0].mlp.up_proj = layer
    return model, Optimiser(
        [
            Group({"scale": layer.scale}, 0.05),
            Group({"down": named(model)["model.layers.1.mlp.down_proj.weight"]}, 0.01),
        ]
    )


class KilledError(Exception):
    pass


@pytest.mark.parametrize("at", [1, 4, 5, 9, 10])
def test_a_killed_run_ends_with_the_same_bytes(at: int, tmp_path: Path) -> None:
    course = Course(steps=12, validate_every=4, save_seconds=0.0, best_from=12)

    def run(folder: str, kill: int) -> tuple[dict[str, Tensor], list[float]]:
        model, adam = shrinking()
        between = Cutting("scale", 3)

        def progress(stage: str, done: int, total: int) -> None:
            if done == kill:
                raise KilledError

        result = train(model, adam, material(), course, tmp_path / folder, between, progress)
        assert int(between.cuts) == 4
        return adam.tensors(), list(result.losses)

    expected, curve = run("whole", 0)
    with pytest.raises(KilledError):
        run("killed", at)
    tensors, resumed = run("killed", 0)
    assert resumed == curve
    assert expected.keys() == tensors.keys()
    for name, value in expected.items():
        assert torch.equal(value, tensors[name]), name


def test_what_is_averaged_is_cut_like_its_parameter(tmp_path: Path) -> None:
    model, adam = shrinking()
    train(model, adam, material(), Course(steps=2), tmp_path)
    before = {name: value.clone() for name, value in adam.tensors().items()}
    adam.cut("scale", torch.tensor([0, 3, 7]))
    after = adam.tensors()
    for name in ("scale", "scale:exp_avg", "scale:exp_avg_sq"):
        assert torch.equal(after[name], before[name][[0, 3, 7]])
    assert torch.equal(after["scale:step"], before["scale:step"])
    assert torch.equal(after["down:exp_avg"], before["down:exp_avg"])


def test_the_best_state_is_what_the_model_ends_with(tmp_path: Path) -> None:
    model, given = llama(), material(4)
    course = Course(steps=60, validate_every=5, warm_up=0.0, last=1.0)
    result = train(model, optimiser(model, 0.05), given, course, tmp_path)
    best = min(result.validation, key=lambda pair: pair[1])
    assert result.best == best[0] < course.steps
    found = float(plain_loss(model, list(given.validation)).detach()) / sum(
        e.targets for e in given.validation
    )
    assert found == pytest.approx(best[1], rel=1e-4)


def test_where_no_state_may_be_the_best_the_last_one_is(tmp_path: Path) -> None:
    model = llama()
    result = train(
        model, optimiser(model, 0.01), material(4), Course(6, validate_every=2, best_from=7), tmp_path
    )
    assert [done for done, _ in result.validation] == [2, 4, 6] and result.best == 6


@pytest.mark.parametrize("best_from", [0, 1])
def test_what_training_begins_with_is_kept_where_no_step_is_better_and_that_was_asked(
    best_from: int, tmp_path: Path
) -> None:
    model, before = llama(), dict(llama().named_parameters())
    course = Course(
        steps=6, validate_every=2, first=True, best_from=best_from, warm_up=0.0, last=1.0, clip=None
    )
    result = train(model, optimiser(model, 0.5), material(4), course, tmp_path)
    losses = dict(result.validation)
    assert list(losses) == [0, 2, 4, 6] and losses[0] == min(losses.values())
    if best_from:
        assert result.best == min((2, 4, 6), key=lambda step: losses[step])
        return
    assert result.best == 0
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]), name


def test_patience_ends_a_run(tmp_path: Path) -> None:
    model = llama()
    course = Course(steps=200, validate_every=5, patience=2, warm_up=0.0, last=1.0)
    result = train(model, optimiser(model, 0.05), material(4), course, tmp_path)
    assert len(result.losses) < 200 and "no better validation loss" in result.stopped


def diverging(broken: str) -> tuple[LlamaForCausalLM, Optimiser]:
    model = llama()
    if broken == "infinite":
        return model, optimiser(model, 1e30)
    return model, Optimiser([Group({"head": model.lm_head.weight}, 100.0)])


@pytest.mark.parametrize("broken", ["infinite", "far"])
def test_a_run_that_diverges_before_it_was_validated_is_an_error(broken: str, tmp_path: Path) -> None:
    model, adam = diverging(broken)
    course = Course(steps=80, warm_up=0.0, last=1.0, clip=None)
    with pytest.raises(InputError, match="training diverged: a loss") as error:
        train(model, adam, material(), course, tmp_path)
    assert "lower rate" in str(error.value.remedy)


def test_a_run_that_diverges_ends_at_its_best_state(tmp_path: Path) -> None:
    class Breaking(Nothing):
        def after(self, step: int, optimiser: Optimiser) -> None:
            if step == 11:
                next(iter(optimiser.parameters.values())).data.fill_(float("nan"))

    model = llama()
    course = Course(steps=80, validate_every=5, save_seconds=0.0)
    result = train(model, optimiser(model), material(), course, tmp_path, Breaking())
    assert "not finite at step 13" in result.stopped and result.best in (5, 10)
    best = dict(result.validation)[result.best]
    some = material().validation
    found = float(plain_loss(model, list(some)).detach()) / sum(e.targets for e in some)
    assert found == pytest.approx(best, rel=1e-4)


def test_only_the_parameters_of_the_groups_are_trained_and_flags_are_given_back(tmp_path: Path) -> None:
    model = llama()
    model.lm_head.weight.requires_grad_(False)
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    train(model, optimiser(model), material(), Course(steps=2, recompute=True), tmp_path)
    for name, parameter in model.named_parameters():
        assert ("proj" in name) != torch.equal(parameter, start[name])
        assert parameter.requires_grad == (name != "lm_head.weight")
    assert not model.training
    assert not any(getattr(module, "gradient_checkpointing", False) for module in model.modules())


def test_dropout_depends_on_the_seed_and_the_step_alone(tmp_path: Path) -> None:
    def run(folder: str, seed: int) -> tuple[float, ...]:
        model = llama()
        for layer in model.model.layers:
            layer.self_attn.attention_dropout = 0.5
        torch.manual_seed(99 if folder == "other" else 1)  # of the caller, who keeps it
        before = torch.get_rng_state()
        result = train(model, optimiser(model), material(), Course(steps=4, seed=seed), tmp_path / folder)
        assert torch.equal(before, torch.get_rng_state())
        return result.losses

    assert run("one", 0) == run("other", 0) != run("third", 1)


def test_a_teacher_gives_the_divergence() -> None:
    student, teacher = llama(), llama()
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter += 0.1 * torch.randn_like(parameter, generator=None)
    some = examples(3)
    expected = 0.0
    for example in some:
        ids = torch.tensor([example.ids])
        mine, theirs = (m(ids).logits[0].detach().double().log_softmax(-1) for m in (student, teacher))
        for place, scored in enumerate(example.scored):
            if scored:
                expected += float((theirs[place - 1].exp() * (theirs[place - 1] - mine[place - 1])).sum())
    assert float(summed_loss(student, some, teacher).detach()) == pytest.approx(expected, rel=1e-4)
    assert float(summed_loss(student, some, copy.deepcopy(student)).detach()) == pytest.approx(0.0, abs=1e-4)


def gemma() -> Gemma2ForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    heads = {"num_key_value_heads": 1, "head_dim": 8, "final_logit_softcapping": 0.02}
    return Gemma2ForCausalLM(Gemma2Config(vocab_size=VOCABULARY, pad_token_id=0, **sizes, **heads)).eval()


@pytest.mark.parametrize("make", [llama, gemma])
@pytest.mark.parametrize("taught", [False, True])
def test_logits_in_parts_give_the_same_loss_and_gradients(
    make: type[nn.Module], taught: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, some = make(), examples(6)
    teacher = None
    if taught:
        teacher = copy.deepcopy(model)
        with torch.no_grad():
            for parameter in teacher.parameters():
                parameter *= 1.3
    assert reads_in_parts(model, some[0])
    whole = summed_loss(model, some, teacher)
    whole.backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    monkeypatch.setattr(losses, "most_logits", lambda _: 3)
    parts = summed_loss(model, some, teacher)
    parts.backward()
    torch.testing.assert_close(parts, whole)
    for name, gradient in expected.items():
        torch.testing.assert_close(dict(model.named_parameters())[name].grad, gradient, rtol=1e-3, atol=1e-6)


def test_a_classification_head_learns_its_label(tmp_path: Path) -> None:
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = BertForSequenceClassification(BertConfig(vocab_size=VOCABULARY, num_labels=3, **sizes)).eval()
    task = [Example(e.ids, (False,) * len(e), i % 3) for i, e in enumerate(examples(12))]
    given = Material(task, mixed([len(e) for e in task], [], 6, 0.0, 0))
    expected = functional.cross_entropy(
        torch.cat([model(torch.tensor([e.ids])).logits for e in task]), torch.tensor([e.label for e in task])
    )
    assert float(summed_loss(model, task).detach()) / 12 == pytest.approx(float(expected.detach()), rel=1e-4)
    adam = Optimiser([Group(dict(model.named_parameters()), 0.01)])
    result = train(model, adam, given, Course(steps=30), tmp_path)
    assert result.losses[-1] < 0.8 * result.losses[0]


def test_a_parameter_is_cut_though_a_graph_of_before_lives() -> None:
    """As a model has it that keeps a state of its last call."""
    vector = nn.Parameter(torch.arange(1.0, 6.0))
    adam = Optimiser([Group({"vector": vector}, 0.1)])
    kept = vector * torch.ones(5)
    kept.sum().backward()
    adam.step(1.0, None)
    adam.cut("vector", torch.tensor([0, 3]))
    (vector.square() * torch.tensor([1.0, 2.0])).sum().backward()
    assert vector.grad is not None and kept.shape == (5,)
    torch.testing.assert_close(vector.grad, torch.tensor([2.0, 4.0]) * vector.detach())

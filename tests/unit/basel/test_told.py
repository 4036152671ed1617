"""What a run tells: of its parts, parameters and text, of weights and of the tokens that excite bases."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional

import kanna
from kanna.methods.basel.config import BaselConfig
from kanna.methods.basel.excited import Reader, excited
from kanna.methods.basel.moved import Weights, extremes, most_moved
from kanna.training.examples import Example
from kanna.training.forgotten import held_out

Base = Callable[[str], Path]


class Run:
    """One run of llama on forty rows, with text beside it."""

    def __init__(self, base: Path, rows: Path, text: Path, out: Path) -> None:
        self.base, self.text, self.out = base, text, out
        self.said: list[tuple[str, int, int]] = []
        config = BaselConfig(data=rows, text=text, keep=0.5, rows=8, prune_events=3, epochs=(1, 2, 1))
        self.result = kanna.basel(base, out, config, progress=lambda *told: self.said.append(told))
        self.data: dict[str, Any] = json.loads((out / "kanna-basel.json").read_text())


@pytest.fixture(scope="module")
def run(bases: Base, rows: Path, text: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return Run(bases("llama"), rows, text, tmp_path_factory.mktemp("told") / "out")


def test_progress_names_part_loss_event_and_share(run: Run) -> None:
    parts = [told for told in run.said if told[0].startswith("part")]
    assert [(done, total) for _, done, total in parts] == [(i, 15) for i in range(1, 16)] + [
        (i, 5) for i in range(1, 6)
    ]
    names = {stage.partition(" | ")[0] for stage, _, _ in parts}
    assert names == {"part 1, weights of bases", "part 2, factors"}
    assert "loss " in parts[0][0] and "event 0/3, 100.0% kept" in parts[0][0]
    (first, at_first), (second, _), *_ = run.data["weights"]["validation"]
    told = [f"held out {at_first:.3f}" in stage for stage, _, _ in parts[:second]]
    assert told == [False] * first + [True] * (second - first)  # from the step behind it to the next one
    assert "event 3/3" in parts[14][0] and f"{run.data['keep_selected']:.1%} kept" in parts[14][0]
    assert f"{run.data['keep_selected']:.1%} kept" in parts[-1][0]


def test_a_stage_is_one_however_its_loss_changes(run: Run) -> None:
    record = json.loads(run.out.with_name("out.run.json").read_text())
    assert {"part 1, weights of bases", "part 2, factors", "verify"} == set(record["stage_seconds"])


def numbers(directory: Path) -> int:
    """In the weights, markers of one number aside."""
    tensors = load_file(directory / "model.safetensors").values()
    return sum(tensor.numel() for tensor in tensors if tensor.numel() > 1)


def test_two_losses_that_are_not_of_one_kind_are_told_apart(
    run: Run, bases: Base, rows: Path, text: Path, tmp_path: Path
) -> None:
    """Steps may learn the divergence from a teacher, and text; what is held out is scored as ever."""
    given = {"data": rows, "loss": "kl", "keep": 0.5, "rows": 8, "prune_events": 1, "epochs": (1, 1, 0)}
    given |= {"replay": text}
    result = kanna.basel(bases("llama"), tmp_path / "out", BaselConfig(**given))
    data = json.loads((tmp_path / "out" / "kanna-basel.json").read_text())
    assert data["weights"]["losses"][0] < 1e-4 < data["weights"]["validation"][0][1]
    kind, replayed = data["notes"]
    assert "loss of steps is the divergence from the model as it was" in kind
    assert replayed == "the loss of steps counts tokens of replayed text, too"
    assert {kind, replayed} <= set(result.last.description.lines)
    assert run.data["notes"] == []


def test_both_ratios_are_those_of_the_files(run: Run) -> None:
    before, after = numbers(run.base), numbers(run.out)
    figures, plan = run.result.figures, run.result.plan
    assert plan.inventory.parameters == before
    assert figures["keep_model"] == pytest.approx(after / before)
    assert figures["least_keep_model"] == pytest.approx(1 - plan.parameters / before)
    assert run.data["keep_model"] == figures["keep_model"]
    lines = "\n".join(run.result.last.description.lines)
    assert f"{100 * after / before:.1f} % of {before:,} parameters kept" in lines
    for name in figures["dense"]:
        assert name in lines


def test_loss_of_the_state_that_was_taken_is_told(run: Run) -> None:
    """Before bases are dropped the held-out loss is lower, but that state is not to be had."""
    last = run.data["weights"]["validation"][-1][1]
    assert run.data["weights"]["held_out"] == last
    best = min(loss for _, loss in run.data["factors"]["validation"])
    assert run.data["factors"]["held_out"] == best == run.result.figures["validation_loss"]


def test_runs_that_held_out_the_same_rows_say_so(
    bases: Base, rows: Path, text: Path, tmp_path: Path, run: Run
) -> None:
    config = {"data": rows, "keep": 0.9, "rows": 8, "prune_events": 1, "epochs": (0, 1, 0)}
    for name, more in (("same", {"replay": text}), ("other", {"seed": 1})):
        kanna.basel(bases("llama"), tmp_path / name, BaselConfig(**config, **more))
        told = json.loads((tmp_path / name / "kanna-basel.json").read_text())
        assert (told["held_out_hash"] == run.data["held_out_hash"]) is (name == "same")


def losses(model: Path, text: Path) -> float:
    """Mean over all tokens of a text, its rows joined and cut at the context."""
    loaded, tokenizer = kanna.load(model, dtype=torch.float32)
    stream: list[int] = []
    for line in text.read_text().splitlines():
        stream += [*tokenizer(json.loads(line)["text"])["input_ids"], tokenizer.eos_token_id]
    length = loaded.config.max_position_embeddings
    total, count = 0.0, 0
    for start in range(0, len(stream), length):
        ids = torch.tensor([stream[start : start + length]])
        if ids.shape[1] < 2:
            continue
        with torch.no_grad():
            logits = loaded(ids).logits[0, :-1]
        total += float(functional.cross_entropy(logits, ids[0, 1:], reduction="sum"))
        count += ids.shape[1] - 1
    return total / count


def test_text_is_scored_before_and_after(run: Run) -> None:
    told = run.data["text"]
    assert told["before"] == pytest.approx(losses(run.base, run.text), rel=1e-4)
    assert told["after"] == pytest.approx(losses(run.out, run.text), rel=1e-4)
    assert told["before"] != told["after"]


def test_a_tenth_of_replayed_text_is_not_learnt() -> None:
    windows = [Example((i, i), (False, True)) for i in range(25)]
    learnt, apart = held_out(windows)
    assert [window.ids[0] for window in apart] == [9, 19]
    assert [window.ids[0] for window in learnt] == [i for i in range(25) if i not in (9, 19)]
    assert [len(part) for part in held_out(windows[:3])] == [2, 1]
    assert [len(part) for part in held_out(windows[:1])] == [1, 0]


def test_weights_of_the_most_moved_matrix_of_each_role(run: Run) -> None:
    moved = run.data["moved"]
    roles = {matrix["name"]: matrix["role"] for matrix in run.data["matrices"]}
    assert sorted(roles[each["matrix"]] for each in moved) == sorted(set(roles.values()))
    last = dict(zip(roles, run.data["events"][-1]["bases"], strict=True))
    files = load_file(run.base / "model.safetensors")
    for each in moved:
        values = torch.linalg.svdvals(files[f"{each['matrix']}.weight"])
        torch.testing.assert_close(torch.tensor(each["before"]), values, rtol=1e-4, atol=1e-5)
        assert sum(after > 0 for after in each["after"]) == last[each["matrix"]]


def test_movement_and_extremes_by_hand(run: Run) -> None:
    weights = {
        "a": Weights(torch.tensor([3.0, 4.0]), torch.tensor([3.5, 0.0])),  # norm 5: +0.1, -0.8 dropped
        "b": Weights(torch.tensor([30.0, 40.0]), torch.tensor([30.0, 50.0])),  # norm 50: 0, +0.2
    }
    assert weights["a"].movement == pytest.approx(0.1) and weights["b"].movement == pytest.approx(0.2)
    assert extremes(weights, gained=True) == [("b", 1), ("a", 0)]
    assert extremes(weights, gained=False) == [("a", 1)]
    first, second = run.result.plan.selected[:2]
    named = {first.name: weights["a"], second.name: weights["b"]}
    assert most_moved(named, [first, second]) == [second.name, first.name]


def inputs_of_first_block(model: torch.nn.Module) -> Tensor:
    """(vocabulary, width) what the first attention reads of each token, whatever stands around it."""
    body: Any = model.get_submodule("model")
    with torch.no_grad():
        read: Tensor = body.layers[0].input_layernorm(body.embed_tokens.weight)
    return read


def test_a_planted_basis_is_excited_by_its_token(bases: Base) -> None:
    model, tokenizer = kanna.load(bases("llama"), dtype=torch.float32)
    texts = ["abcdefgh", "hgfeqcba", "ijklmnop"]
    examples = [Example(tuple(tokenizer(t)["input_ids"]), (False,) * len(t)) for t in texts]
    (planted,) = tokenizer("q")["input_ids"]
    read = inputs_of_first_block(model)
    direction = functional.normalize(read[planted], dim=0)
    (found,) = excited(model, tokenizer, [Reader("model.layers.0.self_attn.q_proj", direction)], examples)
    values = {
        letter: float((read[tokenizer(letter)["input_ids"][0]] @ direction).abs())
        for letter in "".join(texts)
    }
    expected = sorted(values, key=lambda letter: -values[letter])[:5]
    assert [each.token for each in found] == expected
    assert [each.value for each in found] == pytest.approx([values[letter] for letter in expected], rel=1e-4)
    told = next(each for each in found if each.token == "q")
    assert (told.before, told.after) == ("h g f e", "c b a")


def test_bases_that_gained_and_lost_have_tokens_of_the_rows(run: Run, rows: Path) -> None:
    seen = set(rows.read_text())
    for basis in (*run.data["gained"], *run.data["lost"]):
        assert len(basis["tokens"]) == 5 and len({each["token"] for each in basis["tokens"]}) == 5
        values = [each["value"] for each in basis["tokens"]]
        assert values == sorted(values, reverse=True) and values[-1] > 0
        assert all(
            set(each["token"]) <= seen for each in basis["tokens"] if not each["token"].startswith("<")
        )
    assert all(basis["after"] > basis["before"] for basis in run.data["gained"])
    assert all(basis["after"] < basis["before"] for basis in run.data["lost"])

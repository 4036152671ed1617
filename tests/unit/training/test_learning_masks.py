"""Masked language models learn what they are asked: the tokens of an answer, at masks in its place."""

import copy
import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).parents[1] / "cli"))

from tiny_encoders import HEADS, LONGEST, encoder, save_encoder

import kanna
from kanna.errors import InputError
from kanna.methods.basel.config import BaselConfig
from kanna.runs.criteria import criteria_of
from kanna.runs.lessons import Data
from kanna.tasks.data.rows import Row, read_row
from kanna.tasks.scorers.masked import MaskedScorer
from kanna.tasks.tokens.cloze import Cloze
from kanna.training.batches import mixed
from kanna.training.examples import Example, Examples, masked
from kanna.training.loop import Course, Material, train, validation_loss
from kanna.training.loss import summed_loss
from kanna.training.optimiser import BETAS, Group, Optimiser
from kanna.training.schedule import warm_cosine


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def row(prompt: str, answer: str) -> Row:
    return read_row("here", {"prompt": prompt, "answer": answer})


def rows(count: int) -> list[Row]:
    """Some words, and behind the last or in their middle one of one to three tokens that it tells."""
    draw = random.Random(0)
    made = []
    for number in range(count):
        words = draw.choices(HEADS, k=draw.randrange(2, 7))
        behind = f"{' '.join(words)} [MASK] ." if number % 2 else " ".join(words)
        made.append(row(behind, HEADS[(HEADS.index(words[-1]) + 1) % 8] + "ba" * (number % 3)))
    return made


def test_masks_stand_in_place_of_the_answer_and_are_all_that_is_scored() -> None:
    _, tokens = encoder("Bert")
    ids = tokens.convert_tokens_to_ids
    inside, behind = masked([row("ka [MASK] mi .", "loba"), row("ka", "lo")], Cloze(tokens, LONGEST)).all
    assert inside == Example(
        tuple(ids(["[CLS]", "ka", "[MASK]", "[MASK]", "mi", ".", "[SEP]"])),
        (False, False, True, True, False, False, False),
        filled=tuple(ids(["lo", "##ba"])),
    )
    assert behind.ids == tuple(ids(["[CLS]", "ka", "[MASK]", "[SEP]"]))
    assert behind.filled == (ids("lo"),) and behind.targets == 1


def test_rows_held_out_that_ask_the_same_for_other_answers_are_other_rows() -> None:
    """Their masks are alike; runs are set side by side where the digest is the same."""
    _, tokens = encoder("Bert")
    cloze, none = Cloze(tokens, LONGEST), Examples(())
    digests = [
        Data(none, masked([row("ka [MASK] .", answer)], cloze), (), (), "").held_out_digest
        for answer in ("lo", "mi", "lo")
    ]
    assert digests[0] == digests[2] != digests[1]


def test_the_right_choice_is_the_answer() -> None:
    _, tokens = encoder("Bert")
    choice = read_row("here", {"prompt": "ka", "choices": ["mi", "loba"], "label": 1})
    assert masked([choice], Cloze(tokens, LONGEST)) == masked([row("ka", "loba")], Cloze(tokens, LONGEST))


def test_a_long_prompt_loses_its_beginning_and_is_counted() -> None:
    _, tokens = encoder("Bert")
    long, short = row("ka lo mi nu po ra", "se"), row("ka", "lo")
    made = masked([long, short], Cloze(tokens, 6))
    ids = tokens.convert_tokens_to_ids
    assert made.cut == 1
    assert made.all[0].ids == tuple(ids(["[CLS]", "nu", "po", "ra", "[MASK]", "[SEP]"]))
    with pytest.raises(InputError, match="every one of the 1 prompts"):
        masked([long], Cloze(tokens, 6))
    with pytest.raises(InputError, match="row 2: an answer has 6 tokens"):
        masked([short, row("ka", "lobabababaBA".lower())], Cloze(tokens, 6))


def test_rows_that_cannot_be_learnt_are_named() -> None:
    _, tokens = encoder("Bert")
    talk = {"messages": [{"role": "user", "content": "ka"}, {"role": "assistant", "content": "lo"}]}
    with pytest.raises(InputError, match="a masked language model knows no chat template"):
        masked([read_row("here", talk)], Cloze(tokens, LONGEST))
    with pytest.raises(InputError, match="row 2 has no prompt"):
        masked([row("ka", "lo"), Row("plain text")], Cloze(tokens, LONGEST))
    with pytest.raises(InputError, match="row 1: the token"):
        masked([row("ka", "lo")], Cloze(tokens, LONGEST), vocabulary=4)


@pytest.mark.parametrize("family", ["Bert", "Roberta", "MobileBert"])
def test_what_is_trained_is_what_is_scored(family: str) -> None:
    """Of each row alone, and of all in one pass: the log-likelihoods that the evaluation finds."""
    model, tokens = encoder(family)
    some = rows(9)
    made = masked(some, Cloze(tokens, LONGEST)).all
    scorer = MaskedScorer(model, Cloze(tokens, LONGEST))
    found = scorer.likelihoods(
        [one.prompt for one in some], [[one.answer] for one in some], False, lambda *_: None
    )
    likely = [likelihood.sum for (likelihood,) in found]
    alone = [-float(summed_loss(model, [example], None, False).detach()) for example in made]
    assert alone == pytest.approx(likely, rel=1e-4, abs=1e-4)
    together = float(summed_loss(model, made, None, False).detach())
    assert together == pytest.approx(-sum(likely), rel=1e-4)


def plain_loss(model: nn.Module, some: list[Example]) -> Tensor:
    """Summed over the masks, one unpadded text at a time."""
    total = torch.zeros(())
    for example in some:
        logits = model(input_ids=torch.tensor([example.ids])).logits[0]
        places = [place for place, wanted in enumerate(example.scored) if wanted]
        assert example.filled is not None
        total = total + functional.cross_entropy(
            logits[places], torch.tensor(example.filled), reduction="sum"
        )
    return total


def test_a_run_is_that_of_a_plain_loop(tmp_path: Path) -> None:
    model, tokens = encoder("Bert", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    task = masked(rows(16), Cloze(tokens, LONGEST)).all
    held = masked(rows(20)[16:], Cloze(tokens, LONGEST)).all
    given = Material(task, mixed([len(e) for e in task], [], 4, 0.0, 0), validation=held)
    course = Course(steps=10, tokens=24)
    other = copy.deepcopy(model)
    trained = {name: p for name, p in model.named_parameters() if "dense" in name and p.dim() == 2}
    result = train(model, Optimiser([Group(trained, 0.01)]), given, course, tmp_path)
    theirs = [p for name, p in other.named_parameters() if name in trained]
    adam = torch.optim.AdamW(theirs, lr=0.01, betas=BETAS, weight_decay=0.0)
    losses = []
    for step in range(course.steps):
        batch = given.at(step)
        loss = plain_loss(other, batch) / sum(e.targets for e in batch)
        other.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(theirs, course.clip or 0.0)
        for group in adam.param_groups:
            group["lr"] = 0.01 * warm_cosine(step, course.steps, course.warm_up, course.last)
        adam.step()
        losses.append(float(loss.detach()))
    assert result.losses == pytest.approx(losses, rel=1e-4)
    assert result.losses[-1] < 0.9 * result.losses[0] and result.notes == ()
    wanted = float(plain_loss(other, list(held)).detach()) / sum(e.targets for e in held)
    assert result.validation[-1][1] == pytest.approx(wanted, rel=1e-4)
    for mine, their in zip(trained.values(), theirs, strict=True):
        torch.testing.assert_close(mine, their, rtol=1e-3, atol=1e-5)


def test_rows_are_not_padded_where_padding_would_be_read(tmp_path: Path) -> None:
    """FNet knows no mask."""
    model, tokens = encoder("FNet", hidden_dropout_prob=0.0)
    task = masked(rows(12), Cloze(tokens, LONGEST)).all
    assert len({len(example) for example in task}) > 2
    wanted = float(plain_loss(model, list(task)).detach()) / sum(e.targets for e in task)
    assert validation_loss(model, task, 4096, False) != pytest.approx(wanted, rel=1e-3)
    given = Material(task, mixed([len(e) for e in task], [], 12, 0.0, 0), validation=task)
    adam = Optimiser([Group(dict(model.named_parameters()), 0.0)])
    result = train(model, adam, given, Course(steps=1), tmp_path)
    assert result.losses[0] == pytest.approx(wanted, rel=1e-4)
    assert result.validation[0][1] == pytest.approx(wanted, rel=1e-4)


def test_basel_from_rows_to_verdict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KANNA_CACHE", str(tmp_path / "cache"))
    base, out = save_encoder(tmp_path / "base", "Bert"), tmp_path / "out"
    data, task = tmp_path / "data.jsonl", tmp_path / "task.jsonl"
    lines = [json.dumps({"prompt": one.prompt, "answer": one.answer}) for one in rows(120)]
    data.write_text("\n".join(lines[:100]) + "\n")
    asked = [line for line in lines[100:] if line not in lines[:100]]
    task.write_text("\n".join(asked) + "\n")
    before = kanna.evaluate(base, [task]).scores[0].metrics["log_loss"]
    config = BaselConfig(
        data=data, keep=0.5, rows=8, epochs=(1, 2, 2), rate=0.02, factor_rate=0.02, allow_overlap=True
    )
    result = kanna.basel(base, out, config, criteria=criteria_of([str(task)], "50pt"))
    after = kanna.evaluate(out, [task]).scores[0].metrics["log_loss"]
    assert result.figures["keep_selected"] == pytest.approx(0.5, abs=0.05)
    assert after < before
    assert json.loads((out / "kanna-basel.json").read_text())["weights"]["losses"]
    with pytest.raises(InputError, match="a masked language model does not predict text"):
        kanna.basel(base, None, config.model_copy(update={"replay": data}), dry_run=True)
    with pytest.raises(InputError, match="leave out --chat"):
        kanna.basel(base, None, config.model_copy(update={"chat": True}), dry_run=True)

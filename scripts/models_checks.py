"""What each verb must give for a model of any family, computed here by the shortest way there is.

Every check runs kanna on a directory and compares with plain transformers: single rows without padding,
greedy decoding token by token without a cache, singular values in float64, and inputs of layers read by hooks
on the running model. Nothing of kanna is used to compute what is expected, but for the list of matrices.
"""

import copy
import json
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

import kanna

KEEP = 0.6
NEW_TOKENS = 6
NATS = 2e-3
"""What float32 may differ by, per token; tiny random models have logits of some tens."""
LINEAR = (nn.Linear, Conv1D)
SUBJECTS = ("the cat", "a dog", "my friend", "the old man", "a red bird", "our teacher", "the river")
VERBS = ("sees", "likes", "eats", "carries", "follows", "finds", "remembers")
OBJECTS = ("the house", "a green tree", "an apple", "the blue ball", "some bread", "the moon", "two stones")
PREAMBLE = "choose the right letter. "


class WrongError(Exception):
    """kanna gave something else than what is expected."""


def demand(right: bool, what: str) -> None:
    if not right:
        raise WrongError(what)


@dataclass(frozen=True)
class Family:
    """A model directory, and a folder for what is made of it."""

    directory: Path
    room: Path

    @cached_property
    def config(self) -> dict[str, Any]:
        loaded: dict[str, Any] = json.loads((self.directory / "config.json").read_text())
        return loaded

    @property
    def kind(self) -> str:
        """causal, masked, classifier, seq2seq or other, by the name of the class."""
        name = self.config["architectures"][0]
        if self.config.get("is_encoder_decoder"):
            return "classifier" if name.endswith("SequenceClassification") else "seq2seq"
        if name.endswith("ForMaskedLM"):
            return "masked"
        if name.endswith("ForSequenceClassification"):
            return "classifier"
        writes = name.endswith(("ForCausalLM", "LMHeadModel", "ForConditionalGeneration"))
        return "causal" if writes else "other"

    @cached_property
    def tokenizer(self) -> Any:
        return transformers.AutoTokenizer.from_pretrained(self.directory)

    @cached_property
    def model(self) -> Any:
        return self.load(self.directory)

    def runs_alone(self) -> bool:
        """Whether plain transformers runs single rows of any length; if not, nothing can be compared."""
        ids = self.tokenizer(" ".join(sentences(8, 3)))["input_ids"]
        try:
            with torch.no_grad():
                for length in (5, 8, 11, 24):
                    self.model(torch.tensor([ids[:length]]))
        except Exception:  # whatever it is, it is not kanna's
            return False
        return True

    def load(self, directory: Path) -> Any:
        """As a user of plain transformers loads it."""
        architecture = getattr(transformers, self.config["architectures"][0])
        return architecture.from_pretrained(directory, dtype=torch.float32).eval()

    def write(self, name: str, rows: Sequence[dict[str, Any]]) -> Path:
        path = self.room / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    @cached_property
    def text(self) -> Path:
        return self.write("text.jsonl", [{"text": sentence} for sentence in sentences(200, 7)])

    @cached_property
    def calibration(self) -> Path:
        """Text, or for an encoder-decoder prompts and answers."""
        if not self.config.get("is_encoder_decoder"):
            return self.text
        parts = [sentence.rsplit(" ", 2) for sentence in sentences(200, 7)]
        rows = [{"prompt": start, "answer": " ".join(end)} for start, *end in parts]
        return self.write("calibration.jsonl", rows)


def sentences(count: int, seed: int) -> list[str]:
    draw = random.Random(seed)
    parts = (SUBJECTS, VERBS, OBJECTS)
    return [" ".join(draw.choice(part) for part in parts) + "." for _ in range(count)]


# ---------------------------------------------------------------- weights


def inspect(family: Family) -> str:
    result = kanna.inspect(family.directory)
    parameters = sum({p.data_ptr(): p.numel() for p in family.model.parameters()}.values())
    found = result.inventory.parameters
    demand(found == parameters, f"{found:,} parameters; the model has {parameters:,}")
    taken = [matrix for matrix in result.inventory.matrices if not matrix.refused]
    demand(bool(taken), "no matrix can be compressed")
    return f"{len(taken)} matrices"


def lowrank(family: Family, name: str, **settings: Any) -> str:
    """Factors load, the model computes with them, and with `plain` each is the best of its rank."""
    out = family.room / name
    given = {"keep": KEEP, "align": 1, "context": 32, **settings}
    text = None if given.get("method") == "plain" else family.calibration
    result = kanna.lowrank(family.directory, out, kanna.LowRankConfig(**given), calibration=text)
    demand(result.verdict is None or result.verdict.passed, "kanna says fail")
    replaced = effective(family.model, family.load(out))
    demand(bool(replaced), "nothing was replaced")
    same_logits(family, out, replaced)
    if given.get("method") == "plain":
        for weight, new in slices(family, replaced):
            near_optimum(weight, new, torch.eye(weight.shape[1], dtype=torch.float64))
    return f"{len(replaced)} modules"


def whitened(family: Family) -> str:
    """Factors are the best of their rank for what the running model reads."""
    out = family.room / "optimum"
    settings = {"method": "whitened", "allocation": "uniform", "outputs": "equal", "bias_correction": False}
    given = {"keep": KEEP, "align": 1, "context": 32, "ridge": 1e-9, "tokens": 1024, **settings}
    config = kanna.LowRankConfig(**given)
    seen: list[Any] = []
    kanna.lowrank(family.directory, out, config, calibration=family.calibration, announce=seen.append)
    replaced = effective(family.model, family.load(out))
    grams = inputs_of(family.model, seen[0].windows, list(replaced))
    worst = 1.0
    for path, weight, new in named_slices(family, replaced):
        demand(path in grams, f"{path} was replaced and never runs")
        worst = max(worst, near_optimum(weight, new, grams[path]))
    return f"{worst:.3f}"


def laser(family: Family, name: str, factored: bool) -> str:
    """The named matrices are truncated as an SVD truncates them; all else is as it was."""
    matrices = [m for m in kanna.inspect(family.directory).inventory.matrices if not m.refused]
    last = max(matrix.layer for matrix in matrices)
    roles = sorted({matrix.role for matrix in matrices if matrix.layer == last})
    named = [role for role in roles if not role.isdigit()]  # a number would be read as a layer
    role = next((r for r in ("down", "fc_out", "o", "v") if r in roles), named[0])
    out, rank = family.room / name, 3
    edits = (f"{role}@{last}:k={rank}",)
    kanna.laser_apply(family.directory, out, kanna.LaserConfig(edits=edits, factored=factored))
    changed = effective(family.model, family.load(out))
    demand(bool(changed), "nothing was changed")
    for weight, new in slices(family, changed):
        if not torch.equal(weight, new):
            error = float(
                (weight - new).norm() - tail(weight, torch.linalg.matrix_rank(new, rtol=1e-5)).sqrt()
            )
            demand(abs(error) < 1e-3 * float(weight.norm()), f"error {error:.1e} above the optimum")
    same_logits(family, out, changed)
    return f"{role}@{last}"


def export(family: Family) -> str:
    source, out = family.room / "plain", family.room / "dense"
    if not source.is_dir():
        raise kanna.InputError("nothing was compressed that could be exported")
    kanna.export_dense(source, out)
    mine, theirs = family.load(out), family.load(source)
    differ = {
        path
        for path, weight in effective(family.model, theirs).items()
        if not torch.allclose(weight, dense(mine.get_submodule(path), weight.shape[1]), atol=1e-5)
    }
    demand(not differ, f"other products: {sorted(differ)[:3]}")
    return ""


def dense(module: nn.Module, inputs: int) -> Tensor:
    """(out, in) float64, by what a linear module of any form makes of unit vectors."""
    module = copy.deepcopy(module).double()
    with torch.no_grad():
        unit = torch.eye(inputs, dtype=torch.float64)
        return (module(unit) - module(torch.zeros(1, inputs, dtype=torch.float64))).T


def effective(before: nn.Module, after: nn.Module) -> dict[str, Tensor]:
    """Weights (out, in) of the linear modules that differ between two models, by path."""
    changed: dict[str, Tensor] = {}
    for path, module in before.named_modules():
        if type(module) in LINEAR:  # a router that is a linear layer too returns more than its product
            size = module.weight.shape[0 if isinstance(module, Conv1D) else 1]
            old, new = dense(module, size), dense(after.get_submodule(path), size)
            if not torch.equal(old, new):
                changed[path] = new
    return changed


def slices(family: Family, replaced: dict[str, Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    for _, weight, new in named_slices(family, replaced):
        yield weight, new


def named_slices(family: Family, replaced: dict[str, Tensor]) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Path, weight before and after, of each matrix in the replaced modules; rows of fused ones apart."""
    for matrix in kanna.inspect(family.directory).inventory.matrices:
        if matrix.refused or matrix.module not in replaced:
            continue
        new = replaced[matrix.module]
        old = dense(family.model.get_submodule(matrix.module), new.shape[1])
        rows = range(len(new))
        if (part := matrix.view.rows) is not None:
            rows = [part.start + i * part.stride + j for i in range(part.count) for j in range(part.block)]
        yield matrix.module, old[list(rows)], new[list(rows)]


def tail(weight: Tensor, rank: int | Tensor) -> Tensor:
    """Sum of the squared singular values beyond a rank."""
    return torch.linalg.svdvals(weight)[int(rank) :].square().sum()


def near_optimum(weight: Tensor, new: Tensor, gram: Tensor) -> float:
    """The error of `new` over the least of its rank, both under the inputs' second moments `gram`."""
    rank = int(torch.linalg.matrix_rank(new, rtol=1e-5))
    values, vectors = torch.linalg.eigh(gram)
    root = (vectors * values.clamp_min(0).sqrt()) @ vectors.T
    least = float(tail(weight @ root, rank))
    error = float(((weight - new) @ root).square().sum())
    whole = float((weight @ root).square().sum())
    demand(error <= 1.02 * least + 1e-6 * whole, f"error {error / max(least, 1e-30):.2f} times the optimum")
    return 1.0 if least <= 1e-6 * whole else error / least


def inputs_of(model: nn.Module, windows: Any, paths: Sequence[str]) -> dict[str, Tensor]:
    """Path -> (in, in) float64 second moments of all that the module reads; no row is padded."""
    grams: dict[str, Tensor] = {}

    def hook(path: str) -> Callable[..., None]:
        def add(_: nn.Module, given: tuple[Any, ...]) -> None:
            read = given[0].detach().double()
            rows = read.reshape(-1, read.shape[-1])
            grams[path] = grams.get(path, 0) + rows.T @ rows

        return add

    handles = [model.get_submodule(path).register_forward_pre_hook(hook(path)) for path in paths]
    try:
        with torch.no_grad():
            for prompt, decoded in getattr(windows, "read", ()):
                model(input_ids=torch.tensor([prompt]), decoder_input_ids=torch.tensor([decoded]))
            if not hasattr(windows, "read"):  # what is shared by a batch is read once a batch
                for ids, _ in windows.unpadded(8):
                    model(ids)
    finally:
        for handle in handles:
            handle.remove()
    return grams


def same_logits(family: Family, out: Path, replaced: dict[str, Tensor]) -> None:
    """The output computes what the source does with the new weights put in by hand."""
    ids = torch.tensor([family.tokenizer(sentences(1, 5)[0])["input_ids"][:24]])
    given = {"input_ids": ids}
    if family.config.get("is_encoder_decoder"):
        given["decoder_input_ids"] = ids
    loaded = family.load(out)
    theirs = _values(loaded, given)
    with by_hand(family.model, replaced, loaded) as model:
        mine = _values(model, given)
    demand(bool(torch.isfinite(theirs).all()), "values that are not finite")
    worst = float((mine - theirs).abs().max() / mine.abs().max().clamp_min(1e-6))
    demand(worst < 5e-3, f"outputs differ by {worst:.1e} from the new weights put in by hand")


def _values(model: Any, given: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        result = model(**given)
    return result[0].float()


@contextmanager
def by_hand(model: nn.Module, replaced: dict[str, Tensor], other: nn.Module) -> Iterator[nn.Module]:
    """Within the block the model has the new weights, and the biases that `other` has there."""
    paths = [path for path in replaced if model.get_submodule(path).bias is not None]
    kept = {name: p.data for name, p in model.named_parameters(remove_duplicate=False)}
    try:
        for path, weight in replaced.items():
            module = model.get_submodule(path)
            new = weight.T if isinstance(module, Conv1D) else weight
            module.weight.data = new.to(module.weight.dtype).contiguous()
        for path in paths:
            zero = torch.zeros(1, replaced[path].shape[1])
            with torch.no_grad():
                model.get_submodule(path).bias.data = other.get_submodule(path)(zero)[0]
        yield model
    finally:
        for name, parameter in model.named_parameters(remove_duplicate=False):
            parameter.data = kept[name]


# ---------------------------------------------------------------- scores


@dataclass
class Naive:
    """Scores by one row at a time, nothing padded and nothing shared."""

    family: Family
    bare: Callable[[list[int]], list[int]] = field(init=False)

    def __post_init__(self) -> None:
        special = set(self.family.tokenizer.all_special_ids)

        def bare(ids: list[int]) -> list[int]:
            while len(ids) > 1 and ids[-1] in special:
                ids = ids[:-1]
            return ids

        self.bare = bare

    def ids(self, text: str) -> list[int]:
        found = self.family.tokenizer(text)["input_ids"]
        return found if self.family.kind == "seq2seq" else self.bare(found)

    def answer(self, prompt: str, answer: str) -> float:
        """Log-likelihood of an answer behind its prompt."""
        model, kind = self.family.model, self.family.kind
        if kind == "masked":
            return self.filled(prompt, answer)
        whole, before = self.ids(f"{prompt} {answer}"), self.ids(prompt)
        if kind == "seq2seq":
            head, target = self.begun(answer)
            given = torch.tensor([[*head, *target[:-1]]])
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([before]), decoder_input_ids=given).logits[0]
            scored = logits[len(head) - 1 :].double()
            return float(-functional.cross_entropy(scored, torch.tensor(target), reduction="sum"))
        start_of_answer = next(
            (i for i, (a, b) in enumerate(zip(whole, before, strict=False)) if a != b), len(before)
        )
        with torch.no_grad():
            logits = model(torch.tensor([whole[:-1]])).logits[0].double()
        wanted = torch.tensor(whole[start_of_answer:])
        return float(-functional.cross_entropy(logits[start_of_answer - 1 :], wanted, reduction="sum"))

    def begun(self, answer: str) -> tuple[list[int], list[int]]:
        """What the decoder of an encoder-decoder begins with, and the tokens of an answer behind that."""
        ids = self.bare(self.family.tokenizer(text_target=answer)["input_ids"])
        special = set(self.family.tokenizer.all_special_ids)
        count = next((place for place, token in enumerate(ids) if token not in special), len(ids))
        return [self.family.config["decoder_start_token_id"], *ids[:count]], ids[count:]

    def filled(self, prompt: str, answer: str) -> float:
        tokenizer = self.family.tokenizer
        target = torch.tensor(tokenizer(f" {answer}", add_special_tokens=False)["input_ids"])
        ids = torch.tensor([tokenizer(prompt + tokenizer.mask_token * len(target))["input_ids"]])
        with torch.no_grad():
            logits = self.family.model(ids).logits[0].double()
        return float(
            -functional.cross_entropy(logits[ids[0] == tokenizer.mask_token_id], target, reduction="sum")
        )

    def labels(self, prompt: str) -> Tensor:
        with torch.no_grad():
            logits = self.family.model(torch.tensor([self.family.tokenizer(prompt)["input_ids"]])).logits[0]
        return logits.double().log_softmax(-1)

    def written(self, prompt: str) -> str:
        """The first line with text of greedy decoding, the whole row computed anew for each token."""
        model, tokenizer, ids, new = self.family.model, self.family.tokenizer, self.ids(prompt), []
        seq2seq = self.family.kind == "seq2seq"
        for _ in range(NEW_TOKENS):
            with torch.no_grad():
                if seq2seq:
                    given = torch.tensor([[*self.begun("a")[0], *new]])
                    logits = model(input_ids=torch.tensor([ids]), decoder_input_ids=given).logits
                else:
                    logits = model(torch.tensor([ids + new])).logits
            new.append(int(logits[0, -1].argmax()))
            if new[-1] == tokenizer.eos_token_id:
                break
        lines = str(tokenizer.decode(new, skip_special_tokens=True)).split("\n")
        return next((line for line in lines if line.strip()), "")


def _questions(count: int) -> list[str]:
    """Prompts of very different lengths, every other one behind the same preamble."""
    draw = random.Random(4)
    some = sentences(count * 4, 9)
    made = []
    for number in range(count):
        body = " ".join(some[number * 4 : number * 4 + draw.randrange(1, 4)])
        made.append((PREAMBLE if number % 2 else "") + body + " so")
    return made


def letters(family: Family) -> str:
    """Choices of one token."""
    return _choices(family, [["A", "B", "C", "D"]] * 24, "letters.jsonl")


def words(family: Family) -> str:
    """Choices of several tokens."""
    return _choices(family, [["green trees", "the moon", "a blue apple", "sea."]] * 24, "words.jsonl")


def _choices(family: Family, choices: list[list[str]], name: str) -> str:
    prompts, naive = _questions(len(choices)), Naive(family)
    if family.kind == "classifier":
        count = len(family.model.config.id2label)
        choices = [[f"LABEL_{i}" for i in range(count)]] * len(prompts)
    rows = [
        {"prompt": prompt, "choices": some, "label": number % len(some)}
        for number, (prompt, some) in enumerate(zip(prompts, choices, strict=True))
    ]
    score = kanna.evaluate(family.directory, [family.write(name, rows)], fresh=True).scores[0]
    worst = 0.0
    for row, record in zip(rows, score.records, strict=True):
        if family.kind == "classifier":
            expected = float(naive.labels(row["prompt"])[row["label"]])
        else:
            expected = naive.answer(row["prompt"], row["choices"][row["label"]])
        worst = max(worst, abs(record.values["log_loss"] + expected))
    demand(worst < 5 * NATS, f"log-likelihoods differ by up to {worst:.2g} nats")
    return f"{worst:.0e} nats"


def answers(family: Family) -> str:
    """Text that the model writes, and how likely the right one is."""
    prompts, naive = _questions(12), Naive(family)
    rows = [{"prompt": prompt, "answer": "the moon"} for prompt in prompts]
    path, writes = family.write("answers.jsonl", rows), family.kind != "masked"
    options = kanna.EvalOptions(
        metric="exact" if writes else "greedy", new_tokens=NEW_TOKENS if writes else None
    )
    score = kanna.evaluate(family.directory, [path], options, fresh=True).scores[0]
    records = score.records
    worst = max(
        abs(r.values["log_loss"] + naive.answer(p, "the moon")) for r, p in zip(records, prompts, strict=True)
    )
    demand(worst < 10 * NATS, f"log-likelihoods differ by up to {worst:.2g} nats")
    if writes:
        other = sum(r.predicted != naive.written(p) for r, p in zip(records, prompts, strict=True))
        demand(other == 0, f"{other} of {len(prompts)} texts differ from greedy decoding by hand")
    return f"{worst:.0e} nats"


def text(family: Family) -> str:
    """Perplexity of windows that overlap by half."""
    context, stride = 32, 16
    result = kanna.evaluate_text(
        family.directory, family.text, context=context, stride=stride, tokens=200
    ).result
    joined = "\n\n".join(sentences(200, 7))
    ids = family.tokenizer(joined)["input_ids"][:200]
    total, scored = 0.0, 1
    for start in range(0, len(ids), stride):
        window = ids[start : start + context]
        with torch.no_grad():
            losses = functional.cross_entropy(
                family.model(torch.tensor([window])).logits[0, :-1].double(),
                torch.tensor(window[1:]),
                reduction="none",
            )
        total += float(losses[scored - start - 1 :].sum())
        scored = start + len(window)
        if scored >= len(ids):
            break
    difference = abs(total + result.log_likelihood) / result.scored
    demand(difference < NATS, f"differs by {difference:.2g} nats a token")
    return f"{difference:.0e} nats"


CHECKS: dict[str, Callable[[Family], str]] = {
    "inspect": inspect,
    "lowrank plain": lambda family: lowrank(family, "plain", method="plain"),
    "lowrank": lambda family: lowrank(family, "default", tokens=1024, gradient_tokens=512),
    "anchored": lambda family: lowrank(
        family, "anchored", method="anchored", tokens=1024, gradient_tokens=512
    ),
    "optimum": whitened,
    "laser": lambda family: laser(family, "laser", factored=False),
    "laser factored": lambda family: laser(family, "factored", factored=True),
    "letters": letters,
    "words": words,
    "answers": answers,
    "text": text,
    "export": export,
}

"""LASER's grid search against the straightforward loop, in one process, on the same rows.

The loop copies a weight, decomposes it, puts the truncated one in and runs the whole model on all rows, for
every point of the grid, as the published code does (but keeps the model loaded). kanna's exhaustive search
decomposes each matrix once and runs the edited block and those after it. Both sort rows by length, batch the
same number of tokens, compute and truncate in float32 with the same threads, and must find
the same scores. They take turns block by block; the ratio is of the sums.

    python benchmarks/laser_search.py MODEL --task facts.jsonl --rows 500
    python benchmarks/laser_search.py MODEL --task facts.jsonl --rows 500 --sample 12    a part of the loop

The ceiling is the ratio of blocks x tokens that each side computes: the speed-up if nothing else took time.
"""

import argparse
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from torch import Tensor, nn

from kanna.methods.laser.budget import Budget
from kanna.methods.laser.search import fast
from kanna.methods.laser.search_config import RHOS
from kanna.methods.laser.space import Candidate, space
from kanna.methods.laser.validation import Validation
from kanna.methods.laser.weights import Weights
from kanna.models.inventory import inventory
from kanna.models.selection import select
from kanna.runs.opened import Opened
from kanna.tasks.data.parts import by_groups, parts_of
from kanna.tasks.evaluate import prepare
from kanna.tasks.journal import Journal, Tally
from kanna.tasks.options import EvalOptions
from kanna.tasks.tokens.encode import Encoder, Piece


@dataclass
class Loop:
    """The straightforward search."""

    model: nn.Module
    pieces: Sequence[Piece]
    batch_tokens: int
    tokens: int = 0

    def score(self) -> Tally:
        """One full pass: rows sorted by length, padded on the right, all logits computed."""
        right, loss = 0.0, 0.0
        self.tokens = 0
        order = sorted(range(len(self.pieces)), key=lambda i: len(self.pieces[i].inputs))
        batch: list[int] = []
        for i in order:
            if batch and (len(batch) + 1) * len(self.pieces[i].inputs) > self.batch_tokens:
                right, loss = self._add(batch, right, loss)
                batch = []
            batch.append(i)
        right, loss = self._add(batch, right, loss)
        return Tally(len(self.pieces), right, loss)

    def _add(self, batch: Sequence[int], right: float, loss: float) -> tuple[float, float]:
        width = max(len(self.pieces[i].inputs) for i in batch)
        ids = torch.zeros(len(batch), width, dtype=torch.long)
        mask = torch.zeros(len(batch), width, dtype=torch.long)
        for row, i in enumerate(batch):
            inputs = self.pieces[i].inputs
            ids[row, : len(inputs)] = torch.tensor(inputs)
            mask[row, : len(inputs)] = 1
        self.tokens += ids.numel()
        with torch.no_grad():
            logits = self.model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        for row, i in enumerate(batch):
            piece = self.pieces[i]
            start = len(piece.context) - 1
            mine = logits[row, start : start + len(piece.target)].float()
            target = torch.tensor(piece.target)
            loss -= float(mine.log_softmax(-1).gather(1, target[:, None]).sum())
            right += float(bool((mine.argmax(-1) == target).all()))
        return right, loss

    def point(self, one: Candidate) -> Tally:
        """Copy, decompose, truncate, score, put back."""
        parameter = self.model.get_parameter(one.matrix.tensor)
        before = parameter.detach().clone()
        with torch.no_grad():
            parameter.copy_(_truncated(before, one.rank))
            found = self.score()
            parameter.copy_(before)
        return found


def _truncated(weight: Tensor, rank: int) -> Tensor:
    left, values, right = torch.linalg.svd(weight, full_matrices=False)
    return (left[:, :rank] * values[:rank]) @ right[:rank]


def main() -> None:
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    options = EvalOptions(context=arguments.context, batch_tokens=arguments.batch_tokens)
    plan = prepare(arguments.model, [arguments.task], replace(options, limit=arguments.rows))
    task = plan.tasks[0]
    model = Opened.open(arguments.model).loaded(options)
    found = inventory(model)
    matrices = select(found.matrices, arguments.roles)
    candidates = space(matrices, found.matrices, RHOS, (1,))
    layers = len(found.blocks)
    print(
        f"{arguments.model.name}: {len(task.rows)} rows, {len(candidates)} points of {len(matrices)} "
        f"matrices, {layers} blocks, {torch.get_num_threads()} threads, float32"
    )
    encoder = Encoder(plan.tokenizer, options.context or 2048)
    pieces = [encoder.pieces(row.prompt, [row.answer])[0] for row in task.rows]
    loop = Loop(model, pieces, options.batch_tokens)
    weights = Weights(model, lambda _: torch.float32)
    validation = Validation(plan, task, [len(task.rows)], model, found, weights, Journal(None))
    loop.score()  # warm-up
    loop_seconds, base = _timed(loop.score)
    ours_seconds, ours_base = _timed(lambda: validation.base(1))
    worst = _apart(base, ours_base)
    tried = 0
    scored: dict[str, Tally] = {}
    for layer in reversed(range(layers)):
        some = [one for one in candidates if one.matrix.layer == layer]
        seconds, tallies = _timed(lambda some=some: validation.score(some, 1))  # type: ignore[misc]
        ours_seconds += seconds
        scored |= {one.key: tally for one, tally in zip(some, tallies, strict=True)}
        for one in some:
            if arguments.sample and candidates.index(one) % (len(candidates) // arguments.sample):
                continue
            seconds, tally = _timed(lambda one=one: loop.point(one))  # type: ignore[misc]
            loop_seconds += seconds
            tried += 1
            worst = max(worst, _apart(tally, scored[one.key]))
    whole = (len(candidates) + 1) / (tried + 1)
    must = (len(candidates) + 1) * layers * loop.tokens
    ceiling = must / validation.layer_tokens
    ratio = loop_seconds * whole / ours_seconds
    label = "" if tried == len(candidates) else f" (extrapolated from {tried} of {len(candidates)} points)"
    print(f"blocks x tokens: loop {must:,}, kanna {validation.layer_tokens:,.0f}: ceiling {ceiling:.2f}x")
    print(f"decompositions: loop {len(candidates)}, kanna {weights.decompositions}")
    print(f"seconds: loop {loop_seconds * whole:.1f}{label}, kanna {ours_seconds:.1f}")
    print(f"speed-up {ratio:.2f}x{label}, {100 * ratio / ceiling:.0f} % of the ceiling")
    print(f"largest difference of a mean log loss {worst:.1e}")
    best = min(scored.items(), key=lambda item: (-item[1].accuracy, item[1].mean_log_loss))
    print(f"base {base.accuracy:.4f}; best {best[0]}: {best[1].accuracy:.4f}")
    _fast(arguments, plan, task, model, found, candidates, must, layers)


def _fast(arguments, plan, task, model, found, candidates, must, layers) -> None:  # type: ignore[no-untyped-def]
    """The search that the gradient leads, on the same rows as validation set."""
    weights = Weights(model, lambda _: torch.float32)
    budget = Budget()
    parts = parts_of(by_groups(task.rows, range(len(task.rows)), 0), budget.part_sizes())
    ordered = replace(task, rows=tuple(task.rows[i] for part in parts for i in part))
    validation = Validation(
        plan, ordered, [len(part) for part in parts], model, found, weights, Journal(None)
    )
    seconds, (base, result) = _timed(
        lambda: (
            validation.base(len(parts)),
            fast(validation, candidates, budget, model, weights, lambda *_: None),
        )
    )
    backward = 3 * layers * result.gradient_tokens
    total = validation.layer_tokens + backward
    print(
        f"fast: {seconds:.1f} s, blocks x tokens {total:,.0f} (the gradient counted three times), "
        f"{must / total:.0f}x fewer than the loop; base {base.accuracy:.4f}, finalists "
        + ", ".join(f"{one.edit} {one.accuracy:.4f}" for one in result.trials if one.rows == base.rows)
    )


def _timed(run):  # type: ignore[no-untyped-def]
    started = time.perf_counter()
    found = run()
    return time.perf_counter() - started, found


def _apart(one: Tally, other: Tally) -> float:
    if one.value != other.value:
        print(f"  rights differ: {one.value} and {other.value}")
    return abs(one.mean_log_loss - other.mean_log_loss)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--task", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=500)
    parser.add_argument("--roles", default="mlp_in,mlp_out")
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--batch-tokens", type=int, default=2048)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--sample", type=int, default=0, help="points of the loop that are run; 0 for all")
    return parser.parse_args()


if __name__ == "__main__":
    main()

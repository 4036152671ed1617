"""What a dry run foresees: ranks as singular values would have them, bytes, and seconds.

Which bases a task needs is seen only when their weights are learnt; singular values are what is there before.
Seconds are those of one step of the dense model, tried out on this machine, times the steps: bases cost more
than the matrix at first and less at the end.
"""

import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import psutil
import torch
from torch import Tensor

from kanna.checkpoint.loader import load_weights
from kanna.methods.basel.budget import Size, kept_by_share, kept_by_sigma, least
from kanna.models.matrix import role_key
from kanna.reporting.blocks import COMPUTED, ESTIMATED, Table
from kanna.reporting.wording import percent, seconds, size
from kanna.training.examples import Example
from kanna.training.loss import summed_loss

if TYPE_CHECKING:
    from kanna.methods.basel.plan import Plan

# Multiplications that a dry run may take for singular values, and for a step that is tried out.
_MOST_FOR_SPECTRA, _MOST_FOR_A_STEP = 1e11, 3e11
# Of a product that tells how quick the machine is, where no step is tried out.
_SIDE = 1024
_LOOKS = 16


@dataclass(frozen=True)
class Forecast:
    """Of one plan.

    Args:
        ranks: Matrix -> rank at the end, new bases counted, or None where it would stay dense; empty where
            no singular values were computed.
        bytes_now: Of the weights of the whole model.
        bytes_at_end: The same at the end, markers and headers aside.
        seconds: Of both parts.
        measured: What these were estimated from.
    """

    ranks: Mapping[str, int | None]
    bytes_now: int
    bytes_at_end: int
    seconds: float
    measured: str


def forecast(plan: "Plan") -> Forecast:
    """Read the weights of the selected matrices, and run one step of the dense model where that is quick."""
    took, measured = _step_seconds(plan)
    ranks = _ranks(plan)
    return Forecast(ranks, plan.source.checkpoint.bytes, _bytes_at_end(plan, ranks), took, measured)


def to_dict(plan: "Plan", found: Forecast) -> dict[str, Any]:
    """For programs."""
    return {
        "ranks_by_spectra": {name: rank for name, rank in found.ranks.items() if rank is not None},
        "dense_by_spectra": sorted(name for name, rank in found.ranks.items() if rank is None),
        "model_bytes_now": found.bytes_now,
        "model_bytes_at_end": found.bytes_at_end,
        "tokens_read": tokens_read(plan),
        "estimated_seconds": found.seconds,
        "estimated_from": found.measured,
    }


def tables(plan: "Plan", found: Forecast) -> list[Table]:
    """By role, and all together."""
    return [_by_role(plan, found), _together(plan, found)]


def tokens_read(plan: "Plan") -> int:
    """Tokens of rows, and of text that is replayed, in all steps of both parts."""
    steps = plan.factor_steps + (0 if plan.schedule is None else plan.schedule.steps)
    a_step = plan.data.train.tokens / plan.batches.task.per_epoch
    if plan.batches.replay is not None:
        a_step += sum(map(len, plan.data.replay)) / plan.batches.replay.per_epoch
    return round(steps * a_step)


def _ranks(plan: "Plan") -> dict[str, int | None]:
    """Of factors that are there, or where of each matrix one share of its singular values is kept."""
    if plan.start is not None:
        return {m.name: getattr(plan.start.form(m), "rank", None) for m in plan.selected}
    work = sum(m.parameters * min(m.shape) for m in plan.selected)
    if plan.source.is_planned or work > _MOST_FOR_SPECTRA:
        return {}
    values = {m.name: _singular_values(plan.source.weight(m)) for m in plan.selected}
    kept = kept_places(values, plan.sizes, plan)
    return {
        name: None if plan.sizes[name].stays_dense(len(places)) else len(places) + plan.sizes[name].extra
        for name, places in kept.items()
    }


def kept_places(values: Mapping[str, Tensor], sizes: Mapping[str, Size], plan: "Plan") -> dict[str, Tensor]:
    """Matrix -> places of the bases that the last event would leave, by singular values alone."""
    assert plan.schedule is not None
    if plan.config.keep_sigma is not None:
        return kept_by_sigma(values, dict.fromkeys(values, 1.0), plan.config.keep_sigma)[0]
    return kept_by_share(values, sizes, plan.schedule.stored, plan.schedule.stored, last=True)


def _singular_values(weight: Tensor) -> Tensor:
    return torch.linalg.svdvals(weight.detach().float().cpu())


def _bytes_at_end(plan: "Plan", ranks: Mapping[str, int | None]) -> int:
    """As many as the parameters that go are stored with fewer."""
    wide = sum(m.parameters * plan.source.dtype(m.module).itemsize for m in plan.selected)
    share = plan.stored / plan.parameters
    if plan.config.keep_sigma is not None and ranks:
        share = sum(_stored(plan.sizes[name], rank) for name, rank in ranks.items()) / plan.parameters
    return round(plan.source.checkpoint.bytes - wide * (1 - share))


def _stored(of: Size, rank: int | None) -> int:
    return of.dense if rank is None else rank * (of.m + of.n)


def _step_seconds(plan: "Plan") -> tuple[float, str]:
    """Of both parts, and what that was estimated from."""
    rows, replayed = plan.batches.at(0)
    batch = [*(plan.data.train.all[i] for i in rows), *(plan.data.replay[i] for i in replayed)]
    tokens = sum(map(len, batch))
    work = 6 * plan.inventory.parameters  # products a token
    some = _some(batch, _MOST_FOR_A_STEP / work)
    if some and 16 * plan.inventory.parameters < psutil.virtual_memory().available:
        step = _tried(plan, some) * tokens / sum(map(len, some))
        measured = "one step of the dense model, tried out here"
    else:
        speed = _multiplications_a_second(plan.device)
        step = work * tokens / speed
        measured = f"6 products a parameter and token, at {speed:.1g} a second as one product took here"
    more = (4 / 3 if plan.config.loss == "kl" else 1.0) * (4 / 3 if plan.config.recompute else 1.0)
    # A forward pass is a third of a step.
    looks = _LOOKS * sum(map(len, plan.data.validation.all)) / (3 * max(1, tokens))
    return step * (plan.passes * more + looks), measured


def _some(batch: Sequence[Example], tokens: float) -> list[Example]:
    """The first rows of a batch, of at most so many tokens with their padding; may be none."""
    some: list[Example] = []
    for example in batch:
        if max(len(example), *map(len, some), 0) * (len(some) + 1) > tokens:
            break
        some.append(example)
    return some


def _tried(plan: "Plan", some: Sequence[Example]) -> float:
    """Seconds of a step, the first one aside."""
    model = load_weights(plan.source.checkpoint, torch.float32).to(plan.device).requires_grad_(True)
    took = []
    for _ in range(3):
        began = time.perf_counter()
        summed_loss(model, some).backward()
        _wait(plan.device)
        took.append(time.perf_counter() - began)
        model.zero_grad()
    return min(took[1:])


def _multiplications_a_second(device: torch.device) -> float:
    """Of one product, the best of three."""
    square = torch.ones(_SIDE, _SIDE, device=device)
    took = []
    for _ in range(4):
        began = time.perf_counter()
        square @ square
        _wait(device)
        took.append(time.perf_counter() - began)
    return float(_SIDE**3 / min(took[1:]))


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _by_role(plan: "Plan", found: Forecast) -> Table:
    roles: dict[str, list[str]] = defaultdict(list)
    for matrix in plan.selected:
        roles[matrix.role].append(matrix.name)
    rows = []
    for role in sorted(roles, key=role_key):
        names = roles[role]
        sizes = [plan.sizes[name] for name in names]
        now = sum(each.dense for each in sizes)
        ranks = [found.ranks[name] for name in names if name in found.ranks]
        dense = sum(rank is None for rank in ranks)
        left = sum(_stored(plan.sizes[name], found.ranks[name]) for name in names if name in found.ranks)
        cells = [
            role,
            str(len(names)),
            span([min(each.m, each.n) for each in sizes]),
            span([each.extra for each in sizes]) if plan.start is None else "",
        ]
        end = [span([rank for rank in ranks if rank is not None]), str(dense), percent(left / now)]
        rows.append([*cells, f"{now:,}", *(end if ranks else ["", "", ""])])
    columns = ["role", ">matrices", ">bases now", ">new ones", ">parameters"]
    end_columns = [">rank at the end", ">stay dense", ">kept"]
    why = "factors that are there" if plan.start is not None else "the end as singular values would have it"
    title = f"By role; {why}" if found.ranks else "By role; singular values are not looked at"
    return Table(title, [*columns, *end_columns], rows, COMPUTED)


def _together(plan: "Plan", found: Forecast) -> Table:
    data, schedule = plan.data, plan.schedule
    known = plan.config.keep_sigma is None
    steps = f"{plan.factor_steps:,} of the factors"
    if schedule is not None:
        steps = f"{schedule.steps:,} with {schedule.counted}, then {steps}"
    rows = [
        ("parameters of the selected matrices", f"{plan.parameters:,}"),
        ("at the end", f"{plan.stored:,}" if known else "seen when weights are learnt"),
        ("weights of the model", f"{size(found.bytes_now)} now, about {size(found.bytes_at_end)} at the end"),
        ("with nothing left of these matrices", percent(plan.rest)),
        ("least reachable --keep", f"{least(plan.sizes) / plan.parameters:.4f}"),
        ("steps", steps),
        ("tokens", f"{data.train.tokens:,} in {len(data.train):,} rows; {tokens_read(plan):,} read in all"),
        ("rows cut", f"{data.train.cut:,}"),
        ("memory", size(plan.memory)),
        ("time of training", f"about {seconds(found.seconds)}, from {found.measured}"),
    ]
    return Table("What it takes", ("", "<"), rows, ESTIMATED)


def span(numbers: Sequence[int]) -> str:
    """The least to the greatest; "-" of none."""
    if not numbers:
        return "-"
    low, high = min(numbers), max(numbers)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"

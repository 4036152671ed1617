"""Both parts of Basel, on the model in memory; each goes on where a killed run left it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from kanna.calibration.statistics import gathered
from kanna.checkpoint.loader import load_weights
from kanna.forms import Dense, Form, FormModule, Rows, install
from kanna.methods.basel.bases import Bases, BasesLayer, Decomposed, Held, decomposed
from kanna.methods.basel.events import Events, Schedule
from kanna.methods.basel.excited import Reader, Shown, excited
from kanna.methods.basel.importance import Averages
from kanna.methods.basel.moved import Weights, extremes, first_weights, weights_of
from kanna.methods.basel.plan import Plan, beside
from kanna.models.matrix import Matrix, View
from kanna.models.views import row_index, write
from kanna.progress import Progress, going, parted
from kanna.runs.assemble import Factors, Piece, assemble, bias_of, build, matrix_weight
from kanna.runs.probe import record
from kanna.runs.source import Source
from kanna.runs.step import Job, Recorded
from kanna.training.forgotten import Forgotten, forgotten, text_loss
from kanna.training.loop import Course, Material, Trained, train
from kanna.training.optimiser import Group, Optimiser
from kanna.training.schedule import eighth

_SEED_OF_NEW_BASES = 1
_SEED_OF_PROBES = 2


@dataclass(frozen=True)
class Outcome:
    """What is to be written.

    Args:
        recorded: What the trained model computes on some rows, with its numbers as they are stored.
        forms: Module path -> form, of the modules that are factors now.
        tensors: Full parameter name -> tensor as it is stored.
        ranks: Matrix -> bases that stayed and new ones together; None where it is stored dense.
        history: (steps done, matrix -> bases) after each event.
        part_1: How the weights were learnt; None where factors were there already.
        part_2: How the factors were; None where they were not.
        curved: Bases whose curvature was measured, and of how many of them it was below 0.
        forgotten: Loss on text that was not learnt; None where there is none.
        weights: Matrix -> how its weights moved.
        gained: Bases that gained most.
        lost: Bases that lost most.
    """

    recorded: Recorded
    forms: Mapping[str, Form]
    tensors: Mapping[str, Tensor]
    ranks: Mapping[str, int | None]
    history: Sequence[tuple[int, Mapping[str, int]]] = ()
    part_1: Trained | None = None
    part_2: Trained | None = None
    curved: tuple[int, int] = (0, 0)
    forgotten: Forgotten | None = None
    weights: Mapping[str, Weights] = field(default_factory=dict)
    gained: Sequence[Shown] = ()
    lost: Sequence[Shown] = ()

    @property
    def last(self) -> Trained:
        trained = self.part_2 or self.part_1
        assert trained is not None
        return trained


def execute(job: Job, plan: Plan) -> Outcome:
    """Do what `plan` says."""
    if plan.start is not None:
        return _from_factors(job, plan, plan.start)
    outcome, start = _from_bases(job, plan)
    gained, lost = (_shown(job, start, extremes(outcome.weights, more)) for more in (True, False))
    return replace(outcome, gained=gained, lost=lost)


def _shown(job: Job, start: "_Start", chosen: Sequence[tuple[str, int]]) -> list[Shown]:
    """Bases with the tokens that excite them in the model as it was."""
    plan = start.plan
    matrices = {matrix.name: matrix for matrix in plan.selected}
    found = {name: start.bases(matrices[name], torch.device("cpu")).right for name, _ in chosen}
    readers = [
        Reader(matrices[name].module, functional.normalize(found[name][place], dim=0))
        for name, place in chosen
    ]
    model = _loaded(job.source, job.inputs.device)
    tokens = excited(model, job.source.opened.tokenizer, readers, plan.data.train.all)
    return [Shown(name, place, of) for (name, place), of in zip(chosen, tokens, strict=True)]


def _from_bases(job: Job, plan: Plan) -> "tuple[Outcome, _Start]":
    """Both parts."""
    assert plan.schedule is not None
    model = _loaded(job.source, job.inputs.device)
    before = text_loss(model, plan.data.text)
    start = _Start(job.source, plan, _grams(model, plan))
    bases = _put_bases(model, start, plan)
    first = first_weights(bases)
    part_1, events = _learn_weights(model, bases, start, job, plan.schedule)
    weights = weights_of(first, bases, events.kept)
    pieces = _factored(job.source, plan, events)
    for path, piece in pieces.items():
        install(model, path, build(piece, torch.float32, job.inputs.device))
    held = {path: piece.form for path, piece in pieces.items()}
    part_2 = _train_factors(model, held, job, plan, events.share) if plan.factor_steps else None
    forms, tensors = _stored(model, held, job.source, plan)
    tensors |= _beside_stored(model, job.source, plan)
    seen = record(model, plan.inventory, [e.ids for e in plan.data.train.all])
    sizes = plan.sizes
    ranks = {
        name: None if sizes[name].stays_dense(len(kept)) else len(kept) + sizes[name].extra
        for name, kept in events.kept.items()
    }
    lost = forgotten(before, model, plan.data.text)
    outcome = Outcome(
        seen, forms, tensors, ranks, events.history, part_1, part_2, events.curved, lost, weights
    )
    return outcome, start


def _from_factors(job: Job, plan: Plan, start: Source) -> Outcome:
    """Part 2 alone, on factors that were made without training."""
    before = None
    if plan.data.text:
        before = text_loss(_loaded(job.source, job.inputs.device), plan.data.text)
    model = _loaded(start, job.inputs.device)
    held = {path: start.forms.get(path, Dense()) for path, _ in _modules(plan)}
    for path, piece in _parted(start, plan).items():
        install(model, path, build(piece, torch.float32, job.inputs.device))
        held[path] = piece.form
    part_2 = _train_factors(model, held, job, plan, plan.stored / plan.parameters)
    forms, tensors = _stored(model, held, job.source, plan)
    tensors |= _beside_stored(model, job.source, plan)
    seen = record(model, plan.inventory, [e.ids for e in plan.data.train.all])
    ranks = {matrix.name: getattr(start.form(matrix), "rank", None) for matrix in plan.selected}
    lost = forgotten(before, model, plan.data.text)
    return Outcome(seen, forms, tensors, ranks, part_2=part_2, forgotten=lost)


def _loaded(source: Source, device: torch.device) -> nn.Module:
    model = load_weights(source.checkpoint, torch.float32).to(device)
    return model.eval().requires_grad_(False)


def _modules(plan: Plan) -> Iterator[tuple[str, list[Matrix]]]:
    """Module path -> all its matrices, of every module of which one is selected."""
    wanted = {matrix.module for matrix in plan.selected}
    every = sorted((m for m in plan.inventory.matrices if m.module in wanted), key=lambda m: m.module)
    for path, parts in groupby(every, key=lambda m: m.module):
        yield path, list(parts)


@dataclass(frozen=True)
class _Start:
    """What bases are made of.

    Args:
        source: The model.
        plan: Which matrices.
        grams: Module path -> (n, n) second moments of what it reads on the task; empty for singular vectors.
    """

    source: Source
    plan: Plan
    grams: Mapping[str, Tensor]

    def bases(self, matrix: Matrix, device: torch.device) -> Decomposed:
        """All bases of a matrix."""
        found = decomposed(self.source.weight(matrix), gram=self.grams.get(matrix.module))
        return Decomposed(found.left.to(device), found.right.to(device))


def _grams(model: nn.Module, plan: Plan) -> dict[str, Tensor]:
    """Second moments of the inputs of the selected modules over the rows that are learnt."""
    if plan.config.basis == "plain":
        return {}
    with torch.no_grad(), gathered(model, dict.fromkeys(m.module for m in plan.selected)) as found:
        for example in plan.data.train.all:  # one row at a time: padding must not count
            model(input_ids=torch.tensor([example.ids], device=next(model.parameters()).device))
    return {path: sums.gram for path, sums in found.items()}


def _put_bases(model: nn.Module, start: _Start, plan: Plan) -> dict[str, Bases]:
    """Replace the selected matrices of a model by their bases.

    Returns:
        By name of the matrix, in the order of the selection.
    """
    made: dict[str, Bases] = {}
    generator = torch.Generator().manual_seed(plan.config.seed + _SEED_OF_NEW_BASES)
    roots = plan.config.learn == "roots"
    for path, parts in _modules(plan):
        module = model.get_submodule(path)
        device, layers = next(module.parameters()).device, []
        for matrix in parts:
            rows = None if matrix.view.rows is None else row_index(matrix.view.rows).to(device)
            layer: nn.Module
            if matrix.name in plan.sizes:
                bases = start.bases(matrix, device)
                layer = made[matrix.name] = Bases(bases, plan.sizes[matrix.name].extra, generator, roots)
            else:
                layer = Held(matrix_weight(module, matrix.view).detach())
            layers.append((rows, layer))
        bias = bias_of(module)
        size = sum(matrix.out_features for matrix in parts)
        install(model, path, BasesLayer(layers, None if bias is None else bias.detach(), size))
    return {matrix.name: made[matrix.name] for matrix in plan.selected}


def _directory(job: Job, plan: Plan, part: str) -> Path:
    """Of a part's state; other data have another, so that no state of theirs is taken up."""
    return job.workspace.directory / f"{part}-{plan.data.digest[:12]}"


def _material(job: Job, plan: Plan) -> Material:
    data = plan.data
    teacher = job.source.whole(job.inputs.device)() if plan.config.loss == "kl" else None
    return Material(data.train.all, plan.batches, data.replay, data.validation.all, teacher)


def _learn_weights(
    model: nn.Module, bases: Mapping[str, Bases], start: _Start, job: Job, schedule: Schedule
) -> tuple[Trained, Events]:
    """Part 1."""
    plan = start.plan
    config, matrices = plan.config, {matrix.name: matrix for matrix in plan.selected}

    def again(name: str) -> Decomposed:
        return start.bases(matrices[name], bases[name].left.device)

    averages, seed = Averages(config.importance), config.seed + _SEED_OF_PROBES
    events = Events(bases, plan.sizes, schedule, averages, again, seed, config.l1)
    weights = {f"{name}:weight": each.weight for name, each in bases.items()}
    new = {f"{name}:left": each.new_left for name, each in bases.items()}
    new |= {f"{name}:right": each.new_right for name, each in bases.items()}
    new = {name: parameter for name, parameter in new.items() if parameter.numel()}
    factor = config.part_1_factor
    groups = [
        Group(weights, factor * config.rate),
        Group({**new, **_beside(model, plan)}, factor * config.factor_rate),
    ]
    course = Course(
        steps=schedule.steps,
        validate_every=eighth(schedule.steps),
        best_from=1 + (schedule.last_step if not plan.factor_steps else schedule.steps),
        seed=config.seed,
        precision=config.precision,
        recompute=config.recompute,
    )
    directory = _directory(job, plan, "weights")
    progress = _named(job.progress, "part 1, weights of bases", events.told)
    trained = train(model, Optimiser(groups), _material(job, plan), course, directory, events, progress)
    return trained, events


def _beside(model: nn.Module, plan: Plan) -> dict[str, nn.Parameter]:
    """Parameters outside the selected modules, where they are trained too."""
    return beside(model, plan.selected) if plan.config.beside else {}


def _beside_stored(model: nn.Module, source: Source, plan: Plan) -> dict[str, Tensor]:
    """The same as they are stored, under every name that the files have; the model is rounded alike.

    Tied parameters have several names in the model, and often one in the files.
    """
    found: dict[str, Tensor] = {}
    written: set[str] = set()
    trained = {id(parameter) for parameter in _beside(model, plan).values()}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        stored = source.file_name(name) if id(parameter) in trained else None
        if stored is not None and stored not in written:
            written.add(stored)
            found[name] = parameter.detach().cpu().to(source.checkpoint.dtype(stored)).contiguous()
            parameter.data.copy_(found[name])
    return found


def _factored(source: Source, plan: Plan, events: Events) -> dict[str, Piece]:
    """Module path -> the module that bases become: factors, or a dense weight where these are not smaller."""
    pieces: dict[str, Piece] = {}
    for path, parts in _modules(plan):
        new: dict[str, Factors | Tensor] = {}
        for matrix in parts:
            if matrix.name in plan.sizes:
                expand, reduce = events.matrices[matrix.name].factors()
                dense = plan.sizes[matrix.name].stays_dense(len(events.kept[matrix.name]))
                new[matrix.name] = expand @ reduce if dense else Factors(expand.cpu(), reduce.cpu())
        piece = assemble(source.module(path), parts, new, torch.float32)
        assert piece is not None
        pieces[path] = piece
    return pieces


def _parted(start: Source, plan: Plan) -> dict[str, Piece]:
    """Module path -> a dense module in rows, where not all of these are trained."""
    pieces: dict[str, Piece] = {}
    for path, parts in _modules(plan):
        chosen = [matrix for matrix in parts if matrix.name in plan.sizes]
        if path not in start.forms and len(chosen) < len(parts):
            new = {matrix.name: start.weight(matrix).float() for matrix in chosen}
            piece = assemble(start.module(path), parts, new, torch.float32)
            assert piece is not None
            pieces[path] = piece
    return pieces


def _train_factors(model: nn.Module, held: Mapping[str, Form], job: Job, plan: Plan, kept: float) -> Trained:
    """Part 2.

    Args:
        held: Module path -> form of what is trained.
        kept: Share of the matrices' parameters that is left.
    """
    config = plan.config
    factors = dict(_factors(model, held, plan))
    course = Course(
        steps=plan.factor_steps,
        validate_every=eighth(plan.factor_steps),
        first=True,
        best_from=0,
        seed=config.seed + 1,
        precision=config.precision,
        recompute=config.recompute,
    )
    rate = config.part_2_factor * config.factor_rate
    optimiser = Optimiser([Group({**factors, **_beside(model, plan)}, rate)])
    directory = _directory(job, plan, "factors")
    progress = _named(job.progress, "part 2, factors", lambda: f"{kept:.1%} kept")
    return train(model, optimiser, _material(job, plan), course, directory, None, progress)


def _factors(model: nn.Module, held: Mapping[str, Form], plan: Plan) -> Iterator[tuple[str, nn.Parameter]]:
    """By name, what selected matrices are made of; other rows of their modules stay as they are."""
    for path, parts in _modules(plan):
        form = held[path]
        staying = tuple(f"parts.{n}." for n, matrix in enumerate(parts) if matrix.name not in plan.sizes)
        for name, parameter in model.get_submodule(path).named_parameters():
            if name != form.bias_suffix and parameter.dim() == 2 and not name.startswith(staying):
                yield f"{path}.{name}", parameter


def _named(progress: Progress, part: str, told: Callable[[], str]) -> Progress:
    """Progress of training under the name of a part, with what the method has to tell."""

    def report(stage: str, done: int, total: int) -> None:
        progress(going(part, parted(stage)[1], told()), done, total)

    return report


def _stored(
    model: nn.Module, held: Mapping[str, Form], source: Source, plan: Plan
) -> tuple[dict[str, Form], dict[str, Tensor]]:
    """Forms, and tensors in the dtype of the source, of what is in the model now."""
    forms: dict[str, Form] = {}
    tensors: dict[str, Tensor] = {}
    parts = dict(_modules(plan))
    for path, form in held.items():
        module, dtype = model.get_submodule(path), source.dtype(path)
        if _is_dense(form):
            tensors |= _dense_parameters(source, parts[path], module, path)
            for parameter in module.parameters():
                parameter.data.copy_(parameter.data.to(dtype))
            continue
        forms[path] = form
        stored = {
            name: value.detach().cpu().to(form.dtype_of(name, dtype)).contiguous()
            for name, value in module.state_dict().items()
        }
        tensors |= {f"{path}.{name}": value for name, value in stored.items()}
        module.load_state_dict(stored)  # the model computes with what is stored
    return forms, tensors


def _is_dense(form: Form) -> bool:
    return isinstance(form, Dense) or (
        isinstance(form, Rows) and all(isinstance(part, Dense) for _, part in form.parts)
    )


def _dense_parameters(
    source: Source, parts: Sequence[Matrix], module: nn.Module, path: str
) -> dict[str, Tensor]:
    """The parameter of a module that stays what it is, with its matrices as they are now."""
    first = parts[0]
    value = source.checkpoint.tensor(source.tensor_of(first))
    for number, matrix in enumerate(parts):
        if isinstance(module, FormModule):
            weight = matrix_weight(module.get_submodule(f"parts.{number}"), View())
        elif isinstance(module, Conv1D) or matrix.view.rows is not None:
            weight = matrix_weight(module, matrix.view)  # it is as the model made it
        else:
            weight = matrix_weight(module, View())
        value = write(value, matrix.view, weight.detach().cpu())
    return {f"{path}.{first.parameter}": value.contiguous()}

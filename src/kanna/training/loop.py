"""The loop: loss, gradients, a step, what a method does between steps, and a state to go on with."""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from kanna.errors import InputError
from kanna.progress import Progress, going
from kanna.tasks.tokens.padded import vocabulary_of
from kanna.training.batches import Mixed
from kanna.training.examples import Example
from kanna.training.loss import reads_in_parts, summed_loss
from kanna.training.optimiser import Optimiser
from kanna.training.pace import Pace
from kanna.training.passes import in_passes, reads_padding
from kanna.training.schedule import warm_cosine
from kanna.training.state import StateFile

# A model that is further off than this many times the loss of knowing nothing does not come back.
_LOST = 1.5
_LOST_STEPS = 8


@dataclass(frozen=True)
class Course:
    """How long and how a run goes.

    Args:
        steps: Optimiser steps.
        warm_up: Share of them that the rate rises.
        last: Share of the rate that is approached at the end.
        clip: Largest norm of all gradients together; None for any.
        tokens: Read in one pass; what is more in a step is accumulated. Results are those of one pass.
        validate_every: Steps between validations; 0 validates at the end only.
        patience: Validations without a better one after which a run stops; 0 never stops early.
        first: Whether what training begins with is validated, too.
        best_from: Steps done from which on the best state is looked for; with 0 what training begins with is
            kept, where it was validated and nothing is better.
        seed: Of dropout.
        precision: float32, or bfloat16 for products (parameters stay as they are).
        recompute: Keep no activations between blocks, and compute them again on the way back.
        save_seconds: Between two states on disk; 0 saves every step.
    """

    steps: int
    warm_up: float = 0.03
    last: float = 0.1
    clip: float | None = 1.0
    tokens: int = 8192
    validate_every: int = 0
    patience: int = 0
    first: bool = False
    best_from: int = 1
    seed: int = 0
    precision: str = "float32"
    recompute: bool = False
    save_seconds: float = 30.0


class Between(Protocol):
    """What a method does while its parameters are trained."""

    def begin(self, gradients: Callable[[int], object]) -> None:
        """Before the first step.

        Args:
            gradients: Given a step, lays the gradients of its batch alone into the parameters as they are
                then, without autocast and with the dropout of that step.
        """

    def gradients(self, step: int) -> None:
        """Look at the gradients of a step, before they are clipped and used."""

    def after(self, step: int, optimiser: Optimiser) -> None:
        """Change parameters behind a step, through `Optimiser.cut` where they shrink."""

    def tensors(self) -> Mapping[str, Tensor]:
        """What it must remember, for a state on disk."""

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over what `tensors` gave; the parameters are restored behind it."""


class Nothing:
    """A method that only trains."""

    def begin(self, gradients: Callable[[int], object]) -> None:
        pass

    def gradients(self, step: int) -> None:
        pass

    def after(self, step: int, optimiser: Optimiser) -> None:
        pass

    def tensors(self) -> Mapping[str, Tensor]:
        return {}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        pass


@dataclass(frozen=True)
class Material:
    """What is learnt.

    Args:
        task: Examples of the rows.
        batches: Which go into which step.
        replay: Examples of text that must not be forgotten.
        validation: Examples that are not learnt.
        teacher: Whose predictions are learnt in place of the right tokens.
    """

    task: Sequence[Example]
    batches: Mixed
    replay: Sequence[Example] = ()
    validation: Sequence[Example] = ()
    teacher: nn.Module | None = None

    def at(self, step: int) -> list[Example]:
        """The examples of a step."""
        task, replay = self.batches.at(step)
        return [*(self.task[i] for i in task), *(self.replay[i] for i in replay)]


@dataclass(frozen=True)
class Trained:
    """How a run went.

    Args:
        losses: Mean loss of the scored tokens of each step, nats.
        validation: (steps done, mean loss) of each validation.
        best: Steps done at the best validation, whose parameters the model has; 0 for those that training
            began with. Without a validation the last step.
        stopped: Why before the end; empty if it was not.
        notes: What the reader must know.
    """

    losses: tuple[float, ...]
    validation: tuple[tuple[int, float], ...]
    best: int
    stopped: str = ""
    notes: tuple[str, ...] = ()


@dataclass
class _Reached:
    """Where a run stands; all of it goes to the state's note."""

    losses: list[float] = field(default_factory=list)
    validation: list[tuple[int, float]] = field(default_factory=list)
    best: int | None = None  # none so far
    stopped: str = ""
    finished: bool = False

    @property
    def step(self) -> int:
        return len(self.losses)


def train(
    model: nn.Module,
    optimiser: Optimiser,
    material: Material,
    course: Course,
    directory: Path,
    between: Between | None = None,
    progress: Progress = lambda *_: None,
) -> Trained:
    """Train the optimiser's parameters in place, from the state in `directory` where there is one.

    Batch, dropout and rate of a step depend on the seed and the step alone, and a state holds all that was
    averaged, so a run that was killed anywhere ends with the bytes of one that was not.

    Args:
        directory: Of `state.safetensors`, and `best.safetensors` while there is a better one than the last.
        between: What the method does between steps.
        progress: Called with (stage, done, total).

    Raises:
        InputError: It diverged before there was a validated state; with one, it ends there and says so.
    """
    run = _Run(model, optimiser, material, course, directory, between or Nothing(), progress)
    return run.carry_out()


class _Run:
    """One run; `train` says what its parts are."""

    def __init__(
        self,
        model: nn.Module,
        optimiser: Optimiser,
        material: Material,
        course: Course,
        directory: Path,
        between: Between,
        progress: Progress,
    ) -> None:
        self.model, self.optimiser, self.material = model, optimiser, material
        self.course, self.between, self.progress = course, between, progress
        self.state, self.best = (
            StateFile(directory / "state.safetensors"),
            StateFile(directory / "best.safetensors"),
        )
        self.at, self.pace = _Reached(), Pace()
        self.in_parts = reads_in_parts(model, material.task[0])
        self.equal = reads_padding(model, material.task)
        self.saved = time.monotonic()

    def carry_out(self) -> Trained:
        with _training(self.model, self.optimiser, self.course):
            self._restore()
            self.between.begin(lambda step: self._gradients(step, "float32"))
            if self.course.first and self.material.validation and not self.at.validation:
                self._validate()
            while not self.at.finished:
                self._step()
            best = self.at.step if self.at.best is None else self.at.best
            if self.best.exists() and (best < self.at.step or self.at.stopped):
                self._take(self.best)
        return Trained(tuple(self.at.losses), tuple(self.at.validation), best, self.at.stopped, self._notes())

    def _step(self) -> None:
        step = self.at.step
        with self.pace.reading(sum(map(len, self.material.at(step)))):
            loss = self._gradients(step, self.course.precision)
            if not math.isfinite(loss) or self._lost(loss):
                self._give_up(loss, step + 1)
                return
            self.between.gradients(step)
            course = self.course
            self.optimiser.step(warm_cosine(step, course.steps, course.warm_up, course.last), course.clip)
            self.between.after(step, self.optimiser)
        self.at.losses.append(loss)
        held = f"held out {self.at.validation[-1][1]:.3f}" if self.at.validation else ""
        self.progress(going("train", f"loss {loss:.3f}", held, str(self.pace)), self.at.step, course.steps)
        self._look()
        self._save()

    def _gradients(self, step: int, precision: str) -> float:
        """Mean loss of a step; its gradients lie in the parameters, and no others."""
        self.optimiser.drop_gradients()
        examples = self.material.at(step)
        targets = sum(example.targets for example in examples)
        total = 0.0
        with torch.random.fork_rng(_devices(self.model)):
            torch.manual_seed(((self.course.seed << 24) + step) % 2**64)
            for some in in_passes(examples, self.course.tokens, self.equal):
                loss = self._loss(some, precision) / targets
                loss.backward()
                total += float(loss.detach())
        return total

    def _loss(self, examples: Sequence[Example], precision: str) -> Tensor:
        device = next(self.model.parameters()).device.type
        with torch.autocast(device, torch.bfloat16, enabled=precision == "bfloat16"):
            return summed_loss(self.model, examples, self.material.teacher, self.in_parts)

    def _lost(self, loss: float) -> bool:
        """Whether a language model has been worse than one that knows nothing for some steps."""
        if self.material.task[0].label is not None or len(self.at.losses) < _LOST_STEPS:
            return False
        nothing = math.log(vocabulary_of(self.model) or math.inf)
        recent = [*self.at.losses[-_LOST_STEPS + 1 :], loss]
        return fmean(recent) > _LOST * max(nothing, self.at.losses[0])

    def _give_up(self, loss: float, step: int) -> None:
        """End at the best validated state; states by the clock are no place to end at.

        Raises:
            InputError: There is none behind a step yet.
        """
        what = f"a loss of {loss:.3g}" if math.isfinite(loss) else "a loss that is not finite"
        reason = f"{what} at step {step}"
        if not self.best.exists() or not self.at.best:
            raise InputError(f"training diverged: {reason}", "give a lower rate, or more rows a step")
        self.at.stopped = f"{reason}: a lower rate may help"
        self.at.finished = True

    def _look(self) -> None:
        """Validate where it is time; stop where it is enough."""
        course, step = self.course, self.at.step
        last = step >= course.steps
        due = last or (course.validate_every > 0 and step % course.validate_every == 0)
        if self.material.validation and due:
            self._validate()
            if self.at.finished:
                return
            eligible = self._eligible()
            if course.patience and len(eligible) > course.patience:
                since = len(eligible) - 1 - eligible.index(min(eligible))
                if since >= course.patience and not last:
                    self.at.stopped = f"no better validation loss in {since} validations"
                    last = True
        if not self.material.validation:
            self.at.best = step
        self.at.finished = last

    def _validate(self) -> None:
        held = self.material.validation
        loss = validation_loss(self.model, held, self.course.tokens, self.in_parts, self.equal)
        if not math.isfinite(loss):
            self._give_up(loss, self.at.step)
            return
        self.at.validation.append((self.at.step, loss))
        eligible = self._eligible()
        if eligible and eligible[-1] == min(eligible):
            self.at.best = self.at.step
            self._write(self.best)

    def _eligible(self) -> list[float]:
        """Losses of the states that may be the best."""
        return [loss for done, loss in self.at.validation if done >= self.course.best_from]

    def _save(self) -> None:
        due = self.at.finished or time.monotonic() - self.saved >= self.course.save_seconds
        if due and all(bool(torch.isfinite(p).all()) for p in self.optimiser.parameters.values()):
            self._write(self.state)
            self.saved = time.monotonic()

    def _write(self, file: StateFile) -> None:
        own = {f"between:{name}": value for name, value in self.between.tensors().items()}
        file.save({**self.optimiser.tensors(), **own}, asdict(self.at))

    def _restore(self) -> None:
        if self.state.exists():
            self._take(self.state)

    def _take(self, file: StateFile) -> None:
        tensors, note = file.load()
        own = "between:"
        self.between.restore({k.removeprefix(own): v for k, v in tensors.items() if k.startswith(own)})
        self.optimiser.restore({k: v for k, v in tensors.items() if not k.startswith(own)})
        if file is self.state:
            self.at = _Reached(**{**note, "validation": [(int(a), float(b)) for a, b in note["validation"]]})

    def _notes(self) -> tuple[str, ...]:
        first = self.material.task[0]
        if self.in_parts or first.label is not None or first.filled is not None:
            return ()
        return ("logits of all scored tokens are in memory at once: the model changes them in its own way",)


def validation_loss(
    model: nn.Module,
    examples: Sequence[Example],
    tokens: int,
    in_parts: bool = True,
    equal: bool = False,
) -> float:
    """Mean loss of scored tokens, nats, the model as it is used (no dropout).

    Args:
        equal: Only examples of one length are read together.
    """
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            passes = in_passes(examples, tokens, equal)
            sums = [float(summed_loss(model, some, None, in_parts)) for some in passes]
    finally:
        model.train(training)
    return sum(sums) / sum(example.targets for example in examples)


def _devices(model: nn.Module) -> list[Any]:
    device = next(model.parameters()).device
    return [device] if device.type == "cuda" else []


@contextmanager
def _training(model: nn.Module, optimiser: Optimiser, course: Course) -> Iterator[None]:
    """Within the block only the optimiser's parameters need gradients, and the model is in training mode."""
    wanted = {id(p) for p in optimiser.parameters.values()}
    before = {name: p.requires_grad for name, p in model.named_parameters()}
    training = model.training
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in wanted)
    for parameter in optimiser.parameters.values():
        parameter.requires_grad_(True)
    model.train()
    if course.recompute:
        _recompute(model, True)
    try:
        yield
    finally:
        if course.recompute:
            _recompute(model, False)
        model.train(training)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(before.get(name, False))
            parameter.grad = None


def _recompute(model: Any, enable: bool) -> None:
    """Keep no activations between blocks, or keep them again; transformers has renamed how it is said."""
    what = "enable" if enable else "disable"
    name = next(
        n for n in (f"activation_checkpointing_{what}", f"gradient_checkpointing_{what}") if hasattr(model, n)
    )
    getattr(model, name)()

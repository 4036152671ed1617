"""What is going to be learnt, known before a weight is read."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kanna.calibration.trial import try_out
from kanna.checkpoint.declared import walk
from kanna.checkpoint.scale_sets import check_name
from kanna.errors import InputError
from kanna.forms import Form
from kanna.forms.integer import Int
from kanna.methods.peqa.config import TuneConfig
from kanna.methods.peqa.teacher import find_teacher
from kanna.models.skeleton import read_config
from kanna.reporting.wording import size
from kanna.runs import step
from kanna.runs.lessons import Data, activation_bytes, check_machine, read_data
from kanna.runs.opened import Opened
from kanna.runs.source import Source
from kanna.runs.step import Inputs
from kanna.training.batches import Mixed, mixed

# Of a header of safetensors, and of the record beside it, for each matrix.
_PER_MATRIX = 400


@dataclass(frozen=True, kw_only=True)
class Plan(step.Plan):
    """What is trained, and how long.

    Args:
        source: The model.
        numbers: Module path -> how many are learnt of its scales.
        data: What is learnt.
        batches: Which rows go into which step.
        steps: How many.
        teacher: Whose predictions are learnt; None for the right tokens.
    """

    config: TuneConfig
    source: Source
    numbers: Mapping[str, int]
    data: Data
    batches: Mixed
    steps: int
    teacher: Opened | None

    less_memory = "lower --rows or --context, or add --recompute"

    @property
    def data_hash(self) -> str:
        if self.teacher is None:
            return self.data.digest
        return hashlib.sha256(f"{self.data.digest} {self.teacher.identity}".encode()).hexdigest()

    @property
    def reads(self) -> tuple[Path, ...]:
        return () if self.teacher is None else (self.teacher.directory,)

    @property
    def trained(self) -> int:
        return sum(self.numbers.values())

    @property
    def bytes(self) -> int:
        """Of the set, about."""
        return 4 * self.trained + _PER_MATRIX * len(self.numbers)

    def forms(self) -> Mapping[str, Form]:
        return {}

    def lines(self) -> list[str]:
        train, config = self.data.train, self.config
        by = "a row" if config.granularity == "channel" else "a group"
        teacher = "" if self.teacher is None else f", taught by {self.teacher.name}"
        judged = f"judged against {self.source.name} as it was quantised, which --max-drop is a share of"
        return [
            f"{self.trained:,} numbers of {len(self.numbers)} matrices, one for {by}; {size(self.bytes)}",
            f"{len(train):,} rows, {train.tokens:,} tokens, {train.targets:,} of them learnt; "
            f"{len(self.data.validation):,} rows for validation",
            f"{self.steps} steps of {config.rows} rows{teacher}",
            f"memory about {self.memory / 1e9:.2f} GB",
            judged,
        ]

    def to_dict(self) -> dict[str, Any]:
        train = self.data.train
        return {
            **super().to_dict(),
            "name": self.config.name,
            "matrices": len(self.numbers),
            "trainable": self.trained,
            "steps": self.steps,
            "rows": len(train),
            "tokens": train.tokens,
            "rows_cut": train.cut,
            "teacher": None if self.teacher is None else self.teacher.name,
        }


def make_plan(source: Source, config: TuneConfig, inputs: Inputs) -> Plan:
    """Read the rows, count what there is to learn.

    Raises:
        InputError: Whatever is wrong with the rows, the model or the teacher.
    """
    check_name(config.name)
    numbers = _numbers(source, config.granularity)
    check_machine(source, config.recompute, config.precision, inputs.device)
    _check_learns(source)
    if config.teacher is not None and config.loss != "kl":
        raise InputError("a teacher is learnt from with the loss kl", "add --loss kl, or leave --teacher out")
    data = read_data(source, config, inputs.tasks, inputs.joiner)
    sizes = [len(example) for example in data.train.all], [len(example) for example in data.replay]
    batches = mixed(*sizes, config.rows, config.replay_share, config.seed)
    notes = []
    if data.train.cut:
        notes.append(f"{data.train.cut:,} prompts lose their beginning to fit the context")
    return Plan(
        config=config,
        notes=tuple(notes),
        memory=_memory(source, numbers, data, config),
        work_bytes=3 * 12 * sum(numbers.values()),
        source=source,
        numbers=numbers,
        data=data,
        batches=batches,
        steps=config.steps or config.epochs * batches.task.per_epoch,
        teacher=find_teacher(source, config.teacher, inputs.first) if config.loss == "kl" else None,
    )


def _numbers(source: Source, granularity: str) -> dict[str, int]:
    """Module path, that of factors and slices included -> how many numbers of it are learnt."""
    found: dict[str, int] = {}
    for path, layer in source.declared.items():
        sizes = layer.geometry
        shapes = layer.form.tensors(sizes.m, sizes.n)
        for inner, form in walk(layer.form):
            if isinstance(form, Int):
                m, groups = shapes[f"{inner}.weight_scale".removeprefix(".")]
                name = f"{path}.{inner}".removesuffix(".")
                found[name] = m if granularity == "channel" else m * groups
    if not found:
        raise InputError(
            f"{source.name} has no matrix of whole numbers, so there are no scales to tune",
            "kanna quantize makes one of it",
        )
    return found


def _check_learns(source: Source) -> None:
    """Raise InputError for whole numbers that the model's own code reads as a weight when it learns."""
    read = try_out(read_config(source.directory), source.inventory, training=True).read
    lost = next((path for path in source.declared if path in read), None)
    if lost is not None:
        raise InputError(
            f"{source.inventory.architecture} itself reads the weight of {lost} when it learns, "
            "and finds whole numbers",
            "quantise again and leave it out with --skip",
        )


def _memory(source: Source, numbers: Mapping[str, int], data: Data, config: TuneConfig) -> int:
    """The model as it is stored, what is dense in float32, activations, and one matrix multiplied out."""
    listed = source.inventory
    whole = set(source.declared)
    held = sum(m.parameters for m in listed.matrices if m.module in whole)
    dense = 4 * (listed.parameters - held) + source.checkpoint.bytes
    teacher = 4 * listed.parameters if config.loss == "kl" else 0
    activations = activation_bytes(listed, data.longest, config.rows, config.recompute)
    largest = 12 * max(m.parameters for m in listed.matrices)
    return 500_000_000 + dense + teacher + activations + largest + 16 * sum(numbers.values())

"""A model directory that a run opens once: headers, hash, tokenizer and weights are read at most once."""

import json
import math
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kanna.checkpoint import lineage, scale_sets
from kanna.checkpoint.applied import ACTIVE, chosen
from kanna.checkpoint.loader import load_weights
from kanna.checkpoint.reader import Checkpoint
from kanna.checkpoint.scale_records import RECORD
from kanna.checkpoint.side_files import MODULES, module_folders
from kanna.forms.integer import untimed
from kanna.models.device import device_of, dtype_of
from kanna.runs.criteria import Criteria, check_harness
from kanna.runs.room import check_memory
from kanna.tasks.data.task import HARNESS, Task
from kanna.tasks.evaluate import Prepared, headline, prepare
from kanna.tasks.metrics.user_metric import metric_info, parse_user_metric
from kanna.tasks.options import EvalOptions
from kanna.tasks.records import TEXT
from kanna.tasks.tokens.tokenizer import load_tokenizer
from kanna.tasks.verdict.tolerance import check_below_1

# Beside the weights, what the text that goes in and what comes out depend on.
_TEXT_FILES = (
    "*token*",
    "vocab*",
    "merges*",
    "*.model",
    "*.spm",
    "*.tiktoken",
    "dict.txt",
    "bpe.codes",
    "tekken.json",
    "normalizer.json",
    "chat_template*",
    "generation_config.json",
)
_SMALLER = (
    "evaluate in 16 bits, which takes {:.2f} GB: --dtype bfloat16 with kanna eval and compare; leave --task "
    "out where a model is written, and compare afterwards"
)
_EMBEDDING_FILES = (MODULES, "sentence_*_config.json", "config_sentence_transformers.json")


class Opened:
    """One model, for everybody in a run who asks something of it.

    Args:
        checkpoint: Its headers.
        finite: Whether its numbers must be finite.
        trusted: Its files were written just now, and need no comparison with the digests recorded for them.
        scales: Name or folder of a set of scales in it, or None for none; by default the one in use.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        finite: bool = False,
        trusted: bool = False,
        scales: str | Path | None = ACTIVE,
    ) -> None:
        self.checkpoint = checkpoint
        self.scales = chosen(checkpoint.directory, scales)
        self._finite, self._trusted = finite, trusted
        self._model: nn.Module | None = None
        self._computes: tuple[torch.device, torch.dtype] | None = None

    @classmethod
    def open(
        cls,
        model: "str | Path | Opened",
        *,
        finite: bool = False,
        trusted: bool = False,
        scales: str | Path | None = ACTIVE,
    ) -> "Opened":
        """Open a directory, or a hub id in the local cache; what is open already is returned.

        Raises:
            InputError: See `Checkpoint.open`.
        """
        if isinstance(model, Opened):
            return model
        return cls(Checkpoint.open(model), finite=finite, trusted=trusted, scales=scales)

    @property
    def directory(self) -> Path:
        return self.checkpoint.directory

    @property
    def name(self) -> str:
        return self.checkpoint.name

    @cached_property
    def tokenizer(self) -> Any:
        """Raises InputError where there is none."""
        return load_tokenizer(self.directory)

    @cached_property
    def scan(self) -> lineage.Scan:
        """The one pass over the bytes: hash, comparison with what is recorded, finiteness.

        Raises:
            InputError: A file changed since kanna wrote it, or a number is not finite though it must be.
        """
        recorded = None if self._trusted else lineage.read(self.directory)
        scan = lineage.scan(self.checkpoint, self._finite, digests=recorded is not None)
        if recorded is not None:
            lineage.verify(self.directory, scan)
        scan.refuse_not_finite()
        return scan

    @property
    def base_hash(self) -> str:
        """What it is, whatever its files."""
        return self.scan.base_hash

    @property
    def scales_name(self) -> str | None:
        """Of the set of scales that lies over it."""
        return None if self.scales is None else self.scales.name

    @cached_property
    def identity(self) -> str:
        """Of the weights, and of the tokenizer, its template and the modules, which scores depend on too."""
        patterns = (*_TEXT_FILES, *_EMBEDDING_FILES)
        files = {path for pattern in patterns for path in self.directory.glob(pattern)}
        for folder in module_folders(self.directory):
            files.update((self.directory / folder).rglob("*"))
        relative = [(path.relative_to(self.directory).as_posix(), path) for path in sorted(files)]
        digests = [(name, lineage.file_digest(path)) for name, path in relative if path.is_file()]
        applied = [] if self.scales is None else [scale_sets.read_record(self.scales / RECORD).tensors]
        return json.dumps([self.base_hash, digests, *applied])

    def prepared(
        self,
        tasks: Sequence[str | Path],
        options: EvalOptions,
        texts: Sequence[str | Path] = (),
        read: Sequence[Task] | None = None,
    ) -> Prepared:
        """`prepare` for this model; `read` are the files of `tasks`, if they have been read."""
        return prepare(self.checkpoint, tasks, options, texts, read=read, tokenizer=self.tokenizer)

    def prepared_for(
        self, criteria: Criteria, options: EvalOptions, read: Sequence[Task] | None = None
    ) -> Prepared:
        """`prepared` for the tasks of criteria; raises InputError for a tolerance that allows everything.

        Args:
            read: The files of the tasks, if they have been read; what lm_eval judges by was checked then.
        """
        plan = self.prepared(criteria.files, options, read=read)
        _check_units(plan, criteria)
        if read is None:
            check_harness(criteria, options.include)
        return plan

    def loaded(self, options: EvalOptions) -> nn.Module:
        """The model, ready to be evaluated; it stays in memory until `release`, for others who ask.

        Whoever changes it puts back what was there.
        """
        if self._model is None or not self.holds(options):
            self.release()
            self.check_room(options)
            if not self._trusted:
                _ = self.scan  # compares the files with what is recorded, before anything is computed
            place = None if device_of(options.device).type == "cpu" else options.device
            self._model = load_weights(self.checkpoint, dtype_of(options.dtype), place, self.scales)
            untimed(self._model)
            self._computes = _computing(options)
        return self._model

    def bytes_in(self, dtype: str) -> int:
        """Of its tensors in memory: floating-point ones in `dtype`, whole numbers as they are."""
        found = self.checkpoint
        floats = dtype_of(dtype).itemsize
        return sum(
            math.prod(stored.shape) * floats if found.dtype(name).is_floating_point else stored.bytes
            for name, stored in found.tensors.items()
        )

    def check_room(self, options: EvalOptions) -> None:
        """Raise InputError where the weights do not fit in memory; of other devices nothing is known."""
        needed = self.bytes_in(options.dtype)
        if device_of(options.device).type == "cpu":
            check_memory(
                needed, _SMALLER.format(self.bytes_in("bfloat16") / 1e9), f"{self.name} to be evaluated"
            )

    def hold(self, model: nn.Module) -> None:
        """Take a model that somebody else loaded from this directory's files: `loaded` gives it on."""
        first = next(model.parameters())
        untimed(model)
        self._model, self._computes = model, (first.device, first.dtype)

    def holds(self, options: EvalOptions) -> bool:
        """Whether `loaded` has nothing to read."""
        return self._model is not None and self._computes == _computing(options)

    def release(self) -> None:
        """Let go of the weights in memory."""
        self._model = self._computes = None


def _computing(options: EvalOptions) -> tuple[torch.device, torch.dtype]:
    """Where (with its number, where there may be several) and in what an evaluation computes."""
    return torch.empty(0, device=device_of(options.device)).device, dtype_of(options.dtype)


def _check_units(plan: Prepared, criteria: Criteria) -> None:
    """Raise InputError for a tolerance that allows everything, given the metric of its task."""
    for task in plan.tasks:
        metric = headline(task, plan.options)
        if task.kind == TEXT or parse_user_metric(metric) is not None:
            continue
        if metric_info(metric, task.kind).higher_is_better:
            check_below_1(task.name, criteria.rule(task.name).tolerance, metric)
    for rule in criteria.rules:
        if rule.task.startswith(HARNESS):
            check_below_1(rule.task, rule.tolerance, "a metric of lm_eval mostly")

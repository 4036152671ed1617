"""One threshold for all tensors of a model, which passes over all of them find before anything is merged.

Two passes count bit patterns, as for a single tensor; a third counts how often the threshold itself occurs in
which tensor, up to where enough are found: those of the first tensors stay.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kanna.checkpoint.whole import write_json_whole
from kanna.methods.merge.chunks import Chunks
from kanna.methods.merge.plan import Merged, MergePlan, working_dtype
from kanna.methods.merge.resolve import one_threshold
from kanna.methods.merge.rules.counting import Above, Largest, how_many, passes
from kanna.methods.merge.rules.pruning import All, Between, NormMatched, Pruner
from kanna.methods.merge.rules.sums import BLOCK
from kanna.progress import Progress, going

_FILE, _STAGE = "thresholds.json", "thresholds"


@dataclass(frozen=True)
class Threshold:
    """Of the magnitudes of a model's differences.

    Args:
        bits: Of the number, as a whole number; what is larger is above it.
        equal: Tensor -> how many of its entries of just this size count as above it, the first ones; none of
            tensors that are not named.
    """

    bits: int
    equal: Mapping[str, int]

    def above(self, tensor: str, dtype: torch.dtype) -> Above:
        return Above(self.bits, self.equal.get(tensor, 0), dtype)


@dataclass(frozen=True)
class Ends:
    """What stays of a model.

    Args:
        inside: Above it entries stay,
        outliers: but not above this; None where none are too large.
    """

    inside: Threshold
    outliers: Threshold | None


@dataclass(frozen=True)
class Cuts:
    """Of all models.

    Args:
        dtype: Of the thresholds.
        ends: Number of a model -> what stays of it; None for all of it, and models that are not named for
            nothing.
    """

    dtype: torch.dtype
    ends: Mapping[int, Ends | None]

    def pruners(self, tensor: Merged) -> list[Pruner | None]:
        """For each part of a tensor."""
        assert tensor.values is not None
        match = bool(tensor.values.one("rescale"))
        return [self._pruner(tensor, part.model, match) for part in tensor.parts]

    def _pruner(self, tensor: Merged, model: int, match: bool) -> Pruner | None:
        if model not in self.ends:
            return None
        ends = self.ends[model]
        if ends is None:
            return All(tensor.spec.numbers)
        make = partial(_between, ends, tensor.spec.name, self.dtype)
        return NormMatched(make, BLOCK) if match else make()


def _between(ends: Ends, tensor: str, dtype: torch.dtype) -> Pruner:
    outliers = None if ends.outliers is None else ends.outliers.above(tensor, dtype)
    return Between(ends.inside.above(tensor, dtype), outliers)


def cuts_of(plan: MergePlan, folder: Path | None, progress: Progress = lambda *_: None) -> Cuts | None:
    """The thresholds of a plan; None where each tensor has its own.

    Args:
        folder: Of unfinished work: what was found there once is taken.
    """
    tensors = [one for one in plan.tensors if one.values is not None]
    if not any(one.values is not None and one_threshold(one.values) for one in tensors):
        return None
    return _Search(plan, tensors, progress).cuts(None if folder is None else folder / _FILE)


class _Search:
    def __init__(self, plan: MergePlan, tensors: list[Merged], progress: Progress) -> None:
        self._plan, self._tensors, self._progress = plan, tensors, progress
        wide = any(working_dtype(plan.inputs, one) == torch.float64 for one in tensors)
        self._dtype = torch.float64 if wide else torch.float32
        self._counts: dict[int, int] = {}
        self._shares: dict[int, tuple[float, float]] = {}
        for tensor in tensors:
            self._see(tensor)

    def _see(self, tensor: Merged) -> None:
        """How many entries the models have, and which of them stay: the same in all tensors."""
        assert tensor.values is not None
        densities = tensor.values.each("density")
        gammas = dict(tensor.values.of_models).get("gamma", (0.0,) * len(densities))
        for index, part in _others(tensor):
            self._counts[part] = self._counts.get(part, 0) + tensor.spec.numbers
            self._shares[part] = densities[index], gammas[index]

    def cuts(self, file: Path | None) -> Cuts:
        """What `file` holds, or what is found and written into it."""
        if file is not None and file.exists():
            return Cuts(self._dtype, _read(file))
        wanted = {model: self._wanted(model) for model in self._counts}
        whole = {model: None for model, (kept, _) in wanted.items() if kept == self._counts[model]}
        sought = {model: one for model, one in wanted.items() if one[0] and model not in whole}
        ends = {**whole, **(self._found(sought) if sought else {})}
        if file is not None:
            told = {str(model): None if one is None else asdict(one) for model, one in ends.items()}
            write_json_whole(file, told)
        return Cuts(self._dtype, ends)

    def _wanted(self, model: int) -> tuple[int, int]:
        """How many stay, and how many larger ones go."""
        count, (density, gamma) = self._counts[model], self._shares[model]
        kept = how_many(density, count)
        return kept, min(int(gamma * count), count - kept)

    def _found(self, sought: Mapping[int, tuple[int, int]]) -> dict[int, Ends]:
        inside = {model: Largest(kept + top, self._dtype) for model, (kept, top) in sought.items()}
        outliers = {model: Largest(top, self._dtype) for model, (_, top) in sought.items() if top}
        for number in range(passes(self._dtype)):
            for _, model, values in self._differences(number, sought.__contains__):
                inside[model].count(number, values)
                if model in outliers:
                    outliers[model].count(number, values)
        equal = _Equal([*inside.items(), *outliers.items()])
        for tensor, model, values in self._differences(passes(self._dtype), equal.lacks):
            equal.see(tensor, model, values)
        return {
            model: Ends(equal.threshold(one), equal.threshold(outliers[model]) if model in outliers else None)
            for model, one in inside.items()
        }

    def _differences(self, number: int, of: Callable[[int], bool]) -> Iterator[tuple[str, int, Tensor]]:
        """(tensor, model, values) of each chunk, in the order of the plan, of models for which `of` holds."""
        total = sum(one.spec.bytes for one in self._tensors)
        done = number * total
        for tensor in self._tensors:
            self._tell(tensor.spec.name, done, total)
            done += tensor.spec.bytes
            dtype = working_dtype(self._plan.inputs, tensor)
            chunks = Chunks(self._plan, tensor, hashed=False)
            if not any(of(model) for _, model in _others(tensor)):
                continue
            for chunk in chunks:
                base = chunk[tensor.base].to(dtype)
                for index, model in _others(tensor):
                    if of(model):
                        yield tensor.spec.name, model, (chunk[index].to(dtype) - base).to(self._dtype)
        self._tell("", done, total)

    def _tell(self, what: str, done: int, total: int) -> None:
        """Megabytes of the output, in each pass anew."""
        megabytes = max(1, (passes(self._dtype) + 1) * total // 10**6)
        self._progress(going(_STAGE, what), min(megabytes, done // 10**6), megabytes)


class _Equal:
    """Gives those entries that are as large as a threshold to tensors, in order.

    Args:
        searches: (model, the search for a threshold).
    """

    def __init__(self, searches: list[tuple[int, Largest]]) -> None:
        self._searches = searches
        self._left = {id(search): search.wanted for _, search in searches}
        self._equal: dict[int, dict[str, int]] = {id(search): {} for _, search in searches}

    def lacks(self, model: int) -> bool:
        """Whether some of a model are to be given yet."""
        return any(self._left[id(search)] for of, search in self._searches if of == model)

    def see(self, tensor: str, model: int, values: Tensor) -> None:
        for of, search in self._searches:
            if of != model or not self._left[id(search)]:
                continue
            given = min(self._left[id(search)], search.equal(values))
            self._left[id(search)] -= given
            if given:
                so_far = self._equal[id(search)]
                so_far[tensor] = so_far.get(tensor, 0) + given

    def threshold(self, search: Largest) -> Threshold:
        return Threshold(search.threshold, self._equal[id(search)])


def _others(tensor: Merged) -> list[tuple[int, int]]:
    """(index, model) of the parts that are not the base."""
    return [(index, part.model) for index, part in enumerate(tensor.parts) if index != tensor.base]


def _read(file: Path) -> dict[int, Ends | None]:
    told: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return {int(model): None if ends is None else _ends(**ends) for model, ends in told.items()}


def _ends(inside: dict[str, Any], outliers: dict[str, Any] | None) -> Ends:
    return Ends(Threshold(**inside), None if outliers is None else Threshold(**outliers))

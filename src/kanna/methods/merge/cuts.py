"""One threshold for several tensors of a model, which passes over all find before anything is merged.

The tensors are all of the model, or those of a layer.

Two passes count bit patterns, as for a single tensor; a third counts how often the threshold itself occurs in
which tensor, up to where enough are found: those of the first tensors stay.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kanna.checkpoint.whole import write_json_whole
from kanna.methods.merge.chunks import Chunks
from kanna.methods.merge.plan import Merged, MergePlan, working_dtype
from kanna.methods.merge.rules.counting import Above, Largest, how_many, passes
from kanna.methods.merge.rules.pruning import All, Between, NormMatched, Pruner
from kanna.methods.merge.rules.sums import BLOCK
from kanna.methods.merge.scopes import places, scope_of, several
from kanna.progress import Progress, going

_FILE, _STAGE = "thresholds.json", "thresholds"
# What has one threshold: a place, as `places` names it, and the number of a model.
Key = tuple[str, int]


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
        places: Tensor -> its place.
        ends: What stays of a place of a model; None for all of it, and those that are not named for nothing.
    """

    dtype: torch.dtype
    places: Mapping[str, str]
    ends: Mapping[Key, Ends | None]

    def pruners(self, tensor: Merged) -> list[Pruner | None]:
        """For each part of a tensor."""
        assert tensor.values is not None
        match = bool(tensor.values.one("rescale"))
        return [self._pruner(tensor, part.model, match) for part in tensor.parts]

    def _pruner(self, tensor: Merged, model: int, match: bool) -> Pruner | None:
        key = self.places[tensor.spec.name], model
        if key not in self.ends:
            return None
        ends = self.ends[key]
        if ends is None:
            return All(tensor.spec.numbers)
        make = partial(_between, ends, tensor.spec.name, self.dtype)
        return NormMatched(make, BLOCK) if match else make()


def _between(ends: Ends, tensor: str, dtype: torch.dtype) -> Pruner:
    outliers = None if ends.outliers is None else ends.outliers.above(tensor, dtype)
    return Between(ends.inside.above(tensor, dtype), outliers)


def cuts_of(
    plan: MergePlan,
    folder: Path | None,
    progress: Progress = lambda *_: None,
    names: Collection[str] | None = None,
) -> Cuts | None:
    """The thresholds of a plan; None where each tensor has its own.

    Args:
        folder: Of unfinished work: what was found there once is taken.
        names: Tensors that will be asked for; None for all.
    """
    tensors = [one for one in plan.tensors if one.values is not None]
    if not any(several(one.values) for one in tensors):
        return None
    search = _Search(plan, tensors, progress, names)
    return search.cuts(None if folder is None else folder / _FILE)


class _Search:
    def __init__(
        self, plan: MergePlan, tensors: list[Merged], progress: Progress, names: Collection[str] | None
    ) -> None:
        assert tensors[0].values is not None
        scope = scope_of(tensors[0].values)  # the same for all
        self._places = places(scope, plan.config, [one.spec.name for one in tensors])
        wanted = {self._places[name] for name in (self._places if names is None else names)}
        tensors = [one for one in tensors if self._places[one.spec.name] in wanted]
        self._plan, self._tensors, self._progress = plan, tensors, progress
        wide = any(working_dtype(plan.inputs, one) == torch.float64 for one in tensors)
        self._dtype = torch.float64 if wide else torch.float32
        self._counts: dict[Key, int] = {}
        self._shares: dict[Key, tuple[float, float]] = {}
        for tensor in tensors:
            self._see(tensor)

    def _see(self, tensor: Merged) -> None:
        """How many entries a place of a model has, and which of them stay: the same in all its tensors."""
        assert tensor.values is not None
        densities = tensor.values.each("density")
        gammas = dict(tensor.values.of_models).get("gamma", (0.0,) * len(densities))
        for index, model in _others(tensor):
            key = self._key(tensor, model)
            self._counts[key] = self._counts.get(key, 0) + tensor.spec.numbers
            self._shares[key] = densities[index], gammas[index]

    def _key(self, tensor: Merged, model: int) -> Key:
        return self._places[tensor.spec.name], model

    def cuts(self, file: Path | None) -> Cuts:
        """What `file` holds, or what is found and written into it."""
        if file is not None and file.exists():
            return Cuts(self._dtype, self._places, _read(file))
        wanted = {key: self._wanted(key) for key in self._counts}
        whole = {key: None for key, (kept, _) in wanted.items() if kept == self._counts[key]}
        sought = {key: one for key, one in wanted.items() if one[0] and key not in whole}
        ends = {**whole, **(self._found(sought) if sought else {})}
        if file is not None:
            write_json_whole(file, {"ends": [_told(key, one) for key, one in ends.items()]})
        return Cuts(self._dtype, self._places, ends)

    def _wanted(self, key: Key) -> tuple[int, int]:
        """How many stay, and how many larger ones go."""
        count, (density, gamma) = self._counts[key], self._shares[key]
        kept = how_many(density, count)
        return kept, min(int(gamma * count), count - kept)

    def _found(self, sought: Mapping[Key, tuple[int, int]]) -> dict[Key, Ends]:
        inside = {key: Largest(kept + top, self._dtype) for key, (kept, top) in sought.items()}
        outliers = {key: Largest(top, self._dtype) for key, (_, top) in sought.items() if top}
        for number in range(passes(self._dtype)):
            for _, key, values in self._differences(number, sought.__contains__):
                inside[key].count(number, values)
                if key in outliers:
                    outliers[key].count(number, values)
        equal = _Equal([*inside.items(), *outliers.items()])
        for tensor, key, values in self._differences(passes(self._dtype), equal.lacks):
            equal.see(tensor, key, values)
        return {
            key: Ends(equal.threshold(one), equal.threshold(outliers[key]) if key in outliers else None)
            for key, one in inside.items()
        }

    def _differences(self, number: int, of: Callable[[Key], bool]) -> Iterator[tuple[str, Key, Tensor]]:
        """(tensor, key, values) of each chunk, in the order of the plan, of keys for which `of` holds."""
        total = sum(one.spec.bytes for one in self._tensors)
        done = number * total
        for tensor in self._tensors:
            self._tell(tensor.spec.name, done, total)
            done += tensor.spec.bytes
            dtype = working_dtype(self._plan.inputs, tensor)
            chunks = Chunks(self._plan, tensor, hashed=False)
            if not any(of(self._key(tensor, model)) for _, model in _others(tensor)):
                continue
            for chunk in chunks:
                base = chunk[tensor.base].to(dtype)
                for index, model in _others(tensor):
                    if of(key := self._key(tensor, model)):
                        yield tensor.spec.name, key, (chunk[index].to(dtype) - base).to(self._dtype)
        self._tell("", done, total)

    def _tell(self, what: str, done: int, total: int) -> None:
        """Megabytes of the output, in each pass anew."""
        megabytes = max(1, (passes(self._dtype) + 1) * total // 10**6)
        self._progress(going(_STAGE, what), min(megabytes, done // 10**6), megabytes)


class _Equal:
    """Gives those entries that are as large as a threshold to tensors, in order.

    Args:
        searches: What each search for a threshold is of, and it.
    """

    def __init__(self, searches: list[tuple[Key, Largest]]) -> None:
        self._searches: dict[Key, list[Largest]] = {}
        for key, search in searches:
            self._searches.setdefault(key, []).append(search)
        self._left = {id(search): search.wanted for _, search in searches}
        self._equal: dict[int, dict[str, int]] = {id(search): {} for _, search in searches}

    def lacks(self, key: Key) -> bool:
        """Whether some are to be given yet."""
        return any(self._left[id(search)] for search in self._searches.get(key, ()))

    def see(self, tensor: str, key: Key, values: Tensor) -> None:
        for search in self._searches[key]:
            if not self._left[id(search)]:
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


def _told(key: Key, ends: Ends | None) -> dict[str, Any]:
    return {"place": key[0], "model": key[1], "ends": None if ends is None else asdict(ends)}


def _read(file: Path) -> dict[Key, Ends | None]:
    told: list[dict[str, Any]] = json.loads(file.read_text(encoding="utf-8"))["ends"]
    return {
        (one["place"], one["model"]): None if one["ends"] is None else _ends(**one["ends"]) for one in told
    }


def _ends(inside: dict[str, Any], outliers: dict[str, Any] | None) -> Ends:
    return Ends(Threshold(**inside), None if outliers is None else Threshold(**outliers))

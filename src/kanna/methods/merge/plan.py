"""What a merge will do, from headers alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from kanna.checkpoint.reader import Checkpoint
from kanna.checkpoint.safetensors_format import TensorSpec
from kanna.checkpoint.side_files import refuse_lost_modules, side_files
from kanna.errors import InputError
from kanna.methods.merge.adapted import plain
from kanna.methods.merge.chosen import Chosen, chosen, chosen_tokenizer
from kanna.methods.merge.composed import composed
from kanna.methods.merge.heads import at_the_ends, ends_of, said_of_ends
from kanna.methods.merge.inputs import Inputs, licences, opened
from kanna.methods.merge.kinds import check_kinds
from kanna.methods.merge.known import SCOPE
from kanna.methods.merge.layout import Part, Target, laid_out
from kanna.methods.merge.recipe import Recipe, dtype_named
from kanna.methods.merge.resolve import Values, check_gradients, resolved, warnings_of
from kanna.methods.merge.rows import Rows, with_rows
from kanna.methods.merge.rules.make import whole_rows, whole_tensors
from kanna.methods.merge.rules.sums import BLOCK
from kanna.methods.merge.scopes import check_scopes, scope_of
from kanna.methods.merge.token_rows import rows_of
from kanna.methods.merge.vocabulary import Tokenizer

DEFAULT_MEMORY = 2 * 10**9
# The program itself, with torch and transformers.
_PROGRAM = 10**9
_LARGEST_CHUNK = 2**22
_BLOCK = 8 * BLOCK
# Arrays of the length of a chunk, beside those of each model: results, masks, figures; bytes for a value.
_BESIDE = 64


@dataclass(frozen=True)
class Merged:
    """A tensor of the output.

    Args:
        spec: Name, dtype and shape.
        values: What the recipe says for it; None for one that is no number with a fraction, and is copied.
        parts: What it is made from.
        base: Index of the base model among the parts; -1 without one.
        rows: Where its rows come from, if they stand for tokens and are not those of the parts as they are.
    """

    spec: TensorSpec
    values: Values | None
    parts: tuple[Part, ...]
    base: int
    rows: Rows | None = None

    @property
    def origin(self) -> int:
        """Index of the part that says what merging changed."""
        return max(0, self.base)

    @property
    def row(self) -> int:
        """Values of a row; those of a tensor with one axis are one row."""
        return self.spec.shape[-1] if self.spec.shape else 1


@dataclass(frozen=True)
class Group:
    """Tensors that have the same values.

    Args:
        tensors: Their names.
        numbers: How many values they hold.
        values: None for copied ones.
        models: Numbers of the models that they are made from.
    """

    tensors: tuple[str, ...]
    numbers: int
    values: Values | None
    models: tuple[int, ...]


@dataclass(frozen=True)
class MergePlan:
    """A recipe, its models, and what becomes of every tensor.

    Args:
        recipe: As it was read.
        inputs: The models.
        tensors: Of the output, in the order of the first model's files.
        chunk: Values of a tensor that are in memory at once.
        memory: Bytes that are needed at most, about.
        config: What its config.json will say, but for the dtype.
        warnings: What a user should know.
        before: Plans of other documents, whose results this one takes.
        seed: Of what is drawn by chance.
        tokens: That it will have; None for those of all its models.
        tokenizer: That it gets; None for the first model's.
        disagreement: Of the models, from a sample of their weights; None where it was not looked at.
    """

    recipe: Recipe
    inputs: Inputs
    tensors: tuple[Merged, ...]
    chunk: int
    memory: int
    config: Mapping[str, Any]
    warnings: tuple[str, ...]
    before: tuple[MergePlan, ...] = ()
    seed: int = 0
    tokens: Chosen | None = None
    tokenizer: Tokenizer | None = None
    disagreement: Mapping[str, Any] | None = None

    def step(self, tensor: Merged) -> int:
        """Values of a chunk of one tensor; where rows must be whole, as many rows as a chunk holds."""
        if whole_tensors(self.recipe.method):
            return max(1, tensor.spec.numbers)
        if not _whole_rows(self.recipe, tensor):
            return self.chunk
        return max(1, self.chunk // max(1, tensor.row)) * max(1, tensor.row)

    def block(self, tensor: Merged) -> int:
        """Values of a chunk that are computed at once: few enough for their arrays to lie in the cache."""
        step = self.step(tensor)
        return min(step, _BLOCK) if step == self.chunk else step

    @property
    def chunk_bytes(self) -> int:
        """What is needed beside the program itself."""
        return self.memory - _PROGRAM

    @property
    def bytes_read(self) -> int:
        return sum(model.bytes for model in self.inputs.models)

    @property
    def numbers_read(self) -> int:
        """Values of all parts."""
        return sum(tensor.spec.numbers * len(tensor.parts) for tensor in self.tensors)

    @property
    def bytes_written(self) -> int:
        return sum(tensor.spec.bytes for tensor in self.tensors)

    @property
    def side_bytes(self) -> int:
        return side_files(self.inputs.lead.directory, plain(self.inputs.lead).files).bytes

    @property
    def seconds(self) -> float:
        """A rough guess, on one core: arithmetic, hashes, files."""
        return (
            self.numbers_read * self.recipe.rule.nanoseconds * 1e-9
            + (self.bytes_read + self.bytes_written) / 5e8
        )

    def groups(self) -> list[Group]:
        """Tensors by what holds for them."""
        found: dict[tuple[Values | None, tuple[int, ...]], list[Merged]] = {}
        for tensor in self.tensors:
            models = tuple(part.model for part in tensor.parts)
            found.setdefault((tensor.values, models), []).append(tensor)
        return [
            Group(
                tuple(one.spec.name for one in tensors),
                sum(one.spec.numbers for one in tensors),
                values,
                models,
            )
            for (values, models), tensors in found.items()
        ]

    def to_dict(self) -> dict[str, Any]:
        return {
            "schema_version": 1,
            "kind": "merge-plan",
            **({} if self.recipe.name is None else {"name": self.recipe.name}),
            "method": self.recipe.method,
            "inputs": [_input(model, licences([model]).get(model.name)) for model in self.inputs.models],
            "base": None if self.recipe.base is None else self.inputs.lead.name,
            "dtype": self.recipe.dtype,
            **({} if self.tokens is None else {"tokenizer": self.tokens.to_dict()}),
            **({"seed": self.seed} if self.recipe.rule.by_chance else {}),
            "groups": [self._group(group) for group in self.groups()],
            "bytes_read": self.bytes_read,
            "bytes_written": self.bytes_written,
            "memory_bytes": self.memory,
            "seconds": round(self.seconds, 1),
            "warnings": list(self.warnings),
            **({} if self.disagreement is None else {"disagreement": dict(self.disagreement)}),
            **({"before": [plan.to_dict() for plan in self.before]} if self.before else {}),
        }

    def _group(self, group: Group) -> dict[str, Any]:
        values = group.values
        names = [self.inputs.models[number].name for number in group.models]
        told: dict[str, Any] = {"tensors": list(group.tensors), "values": group.numbers, "models": names}
        if values is None:
            return {"method": "copied", **told}
        each = {name: list(given) for name, given in values.of_models}  # in the order of "models"
        all_: dict[str, Any] = dict(values.of_all)
        if all_.pop(SCOPE, 0):
            all_[SCOPE] = scope_of(values)
        return {"method": self.recipe.method, **told, "parameters": {**all_, **each}}


def planned(
    recipe: Recipe,
    out_dtype: str | None,
    max_memory: int,
    seed: int = 0,
    made: Mapping[str, Checkpoint] | None = None,
    inputs: Inputs | None = None,
) -> MergePlan:
    """What a recipe makes of its models. Reads headers, configurations and tokenizers.

    Args:
        out_dtype: In the place of the recipe's.
        max_memory: Bytes.
        seed: Of what is drawn by chance.
        made: Name of another document -> its result.
        inputs: The models, where they are open already, for a recipe of the same models.

    Raises:
        InputError: Whatever is wrong with models or parameters, or too little memory.
    """
    inputs = opened(recipe, made or {}) if inputs is None else inputs
    refuse_lost_modules(inputs.lead.directory)
    tokens = chosen(recipe, inputs)
    dtype = dtype_named(out_dtype) if out_dtype is not None else recipe.dtype
    ends = ends_of(recipe, inputs, tokens is not None)
    of_tokens = frozenset() if ends is None else ends.tensors.rows
    layout = laid_out(recipe, inputs, of_tokens, None if ends is None else ends.heads)
    if not layout.layered:
        check_gradients(recipe)
    floating = [one for one in layout.targets if _dtype(inputs, one.parts[0]).is_floating_point]
    values = resolved(recipe, floating)
    config = composed(inputs, layout.stacks)
    check_scopes(recipe, [(one, values[one.name]) for one in floating], config, layout.layered)
    tensors = tuple(
        _merged(inputs, one, dtype, values.get(one.name), rows_of(recipe, inputs, ends, tokens, one))
        for one in layout.targets
    )
    whole = whole_tensors(recipe.method)
    rows = [
        tensor.spec.numbers if whole else tensor.row
        for tensor in tensors
        if whole or _whole_rows(recipe, tensor)
    ]
    chunk, memory = _chunk(inputs, tensors, max(rows, default=1), max_memory)
    tokenizer, notes = chosen_tokenizer(recipe, inputs, tokens)
    embedding = next((one.rows for one in tensors if ends and one.spec.name == ends.tensors.embedding), None)
    told = said_of_ends(inputs, ends, tokens, embedding)
    warnings = (
        *recipe.warnings,
        *inputs.warnings,
        *told,
        *notes,
        *_licence_warning(inputs),
        *warnings_of(recipe),
    )
    config = at_the_ends(config, ends, tokens)
    check_kinds(inputs, layout.stacks, config, [tensor.spec.name for tensor in tensors])
    return MergePlan(recipe, inputs, tensors, chunk, memory, config, warnings, (), seed, tokens, tokenizer)


def working_dtype(inputs: Inputs, tensor: Merged) -> torch.dtype:
    """In which a tensor is computed: float32, or float64 where an input is."""
    wide = any(_dtype(inputs, part) == torch.float64 for part in tensor.parts)
    return torch.float64 if wide else torch.float32


def _dtype(inputs: Inputs, part: Part) -> torch.dtype:
    return inputs.models[part.model].dtype(part.tensor)


def _merged(
    inputs: Inputs, target: Target, dtype: str | None, values: Values | None, rows: Rows | None
) -> Merged:
    spec = _spec(inputs, target, dtype)
    if rows is not None:
        spec = replace(spec, shape=with_rows(spec.shape, len(rows.own[0])))
    return Merged(spec, values, target.parts, target.slice.base_index, rows)


def _spec(inputs: Inputs, target: Target, dtype: str | None) -> TensorSpec:
    first = target.parts[0]
    shape, stored = inputs.models[first.model].shape(first.tensor), _dtype(inputs, first)
    if not stored.is_floating_point:
        return TensorSpec(target.name, stored, shape)
    if dtype is not None:
        named: torch.dtype = getattr(torch, dtype)
        return TensorSpec(target.name, named, shape)
    for part in target.parts:
        stored = torch.promote_types(stored, _dtype(inputs, part))
    return TensorSpec(target.name, stored, shape)


def _whole_rows(recipe: Recipe, tensor: Merged) -> bool:
    return tensor.values is not None and whole_rows(recipe.method, tensor.values)


def _chunk(inputs: Inputs, tensors: tuple[Merged, ...], row: int, max_memory: int) -> tuple[int, int]:
    """Values of a chunk, and the memory that it takes with the program itself.

    Args:
        row: The longest of those that must be whole.
    """
    wide = any(stored.dtype == "F64" for model in inputs.models for stored in model.tensors.values())
    most = max((len(tensor.parts) for tensor in tensors), default=1)
    longest = max((tensor.spec.numbers for tensor in tensors), default=1)
    # What takes tensors whole decomposes them, in float64.
    a_value = (16 if wide or row >= longest else 8) * most + _BESIDE
    least = -(-row // BLOCK) * BLOCK
    useful = max(least, min(_LARGEST_CHUNK, -(-longest // BLOCK) * BLOCK))
    chunk = min(useful, (max_memory - _PROGRAM) // a_value // BLOCK * BLOCK)
    if chunk < least:
        raise InputError(
            f"{max_memory / 1e9:.2f} GB of memory are too little for {most} models",
            f"give at least {(_PROGRAM + a_value * least) / 1e9 + 0.01:.2f}G",
        )
    return chunk, _PROGRAM + a_value * chunk


def _licence_warning(inputs: Inputs) -> tuple[str, ...]:
    found = licences(inputs.models)
    if len(set(found.values())) < 2:
        return ()
    named = ", ".join(f"{name}: {licence}" for name, licence in found.items())
    return (f"the models have different licences ({named}): see which of them let you share a merge",)


def _input(model: Any, licence: str | None) -> dict[str, Any]:
    dtypes = sorted({stored.dtype for stored in model.tensors.values()})
    return {
        "name": model.name,
        "bytes": model.bytes,
        "files": len(model.files),
        "dtypes": dtypes,
        "vocabulary": _vocabulary(model.config),
        "licence": licence,
    }


def _vocabulary(config: Mapping[str, Any]) -> int | None:
    found = config.get("vocab_size")
    return found if isinstance(found, int) else None

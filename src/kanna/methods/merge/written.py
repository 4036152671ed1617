"""What a merge gets beside its weights: configuration, tokenizer, result file, recipe, card, lineage."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from kanna.checked import tagged_floats
from kanna.checkpoint import card, lineage
from kanna.checkpoint.reader import Checkpoint
from kanna.checkpoint.side_files import copy_side_files
from kanna.checkpoint.writer import write_json
from kanna.errors import InputError
from kanna.methods.merge.adapted import Adapted, plain
from kanna.methods.merge.inputs import licences
from kanna.methods.merge.plan import MergePlan
from kanna.methods.merge.portable import portable
from kanna.methods.merge.results import RESULT
from kanna.methods.merge.shards import Shards, digest_of
from kanna.methods.merge.token_ids import GENERATION, generation_of
from kanna.methods.merge.vocabulary import write_tokenizer

if TYPE_CHECKING:
    from kanna.methods.merge.judged import Judged
    from kanna.runs.probe import Verdict

RECIPE = "recipe.yaml"
Judge = Callable[[Path], "tuple[Judged, ...]"]
_DTYPE_KEYS = ("dtype", "torch_dtype")
_UNASKED = "not loaded, as was asked for; kanna merge verify DIR loads it"
# Bytes for a parameter of a model that is loaded in float32 and run.
_LOADED = 5


@dataclass(frozen=True)
class Done:
    """What is known of a merge when its directory is whole; see `run.MergeResult`."""

    figures: Mapping[str, Any]
    verdict: Verdict | None
    note: str
    judged: tuple[Judged, ...] = ()


def complete(
    plan: MergePlan,
    shards: Shards,
    directory: Path,
    title: str,
    max_memory: int,
    loads: bool = True,
    more: Mapping[str, Any] | None = None,
    judge: Judge | None = None,
) -> Done:
    """Write all but the weights, which are there, and look whether the model loads, if that is wanted.

    Args:
        more: What the result file tells besides.
        judge: Compares the model in a directory with others; not asked where it does not load.
    """
    lead = plan.inputs.lead
    left_out = beside_weights(plan, directory)
    hashes = [
        _hash(model, digests, plan.chunk)
        for model, digests in zip(plan.inputs.models, shards.digests, strict=True)
    ]
    figures = _figures(plan, shards)
    result = {**_result(plan, figures, hashes), **(more or {})}
    write_json(directory / RESULT, result)
    parameters = sum(tensor.spec.numbers for tensor in plan.tensors)
    verdict, note = probed(directory, parameters, max_memory) if loads else (None, _UNASKED)
    broken = verdict is not None and not verdict.passed
    judged = () if judge is None or broken else judge(directory)
    if judged:
        write_json(directory / RESULT, {**result, "tasks": [one.summary() for one in judged]})
    recipe = portable(plan)
    documents = [*map(portable, plan.before), recipe]
    text = yaml.safe_dump_all(documents, sort_keys=False, allow_unicode=True)
    (directory / RECIPE).write_text(text, encoding="utf-8", newline="\n")
    card.write(directory, _card(plan, figures, title, judged))
    step = lineage.Step(
        method="merge",
        config={"recipe": recipe, "dtype": _dtype(plan)},
        versions=lineage.versions(),
        scores={
            "model_bytes_before": lead.bytes,
            "model_bytes_after": plan.bytes_written,
            **figures,
            "left_out": list(left_out),
            "verdict": None if verdict is None else verdict.to_dict(),
        },
        inputs=_of_lineage(plan.inputs.models, hashes),
    )
    known = lineage.read(lead.directory)
    own = lineage.Base(name=plain(lead).name, hash=hashes[plan.inputs.first])
    base, before = (own, ()) if known is None else (known.base, known.steps)
    digests = {path.name: digest for path, digest in shards.files.items()}
    lineage.write(directory, base, (*before, step), digests)
    return Done(figures, verdict, note, judged)


def beside_weights(plan: MergePlan, directory: Path) -> tuple[str, ...]:
    """Write configuration, tokenizer and the other files of the first model; names of those left out."""
    write_json(directory / "config.json", tagged_floats(_config(plan)))
    lead = plan.inputs.lead
    left_out = copy_side_files(lead.directory, directory, plain(lead).files).left_out
    if plan.tokenizer is not None:
        write_tokenizer(plan.tokenizer, directory)
    if plan.tokens is not None and plan.tokens.ids is not None and (said := generation_of(lead.directory)):
        write_json(directory / GENERATION, plan.tokens.ids.in_generation(said))
    return tuple(left_out)


def _names(model: Checkpoint) -> tuple[str, ...]:
    """A model and its adapter."""
    return (model.base.name, model.adapter.name) if isinstance(model, Adapted) else (model.name,)


def _hash(model: Checkpoint, digests: Mapping[str, str], chunk: int) -> str:
    """`base_hash` of a model, without its adapter; tensors that this replaces were not read."""
    base = plain(model)
    replaced = model.added.replaced if isinstance(model, Adapted) else {}
    own = {name: digest_of(base, name, chunk) for name in replaced if name in base.tensors}
    return lineage.hash_of(base, {**digests, **own})


def _of_lineage(models: Iterable[Checkpoint], hashes: Iterable[str]) -> tuple[lineage.Input, ...]:
    """Models and their adapters, each once."""
    told = []
    for model, digest in zip(models, hashes, strict=True):
        told.append((plain(model).name, digest))
        if isinstance(model, Adapted):
            told.append((model.adapter.name, model.adapter.hash()))
    return tuple(lineage.Input(name=name, hash=digest) for name, digest in dict.fromkeys(told))


def probed(directory: Path, parameters: int, max_memory: int) -> tuple[Verdict | None, str]:
    """Whether a model loads and computes finite numbers; else why that was not tried."""
    if _LOADED * parameters > max_memory:
        return None, "not loaded: too large for --max-memory; kanna merge verify DIR loads it"
    # With what loads a model, which takes seconds to be imported.
    from kanna.models.inventory import inventory
    from kanna.models.skeleton import skeleton
    from kanna.runs.probe import Verdict, verify_output

    try:
        built = skeleton(directory)
    except InputError as error:
        return None, f"not loaded: transformers does not know the model ({error.problem})"
    try:
        known = inventory(built)
    except InputError:  # what is merged by names may have no blocks with linear layers
        known = None
    try:
        return verify_output(directory, known, None, parameters)[0], ""
    except InputError as error:
        problem = error.problem.replace(f"{directory}/", "").replace(str(directory), "the merge")
        return Verdict(False, None, None, problem), ""  # which is recorded, so it names no place


def _config(plan: MergePlan) -> dict[str, Any]:
    config = {**plan.config}
    if not any(key in config for key in _DTYPE_KEYS):
        config["dtype"] = ""
    named = _with_dtype(config, _dtype(plan))
    assert isinstance(named, dict)
    return named


def _with_dtype(value: Any, dtype: str) -> Any:
    """A configuration, and those in it, with that dtype wherever one is named."""
    if not isinstance(value, Mapping):
        return value
    return {
        key: dtype if key in _DTYPE_KEYS and isinstance(item, str) else _with_dtype(item, dtype)
        for key, item in value.items()
    }


def _dtype(plan: MergePlan) -> str:
    """Of most of what is merged."""
    numbers: dict[str, int] = {}
    for tensor in plan.tensors:
        if tensor.values is not None:
            name = str(tensor.spec.dtype).removeprefix("torch.")
            numbers[name] = numbers.get(name, 0) + tensor.spec.numbers
    return max(numbers, key=lambda name: numbers[name])


def _figures(plan: MergePlan, shards: Shards) -> dict[str, Any]:
    found = shards.figures
    loss = (found.lost / found.moved) ** 0.5 if found.moved else None
    merged = sum(tensor.values is not None for tensor in plan.tensors)
    return {
        "tensors_merged": merged,
        "tensors_copied": len(plan.tensors) - merged,
        "kept_share": found.kept / found.differences if found.differences else None,
        "rounding_loss": None if loss is None else float(f"{loss:.6g}"),
    }


def _result(plan: MergePlan, figures: Mapping[str, Any], hashes: list[str]) -> dict[str, Any]:
    told = plan.to_dict()
    inputs = [{**one, "hash": digest} for one, digest in zip(told["inputs"], hashes, strict=True)]
    kept = ("schema_version", "method", "base", "groups", "bytes_read", "bytes_written", "warnings")
    return {
        **{key: told[key] for key in kept},
        **{key: told[key] for key in ("seed", "tokenizer", "disagreement") if key in told},
        "kind": "merge",
        "dtype": _dtype(plan),
        "inputs": inputs,
        "figures": dict(figures),
    }


def _card(
    plan: MergePlan, figures: Mapping[str, Any], title: str, judged: tuple[Judged, ...] = ()
) -> card.Card:
    models = plan.inputs.models
    found = licences(models)
    rows = [(model.name, found.get(model.name, "not said")) for model in models]
    told = [
        ("method", plan.recipe.method),
        *((key.replace("_", " "), value) for key, value in figures.items()),
    ]
    notes = [card.Table("To know", ("note",), [(warning,) for warning in plan.warnings])]
    return card.Card(
        title=title,
        base_model=_origins(plan),
        summary=f"{len(models)} models merged by {plan.recipe.method}; `recipe.yaml` says how.",
        tables=[
            card.Table("What it is", ("what", "value"), [row for row in told if row[1] is not None]),
            card.Table("Models", ("model", "licence"), rows),
            *_compared(judged),
            *(notes if plan.warnings else []),
        ],
        tags=("merge", plan.recipe.method.replace("_", "-")),
        needs_kanna=False,
        relation="merge",
        licence=_licence(found),
        source=plan.inputs.lead.directory,
    )


def _compared(judged: tuple[Judged, ...]) -> list[card.Table]:
    """Tables of a model card."""
    if not judged:
        return []
    from kanna.runs.compare import comparison_rows  # with all that scores models

    pairs = [(one.expert, "which knows the task") for one in judged]
    pairs += [(one.base, "the base") for one in judged if one.base is not None]
    return [
        card.Table(f"Beside {found.base.model}, {what}", *comparison_rows(found)) for found, what in pairs
    ]


def _origins(plan: MergePlan) -> tuple[str, ...]:
    """The models that are no results of other documents."""
    documents = {one.recipe.name for one in plan.before}
    given = [
        part
        for one in (*plan.before, plan)
        for name, model in zip(one.recipe.models, one.inputs.models, strict=True)
        for part in _names(model)
        if part not in documents and name not in documents
    ]
    return tuple(dict.fromkeys(given))


def _licence(found: Mapping[str, str]) -> dict[str, str] | None:
    """Front matter where the models' licences differ, which no single licence stands for."""
    if len(set(found.values())) < 2:
        return None
    return {"license": "other", "license_name": "those-of-the-merged-models"}

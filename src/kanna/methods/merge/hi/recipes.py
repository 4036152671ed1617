"""A state as a recipe in mergekit's YAML: weight and density of each expert, by block where they differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kanna.methods.merge.hi.blocks import Block
from kanna.methods.merge.hi.state import State, Treatment

NO_ELECTION, BY_TIES = "none", "ties"
# Digits that halves and thirds are written with.
_DIGITS = 12


def recipe_of(
    state: State,
    base: str,
    experts: Sequence[str],
    blocks: Sequence[Block],
    *,
    consensus: str = NO_ELECTION,
    scope: str = "tensor",
    dtype: str | None = None,
    all_listed: bool = False,
) -> dict[str, Any]:
    """What `kanna merge run` makes the state of.

    Args:
        experts: As recipes name them, in the order of the state's treatments.
        consensus: Whether entries are summed as they are, or those of the elected sign.
        all_listed: Whether experts stand there that are nowhere in the state.
    """
    there = [index for index in range(len(experts)) if any(_is_there(row[index]) for row in state.rows)]
    pruned = any(row[index].kept != 1 for row in state.rows for index in there if row[index].scale)
    method = "ties" if consensus == BY_TIES else "breadcrumbs" if pruned else "task_arithmetic"
    shared: dict[str, Any] = {} if method == "task_arithmetic" else {"normalize": False}
    if method == "breadcrumbs":
        shared |= {"gamma": 0.0}
    if scope != "tensor" and pruned:
        shared |= {"scope": scope}
    if state.share != 1:
        shared |= {"lambda": round(state.share, _DIGITS)}
    models = [
        {"model": experts[index], "parameters": _parameters(state, index, blocks, method, scope)}
        for index in (range(len(experts)) if all_listed or not there else there)
    ]
    made: dict[str, Any] = {"merge_method": method, "base_model": base, "models": models}
    if shared:
        made["parameters"] = shared
    return made if dtype is None else {**made, "out_dtype": dtype}


def _parameters(
    state: State, expert: int, blocks: Sequence[Block], method: str, scope: str
) -> dict[str, Any]:
    treatments = [row[expert] for row in state.rows]
    found: dict[str, Any] = {"weight": _by_block([one.scale for one in treatments], blocks)}
    if method != "task_arithmetic":
        # What has no weight may as well keep all: one density then holds for more blocks.
        usual = next((one.kept for one in treatments if one.scale), 1.0)
        kept = [one.kept if one.scale else usual for one in treatments]
        found["density"] = _by_block(kept, blocks)
    return found


def _is_there(one: Treatment) -> bool:
    return bool(one.scale and one.kept)


def _by_block(values: Sequence[float], blocks: Sequence[Block]) -> Any:
    """One value, or a list of filters, the last of which is for all else."""
    told = [round(value, _DIGITS) for value in values]
    if len(set(told)) == 1:
        return told[0]
    rest = next((told[index] for index, block in enumerate(blocks) if not block.filters), 0.0)
    entries: list[Mapping[str, Any]] = [
        {"filter": part, "value": value}
        for value, block in zip(told, blocks, strict=True)
        if value != rest
        for part in block.filters
    ]
    return [*entries, {"value": rest}]

"""What adapters save whole, merged as it is: norms, heads and embeddings, of which there are no factors."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from kanna.checkpoint.reader import Checkpoint
from kanna.methods.merge.adapted import Adapted, plain
from kanna.methods.merge.adapter import is_beside_factors, path_in_model
from kanna.methods.merge.heads import ties
from kanna.methods.merge.layers import layers_of
from kanna.methods.merge.plan import Merged, MergePlan
from kanna.methods.merge.streaming import Stream
from kanna.methods.merge.token_tensors import token_tensors

_BIAS = "bias"


def replaced_by(model: Adapted) -> dict[str, str]:
    """Tensors that an adapter has in the place of the base's -> their names in its file.

    Weights of embeddings that PEFT saves beside their factors, and that are the base's, are not among them.
    """
    return {
        name: key
        for name, key in model.added.replaced.items()
        if not (is_beside_factors(key) and _same(model.base, name, model.adapter.read(key)))
    }


def _same(base: Checkpoint, name: str, values: Tensor) -> bool:
    return torch.equal(base.tensor(name).double(), values)


@dataclass
class Saved:
    """Modules of the merged adapter that are saved whole.

    Args:
        modules: Path of a module -> its tensors by their names in it.
        biases: Path of a layer that has factors, too -> its bias.
    """

    modules: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    biases: dict[str, Tensor] = field(default_factory=dict)


def saved_whole(plan: MergePlan, models: Mapping[int, Adapted], tensors: Collection[Merged]) -> Saved:
    """Merge tensors that some adapter saves whole, by the method of the recipe.

    Args:
        models: By their number.
        tensors: Those that are to be merged so.
    """
    found = Saved()
    modules: dict[str, str] = {}
    for tensor in tensors:
        key = _key(models, tensor)
        path = tensor.spec.name if key is None else path_in_model(key)
        module, _, name = path.rpartition(".")
        modules[tensor.spec.name] = module
        values = _merged(plan, tensor)
        if key is not None and is_beside_factors(key) and name == _BIAS:
            found.biases[module] = values
        else:
            found.modules.setdefault(module, {})[name] = values
    embedding, head = _tied(plan)
    if embedding in modules:  # PEFT ties nothing by itself
        found.modules[head] = found.modules[modules[embedding]]
    return found


def _key(models: Mapping[int, Adapted], tensor: Merged) -> str | None:
    """Its name in the file of an adapter that saves it whole; None where none has it by its own name."""
    name = tensor.spec.name
    there = [models[part.model] for part in tensor.parts if part.model in models and part.tensor == name]
    return next((model.added.replaced[name] for model in there if name in model.added.replaced), None)


def _merged(plan: MergePlan, tensor: Merged) -> Tensor:
    pieces = list(Stream(plan, tensor, None, hashed=False).pieces())
    return torch.cat(pieces).reshape(tensor.spec.shape)


def _tied(plan: MergePlan) -> tuple[str, str]:
    """The embedding, and the path of the head that is the same tensor; empty where there is none."""
    base = plain(plan.inputs.lead)
    known = token_tensors(base, layers_of(base.config, base.tensors)) if ties(base) else None
    every = {tensor.spec.name for tensor in plan.tensors}
    if known is None or known.embedding is None or known.parameter is None or known.parameter in every:
        return "", ""
    return known.embedding, known.parameter.rpartition(".")[0]

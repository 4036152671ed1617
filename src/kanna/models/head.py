"""The output head as a matrix, for whoever asks for it by name.

It is no part of a block, and often the embeddings once more, so an inventory does not list it, and `all` does
not mean it.
"""

from collections.abc import Collection
from dataclasses import replace

from torch import nn

from kanna.errors import InputError
from kanna.models.inventory import Inventory
from kanna.models.matrix import Matrix, View
from kanna.models.selection import parse

HEAD = "lm_head"
_WITHOUT = f"leave {HEAD} out of --select"


def with_head(listed: Inventory, model: nn.Module, expression: str) -> Inventory:
    """The inventory, with the output head where a selection names it.

    It counts as of the last block, so that layers counted from the end stay what they are.

    Args:
        model: Whose inventory it is.

    Raises:
        InputError: It is asked for, and the model has none of its own.
    """
    if not _names_head(expression):
        return listed
    path, head = _found(model)
    if type(head) is not nn.Linear or path is None:
        raise InputError(f"{listed.architecture} has no output head that is a linear layer", _WITHOUT)
    names = [name for name, p in model.named_parameters(remove_duplicate=False) if p is head.weight]
    if len(names) > 1:
        other = next(name for name in names if name != f"{path}.weight")
        raise InputError(f"the output head {path} is {other} once more, which is never factorised", _WITHOUT)
    skipped = tuple(one for one in listed.skipped if one.name != f"{path}.weight")
    return replace(listed, matrices=(*listed.matrices, _matrix(listed, path, head)), skipped=skipped)


def with_factored_head(
    listed: Inventory, model: nn.Module, expression: str, factors: Collection[str]
) -> Inventory:
    """The same where the head is stored as factors, whatever is selected.

    Args:
        factors: Paths of the modules that are factors.
    """
    return with_head(listed, model, HEAD if _found(model)[0] in factors else expression)


def _found(model: nn.Module) -> tuple[str | None, object]:
    """Path of the output head, and the module."""
    try:
        head = getattr(model, "get_output_embeddings", lambda: None)()
    except NotImplementedError:  # a class without a head
        return None, None
    return next((path for path, module in model.named_modules() if module is head), None), head


def _names_head(expression: str) -> bool:
    text = expression.strip()
    return not text.startswith("re:") and any(HEAD in group.roles for group in parse(text))


def _matrix(listed: Inventory, path: str, head: nn.Linear) -> Matrix:
    return Matrix(
        name=path,
        module=path,
        parameter="weight",
        layer=len(listed.blocks) - 1,
        role=HEAD,
        out_features=head.out_features,
        in_features=head.in_features,
        view=View(),
        has_bias=head.bias is not None,
    )

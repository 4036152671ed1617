"""Which name a parameter has in the files.

A checkpoint saved from the base model lacks the prefix that a model with a head puts before it, and the other
way round: ``h.0.attn.c_attn.weight`` is ``transformer.h.0.attn.c_attn.weight`` in GPT2LMHeadModel.
"""

from collections.abc import Collection, Iterable


def tensor_name(name: str, available: Collection[str], base_model_prefix: str) -> str | None:
    """The name in `available` of the parameter or module `name`, or None where it is absent.

    Args:
        name: Path in the class of ``architectures[0]``.
        available: Names that exist, such as those of the tensors in the files.
        base_model_prefix: The class's ``base_model_prefix``, without a dot; may be empty.
    """
    return next((alias for alias in aliases(name, base_model_prefix) if alias in available), None)


def tensor_names(names: Iterable[str], available: Iterable[str], base_model_prefix: str) -> dict[str, str]:
    """Map each of `names` to its name in `available`; those that are absent are left out."""
    present = frozenset(available)
    pairs = ((name, tensor_name(name, present, base_model_prefix)) for name in names)
    return {name: known for name, known in pairs if known is not None}


def aliases(name: str, prefix: str) -> tuple[str, ...]:
    """The name itself, then without or with the prefix of the base model."""
    if not prefix:
        return (name,)
    dotted = f"{prefix}."
    return (name, name.removeprefix(dotted) if name.startswith(dotted) else dotted + name)

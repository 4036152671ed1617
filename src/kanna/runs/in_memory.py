"""A model that a program has loaded, evaluated as it is."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

from torch import nn

from kanna.configuration import DType
from kanna.errors import InputError
from kanna.progress import Progress
from kanna.result import replace
from kanna.tasks.data.task import Task
from kanna.tasks.evaluate import Loaded, prepare
from kanna.tasks.options import EvalOptions
from kanna.tasks.records import Evaluation


def evaluate_loaded(
    model: nn.Module,
    tokenizer: Any,
    tasks: Sequence[str | Path],
    options: EvalOptions,
    texts: Sequence[str | Path],
    read: Sequence[Task] | None,
    progress: Progress,
) -> Evaluation:
    """Score a model where it is and in its own dtype; it is left as it was. Nothing is kept.

    Args:
        tokenizer: Of the model.
        texts: Files of `tasks` that are to be read as plain text.
        read: The tasks, where they have been read.

    Raises:
        InputError: No model of transformers, no tokenizer, or what `prepare` refuses.
    """
    if not callable(tokenizer):
        raise InputError(
            f"a loaded model needs its tokenizer, found {type(tokenizer).__name__}",
            'give both: kanna.evaluate(kanna.load("DIR"), ...) or evaluate(model, ..., tokenizer=tokenizer)',
        )
    plan = prepare(
        _described(model), tasks, _computing(model, options), texts, read=read, tokenizer=tokenizer
    )
    with _evaluating(model):
        return plan.evaluate(model, progress)


def _described(model: nn.Module) -> Loaded:
    config: Any = getattr(model, "config", None)
    if not hasattr(config, "to_dict"):
        raise InputError(
            f"{type(model).__name__} is no model of transformers",
            "give a directory, or what kanna.load gives",
        )
    settings: Mapping[str, Any] = {**config.to_dict(), "architectures": [type(model).__name__]}
    name = Path(str(getattr(config, "_name_or_path", ""))).name or type(model).__name__
    return Loaded(name, settings, sum(p.numel() * p.element_size() for p in model.parameters()))


def _computing(model: nn.Module, options: EvalOptions) -> EvalOptions:
    """The options as the model computes, wherever it is."""
    first = next(model.parameters())
    dtype = str(first.dtype).removeprefix("torch.")
    known = {"dtype": dtype} if dtype in get_args(DType) else {}
    return replace(options, device=str(first.device), **known)


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """The model does not learn until the block ends."""
    learning = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in learning:
            module.training = True

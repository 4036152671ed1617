"""The check of an export: what its loader computes is what kanna computes."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kanna.calibration.windows import random_windows
from kanna.checkpoint.loader import load_weights, tokenizer_of
from kanna.errors import InputError
from kanna.methods.export.formats.loaders import logits_of
from kanna.methods.export.formats.target import Logits, NotInstalled, Target
from kanna.methods.export.held import Held
from kanna.runs.source import Source
from kanna.tasks.tokens.tokenizer import context_length, predicts_next_token

# Of the largest logit: scales in float16 move it by less.
TOLERANCE = 5e-3
_LENGTH = 32
_PROMPT, _WRITTEN = "Once upon a time", 16


@dataclass(frozen=True)
class Check:
    """What reloading an export showed.

    Args:
        checked: Whether it could be reloaded at all.
        passed: None where it was not checked.
        loader: Who read it back.
        difference: Largest difference of a logit from kanna's, relative to kanna's largest one.
        continued: Tokens of one prompt's greedy continuation that are kanna's, of how many; None where the
            model does not continue text.
        reason: Why it was not checked, or did not pass.
    """

    checked: bool
    passed: bool | None
    loader: str
    difference: float | None = None
    continued: tuple[int, int] | None = None
    reason: str = ""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def line(self) -> str:
        """For people."""
        if not self.checked:
            return f"not checked: {self.reason}"
        alike = self.continued
        if self.difference is None:
            return f"check FAILED: {self.reason}"
        same = "" if alike is None else f", {alike[0]} of {alike[1]} tokens continued alike"
        found = f"reloaded by {self.loader}: logits within {self.difference:.1e} of kanna's{same}"
        return found if self.passed else f"check FAILED: {self.reason} ({found})"


def check(directory: Path, target: Target, source: Source, layers: Sequence[Held]) -> Check:
    """Reload an export and compare it with kanna's own model, in float32."""
    try:
        theirs = target.reader(directory, source, layers)
    except NotInstalled as missing:
        return Check(False, None, target.loader, reason=str(missing))
    except (Exception, SystemExit) as error:  # whatever a loader of others does, the file is not read there
        return Check(True, False, target.loader, reason=f"{target.loader} does not load it: {_short(error)}")
    ours = logits_of(load_weights(source.checkpoint, torch.float32, None, source.opened.scales))
    try:
        return _compared(ours, _runs(theirs, target.loader), target.loader, source)
    except _DoesNotRun as failed:
        return Check(True, False, target.loader, reason=str(failed))


class _DoesNotRun(Exception):
    """The loader took the file, and its model cannot be run."""


def _runs(theirs: Logits, loader: str) -> Logits:
    """The same, with whatever goes wrong in it told apart from what goes wrong here."""

    def logits(ids: Tensor) -> Tensor:
        try:
            return theirs(ids)
        except (Exception, SystemExit) as error:
            raise _DoesNotRun(f"{loader} loads it and does not run it: {_short(error)}") from error

    return logits


def _compared(ours: Logits, theirs: Logits, loader: str, source: Source) -> Check:
    ids = _window(source)
    expected, found = ours(ids), theirs(ids)
    if expected.shape != found.shape:
        shapes = f"{list(found.shape)} and not of {list(expected.shape)}"
        raise _DoesNotRun(f"{loader} gives logits of the shape {shapes}")
    largest = float(expected.abs().max())
    difference = float((found - expected).abs().max()) / max(largest, 1e-30)
    config = dict(source.checkpoint.config)
    continued, far = None, False
    if predicts_next_token(config):
        continued, far = _continued(ours, theirs, _prompt(source), TOLERANCE)
    reason = "" if difference <= TOLERANCE else f"a logit differs by more than {TOLERANCE:.0e} of the largest"
    if not reason and far:
        reason = "another continuation was written"
    return Check(True, not reason, loader, difference, continued, reason)


def _continued(
    ours: Logits, theirs: Logits, prompt: Tensor, tolerance: float
) -> tuple[tuple[int, int], bool]:
    """How many tokens are alike before the first that is not, and whether that one was no near tie."""
    ids = prompt
    for done in range(_WRITTEN):
        mine, other = ours(ids)[0, -1], theirs(ids)[0, -1]
        token, their = int(mine.argmax()), int(other.argmax())
        if token != their:
            gap = float(mine[token] - mine[their])
            return (done, _WRITTEN), gap > 2 * tolerance * float(mine.abs().max())
        ids = torch.cat([ids, torch.tensor([[token]])], 1)
    return (_WRITTEN, _WRITTEN), False


def _short(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]


def _window(source: Source) -> Tensor:
    config = source.skeleton.config
    vocabulary = int(getattr(config.get_text_config(), "vocab_size", 2))  # type: ignore[union-attr,operator]
    length = min(_LENGTH, context_length(dict(source.checkpoint.config), None, None))
    return random_windows(vocabulary, length, 0).ids


def _prompt(source: Source) -> Tensor:
    """A few words, or what a model without a tokenizer is given."""
    try:
        tokenizer: Any = tokenizer_of(source.directory)
    except InputError:
        tokenizer = None
    written = [] if tokenizer is None else tokenizer(_PROMPT)["input_ids"]
    return torch.tensor([written]) if written else _window(source)[:, :8]

"""Which matrices are reduced to what: (tau, l, rho) of the paper, and what else a rank can be said by.

An edit is written ``WHERE:RANK``, where ``WHERE`` is ``ROLE:LAYERS``, a selection such as ``down@-1``, or
``re:REGEX``, and ``RANK`` is one of

    0.01         rho, the share kept of the largest possible rank (Sharma et al. 2023, section 4)
    k=40         a rank
    energy=0.9   the smallest rank that holds this share of the sum of squared singular values
    mp gd        as many singular values as stand above noise: Marchenko-Pastur edge, Gavish-Donoho threshold
    laserrmt     what the published laserRMT code would keep, which is not the Marchenko-Pastur edge
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from kanna.errors import InputError
from kanna.models.matrix import Matrix
from kanna.models.selection import select

Rule = Literal["rho", "k", "energy", "mp", "gd", "laserrmt"]
_RULES: tuple[Rule, ...] = ("mp", "gd", "laserrmt")
_EXAMPLE = "write ROLE:LAYERS:RANK such as mlp_in:27:0.01, down:-1:k=40 or mlp:all:energy=0.9"
_NUMBER = re.compile(r"\d+(\.\d*)?|\.\d+")


@dataclass(frozen=True)
class Rank:
    """How a rank is said.

    Args:
        rule: See the module.
        amount: rho, the rank or the share, as written; empty for rules that look at the spectrum.
    """

    rule: Rule
    amount: str = ""

    @property
    def needs_spectrum(self) -> bool:
        """Whether the rank depends on the weights."""
        return self.rule not in ("rho", "k")

    def __str__(self) -> str:
        if self.rule == "rho":
            return self.amount
        return f"{self.rule}={self.amount}" if self.amount else self.rule


@dataclass(frozen=True)
class Edit:
    """One edit as asked for: a selection of matrices, and the rank that each of them gets."""

    where: str
    rank: Rank

    def __str__(self) -> str:
        return f"{self.where}:{self.rank}"


def parse_edit(text: str) -> Edit:
    """The edit that a text such as ``mlp_in:27:0.01`` means.

    Raises:
        InputError: It cannot be read, or the amount is out of range; says what an edit looks like.
    """
    where, colon, rank = text.strip().rpartition(":")
    if not colon or not where:
        raise InputError(f"the edit {text!r} cannot be read", _EXAMPLE)
    return Edit(_selection(where), _rank(text, rank.strip()))


def resolve(edits: Sequence[Edit], matrices: Sequence[Matrix]) -> list[tuple[Matrix, Rank]]:
    """Every matrix that is named, with each rank asked for it; a matrix named twice appears twice.

    Raises:
        InputError: A role or layer the model does not have; says which there are.
    """
    return [(matrix, edit.rank) for edit in edits for matrix in select(matrices, edit.where)]


def spell(matrix: Matrix, every: Sequence[Matrix], rank: str) -> str:
    """The edit of one matrix, as `parse_edit` reads it.

    Args:
        every: All matrices of the model: where two have the role in the layer, the name is written instead.
    """
    alike = sum(other.layer == matrix.layer and other.role == matrix.role for other in every)
    if alike == 1:
        return f"{matrix.role}:{matrix.layer}:{rank}"
    return f"re:^{re.escape(matrix.name)}$:{rank}"


def _selection(where: str) -> str:
    where = where.strip()
    if where.startswith("re:") or ":" not in where:
        return where
    roles, _, layers = where.partition(":")
    return roles.strip() if layers.strip() in ("all", "*") else f"{roles.strip()}@{layers.strip()}"


def _rank(text: str, rank: str) -> Rank:
    if rank in _RULES:
        return Rank(rank)
    name, equals, amount = rank.partition("=")
    if not equals:
        name, amount = "rho", rank
    if name not in ("rho", "k", "energy") or not _NUMBER.fullmatch(amount):
        raise InputError(f"the rank {rank!r} of the edit {text!r} cannot be read", _EXAMPLE)
    if name == "k" and not amount.isdigit():
        raise InputError(f"the rank {amount!r} of the edit {text!r} is no whole number", _EXAMPLE)
    if name != "k" and not 0 <= float(amount) <= 1:
        raise InputError(
            f"{name} {amount} of the edit {text!r} is outside 0 to 1",
            "rho is the share of the largest rank that is kept; for a rank write k=40",
        )
    return Rank("rho" if name == "rho" else "k" if name == "k" else "energy", amount)

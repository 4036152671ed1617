"""How a matrix is stored: small frozen dataclasses, and the modules they build."""

from kanna.forms.base import Child, Dense, Form, FormModule, dense_weight, from_json, install
from kanna.forms.integer import Int, IntLinear
from kanna.forms.low_rank import LowRank, LowRankLinear
from kanna.forms.pivot import Pivot, PivotLinear
from kanna.forms.rows import Rows, RowsLinear

__all__ = [
    "Child",
    "Dense",
    "Form",
    "FormModule",
    "Int",
    "IntLinear",
    "LowRank",
    "LowRankLinear",
    "Pivot",
    "PivotLinear",
    "Rows",
    "RowsLinear",
    "dense_weight",
    "from_json",
    "install",
]

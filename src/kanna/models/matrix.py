"""What kanna calls a matrix: one compressible weight of a model, and where it lies."""

from dataclasses import dataclass

ATTENTION_ROLES = ("q", "k", "v", "qkv", "o")
MLP_ROLES = ("gate", "up", "gate_up", "down", "fc_in", "fc_out")
ROLE_ORDER = (*ATTENTION_ROLES, *MLP_ROLES)


def role_key(role: str) -> tuple[int, str]:
    """Sorts roles: attention first, those that kanna does not know last."""
    return (ROLE_ORDER.index(role) if role in ROLE_ORDER else len(ROLE_ORDER), role)


@dataclass(frozen=True)
class RowSlice:
    """The rows ``start + i * stride + j`` for ``i < count`` and ``j < block``, in that order.

    A contiguous slice has ``count == 1``. Interleaved ones (the heads of a fused qkv) have one block per
    head or group of heads.
    """

    start: int
    block: int
    stride: int
    count: int

    @classmethod
    def contiguous(cls, start: int, size: int) -> "RowSlice":
        """The rows ``start`` to ``start + size - 1``."""
        return cls(start, size, size, 1)

    @property
    def rows(self) -> int:
        """How many rows the slice holds."""
        return self.block * self.count


@dataclass(frozen=True)
class View:
    """How a matrix of shape (out_features, in_features) lies in its parameter.

    Args:
        rows: The rows (outputs) of a fused parameter that belong to this matrix; None for all of them.
        transposed: The parameter is stored as (in_features, rows), as GPT-2's ``Conv1D`` does.
        expert: Index along the first dimension of a stacked 3-D parameter; None for a 2-D one.
    """

    rows: RowSlice | None = None
    transposed: bool = False
    expert: int | None = None


@dataclass(frozen=True)
class Matrix:
    """A weight y = W x of a transformer block, W of shape (out_features, in_features).

    Args:
        name: Unique in the model: the module path, with ``#q`` for a slice of a fused parameter, and for an
            expert the stacked parameter's path with ``#3`` or ``#3.gate``.
        module: Path of the module in the class named by ``architectures[0]``.
        parameter: Name of the parameter in that module.
        layer: Index of the block, from 0.
        role: ``q k v o gate up down fc_in fc_out``; ``qkv`` or ``gate_up`` for a fused weight whose inner
            order is unknown; otherwise the module's own name.
        view: How the matrix lies in the parameter.
        has_bias: Whether the module adds a bias to these outputs.
        refused: Why it cannot be compressed; empty if it can.
    """

    name: str
    module: str
    parameter: str
    layer: int
    role: str
    out_features: int
    in_features: int
    view: View
    has_bias: bool
    refused: str = ""

    @property
    def shape(self) -> tuple[int, int]:
        """(out_features, in_features)."""
        return self.out_features, self.in_features

    @property
    def parameters(self) -> int:
        """Entries of the dense matrix, without its bias."""
        return self.out_features * self.in_features

    @property
    def tensor(self) -> str:
        """Full name of the parameter that holds the matrix, in the class of ``architectures[0]``."""
        return f"{self.module}.{self.parameter}"

    @property
    def break_even_rank(self) -> int:
        """Largest rank k of which a pair of factors, k (m + n) entries, is smaller than the dense m n."""
        return max(0, (self.parameters - 1) // (self.out_features + self.in_features))

    @property
    def group(self) -> str:
        """``attn``, ``mlp``, or ``other`` for a role that kanna does not know."""
        if self.role in ATTENTION_ROLES:
            return "attn"
        return "mlp" if self.role in MLP_ROLES else "other"

"""List every compressible matrix of a model, and everything else with the reason it is left out."""

from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from kanna.errors import InputError, KannaError
from kanna.models.families import UNGATED, halves, layout_of, role_of
from kanna.models.matrix import Matrix, RowSlice, View, role_key

_ROUTERS = ("gate", "router", "wg")
SHARED = "the blocks of several layers share this weight, which cannot be factorised for one of them alone"
MADE = "transformers makes this weight of tensors of another kind when it loads the files"
REFUSED = "the experts are stacked in one 3-D parameter, of which single experts cannot be factorised yet"


@dataclass(frozen=True)
class Skipped:
    """A parameter of two or more dimensions that is no matrix of the inventory.

    Args:
        name: Full name of the parameter.
        reason: Why kanna leaves it alone.
        parameters: Its entries; 0 for one that shares its storage with a parameter already counted.
    """

    name: str
    reason: str
    parameters: int


@dataclass(frozen=True)
class Inventory:
    """What a model is made of.

    Args:
        matrices: The matrices of all blocks, by layer, then role, refused ones among them.
        skipped: Every other parameter of two or more dimensions.
        blocks: Module paths of the transformer blocks, in order; of an encoder-decoder those of the encoder,
            then those of the decoder.
        blocks_path: Path of the list that holds them; of an encoder-decoder that of the encoder's.
        architecture: Name of the model's class.
        base_model_prefix: Prefix that the class puts before the names of its base model; may be empty.
        tied_embeddings: Whether input and output embeddings are one parameter.
        parameters: Entries of all parameters, shared ones counted once.
    """

    matrices: tuple[Matrix, ...]
    skipped: tuple[Skipped, ...]
    blocks: tuple[str, ...]
    blocks_path: str
    architecture: str
    base_model_prefix: str
    tied_embeddings: bool
    parameters: int

    @property
    def compressible(self) -> tuple[Matrix, ...]:
        """The matrices that are not refused."""
        return tuple(matrix for matrix in self.matrices if not matrix.refused)

    @property
    def refused(self) -> tuple[Matrix, ...]:
        """The matrices that are listed but cannot be compressed."""
        return tuple(matrix for matrix in self.matrices if matrix.refused)

    @property
    def has_decoder_apart(self) -> bool:
        """Whether the blocks are those of an encoder and of a decoder that reads what it made."""
        return not all(block.startswith(f"{self.blocks_path}.") for block in self.blocks)

    @property
    def roles(self) -> tuple[str, ...]:
        """The roles that occur, attention first."""
        return tuple(sorted({matrix.role for matrix in self.matrices}, key=role_key))


def inventory(model: nn.Module, made: Collection[str] = ()) -> Inventory:
    """List the matrices of `model`, whose weights may be real or on the meta device.

    Args:
        made: Parameters that the files do not hold as they are.

    Raises:
        InputError: The model has no list of transformer blocks, or none with a linear layer.
    """
    path, blocks = _blocks(model)
    listed = [m for layer, block in enumerate(blocks) for m in _block_matrices(model, block, layer)]
    matrices = [_refuse_made(matrix, made) for matrix in _once(model, listed)]
    if not matrices:
        raise InputError(
            f"{type(model).__name__} has no linear layer in its blocks {path}.*",
            "kanna compresses nn.Linear and Conv1D layers inside transformer blocks; this model has neither",
        )
    first, last = _embedding(model, "get_input_embeddings"), _embedding(model, "get_output_embeddings")
    return Inventory(
        matrices=tuple(sorted(matrices, key=lambda m: (m.layer, role_key(m.role)))),
        skipped=_skipped(model, blocks, {m.tensor for m in matrices}),
        blocks=blocks,
        blocks_path=path,
        architecture=type(model).__name__,
        base_model_prefix=str(getattr(model, "base_model_prefix", "")),
        tied_embeddings=first is not None and first is last,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
    )


def _once(model: nn.Module, matrices: list[Matrix]) -> list[Matrix]:
    """Without those whose parameter an earlier block has; what blocks share is refused."""
    owners = {m.tensor: id(model.get_parameter(m.tensor)) for m in matrices}
    first = {owner: tensor for tensor, owner in reversed(owners.items())}
    uses = Counter(owners.values())
    return [
        replace(m, refused=m.refused or SHARED) if uses[owners[m.tensor]] > 1 else m
        for m in matrices
        if first[owners[m.tensor]] == m.tensor
    ]


def _refuse_made(matrix: Matrix, made: Collection[str]) -> Matrix:
    return replace(matrix, refused=matrix.refused or MADE) if matrix.tensor in made else matrix


def is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear | Conv1D)


def _blocks(model: nn.Module) -> tuple[str, tuple[str, ...]]:
    """The list of the blocks; of an encoder-decoder the encoder's, and the blocks of both, decoder last."""
    stacks = _stacks(model)
    if not stacks:
        return _list_of_blocks(model, _text_towers(model))
    found = [_list_of_blocks(model, (stack,)) for stack in stacks]
    return found[0][0], tuple(block for _, blocks in found for block in blocks)


def _stacks(model: nn.Module) -> tuple[str, ...]:
    """Beginnings of the paths of encoder and decoder; empty for a model that has not both."""
    if not getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        return ()
    listed = {path for path, module in model.named_modules() if isinstance(module, nn.ModuleList)}
    for path, module in model.named_modules():
        prefix = f"{path}." if path else ""
        pair = tuple(f"{prefix}{name}." for name in ("encoder", "decoder") if hasattr(module, name))
        if len(pair) == 2 and all(any(item.startswith(stack) for item in listed) for stack in pair):
            return pair
    return ()


def _list_of_blocks(model: nn.Module, towers: tuple[str, ...]) -> tuple[str, tuple[str, ...]]:
    """The module list with the most weights in linear layers or experts; of equals the longest."""
    lists = [
        (path, m)
        for path, m in model.named_modules()
        if isinstance(m, nn.ModuleList) and len(m) and path.startswith(towers)
    ]
    if not lists:
        raise InputError(
            f"{type(model).__name__} has no list of transformer blocks",
            "kanna needs the blocks in an nn.ModuleList, as the models of transformers have them",
        )
    weights = {path: sum(p.numel() for p in m.parameters() if p.dim() > 1) for path, m in lists}
    path, blocks = max(lists, key=lambda item: (weights[item[0]], len(item[1])))
    return path, tuple(_called(path, blocks))


def _called(path: str, blocks: nn.ModuleList) -> Iterator[str]:
    """Paths of what a list holds; of lists inside it, of what they hold: a list is never called itself."""
    for index, block in enumerate(blocks):
        inner = f"{path}.{index}"
        if isinstance(block, nn.ModuleList):
            yield from _called(inner, block)
        else:
            yield inner


def _text_towers(model: nn.Module) -> tuple[str, ...]:
    """Beginnings of the paths of what reads text; of a model of text alone all paths."""
    kind, text = _text_config(model)
    if text is None or text is getattr(model, "config", None):
        return ("",)
    found = [path for path, m in model.named_modules() if _type_of(getattr(m, "config", None)) == kind]
    return tuple(f"{path}." for path in found) or ("",)


def _type_of(config: Any) -> str:
    return str(getattr(config, "model_type", ""))


def _block_matrices(model: nn.Module, block: str, layer: int) -> list[Matrix]:
    """Matrices of one block, in the order of its modules."""
    matrices: list[Matrix] = []
    for path, module in model.get_submodule(block).named_modules(prefix=block):
        if is_linear(module):
            matrices += _linear_matrices(model, path, module, layer)
        else:
            matrices += expert_matrices(path, module, layer)
    return _rename_ungated(matrices)


def _linear_matrices(model: nn.Module, path: str, module: nn.Module, layer: int) -> list[Matrix]:
    if _left_out(model, path, module):
        return []
    transposed = isinstance(module, Conv1D)
    rows, columns = _shape(module)
    whole = Matrix(
        name=path,
        module=path,
        parameter="weight",
        layer=layer,
        role=role_of(path),
        out_features=rows,
        in_features=columns,
        view=View(transposed=transposed),
        has_bias=module.bias is not None,
    )
    return _split(whole, *_text_config(model))


def _shape(linear: nn.Module) -> tuple[int, int]:
    """(out_features, in_features) of an nn.Linear or Conv1D."""
    rows, columns = linear.weight.shape  # type: ignore[misc]
    return (columns, rows) if isinstance(linear, Conv1D) else (rows, columns)


def _left_out(model: nn.Module, path: str, module: nn.Module) -> str:
    """Why a module of a block is no matrix; empty if it is one."""
    parent, _, leaf = path.rpartition(".")
    if leaf in _ROUTERS and hasattr(model.get_submodule(parent), "experts"):
        return "router of a mixture of experts"
    if not is_linear(module):
        return f"not a linear layer but {type(module).__name__}"
    rows, columns = _shape(module)
    return "too small: no rank saves anything" if rows * columns - 1 < rows + columns else ""


def _text_config(model: nn.Module) -> tuple[str, Any]:
    """Model type and configuration of the language part; ("", None) for a model without a config."""
    config: Any = getattr(model, "config", None)
    if config is None:
        return "", None
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    return _type_of(text), text


def _split(whole: Matrix, model_type: str, config: Any) -> list[Matrix]:
    """The parts of a fused weight whose inner order is known, else the weight itself."""
    layout = layout_of(model_type, whole.module)
    if layout is None:
        return [whole]
    parts = layout(config, whole.out_features)
    if sum(rows.rows for _, rows in parts) != whole.out_features:
        raise KannaError(
            f"the parts of {whole.name} do not add up to its {whole.out_features} rows: {parts}; "
            f"this is a bug in kanna's table for {model_type}"
        )
    return [
        replace(
            whole,
            name=f"{whole.name}#{role}",
            role=role,
            out_features=rows.rows,
            view=replace(whole.view, rows=rows),
        )
        for role, rows in parts
    ]


def _rename_ungated(matrices: list[Matrix]) -> list[Matrix]:
    """Give `up` and `down` without a gate beside them the names of a plain feed-forward network."""
    gated = {m.module.rpartition(".")[0] for m in matrices if m.role in ("gate", "gate_up")}
    return [
        m if m.module.rpartition(".")[0] in gated or m.view.expert is not None
        else replace(m, role=UNGATED.get(m.role, m.role))
        for m in matrices
    ]  # fmt: skip


def _embedding(model: nn.Module, getter: str) -> Tensor | None:
    weight = getattr(_module(model, getter), "weight", None)
    return weight if isinstance(weight, Tensor) else None


def _skipped(model: nn.Module, blocks: tuple[str, ...], taken: set[str]) -> tuple[Skipped, ...]:
    first_name: dict[int, str] = {}
    skipped = []
    for name, parameter in model.named_parameters(remove_duplicate=False):
        known_as = first_name.setdefault(id(parameter), name)
        if parameter.dim() < 2 or name in taken:
            continue
        tied = "" if known_as == name else f", tied to {known_as}"
        reason = (_reason(model, name, parameter, blocks) + tied).removeprefix(", ")
        skipped.append(Skipped(name, reason, 0 if tied else parameter.numel()))
    return tuple(skipped)


def _reason(model: nn.Module, name: str, parameter: Tensor, blocks: tuple[str, ...]) -> str:
    path = name.rpartition(".")[0]
    module = model.get_submodule(path)
    if parameter is _embedding(model, "get_input_embeddings") and isinstance(module, nn.Embedding):
        return "input embedding, never factorised alone"
    if module is _module(model, "get_output_embeddings"):
        return "output embedding, never factorised alone"
    if isinstance(module, nn.Embedding):
        return "embedding table"
    if name.startswith(tuple(f"{block}." for block in blocks)):
        return "bias of the experts" if name.endswith("_bias") else _left_out(model, path, module)
    prefix = str(getattr(model, "base_model_prefix", ""))
    if prefix and not name.startswith(f"{prefix}.") and hasattr(model, prefix):
        return f"part of the head of {type(model).__name__}, outside the transformer blocks"
    paths = dict.fromkeys(block.rpartition(".")[0] for block in blocks)
    return f"outside the transformer blocks {' and '.join(paths)}"


def _module(model: nn.Module, getter: str) -> object:
    try:
        return getattr(model, getter, lambda: None)()
    except NotImplementedError:
        return None


def expert_matrices(path: str, module: nn.Module, layer: int) -> list[Matrix]:
    """One matrix per expert and projection of a module with stacked experts; none for another module.

    Of three dimensions are also the kernels of convolutions, and weights by head: only the class tells.
    """
    if "expert" not in type(module).__name__.lower():
        return []
    stacked = [(name, p) for name, p in module.named_parameters(recurse=False) if p.dim() == 3]
    return [m for name, parameter in stacked for m in _stack(path, name, parameter, module, layer)]


def _stack(path: str, name: str, parameter: Tensor, module: nn.Module, layer: int) -> Iterator[Matrix]:
    # The decorator of transformers' expert classes sets these; a class without it stores (experts, out, in).
    transposed = bool(getattr(module, "is_transposed", False))
    rows, columns = reversed(parameter.shape[1:]) if transposed else parameter.shape[1:]
    for expert in range(parameter.shape[0]):
        for role, part in _parts(role_of(name), rows, module):
            yield Matrix(
                name=f"{path}.{name}#{expert}" + (f".{role}" if part else ""),
                module=path,
                parameter=name,
                layer=layer,
                role=role,
                out_features=part.rows if part else rows,
                in_features=columns,
                view=View(rows=part, transposed=transposed, expert=expert),
                has_bias=bool(getattr(module, "has_bias", False)),
                refused=REFUSED,
            )


def _parts(role: str, rows: int, module: nn.Module) -> tuple[tuple[str, RowSlice | None], ...]:
    if role != "gate_up":
        return ((role, None),)
    if getattr(module, "is_concatenated", True):
        return halves(None, rows)
    half = rows // 2
    return ("gate", RowSlice(0, 1, 2, half)), ("up", RowSlice(1, 1, 2, half))

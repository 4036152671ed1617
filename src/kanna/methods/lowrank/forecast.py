"""What each stage will take, from shapes alone: memory, files of work, operations and so time.

Counts are exact where shapes decide (products, sizes of files) and rules of thumb where they do not
(activations, what libraries hold): docs/scale.md compares both with what was measured.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from kanna.calibration.windows import TOKENS_AT_ONCE
from kanna.forms import Form
from kanna.measure.rates import Rates
from kanna.methods.lowrank.config import CALIBRATED, LowRankConfig
from kanna.methods.lowrank.gradients import LARGEST_FULL_METRIC
from kanna.methods.lowrank.ranks import highest_rank
from kanna.models.inventory import Inventory
from kanna.models.matrix import Matrix
from kanna.runs.probe import LARGE

# What Python, torch and transformers hold before anything is loaded.
_PROGRAM = 650_000_000
# Numbers of each token that a block holds besides the outputs of its matrices, over the width.
_WIDTHS = 8
# How often logits of a piece are in memory while a loss is taken (`behind` cuts them at this size).
_LOGITS, _LOGIT_COPIES = 64_000_000, 6
# Of a symmetric product, blocks on and above the diagonal are computed.
_TRIANGLE = 0.6
_READ_TOGETHER = ("q", "k", "v"), ("gate", "up")


@dataclass(frozen=True)
class Stage:
    """One stage of a run.

    Attributes:
        memory: Peak bytes.
        products: Operations of float32 matrix products.
        precise: The same in float64.
        eigen: Sizes of the float64 eigenproblems.
        files: Bytes written and read.
    """

    memory: int
    products: float = 0.0
    precise: float = 0.0
    eigen: tuple[int, ...] = ()
    files: float = 0.0

    def seconds(self, rates: Rates) -> float:
        """At the rates of a machine."""
        eigen = sum(rates.eigen_seconds(size) for size in self.eigen)
        return self.products / rates.product + self.precise / rates.precise + eigen + self.files / rates.file


@dataclass(frozen=True)
class Shapes:
    """What a forecast is made from.

    Args:
        inventory: Of the model.
        selected: What may be replaced.
        stored: Matrix name -> how it is stored now.
        config: Resolved.
        tokens: Of calibration, in all.
        length: Of a window.
        windows: How many.
        vocabulary: Outputs of the head.
        width: Of the hidden states.
        kept: Bytes of a number of the states that are kept for the way back.
        bytes: Of a stored number.
        by_block: Whether there is a backward pass, block by block.
    """

    inventory: Inventory
    selected: Sequence[Matrix]
    stored: Mapping[str, Form]
    config: LowRankConfig
    tokens: int
    length: int
    windows: int
    vocabulary: int
    width: int
    kept: int
    bytes: int
    by_block: bool

    @property
    def felt(self) -> int:
        """Tokens of the backward pass: whole windows."""
        enough = -(-self.config.gradient_tokens // self.length)
        return min(self.tokens, enough * self.length)

    @cached_property
    def layers(self) -> Sequence[Sequence[Matrix]]:
        """The matrices of each block."""
        found: dict[int, list[Matrix]] = {}
        for matrix in self.inventory.matrices:
            found.setdefault(matrix.layer, []).append(matrix)
        return list(found.values())

    @cached_property
    def largest(self) -> Sequence[Matrix]:
        return max(self.layers, key=lambda matrices: sum(m.parameters for m in matrices))

    @cached_property
    def parameters(self) -> int:
        """Of the matrices of all blocks."""
        return sum(matrix.parameters for matrix in self.inventory.matrices)

    @property
    def streams(self) -> int:
        """Bytes of states and gradients between blocks."""
        if not self.by_block:  # before and behind the block at hand
            return 0 if self.config.method == "plain" else 2 * 4 * self.tokens * self.width
        count = len(self.inventory.blocks)
        return self.tokens * self.width * (self.kept * count + 4) + 2 * 4 * self.felt * self.width

    @cached_property
    def factors(self) -> int:
        """Bytes of the factors that a survey keeps."""
        if self.config.method == "anchored":
            return 0
        size = 4 if self.config.storage == "pivot" else self.bytes
        ranks = {m.name: highest_rank(m, self.config, self.stored[m.name]) for m in self.selected}
        return size * sum(ranks[m.name] * (m.in_features + m.out_features) for m in self.selected)

    @cached_property
    def outputs(self) -> int:
        """Bytes of the gradient sums that `anchored` keeps."""
        if self.config.method != "anchored" or not self.config.needs_gradients:
            return 0
        return 2 * sum(_squared(width) for _, width in _modules(self.selected))

    @cached_property
    def replaced(self) -> int:
        """Bytes of finished blocks."""
        share = 1.0 if self.config.keep is None else self.config.keep
        return int(share * self.bytes * sum(self.stored[m.name].parameters(*m.shape) for m in self.selected))

    @property
    def cache(self) -> int:
        """Bytes in the cache at most: of the walk."""
        return self.factors + self.outputs + self.streams

    @property
    def work(self) -> int:
        """Bytes of files of work at most, while blocks are walked through or when they are finished."""
        return max(self.cache, self.factors + self.outputs + self.beside)

    @property
    def beside(self) -> int:
        """Bytes beside the output at most: finished blocks, and states that are anchored to others."""
        return self.replaced + (16 * self.tokens * self.width if self.config.two_streams else 0)


def forecast(shapes: Shapes) -> Mapping[str, Stage]:
    """The stages of a run whose blocks are in memory one at a time, in their order."""
    config = shapes.config
    stages: dict[str, Stage] = {}
    if shapes.by_block:
        stages["forward"] = _forward(shapes)
        stages["loss"] = _loss(shapes)
        stages["survey"] = _survey(shapes)
    elif config.needs_gradients or (config.method != "plain" and not _is_fitted_alone(shapes)):
        stages["survey"] = _survey(shapes)
    stages["replace"] = _replace(shapes)
    stages["verify"] = _verify(shapes)
    return stages


def shapes_of(
    inventory: Inventory,
    selected: Sequence[Matrix],
    stored: Mapping[str, Form],
    config: LowRankConfig,
    settings: Mapping[str, Any],
    windows: tuple[int, int],
    tokens: int,
    kept: int,
    stored_bytes: int,
    by_block: bool,
) -> Shapes:
    """Shapes of a model and its text.

    Args:
        settings: The model's `config.json`.
        windows: (how many, their length).
        tokens: In them that are not padding; 0 where nothing is run.
    """
    text = settings.get("text_config") or settings
    width = int(text.get("hidden_size") or text.get("n_embd") or text.get("d_model") or 0)
    width = width or max(matrix.in_features for matrix in inventory.matrices)
    vocabulary = int(text.get("vocab_size") or 0)
    count, length = windows
    return Shapes(
        inventory,
        selected,
        stored,
        config,
        tokens,
        length,
        count,
        vocabulary,
        width,
        kept,
        stored_bytes,
        by_block and config.needs_gradients,
    )


def _is_fitted_alone(shapes: Shapes) -> bool:
    """Whether ranks are decided and factors come from the second walk."""
    return shapes.config.method == "anchored" and shapes.config.allocation == "uniform"


def _forward(shapes: Shapes) -> Stage:
    block = 4 * sum(matrix.parameters for matrix in shapes.largest)
    states = (4 + 4 + (shapes.kept if shapes.kept != 4 else 0)) * shapes.tokens * shapes.width
    embeddings = 4 * shapes.vocabulary * shapes.width
    products = 2 * shapes.tokens * shapes.parameters + _attention(shapes, shapes.tokens)
    return Stage(
        memory=_PROGRAM + states + max(block + _activations(shapes, False), embeddings),
        products=products,
        files=shapes.streams + shapes.tokens * shapes.width * 8 * len(shapes.inventory.blocks),
    )


def _loss(shapes: Shapes) -> Stage:
    tables = 1 if shapes.inventory.tied_embeddings else 2
    logits = _LOGIT_COPIES * min(_LOGITS, 4 * shapes.felt * shapes.vocabulary)
    states = 4 * shapes.felt * shapes.width
    return Stage(
        memory=_PROGRAM + 4 * tables * shapes.vocabulary * shapes.width + logits + states,
        products=4.0 * shapes.felt * shapes.vocabulary * shapes.width,
    )


def _survey(shapes: Shapes) -> Stage:
    config, back = shapes.config, shapes.config.needs_gradients
    block = 4 * sum(matrix.parameters for matrix in shapes.largest)
    reads = shapes.tokens if config.method in CALIBRATED else 0
    run = max(reads, shapes.felt if back else 0)
    chosen = set(shapes.selected)
    products = 2.0 * run * shapes.parameters + _attention(shapes, run)
    if back:
        products += 2.0 * shapes.felt * shapes.parameters + 2 * _attention(shapes, shapes.felt)
    memory, precise, eigen = 0, 0.0, []
    for layer in shapes.layers:
        matrices = [matrix for matrix in layer if matrix in chosen]
        inputs = _inputs(matrices) if reads else []
        widths = [width for _, width in _modules(matrices)] if back else []
        full = [width for width in widths if width <= LARGEST_FULL_METRIC]
        products += (
            2
            * _TRIANGLE
            * (reads * sum(n * n for n in inputs) + shapes.felt * sum(width * width for width in full))
        )
        sums = 8 * sum(n * n for n in inputs) + 8 * sum(_squared(width) for width in widths)
        most = 0
        for matrix in matrices:
            held, floats, sizes = _decomposition(matrix, config)
            most, precise = max(most, held), precise + floats
            eigen += sizes
        memory = max(memory, sums + max(most, _activations(shapes, back)))
    states = 4 * (shapes.felt if back else 2 * shapes.tokens) * shapes.width
    files = shapes.factors + shapes.outputs + shapes.streams
    return Stage(_PROGRAM + block + states + memory, products, precise, tuple(eigen), files)


def _replace(shapes: Shapes) -> Stage:
    config = shapes.config
    block = 4 * sum(matrix.parameters for matrix in shapes.largest)
    streams = shapes.tokens if config.two_streams else min(shapes.tokens, shapes.length) or shapes.length
    files = shapes.factors + shapes.outputs + 2 * shapes.replaced
    states = 4 * 4 * streams * shapes.width
    memory = _PROGRAM + 2 * block + states + _activations(shapes, config.refine > 0)
    products = 4.0 * streams * shapes.parameters + 2 * _attention(shapes, streams)
    if config.method != "anchored":
        largest = max((sum(m.parameters for m in layer) for layer in shapes.layers), default=0)
        return Stage(memory + 8 * largest, products, files=files)
    chosen, precise, eigen, most = set(shapes.selected), 0.0, [], 0
    for layer in shapes.layers:
        matrices = [matrix for matrix in layer if matrix in chosen]
        inputs = _inputs(matrices)
        # Of every group both blocks are run again, up to what it reads.
        products += len(inputs) * 2.0 * streams * sum(m.parameters for m in layer)
        products += streams * sum((2 + 2 * _TRIANGLE) * n * n for n in inputs)
        for matrix in matrices:
            held, floats, sizes = _decomposition(matrix, config)
            solve = matrix.in_features**3 / 3 + 4.0 * matrix.in_features**2 * matrix.out_features
            most, precise = max(most, held + 24 * matrix.in_features**2), precise + floats + solve
            eigen += sizes
    return Stage(memory + most, products, precise, tuple(eigen), files + 16 * streams * shapes.width)


def _verify(shapes: Shapes) -> Stage:
    """Reading back what was written, with one window: whole where it is small, else by block."""
    before = sum(shapes.stored[m.name].parameters(*m.shape) for m in shapes.selected)
    left = shapes.inventory.parameters - before + shapes.replaced // shapes.bytes
    states = 4 * shapes.length * shapes.width * (len(shapes.inventory.blocks) + 1)
    files = float(shapes.bytes * left)
    if 4 * left > LARGE:
        tables = 4 * (1 if shapes.inventory.tied_embeddings else 2) * shapes.vocabulary * shapes.width
        block = 4 * sum(matrix.parameters for matrix in shapes.largest)
        most = max(tables + _LOGIT_COPIES * _LOGITS, block + _activations(shapes, False))
        return Stage(_PROGRAM + states + most, 2.0 * shapes.length * left, files=files)
    # As stored and in float32, and the logits as the model and a check of them hold them.
    logits = 3 * 4 * shapes.length * shapes.vocabulary
    return Stage(
        _PROGRAM + states + (4 + shapes.bytes) * left + logits, 2.0 * shapes.length * left, files=files
    )


def _activations(shapes: Shapes, back: bool) -> int:
    """Bytes of one batch in one block."""
    tokens = max(shapes.length, min(shapes.config.batch * shapes.length, TOKENS_AT_ONCE))
    if not back:
        widest = max(max(matrix.shape) for matrix in shapes.largest)
        return 4 * tokens * (3 * widest + _WIDTHS * shapes.width)
    outputs = sum(matrix.out_features for matrix in shapes.largest)
    # Forward and, while one layer's go back, gradients.
    return 4 * tokens * (4 * outputs + 2 * _WIDTHS * shapes.width)


def _attention(shapes: Shapes, tokens: int) -> float:
    """Operations of the products of queries, keys and values, in every block."""
    return 4.0 * tokens * shapes.length * shapes.width * len(shapes.inventory.blocks)


def _inputs(matrices: Sequence[Matrix]) -> list[int]:
    """Widths of the distinct inputs of a block's matrices."""
    groups: dict[object, int] = {}
    for matrix in matrices:
        family = next((roles for roles in _READ_TOGETHER if matrix.role in roles), matrix.module)
        groups[family, matrix.module.rpartition(".")[0], matrix.in_features] = matrix.in_features
    return list(groups.values())


def _modules(matrices: Sequence[Matrix]) -> list[tuple[str, int]]:
    """(path, outputs) of the modules that hold them."""
    widths: dict[str, int] = {}
    for matrix in matrices:
        widths[matrix.module] = widths.get(matrix.module, 0) + matrix.out_features
    return list(widths.items())


def _squared(width: int) -> int:
    return width * width if width <= LARGEST_FULL_METRIC else width


def _decomposition(matrix: Matrix, config: LowRankConfig) -> tuple[int, float, list[int]]:
    """(peak bytes, float64 operations, sizes of eigenproblems) of one matrix."""
    m, n = matrix.shape
    small, rank = min(m, n), m * n // (m + n)
    weighed = config.outputs == "gradient" and m <= LARGEST_FULL_METRIC
    # D by Cholesky, D W, and D^-1 U by a triangular system.
    floats = m**3 / 3 + 4.0 * m * m * n + 1.0 * m * m * rank if weighed else 0.0
    if m > n:  # W = Q T first
        floats += 4.0 * m * n * n + 2.0 * m * n * n
    floats += _TRIANGLE * 2.0 * small * n * n + 2.0 * small * small * n  # W G W^T
    floats += 2.0 * m * n * rank
    gram = 8 * n * n if config.method in ("whitened", "anchored") else 0
    held = gram + 8 * 4 * m * n + 8 * 4 * small * small + (8 * 4 * m * m if weighed else 0)
    return held, floats, [small]

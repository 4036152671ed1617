"""Encoder-decoders: the whole model reads prompts and answers once; every matrix is fitted to what it reads.

Two stacks are not run block by block, since every block of the decoder reads what the encoder made. So the
model is in memory, and each matrix is replaced for itself; nothing is fitted to what others lose.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from kanna.calibration.pairs import Pairs, paired
from kanna.calibration.statistics import InputStatistics, gathered
from kanna.errors import InputError
from kanna.linalg.whitening import basis, factors
from kanna.methods.lowrank.config import LowRankConfig
from kanna.methods.lowrank.metric import corrects_bias, metric_of
from kanna.methods.lowrank.plan import Plan
from kanna.models.matrix import Matrix
from kanna.runs.assemble import Factors, Piece, assemble
from kanna.runs.blocks import block_file
from kanna.runs.source import Source
from kanna.runs.step import Inputs, Job
from kanna.tasks.data.rows import read_rows
from kanna.tasks.scorers.architecture import check_joiner
from kanna.tasks.scorers.classifier import classifies
from kanna.tasks.tokens.targets import decoder_start
from kanna.tasks.tokens.tokenizer import context_length, load_tokenizer

NO_GRADIENTS = "encoder-decoders are fitted without gradients"
METHODS = ("plain", "whitened", "asvd", "tucker")


def settings_for(source: Source, config: LowRankConfig) -> LowRankConfig:
    """The configuration with its defaults for two stacks.

    Raises:
        InputError: What needs gradients, or blocks that are run one after the other.
    """
    chosen = config.model_copy(
        update={
            "method": config.method or "whitened",
            "allocation": config.allocation or "uniform",
            "outputs": config.outputs or "equal",
        }
    )
    if chosen.method in METHODS and not chosen.needs_gradients and not chosen.refine:
        return chosen
    raise InputError(
        f"{source.inventory.architecture} is an encoder-decoder: its matrices are fitted one by one, without "
        "gradients and without refinement",
        f"choose --method {', '.join(METHODS[:3])}; leave out --allocation, --outputs and --refine",
    )


def pairs_of(source: Source, config: LowRankConfig, inputs: Inputs) -> Pairs:
    """Prompts and answers from a file of rows.

    Raises:
        InputError: A file that is not of such rows, or what no encoder-decoder is asked with.
    """
    assert inputs.calibration is not None
    if inputs.chat:
        raise InputError(
            f"{source.name} is an encoder-decoder, which is asked in no chat", "leave out --chat"
        )
    if inputs.joiner is not None:
        check_joiner(source.name, source.checkpoint.config, templated=False)
    if classifies(source.checkpoint.config):
        raise InputError(
            f"{source.name} is an encoder-decoder with a classification head, which is fitted to no text",
            "choose --method plain, and leave out --calibration",
        )
    settings: Any = source.skeleton.config
    tokenizer = load_tokenizer(source.directory)
    length = context_length(source.checkpoint.config, tokenizer, config.context)
    start = decoder_start(settings, getattr(source.skeleton, "generation_config", None))
    return paired(read_rows(inputs.calibration), tokenizer, start, config.tokens, length, config.seed)


def with_whole_model(plan: Plan) -> Plan:
    """The plan with the memory that the whole model and the statistics of all matrices take."""
    widths = {matrix.module: matrix.in_features for matrix in plan.selected}
    return replace(
        plan,
        memory=plan.memory + 4 * plan.inventory.parameters + 8 * sum(width**2 for width in widths.values()),
    )


def replace_stacks(job: Job, plan: Plan) -> None:
    """Save the new matrices of every block; what is there already is not redone."""
    count = len(plan.inventory.blocks)
    left = [layer for layer in range(count) if not job.workspace.has(block_file(layer))]
    statistics = _statistics(job, plan) if left and plan.config.method in ("whitened", "asvd") else {}
    for layer in left:
        job.progress("replace", layer, count)
        pieces = _pieces(job.source, plan, layer, statistics)
        tensors = {name: tensor for piece in pieces for name, tensor in piece.named.items()}
        forms = {piece.module: piece.form.to_json() for piece in pieces}
        job.workspace.save(block_file(layer), tensors, {"forms": forms})
    job.progress("replace", count, count)


def _statistics(job: Job, plan: Plan) -> dict[str, InputStatistics]:
    """Module path -> what it reads while the whole model reads the calibration text."""
    windows = plan.windows
    assert isinstance(windows, Pairs)
    model = job.source.whole(job.inputs.device)()
    batches = list(windows.together(plan.config.batch))
    with torch.no_grad(), gathered(model, dict.fromkeys(m.module for m in plan.selected)) as found:
        for done, (prompts, decoded) in enumerate(batches):
            job.progress("survey", done, len(batches))
            device = job.inputs.device
            model(input_ids=prompts.to(device), decoder_input_ids=decoded.to(device), use_cache=False)
    job.progress("survey", len(batches), len(batches))
    return found


def _pieces(
    source: Source, plan: Plan, layer: int, statistics: Mapping[str, InputStatistics]
) -> Sequence[Piece]:
    ranks = plan.ranks or {}
    chosen = [m for m in plan.selected if m.layer == layer and ranks[m.name] is not None]
    new: dict[str, Factors | Tensor] = {
        matrix.name: _fitted(source, plan.config, matrix, ranks[matrix.name], statistics.get(matrix.module))
        for matrix in chosen
    }
    pieces = []
    for path in dict.fromkeys(matrix.module for matrix in chosen):
        parts = [matrix for matrix in plan.inventory.matrices if matrix.module == path]
        piece = assemble(source.module(path), parts, new, source.dtype(path))
        assert piece is not None
        pieces.append(piece)
    return pieces


def _fitted(
    source: Source, config: LowRankConfig, matrix: Matrix, rank: int | None, inputs: InputStatistics | None
) -> Factors:
    """The factors of a matrix under what it reads; of its truncated SVD where that does not matter.

    Raises:
        InputError: The method needs to know what the matrix reads, and it read nothing.
    """
    assert rank is not None
    if inputs is None and config.method != "plain":
        raise InputError(f"{matrix.name} read nothing on this text", "leave it out of --select")
    device = torch.device("cpu") if inputs is None else inputs.gram.device
    weight = source.weight(matrix).to(device, torch.float32)
    metric = metric_of(config, matrix, inputs, None)
    expand, reduce = factors(weight, basis(weight, metric.inputs, metric.outputs), rank)
    gain = None
    if inputs is not None and corrects_bias(config, matrix):
        gain = weight.double() @ inputs.mean - expand @ (reduce @ inputs.mean)
    return Factors(expand, reduce, gain, config.storage)

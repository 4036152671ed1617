"""What a model costs to run: latency, memory, size, energy, beside those of another."""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import torch
from torch import Tensor, nn

from kanna.checked import check_type
from kanna.checkpoint.loader import load
from kanna.checkpoint.reader import Checkpoint
from kanna.checkpoint.safetensors_format import TORCH_DTYPES
from kanna.errors import InputError
from kanna.heard import Listener, heard
from kanna.measure.carried import bytes_held, carried, check_decodes
from kanna.measure.energy import Meter, Reading, nvml_meter, rapl_meter
from kanna.measure.latency import Request, asked_of, concurrent, paired_ratio, request, spread_of
from kanna.measure.memory import peak_memory
from kanna.measure.options import BenchOptions
from kanna.measure.price import Price, cost
from kanna.measure.results import (
    BenchResult,
    Computed,
    Estimated,
    Measured,
    ModelBench,
    PeakMemory,
    Ratio,
    Setting,
)
from kanna.measure.ways import bytes_of_forms, integers_of
from kanna.models.device import device_of, dtype_of
from kanna.progress import Progress, told
from kanna.tasks.tokens.tokenizer import context_length, predicts_next_token


def bench(
    model: str | Path,
    *,
    against: str | Path | None = None,
    options: BenchOptions | None = None,
    price: Price | None = None,
    meters: Sequence[Meter] | None = None,
    progress: Listener = False,
) -> BenchResult:
    """Measure a model, and `against` in turns with it in the same process.

    Args:
        meters: Of energy; those of this machine by default.

    Returns:
        Latencies, memory and bytes of each model (`models`), and ratios to `against`, with their intervals.

    Raises:
        InputError: A model that cannot generate or go on from what it read, more tokens than it has positions
            for, or two models that do not fit in memory together.
    """
    progress = heard(progress)
    check_type("options", options, BenchOptions, "write kanna.BenchOptions(...)")
    chosen = options or BenchOptions()
    paths = [model] if against is None else [model, against]
    checkpoints = [Checkpoint.open(path) for path in paths]
    _check(checkpoints, chosen)
    used = [rapl_meter(), nvml_meter()] if meters is None else list(meters)
    peaks = _peaks(checkpoints, chosen, progress)
    place = None if device_of(chosen.device).type == "cpu" else chosen.device
    loaded = [load(path, dtype=dtype_of(chosen.dtype), device_map=place)[0] for path in paths]
    for one, checkpoint in zip(loaded, checkpoints, strict=True):
        check_decodes(one, checkpoint.name, max(chosen.batches), device_of(chosen.device))
    grid = list(product(chosen.batches, chosen.contexts))
    rounds = {place: _rounds(loaded, *place, chosen, used, progress) for place in grid}
    settings = [
        tuple(_setting(loaded[i], *place, rounds[place][i], chosen) for place in grid)
        for i in range(len(loaded))
    ]
    speeds = [of_model[0].measured.decode_tokens_per_second for of_model in settings]
    requests = [_seconds(rounds[grid[0]][i]) / grid[0][0] for i in range(len(loaded))]
    costs = [
        None
        if price is None
        else cost(price, speed, speeds[1] if i == 0 and against is not None else None, requests[i])
        for i, speed in enumerate(speeds)
    ]
    models = [
        ModelBench(model=name, bytes_on_disk=checkpoint.bytes, memory=peak, settings=some, cost=paid)
        for name, checkpoint, peak, some, paid in zip(
            _names(checkpoints), checkpoints, peaks, settings, costs, strict=True
        )
    ]
    ratios = [] if against is None else [_ratio(place, rounds[place]) for place in grid]
    settings_used = dict(chosen) | {"threads": torch.get_num_threads(), "torch": torch.__version__}
    return BenchResult(
        models=tuple(models),
        ratios=tuple(ratios),
        meters={meter.name: meter.reason for meter in used},
        settings=settings_used,
    )


def _names(checkpoints: Sequence[Checkpoint]) -> list[str]:
    """Names of the models; two alike are told apart by the folder they lie in."""
    names = [checkpoint.name for checkpoint in checkpoints]
    if len(set(names)) == len(names):
        return names
    return [f"{checkpoint.directory.resolve().parent.name}/{checkpoint.name}" for checkpoint in checkpoints]


@dataclass(frozen=True)
class _Round:
    """One model's turn: a request, its energy, and tokens per second of concurrent streams."""

    request: Request
    joules: dict[str, float | None]
    seconds: float
    streamed: float | None


def _rounds(
    models: Sequence[nn.Module],
    batch: int,
    context: int,
    options: BenchOptions,
    meters: Sequence[Meter],
    progress: Progress,
) -> dict[int, list[_Round]]:
    """Model -> its rounds that count. Who goes first alternates."""
    counted: dict[int, list[_Round]] = defaultdict(list)
    ids = _prompt(models, batch, context, options)
    turns = range(options.warmup + options.repeats)
    for turn in told(progress, f"batch {batch}, context {context}", turns):
        order = range(len(models)) if turn % 2 == 0 else reversed(range(len(models)))
        for i in order:
            taken = _round(models[i], ids, options, meters)
            if turn >= options.warmup:
                counted[i].append(taken)
    return counted


def _round(model: nn.Module, ids: Tensor, options: BenchOptions, meters: Sequence[Meter]) -> _Round:
    with Reading(meters) as reading:
        taken = request(model, ids, options.new_tokens)
    streamed = None
    if options.concurrency > 1:
        _, seconds = concurrent(model, ids, options.new_tokens, options.concurrency)
        streamed = options.concurrency * ids.shape[0] * options.new_tokens / seconds
    return _Round(taken, reading.joules, reading.seconds, streamed)


def _prompt(models: Sequence[nn.Module], batch: int, context: int, options: BenchOptions) -> Tensor:
    """Random tokens that all models know."""
    vocabulary = min(int(model.config.vocab_size) for model in models)  # type: ignore[union-attr, arg-type]
    generator = torch.Generator().manual_seed(options.seed)
    drawn = torch.randint(0, vocabulary, (batch, context), generator=generator)
    return drawn.to(device_of(options.device))


def _setting(
    model: nn.Module, batch: int, context: int, rounds: Sequence[_Round], options: BenchOptions
) -> Setting:
    prefill = spread_of([turn.request.prefill for turn in rounds])
    decode = spread_of([step for turn in rounds for step in turn.request.steps])
    new = batch * options.new_tokens
    joules = {
        name: None
        if any(turn.joules[name] is None for turn in rounds)
        else median([(turn.joules[name] or 0.0) / new for turn in rounds])
        for name in rounds[0].joules
    }
    streamed = [turn.streamed for turn in rounds if turn.streamed is not None]
    read = _bytes_read(model, batch, context)
    measured = Measured(
        prefill=prefill,
        decode=decode,
        prefill_tokens_per_second=batch * context / prefill.p50,
        decode_tokens_per_second=batch / decode.p50,
        concurrent_tokens_per_second=median(streamed) if streamed else None,
        joules_per_token=joules,
    )
    watts = options.watts
    guess = None if watts is None else watts * median([turn.seconds for turn in rounds]) / new
    return Setting(
        batch=batch,
        context=context,
        measured=measured,
        computed=Computed(bytes_per_token=read / batch, bandwidth=read / decode.p50),
        estimated=Estimated(joules_per_token=guess),
        integers=integers_of(model, _prompt([model], batch, context, options)),
    )


def _ratio(place: tuple[int, int], rounds: dict[int, list[_Round]]) -> Ratio:
    prefill, decode, whole = (
        paired_ratio(*([part(turn.request) for turn in rounds[i]] for i in (0, 1)))
        for part in (lambda one: one.prefill, lambda one: one.decode, lambda one: one.whole)
    )
    return Ratio(batch=place[0], context=place[1], prefill=prefill, decode=decode, request=whole)


def _seconds(rounds: Sequence[_Round]) -> float:
    """Of a whole request, the median of the rounds."""
    return median([turn.request.whole for turn in rounds])


def _bytes_read(model: Any, batch: int, context: int) -> int:
    """Of a decode step: all parameters but the rows of the embedding that are not looked up, keys and values.

    Matrices in forms count as they are stored, whatever is made of them for a product. A head tied to the
    embedding is read whole. All experts of a mixture are counted. Keys and values, or what a model has in
    their place, are those that it keeps of a prompt.
    """
    parameters = {id(parameter): parameter for parameter in model.parameters()}
    table, head = model.get_input_embeddings().weight, model.get_output_embeddings()
    weights = sum(parameter.numel() * parameter.element_size() for parameter in parameters.values())
    if head is None or getattr(head, "weight", None) is not table:
        weights -= (table.shape[0] - batch) * table.shape[1] * table.element_size()
    weights += bytes_of_forms(model)
    return int(weights + bytes_held(carried(_prefilled(model, batch, context, table.device))))


def _prefilled(model: Any, batch: int, context: int, device: torch.device) -> Any:
    with torch.no_grad():
        return model(
            input_ids=torch.zeros((batch, context), dtype=torch.int64, device=device), **asked_of(model)
        )


def _peaks(
    checkpoints: Sequence[Checkpoint], options: BenchOptions, progress: Progress
) -> list[PeakMemory | None]:
    if not options.memory:
        return [None for _ in checkpoints]
    return [
        peak_memory(checkpoint.directory, options, torch.get_num_threads())
        for checkpoint in told(progress, "memory", checkpoints)
    ]


def _class_of(checkpoint: Checkpoint) -> str:
    return " and ".join(checkpoint.config.get("architectures") or ["of no stated class"])


def _check(checkpoints: Sequence[Checkpoint], options: BenchOptions) -> None:
    """Before anything is loaded."""
    least = min(*options.batches, *options.contexts, options.repeats, options.concurrency, options.new_tokens)
    if least < 1 or options.new_tokens < 2:
        raise InputError(
            "batches, contexts, repeats and concurrency begin at 1, new tokens at 2", "raise what is lower"
        )
    if options.watts is not None and not 0 < options.watts < math.inf:
        raise InputError(f"{options.watts} watts are no power of a machine", "give what it draws, such as 65")
    for checkpoint in checkpoints:
        if not predicts_next_token(checkpoint.config):
            raise InputError(
                f"bench measures causal language models, and {checkpoint.name} is {_class_of(checkpoint)}",
                "give one that predicts the next token, such as LlamaForCausalLM",
            )
        longest = max(options.contexts)
        try:
            # The last token is never read.
            context_length(checkpoint.config, None, longest + options.new_tokens - 1)
        except InputError as error:
            raise InputError(
                f"{checkpoint.name} cannot read {longest} tokens and write {options.new_tokens}: "
                f"{error.problem}",
                "lower --context or --new-tokens",
            ) from error
    if device_of(options.device).type == "cpu":
        need = sum(_memory_of(checkpoint, dtype_of(options.dtype)) for checkpoint in checkpoints)
        free = psutil.virtual_memory().available
        if need > free:
            raise InputError(
                f"the models need {need / 1e9:.1f} GB together, and {free / 1e9:.1f} GB are free",
                "measure one at a time, or with --dtype bfloat16",
            )


def _memory_of(checkpoint: Checkpoint, dtype: torch.dtype) -> int:
    """Bytes of a model in memory; the kernel for 4 bits, which is one of bfloat16, has a copy of its own."""
    copies = 2 if dtype == torch.bfloat16 else 1
    kinds = [(stored, TORCH_DTYPES[stored.dtype]) for stored in checkpoint.tensors.values()]
    return sum(
        math.prod(stored.shape) * (dtype.itemsize if kind.is_floating_point else copies * kind.itemsize)
        for stored, kind in kinds
    )

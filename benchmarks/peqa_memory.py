"""Memory and time of a step of tuning scales, beside full fine-tuning, LoRA and QLoRA of the same model.

    python benchmarks/peqa_memory.py                    a random Llama of 308M parameters, 512 tokens a step
    python benchmarks/peqa_memory.py --dtype bfloat16   weights of the model and products in bfloat16
    python benchmarks/peqa_memory.py --small            a tiny one, to try it out

Every method runs in a process of its own, on the same tokens, with AdamW on what it trains, all in one dtype
(scales and what is learnt of them are float32 always). LoRA is PEFT's, beside every matrix of the blocks;
QLoRA is that on 4-bit layers of bitsandbytes (NF4), where this is installed: it is no dependency of kanna.

peak       most resident memory while steps run (VmHWM, set back behind loading), beyond that of a process
           which has imported everything
saved      bytes that autograd keeps between the two passes, each storage once, and what of them are weights
           of the blocks' matrices: parameters and buffers there, and tensors of a matrix' shape that were
           made on the way; beside that, how many times what is stored of the matrices (codes, scales and
           zero-points). A function that hides its tensors from autograd's hooks is not seen: such are the
           4-bit layers of bitsandbytes, whose packed weights count as 0 here
step       the median, in processor seconds (which other programs disturb less than the clock), the first
           aside
"""

import argparse
import ctypes
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from torch import Tensor, nn

import kanna
from kanna.forms.base import FormModule, install

METHODS = ("full", "lora", "qlora", "channel", "group")
NOT_INSTALLED = "not installed"


@dataclass(frozen=True)
class Cost:
    """Of one method.

    Args:
        name: What was trained.
        trained: Numbers.
        peak: Bytes.
        saved: Bytes for the way back.
        weights: Of these, those of matrices.
        stored: Bytes of codes, scales and zero-points; of kanna's alone.
        seconds: Of a step.
        threads: How many computed.
    """

    name: str
    trained: int
    peak: int
    saved: int
    weights: int
    stored: int
    seconds: float
    threads: int


def status(field: str) -> int:
    """Bytes that Linux has for this process."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def forget_peak() -> None:
    """VmHWM begins anew at what is resident now; what was freed is given back first."""
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


class Saved:
    """What autograd keeps, each storage once.

    Args:
        model: Whose matrices are told apart.
        tokens: Of a step: what has as many rows is an activation.
    """

    def __init__(self, model: nn.Module, tokens: int) -> None:
        self.tokens, self.sizes = tokens, dict[int, int]()
        layers = [module for path, module in model.named_modules() if _is_matrix(path, module)]
        self.shapes = {(layer.out_features, layer.in_features) for layer in layers}
        own = [tensor for layer in layers for tensor in (*layer.parameters(), *layer.buffers())]
        self.own = {tensor.untyped_storage().data_ptr() for tensor in own}
        self.weights: set[int] = set()
        self._alive: list[Tensor] = []  # so that no other tensor gets a place that was counted

    def __call__(self, tensor: Tensor) -> Tensor:
        place = tensor.untyped_storage().data_ptr()
        self.sizes[place] = tensor.untyped_storage().nbytes()
        self._alive.append(tensor)
        if place in self.own or self._made(tuple(tensor.shape)):
            self.weights.add(place)
        return tensor

    def _made(self, shape: tuple[int, ...]) -> bool:
        return self.tokens not in shape and (shape in self.shapes or shape[::-1] in self.shapes)

    def bytes(self, of_weights: bool = False) -> int:
        return sum(size for place, size in self.sizes.items() if not of_weights or place in self.weights)


def _is_matrix(path: str, module: nn.Module) -> bool:
    return ".layers." in f".{path}" and isinstance(module, nn.Linear | FormModule)


def prepared(method: str, options: argparse.Namespace) -> tuple[nn.Module, Mapping[str, nn.Parameter]]:
    """The model, and what of it learns."""
    dtype = getattr(torch, options.dtype)
    if method in ("channel", "group"):
        model, _ = kanna.load(options.scratch / "whole", dtype=dtype)
        return model, kanna.scales.trainable(model, method)
    model, _ = kanna.load(options.scratch / "model", dtype=dtype)
    if method == "full":
        model.requires_grad_(True)
        return model, dict(model.named_parameters())
    model.requires_grad_(False)
    if method == "qlora":
        _to_four_bits(model, dtype)
    return model, _with_lora(model, options.lora_rank)


def _to_four_bits(model: nn.Module, dtype: torch.dtype) -> None:
    """Matrices of the blocks as NF4, one after the other."""
    from bitsandbytes.nn import Linear4bit, Params4bit

    for path, layer in [each for each in model.named_modules() if _is_matrix(*each)]:
        packed = Linear4bit(
            layer.in_features, layer.out_features, bias=False, compute_dtype=dtype, quant_type="nf4"
        )
        packed.weight = Params4bit(layer.weight.data, requires_grad=False, quant_type="nf4")
        install(model, path, packed.to("cpu"))


def _with_lora(model: nn.Module, rank: int) -> dict[str, nn.Parameter]:
    from peft import LoraConfig, inject_adapter_in_model

    targets = [path for path, module in model.named_modules() if _is_matrix(path, module)]
    given = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=targets, lora_dropout=0.0)
    inject_adapter_in_model(given, model)
    return {name: p for name, p in model.named_parameters() if "lora_" in name}


def measured(method: str, options: argparse.Namespace) -> Cost:
    """Steps of one method, in this process."""
    torch.set_num_threads(options.threads)
    from peft import LoraConfig as _  # so that what is imported counts for all alike

    if importlib.util.find_spec("bitsandbytes"):
        import bitsandbytes as _  # noqa: F401
    nn.Linear(8, 8)(torch.ones(1, 8)).sum().backward()
    before = status("VmRSS")
    model, learnt = prepared(method, options)
    model.train()
    optimiser = torch.optim.AdamW(learnt.values(), lr=1e-4, weight_decay=0.0)
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(1, options.vocabulary, (1, options.tokens), generator=draw)
    saved = Saved(model, options.tokens)

    def step() -> None:
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)

    with torch.autograd.graph.saved_tensors_hooks(saved, lambda tensor: tensor):
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
    del loss
    counted = saved.bytes(), saved.bytes(of_weights=True)
    del saved
    step()  # averages of the optimiser are there from here on
    forget_peak()
    taken = [_timed(step) for _ in range(options.steps)]
    kept = ("weight_packed", "weight_scale", "weight_zero_point")
    stored = sum(buffer.nbytes for name, buffer in model.named_buffers() if name.endswith(kept))
    trained = sum(parameter.numel() for parameter in learnt.values())
    peak = status("VmHWM") - before
    name = names(options)[method]
    return Cost(name, trained, peak, *counted, stored, median(taken), torch.get_num_threads())


def _timed(step: Any) -> float:
    began = time.process_time()
    step()
    return time.process_time() - began


def names(options: argparse.Namespace) -> dict[str, str]:
    rank = options.lora_rank
    return {
        "full": "full fine-tuning",
        "lora": f"LoRA, rank {rank}",
        "qlora": f"QLoRA, rank {rank}",
        "channel": "kanna tune, channel",
        "group": f"kanna tune, group ({options.group})",
    }


def write_models(directory: Path, options: argparse.Namespace) -> int:
    """A random Llama with a tokenizer of one token a word, the same as whole numbers; its parameters."""
    from tokenizers import Tokenizer, models
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = {f"w{index}": index for index in range(options.vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="w0").save_pretrained(directory / "model")
    config = LlamaConfig(
        hidden_size=options.hidden,
        num_hidden_layers=options.layers,
        intermediate_size=options.intermediate,
        num_attention_heads=max(1, options.hidden // 64),
        vocab_size=options.vocabulary,
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=0,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).to(getattr(torch, options.dtype))
    model.save_pretrained(directory / "model")
    count = sum(parameter.numel() for parameter in model.parameters())
    del model
    whole = kanna.QuantizeConfig(bits=options.bits, group=options.group, method="minmax")
    kanna.quantize(directory / "model", directory / "whole", whole)
    return count


def run(method: str, folder: str, options: argparse.Namespace) -> Cost | None:
    """One method in a process of its own; None for what is not installed."""
    if method == "qlora" and importlib.util.find_spec("bitsandbytes") is None:
        return None
    print(f"{method} ...", file=sys.stderr, flush=True)
    here = [sys.executable, str(Path(__file__).resolve()), *sys.argv[1:]]
    command = [*here, "--one", method, "--scratch", folder]
    ran = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return Cost(**json.loads(ran.stdout.splitlines()[-1]))


def table(found: Mapping[str, Cost | None], options: argparse.Namespace) -> Iterator[str]:
    """All figures; ratios are to LoRA."""
    lora = found["lora"]
    assert lora is not None
    yield "| | learnt | peak | saved for backward | of that weights | of what is stored | step |"
    yield "|---|---:|---:|---:|---:|---:|---:|"
    for method, cost in found.items():
        if cost is None:
            yield f"| {names(options)[method]} | {NOT_INSTALLED} | | | | | |"
            continue
        of_stored = f"{cost.weights / cost.stored:.2f}x" if cost.stored else ""
        yield (
            f"| {cost.name} | {cost.trained:,} | {cost.peak / 1e6:,.0f} MB ({cost.peak / lora.peak:.2f}x) | "
            f"{cost.saved / 1e6:,.0f} MB ({cost.saved / lora.saved:.2f}x) | {cost.weights / 1e6:,.0f} MB | "
            f"{of_stored} | {cost.seconds:.2f} s ({cost.seconds / lora.seconds:.2f}x) |"
        )


def aims(found: Mapping[str, Cost | None]) -> Iterator[str]:
    """What it is to show, and whether it does."""
    lora, qlora, channel, group = (found.get(name) for name in ("lora", "qlora", "channel", "group"))
    if channel is not None and lora is not None:
        yield _aim("channel: saved weights, of what is stored", channel.weights / channel.stored, 1.25)
        yield _aim("channel: step, of LoRA's", channel.seconds / lora.seconds, 1.5)
    if channel is not None and qlora is not None:
        yield _aim("channel: peak, of QLoRA's", channel.peak / qlora.peak, 1.0)
    if group is not None and lora is not None:
        yield _aim("group: saved weights, of what is stored", group.weights / group.stored, 1.25)
        yield _aim("group: step, of LoRA's", group.seconds / lora.seconds, 3.0)


def _aim(what: str, ratio: float, most: float) -> str:
    return f"{what}: {ratio:.2f}x, at most {most:g}x wanted: {'reached' if ratio <= most else 'not reached'}"


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--small", action="store_true", help="a tiny model")
    parser.add_argument("--hidden", type=int, default=1536)
    parser.add_argument("--layers", type=int, default=10)
    parser.add_argument("--intermediate", type=int, default=4096)
    parser.add_argument("--vocabulary", type=int, default=8192)
    parser.add_argument("--tokens", type=int, default=512, help="of a step")
    parser.add_argument("--steps", type=int, default=3, help="that are measured")
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--group", default="64")
    parser.add_argument("--lora-rank", type=int, default=8)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="also write the figures as JSON")
    parser.add_argument("--one", choices=METHODS, help=argparse.SUPPRESS)
    parser.add_argument("--scratch", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(given)
    if options.small:
        options.hidden, options.layers, options.intermediate, options.vocabulary = 256, 3, 704, 512
    if "lora" not in options.methods:
        parser.error("--methods: all is told as ratios to lora")
    return options


def main() -> None:
    options = arguments()
    if options.one:
        print(json.dumps(asdict(measured(options.one, options))))
        return
    with tempfile.TemporaryDirectory() as folder:
        count = write_models(Path(folder), options)
        found = {method: run(method, folder, options) for method in options.methods}
    if options.out:
        told = {method: None if cost is None else asdict(cost) for method, cost in found.items()}
        options.out.write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
    print(
        f"{count:,} parameters, {options.tokens} tokens a step, {options.dtype}, {options.threads} threads, "
        f"{options.bits} bits in groups of {options.group}"
    )
    for line in (*table(found, options), "", *aims(found)):
        print(line)


if __name__ == "__main__":
    main()

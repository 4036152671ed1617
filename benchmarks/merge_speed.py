"""What a merge costs in CPU time, memory and bytes read, beside mergekit on the same models.

    python benchmarks/merge_speed.py --mergekit ENV/bin/mergekit-yaml
    python benchmarks/merge_speed.py --mergekit ENV/bin/mergekit-yaml --quick     a sixth of the size

The model has the shape of a Llama of about 0.1 B parameters whose embedding is 68 M of them (bfloat16,
random); its fine-tunes differ from it a little. All programs are whole processes with one thread, in turn:

    mergekit   neither hashes nor loads
    plain      kanna without numba: hashes all it reads and writes, loads nothing (--no-load)
    fast       the same with the loops of kanna[fast]
    loaded     plain, and looks whether the result loads and computes, as is done where it fits into memory

CPU seconds are those of the process and its children, peak memory is anonymous (files that are mapped do not
count), bytes read are what the process asked the system for, its own code among them. Figures are medians
over --repeat. The start of the programs is measured with a model of 0.1 MB; "beyond" is what is left without
it, which is what grows with the model. What is compiled is compiled before anything is measured.

Last, the time that cp takes for the bytes, and the memory of kanna on a model of four times the layers and
vocabulary.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

_SHAPE = {"hidden": 1024, "vocabulary": 66560, "layers": 3}
_METHODS: dict[str, dict[str, Any]] = {
    "linear": {},
    "task_arithmetic": {},
    "slerp": {"parameters": {"t": 0.4}},
    "ties": {"density": 0.4},
    "dare_ties": {"density": 0.4},
}
# Environment and further options of each program that is kanna.
_PROGRAMS: dict[str, tuple[str, tuple[str, ...]]] = {
    "plain": ("off", ("--no-load",)),
    "fast": ("on", ("--no-load",)),
    "loaded": ("off", ()),
}
_KANNA = "import sys; from kanna.cli.main import main; sys.exit(main(sys.argv[1:]))"


def make(place: Path, hidden: int, vocabulary: int, layers: int, models: int) -> list[Path]:
    """A base and its fine-tunes."""
    inner, heads = hidden * 5 // 2, hidden // 64
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": hidden,
        "intermediate_size": inner, "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": heads, "vocab_size": vocabulary, "max_position_embeddings": 512,
        "tie_word_embeddings": True, "torch_dtype": "bfloat16", "rms_norm_eps": 1e-5, "bos_token_id": 1,
        "eos_token_id": 2,
    }  # fmt: skip
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocabulary, hidden)}
    for layer in range(layers):
        name = f"model.layers.{layer}."
        shapes |= {f"{name}self_attn.{one}_proj.weight": (hidden, hidden) for one in "qkvo"}
        shapes |= {f"{name}mlp.{one}_proj.weight": (inner, hidden) for one in ("gate", "up")}
        shapes[f"{name}mlp.down_proj.weight"] = (hidden, inner)
        shapes |= {f"{name}{one}_layernorm.weight": (hidden,) for one in ("input", "post_attention")}
    shapes["model.norm.weight"] = (hidden,)
    random = torch.Generator().manual_seed(0)
    base = {
        name: (0.02 * torch.randn(shape, generator=random) + (len(shape) == 1)).bfloat16()
        for name, shape in shapes.items()
    }
    out = []
    for number in range(models):
        directory = place / f"model-{number}"
        directory.mkdir(parents=True)
        tensors = base
        if number:
            tensors = {
                name: (values.float() + 1e-3 * torch.randn(values.shape, generator=random)).bfloat16()
                for name, values in base.items()
            }
        save_file(tensors, directory / "model.safetensors", {"format": "pt"})
        (directory / "config.json").write_text(json.dumps(config))
        out.append(directory)
    return out


def recipe(method: str, models: list[Path]) -> str:
    more = dict(_METHODS[method])
    density = more.pop("density", None)
    base, *others = models
    own = {"weight": 0.5} | ({} if density is None else {"density": density})
    listed = [{"model": str(one), **({} if method == "slerp" else {"parameters": own})} for one in others]
    if method == "slerp":
        listed = [{"model": str(base)}, listed[0]]
    needs_base = method != "linear"
    return json.dumps(
        {
            "merge_method": method,
            "models": listed,
            **({"base_model": str(base)} if needs_base else {}),
            "dtype": "float32",
            "out_dtype": "bfloat16",
            **more,
        }
    )


def measured(command: list[str], environment: dict[str, str]) -> dict[str, float]:
    """CPU and wall seconds, peak anonymous bytes and bytes asked for, of a process that must succeed."""
    started = time.perf_counter()
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(command, env=environment, stdout=said, stderr=subprocess.STDOUT)
        peak, read = 0, 0
        while True:
            done, status, usage = os.wait4(process.pid, os.WNOHANG)
            if done:
                break
            try:
                status_lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
                peak = max(
                    peak, *(int(line.split()[1]) * 1024 for line in status_lines if "RssAnon" in line), 0
                )
                lines = Path(f"/proc/{process.pid}/io").read_text().splitlines()
                read = max(read, *(int(line.split()[1]) for line in lines if line.startswith("rchar")))
            except (OSError, TypeError, ValueError):
                pass
            time.sleep(0.02)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            said.seek(0)
            sys.exit(f"{command[0]} failed:\n{said.read().decode(errors='replace')[-3000:]}")
    return {
        "cpu": usage.ru_utime + usage.ru_stime,
        "wall": time.perf_counter() - started,
        "peak": float(peak),
        "read": float(read),
    }


def run(
    program: str, method: str, models: list[Path], place: Path, arguments: argparse.Namespace
) -> dict[str, float]:
    file, out = place / f"{method}.yml", place / f"out-{program}"
    file.write_text(recipe(method, models))
    shutil.rmtree(out, ignore_errors=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    if program == "mergekit":
        environment.pop("PYTHONPATH", None)
        command = [arguments.mergekit, str(file), str(out), "--no-write-model-card", "--random-seed", "0"]
    else:
        switch, options = _PROGRAMS[program]
        environment["KANNA_FAST"] = switch
        command = [sys.executable, "-c", _KANNA, "merge", "run", str(file), "--out", str(out), "--force"]
        command += options
    found = measured(command, environment)
    shutil.rmtree(out, ignore_errors=True)
    return found


def copied(models: list[Path], place: Path) -> float:
    """Wall seconds of cp for the same bytes: all that linear reads once, what it writes once."""
    target = place / "copy"
    target.mkdir()
    started = time.perf_counter()
    for model in models:
        subprocess.run(["cp", str(model / "model.safetensors"), str(target / f"{model.name}.x")], check=True)
    took = time.perf_counter() - started
    shutil.rmtree(target)
    return took


def median(runs: list[dict[str, float]], key: str) -> float:
    return statistics.median(one[key] for one in runs)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mergekit", required=True, help="mergekit-yaml, in an environment of its own")
    parser.add_argument("--methods", nargs="+", choices=list(_METHODS), default=list(_METHODS))
    parser.add_argument("--programs", nargs="+", choices=list(_PROGRAMS), default=list(_PROGRAMS))
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--room", type=Path, help="where models are made; a temporary folder by default")
    parser.add_argument("--journal", type=Path, help="finished runs are lines here, and not done again")
    arguments = parser.parse_args()
    shape = {**_SHAPE, **({"hidden": 512, "vocabulary": 16640} if arguments.quick else {})}
    with tempfile.TemporaryDirectory(dir=arguments.room) as room:
        place = Path(room)
        models = make(place / "models", **shape, models=3)
        size = sum(file.stat().st_size for file in (place / "models").rglob("*.safetensors")) / 3
        print(f"models of {size / 1e6:.0f} MB, medians of {arguments.repeat} runs of each program, in turn\n")
        tiny = make(place / "tiny", 64, 512, 1, 3)
        for program in arguments.programs:
            run(program, "dare_ties", tiny, place, arguments)  # compiles what is not compiled yet
        starts = journalled("start", tiny, place, arguments)
        header = (
            "method", "program", "CPU s", "ratio", "beyond", "ratio", "peak MB", "read MB", "of inputs",
            "wall s",
        )  # fmt: skip
        print(" ".join(f"{one:>16}" if not at else f"{one:>10}" for at, one in enumerate(header)), flush=True)
        for program, runs in starts.items():
            print(f"{'start':>16} {program:>10} {median(runs, 'cpu'):>10.2f}", flush=True)
        for method in arguments.methods:
            inputs = size * {"linear": 2, "slerp": 2}.get(method, 3)
            show(method, journalled(method, models, place, arguments), starts, inputs)
        print(f"\ncp of three models: {copied(models, place):.2f} s")
        small = measured_memory(models, place, arguments)
        shutil.rmtree(place / "models")
        larger = {**shape, "layers": 4 * shape["layers"], "vocabulary": 4 * shape["vocabulary"]}
        big = measured_memory(make(place / "models", **larger, models=3), place, arguments)
        for method, before in small.items():
            print(f"{method}: peak with a model four times as large {big[method] / before:.3f}x")


def show(
    method: str,
    found: dict[str, list[dict[str, float]]],
    starts: dict[str, list[dict[str, float]]],
    inputs: float,
) -> None:
    """A line for each program; ratios say how many times as much mergekit takes."""
    theirs = median(found["mergekit"], "cpu")
    beyond = {one: median(runs, "cpu") - median(starts[one], "cpu") for one, runs in found.items()}
    for program, runs in found.items():
        cpu = median(runs, "cpu")
        figures = (
            f"{cpu:.2f}", f"{theirs / cpu:.2f}x", f"{beyond[program]:.2f}",
            f"{beyond['mergekit'] / max(beyond[program], 0.01):.2f}x", f"{median(runs, 'peak') / 1e6:.0f}",
            f"{median(runs, 'read') / 1e6:.0f}", f"{median(runs, 'read') / inputs:.2f}x",
            f"{median(runs, 'wall'):.2f}",
        )  # fmt: skip
        print(f"{method:>16} {program:>10} " + " ".join(f"{one:>10}" for one in figures), flush=True)


def measured_memory(models: list[Path], place: Path, arguments: argparse.Namespace) -> dict[str, float]:
    chosen = [one for one in ("linear", "slerp", "ties") if one in arguments.methods]
    return {method: run("plain", method, models, place, arguments)["peak"] for method in chosen}


def journalled(
    method: str, models: list[Path], place: Path, arguments: argparse.Namespace
) -> dict[str, list[dict[str, float]]]:
    """Runs of all programs, those of an earlier call of the script among them."""
    found: dict[str, list[dict[str, float]]] = {one: [] for one in ("mergekit", *arguments.programs)}
    journal = arguments.journal
    if journal is not None and journal.exists():
        for line in journal.read_text().splitlines():
            entry = json.loads(line)
            if (entry["method"], entry["quick"]) == (method, arguments.quick) and entry["program"] in found:
                found[entry["program"]].append(entry["figures"])
    for _ in range(arguments.repeat):
        for program, runs in found.items():
            if len(runs) >= arguments.repeat:
                continue
            runs.append(run(program, "linear" if method == "start" else method, models, place, arguments))
            if journal is not None:
                entry = {"method": method, "quick": arguments.quick, "program": program, "figures": runs[-1]}
                with journal.open("a") as file:
                    file.write(json.dumps(entry) + "\n")
    return found


if __name__ == "__main__":
    main()

"""Tucker of stacks (heads of a projection, one role of neighbouring layers) beside per-matrix factors.

    python benchmarks/tucker_heads.py MODEL --calibration FILE --text FILE --out DIR

Every attention projection of MODEL (a Llama-like model) is approximated at equal bytes by

    pair     its own two factors at the uniform rank int(keep m n / (m + n))
    heads    Tucker of its heads (heads, d, n), with at most the numbers of the pair
    stack    Tucker of the same role in L neighbouring layers (L, m, n), with at most the numbers of L pairs

under two errors: *plain*, || W - W' ||_F / || W ||_F, and *whitened*, the same of (W - W') R with R R^T the
second moments of the inputs on the calibration text (ridge 1e-3). Modes of full rank store no matrix, and the
case in which Tucker is the pair itself (all heads and head widths of full rank) is left out. Ranks: of all
that fit, by the HOSVD's energy; the best two go through HOOI. Where that does not know the whitened error (o,
whose inputs are heads; stacks, whose layers have metrics of their own) HOOI starts from the nearest metric
that it knows; then the cores are refitted under the true one, and for o everything is polished by L-BFGS. So
Tucker gets more work than the pair, whose optimum is one decomposition.

Perplexity: all attention projections replaced by `pair`, by `heads`, by heads for o alone (mixed), or by
`stack` (where every layer is in one), made under the whitened error from weights rounded to the dtype of
MODEL's files; windows of `--context` tokens that do not overlap.

Everything finished is kept in `--out` and not computed again. `--every N` takes each Nth layer, and
each Nth stack, only; perplexity is then that of the model with these layers' projections replaced.
"""

import argparse
import copy
import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from kanna.calibration.statistics import InputStatistics
from kanna.calibration.windows import packed
from kanna.forms import Form, LowRank, from_json, install
from kanna.linalg.whitening import balanced, basis, factors, with_ridge
from kanna.tasks.data.rows import read_rows
from kanna.tasks.scorers.perplexity import perplexity
from tucker_form import Tucker, hooi, hosvd, project

ROLES = ("q", "k", "v", "o")
RIDGE = 1e-3
TRIED = 2  # rank triples that go through HOOI
SWEEPS = 3
Ranks = tuple[int, int, int]


@dataclass(frozen=True)
class Approximation:
    """W' and how it is stored; `parameters` counts what `form` does."""

    dense: Tensor
    form: Form
    tensors: dict[str, Tensor]
    ranks: tuple[int, ...]


def count(ranks: Ranks, sizes: Sequence[int]) -> int:
    """Numbers stored: the core, and a matrix for each mode that is not of full rank."""
    return math.prod(ranks) + sum(r * d for r, d in zip(ranks, sizes, strict=True) if r < d)


def candidates(sizes: Ranks, budget: int, free: Sequence[int] = (0, 1)) -> Iterator[Ranks]:
    """Rank triples that fit the budget and none of which can grow in its last mode.

    Args:
        free: Modes of which at least one must be below full rank.
    """
    a, b, c = sizes
    step = max(1, b // 24)
    for r1 in range(1, a + 1):
        widest = next((r2 for r2 in range(b, 0, -1) if count((r1, r2, c), sizes) <= budget), 0)
        for r2 in sorted({*range(step, b + 1, step), b, *([widest] if widest else [])}):
            fixed = count((r1, r2, 0), sizes)
            full = count((r1, r2, c), sizes) <= budget
            r3 = c if full else min((budget - fixed) // (r1 * r2 + c), r1 * r2, c - 1)
            ranks = (r1, r2, r3)
            fits = [r == d or r * r <= math.prod(ranks) for r, d in zip(ranks, sizes, strict=True)]
            usable = r3 > 0 and all(fits)
            if usable and any(ranks[mode] < sizes[mode] for mode in free):
                yield ranks


def best_hooi(tensor: Tensor, budget: int, free: Sequence[int] = (0, 1)) -> list[Tensor]:
    """Factors after HOOI of the best of the TRIED rank triples whose HOSVD keeps most energy."""
    start = hosvd(tensor)
    rotated = tensor
    for mode, left in enumerate(start):
        rotated = torch.tensordot(left.T, rotated, dims=([1], [mode])).movedim(0, mode)
    energy = rotated.square().cumsum(0).cumsum(1).cumsum(2)
    sizes = (tensor.shape[0], tensor.shape[1], tensor.shape[2])
    kept = {ranks: float(energy[tuple(r - 1 for r in ranks)]) for ranks in candidates(sizes, budget, free)}
    tried = sorted(kept, key=lambda ranks: -kept[ranks])[:TRIED]
    found = [hooi(tensor, ranks, start, SWEEPS, 1e-6) for ranks in tried]
    return max(found, key=lambda parts: float(project(tensor, parts).square().sum()))


def pair(weight: Tensor, gram: Tensor | None, rank: int) -> Approximation:
    """The optimum of rank `rank`."""
    expand, reduce = balanced(*factors(weight, basis(weight, gram, max_rank=rank), rank))
    return Approximation(expand @ reduce, LowRank(rank), {"expand": expand, "reduce": reduce}, (rank,))


def heads_out(weight: Tensor, gram: Tensor | None, heads: int, budget: int) -> Approximation:
    """Tucker of (heads, d, n), exact in its metric: the tensor is whitened along n."""
    m, n = weight.shape
    root = torch.eye(n, dtype=weight.dtype) if gram is None else torch.linalg.cholesky(gram)
    tensor = (weight @ root).view(heads, m // heads, n)
    mix, within, outer = best_hooi(tensor, budget)
    core = project(tensor, (mix, within, outer))
    back = torch.linalg.solve_triangular(root, outer.T, upper=False, left=False)
    core = core.flatten(0, 1) @ back if len(back) == n else core.flatten(0, 1)
    return _packed(mix, within, core, None if len(back) == n else back, "out")


def heads_in(weight: Tensor, gram: Tensor | None, heads: int, budget: int) -> Approximation:
    """Tucker of (heads, d, m), W (m, heads * d): HOOI in the nearest Kronecker metric, refit, polish."""
    m, n = weight.shape
    width = n // heads
    a, b = (torch.eye(size, dtype=weight.dtype) for size in (heads, width))
    if gram is not None:
        a, b = (torch.linalg.cholesky(part) for part in nearest_kronecker(gram, heads))
    tensor = (weight @ torch.kron(a, b)).T.reshape(heads, width, m)
    mix, within, outer = best_hooi(tensor, budget)
    rank = outer.shape[1]
    if gram is None:
        core = project(tensor, (mix, within, outer)).flatten(0, 1)
        return _packed(mix, within, core, None if rank == m else outer.T, "in")
    mix = mix if len(mix) == mix.shape[1] else torch.linalg.solve_triangular(a.T, mix, upper=True)
    within = (
        within if len(within) == within.shape[1] else torch.linalg.solve_triangular(b.T, within, upper=True)
    )
    mix, within = polished(weight, gram, mix, within, rank)
    expand, reduce = refitted(weight, gram, mix, within, rank)
    if rank == m:
        return _packed(mix, within, (expand @ reduce).T, None, "in")
    expand, reduce = balanced(expand, reduce)
    return _packed(mix, within, reduce.T, expand.T, "in")


def refitted(weight: Tensor, gram: Tensor, mix: Tensor, within: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The best expand (m, rank) and reduce (rank, r1 r2) behind mix x within; rank is at most r1 r2."""
    p = torch.kron(mix.contiguous(), within.contiguous())
    inner = p.T @ gram @ p
    target = torch.linalg.solve(inner, p.T @ gram @ weight.T).T
    rank = min(rank, *target.shape)
    return factors(target, basis(target, inner, max_rank=rank), rank)


def polished(
    weight: Tensor, gram: Tensor, mix: Tensor, within: Tensor, rank: int, steps: int = 20
) -> tuple[Tensor, Tensor]:
    """`mix` and `within` after L-BFGS on the true error, together with what follows them."""
    expand, reduce = balanced(*refitted(weight, gram, mix, within, rank))
    square = (mix.shape[0] == mix.shape[1], within.shape[0] == within.shape[1])
    held = [
        t.clone(memory_format=torch.contiguous_format).requires_grad_() for t in (mix, within, expand, reduce)
    ]
    moving = [t for t, fixed in zip(held, (*square, False, False), strict=True) if not fixed]
    root = torch.linalg.cholesky(gram)
    target = weight @ root
    total = target.square().sum()
    optimiser = torch.optim.LBFGS(moving, max_iter=steps, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        p = torch.kron(held[0], held[1])
        loss = (target - held[2] @ (held[3] @ (p.T @ root))).square().sum() / total
        loss.backward()
        return loss

    before = closure().item()
    optimiser.step(closure)
    better = closure().item() < before
    return (held[0].detach(), held[1].detach()) if better else (mix, within)


def nearest_kronecker(gram: Tensor, heads: int) -> tuple[Tensor, Tensor]:
    """A (heads, heads) and B (d, d), positive definite, with A x B nearest to `gram` (Van Loan 1993)."""
    width = len(gram) // heads
    blocks = gram.view(heads, width, heads, width).permute(0, 2, 1, 3).reshape(heads * heads, -1)
    left, values, right = torch.linalg.svd(blocks, full_matrices=False)
    a, b = (left[:, 0] * values[0]).view(heads, heads), right[0].view(width, width)
    sign = torch.sign(a.trace())
    return with_ridge(sign * (a + a.T) / 2, RIDGE), with_ridge(sign * (b + b.T) / 2, RIDGE)


def _packed(mix: Tensor, within: Tensor, core: Tensor, outer: Tensor | None, side: str) -> Approximation:
    """The form; mix (heads, r1), within (d, r2), core (r1 r2, r3), outer (r3, n), written for side "out"."""
    heads, r1 = mix.shape
    width, r2 = within.shape
    parts = {"core": core}
    parts |= {"mix": mix} if r1 < heads else {}
    parts |= {"within": within} if r2 < width else {}
    parts |= {} if outer is None else {"outer": outer}
    parts = parts if side == "out" else {name: part.T for name, part in parts.items()}
    parts = {name: part.contiguous() for name, part in parts.items()}
    form = Tucker(
        heads,
        side,
        r1 if r1 < heads else None,
        r2 if r2 < width else None,
        None if outer is None else len(outer),
    )
    return Approximation(form.dense(form.pack(parts), core.dtype), form, parts, (r1, r2, core.shape[1]))


def stack(
    weights: Sequence[Tensor], grams: Sequence[Tensor] | None, budget: int, dtype: torch.dtype
) -> tuple[list[Tensor], Ranks]:
    """W' of every layer of a stack (L, m, n), and the ranks; cores refitted under each layer's metric.

    Layers count equally. Left of rank m, and L cores: W' is core_l @ right^T, a pair whose `reduce` the
    layers share, and is stored as that.

    Args:
        dtype: What the factors are rounded to.
    """
    root = torch.eye(weights[0].shape[1], dtype=weights[0].dtype)
    if grams is not None:
        shares = [g / _energy(w, g) for w, g in zip(weights, grams, strict=True)]
        root = torch.linalg.cholesky(sum(shares[1:], shares[0]) / len(shares))
    scales = [_energy(w, root @ root.T) ** 0.5 for w in weights]
    tensor = torch.stack([w @ root / s for w, s in zip(weights, scales, strict=True)])
    parts = best_hooi(tensor, budget, free=(0, 1, 2))
    mix, left, right = parts
    ranks = (mix.shape[1], left.shape[1], right.shape[1])
    core = project(tensor, parts)
    right = torch.linalg.solve_triangular(root.T, right, upper=True)
    if len(mix) == mix.shape[1] and grams is not None:
        both = zip(weights, grams, scales, strict=True)
        core = torch.stack(
            [torch.linalg.solve(right.T @ g @ right, right.T @ g @ w.T @ left).T / s for w, g, s in both]
        )
    core = core * torch.tensor(scales, dtype=core.dtype)[:, None, None] if mix.shape[1] == len(mix) else core
    mix = mix if mix.shape[1] == len(mix) else mix * torch.tensor(scales, dtype=core.dtype)[:, None]
    mix, left, core, right = (t.to(dtype).double() for t in (mix, left, core, right))
    return [left @ one @ right.T for one in torch.einsum("lr,rab->lab", mix, core)], ranks


def _energy(weight: Tensor, gram: Tensor | None) -> float:
    return float((weight.square() if gram is None else (weight @ gram) * weight).sum())


def error(weight: Tensor, approx: Tensor, gram: Tensor | None) -> float:
    return math.sqrt(max(_energy(weight - approx, gram), 0.0) / _energy(weight, gram))


@dataclass
class Bench:
    """One model, its statistics, and the journal of what is known."""

    options: argparse.Namespace

    def __post_init__(self) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        directory = self.options.model
        self.options.out.mkdir(parents=True, exist_ok=True)
        self.model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(directory)
        config = self.model.config
        self.stored = getattr(torch, json.loads((directory / "config.json").read_text())["dtype"])
        self.count = config.num_hidden_layers
        self.layers = range(0, self.count, self.options.every)
        kv = config.num_key_value_heads
        self.heads = {"q": config.num_attention_heads, "k": kv, "v": kv, "o": config.num_attention_heads}
        self.journal = self.options.out / "journal.jsonl"
        lines = self.journal.read_text().splitlines() if self.journal.exists() else []
        self.done: dict[str, list[dict[str, Any]]] = {(e := json.loads(x))["key"]: e["rows"] for x in lines}
        self.paths = {
            (layer, role): f"model.layers.{layer}.self_attn.{role}_proj"
            for layer, role in product(range(self.count), ROLES)
        }
        self.grams = self._statistics()

    def weight(self, layer: int, role: str) -> Tensor:
        found: Tensor = self.model.get_submodule(self.paths[layer, role]).weight.detach().double()
        return found

    def gram(self, layer: int, role: str) -> Tensor:
        return self.grams[f"{layer}.{'o' if role == 'o' else 'q'}"]

    def record(self, key: str, rows: list[dict[str, Any]], started: float) -> None:
        self.done[key] = rows
        with self.journal.open("a") as file:
            file.write(json.dumps({"key": key, "rows": rows}) + "\n")
        print(f"{key}: {time.perf_counter() - started:.1f} s", flush=True)

    def _statistics(self) -> dict[str, Tensor]:
        """Ridged mean x x^T of the inputs of q and of o, every layer."""
        file = self.options.out / "grams.safetensors"
        if file.exists():
            return load_file(file)
        sums: dict[str, InputStatistics] = {}
        handles = []
        for layer, role in product(range(self.count), ("q", "o")):
            module = self.model.get_submodule(self.paths[layer, role])
            found = sums[f"{layer}.{role}"] = InputStatistics.empty(module.in_features, "cpu")
            handles.append(
                module.register_forward_pre_hook(
                    lambda _, args, found=found: found.add(args[0].flatten(0, 1))
                )
            )
        options = self.options
        rows = read_rows(options.calibration)
        windows = packed(rows, self.tokenizer, options.tokens, options.context, 0)
        with torch.no_grad():
            for batch in windows.ids.split(8):
                self.model.model(batch, use_cache=False)
        for handle in handles:
            handle.remove()
        grams = {name: with_ridge(found.gram / found.count, RIDGE) for name, found in sums.items()}
        save_file(grams, file)
        return grams

    def run_layer(self, layer: int) -> None:
        """Errors of pair and heads; the whitened ones' tensors are kept for `perplexity`."""
        key, started = f"layer {layer}", time.perf_counter()
        if key in self.done:
            return
        rows: list[dict[str, Any]] = []
        tensors: dict[str, Tensor] = {}
        forms: dict[str, str] = {}
        for role, keep, metric in product(ROLES, self.options.keeps, ("whitened", "plain")):
            weight, gram = self.weight(layer, role), self.gram(layer, role) if metric == "whitened" else None
            m, n = weight.shape
            rank = int(keep * m * n / (m + n))
            budget = rank * (m + n)
            tucker = heads_in if role == "o" else heads_out
            made = {
                "pair": pair(weight, gram, rank),
                "heads": tucker(weight, gram, self.heads[role], budget),
            }
            size = {name: one.form.parameters(m, n) for name, one in made.items()}
            assert max(size.values()) <= budget
            row = {"role": role, "keep": keep, "metric": metric, "layer": layer, "dense": m * n}
            for name, one in made.items():
                row[name] = error(weight, one.dense, gram)
                row[f"{name}_parameters"], row[f"{name}_ranks"] = size[name], one.ranks
                if gram is not None:
                    label = f"{name}:{keep}:{self.paths[layer, role]}"
                    packed_ = one.form.pack({k: t.to(self.stored) for k, t in one.tensors.items()})
                    tensors |= {f"{label}:{k}": t.contiguous() for k, t in packed_.items()}
                    forms[label] = json.dumps(one.form.to_json())
            rows.append(row)
        save_file(tensors, self.options.out / f"layer-{layer:03d}.safetensors", forms)
        self.record(key, rows, started)

    def run_stack(self, depth: int, first: int) -> None:
        key, started = f"stack of {depth} from {first}", time.perf_counter()
        if key in self.done:
            return
        rows: list[dict[str, Any]] = []
        tensors: dict[str, Tensor] = {}
        layers = range(first, first + depth)
        for role, keep, metric in product(ROLES, self.options.keeps, ("whitened", "plain")):
            weights = [self.weight(layer, role) for layer in layers]
            grams = [self.gram(layer, role) for layer in layers] if metric == "whitened" else None
            m, n = weights[0].shape
            rank = int(keep * m * n / (m + n))
            found, ranks = stack(weights, grams, depth * rank * (m + n), self.stored)
            if grams is not None:
                label = f"stack of {depth}:{keep}"
                at = zip(layers, found, strict=True)
                tensors |= {f"{label}:{self.paths[layer, role]}": w.float().contiguous() for layer, w in at}
            alone = [pair(w, None if grams is None else grams[i], rank).dense for i, w in enumerate(weights)]
            row = {"role": role, "keep": keep, "metric": metric, "layer": first, "depth": depth}
            row["ranks"], row["sizes"] = list(ranks), [depth, m, n]
            for name, each in (("pair", alone), ("stack", found)):
                errors = [
                    error(w, w2, None if grams is None else grams[i])
                    for i, (w, w2) in enumerate(zip(weights, each, strict=True))
                ]
                row[name] = math.sqrt(sum(e * e for e in errors) / depth)
            rows.append(row)
        save_file(tensors, self.options.out / f"stack-{depth}-{first:03d}.safetensors")
        self.record(key, rows, started)

    def run_perplexity(self, name: str, keep: float) -> None:
        key, started = f"perplexity {name} {keep}", time.perf_counter()
        if key in self.done:
            return
        originals = {path: self.model.get_submodule(path) for path in self.paths.values()}
        size = 0
        if name == "dense":
            shapes = [originals[self.paths[at]].weight.numel() for at in product(self.layers, ROLES)]
            size = sum(shapes) * self.stored.itemsize
        elif name.startswith("stack"):
            self._install_stacks(name, keep)
        else:
            size = sum(self._install_layer(layer, name, keep) for layer in self.layers)
        joined = "\n\n".join(row.text for row in read_rows(self.options.text))
        ids = self.tokenizer(joined, return_tensors="pt", verbose=False)["input_ids"][0]
        context = self.options.context
        found = perplexity(self.model, ids[: self.options.eval_tokens], context, context).perplexity
        for path, module in originals.items():
            install(self.model, path, module)
        row = {"name": name, "keep": keep, "perplexity": found, "attention_bytes": size}
        self.record(key, [row], started)

    def _install_layer(self, layer: int, name: str, keep: float) -> int:
        """Put the modules of a layer in (`mixed`: pairs, and heads for o); their bytes."""
        size = 0
        with safe_open(self.options.out / f"layer-{layer:03d}.safetensors", "pt") as file:
            for role in ROLES:
                path = self.paths[layer, role]
                kind = name if name != "mixed" else "heads" if role == "o" else "pair"
                form = from_json(json.loads(file.metadata()[f"{kind}:{keep}:{path}"]))
                start = f"{kind}:{keep}:{path}:"
                names = [key for key in file.keys() if key.startswith(start)]  # noqa: SIM118
                state = {key.removeprefix(start): file.get_tensor(key) for key in names}
                m, n = self.model.get_submodule(path).weight.shape
                module = form.build(m, n, dtype=torch.float32)
                module.load_state_dict(state)
                install(self.model, path, module.eval())
                size += form.bytes(m, n, self.stored)
        return size

    def _install_stacks(self, name: str, keep: float) -> None:
        """Put what stacks multiply out to in: no form of one module can share a matrix with another."""
        for file in sorted(self.options.out.glob(f"{name.replace('stack of ', 'stack-')}-*.safetensors")):
            for key, weight in load_file(file).items():
                label, _, path = key.rpartition(":")
                if label == f"{name}:{keep}":
                    module = copy.deepcopy(self.model.get_submodule(path))
                    module.weight.data = weight
                    install(self.model, path, module)

    def run(self) -> None:
        for layer in self.layers:
            self.run_layer(layer)
        self.run_perplexity("dense", 1.0)
        for name, keep in product(("pair", "heads", "mixed"), self.options.keeps):
            self.run_perplexity(name, keep)
        for depth in (2, 4):
            for first in range(0, self.count - depth + 1, depth * self.options.every):
                self.run_stack(depth, first)
            for keep in self.options.keeps if self.options.every == 1 else ():
                self.run_perplexity(f"stack of {depth}", keep)

    def report(self) -> None:
        """Tables in Markdown, and who won."""
        rows = [row for rows in self.done.values() for row in rows]
        layers = [row for row in rows if "heads" in row]
        print("\n| keep | role | metric | pair | heads | stack of 2 | (pair) | stack of 4 | (pair) |")
        print("|---:|---|---|---:|---:|---:|---:|---:|---:|")
        for keep, role, metric in product(self.options.keeps, ROLES, ("plain", "whitened")):
            here: Mapping[str, Any] = {"keep": keep, "role": role, "metric": metric}
            match = [row for row in rows if here.items() <= row.items()]
            cells = [_mean(match, "pair", heads=True), _mean(match, "heads", heads=True)]
            for depth in (2, 4):
                stacks = [row for row in match if row.get("depth") == depth]
                cells += [_mean(stacks, "stack"), _mean(stacks, "pair")]
            print(f"| {keep} | {role} | {metric} | {' | '.join(cells)} |")
        won = [row for row in layers if row["heads"] < row["pair"]]
        for role, metric, keep in sorted({(row["role"], row["metric"], row["keep"]) for row in won}):
            wins = sum((row["role"], row["metric"], row["keep"]) == (role, metric, keep) for row in won)
            print(f"\nHeads won {wins} times for {role}, {metric}, keep {keep}.", end="")
        print("\n\n| attention projections replaced | bytes of them | perplexity |\n|---|---:|---:|")
        for row in rows:
            if "perplexity" in row:
                label = row["name"] if row["name"] == "dense" else f"{row['name']}, keep {row['keep']}"
                print(f"| {label} | {row['attention_bytes'] or 'as pairs'} | {row['perplexity']:.2f} |")
        for name, among in (("heads", layers), ("stack", [row for row in rows if "stack" in row])):
            for metric in ("plain", "whitened"):
                match = [row for row in among if row["metric"] == metric]
                wins = sum(row[name] < row["pair"] for row in match)
                print(f"\nTucker of {name}, {metric}: better than pairs in {wins} of {len(match)}.", end="")
        won = [row for row in rows if "stack" in row and row["stack"] < row["pair"]]
        shared = sum(row["ranks"][:2] == list(row["sizes"][:2]) for row in won)
        print(f" Of all stacks that won, {shared} of {len(won)} only share `reduce`.")


def _mean(rows: Sequence[Mapping[str, Any]], name: str, heads: bool = False) -> str:
    found = [row[name] for row in rows if name in row and ("heads" in row or not heads)]
    return f"{sum(found) / len(found):.4f}" if found else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--calibration", type=Path, required=True)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="journal and factors")
    parser.add_argument("--keeps", type=float, nargs="+", default=[0.8, 0.5])
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--eval-tokens", type=int, default=10_240)
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    bench = Bench(options)
    bench.run()
    bench.report()


if __name__ == "__main__":
    main()

"""How long the decomposition of one weight takes, for four ratios, against the usual routes.

    python benchmarks/lowrank_speed.py --shapes 1024x4096,2048x2048 --repeats 3 --out speed.json

Every route starts from the same weight W (m, n) and input statistics G = sum x x^T (n, n), and ends with the
factor pairs for keep 0.9, 0.8, 0.6 and 0.4:

    kanna       `basis` and `factors` once; each ratio is a prefix of the largest
    once        Cholesky of G, one torch.linalg.svd of the whitened weight, a triangular solve for each ratio
    per ratio   as published: the SVD again for each ratio (its Cholesky is counted once, and the triangular
                solve stands in for its slower explicit inverse)
    lowrank     Cholesky of G, one torch.svd_lowrank at the largest rank: not exact, its loss is shown

Losses ||(W - W')X||^2 are measured in float64 whatever the route computed in. The exact routes must agree
to 1e-4; if they do not, the exit code is 1. Routes take turns within each repeat; times are medians.
"""

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from kanna.linalg.whitening import basis, factors

KEEPS = (0.9, 0.8, 0.6, 0.4)
SHAPES = "1024x4096,2048x5504,2048x2048,4096x4096"
AGREEMENT = 1e-4

Pairs = list[tuple[Tensor, Tensor]]
Route = Callable[[Tensor, Tensor, list[int]], Pairs]


def kanna_route(weight: Tensor, gram: Tensor, ranks: list[int]) -> Pairs:
    parts = basis(weight, gram, dtype=weight.dtype, max_rank=max(ranks))
    expand, reduce = factors(weight, parts, max(ranks))
    return [(expand[:, :rank], reduce[:rank]) for rank in ranks]  # every smaller rank is a prefix


def svd_once(weight: Tensor, gram: Tensor, ranks: list[int]) -> Pairs:
    lower = torch.linalg.cholesky(gram)
    triplets = torch.linalg.svd(weight @ lower, full_matrices=False)
    return [unwhiten(triplets, lower, rank) for rank in ranks]


def svd_per_ratio(weight: Tensor, gram: Tensor, ranks: list[int]) -> Pairs:
    lower = torch.linalg.cholesky(gram)
    return [unwhiten(torch.linalg.svd(weight @ lower, full_matrices=False), lower, rank) for rank in ranks]


def svd_lowrank(weight: Tensor, gram: Tensor, ranks: list[int]) -> Pairs:
    lower = torch.linalg.cholesky(gram)
    u, s, v = torch.svd_lowrank(weight @ lower, q=min(max(ranks) + 16, *weight.shape))
    return [unwhiten((u, s, v.T), lower, rank) for rank in ranks]


def unwhiten(triplets: tuple[Tensor, Tensor, Tensor], lower: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    u, s, vh = triplets
    root = s[:rank].sqrt()
    reduce = torch.linalg.solve_triangular(lower, root[:, None] * vh[:rank], upper=False, left=False)
    return u[:, :rank] * root, reduce


ROUTES: dict[str, Route] = {
    "kanna": kanna_route,
    "once": svd_once,
    "per ratio": svd_per_ratio,
    "lowrank": svd_lowrank,
}


def problem(m: int, n: int, seed: int) -> tuple[Tensor, Tensor]:
    """A fresh weight, and statistics of correlated inputs whose directions fall off by e^-4 in scale."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(m, n, dtype=torch.float64, generator=generator) / n**0.5
    mixing = torch.randn(n, n, dtype=torch.float64, generator=generator) / n**0.5
    mixing.diagonal().add_(1.0)
    mixing *= torch.exp(-torch.linspace(0, 4, n, dtype=torch.float64))
    return weight, mixing @ mixing.T


def relative_losses(weight: Tensor, gram: Tensor, pairs: Pairs) -> list[float]:
    """||(W - W')X||^2 over ||W X||^2 for each pair, in float64."""
    total = float((weight * (weight @ gram)).sum())
    residuals = (weight - expand.double() @ reduce.double() for expand, reduce in pairs)
    return [float((residual * (residual @ gram)).sum()) / total for residual in residuals]


def ranks_of(m: int, n: int) -> list[int]:
    return [int(keep * m * n / (m + n)) for keep in KEEPS]


def measure(
    m: int, n: int, dtype: torch.dtype, routes: list[str], repeats: int, seed: int
) -> dict[str, object]:
    exact_weight, exact_gram = problem(m, n, seed)
    weight, gram, ranks = exact_weight.to(dtype), exact_gram.to(dtype), ranks_of(m, n)
    times: dict[str, list[float]] = {name: [] for name in routes}
    losses: dict[str, list[float]] = {}
    for repeat in range(repeats):
        for name in routes:
            start = time.perf_counter()
            pairs = ROUTES[name](weight, gram, ranks)
            times[name].append(time.perf_counter() - start)
            if repeat == 0:
                losses[name] = relative_losses(weight.double(), exact_gram, pairs)
    return {
        "shape": [m, n],
        "dtype": str(dtype).removeprefix("torch."),
        "ranks": dict(zip(map(str, KEEPS), ranks, strict=True)),
        "seconds": {name: median(taken) for name, taken in times.items()},
        "all_seconds": times,
        "relative_loss": losses,
        "exact_routes_differ_by": disagreement(losses),
    }


def disagreement(losses: dict[str, list[float]]) -> float:
    """The largest relative difference between the losses of the exact routes."""
    exact = [losses[name] for name in losses if name != "lowrank"]
    return max(max(column) / min(column) - 1.0 for column in zip(*exact, strict=True))


def describe(row: dict[str, object]) -> str:
    seconds, losses = row["seconds"], row["relative_loss"]
    assert isinstance(seconds, dict) and isinstance(losses, dict)
    m, n = row["shape"]  # type: ignore[misc]
    lines = [f"\n{m} x {n}, {row['dtype']}    relative loss at keep {', '.join(map(str, KEEPS))}"]
    for name, taken in seconds.items():
        ratio = f"{taken / seconds['kanna']:6.2f}x"
        shown = "  ".join(f"{loss:.6e}" for loss in losses[name])
        lines.append(f"  {name:10s} {taken:8.2f} s  {ratio}   {shown}")
    lines.append(f"  exact routes differ by {row['exact_routes_differ_by']:.1e} (allowed {AGREEMENT:g})")
    return "\n".join(lines)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shapes", default=SHAPES, help="comma separated, out x in")
    parser.add_argument("--dtypes", default="float64,float32", help="of every route, comma separated")
    parser.add_argument("--routes", default=",".join(ROUTES), help="comma separated, kanna among them")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seed", type=int, default=None, help="fresh by default")
    parser.add_argument("--out", type=Path, help="also write the figures as JSON")
    return parser.parse_args()


def main() -> int:
    options = arguments()
    torch.set_num_threads(options.threads)
    seed = time.time_ns() % 2**31 if options.seed is None else options.seed
    routes = options.routes.split(",")
    print(f"torch {torch.__version__}, {options.threads} threads, {options.repeats} repeats, seed {seed}")
    print("load average at the start: " + ", ".join(f"{load:.1f}" for load in os.getloadavg()))
    measure(256, 384, torch.float64, routes, 1, seed)
    measure(256, 384, torch.float32, routes, 1, seed)
    rows = []
    for shape in options.shapes.split(","):
        m, n = map(int, shape.split("x"))
        for dtype in options.dtypes.split(","):
            rows.append(measure(m, n, getattr(torch, dtype), routes, options.repeats, seed))
            print(describe(rows[-1]), flush=True)
    if options.out:
        about = {"torch": torch.__version__, "threads": options.threads, "machine": platform.processor()}
        options.out.write_text(json.dumps({**about, "seed": seed, "rows": rows}, indent=2) + "\n")
    return int(any(row["exact_routes_differ_by"] > AGREEMENT for row in rows))


if __name__ == "__main__":
    sys.exit(main())

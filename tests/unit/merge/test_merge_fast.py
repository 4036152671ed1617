"""Compiled loops: the bytes of the plain ones, whatever the values, chunks and threads; when they run."""

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from killing import hashes
from merge_models import recipe
from torch import Tensor

import kanna
from kanna.errors import InputError
from kanna.methods.merge.plan import BLOCK
from kanna.methods.merge.resolve import Values
from kanna.methods.merge.rules.fast import available
from kanna.methods.merge.rules.make import Subject, operation
from kanna.methods.merge.rules.pruning import hashed, words
from kanna.methods.merge.run import merge_plan

numba = pytest.importorskip("numba")
Models = dict[str, Path]
COUNT = 3 * BLOCK + 77


@pytest.fixture(scope="module", autouse=True)
def compiled_here(tmp_path_factory: pytest.TempPathFactory) -> None:
    """In a cache of its own, so that what is tested is not what somebody compiled before."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KANNA_CACHE", str(tmp_path_factory.mktemp("cache")))
        import kanna.methods.merge.rules.fast.compiled  # noqa: F401


def given(kind: str) -> list[Tensor]:
    """A base and three models whose differences are equal in many entries, or in none."""
    random = torch.Generator().manual_seed(7)
    base = torch.randn(COUNT, generator=random)
    if kind == "steps":
        base = (base * 8).round() / 8
        others = [base + torch.randint(-3, 4, (COUNT,), generator=random) / 8 for _ in range(3)]
    else:
        others = [base + torch.randn(COUNT, generator=random) * size for size in (1e-3, 0.1, 5.0)]
    base[:3] = others[0][:3] = torch.tensor([-0.0, 0.0, 1e-42])  # signs of 0 and subnormal numbers are kept
    others[1][:3] = torch.tensor([-0.0, -0.0, -1e-42])
    return [base, *others]


def run(method: str, values: Values, models: Sequence[Tensor], size: int, fast: bool) -> tuple[Tensor, Any]:
    act = operation(method, Subject("w", COUNT, models[0].dtype, 4, 0, values, 7, 3, None, fast))
    assert type(act).__name__.startswith("Fast") == (fast and models[0].dtype == torch.float32)

    def chunks() -> Iterator[list[Tensor]]:
        for chunk in zip(*(one.split(size) for one in models), strict=True):
            yield [one.clone() for one in chunk]

    for number in range(act.looks):
        for chunk in chunks():
            act.look(number, chunk)
    return torch.cat([act.merged(chunk) for chunk in chunks()]), act.kept


def settings(method: str, weights: Sequence[float], normalize: bool, **more: float) -> Values:
    each: dict[str, tuple[float, ...]] = {"weight": (0.0, *weights)}
    one: dict[str, float] = {"normalize": float(normalize), "lambda": -0.7, "rescale": 0.0}
    if method == "linear":
        each["weight"] = (0.2, *weights)
    if method != "linear" and method != "task_arithmetic":
        each["density"] = (0.0, more.pop("density", 0.37), 0.6, more.pop("last", 0.11))
    if "gamma" in more:
        each["gamma"] = (more.pop("gamma"),) * 4
    return Values(tuple(each.items()), tuple({**one, **more}.items()))


CASES = [
    ("linear", settings("linear", (0.4, 0.3, -0.2), True)),
    ("linear", settings("linear", (0.4, 0.3, -0.2), False)),
    ("task_arithmetic", settings("task_arithmetic", (0.4, 0.0, -0.3), False)),
    *(("ties", settings("ties", (0.4, 0.3, 0.1), normalize)) for normalize in (True, False)),
    ("ties", settings("ties", (0.4, 0.3, -0.1), True)),  # a weight of the other sign
    ("ties", settings("ties", (-0.4, -0.3, -0.1), True)),
    ("ties", settings("ties", (0.4, 0.3, 0.1), True, rescale=2.0)),
    ("ties", settings("ties", (0.4, 0.3, 0.1), True, density=1.0, last=0.0)),
    *(
        (method, settings(method, (0.4, 0.3, 0.1), False, gamma=0.05))
        for method in ("breadcrumbs", "breadcrumbs_ties")
    ),
    *(
        (method, settings(method, (0.4, 0.3, 0.1), True, rescale=1.0))
        for method in ("dare_linear", "dare_ties")
    ),
    ("dare_ties", settings("dare_ties", (0.4, 0.3, 0.1), True, rescale=2.0)),
]


@pytest.mark.parametrize("kind", ["steps", "fine"])
@pytest.mark.parametrize("case", range(len(CASES)), ids=[f"{name}-{n}" for n, (name, _) in enumerate(CASES)])
def test_the_bytes_are_those_of_the_plain_arithmetic(case: int, kind: str) -> None:
    method, values = CASES[case]
    models = given(kind)
    plain, kept = run(method, values, models, COUNT, False)
    assert not torch.equal(plain, models[0])
    for size in (BLOCK, COUNT):
        found, also_kept = run(method, values, models, size, True)
        assert torch.equal(found.view(torch.int32), plain.view(torch.int32))
        assert also_kept == kept


def test_wider_numbers_are_plain() -> None:
    models = [one.double() for one in given("fine")]
    method, values = CASES[3]
    assert torch.equal(
        run(method, values, models, COUNT, True)[0], run(method, values, models, COUNT, False)[0]
    )


def test_random_words_are_numpys() -> None:
    from kanna.methods.merge.rules.fast.compiled import draw

    key = hashed("anything")
    for first in (0, 5, 10**12):
        found = np.empty((9, 4), np.uint64)
        draw(found, np.uint64(first + 1), np.uint64(key & 2**64 - 1), np.uint64(key >> 64))
        assert np.array_equal(found.reshape(-1), words(key, 4 * first, 36))


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    "method", ["linear", "task_arithmetic", "ties", "breadcrumbs", "dare_ties", "della", "sce"]
)
def test_merged_models_are_the_same(
    method: str, threads: int, models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of models in bfloat16, float16 and float32, with all that is written beside them."""
    own = {"weight": 0.5} | ({"density": 0.3} if method not in ("linear", "task_arithmetic", "sce") else {})
    listed = {models[name]: own if method != "sce" else {} for name in ("a", "b")}
    top = {} if method == "linear" else {"base_model": str(models["base"])}
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        for switch in ("off", "on"):
            monkeypatch.setenv(available.SWITCH, switch)
            kanna.merge(
                recipe(method, listed, dtype="bfloat16", **top), tmp_path / switch / "out", load=False
            )
    finally:
        torch.set_num_threads(before)
    assert hashes(tmp_path / "off" / "out") == hashes(tmp_path / "on" / "out")


def test_when_they_are_used(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(available.SWITCH, raising=False)
    plan = merge_plan(recipe("linear", {models[name]: {"weight": 1} for name in ("a", "b")}))
    assert plan.numbers_read == 2 * sum(one.spec.numbers for one in plan.tensors)
    assert not available.used(plan.numbers_read) and available.used(10**9)
    monkeypatch.setenv(available.SWITCH, "off")
    assert not available.used(10**9)
    monkeypatch.setenv(available.SWITCH, "yes")
    with pytest.raises(InputError, match="KANNA_FAST is 'yes'"):
        available.used(1)
    monkeypatch.setattr(available, "find_spec", lambda _: None)
    monkeypatch.setenv(available.SWITCH, "on")
    with pytest.raises(InputError, match="numba is not installed") as caught:
        available.used(1)
    assert "kanna[fast]" in str(caught.value.remedy)
    monkeypatch.delenv(available.SWITCH)
    assert not available.used(10**9)


def test_a_numba_that_does_not_work_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "kanna.methods.merge.rules.fast.operations", None)
    method, values = CASES[0]
    with pytest.raises(InputError, match="numba cannot be imported") as caught:
        run(method, values, given("fine"), COUNT, True)
    assert "KANNA_FAST=off" in str(caught.value.remedy)


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path: Path) -> None:
    place = tmp_path / "file"
    place.write_text("")
    script = (
        "import numpy as np; from kanna.methods.merge.rules.fast import compiled as c;"
        "t = np.ones(3, np.float32); c.add_difference(t, t * 3, t, 0.5); print(t.tolist())"
    )
    said = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "KANNA_CACHE": str(place)},
    )
    assert said.stdout.strip() == "[2.0, 2.0, 2.0]"

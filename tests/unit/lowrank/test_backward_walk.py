"""One block in memory at a time: the sums are those of the whole model, and a killed walk goes on."""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import family_configs
import pytest
import tiny
import torch
from safetensors.torch import load_file
from torch import Tensor

import kanna.calibration.behind as behind
from kanna.calibration.statistics import InputStatistics, add_products, gathered
from kanna.calibration.walker import Walker, batches_of
from kanna.calibration.windows import Windows
from kanna.errors import InputError
from kanna.forms import Dense
from kanna.methods.lowrank.backward import BackwardWalk
from kanna.methods.lowrank.config import LowRankConfig
from kanna.methods.lowrank.gradients import OutputGradients, packed, unpacked
from kanna.methods.lowrank.in_memory import output_gradients
from kanna.methods.lowrank.loss import embedded
from kanna.methods.lowrank.survey import Decomposing, survey_file
from kanna.models.selection import select
from kanna.runs import workspace
from kanna.runs.workspace import Workspace


@dataclass(frozen=True)
class Noting(Decomposing):
    """Keeps what it is given instead of decomposing it."""

    reads: dict[str, InputStatistics] = field(default_factory=dict)
    sums: dict[str, OutputGradients] = field(default_factory=dict)

    def save(
        self,
        workspace: Workspace,
        kind: str,
        layer: int,
        block: Any,
        statistics: Mapping[str, InputStatistics],
        gradients: Mapping[str, OutputGradients],
    ) -> None:
        self.reads.update(statistics)
        self.sums.update(gradients)
        workspace.save(survey_file(kind, layer), {"nothing": torch.zeros(1)}, {"unfelt": []})


def config_of(**given: Any) -> LowRankConfig:
    settings = {"keep": 0.7, "batch": 3, "tokens": 256, "gradient_tokens": 60, **given}
    return LowRankConfig(**settings).resolved(True, True)


def walk_of(
    base: Path, windows: Windows, config: LowRankConfig, room: Path, **options: Any
) -> tuple[BackwardWalk, Noting]:
    checkpoint, inventory = tiny.opened(base)
    walker = Walker(checkpoint, inventory)
    uncalled = walker.trial.uncalled
    chosen = [m for m in inventory.compressible if m.module not in uncalled]
    noting = Noting(walker, chosen, config, {}, lambda _: torch.float32)
    return BackwardWalk(walker, noting, windows, Workspace(room), False, **options), noting


def expected(base: Path, walk: BackwardWalk, modules: list[str]) -> tuple[Any, Any]:
    """Sums over the whole model in memory: gradients on the windows of the loss, inputs on all of them."""
    config, windows = walk.config, walk.windows
    model = tiny.whole(base).requires_grad_(False)
    used = windows.limited(config.gradient_tokens)
    batches = batches_of(walk.walker.trial, used, used.at_once(config.batch))
    *_, (_, sums) = output_gradients(model, modules, batches, config.seed, fisher=config.method == "fwsvd")
    with gathered(model, modules) as reads, torch.no_grad():
        for ids, mask in zip(windows.ids, windows.mask, strict=True):
            model(ids[None, : int(mask.sum())])
    return sums, reads


@pytest.mark.parametrize("padded", [False, True], ids=["full", "padded"])
@pytest.mark.parametrize("name", family_configs.FAMILIES)
def test_sums_are_those_of_the_whole_model(name: str, padded: bool, tmp_path: Path) -> None:
    base, windows = tiny.family(name, tmp_path / name), tiny.windows(padded=padded)
    walk, noting = walk_of(base, windows, config_of(), tmp_path / "room")
    if not walk.walker.streams:
        pytest.skip("the whole model is in memory for it")
    modules = list(dict.fromkeys(matrix.module for matrix in noting.selected))
    sums, reads = expected(base, walk, modules)
    walk.run(lambda *_: None)
    assert noting.sums.keys() == sums.keys()
    for path, total in sums.items():
        assert noting.sums[path].count == total.count
        close(noting.sums[path].second, total.second)
    for path, statistics in noting.reads.items():
        assert statistics.count == reads[path].count
        close(statistics.gram, reads[path].gram)
    assert noting.reads.keys() == reads.keys()


def close(got: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    assert float((got - expected).norm()) <= tolerance * float(expected.norm())


def contents(directory: Path) -> dict[tuple[str, str], Tensor]:
    """(file, name) -> tensor; the order of what else a file says is not the same every time."""
    files = [path for path in directory.iterdir() if path.suffix == ".safetensors"]
    return {(path.name, name): value for path in files for name, value in load_file(path).items()}


class Killed(BaseException):
    """As sudden as a kill: nobody catches it."""


def real_walk(
    base: Path, windows: Windows, config: LowRankConfig, room: Path, anchored: bool
) -> BackwardWalk:
    checkpoint, inventory = tiny.opened(base)
    walker = Walker(checkpoint, inventory)
    stored = {matrix.name: Dense() for matrix in inventory.compressible}
    chosen = select(inventory.compressible, config.select)
    decomposing = Decomposing(walker, chosen, config, stored, lambda _: torch.float32)
    return BackwardWalk(walker, decomposing, windows, Workspace(room), anchored, torch.bfloat16)


@pytest.mark.parametrize("before", [True, False], ids=["before", "behind"])
@pytest.mark.parametrize("method", ["whitened", "anchored"])
def test_killed_at_every_file_it_goes_on_to_the_same_bytes(
    method: str, before: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, windows = tiny.family("llama", tmp_path / "llama"), tiny.windows()
    config = config_of(method=method, align=1, select="all@1-")
    anchored = method == "anchored"
    whole = real_walk(base, windows, config, tmp_path / "whole", anchored)
    loads: list[int] = []
    run_noting_loads(whole, loads)
    expected = contents(tmp_path / "whole")
    kinds = {name.split("-")[0] for name, _ in expected}
    assert kinds == ({"curves", "outputs"} if anchored else {"survey"})

    write, room, killed, ran = workspace.save_whole, tmp_path / "killed", 0, []

    def dies(path: Path, *given: Any) -> None:
        """The first time that a file is written: before, or behind it."""
        nonlocal killed
        if path.name not in seen:
            seen.add(path.name)
            killed += 1
            if not before:
                write(path, *given)
            raise Killed
        write(path, *given)

    seen: set[str] = set()
    monkeypatch.setattr(workspace, "save_whole", dies)
    while True:
        try:
            run_noting_loads(real_walk(base, windows, config, room, anchored), ran)
            break
        except Killed:
            continue
    found = contents(room)
    assert found.keys() == expected.keys()
    assert all(value.equal(expected[name]) for name, value in found.items())
    # Forward, loss, back: what is done is not done again, but for the block that was at hand.
    assert killed >= 10 and len(ran) <= len(loads) + killed


def run_noting_loads(walk: BackwardWalk, loads: list[int]) -> None:
    load = walk.walker.load

    def noted(index: int) -> Any:
        loads.append(index)
        return load(index)

    walk.walker.load = noted  # type: ignore[method-assign]
    walk.run(lambda *_: None)


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert_mlm", "gptj"])
def test_logits_in_pieces_give_the_gradients_of_whole_logits(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, windows = tiny.family(name, tmp_path / name), tiny.windows(padded=True)
    runs = []
    for bytes_ in (behind._LOGITS, 1500):
        monkeypatch.setattr(behind, "_LOGITS", bytes_)
        pieces: list[tuple[int, ...]] = []
        walk, noting = walk_of(base, windows, config_of(), tmp_path / str(bytes_))
        noted = behind.Behind._run

        def spied(self: Any, ids: Tensor, *given: Any, pieces: Any = pieces, noted: Any = noted) -> Tensor:
            logits = noted(self, ids, *given)
            pieces.append(tuple(logits.shape))
            return logits

        monkeypatch.setattr(behind.Behind, "_run", spied)
        walk.run(lambda *_: None)
        monkeypatch.setattr(behind.Behind, "_run", noted)
        runs.append((noting.sums, pieces))
    (whole, few), (parted, many) = runs
    assert len(many) > len(few)
    for path, total in whole.items():
        close(parted[path].second, total.second)


def test_states_kept_in_16_bits_leave_the_sums_within_a_hundredth(tmp_path: Path) -> None:
    base, windows = tiny.family("llama", tmp_path / "llama"), tiny.windows()
    exact, sums = walk_of(base, windows, config_of(), tmp_path / "exact")
    rounded, other = walk_of(base, windows, config_of(), tmp_path / "rounded", kept=torch.bfloat16)
    exact.run(lambda *_: None)
    rounded.run(lambda *_: None)
    for path, total in sums.sums.items():
        close(other.sums[path].second, total.second, 1e-2)
        close(other.reads[path].gram, sums.reads[path].gram, 1e-2)
    assert not all(other.reads[path].gram.equal(total.gram) for path, total in sums.reads.items())


def test_masked_tokens_do_not_change_what_matrices_read(tmp_path: Path) -> None:
    """The loss hides tokens from a masked model; what its matrices read are all of them."""
    base, windows = tiny.family("bert_mlm", tmp_path / "bert"), tiny.windows()
    walk, _ = walk_of(base, windows, config_of(), tmp_path / "room")
    assert any(portion.felt and bool(portion.hidden.any()) for portion in walk.portions)
    assert not any(portion.felt and portion.read for portion in walk.portions)
    assert sum(len(portion.ids) for portion in walk.portions if portion.read) == len(windows.ids)


def test_killed_while_it_removes_files_it_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also under another method, which begins anew where the walk back has left it nothing."""
    base, windows = tiny.family("llama", tmp_path / "llama"), tiny.windows()
    configs = {method: config_of(method=method, align=1) for method in ("whitened", "anchored")}
    expected = {}
    for method, config in configs.items():
        real_walk(base, windows, config, tmp_path / method, method == "anchored").run(lambda *_: None)
        expected[method] = contents(tmp_path / method)
    drop = workspace.Stream.drop
    for killed in range(1, 40, 3):
        room, left = tmp_path / f"killed-{killed}", [killed]

        def dies(self: Any, left: list[int] = left) -> None:
            left[0] -= 1
            if left[0] == 0:
                raise Killed
            drop(self)

        monkeypatch.setattr(workspace.Stream, "drop", dies)
        for method in ("whitened", "anchored", "whitened"):
            with contextlib.suppress(Killed):
                real_walk(base, windows, configs[method], room, method == "anchored").run(lambda *_: None)
        monkeypatch.setattr(workspace.Stream, "drop", drop)
        for method, config in configs.items():
            real_walk(base, windows, config, room, method == "anchored").run(lambda *_: None)
        found = contents(room)
        for name, value in {**expected["whitened"]}.items():
            assert found[name].equal(value)


@pytest.mark.parametrize("lost", ["states", "hidden"])
def test_without_a_file_that_it_needs_it_begins_anew(lost: str, tmp_path: Path) -> None:
    base, windows = tiny.family("llama", tmp_path / "llama"), tiny.windows()
    config, room = config_of(align=1), tmp_path / "room"
    real_walk(base, windows, config, tmp_path / "whole", False).run(lambda *_: None)
    walk = real_walk(base, windows, config, room, False)

    def stop(stage: str, done: int, total: int) -> None:
        if stage == ("survey" if lost == "states" else "forward") and done == 1:
            raise Killed

    with pytest.raises(Killed):
        walk.run(stop)
    left = sorted(room.glob(f"{lost}-*"))
    left[0].write_bytes(left[0].read_bytes()[:100])
    real_walk(base, windows, config, room, False).run(lambda *_: None)
    found, expected = contents(room), contents(tmp_path / "whole")
    assert found.keys() == expected.keys()
    assert all(value.equal(expected[name]) for name, value in found.items())


@pytest.mark.parametrize("width", [1, 2, 7])
def test_sums_in_files_are_half_and_the_same_again(width: int) -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(9, width, generator=generator)
    second = torch.zeros(width, width, dtype=torch.float64)
    add_products(second, rows)
    second = second.tril() + second.tril(-1).T  # as far as rounding goes it is so anyway
    held = packed(second)
    assert held.numel() == width * (width + 1) // 2 and held.dtype == torch.float32
    assert unpacked(held, width).equal(second.float().double())
    if width > 1:
        assert unpacked(packed(second.diagonal()), width).equal(second.diagonal().float().double())


@pytest.mark.parametrize("name", ["bert_mlm", "roberta_classifier", "llama"])
def test_nothing_outside_the_blocks_stays_on_another_device(name: str, tmp_path: Path) -> None:
    """The meta device stands in for one that is not here."""
    checkpoint, inventory = tiny.opened(tiny.family(name, tmp_path / name))
    walker = Walker(checkpoint, inventory, torch.device("meta"))
    assert any(not value.is_meta for _, value in walker.model.named_buffers())
    with pytest.raises(InputError, match="lacks"):  # what lies there has no values
        walker._fill_outside_blocks(heads=True)
    blocks = f"{inventory.blocks_path}."
    outside = [value for path, value in walker.model.named_buffers() if not path.startswith(blocks)]
    assert all(value.is_meta for value in outside)


def test_hidden_tokens_are_hidden_wherever_they_lie() -> None:
    table = torch.nn.Embedding(5, 3)
    model = torch.nn.Module()
    model.table = table
    model.get_input_embeddings = lambda: table  # type: ignore[assignment]
    hidden = torch.tensor([[True, False]])
    with embedded(model, hidden):
        assert not table(torch.tensor([[1, 2]]))[0, 0].any()
    table.to("meta")
    with embedded(model, hidden):
        assert table(torch.zeros((1, 2), dtype=torch.long, device="meta")).is_meta

"""A model that runs itself, pausing at every block, computes what it computes undisturbed."""

import threading
from pathlib import Path

import pytest
import tiny
import torch
from torch import Tensor, nn

from kanna.calibration.calls import states_of
from kanna.calibration.walker import Walker
from kanna.errors import KannaError
from kanna.runs.workspace import Stream

BATCH = 3


def undisturbed(model: nn.Module, blocks: tuple[str, ...], ids: Tensor) -> list[Tensor]:
    """States behind every run of a block, by hooks on the whole model."""
    seen: list[Tensor] = []
    hooks = [
        model.get_submodule(path).register_forward_hook(lambda _, __, output: seen.append(states_of(output)))
        for path in blocks
    ]
    with torch.no_grad():
        model(ids)
    for hook in hooks:
        hook.remove()
    return seen


@pytest.mark.parametrize("name", ["albert", "deberta_v2", "t5_encoder", "funnel", "xlnet", "gemma3n"])
def test_two_passages_of_a_model_that_runs_itself(name: str, tmp_path: Path) -> None:
    base = tiny.family(name, tmp_path / name)
    checkpoint, found = tiny.opened(base)
    walker = Walker(checkpoint, found)
    batches = walker.batches(tiny.windows(padded=True), BATCH)
    assert all(mask is None for _, mask in batches) and len(batches[0][0]) == 1
    model = tiny.whole(base)
    expected = [undisturbed(model, found.blocks, ids) for ids, _ in batches]
    streams = [lambda layer: Stream(tmp_path / str(layer))] * 2
    before = set(threading.enumerate())
    with walker.walk(batches, streams) as passages:
        for visit, layer in enumerate(walker.visits):
            block = walker.load(layer)
            for passage in passages:
                assert passage.visit == visit and passage.batches == len(batches)
                for index in range(passage.batches):
                    with torch.no_grad():
                        passage.call(index).run(block)  # asked twice, it computes the same
                        output = passage.call(index).run(block)
                    torch.testing.assert_close(
                        states_of(output), expected[index][visit], rtol=1e-5, atol=1e-5
                    )
                    passage.put(index, output)
                passage.turn()
    assert not set(threading.enumerate()) - before
    assert walker.visits and not list(tmp_path.glob("[0-9]*")), "nothing is kept in files"


@pytest.mark.parametrize("late", [False, True])
def test_what_fails_in_a_model_that_runs_itself_is_told_and_ends_it(late: bool, tmp_path: Path) -> None:
    checkpoint, found = tiny.opened(tiny.family("funnel", tmp_path / "funnel"))
    walker = Walker(checkpoint, found)
    batches = walker.batches(tiny.windows(), BATCH)
    before = set(threading.enumerate())
    with (
        pytest.raises(KannaError if late else TypeError),
        walker.walk(batches, [lambda layer: Stream(tmp_path / str(layer))]) as (passage,),
    ):
        for layer in (*walker.visits, walker.visits[-1]):
            passage.put(0, passage.call(0).run(walker.load(layer)) if late else None)
    assert not set(threading.enumerate()) - before
    resident = walker._resident
    assert resident is not None and type(resident.get_submodule(found.blocks[0])).__name__ == "FunnelLayer"

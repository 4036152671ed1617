"""Batches on their way through the blocks of a model: all of them through one before the next is loaded.

Most models hand each block the hidden states of the one before it and nothing else that was computed: then
hidden states are all that has to be kept between two blocks, and they lie in files (`Streamed`). Of the
others (a block run many times, states shared by several blocks, pooling between blocks) the model itself must
go on from where it was: each batch is a run of the model in a thread of its own, which waits at every block
until it is given what the block returned (`Paused`). One thread computes at a time.
"""

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from kanna.calibration.calls import Call, body, body_call, states_of
from kanna.errors import KannaError
from kanna.forms import install


class Reached(Exception):
    """Raised where a model's run may end."""


class Stream(Protocol):
    """Hidden states between two blocks, batch by batch, kept somewhere."""

    def save(self, batches: Sequence[Tensor]) -> None: ...

    def batch(self, index: int, device: torch.device | str) -> Tensor: ...

    def exists(self) -> bool: ...

    def drop(self) -> None: ...


class Passage(ABC):
    """All batches before the same block.

    Attributes:
        visit: How many blocks have been run; one that is run twice counts twice.
        batches: How many.
    """

    visit: int
    batches: int

    @abstractmethod
    def call(self, index: int) -> Call:
        """How the model calls the block at hand for a batch; a block may write into what it is given."""

    @abstractmethod
    def put(self, index: int, output: Any) -> None:
        """Hand over what the block returned for a batch."""

    @abstractmethod
    def turn(self) -> None:
        """All batches have been handed over: on to the next block."""

    @abstractmethod
    def forget(self) -> None:
        """What led to the block at hand is not needed any more: what is to be kept of it has been saved."""


class Streamed(Passage):
    """Hidden states in files.

    Args:
        calls: [[Call per batch] per block]; their hidden states are not used.
        at: Where the hidden states before each block are kept.
        start: The block to begin with.
    """

    def __init__(
        self, calls: Sequence[Sequence[Call]], at: Callable[[int], Stream], start: int, device: torch.device
    ) -> None:
        self._calls, self._at, self._device = calls, at, device
        self.visit, self.batches = start, len(calls[0])
        self._outputs: list[Tensor] = []

    def call(self, index: int) -> Call:
        hidden = self._at(self.visit).batch(index, self._device)
        return self._calls[self.visit][index].on(hidden)

    def put(self, index: int, output: Any) -> None:
        self._outputs.append(states_of(output).detach().cpu())

    def turn(self) -> None:
        self._at(self.visit + 1).save(self._outputs)
        self._outputs.clear()
        self.visit += 1

    def forget(self) -> None:
        self._at(self.visit - 1).drop()


class Paused(Passage):
    """Runs of a model, each waiting at the same block.

    Args:
        runs: One a batch, begun.
    """

    def __init__(self, runs: Sequence["Run"]) -> None:
        self._runs = runs
        self.visit, self.batches = 0, len(runs)

    def call(self, index: int) -> Call:
        call = self._runs[index].call
        return Call(tuple(map(_own, call.args)), {name: _own(value) for name, value in call.kwargs.items()})

    def put(self, index: int, output: Any) -> None:
        self._runs[index].go_on(output)

    def turn(self) -> None:
        self.visit += 1

    def forget(self) -> None:
        """Nothing was kept."""


class Run:
    """One run of a model's body, in a thread that waits whenever a block is called.

    Attributes:
        call: Of the block it waits at.
    """

    def __init__(self, model: nn.Module, ids: Tensor, here: threading.local) -> None:
        self.call = Call((), {})
        self._model, self._ids, self._here = model, ids, here
        self._arrived, self._told = threading.Semaphore(0), threading.Semaphore(0)
        self._answer: Any = None
        self._over = self._ended = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()
        self._wait()

    def go_on(self, answer: Any) -> None:
        """Give the run what its block returned, and wait until it is at the next one or has ended."""
        if not self._thread.is_alive():
            raise KannaError("a run of a model that has ended was given what a block returned")
        self._answer = answer
        self._told.release()
        self._wait()

    def stop(self) -> None:
        """End it where it is."""
        self._over = True
        self._told.release()
        self._thread.join()

    def pause(self, call: Call) -> Any:
        """Called in its own thread, where a block would be run: what the block returns."""
        self.call = call
        self._arrived.release()
        self._told.acquire()
        if self._over:
            raise Reached
        answer, self._answer = self._answer, None
        return answer

    def _wait(self) -> None:
        self._arrived.acquire()
        if self._ended:
            self._thread.join()
        if self._error is not None:
            raise self._error

    def _work(self) -> None:
        self._here.run = self
        try:
            with torch.no_grad():
                body_call(self._model, self._ids)
        except Reached:
            pass
        except BaseException as error:
            self._error = error
        self._ended = True
        self._arrived.release()


class Stub(nn.Module):
    """Stands in for a block; whatever the model asks of the block itself, the block answers."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.__dict__["block"] = block

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["block"], name)


class _Waiting(Stub):
    """Its run waits for what the block returns."""

    def __init__(self, block: nn.Module, here: threading.local) -> None:
        super().__init__(block)
        self.__dict__["here"] = here

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.__dict__["here"].run.pause(Call(args, kwargs))


@contextmanager
def paused(
    model: nn.Module, blocks: Sequence[str], batches: Sequence[Tensor], passages: int
) -> Iterator[list[Passage]]:
    """So many runs of all batches, each before the first block; they end with the block of this statement.

    Args:
        model: Whole, with weights. Its blocks are out of it meanwhile.
        batches: Token ids (b, length) without padding.
    """
    here = threading.local()
    stubs = [_Waiting(model.get_submodule(path), here) for path in blocks]
    runs: list[list[Run]] = []
    with replaced(model, blocks, stubs):
        try:
            for _ in range(passages):
                runs.append([])
                for ids in batches:
                    runs[-1].append(Run(body(model), ids, here))
            yield [Paused(some) for some in runs]
        finally:
            for run in (run for some in runs for run in some):
                run.stop()


@contextmanager
def replaced(model: nn.Module, paths: Sequence[str], modules: Sequence[nn.Module]) -> Iterator[None]:
    """Within the block, the submodules at `paths` are `modules`."""
    originals = [model.get_submodule(path) for path in paths]
    try:
        for path, module in zip(paths, modules, strict=True):
            install(model, path, module)
        yield
    finally:
        for path, original in zip(paths, originals, strict=True):
            install(model, path, original)


def _own(value: Any) -> Any:
    """A block may add to what it is given in place; it is asked to compute the same several times."""
    return value.detach().clone() if isinstance(value, Tensor) and value.is_floating_point() else value

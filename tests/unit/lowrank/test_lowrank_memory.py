"""Memory grows with a block and not with the model."""

import ctypes
import gc
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import tiny
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from kanna.runs import probe

STATUS = Path("/proc/self/status")
_MMAP_THRESHOLD = -3  # of mallopt


def anonymous() -> int:
    """Bytes that this process holds and no file backs."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith("RssAnon:"))
    return 1024 * int(line.split()[1])


@contextmanager
def watched() -> Iterator[list[int]]:
    """While active, the most that was held is in the list."""
    most, over = [anonymous()], threading.Event()

    def watch() -> None:
        while not over.is_set():
            most[0] = max(most[0], anonymous())
            time.sleep(0.002)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield most
    finally:
        over.set()
        thread.join()


@contextmanager
def given_back_at_once() -> Iterator[None]:
    """While active, the allocator keeps nothing of what is freed."""
    library = ctypes.CDLL(None)
    library.mallopt(_MMAP_THRESHOLD, 1 << 16)
    try:
        yield
    finally:
        library.mallopt(_MMAP_THRESHOLD, 1 << 25)


def model_of(depth: int, directory: Path) -> Path:
    config = LlamaConfig(
        hidden_size=256, intermediate_size=768, num_hidden_layers=depth, num_attention_heads=4,
        num_key_value_heads=4, vocab_size=60, max_position_embeddings=64, tie_word_embeddings=True,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return tiny.save(LlamaForCausalLM(config), directory)


@pytest.mark.skipif(not STATUS.is_file(), reason="only Linux tells what no file backs")
def test_a_model_four_times_larger_than_what_a_run_may_hold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "LARGE", 0)
    text, small = tiny.text(tmp_path / "text.jsonl"), model_of(1, tmp_path / "small")
    # What a library allocates once, such as its work space, is none of the run's.
    tiny.compress(small, tmp_path / "first", text, tmp_path / "cache", keep=0.7, align=8, select="down")
    large = model_of(80, tmp_path / "large")
    held = sum(file.stat().st_size for file in large.glob("*.safetensors"))
    # What was held while the model was made would hide what the run takes; what is freed goes back at once.
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    before, cache, files = anonymous(), tmp_path / "other", [0]

    def count(*_: object) -> None:
        """Files of work, in the cache and beside the output."""
        places = cache, tmp_path / "out.kanna-work"
        sizes = [path.stat().st_size for place in places for path in place.rglob("*") if path.is_file()]
        files[0] = max(files[0], sum(sizes))

    with given_back_at_once(), watched() as most:
        result = tiny.compress(
            large, tmp_path / "out", text, cache, keep=0.7, align=8, select="down", progress=count
        )
    assert result.passed and result.plan.config.allocation == "global"
    assert held > 250e6 and 4 * (most[0] - before) < held
    assert 0.8 * files[0] < result.plan.work_bytes < 1.25 * files[0]
    assert result.run["cache"]["bytes"] > 0
    assert not list(cache.rglob("states-*")) and not list(cache.rglob("hidden-*"))

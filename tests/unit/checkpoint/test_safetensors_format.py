import json
import struct
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kanna.checkpoint.reader import Checkpoint, read_headers
from kanna.checkpoint.safetensors_format import DTYPE_NAMES, TORCH_DTYPES, TensorSpec, read_header
from kanna.checkpoint.writer import plan_shards, spec_of, write_tensors
from kanna.errors import InputError

TENSORS = {
    "b": torch.arange(6, dtype=torch.float32).reshape(2, 3),
    "a": torch.ones(3, dtype=torch.bfloat16),
    "é": torch.arange(4, dtype=torch.int32),
    "scalar": torch.tensor(2.5),
    "none": torch.empty(0, 4),
    "flag": torch.tensor([True, False, True]),
}


def write(directory: Path, tensors: dict[str, torch.Tensor], **options: int) -> Path:
    write_tensors(directory, [spec_of(n, t) for n, t in tensors.items()], tensors.items(), **options)
    return directory / "model.safetensors"


def opened(directory: Path) -> Checkpoint:
    (directory / "config.json").write_text("{}")
    return Checkpoint.open(directory)


def test_the_library_reads_what_is_written(tmp_path: Path) -> None:
    found = safetensors.torch.load_file(write(tmp_path, TENSORS))
    assert found.keys() == TENSORS.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in TENSORS.items())


def test_what_the_library_writes_is_read(tmp_path: Path) -> None:
    safetensors.torch.save_file(TENSORS, tmp_path / "model.safetensors", {"format": "pt"})
    found = dict(opened(tmp_path).stream())
    assert all(torch.equal(found[name], tensor) for name, tensor in TENSORS.items())


@pytest.mark.parametrize("dtype", sorted(DTYPE_NAMES, key=str))
def test_every_dtype_there_and_back(dtype: torch.dtype, tmp_path: Path) -> None:
    tensor = torch.arange(48, dtype=torch.uint8).remainder(2).view(dtype)
    write(tmp_path, {"t": tensor})
    found = opened(tmp_path).tensor("t")
    assert found.dtype == dtype
    assert bytes(found.view(torch.uint8).tolist()) == bytes(tensor.view(torch.uint8).tolist())
    assert TORCH_DTYPES[DTYPE_NAMES[dtype]] == dtype


def test_data_are_aligned(tmp_path: Path) -> None:
    for stored in read_header(write(tmp_path, TENSORS)).values():
        assert stored.offset % TORCH_DTYPES[stored.dtype].itemsize == 0


@given(sizes=st.lists(st.integers(0, 50), min_size=1, max_size=12), limit=st.integers(1, 200))
def test_shards_hold_every_tensor_once_and_keep_the_limit(sizes: list[int], limit: int) -> None:
    specs = [TensorSpec(str(i), torch.uint8, (size,)) for i, size in enumerate(sizes)]
    shards = plan_shards(specs, limit)
    assert [s for shard in shards for s in shard.specs] == specs
    for shard in shards:
        assert len(shard.specs) == 1 or sum(spec.bytes for spec in shard.specs) <= limit


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write(tmp_path_factory.mktemp("sound"), TENSORS).read_bytes()


def _read_all(directory: Path) -> None:
    """Read everything; an InputError or a correct read are the two good ends."""
    checkpoint = Checkpoint.open(directory)
    for name, tensor in checkpoint.stream():
        assert tuple(tensor.shape) == checkpoint.shape(name)
        str(name).encode()


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_flipped_header_bytes_never_crash(data: st.DataObject, sound: bytes, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    changed = bytearray(sound)
    end = 8 + struct.unpack("<Q", sound[:8])[0]
    for _ in range(data.draw(st.integers(1, 4))):
        changed[data.draw(st.integers(0, end - 1))] = data.draw(st.integers(0, 255))
    (tmp_path / "model.safetensors").write_bytes(changed)
    try:
        _read_all(tmp_path)
    except InputError as error:
        assert "model.safetensors" in str(error)
        assert error.remedy


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_any_truncation_is_an_input_error(data: st.DataObject, sound: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(sound[: data.draw(st.integers(0, len(sound) - 1))])
    with pytest.raises(InputError, match=r"model\.safetensors"):
        read_headers([path])


@pytest.mark.parametrize(
    "header",
    [
        b"[]",
        b"nonsense",
        b'{"a":1}',
        b'{"a":{"dtype":"F32","shape":[1]}}',
        b'{"a":{"dtype":"F31","shape":[1],"data_offsets":[0,4]}}',
        b'{"a":{"dtype":["F32"],"shape":[1],"data_offsets":[0,4]}}',
        b'{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}',
        b'{"a":{"dtype":"F32","shape":[true],"data_offsets":[0,4]}}',
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,8]}}',
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}',
        b'{"a":{"dtype":"F32","shape":[0,9223372036854775807,9],"data_offsets":[0,0]}}',
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"b":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
        b'{"\\ud800":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
        b'{"__metadata__":{"x":1},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
        b"[" * 100_000,
    ],
)
def test_unsound_headers(header: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
    with pytest.raises(InputError, match=r"model\.safetensors"):
        read_headers([path])


def test_a_file_that_shrinks_after_the_header_was_read(tmp_path: Path) -> None:
    path = write(tmp_path, TENSORS)
    checkpoint = opened(tmp_path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(InputError, match="ends before"):
        list(checkpoint.stream())


def test_metadata_say_pt_and_nothing_else(tmp_path: Path) -> None:
    data = write(tmp_path, TENSORS).read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    assert json.loads(data[8 : 8 + length])["__metadata__"] == {"format": "pt"}

"""The words of a packed row are the bytes that ONNX Runtime's MatMulNBits takes, at 2, 4 and 8 bits."""

from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
import torch

from kanna.quant.grid import Codes, Grid
from kanna.quant.packing import pack

M, N, GROUP = 6, 96, 32

pytestmark = pytest.mark.skipif(
    not (find_spec("onnx") and find_spec("onnxruntime")), reason="onnx and onnxruntime are not installed"
)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_it_multiplies_with_our_bytes(bits: int) -> None:
    generator, grid = torch.Generator().manual_seed(bits), Grid(bits, GROUP)
    codes = torch.randint(0, grid.top + 1, (M, N), generator=generator, dtype=torch.uint8)
    zero = torch.randint(0, grid.top + 1, (M, N // GROUP), generator=generator, dtype=torch.uint8)
    zero[0], zero[1] = 0, grid.top
    held = Codes(grid, codes, torch.rand(M, N // GROUP, generator=generator), zero)
    x = torch.randn(3, N, generator=generator)
    found = multiplied(x.numpy(), held)
    expected = x.double() @ held.weight.double().T
    assert np.abs(found - expected.numpy()).max() <= 1e-5 * float(expected.abs().max())


def multiplied(x: Any, held: Codes) -> Any:
    """x W^T by the operator, from the words of kanna's packing."""

    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    bits = held.grid.bits
    packed = pack(held.codes, bits).numpy().view(np.uint8).reshape(M, N // GROUP, -1)
    # Zero-points of a row fill whole bytes, which is what a row of words is cut to.
    wide = -(-N // GROUP * bits // 8)
    zeros = pack(held.zero, bits).numpy().view(np.uint8).reshape(M, -1)[:, :wide]
    given = {"B": packed, "scales": held.scale.numpy().reshape(-1), "zero_points": zeros.reshape(-1)}
    node = helper.make_node(
        "MatMulNBits", ["A", *given], ["Y"], domain="com.microsoft", K=N, N=M, bits=bits, block_size=GROUP
    )
    graph = helper.make_graph(
        [node],
        "product",
        [helper.make_tensor_value_info("A", TensorProto.FLOAT, [3, N])],
        [helper.make_tensor_value_info("Y", TensorProto.FLOAT, [3, M])],
        [numpy_helper.from_array(np.ascontiguousarray(value), name) for name, value in given.items()],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"A": x})[0]

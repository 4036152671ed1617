"""`kanna.quantize`: what is written, read back as the matrices that were chosen, on every layout of them."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import kanna
from kanna.checkpoint.writer import write_tensors
from kanna.cli.main import main
from kanna.errors import InputError
from kanna.quant.grid import Grid
from kanna.quant.rounding import quantised
from kanna.runs import output
from kanna.runs.source import Source

Base = Callable[[str], Path]
FAMILIES = ["llama", "gpt2", "phi3", "qwen2", "opt", "bert_mlm"]


def written(model: Path, out: Path, **settings: object) -> kanna.QuantizeConfig:
    given = {"bits": 4, "group": 8, "method": "minmax", **settings}
    calibration = given.pop("calibration", None)
    config = kanna.QuantizeConfig(**given)  # type: ignore[arg-type]
    kanna.quantize(model, out, config, calibration=calibration)  # type: ignore[arg-type]
    return config


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("symmetric", [False, True])
def test_matrices_are_those_rounded_apart(family: str, symmetric: bool, bases: Base, tmp_path: Path) -> None:
    """Fused, transposed, biased, grouped-query, tied: each matrix is rounded on its own groups."""
    base = bases(family)
    written(base, tmp_path / "out", symmetric=symmetric)
    before, after = Source.open(base), Source.open(tmp_path / "out")
    grid = Grid(4, 8, symmetric)
    for matrix in before.inventory.matrices:
        weight = before.weight(matrix)
        expected = quantised(weight, grid, "minmax").weight.to(weight.dtype)
        assert torch.equal(after.weight(matrix), expected), matrix.name
    changed = {matrix.tensor for matrix in before.inventory.matrices}
    for name in before.checkpoint.tensors.keys() - {before.file_name(tensor) for tensor in changed}:
        assert torch.equal(before.checkpoint.tensor(name), after.checkpoint.tensor(name)), name


def test_what_lies_in_the_files(bases: Base, tmp_path: Path) -> None:
    base = bases("llama")
    written(base, tmp_path / "out", bits=3, group="channel", select="down@0")
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    held = {
        name.rsplit(".", 1)[-1]: value for name, value in tensors.items() if "layers.0.mlp.down_proj" in name
    }
    m, n = Source.open(base).weight(Source.open(base).inventory.matrices[6]).shape
    assert held["weight"].shape == (1,) and held["weight_packed"].shape == (m, -(-n * 3 // 32))
    assert held["weight_packed"].dtype == torch.int32 and held["weight_scale"].dtype == torch.float32
    assert held["weight_scale"].shape == held["weight_zero_point"].shape == (m, 1)
    assert held["weight_zero_point"].dtype == torch.uint8


def test_a_new_process_gives_identical_logits(bases: Base, text: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    written(bases("llama"), out, method="gptq", calibration=text, context=16, bits=2)
    ids = torch.arange(20)[None] % 15
    model, _ = kanna.load(out)
    with torch.no_grad():
        here = model(input_ids=ids).logits
    program = (
        "import sys, torch, kanna; from transformers import AutoModelForCausalLM;"
        "torch.set_num_threads(int(sys.argv[3]));"
        "model = AutoModelForCausalLM.from_pretrained(sys.argv[1]).eval();"
        "torch.save(model(input_ids=torch.arange(20)[None] % 15).logits, sys.argv[2])"
    )
    arguments = [out, tmp_path / "logits.pt", torch.get_num_threads()]
    subprocess.run([sys.executable, "-c", program, *map(str, arguments)], check=True)
    assert torch.equal(here, torch.load(tmp_path / "logits.pt", weights_only=True))


def test_every_layout_gives_identical_logits_elsewhere(
    bases: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In another process, from files that were cut at other places."""
    families = [name for name in FAMILIES if name != "llama"]
    for family in families:
        written(bases(family), tmp_path / family, bits=3)
        with monkeypatch.context() as small:
            small.setattr(output, "write_tensors", partial(write_tensors, max_shard_bytes=3000))
            written(bases(family), tmp_path / f"{family}-cut", bits=3)
        assert len(list((tmp_path / f"{family}-cut").glob("*.safetensors"))) > 2
    program = (
        "import sys, torch, kanna; from pathlib import Path;"
        "torch.set_num_threads(int(sys.argv[1]));"
        "ids = torch.arange(20)[None] % 15;"
        "[torch.save(kanna.load(path)[0](input_ids=ids).logits, f'{path}.pt') for path in sys.argv[2:]]"
    )
    directories = [str(tmp_path / f"{family}{cut}") for family in families for cut in ("", "-cut")]
    subprocess.run([sys.executable, "-c", program, str(torch.get_num_threads()), *directories], check=True)
    for directory in directories:
        model, _ = kanna.load(Path(directory).with_name(Path(directory).name.removesuffix("-cut")))
        with torch.no_grad():
            here = model(input_ids=torch.arange(20)[None] % 15).logits
        assert torch.equal(here, torch.load(f"{directory}.pt", weights_only=True)), directory


def test_scales_stay_float32_in_a_model_of_another_dtype(bases: Base, tmp_path: Path) -> None:
    written(bases("llama"), tmp_path / "out")
    model, _ = kanna.load(tmp_path / "out", dtype=torch.bfloat16)
    scales = [value for name, value in model.named_buffers() if name.endswith("weight_scale")]
    assert scales and all(scale.dtype == torch.float32 for scale in scales)
    logits = model(input_ids=torch.arange(8)[None]).logits
    assert logits.dtype == torch.bfloat16 and logits.isfinite().all()


def test_anchored_and_refitted_are_nearer_to_the_model(bases: Base, text: Path, tmp_path: Path) -> None:
    base, ids = bases("llama"), torch.arange(40)[None] % 15
    before = kanna.load(base)[0](input_ids=ids).logits.detach()
    off = {}
    for name, settings in {
        "minmax": {"method": "minmax"},
        "gptq": {"method": "gptq", "calibration": text},
        "anchored": {"method": "gptq", "calibration": text, "inputs": "anchored", "refit": True},
    }.items():
        written(base, tmp_path / name, bits=2, context=32, **settings)
        after = kanna.load(tmp_path / name)[0](input_ids=ids).logits.detach()
        off[name] = float((after - before).square().mean())
    assert off["anchored"] < off["gptq"] < off["minmax"], off


def test_factors_become_whole_numbers(bases: Base, text: Path, tmp_path: Path) -> None:
    """The lineage goes on; at 8 bits the product is that of the factors but for rounding."""
    low, out = tmp_path / "low", tmp_path / "out"
    kanna.lowrank(bases("gpt2"), low, kanna.LowRankConfig(rank=6, method="plain", align=1))
    for name, settings in {
        "alone": {},
        "fitted": {"method": "gptq", "calibration": text, "context": 32},
    }.items():
        written(low, out / name, bits=8, **settings)
        before, after = Source.open(low), Source.open(out / name)
        for matrix in before.inventory.matrices:
            weight = before.weight(matrix)
            form = after.form(matrix)
            assert (form.key, form.reduce.key, form.expand.key) == ("low_rank", "int", "int")
            assert (after.weight(matrix) - weight).norm() < 0.02 * weight.norm()
        assert after.lineage is not None
        assert [step.method for step in after.lineage.steps] == ["lowrank", "quantize"]


def test_bits_of_some_and_others_left(bases: Base, tmp_path: Path) -> None:
    written(bases("llama"), tmp_path / "out", bits_of="down=8,q@0=2", skip="v")
    source = Source.open(tmp_path / "out")
    bits = {m.name: getattr(source.form(m), "bits", None) for m in source.inventory.matrices}
    for matrix in source.inventory.matrices:
        expected = {"down": 8, "v": None}.get(
            matrix.role, 2 if (matrix.role, matrix.layer) == ("q", 0) else 4
        )
        assert bits[matrix.name] == expected, matrix.name


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"method": "gptq"}, "calibration"),
        ({"bits_of": "down"}, "down=8"),
        ({"bits_of": "down=9"}, "9 bits"),
        ({"bits_of": "down"}, "--bits-of down does not say how many bits"),
        ({"skip": "all"}, "nothing"),
        ({"select": "nothing"}, "nothing"),
        ({"bits_of": "down=1"}, "1 bits"),
    ],
)
def test_what_cannot_be_asked(settings: dict, named: str, bases: Base, tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        written(bases("llama"), tmp_path / "out", **settings)
    assert named in f"{error.value.problem} {error.value.remedy}"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--bits", 1], "at least 2"),
        (["--bits", 9], "at most 8"),
        (["--bits", 4, "--group", 0], "a number of inputs such as 64"),
        (["--bits", 4, "--group", "wide"], "found 'wide'"),
        (["--bits", 4, "--group", 2**20 + 1], "at most 1,048,576"),
        (["--bits", 4, "--group", "channel", "--method", "hqq"], "hqq does not work with one group a row"),
    ],
)
def test_one_message_and_nothing_written(
    words: list[object], said: str, bases: Base, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main(["quantize", str(bases("llama")), *map(str, words), "--out", str(tmp_path / "out")])
    error = capsys.readouterr().err
    assert code == 2 and error.count("kanna: error:") == 1 and said in error and "Traceback" not in error
    assert "help:" in error and not list(tmp_path.iterdir())


def test_weights_and_models_that_are_refused(
    bases: Base, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """NaN anywhere; what others quantised; an output that is there."""
    for name in ("broken", "others"):
        shutil.copytree(bases("llama"), tmp_path / name)
    file = tmp_path / "broken" / "model.safetensors"
    tensors = load_file(file)
    next(value for name, value in tensors.items() if "up_proj" in name)[0, 0] = float("inf")
    save_file(tensors, file, {"format": "pt"})
    config = json.loads((tmp_path / "others" / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4, "group_size": 32}
    (tmp_path / "others" / "config.json").write_text(json.dumps(config))
    for model, out, said in (
        (tmp_path / "broken", "out", "up_proj.weight holds 1 NaN or infinite values"),
        (tmp_path / "others", "out", "kanna import takes GPTQ"),
        (bases("llama"), "others", "exists already"),
    ):
        code = main(["quantize", str(model), "--bits", "4", "--out", str(tmp_path / out)])
        error = capsys.readouterr().err
        assert code == 2 and said in error and "Traceback" not in error
        assert sorted(path.name for path in tmp_path.iterdir()) == ["broken", "others"]


def test_what_two_bits_cost_is_said(bases: Base, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With figures, before anything is done; and a group that is wider than every matrix."""
    for bits, group, noted in (
        (2, 8, ["90.3 %", "95.3 %", "99.3 %", "74.9"]),
        (3, 8, []),
        (3, 5000, ["5,000"]),
    ):
        words = ["--bits", str(bits), "--group", str(group), "--dry-run", "--out", str(tmp_path / "out")]
        assert main(["quantize", str(bases("llama")), *words]) == 0
        told = "".join(capsys.readouterr())
        notes = " ".join(told.split("note:")[1:])
        assert all(one in " ".join(notes.split()) for one in noted) and bool(noted) == ("note:" in told)


def test_a_killed_run_goes_on_to_the_same_bytes(bases: Base, text: Path, tmp_path: Path, monkeypatch) -> None:
    from kanna.methods.quantize import calibrated

    base, settings = bases("llama"), {"method": "gptq", "calibration": text, "context": 16}
    written(base, tmp_path / "whole", **settings)
    real, done = calibrated._quantised_block, []

    def once(*given):
        if done:
            raise KeyboardInterrupt
        done.append(1)
        return real(*given)

    monkeypatch.setattr(calibrated, "_quantised_block", once)
    with pytest.raises(KeyboardInterrupt):
        written(base, tmp_path / "out", **settings)
    monkeypatch.setattr(calibrated, "_quantised_block", real)
    config = kanna.QuantizeConfig(bits=4, group="8", method="gptq", context=16)
    kanna.quantize(base, tmp_path / "out", config, calibration=text, resume=True)
    for file in ("model.safetensors", "config.json"):
        assert (tmp_path / "out" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()


def test_the_worst_matrix_is_that_of_the_outputs_where_they_are_known(
    bases: Base, text: Path, tmp_path: Path
) -> None:
    """Anchored weights move on purpose: the size of that is no error."""
    for method, words in {"minmax": None, "gptq": text}.items():
        fitted = {"inputs": "anchored", "refit": True, "method": method}
        config = kanna.QuantizeConfig(bits=2, group="8", context=16, **fitted)  # type: ignore[arg-type]
        figures = kanna.quantize(bases("llama"), tmp_path / method, config, calibration=words).figures
        errors = figures["output_error" if words else "weight_error"]
        assert figures["worst_matrix"] == max(errors, key=errors.get)
    weights = figures["weight_error"]
    assert figures["worst_matrix"] != max(weights, key=weights.get)

"""Models with adapters: equal to what PEFT makes of them; other kinds, and those of another base, refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from merge_models import save_model, weights
from safetensors.torch import load_file, save_file
from token_models import EMBEDDING, HEAD, save
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

import kanna
from kanna.checkpoint import lineage
from kanna.checkpoint.reader import Checkpoint
from kanna.methods.merge.adapted import Adapted
from kanna.methods.merge.adapter import Adapter
from kanna.methods.merge.inputs import _opened


def save_adapter(place: Path, base: Path, seed: int, **config: Any) -> Path:
    """A random adapter, as PEFT saves it."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        given = {"r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "down_proj"], **config}
        tuned = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", **given))
        for parameter in tuned.parameters():
            if parameter.requires_grad:
                nn.init.normal_(parameter, std=0.1)
    tuned.save_pretrained(place)
    return place


def by_peft(base: Path, adapter: Path) -> dict[str, Tensor]:
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    merged = peft.PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()
    return dict(merged.state_dict())


def merged(reference: str, out: Path, **more: Any) -> dict[str, Tensor]:
    given = {"merge_method": "linear", "models": [{"model": reference, "parameters": {"weight": 1}}]}
    assert kanna.merge({**given, "out_dtype": "float32"}, out, **more).passed
    return weights(out)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("base") / "base", 1, torch.float32)


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("gpt2") / "gpt2"
    config = GPT2Config(vocab_size=40, n_embd=16, n_layer=2, n_head=2, n_positions=16)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        GPT2LMHeadModel(config).save_pretrained(place)
    return place


KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rslora": {"use_rslora": True},
    "patterns": {
        "rank_pattern": {"layers.1.self_attn.q_proj": 2, "down_proj": 3},
        "alpha_pattern": {"q_proj": 9},
    },
    "embedding": {"target_modules": ["embed_tokens", "q_proj"]},
    "saved": {"modules_to_save": ["lm_head"]},
    "saved embedding": {"modules_to_save": ["embed_tokens"]},
    "head": {"target_modules": ["lm_head", "q_proj"]},
    "head beside a saved embedding": {
        "target_modules": ["lm_head", "q_proj"],
        "modules_to_save": ["embed_tokens"],
    },
}
# How many tensors are others than the base's; the head is its embedding.
CHANGED = {
    "plain": 4,
    "rslora": 4,
    "patterns": 4,
    "embedding": 3,
    "saved": 5,
    "saved embedding": 6,
    "head": 3,
    "head beside a saved embedding": 4,
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_merged_is_what_peft_makes(kind: str, base: Path, tmp_path: Path) -> None:
    adapter = save_adapter(tmp_path / "adapter", base, 5, **KINDS[kind])
    expected, before = by_peft(base, adapter), weights(base)
    found = merged(f"{base}+{adapter}", tmp_path / "out")
    changed = 0
    for name, values in found.items():
        assert float((values - expected[name]).abs().max()) <= 1e-6 * float(expected[name].abs().max())
        changed += name not in before or not torch.equal(values, before[name])
    assert changed == CHANGED[kind]
    if HEAD not in found:
        assert torch.equal(expected[HEAD], expected[EMBEDDING])
    recorded = lineage.read(tmp_path / "out")
    assert recorded is not None
    assert recorded.steps[0].inputs[0].hash == lineage.base_hash(Checkpoint.open(base))


def test_inputs_first_and_tied_heads(gpt2: Path, tmp_path: Path) -> None:
    adapter = save_adapter(tmp_path / "a", gpt2, 6, target_modules=["c_attn", "wte"], fan_in_fan_out=True)
    expected = by_peft(gpt2, adapter)
    found = merged(f"{gpt2}+{adapter}", tmp_path / "out")
    assert "transformer.wte.weight" in found and "lm_head.weight" not in found
    for name, values in found.items():
        assert float((values - expected[name]).abs().max()) <= 1e-6 * float(expected[name].abs().max())
    assert not torch.equal(found["transformer.wte.weight"], weights(gpt2)["transformer.wte.weight"])


def test_values_do_not_depend_on_how_they_are_read(base: Path, tmp_path: Path) -> None:
    adapter = save_adapter(tmp_path / "adapter", base, 7)
    model = _opened(f"{base}+{adapter}", {})
    assert isinstance(model, Adapted)
    name = "model.layers.0.mlp.down_proj.weight"
    count = model.shape(name)[0] * model.shape(name)[1]
    whole = model.part(name, 0, count)
    for size in (7, model.shape(name)[1], 33):
        pieces = [model.part(name, start, min(count, start + size)) for start in range(0, count, size)]
        assert torch.equal(torch.cat(pieces), whole)
    assert whole.dtype == torch.float32


def test_rows_of_tokens_get_what_the_adapter_adds(tmp_path: Path) -> None:
    words = [f"w{number}" for number in range(300)]
    base = save(tmp_path / "in" / "base", 0, words)
    other = save(tmp_path / "in" / "other", 1, words[::-1])
    adapter = save_adapter(tmp_path / "in" / "adapter", base, 2, target_modules=["embed_tokens", "lm_head"])
    models = [{"model": one, "parameters": {"weight": 1}} for one in (f"{base}+{adapter}", str(other))]
    given = {"merge_method": "linear", "models": models, "tokenizer_source": str(other)}
    kanna.merge(given, tmp_path / "out")
    expected = by_peft(base, adapter)
    for name in (EMBEDDING, HEAD):
        mean = (expected[name].flip(0) + weights(other)[name]) / 2
        assert float((weights(tmp_path / "out")[name] - mean).abs().max()) <= 1e-6


def test_factors_are_read_once_for_many_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = save(tmp_path / "base", 0, [f"w{number}" for number in range(900)])
    adapter = save_adapter(tmp_path / "adapter", base, 2, target_modules=["embed_tokens"])
    model = _opened(f"{base}+{adapter}", {})
    read: list[str] = []
    original = Adapter.read

    def counted(self: Adapter, name: str) -> Tensor:
        read.append(name)
        return original(self, name)

    monkeypatch.setattr(Adapter, "read", counted)
    numbers = [0, 899, 300, 600, 1]  # of each block of rows that is made in one go
    found = model.rows(EMBEDDING, numbers, 16)
    assert len(read) == 2
    expected = by_peft(base, adapter)[EMBEDDING][numbers]
    assert float((found - expected).abs().max()) <= 1e-6


def test_two_adapters_of_a_base_and_of_a_document(base: Path, tmp_path: Path) -> None:
    """Both differences are added; lineage names the base once, and each adapter by a hash of its own."""
    first, second = (save_adapter(tmp_path / f"lora-{n}", base, n) for n in (1, 2))
    given = {
        "merge_method": "task_arithmetic",
        "base_model": str(base),
        "models": [{"model": f"{base}+{one}", "parameters": {"weight": 0.5}} for one in (first, second)],
    }
    assert kanna.merge(given, tmp_path / "both").passed
    found, start = weights(tmp_path / "both"), weights(base)
    deltas = [by_peft(base, one) for one in (first, second)]
    for name, values in found.items():
        expected = start[name] + sum(0.5 * (delta[name] - start[name]) for delta in deltas)
        assert torch.allclose(values, expected, rtol=0, atol=1e-6)
    told = json.loads((tmp_path / "both" / "kanna.json").read_text())["steps"][0]["inputs"]
    assert [one["name"] for one in told] == ["base", "lora-1", "lora-2"]
    assert len({one["hash"] for one in told}) == 3
    assert str(tmp_path) not in (tmp_path / "both" / "recipe.yaml").read_text()

    documents = tmp_path / "two.yml"
    documents.write_text(
        f"name: mixed\nmerge_method: linear\nmodels: [{{model: {base}, parameters: {{weight: 1}}}}]\n---\n"
        f"merge_method: linear\nmodels: [{{model: mixed+{first}, parameters: {{weight: 1}}}}]\n"
    )
    assert kanna.merge(documents, tmp_path / "documents").passed
    alone = merged(f"{base}+{first}", tmp_path / "alone")
    assert all(torch.equal(values, alone[name]) for name, values in weights(tmp_path / "documents").items())


def edit(adapter: Path, **config: Any) -> None:
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **config}))


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"use_dora": True}, "use_dora: DoRA"),
        ({"peft_type": "IA3"}, "of the kind 'IA3'"),
        ({"init_lora_weights": "pissa_niter_4"}, "started by pissa_niter_4"),
        ({"r": None}, "does not say r and lora_alpha"),
        ({"r": 5}, "have rank 4, and adapter_config.json says 5"),
        ({"fan_in_fan_out": True}, "make a matrix of"),
    ],
)
def test_other_kinds_are_refused_by_name(
    config: dict[str, Any], said: str, base: Path, tmp_path: Path
) -> None:
    adapter = save_adapter(tmp_path / "adapter", base, 5)
    edit(adapter, **config)
    with pytest.raises(kanna.InputError, match=said):
        merged(f"{base}+{adapter}", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_adapters_of_another_base_are_refused(base: Path, gpt2: Path, tmp_path: Path) -> None:
    adapter = save_adapter(tmp_path / "adapter", base, 5)
    with pytest.raises(kanna.InputError, match=r"is another than that of|holds no such tensor"):
        merged(f"{gpt2}+{adapter}", tmp_path / "out")
    other = save_model(tmp_path / "other", 9, torch.float32)
    with pytest.raises(kanna.InputError, match=r"was trained on .*base, whose .* is another"):
        merged(f"{other}+{adapter}", tmp_path / "out")
    edit(adapter, base_model_name_or_path="somebody/elsewhere")
    merged(f"{other}+{adapter}", tmp_path / "out")  # nothing to compare with
    with pytest.raises(kanna.InputError, match="holds no such tensor"):
        merged(f"{gpt2}+{adapter}", tmp_path / "out2")


def test_adapters_that_are_damaged(base: Path, tmp_path: Path) -> None:
    adapter = save_adapter(tmp_path / "adapter", base, 5)
    file = adapter / "adapter_model.safetensors"
    tensors = load_file(file)
    name = next(iter(tensors))
    save_file({**tensors, name: torch.full_like(tensors[name], float("nan"))}, file)
    with pytest.raises(kanna.InputError, match="NaN"):
        merged(f"{base}+{adapter}", tmp_path / "out")
    save_file({key: value for key, value in tensors.items() if "lora_A" in key}, file)
    with pytest.raises(kanna.InputError, match=r"holds .*lora_A.*, but no .*lora_B"):
        merged(f"{base}+{adapter}", tmp_path / "out")
    shutil.move(file, adapter / "adapter_model.bin")
    with pytest.raises(kanna.InputError, match="a pickle"):
        merged(f"{base}+{adapter}", tmp_path / "out")


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        ("{base}+", "names no adapter"),
        ("+{base}", "names no model"),
        ("{base}+/nowhere", "no model '/nowhere'"),
        ("{base}@main", "directories have no revisions"),
        ("nobody/nothing@v1", "of revision 'v1' in the local cache"),
        ("{base}+{base}", "holds no adapter_config.json"),
    ],
)
def test_references_that_are_none(reference: str, said: str, base: Path, tmp_path: Path) -> None:
    with pytest.raises(kanna.InputError, match=said):
        merged(reference.format(base=base), tmp_path / "out")


def test_what_an_adapter_says_of_itself_is_part_of_a_merge(base: Path, tmp_path: Path) -> None:
    """A killed run is not gone on with under another alpha; no output takes the place of an adapter."""
    adapter = save_adapter(tmp_path / "adapter", base, 5)
    given = {
        "merge_method": "linear",
        "models": [{"model": f"{base}+{adapter}", "parameters": {"weight": 1}}],
    }

    def stop(stage: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        kanna.merge(given, tmp_path / "out", progress=stop)
    edit(adapter, lora_alpha=60)
    with pytest.raises(kanna.InputError):
        kanna.merge(given, tmp_path / "out", resume=True)
    own = kanna.merge_lora(given, tmp_path / "own").out  # one that kanna may replace otherwise
    given["models"] = [{"model": f"{base}+{own}", "parameters": {"weight": 1}}]
    before = sorted((path.name, path.read_bytes()) for path in own.iterdir())
    with pytest.raises(kanna.InputError):
        kanna.merge(given, own, force=True)
    assert sorted((path.name, path.read_bytes()) for path in own.iterdir()) == before

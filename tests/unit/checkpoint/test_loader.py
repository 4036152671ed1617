"""Loading by plain transformers after `import kanna`, and refusing what is not sound."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
import transformers
from toy import BERT, FAMILIES, GPT2, INPUT, LLAMA, compress, logits, save_base, tiny

import kanna
import process_state
from kanna.checkpoint.reader import Checkpoint
from kanna.errors import InputError
from kanna.forms import FormModule, LowRank, dense_weight, install
from kanna.models.skeleton import skeleton

Edit = Callable[[Path, Callable[[dict], object]], None]


def load_plain(directory: Path, **options: object) -> transformers.PreTrainedModel:
    """As a user does, by the class of the head."""
    return type(skeleton(directory)).from_pretrained(directory, **options)


def reference(base: Path, directory: Path) -> torch.nn.Module:
    """The base with every compressed layer replaced by its multiplied-out weight."""
    model, compressed = load_plain(base), load_plain(directory)
    for path, module in compressed.named_modules():
        if isinstance(module, FormModule) and ".parts." not in path:
            layer = torch.nn.Linear(module.in_features, module.out_features)
            old = model.get_submodule(path)
            layer.bias = getattr(old, "bias", None)
            layer.weight = torch.nn.Parameter(dense_weight(module).detach())
            install(model, path, layer)
    return model.eval()


def edit_tensors(directory: Path, change: Callable[[dict], object]) -> None:
    path = directory / "model.safetensors"
    tensors = safetensors.torch.load_file(path)
    change(tensors)
    safetensors.torch.save_file(tensors, path, {"format": "pt"})


def run(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_computes_what_the_forms_say(family: tuple[str, Path, Path]) -> None:
    name, base, directory = family
    model = load_plain(directory)
    assert {p for p, m in model.named_modules() if isinstance(m, FormModule)} >= set(FAMILIES[name])
    torch.testing.assert_close(logits(model), logits(reference(base, directory)), rtol=1e-4, atol=1e-5)


def test_save_pretrained_round_trip(family: tuple[str, Path, Path], tmp_path: Path) -> None:
    _, _, directory = family
    model = load_plain(directory)
    model.save_pretrained(tmp_path / "again")
    before, after = Checkpoint.open(directory), Checkpoint.open(tmp_path / "again")
    assert after.config == before.config
    assert after.tensors.keys() == before.tensors.keys()
    assert all(after.raw(name) == before.raw(name) for name in before.tensors)
    assert torch.equal(logits(load_plain(tmp_path / "again")), logits(model))


@pytest.mark.parametrize(
    ("name", "auto"), [("llama", "AutoModelForCausalLM"), ("bert", "AutoModelForMaskedLM")]
)
def test_auto_classes(name: str, auto: str, tmp_path: Path) -> None:
    directory = compress(save_base(name, tmp_path / "base"), tmp_path / "out", FAMILIES[name])
    model = getattr(transformers, auto).from_pretrained(directory)
    assert torch.equal(logits(model), logits(kanna.load(directory)[0]))


def test_base_class(family: tuple[str, Path, Path], tmp_path: Path) -> None:
    """The prefix is removed, and forms of the head alone are left out, also of what is saved then."""
    _, _, directory = family
    whole = load_plain(directory)
    base = transformers.AutoModel.from_pretrained(directory)
    assert torch.equal(logits(base), logits(whole.base_model))
    base.save_pretrained(tmp_path / "base")
    again = transformers.AutoModel.from_pretrained(tmp_path / "base")
    assert torch.equal(logits(again), logits(base))
    forms = Checkpoint.open(tmp_path / "base").config["quantization_config"]["forms"]
    assert forms.keys() == {p for p, m in base.named_modules() if isinstance(m, FormModule)} - _inner(base)


def _inner(model: torch.nn.Module) -> set[str]:
    return {p for p, m in model.named_modules() if isinstance(m, FormModule) and ".parts." in p}


def test_base_class_to_head_class(tmp_path: Path) -> None:
    """A checkpoint of the base class, loaded with a head: the prefix is added."""
    directory = compress(save_base("bert", tmp_path / "base"), tmp_path / "out", BERT)
    transformers.AutoModel.from_pretrained(directory).save_pretrained(tmp_path / "encoder")
    model = transformers.BertForSequenceClassification.from_pretrained(tmp_path / "encoder")
    assert isinstance(model.bert.encoder.layer[0].attention.self.query, FormModule)
    other = transformers.BertForSequenceClassification.from_pretrained(directory)
    assert torch.equal(
        dense_weight(model.bert.encoder.layer[1].output.dense),
        dense_weight(other.bert.encoder.layer[1].output.dense),
    )


def test_tensor_names_without_the_prefix(tmp_path: Path) -> None:
    """GPT-2's own files lack `transformer.`; the forms are declared with it."""
    base = save_base("gpt2", tmp_path / "base")
    expected = logits(load_plain(compress(base, tmp_path / "with", GPT2)))

    def strip(tensors: dict) -> None:
        for name in list(tensors):
            tensors[name.removeprefix("transformer.")] = tensors.pop(name)

    edit_tensors(base, strip)
    out = compress(base, tmp_path / "without", GPT2)
    assert "h.0.attn.c_attn.parts.0.reduce.weight" in Checkpoint.open(out).tensors
    assert torch.equal(logits(load_plain(out)), expected)


def test_sharded(llama_base: Path, tmp_path: Path) -> None:
    one = compress(llama_base, tmp_path / "one", LLAMA)
    many = compress(llama_base, tmp_path / "many", LLAMA, max_shard_bytes=20_000)
    assert len(list(many.glob("*.safetensors"))) > 2
    assert torch.equal(logits(load_plain(many)), logits(load_plain(one)))


@pytest.mark.parametrize("name", ["llama", "neox"])
def test_device_map_and_dtype(name: str, tmp_path: Path) -> None:
    directory = compress(save_base(name, tmp_path / "base"), tmp_path / "out", FAMILIES[name])
    expected = logits(load_plain(directory))
    assert torch.equal(logits(load_plain(directory, device_map="cpu")), expected)
    half = load_plain(directory, dtype=torch.bfloat16, device_map="cpu")
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    assert all(b.dtype == torch.int32 for n, b in half.named_buffers() if n.endswith("order"))
    torch.testing.assert_close(logits(half).float(), expected, rtol=0.1, atol=0.1)
    double = load_plain(directory).double()
    torch.testing.assert_close(logits(double).float(), expected, rtol=1e-3, atol=1e-4)
    assert load_plain(directory).half().dtype == torch.float16


def test_tied_embeddings_stay_tied(llama: Path) -> None:
    model = load_plain(llama)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert "lm_head.weight" not in Checkpoint.open(llama).tensors


def test_generates(llama: Path) -> None:
    model = load_plain(llama)
    assert model.generate(INPUT, max_new_tokens=3, do_sample=False).shape == (1, INPUT.shape[1] + 3)


def test_ordinary_training_lowers_the_loss(llama: Path) -> None:
    model = load_plain(llama).train()
    optimiser = torch.optim.SGD(model.parameters(), 0.5)
    losses = []
    for _ in range(5):
        loss = model(INPUT, labels=INPUT).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert model.model.layers[0].mlp.up_proj.reduce.weight.grad.abs().sum() > 0


def test_trainer_takes_the_model(llama: Path, tmp_path: Path) -> None:
    model = load_plain(llama)
    before = model.model.layers[0].mlp.up_proj.expand.weight.detach().clone()
    rows = [{"input_ids": INPUT[0], "labels": INPUT[0]}] * 2
    arguments = transformers.TrainingArguments(
        tmp_path / "run", max_steps=1, report_to=[], use_cpu=True, save_strategy="no", learning_rate=0.1
    )
    with process_state.given_back():  # Trainer seeds everything
        trainer = transformers.Trainer(model, arguments, train_dataset=rows)
        trainer.train()
    assert not torch.equal(model.model.layers[0].mlp.up_proj.expand.weight, before)
    trainer.save_model(str(tmp_path / "saved"))
    assert torch.equal(logits(load_plain(tmp_path / "saved")), logits(model.eval()))


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert"])
def test_peft_lora_trains_saves_and_merges(name: str, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    directory = compress(save_base(name, tmp_path / "base"), tmp_path / "out", FAMILIES[name])
    model = load_plain(directory)
    targets = kanna.lora_targets(model)
    tuned = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=targets, lora_dropout=0.0))
    assert sum("lora_A" in n and n.endswith("weight") for n, _ in tuned.named_parameters()) == len(targets)
    optimiser = torch.optim.SGD((p for p in tuned.parameters() if p.requires_grad), 0.5)
    for _ in range(2):
        optimiser.zero_grad()
        tuned(INPUT)[0].square().mean().backward()
        optimiser.step()
    expected = logits(tuned.eval())
    tuned.save_pretrained(tmp_path / "adapter")
    fresh = peft.PeftModel.from_pretrained(load_plain(directory), tmp_path / "adapter")
    torch.testing.assert_close(logits(fresh), expected)
    assert not torch.equal(expected, logits(load_plain(directory)))
    merged = fresh.merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    torch.testing.assert_close(logits(load_plain(tmp_path / "merged")), expected, rtol=1e-4, atol=1e-5)


def test_lora_targets_are_the_linears_of_compressed_layers(llama: Path) -> None:
    ends = ("layers.0.mlp.up_proj.{}", "layers.1.self_attn.k_proj.{}")
    expected = ["model." + end.format(part) for end in ends for part in ("reduce", "expand")]
    assert kanna.lora_targets(load_plain(llama)) == expected
    with pytest.raises(InputError, match="no layer in a form"):
        kanna.lora_targets(tiny("llama"))


def test_load_gives_model_and_tokenizer(llama: Path, llama_base: Path) -> None:
    model, tokenizer = kanna.load(llama)
    assert tokenizer is None
    assert not model.training
    assert torch.equal(logits(model), logits(load_plain(llama)))
    words = {"[UNK]": 0, "a": 1, "b": 2}
    from tokenizers import Tokenizer, models, pre_tokenizers

    raw = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=raw).save_pretrained(llama)
    assert kanna.load(llama)[1]("a b")["input_ids"] == [1, 2]
    dense, _ = kanna.load(llama_base)
    assert not any(isinstance(m, FormModule) for m in dense.modules())


def test_load_verifies_unless_told_not_to(llama: Path) -> None:
    edit_tensors(llama, lambda tensors: tensors["model.norm.weight"].add_(1))
    with pytest.raises(InputError, match="has changed"):
        kanna.load(llama)
    kanna.load(llama, verify=False)


_NEW_PROCESS = """
import sys
import kanna
import torch
from transformers import AutoModelForCausalLM
torch.set_num_threads(int(sys.argv[3]))
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
with torch.no_grad():
    torch.save(model(torch.arange(3, 15)[None])[0], sys.argv[2])
"""


def test_a_new_process_gives_identical_logits(llama: Path, tmp_path: Path) -> None:
    done = run(_NEW_PROCESS, llama, tmp_path / "logits", torch.get_num_threads())
    assert done.returncode == 0, done.stderr
    assert torch.equal(torch.load(tmp_path / "logits"), logits(load_plain(llama)))


_WITHOUT_KANNA = """
import sys
from transformers import AutoModelForCausalLM
try:
    AutoModelForCausalLM.from_pretrained(sys.argv[1])
except RuntimeError as error:
    print(error)
else:
    sys.exit("it loaded")
model, info = AutoModelForCausalLM.from_pretrained(
    sys.argv[1], ignore_mismatched_sizes=True, output_loading_info=True
)
print(sorted(name for name, *_ in info["mismatched_keys"]))
assert "kanna" not in sys.modules
"""


def test_without_kanna_it_fails_loudly(llama: Path) -> None:
    """And `ignore_mismatched_sizes=True`, which the error mentions, gives random weights: README says so."""
    done = run(_WITHOUT_KANNA, llama)
    assert done.returncode == 0, done.stderr
    message, mismatched = done.stdout.splitlines()
    assert message.startswith("You set `ignore_mismatched_sizes` to `False`, thus raising an error.")
    assert mismatched == str(sorted(f"{path}.weight" for path in LLAMA))
    for line in (f"{path}.weight" for path in LLAMA):
        assert line in done.stderr
    assert "Unknown quantization type, got kanna" in done.stderr
    assert "ckpt: torch.Size([1]) vs model:torch.Size([64, 32])" in done.stderr


UP = "model.layers.0.mlp.up_proj"


@pytest.mark.parametrize("name", ["model.layers.1.self_attn.o_proj.weight", "model.norm.weight"])
def test_a_missing_weight_that_no_form_declares(llama: Path, name: str) -> None:
    """Left to itself transformers takes random ones."""
    edit_tensors(llama, lambda tensors: tensors.pop(name))
    with pytest.raises(InputError, match=rf"lacks the tensor {name}, which LlamaForCausalLM needs\n"):
        kanna.load(llama, verify=False)


def test_a_missing_factor(llama: Path) -> None:
    edit_tensors(llama, lambda tensors: tensors.pop(f"{UP}.expand.weight"))
    with pytest.raises(InputError, match=rf"no tensor '{UP}\.expand\.weight' of shape \[64, 8\]"):
        load_plain(llama)


def test_a_missing_form_altogether(llama: Path) -> None:
    def remove(tensors: dict) -> None:
        for name in [name for name in tensors if name.startswith(UP)]:
            del tensors[name]

    edit_tensors(llama, remove)
    with pytest.raises(InputError, match=UP):
        load_plain(llama)


@pytest.mark.parametrize(
    ("suffix", "shape"), [("reduce.weight", (8, 31)), ("expand.weight", (64, 7)), ("weight", (64, 32))]
)
def test_a_factor_of_another_shape(llama: Path, suffix: str, shape: tuple[int, int]) -> None:
    edit_tensors(llama, lambda tensors: tensors.update({f"{UP}.{suffix}": torch.zeros(shape)}))
    with pytest.raises(InputError, match=rf"has shape \[{shape[0]}, {shape[1]}\]"):
        load_plain(llama)
    with pytest.raises(InputError, match="has shape"):
        load_plain(llama, ignore_mismatched_sizes=True)


def test_a_missing_order_or_one_of_another_kind(tmp_path: Path) -> None:
    out = compress(save_base("gpt2", tmp_path / "base"), tmp_path / "out", GPT2)
    name = "transformer.h.1.mlp.c_proj.order"
    edit_tensors(out, lambda tensors: tensors.update({name: tensors[name].float()}))
    with pytest.raises(InputError, match="is F32; the pivot form needs I32"):
        load_plain(out)
    edit_tensors(out, lambda tensors: tensors.pop(name))
    with pytest.raises(InputError, match="order"):
        load_plain(out)


def test_a_missing_bias(tmp_path: Path) -> None:
    out = compress(save_base("bert", tmp_path / "base"), tmp_path / "out", BERT)
    edit_tensors(out, lambda tensors: tensors.pop("bert.encoder.layer.0.attention.self.query.expand.bias"))
    with pytest.raises(InputError, match=r"query\.expand\.bias"):
        load_plain(out)


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("model.layers.7.mlp.up_proj", "no such module"),
        ("layers.0.mlp.upp", "no such module"),
        ("", "which is a LlamaForCausalLM"),
        ("model.norm", "which is a LlamaRMSNorm"),
    ],
)
def test_a_form_that_names_no_linear_layer(llama: Path, edit_config: Edit, path: str, text: str) -> None:
    edit_config(
        llama, lambda c: c["quantization_config"]["forms"].update({path: {"form": "low_rank", "rank": 2}})
    )
    with pytest.raises(InputError, match=text):
        load_plain(llama)


def test_head_only_forms_are_missed_in_their_own_class(tmp_path: Path, edit_config: Edit) -> None:
    out = compress(save_base("bert", tmp_path / "base"), tmp_path / "out", BERT)
    edit_config(out, lambda c: c["quantization_config"]["forms"].update({"cls.no": LowRank(2).to_json()}))
    with pytest.raises(InputError, match=r"cls\.no"):
        load_plain(out)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda q: q.update(format_version=2), "format_version 2"),
        (lambda q: q.pop("format_version"), "no sound format_version"),
        (lambda q: q.update(forms=[]), "no object 'forms'"),
        (lambda q: q.pop("forms"), "no object 'forms'"),
        (lambda q: q.update(extra=1), r"unknown keys \['extra'\]"),
        (lambda q: q["forms"].update({UP: {"form": "codebook", "bits": 4}}), "unknown form 'codebook'"),
        (lambda q: q["forms"].update({UP: {"form": "dense"}}), "is not declared"),
        (lambda q: q["forms"].update({UP: {"form": "low_rank", "rank": 33}}), "rank 33 is more"),
    ],
)
def test_bad_declarations(
    llama: Path, edit_config: Edit, change: Callable[[dict], object], text: str
) -> None:
    edit_config(llama, lambda c: change(c["quantization_config"]))
    with pytest.raises(InputError, match=text) as error:
        load_plain(llama)
    if "format_version 2" in text:
        assert error.value.remedy == "upgrade kanna"


def test_only_a_state_dict(llama: Path) -> None:
    config = transformers.AutoConfig.from_pretrained(llama)
    state = safetensors.torch.load_file(llama / "model.safetensors")
    with pytest.raises(InputError, match="only a state dict"):
        transformers.LlamaForCausalLM.from_pretrained(None, config=config, state_dict=state)


def test_a_dense_model_is_not_compressed_on_the_fly(llama_base: Path) -> None:
    from kanna.checkpoint.quantizer import KannaConfig

    with pytest.raises(ValueError, match="pre_quantized"):
        load_plain(llama_base, quantization_config=KannaConfig(forms={}, format_version=1))


def test_without_the_names_of_the_files(llama: Path) -> None:
    """A transformers that does not pass `checkpoint_files`: the directory is looked up by its name."""
    from kanna.checkpoint.quantizer import KannaConfig, KannaQuantizer

    config = transformers.AutoConfig.from_pretrained(llama)
    quantizer = KannaQuantizer(KannaConfig(**config.quantization_config))
    model = skeleton_named(llama)
    quantizer._process_model_before_weight_loading(model)
    assert {p for p, m in model.named_modules() if isinstance(m, FormModule)} == set(LLAMA)
    edit_tensors(llama, lambda tensors: tensors.pop(f"{UP}.expand.weight"))
    with pytest.raises(InputError, match="expand"):
        quantizer._process_model_before_weight_loading(skeleton_named(llama))


def skeleton_named(directory: Path) -> torch.nn.Module:
    model = skeleton(directory)
    model.config.name_or_path = str(directory)
    return model


def test_config_survives_json(llama: Path) -> None:
    model = load_plain(llama)
    text = model.config.to_json_string()
    declared = json.loads(text)["quantization_config"]
    assert declared == Checkpoint.open(llama).config["quantization_config"]
    assert dict(model.config.quantization_config) == declared

"""What a model keeps of a prompt, counted by hand for each kind; and models that keep nothing."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tiny_model import save_tokenizer

from kanna.cli.main import main
from kanna.errors import InputError
from kanna.measure.bench import _bytes_read
from kanna.measure.carried import bytes_held, carried, check_decodes
from kanna.measure.memory import peak_memory
from kanna.measure.options import BenchOptions

_COMMON: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}
BATCH, CONTEXT, WINDOW = 3, 21, 8


def _windowed() -> Any:
    kinds = ["sliding_attention", "full_attention"]
    return transformers.Gemma3TextConfig(**_COMMON, sliding_window=WINDOW, layer_types=kinds)


def _latent() -> Any:
    return transformers.DeepseekV3Config(
        **(_COMMON | {"num_key_value_heads": 4, "head_dim": 4}), kv_lora_rank=16, q_lora_rank=16,
        qk_rope_head_dim=4, qk_nope_head_dim=8, v_head_dim=6, first_k_dense_replace=2, n_routed_experts=4,
        num_experts_per_tok=2, n_group=1, topk_group=1,
    )  # fmt: skip


def _mamba() -> Any:
    return transformers.FalconMambaConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=2, state_size=4, conv_kernel=3, expand=2
    )


# Numbers that are kept a row of the batch: by hand.
KEPT = [
    # a window of 8 keeps the last 7, for the next token is the eighth
    ("windowed", _windowed, 2 * 2 * 8 * ((WINDOW - 1) + CONTEXT)),
    # in two layers the latent vector and the turned part of a key, 16 + 4, which all heads share
    ("latent", _latent, 2 * (16 + 4) * CONTEXT),
    # two layers; 32 channels with 3 inputs and 4 states each, whatever the length
    ("recurrent", _mamba, 2 * 32 * (3 + 4)),
]


@pytest.mark.parametrize(("make", "numbers"), [kind[1:] for kind in KEPT], ids=[kind[0] for kind in KEPT])
def test_what_is_read_of_a_prompt_by_hand(make: Callable[[], Any], numbers: int) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(make(), dtype=torch.float32).eval()
    weights = sum(parameter.numel() for parameter in model.parameters())
    table = model.get_input_embeddings().weight
    if model.get_output_embeddings().weight is not table:
        weights -= (table.shape[0] - BATCH) * table.shape[1]
    assert _bytes_read(model, BATCH, CONTEXT) == 4 * (weights + BATCH * numbers)


def test_a_tensor_counts_once_and_numbers_that_count_do_not() -> None:
    class Holder:
        def __init__(self) -> None:
            self.one = torch.zeros(3, 5)
            self.again = [self.one, {"deep": torch.zeros(2, dtype=torch.bfloat16)}]
            self.seen = torch.tensor(7)
            self.me = self

    assert bytes_held(Holder()) == 4 * 15 + 2 * 2
    assert bytes_held(None) == 0


def _saved(config: Any, directory: Path) -> Path:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        transformers.AutoModelForCausalLM.from_config(config).save_pretrained(directory)
    save_tokenizer(directory)
    return directory


def test_a_state_space_model_is_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = _saved(_mamba(), tmp_path / "mamba")
    words = [
        "bench",
        model,
        "--context",
        "8",
        "--new-tokens",
        "3",
        "--repeats",
        "1",
        "--no-memory",
        "--json",
        "-q",
    ]
    assert main([str(word) for word in words]) == 0
    setting = json.loads(capsys.readouterr().out)["models"][0]["settings"][0]
    assert setting["measured"]["decode"]["count"] == 2


def test_a_token_goes_on_from_the_state_that_is_carried() -> None:
    """The scores after a prompt read at once are those after its last token was read alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(_mamba()).eval()
    ids = torch.arange(18).reshape(2, 9)
    with torch.no_grad():
        whole = model(ids).logits[:, -1]
        kept = carried(model(ids[:, :-1], use_cache=True))
        alone = model(ids[:, -1:], use_cache=True, **kept).logits[:, -1]
    torch.testing.assert_close(alone, whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("memory", [(), ("--no-memory",)])
def test_a_model_that_keeps_nothing_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], memory: tuple[str, ...]
) -> None:
    """The first GPT has no cache: it reads the whole text for each token."""
    config = transformers.OpenAIGPTConfig(vocab_size=40, n_positions=32, n_embd=16, n_layer=1, n_head=2)
    model = _saved(config, tmp_path / "first")
    words = ["bench", str(model), "--context", "8", "--new-tokens", "3", "--repeats", "1", "-q", *memory]
    assert main(words) == 2
    said = capsys.readouterr().err
    assert said.count("kanna: error:") == 1 and "first returns neither keys and values nor a state" in said


def test_a_model_that_cannot_go_on_is_refused_with_its_reason() -> None:
    class Stubborn:
        def __call__(self, input_ids: Any, use_cache: bool, **kept: Any) -> Any:
            if kept:
                raise ValueError("no\nway")
            return type("Out", (), {"state": [1]})()

    with pytest.raises(InputError, match="stubborn cannot go on from what it has read: no way"):
        check_decodes(Stubborn(), "stubborn", 1)


def test_the_process_that_measures_memory_says_what_is_wrong(tmp_path: Path) -> None:
    config = transformers.OpenAIGPTConfig(vocab_size=40, n_positions=32, n_embd=16, n_layer=1, n_head=2)
    with pytest.raises(InputError, match="neither keys and values"):
        peak_memory(_saved(config, tmp_path / "first"), BenchOptions(contexts=(8,), new_tokens=2), 1)

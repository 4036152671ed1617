import json
import shutil
from pathlib import Path

import pytest
from merge_models import recipe
from transformers import AutoTokenizer

from kanna.errors import InputError
from kanna.methods.merge.run import merge, merge_plan

Models = dict[str, Path]
CHAT = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "Hello "},
    {"role": "assistant", "content": "Hi."},
    {"role": "user", "content": "Bye"},
]
IM = "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHello <|im_end|>\n"
IM += "<|im_start|>assistant\nHi.<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n"
THREE = "t1<|start_header_id|>system<|end_header_id|>\n\nBe kind.<|eot_id|>"
THREE += "<|start_header_id|>user<|end_header_id|>\n\nHello<|eot_id|>"
THREE += "<|start_header_id|>assistant<|end_header_id|>\n\nHi.<|eot_id|>"
THREE += "<|start_header_id|>user<|end_header_id|>\n\nBye<|eot_id|>"
THREE += "<|start_header_id|>assistant<|end_header_id|>\n\n"
ALPACA = "Be kind.\n\n### Instruction:\nHello \n\n### Response:\nHi.t2\n\n"
ALPACA += "### Instruction:\nBye\n\n### Response:\n"
WRITTEN = {
    "chatml": IM,
    "llama3": THREE,
    "alpaca": ALPACA,
    "mistral": "t1[INST] Be kind.\n\nHello  [/INST] Hi.t2[INST] Bye [/INST]",
    "exaone": "[|system|]Be kind.[|endofturn|]\n[|user|]Hello \n[|assistant|]Hi.[|endofturn|]\n[|user|]Bye\n"
    "[|assistant|]",
    "{{ messages[3]['content'] }}{% if add_generation_prompt %}!{% endif %}": "Bye!",
}


@pytest.fixture
def given(models: Models, tmp_path: Path) -> list[Path]:
    """Two models that mark beginning and end."""
    places = [tmp_path / "in" / name for name in "ab"]
    for place in places:
        shutil.copytree(models[place.name], place)
        config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "t1", "eos_token": "t2"}
        (place / "tokenizer_config.json").write_text(json.dumps(config))
    return places


def merged(given: list[Path], **top: object) -> dict[str, object]:
    return recipe("linear", {place: {"weight": 1} for place in given}, **top)


def said(out: Path) -> str:
    text = AutoTokenizer.from_pretrained(out).apply_chat_template(
        CHAT, tokenize=False, add_generation_prompt=True
    )
    assert isinstance(text, str)
    return text


@pytest.mark.parametrize("name", WRITTEN)
def test_what_templates_write(name: str, given: list[Path], tmp_path: Path) -> None:
    config = given[0] / "tokenizer_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "chat_template": "old"}))
    result = merge(merged(given, chat_template=name), tmp_path / "out")
    assert said(tmp_path / "out") == WRITTEN[name]
    assert "chat_template" not in json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert any("<|im_end|>, <|im_start|>" in note for note in result.plan.warnings) is (name == "chatml")


def test_auto_takes_the_template_of_most_models(given: list[Path], models: Models, tmp_path: Path) -> None:
    plan = merge_plan(merged([*given, models["base"]], chat_template="auto"))
    assert any("no model has a chat template" in note for note in plan.warnings)
    (given[0] / "chat_template.jinja").write_text("{{ 'first' }}")
    (given[1] / "chat_template.jinja").write_text("{{ 'most' }}")
    base = tmp_path / "in" / "base"
    shutil.copytree(models["base"], base)
    listed = [{"name": "rag", "template": "no"}, {"name": "default", "template": "{{ 'most' }}"}]
    (base / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": listed})
    )
    merge(merged([*given, base], chat_template="auto"), tmp_path / "out")
    assert said(tmp_path / "out") == "most"


def test_a_template_that_is_none(given: list[Path]) -> None:
    with pytest.raises(InputError, match=r"no chat template 'chatlm'; did you mean chatml"):
        merge_plan(merged(given, chat_template="chatlm"))
    with pytest.raises(InputError, match=r"no chat template 3"):
        merge_plan(merged(given, chat_template=3))
    broken = "{% for message in messages %}\n{{ message }}"
    with pytest.raises(InputError, match=r"chat template is no Jinja: .* line 2"):
        merge_plan(merged(given, chat_template=broken))
    marked = "{% for one in messages %}{% generation %}{{ one }}{% endgeneration %}{% break %}{% endfor %}"
    assert merge_plan(merged(given, chat_template=marked)).recipe.template == marked

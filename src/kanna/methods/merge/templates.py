"""How the tokenizer of a merge writes a conversation: a text, the template of most models, or a usual one."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence

from jinja2 import Environment, TemplateSyntaxError

from kanna.errors import suggestion
from kanna.methods.merge.tree import Node, Place
from kanna.methods.merge.vocabulary import CONFIG, TEMPLATE, Tokenizer

AUTO = "auto"
_OLD = "chat_template.json"
_JINJA = Environment(extensions=["jinja2.ext.loopcontrols"], autoescape=False)
# A tag that transformers adds to Jinja.
_OF_TRANSFORMERS = re.compile(r"\{%-?\s*(end)?generation\s*-?%\}")
# What a template writes that is one token where the tokenizer has it.
_MARK = re.compile(r"<\|\w+\|>|\[\|\w+\|\]")

_CHATML = """\
{%- for message in messages -%}
{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{ '<|im_start|>assistant\\n' }}
{%- endif -%}
"""
_LLAMA3 = """\
{{- bos_token -}}
{%- for message in messages -%}
{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
{{- message['content'] | trim + '<|eot_id|>' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif -%}
"""
_ALPACA = """\
{%- if messages and messages[0]['role'] != 'system' -%}
{{ 'Below is an instruction that describes a task. ' }}
{{- 'Write a response that appropriately completes the request.\\n\\n' }}
{%- endif -%}
{%- for message in messages -%}
{%- if message['role'] == 'system' -%}
{{ message['content'] + '\\n\\n' }}
{%- elif message['role'] == 'user' -%}
{{ '### Instruction:\\n' + message['content'] + '\\n\\n' }}
{%- elif message['role'] == 'assistant' -%}
{{ '### Response:\\n' + message['content'] }}{{ eos_token }}{{ '\\n\\n' }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{ '### Response:\\n' }}
{%- endif -%}
"""
_MISTRAL = """\
{%- set said = namespace(before='') -%}
{{- bos_token -}}
{%- for message in messages -%}
{%- if message['role'] == 'system' -%}
{%- set said.before = message['content'] + '\\n\\n' -%}
{%- elif message['role'] == 'user' -%}
{{ '[INST] ' + said.before + message['content'] + ' [/INST]' }}
{%- set said.before = '' -%}
{%- elif message['role'] == 'assistant' -%}
{{ ' ' + message['content'] }}{{ eos_token }}
{%- endif -%}
{%- endfor -%}
"""
_EXAONE = """\
{%- if messages and messages[0]['role'] != 'system' -%}
{{ '[|system|][|endofturn|]\\n' }}
{%- endif -%}
{%- for message in messages -%}
{{ '[|' + message['role'] + '|]' + message['content'] }}
{{- '\\n' if message['role'] == 'user' else '[|endofturn|]\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{ '[|assistant|]' }}
{%- endif -%}
"""
USUAL: Mapping[str, str] = {
    "alpaca": _ALPACA,
    "chatml": _CHATML,
    "exaone": _EXAONE,
    "llama3": _LLAMA3,
    "mistral": _MISTRAL,
}


def read_template(place: Place, node: Node | None) -> str | None:
    """The template that a recipe names or writes out; None without one.

    Raises:
        InputError: It is neither; names the line.
    """
    if node is None or node.value is None:
        return None
    given, names = node.value, (AUTO, *USUAL)
    if isinstance(given, str) and given in names:
        return given
    if isinstance(given, str) and ("{{" in given or "{%" in given):
        if wrong := _wrong_in(given):
            raise place.error(node, f"the chat template is no Jinja: {wrong}", "mend it")
        return given
    said = f"there is no chat template {node.plain!r}{suggestion(str(node.plain), names)}"
    raise place.error(node, said, f"write {', '.join(names)}, or a template in Jinja")


def _wrong_in(template: str) -> str:
    """What Jinja says of a template that it cannot read; empty for one that it can."""
    try:
        _JINJA.parse(_OF_TRANSFORMERS.sub("", template))
    except TemplateSyntaxError as error:
        return f"{error.message} in line {error.lineno} of it"
    return ""


def with_template(
    given: str, tokenizer: Tokenizer, vocabulary: Mapping[str, int] | None, others: Sequence[Tokenizer]
) -> tuple[Tokenizer, list[str]]:
    """A tokenizer with a template, and what there is to know about it.

    Args:
        given: See `read_template`.
        vocabulary: Of the tokenizer; None where it is not known.
        others: Of all models, from which the most frequent template is taken.
    """
    text = USUAL.get(given, given)
    if given == AUTO:
        found = Counter(one for one in map(template_of, others) if one is not None)
        if not found:
            return tokenizer, ["chat_template: auto has no effect, for no model has a chat template"]
        ((text, _),) = found.most_common(1)  # of equals the first
    files = {name: held for name, held in tokenizer.files.items() if name != _OLD}
    config = tokenizer.data(CONFIG)
    if config.pop("chat_template", None) is not None:
        files[CONFIG] = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
    lost = sorted(set(_MARK.findall(text)) - (vocabulary or {}).keys()) if vocabulary is not None else []
    notes = [f"the chat template writes {', '.join(lost)}, which the tokenizer does not have as one token"]
    return Tokenizer(tokenizer.name, {**files, TEMPLATE: text}), notes if lost else []


def template_of(tokenizer: Tokenizer) -> str | None:
    """How it writes conversations; None where it does not say."""
    if (text := tokenizer.text(TEMPLATE)) is not None:
        return text
    given = tokenizer.data(CONFIG).get("chat_template") or tokenizer.data(_OLD).get("chat_template")
    if isinstance(given, list):  # several, by name
        named = {one.get("name"): one.get("template") for one in given if isinstance(one, Mapping)}
        given = named.get("default")
    return given if isinstance(given, str) else None

"""Rows as data for instruction tuning has them: an instruction with its output, or a conversation."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from kanna.errors import InputError
from kanna.tasks.data.tables import INSTRUCTION_KEYS, INSTRUCTION_SHAPE, MESSAGES_SHAPE
from kanna.tasks.data.values import filled, string

ASSISTANT = "assistant"
_ROLES = ("system", "user", ASSISTANT)
_CUE = "Answer:"
# Any of these makes a row of another kind.
_OTHERS = {"text", "prompt", "answer", "answers", "choices", "pair", "query"}


class Message(NamedTuple):
    """What somebody says in a conversation."""

    role: str
    content: str


class Instruction(NamedTuple):
    """What is asked: as a user would say it, and as models that know no chat read it; and the answer."""

    said: str
    prompt: str
    answer: str


def instructs(fields: Mapping[str, Any]) -> bool:
    """Whether a row is an instruction; beside a prompt, `instruction` alone is a key of the user's own."""
    return "instruction" in fields and ("output" in fields or not fields.keys() & _OTHERS)


def speaks(fields: Mapping[str, Any]) -> bool:
    """Whether a row is a conversation; beside a prompt, `messages` that are no list are the user's own."""
    return "messages" in fields and (isinstance(fields["messages"], list) or not fields.keys() & _OTHERS)


def instruction(where: str, fields: Mapping[str, Any]) -> Instruction:
    """Of a row of which `instructs` is true.

    Models that know no chat read the instruction, its input and "Answer:", parted by empty lines.

    Raises:
        InputError: Keys of another kind of row beside it, no output, or what is no text.
    """
    _refuse_others(where, INSTRUCTION_SHAPE, fields)
    if "output" not in fields:
        raise InputError(
            f"{where}: an instruction without an output, found the keys {sorted(fields)}",
            f"use {INSTRUCTION_SHAPE}",
        )
    asked, answer = (filled(where, key, fields[key]) for key in ("instruction", "output"))
    about = string(where, "input", fields.get("input", ""))
    said = "\n\n".join(part.strip() for part in (asked, about) if part.strip())
    return Instruction(said, f"{said}\n\n{_CUE}", answer)


def conversation(where: str, fields: Mapping[str, Any]) -> tuple[Message, ...]:
    """Of a row with messages; the last one is the assistant's.

    Raises:
        InputError: Keys of another kind of row beside it, or messages that are none.
    """
    _refuse_others(where, MESSAGES_SHAPE, fields)
    if "instruction" in fields and "output" in fields:
        raise InputError(
            f"{where}: a row of messages, and instruction, output too", "use one of the two, not both"
        )
    given = fields["messages"]
    if not isinstance(given, list) or not given:
        raise InputError(
            f"{where}: messages must be a list of messages, found {given!r}", f"use {MESSAGES_SHAPE}"
        )
    messages = tuple(_message(f"{where}, message {place}", one) for place, one in enumerate(given, 1))
    if messages[-1].role != ASSISTANT:
        raise InputError(
            f"{where}: the last message is of {messages[-1].role}, and the assistant's is what counts",
            "end with what the assistant should say, or remove the row",
        )
    if messages[0].role == ASSISTANT:
        raise InputError(
            f"{where}: the first message is the assistant's, which answers nothing",
            "begin with a message of user or system",
        )
    return messages


def as_text(messages: Sequence[Message]) -> str:
    """Messages without a template, to compare and to show them; one alone is what it says."""
    if len(messages) == 1:
        return messages[0].content
    return "\n\n".join(f"{role}: {content}" for role, content in messages)


def _refuse_others(where: str, shape: str, fields: Mapping[str, Any]) -> None:
    other = sorted(_OTHERS & fields.keys())
    if other:
        own = "messages" if "messages" in fields else INSTRUCTION_KEYS[0]
        raise InputError(
            f"{where}: a row with {own}, and {', '.join(other)} too", f"leave only the keys of {shape}"
        )


def _message(where: str, given: object) -> Message:
    if not isinstance(given, Mapping):
        raise InputError(f"{where}: expected an object, found {given!r}", f"use {MESSAGES_SHAPE}")
    held = {key: value for key, value in given.items() if value is not None}
    missing = next((key for key in ("role", "content") if key not in held), None)
    if missing is not None:
        raise InputError(f"{where} has no {missing}", f"use {MESSAGES_SHAPE}")
    strange = sorted(map(str, held.keys() - {"role", "content"}))
    if strange:
        raise InputError(
            f"{where} has the key {strange[0]!r}, which is not read", "leave only role and content"
        )
    role = held["role"]
    if role not in _ROLES:
        raise InputError(f"{where}: the role {role!r} is unknown", f"roles are {', '.join(_ROLES)}")
    read = string if role == "system" else filled
    return Message(role, read(where, "content", held["content"]))

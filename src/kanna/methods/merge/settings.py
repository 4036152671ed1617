"""A value of a parameter: the same everywhere, graded over the layers, or by the names of tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kanna.errors import suggestion
from kanna.methods.merge.known import Parameter
from kanna.methods.merge.tree import Node, Place

_EVERY = "*"


@dataclass(frozen=True)
class Setting:
    """What a recipe gives for a parameter; exactly one of the three is there.

    Args:
        values: One value, or several that are spread evenly over the layers.
        filters: (part of a tensor's name or None for all, its setting), of which the first that fits holds.
        line: Where it stands.
    """

    values: tuple[float, ...] = ()
    filters: tuple[tuple[str | None, Setting], ...] = ()
    line: int = 0

    @property
    def graded(self) -> bool:
        """Whether it depends on the layer."""
        return len(self.values) > 1 or any(setting.graded for _, setting in self.filters)

    @property
    def all_values(self) -> tuple[float, ...]:
        return self.values + tuple(value for _, one in self.filters for value in one.all_values)

    @property
    def ends_differ(self) -> bool:
        """Whether tensors outside the layers, which get the first value, would get another with the last."""
        own = len(self.values) > 1 and self.values[0] != self.values[-1]
        return own or any(setting.ends_differ for _, setting in self.filters)

    def value(self, tensor: str, position: float) -> float | None:
        """What holds for a tensor; None where no filter fits.

        Args:
            position: Of its layer, 0 for the first and 1 for the last.
        """
        if self.values:
            return interpolated(self.values, position)
        for part, setting in self.filters:
            if part is None or part in tensor:
                return setting.value(tensor, position)
        return None


def interpolated(values: Sequence[float], position: float) -> float:
    """Linear between neighbouring values, which are spread evenly from 0 to 1."""
    scaled = position * (len(values) - 1)
    before = min(int(scaled), len(values) - 1)
    after = min(before + 1, len(values) - 1)
    share = scaled - before
    return values[before] if share == 0 else (1 - share) * values[before] + share * values[after]


def read_setting(name: str, parameter: Parameter, node: Node, place: Place) -> Setting:
    """The setting at a node.

    Raises:
        InputError: It is none; names the line.
    """
    given = node.value
    if parameter.chosen:
        return Setting((_word(name, parameter, node, place),), line=node.line)
    if isinstance(given, list) and given and all(isinstance(one.value, dict) for one in given):
        return Setting(filters=tuple(_filter(name, parameter, one, place) for one in given), line=node.line)
    if isinstance(given, list) and given:
        return Setting(tuple(_number(name, parameter, one, place) for one in given), line=node.line)
    return Setting((_number(name, parameter, node, place),), line=node.line)


def _filter(name: str, parameter: Parameter, node: Node, place: Place) -> tuple[str | None, Setting]:
    if "value" not in node.value or set(node.value) - {"filter", "value"}:
        raise place.error(node, f"{name} has an entry that is no filter", "write {filter: mlp, value: 0.5}")
    part = node.value.get("filter", Node(None, 0)).value
    if part is not None and not isinstance(part, str):
        raise place.error(
            node, f"the filter of {name} is no text: {part!r}", "write a part of names of tensors"
        )
    setting = read_setting(name, parameter, node.value["value"], place)
    return (None if part in (None, _EVERY) else part), setting


def _word(name: str, parameter: Parameter, node: Node, place: Place) -> float:
    """What a word stands for."""
    given = node.value
    if isinstance(given, str) and given in parameter.words:
        return parameter.words[given]
    hint = suggestion(given, parameter.words) if isinstance(given, str) else ""
    words = " or ".join(parameter.words)
    raise place.error(
        node, f"{name} is {words}, for all tensors, found {node.plain!r}{hint}", f"write {name}: {words}"
    )


def _number(name: str, parameter: Parameter, node: Node, place: Place) -> float:
    given = node.value
    if isinstance(given, str) and given in parameter.words:
        return parameter.words[given]
    if parameter.flag:
        if given not in (0, 1):  # which true and false are, too
            words = "".join(f", or {name}: {word}" for word in parameter.words)
            raise place.error(
                node, f"{name} is true or false, found {node.plain!r}", f"write {name}: true{words}"
            )
        return float(given)
    try:
        if isinstance(given, bool) or not isinstance(given, int | float | str):
            raise ValueError
        number = float(given)  # YAML reads 1e-9 as a text
    except ValueError:
        raise place.error(node, f"{name} is a number, found {node.plain!r}", f"write {name}: 0.5") from None
    low, high = parameter.lowest, parameter.highest
    if not abs(number) < float("inf") or (low is not None and number < low):
        raise place.error(node, f"{name} is {number:g}", f"give a number of at least {low or 0:g}")
    if high is not None and number > high:
        raise place.error(node, f"{name} is {number:g}", f"give a number of at most {high:g}")
    return number

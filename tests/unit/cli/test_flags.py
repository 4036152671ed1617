"""Flags from configurations: one value for all that share a name, errors that name the flag."""

import inspect
from typing import Annotated

import pytest
from pydantic import ValidationError

import kanna as package
from kanna.configuration import Configuration, Numbers, setting
from kanna.errors import InputError
from kanna.measure.options import BenchOptions
from kanna.methods.laser.budget import Budget
from kanna.methods.laser.search_config import SearchOptions
from kanna.terminal.flags import Only, expanded, gathered


class Other(Configuration):
    limit: int = setting(3, "Its own.")
    memory: bool = setting(True, "As it is.")
    hidden: int = setting(0, "Not on the command line.", {"flag": None})
    blocks: Numbers = setting((1,), "A list.", {"text": True})


def asked(options: package.EvalOptions, other: Other, few: Annotated[Other, Only(("limit",))], own: int = 1):
    """A verb."""


def search(budget: Annotated[Budget, Only(("fast",))]):
    """Its configuration takes numbers for numbers only."""


PARAMETERS = list(inspect.signature(asked).parameters.values())


def made(**given):
    values = {one.name: one.default for one in expanded(PARAMETERS)} | given
    return gathered(PARAMETERS, values, "look it up")


def test_what_is_not_given_is_the_default():
    assert made() == {"options": package.EvalOptions(), "other": Other(), "few": Other(), "own": 1}


def test_fields_of_one_name_are_one_flag():
    names = [one.name for one in expanded(PARAMETERS)]
    assert len(names) == len(set(names)) and "hidden" not in names
    found = made(limit=7, memory=False)
    assert (found["options"].limit, found["other"].limit, found["few"].limit) == (7, 7, 7)
    assert not found["other"].memory and found["few"].memory


def test_texts_are_read():
    found = made(stop=["\\n", "a\\tb"], blocks="1, 4")
    assert found["options"].stop == ("\n", "a\tb") and found["other"].blocks == (1, 4)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"new_tokens": 0}, "--max-new-tokens: "),
        ({"blocks": "1,x"}, "--blocks: "),
        ({"shots": "-1"}, "--shots: must be at least 0, found -1"),
        ({"limit": "50%"}, "--limit: must be a whole number, found '50%'"),
    ],
)
def test_errors_name_the_flag(given, said):
    with pytest.raises(InputError, match=said):
        made(**given)


def test_numbers_are_read_by_the_configuration(kanna, shared_base):
    assert made(limit="7")["other"].limit == 7
    strict = list(inspect.signature(search).parameters.values())
    assert gathered(strict, {"fast": "8"}, "look it up")["budget"].fast == 8
    for given, said in (
        ("80%", "must be a number, found '80%': write 0.8"),
        ("x", "must be a number, found 'x'"),
    ):
        ran = kanna("lowrank", shared_base, "--keep", given, "--dry-run")
        assert ran.code == 2 and f"--keep: {said}" in ran.err


@pytest.mark.parametrize(
    ("config", "given"),
    [
        (package.EvalOptions, {"limit": 0}),
        (package.EvalOptions, {"limits": 3}),
        (BenchOptions, {"warmup": -1}),
        (SearchOptions, {"blocks": (0,)}),
        (SearchOptions, {"max_ppl_rise": 0.1}),
    ],
)
def test_python_is_held_to_the_same(config, given):
    with pytest.raises(ValidationError):
        config(**given)


def test_options_are_values():
    assert package.EvalOptions(limit=3) == package.EvalOptions(limit=3) != package.EvalOptions()
    assert len({package.EvalOptions(stop=("x",)), package.EvalOptions(stop=["x"])}) == 1
    assert SearchOptions(max_ppl_rise="5%", text="t.txt").max_ppl_rise == 0.05
    assert SearchOptions(max_ppl_rise="none").max_ppl_rise is None

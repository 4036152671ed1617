"""The selection grammar, and errors that say what there is."""

import pytest
from family_configs import LAYERS, config

from kanna.errors import InputError
from kanna.models.inventory import inventory
from kanna.models.matrix import Matrix, View
from kanna.models.selection import Group, match, parse, select, selection_from
from kanna.models.skeleton import skeleton

ROLES = ("q", "k", "v", "o", "gate", "up", "down")


def stack(roles: tuple[str, ...], layers: int = 12) -> tuple[Matrix, ...]:
    return tuple(
        Matrix(f"h.{layer}.{role}", f"h.{layer}.{role}", "weight", layer, role, 8, 8, View(), False)
        for layer in range(layers)
        for role in roles
    )


MATRICES = stack(ROLES)


def picked(expression: str, matrices: tuple[Matrix, ...] = MATRICES) -> set[tuple[str, int]]:
    return {(m.role, m.layer) for m in select(matrices, expression)}


def product(roles: str, layers: object) -> set[tuple[str, int]]:
    return {(role, layer) for role in roles.split() for layer in layers}  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("expression", "roles", "layers"),
    [
        ("all", "q k v o gate up down", range(12)),
        ("attn", "q k v o", range(12)),
        ("mlp", "gate up down", range(12)),
        ("q", "q", range(12)),
        ("q,k,v@4-", "q k v", range(4, 12)),
        ("down@-1", "down", [11]),
        ("down@3", "down", [3]),
        ("down@2-5", "down", range(2, 6)),
        ("down@-3-", "down", [9, 10, 11]),
        ("down@-3--2", "down", [9, 10]),
        ("down@2--2", "down", range(2, 11)),
        ("all@3,7-8,-1", "q k v o gate up down", [3, 7, 8, 11]),
        ("mlp_in@0", "gate", [0]),
        ("mlp_gate,mlp_up@0", "gate up", [0]),
        ("mlp_out@0", "down", [0]),
        (" q , k @ 1 ", "q k", [1]),
    ],
)
def test_one_group(expression: str, roles: str, layers: object) -> None:
    assert picked(expression) == product(roles, layers)


def test_layers_bind_to_the_roles_of_their_group_only() -> None:
    assert picked("q,k@4-,down@-1") == product("q k", range(4, 12)) | product("down", [11])
    assert picked("mlp;q@3") == product("gate up down", range(12)) | product("q", [3])
    assert picked("mlp,q@3") == product("gate up down q", [3])
    assert picked("q@0,3,up") == product("q", [0, 3]) | product("up", range(12))


def test_parse() -> None:
    assert parse("q,k@4-,7,down;o@-1") == (
        Group(("q", "k"), ("4-", "7")),
        Group(("down",), ()),
        Group(("o",), ("-1",)),
    )


def test_what_is_left_out() -> None:
    """Wherever it stands; alone it is taken from everything."""
    every, down0 = product(" ".join(ROLES), range(12)), product("down", [0])
    for expression in ("all,!down@0", "!down@0", "!down@0,all", "all;!down@0"):
        assert picked(expression) == every - down0, expression
    assert picked("mlp,!down") == product("gate up", range(12))
    assert picked("all,!q,!k@0-3") == every - product("q k", range(4))
    assert picked("all@0,1,!down@0") == product(" ".join(ROLES), [0, 1]) - down0
    assert picked("all@0,!down,!up@0,q@5") == product("q k v o gate", [0]) | product("q", [5])
    assert picked("down,!attn@3") == product("down", range(12)), "what was not taken is not missed"


@pytest.mark.parametrize("expression", ["!all", "down@3,!mlp", "!nothing", "all,!", "all,!@3", "!down@12"])
def test_what_cannot_be_left_out(expression: str) -> None:
    with pytest.raises(InputError):
        select(MATRICES, expression)


def test_order_is_that_of_the_inventory_without_repeats() -> None:
    assert list(select(MATRICES, "down,q,all")) == list(MATRICES)


def test_aliases_of_models_without_a_gate() -> None:
    plain = stack(("q", "fc_in", "fc_out"))
    assert picked("mlp_in@0,mlp_out@1", plain) == {("fc_in", 0), ("fc_out", 1)}
    assert picked("mlp", plain) == product("fc_in fc_out", range(12))


def test_regular_expression_takes_the_rest() -> None:
    assert picked(r"re:^h\.(2|5)\.[qk]$") == product("q k", [2, 5])
    assert picked(r"re:^h\.\d{1,1}\.q$") == product("q", range(10))


@pytest.mark.parametrize(
    ("expression", "words"),
    [
        ("nose", ["'nose'", "q, k, v, o, gate, up, down", "mlp_in"]),
        ("fc_in", ["'fc_in'", "gate"]),
        ("q@12", ["no layer 12", "0-11"]),
        ("q@-13", ["no layer -13", "-12"]),
        ("q@5-2", ["5-2", "backwards", "2-5"]),
        ("q@", ["cannot read 'q@'"]),
        ("", ["cannot read ''", "down@-1"]),
        ("q,,k", ["cannot read ''"]),
        ("q;", ["cannot read ''"]),
        ("@3", ["cannot read '@3'"]),
        ("3", ["cannot read '3'"]),
        ("q@a-b", ["cannot read 'q@a-b'"]),
        ("re:[", ["no regular expression"]),
        ("re:nose", ["'nose'", "h.0.q"]),
    ],
)
def test_errors_say_what_there_is(expression: str, words: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        select(MATRICES, expression)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_role_that_other_layers_have() -> None:
    mixed = (*stack(("q", "up"), 2), *(m for m in stack(("q",), 5) if m.layer >= 2))
    with pytest.raises(InputError, match=r"'up' occurs in no layer of 2-4\n.*layers 0-1"):
        select(mixed, "up@2-")


def test_refused_matrices_are_left_out_of_a_wider_selection() -> None:
    matrices = inventory(skeleton(config("mixtral"))).matrices
    assert {m.role for m in select(matrices, "all")} == {"q", "k", "v", "o"}
    assert {m.role for m in match(matrices, "all")} == set(ROLES)


def test_only_refused_matrices_is_an_error_with_the_reason() -> None:
    matrices = inventory(skeleton(config("mixtral"))).matrices
    with pytest.raises(InputError, match=r"experts\.gate_up_proj#0\.gate .*stacked in one 3-D") as caught:
        select(matrices, "mlp@0")
    assert "q, k, v, o" in caught.value.remedy


def test_sugar() -> None:
    assert selection_from() == "all"
    assert selection_from(matrices="mlp") == "mlp"
    expression = selection_from(layers="3,8,-1", matrices="q,mlp")
    assert picked(expression) == product("q gate up down", [3, 8, 11])


@pytest.mark.parametrize("matrices", ["q@3", "q;k", "re:x"])
def test_sugar_refuses_a_selection_with_layers(matrices: str) -> None:
    with pytest.raises(InputError, match="plain roles"):
        selection_from(layers="3", matrices=matrices)


def test_real_inventory() -> None:
    matrices = inventory(skeleton(config("gpt2"))).matrices
    chosen = select(matrices, "q,k,v@-1")
    assert [m.name for m in chosen] == [f"transformer.h.{LAYERS - 1}.attn.c_attn#{role}" for role in "qkv"]

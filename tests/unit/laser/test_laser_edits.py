"""How edits are written, what they mean in a model, and what is said where they mean nothing."""

import re

import family_configs
import pytest

from kanna.errors import InputError
from kanna.methods.laser.config import LaserConfig
from kanna.methods.laser.edits import Edit, Rank, parse_edit, resolve, spell
from kanna.models.inventory import Inventory, inventory
from kanna.models.matrix import Matrix, View


@pytest.fixture(scope="module")
def llama() -> Inventory:
    return inventory(family_configs.model("llama"))


def matrices(layers: int, roles: tuple[str, ...]) -> list[Matrix]:
    return [
        Matrix(f"layers.{layer}.{role}", f"layers.{layer}.{role}", "weight", layer, role, 4, 6, View(), False)
        for layer in range(layers)
        for role in roles
    ]


@pytest.mark.parametrize(
    ("text", "where", "rank"),
    [
        ("mlp_in:27:0.01", "mlp_in@27", Rank("rho", "0.01")),
        ("down:-1:k=40", "down@-1", Rank("k", "40")),
        ("mlp:all:energy=0.9", "mlp", Rank("energy", "0.9")),
        ("mlp:*:.5", "mlp", Rank("rho", ".5")),
        ("q,k:3-:mp", "q,k@3-", Rank("mp")),
        ("q,k@3-,down@-1:gd", "q,k@3-,down@-1", Rank("gd")),
        ("down:0,3-5:laserrmt", "down@0,3-5", Rank("laserrmt")),
        ("all:1", "all", Rank("rho", "1")),
        (" up : 2 : rho=0.5 ", "up@2", Rank("rho", "0.5")),
        ("re:layers\\.(1|2)\\.up:0.5", "re:layers\\.(1|2)\\.up", Rank("rho", "0.5")),
        ("re:(?:up|down):k=3", "re:(?:up|down)", Rank("k", "3")),
    ],
)
def test_what_is_written(text, where, rank):
    found = parse_edit(text)
    assert found == Edit(where, rank)
    assert parse_edit(str(found)) == found


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "cannot be read"),
        ("0.5", "cannot be read"),
        (":0.5", "cannot be read"),
        ("up:3:", "cannot be read"),
        ("up:3:half", "cannot be read"),
        ("up:3:nan", "cannot be read"),
        ("up:3:1e-2", "cannot be read"),
        ("up:3:size=4", "cannot be read"),
        ("up:3:-0.5", "cannot be read"),
        ("up:3:1.5", "outside 0 to 1"),
        ("up:3:40", "outside 0 to 1.*write k=40"),
        ("up:3:energy=2", "outside 0 to 1"),
        ("up:3:k=2.5", "no whole number"),
        ("up:3:k=-1", "cannot be read"),
    ],
)
def test_what_cannot_be_meant(text, said):
    with pytest.raises(InputError) as caught:
        parse_edit(text)
    assert re.search(said, " ".join(str(caught.value).split()))
    with pytest.raises(ValueError, match=said.partition(".*")[0]):
        LaserConfig(edits=(text,))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("fc_in:0:0.5", r"no matrix has the role 'fc_in'.*q, k, v, o, gate, up, down"),
        ("banana:0:0.5", r"no matrix has the role 'banana'.*gate, up, down.*mlp_in"),
        ("up:3:0.5", r"no layer 3.*layers 0-2"),
        ("up:-4:0.5", r"no layer -4.*-3 to -1"),
        ("up:two:0.5", "cannot read"),
        ("re:h\\.0:0.5", r"no matrix has a name that matches.*model\.layers\.0"),
        ("re:(:0.5", "no regular expression"),
    ],
)
def test_what_the_model_does_not_have(llama, text, said):
    with pytest.raises(InputError) as caught:
        resolve([parse_edit(text)], llama.matrices)
    assert re.search(said, " ".join(str(caught.value).split()))


def test_layer_1_is_not_10_to_19():
    every = matrices(21, ("up", "down"))
    for text in ("up:1:0.5", "up@1:0.5", "re:layers\\.1\\.up:0.5"):
        assert [one.layer for one, _ in resolve([parse_edit(text)], every)] == [1]
    assert [one.layer for one, _ in resolve([parse_edit("up:-2:0.5")], every)] == [19]
    assert [one.layer for one, _ in resolve([parse_edit("up:10-12,1:0.5")], every)] == [1, 10, 11, 12]


@pytest.mark.parametrize(
    ("family", "names"),
    [
        ("llama", {"mlp_in": ["gate"], "mlp_gate": ["gate"], "mlp_up": ["up"], "mlp_out": ["down"]}),
        ("gpt2", {"mlp_in": ["fc_in"], "mlp_out": ["fc_out"], "attn": ["q", "k", "v", "o"]}),
        ("gptj", {"mlp": ["fc_in", "fc_out"]}),
        ("bert_mlm", {"mlp_in": ["fc_in"], "mlp_out": ["fc_out"], "q": ["q"]}),
        ("phi3", {"mlp_gate": ["gate"], "mlp_up": ["up"], "v": ["v"]}),
    ],
)
def test_aliases_of_the_paper(family, names):
    every = inventory(family_configs.model(family)).matrices
    for name, roles in names.items():
        found = resolve([parse_edit(f"{name}:1:0.5")], every)
        assert [one.role for one, _ in found] == roles
        assert {one.layer for one, _ in found} == {1}


def test_a_matrix_named_twice_appears_twice(llama):
    found = resolve([parse_edit("up:0:0.5"), parse_edit("mlp:0:0.25")], llama.matrices)
    assert [(one.role, str(rank)) for one, rank in found] == [
        ("up", "0.5"), ("gate", "0.25"), ("up", "0.25"), ("down", "0.25"),
    ]  # fmt: skip


@pytest.mark.parametrize("family", sorted(family_configs.FAMILIES | family_configs.OTHERS))
def test_spelled_edits_name_that_matrix_alone(family):
    every = inventory(family_configs.model(family)).matrices
    usable = [one for one in every if not one.refused]
    for one in usable:
        found = resolve([parse_edit(spell(one, every, "0.05"))], every)
        assert [(matrix.name, str(rank)) for matrix, rank in found] == [(one.name, "0.05")]


def test_factors_hold_the_top_of_one_block():
    for wrong in ({"mode": "bottom"}, {"blocks": 2}, {"mode": "magnitude"}):
        with pytest.raises(ValueError, match="mode top and one block"):
            LaserConfig(factored=True, **wrong)
    with pytest.raises(ValueError, match="extra"):
        LaserConfig(edit=("up:0:0.5",))

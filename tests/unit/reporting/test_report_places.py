"""Where a matrix stands on a map over layers and roles."""

import pytest

from kanna.reporting.places import Spot, placed, role_map


@pytest.mark.parametrize(
    ("path", "role"),
    [
        ("model.layers.2.self_attn.q_proj", "q"),
        ("model.layers.2.mlp.down_proj", "down"),
        ("model.layers.2.mlp.down_proj.reduce", "down"),
        ("transformer.h.2.attn.c_attn#k", "k"),
        ("transformer.h.2.attn.c_proj", "o"),
        ("model.layers.2.mlp.experts.gate_up_proj#3.gate", "gate"),
        ("model.layers.2.mlp.experts.down_proj#3", "down"),
        ("model.layers.2.mlp.experts.7.up_proj", "up"),
        ("backbone.layers.2.mixer.in_proj", "in_proj"),
    ],
)
def test_layer_and_role(path: str, role: str) -> None:
    assert placed([path])[path] == (2, role)


def test_blocks_of_a_second_stack_are_counted_on() -> None:
    paths = [
        "decoder.block.0.layer.0.SelfAttention.q",
        "encoder.block.0.layer.0.SelfAttention.q",
        "encoder.block.1.layer.0.SelfAttention.q",
    ]
    assert [placed(paths)[path] for path in paths] == [(2, "q"), (0, "q"), (1, "q")]


@pytest.mark.parametrize(
    ("beside", "known", "roles"),
    [
        ([], [], ["fc_in", "fc_out"]),
        (["model.layers.0.mlp.gate_proj"], [], ["up", "down"]),
        ([], ["q", "up", "down"], ["up", "down"]),
        ([], ["q", "fc_in", "fc_out"], ["fc_in", "fc_out"]),
    ],
)
def test_without_a_gate_the_map_says_what_tables_say(
    beside: list[str], known: list[str], roles: list[str]
) -> None:
    """Nemotron and MPT have two layers called up and down; of Llama a user may have chosen just these."""
    paths = ["model.layers.0.mlp.up_proj", "model.layers.0.mlp.down_proj"]
    found = placed([*paths, *beside], known)
    assert [found[path][1] for path in paths] == roles


def test_several_of_one_place_are_their_mean() -> None:
    spots = [
        Spot(f"layers.{layer}.experts.{expert}.up_proj", share, f"expert {expert}")
        for layer, expert, share in ((0, 0, 0.1), (0, 1, 0.3), (3, 0, 0.5))
    ]
    chart = role_map("Errors", [*spots, Spot("layers.3.q_proj", 0.25, "q")], "in %", "How far.")
    assert chart.table is not None and list(chart.table.columns) == ["layer", ">q", ">up"]
    assert [list(row) for row in chart.table.rows] == [["0", "", "20.0 %"], ["3", "25.0 %", "50.0 %"]]
    assert 'data-tip="expert 0; expert 1"' in chart.svg and "their mean" in chart.caption
    many = [Spot(f"layers.0.experts.{i}.up_proj", 0.1, f"expert {i}") for i in range(6)]
    assert 'data-tip="expert 0; expert 1; expert 2; expert 3; and 2 more"' in role_map("", many, "", "").svg


def test_a_map_of_nothing_but_noughts_has_a_plain_scale() -> None:
    svg = role_map("Moved", [Spot("layers.0.q_proj", 0.0, "q: 0")], "in %", "").svg
    assert ">1</text>" in svg and "e-" not in svg.replace("fill-opacity", "")

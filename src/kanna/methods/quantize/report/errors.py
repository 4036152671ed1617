"""What rounding cost: in a sentence, by role, and over layers and roles."""

from functools import partial

from kanna.reporting.blocks import MEASURED, At, Block, Cell, Figure, Paragraph, Table
from kanna.reporting.places import Spot, role_map
from kanna.reporting.wording import filled, percent, size


def errors(step: At) -> list[Block]:
    """Sentences, a table and a map of a step of the lineage."""
    at = step["scores"]
    blocks: list[Block] = [Paragraph(_what(step, at)), Paragraph(_worst(at))]
    if at.data.get("roles"):
        blocks.append(_by_role(at))
    return [*blocks, _map(at)]


def how(step: At) -> str:
    """Bits, groups and method in words."""
    config = step.data["config"]
    group = "one group a row" if config["group"] == "channel" else f"groups of {config['group']}"
    kind = ", symmetric" if config["symmetric"] else ""
    return f"{config['bits']} bits, {group}{kind}, {config['method']}"


def _what(step: At, at: At) -> list[str | Figure]:
    return [
        at.cell("matrices_quantized"),
        f" matrices became whole numbers ({how(step)}): ",
        at.cell("bits_a_weight", ".2f"),
        " bits a weight with scales, ",
        at.cell("bytes_selected_before", size),
        " → ",
        at.cell("bytes_selected_after", size),
        ".",
    ]


def _worst(at: At) -> list[str | Figure]:
    key, words = _told(at)
    name = at.data["worst_matrix"]
    known = at[key].data[name] is not None
    place = at[key] if known else at["weight_error"]
    of = words if known else "of weights"
    return [f"The largest error {of} is that of {name}: ", place.cell(name, percent), "."]


def _told(at: At) -> tuple[str, str]:
    """What counts: outputs where they are known, since weights that are fitted to them move on purpose."""
    return ("output_error", "of outputs") if at.get("output_error") else ("weight_error", "of weights")


def _by_role(at: At) -> Table:
    rows = [_role(role) for role in at["roles"].items()]
    columns = (
        "role",
        ">matrices",
        ">bits a weight",
        ">error of weights",
        ">error of outputs",
        ">the largest",
        "of matrix",
    )
    return Table("What rounding cost, by role", *filled(columns, rows), MEASURED)


def _role(at: At) -> list[Cell]:
    share = partial(at.cell, form=percent)
    return [
        at.data["role"],
        at.cell("matrices"),
        at.cell("bits_a_weight", ".2f"),
        share("weight_error"),
        share("output_error"),
        share("worst_error"),
        at.data["worst_matrix"],
    ]


def _map(at: At) -> Block:
    """Errors of outputs, those of weights where text did not reach a matrix or there was none."""
    key, words = _told(at)
    spots, unreached = [], 0
    for name, weight in at.data["weight_error"].items():
        found = at.data[key][name]
        unreached += found is None
        told = f"{name}: weights {percent(weight)}"
        if key == "output_error":
            told += ", text does not reach it" if found is None else f", outputs {percent(found)}"
        spots.append(Spot(name, weight if found is None else found, told))
    if key == "output_error":
        caption = (
            "How far what a matrix gives on the calibration text is from what it gave: root of the mean "
            "square, over that of the outputs."
        )
    else:
        caption = "How far a matrix is from what it was: the norm of the difference, over that of the matrix."
    if unreached:
        which = "one matrix" if unreached == 1 else f"{unreached:,} matrices"
        caption += f" Of {which} that the text does not reach, the error of weights."
    known = [role["role"] for role in at.data.get("roles") or ()]
    title = f"Error {words} by layer and role"
    return role_map(title, spots, f"error {words}, in %", caption, known=known)

"""What was learnt of the bases: weights before and after, and what excites those that moved most."""

from typing import Any

from kanna.reporting.blocks import MEASURED, At, Block, Cell, Chart, Table
from kanna.reporting.points import points


def weights(at: At) -> list[Block]:
    """A drawing for each role, the most moved matrix first, and the bases that gained and lost most."""
    drawn: list[Block] = [_scatter(moved) for moved in at.data.get("moved", [])]
    titles = (("gained", "Bases that gained most weight"), ("lost", "Bases that lost most weight"))
    return drawn + [_bases(at[side], title) for side, title in titles if at.data.get(side)]


def _scatter(moved: dict[str, Any]) -> Chart:
    pairs = list(zip(moved["before"], moved["after"], strict=True))
    kept = sum(after > 0 for _, after in pairs)
    rose = sum(after > before for before, after in pairs)
    fell = kept - rose
    gone = f"{len(pairs) - kept:,} of {len(pairs):,} bases were dropped"
    stay = f"{kept:,} bases stayed; the weight of {rose:,} rose, of {fell:,} it did not"
    title = f"Weights of {moved['matrix']}"
    drawing = points(pairs, "weight before", "weight after", (stay, gone))
    caption = "Weight of each basis before (across) and after (up), on the dashed line the same; short "
    more = "strokes below are bases that were dropped. Of its role the matrix whose weights moved most."
    return Chart(title, drawing, caption + more, [stay, gone])


def _bases(bases: At, title: str) -> Table:
    rows = [_row(basis) for basis in bases.items()]
    columns = (
        "basis",
        ">weight before",
        ">after",
        "<excited most by",
        "<where the first stands",
    )
    return Table(title, columns, rows, MEASURED)


def _row(basis: At) -> list[Cell]:
    data = basis.data
    tokens = data["tokens"]
    after = basis.cell("after", ".4g") if data["after"] > 0 else "dropped"
    listed = ", ".join(f'"{token["token"]}"' for token in tokens)
    where = ""
    if tokens:
        first = tokens[0]
        where = f"{first['before']}[{first['token']}]{first['after']}"
    name = f"{data['matrix']}, no. {data['place'] + 1:,}"
    return [name, basis.cell("before", ".4g"), after, listed, where]

"""kanna scales list | show | use | diff | rollback | remove | export | import | verify"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kanna.errors import InputError
from kanna.terminal.asking import Force
from kanna.terminal.early import check_paths
from kanna.terminal.folded import VerbCommand, VerbGroup
from kanna.terminal.session import Session, verb

if TYPE_CHECKING:
    from rich.console import Console

    from kanna.runs.shelf import Listed, Moved

app = typer.Typer(
    cls=VerbGroup,
    no_args_is_help=True,
    help="Sets of scales of a quantised model: list, use, roll back, compare, ship and check them.",
)

Base = Annotated[str, typer.Argument(metavar="BASE", help="Directory that kanna quantize wrote.")]
Name = Annotated[str, typer.Argument(metavar="NAME", help="Of a set.")]
AnyName = Annotated[str, typer.Argument(metavar="NAME", help="Of a set; base for none.")]
File = Annotated[Path, typer.Argument(metavar="FILE", help="That kanna scales export wrote.")]


@verb
def list_sets(session: Session, base: Base) -> None:
    """List the sets of a model, with size, task and scores; a star marks the one in use."""
    check_paths([base])
    from kanna.runs.shelf import shelved

    sets, wrong = shelved(base)
    active = next((one.record.name for one in sets if one.active), None)
    damaged = {name: str(error) for name, error in wrong.items()}
    result = _result(base, active=active, sets=[one.to_dict() for one in sets], damaged=damaged)
    session.show(result, lambda console: _render_list(console, sets, damaged))


@verb
def show(session: Session, base: Base, name: Name) -> None:
    """Show what a set is: granularity, numbers, data, settings, scores."""
    check_paths([base])
    from kanna.runs.shelf import shown

    one = shown(base, name)
    session.show({"schema_version": 1, **one.to_dict()}, lambda console: _render_one(console, one))


@verb
def use(session: Session, base: Base, name: AnyName) -> None:
    """Use a set from now on, wherever the model is loaded. No file of the model changes."""
    check_paths([base])
    from kanna.runs.shelf import activate

    activate(base, name)
    session.show(_result(base, active=_plain(name)), lambda console: console.print(_in_use(name)))


@verb
def diff(
    session: Session,
    base: Base,
    one: AnyName,
    other: AnyName,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE.html", help="A map over layers and roles, too.")
    ] = None,
    force: Force = False,
) -> None:
    """How far two sets lie apart, matrix by matrix; base is the model without any."""
    check_paths([base])
    from kanna.runs.shelf import diff as compare

    found = compare(base, one, other)
    rows = [{"path": moved.path, "mean": moved.mean, "most": moved.most} for moved in found]
    if out is not None:
        _write_map(out, force, base, one, other, rows)
    session.show(_result(base, sets=[one, other], moved=rows), lambda console: _render_diff(console, found))


@verb
def rollback(
    session: Session,
    base: Base,
    to: Annotated[str | None, typer.Option("--to", metavar="NAME", help="A set, or base.")] = None,
) -> None:
    """Use again what was used before."""
    check_paths([base])
    from kanna.runs.shelf import rollback as back

    now = back(base, to)
    session.show(_result(base, active=now), lambda console: console.print(_in_use(now or "base")))


@verb
def remove(session: Session, base: Base, name: Name) -> None:
    """Take a set away for good; not the one in use."""
    check_paths([base])
    from kanna.runs.shelf import remove as take_away

    take_away(base, name)
    session.show(_result(base, removed=name), lambda console: console.print(f"removed: {name}"))


@verb
def export(
    session: Session,
    base: Base,
    name: Name,
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="Such as law.safetensors.")],
    force: Force = False,
) -> None:
    """Write a set as one file, which any copy of the same model takes."""
    check_paths([base])
    from kanna.runs.shelf import export as write

    target = write(base, name, out, force)
    session.show(_result(base, out=str(target)), lambda console: console.print(f"written: {target}"))


@verb
def import_set(
    session: Session,
    base: Base,
    file: File,
    name: Annotated[str | None, typer.Option("--name", help="What it is called here.")] = None,
    force: Force = False,
) -> None:
    """Take a set that was exported from a copy of the same model."""
    check_paths([base])
    from kanna.runs.shelf import take

    taken = take(base, file, name, force)
    session.show(_result(base, imported=taken), lambda console: console.print(f"imported: {taken}"))


@verb
def verify(
    session: Session,
    base: Base,
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Of a set; else all.")] = None,
) -> None:
    """Compute the hashes of the model and of its sets again."""
    check_paths([base])
    from kanna.runs.shelf import verify as check

    sound = check(base, name)
    words = f"whole, and of this model: {', '.join(sound) or 'no set'}"
    session.show(_result(base, sound=sound), lambda console: console.print(words))


for _name, _function in (
    ("list", list_sets),
    ("show", show),
    ("use", use),
    ("diff", diff),
    ("rollback", rollback),
    ("remove", remove),
    ("export", export),
    ("import", import_set),
    ("verify", verify),
):
    app.command(_name, cls=VerbCommand)(_function)


def _write_map(out: Path, force: bool, base: str, one: str, other: str, rows: list[dict[str, Any]]) -> None:
    from kanna.checkpoint.scale_records import quantised_roles
    from kanna.checkpoint.whole import write_whole
    from kanna.reporting.html import render
    from kanna.reporting.moved import page

    text = render(page(Path(base).name, one, other, rows, quantised_roles(Path(base)))).encode(
        "utf-8", "replace"
    )
    try:
        write_whole({out.expanduser(): text}, replace=force)
    except FileExistsError:
        raise InputError(f"{out} exists already", "choose another --out, or add --force") from None
    except OSError as error:
        raise InputError(f"{out} cannot be written: {error.strerror}", "choose another --out") from error


def _result(base: str, **facts: Any) -> dict[str, Any]:
    return {"schema_version": 1, "base": base, **facts}


def _plain(name: str) -> str | None:
    return None if name == "base" else name


def _in_use(name: str) -> str:
    return "in use: the model as it was quantised" if name == "base" else f"in use: {name}"


def _render_list(console: "Console", sets: "list[Listed]", damaged: dict[str, str]) -> None:
    from kanna.reporting.console import table
    from kanna.reporting.wording import size

    for name, error in damaged.items():
        console.print(f"damaged: {name}: {error}")
    if not sets and not damaged:
        console.print("there are no sets: kanna tune BASE --data FILE --name NAME makes one")
    if not sets:
        return
    rows: list[tuple[str, ...]] = [
        (
            "*" if one.active else "",
            one.record.name,
            one.record.granularity,
            f"{one.record.numbers:,}",
            size(one.bytes),
            *_scores(one),
        )
        for one in sets
    ]
    columns = ("in use", "name", "by", ">numbers", ">size", ">held out before", ">after", "on tasks")
    console.print(table(columns, rows))


def _scores(one: "Listed") -> tuple[str, str, str]:
    scores = one.record.scores
    before, after = scores.get("held_out_loss_before"), scores.get("held_out_loss_after")
    losses = ["" if value is None else f"{value:.4f}" for value in (before, after)]
    return losses[0], losses[1], str(scores.get("status", ""))


def _render_one(console: "Console", one: "Listed") -> None:
    record = one.record
    console.print(
        f"{record.name}{' (in use)' if one.active else ''}: {record.numbers:,} numbers, one for each "
        f"{'row' if record.granularity == 'channel' else 'group'}, {record.flipped} signs changed"
    )
    console.print(f"tuned on {record.base or 'a model of unknown name'}, codes {record.codes[:12]}")
    for key, value in sorted(record.config.items()):
        console.print(f"  {key}: {value}")
    before, after, status = _scores(one)
    if after:
        console.print(f"loss on rows that were not learnt: {before} before, {after} after")
    if status:
        console.print(f"on tasks: {status}")


def _render_diff(console: "Console", found: "list[Moved]") -> None:
    from kanna.reporting.console import table
    from kanna.reporting.wording import percent

    rows = [(moved.path, percent(moved.mean), percent(moved.most)) for moved in found]
    console.print(table(("matrix", ">scales differ by", ">at most"), rows))

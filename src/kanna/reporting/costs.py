"""A bench's tables: what was measured, what is computed from it, and what was only estimated, apart."""

from collections.abc import Sequence

from kanna.measure.results import FEWEST_PAIRS
from kanna.reporting.blocks import (
    COMPUTED,
    ESTIMATED,
    MEASURED,
    At,
    Cell,
    Paragraph,
    Section,
    Table,
)
from kanna.reporting.wording import seconds, size

_NOT = "not measured"


def bench(at: At) -> Section:
    """Latency, throughput, memory and energy; bandwidth and cost; estimates; ratios."""
    models = at["models"].items()
    found = (
        _ratios(at),
        *(table(models) for table in (_prefill, _decode, _memory)),
        _energy(at, models),
        *(table(models) for table in (_computed, _cost, _estimated)),
    )
    blocks = [one for one in found if one is not None]
    notes = [
        Paragraph([f"Energy by {name}: not measured: {why}."])
        for name, why in at.data["meters"].items()
        if why
    ]
    settings = at.data["settings"]
    how = ", ".join(
        f"{name.replace('_', ' ')} {settings[name]}"
        for name in ("device", "dtype", "threads", "new_tokens", "warmup", "repeats", "torch")
        if name in settings
    )
    return Section(f"Bench of {models[0].data['model']}", [*blocks, *notes, Paragraph([f"Settings: {how}."])])


def _settings(models: Sequence[At]) -> list[tuple[str, At]]:
    """Settings of all models, those of one batch and context below each other."""
    pairs = [(model.data["model"], one) for model in models for one in model["settings"].items()]
    return sorted(pairs, key=lambda pair: (pair[1].data["batch"], pair[1].data["context"]))


def _placed(name: str, at: At) -> list[Cell]:
    return [name, _named(at)]


def _named(at: At) -> str:
    """A setting, which breaks only after its comma."""
    return f"batch\u00a0{at.data['batch']}, context\u00a0{at.data['context']}"


def _prefill(models: Sequence[At]) -> Table:
    columns = ["model", "setting", ">p50", ">p95", ">p99", ">spread", ">tokens/s"]
    rows = []
    for name, one in _settings(models):
        at = one["measured"]
        rate = at["prefill_tokens_per_second"]
        rows.append([*_placed(name, one), *_spread(at["prefill"]), rate.figure(f"{rate.data:,.1f}")])
    return Table("Prefill, which is the time to the first token", columns, rows, MEASURED)


def _decode(models: Sequence[At]) -> Table:
    """Concurrent streams have a column where they were asked for."""
    rates = ["decode_tokens_per_second"]
    columns = ["model", "setting", ">p50", ">p95", ">p99", ">spread", ">tokens/s"]
    if any(one.data["measured"]["concurrent_tokens_per_second"] is not None for _, one in _settings(models)):
        rates.append("concurrent_tokens_per_second")
        columns.append(">all streams, tokens/s")
    rows = []
    for name, one in _settings(models):
        at = one["measured"]
        found: list[Cell] = [
            _NOT if at.data[key] is None else at[key].figure(f"{at.data[key]:,.1f}") for key in rates
        ]
        rows.append([*_placed(name, one), *_spread(at["decode"]), *found])
    return Table("Decode, one step", columns, rows, MEASURED)


def _spread(at: At) -> list[Cell]:
    times: list[Cell] = [at[part].figure(seconds(at.data[part])) for part in ("p50", "p95", "p99")]
    return [*times, at["spread"].figure(f"{100 * at.data['spread']:.0f} %")]


def _memory(models: Sequence[At]) -> Table:
    """What no model has (memory that was not asked for, a device there is none of) has no column."""
    headings = {
        "host_bytes": ">peak memory, host",
        "device_bytes": ">device",
        "imported_bytes": ">of it libraries alone",
    }
    memories = [model.data["memory"] or {} for model in models]
    keys = [key for key in headings if any(one.get(key) is not None for one in memories)]
    rows = [_held(model, keys) for model in models]
    title = "Size and memory, each model in a process of its own" if keys else "Size; memory was not measured"
    return Table(title, ("model", ">on disk", *(headings[key] for key in keys)), rows, MEASURED)


def _held(at: At, keys: Sequence[str]) -> list[Cell]:
    memory = at.get("memory")
    places = [None if memory is None else memory.get(key) for key in keys]
    held = [_NOT if place is None else place.figure(size(place.data)) for place in places]
    return [at.data["model"], at["bytes_on_disk"].figure(size(at.data["bytes_on_disk"])), *held]


def _energy(at: At, models: Sequence[At]) -> Table | None:
    """None where no meter measured anything; the notes say why."""
    meters = [name for name, why in at.data["meters"].items() if not why]
    if not meters:
        return None
    rows: list[list[Cell]] = []
    for name, one in _settings(models):
        joules = one["measured"]["joules_per_token"]
        found: list[Cell] = [
            joules[meter].figure(f"{joules.data[meter]:.4f}") if joules.data.get(meter) is not None else _NOT
            for meter in meters
        ]
        rows.append([*_placed(name, one), *found])
    return Table("Energy", ["model", "setting", *(f">{meter}, J/token" for meter in meters)], rows, MEASURED)


def _computed(models: Sequence[At]) -> Table:
    rows: list[list[Cell]] = []
    for name, one in _settings(models):
        at = one["computed"]
        per_token = at["bytes_per_token"].figure(size(at.data["bytes_per_token"]))
        bandwidth = at["bandwidth"].figure(f"{size(at.data['bandwidth'])}/s")
        rows.append([*_placed(name, one), per_token, bandwidth])
    columns = ("model", "setting", ">bytes read per token", ">reached bandwidth")
    return Table("Weights and cache read, over the measured time", columns, rows, COMPUTED)


def _cost(models: Sequence[At]) -> Table | None:
    rows: list[list[Cell]] = []
    for at in models:
        found = at.get("computed_cost")
        if found is None:
            continue
        even = found.get("break_even_tokens")
        paid = "" if even is None else even.figure(f"{even.data / 1e6:,.1f} million tokens")
        per_million = found["per_million_tokens"]
        price = per_million.figure(f"{per_million.data:.2f} {found.data['currency']}")
        rows.append([at.data["model"], price, paid])
    columns = ("model", ">per million decoded tokens", ">paid back after")
    return Table("Cost at your price", columns, rows, COMPUTED) if rows else None


def _estimated(models: Sequence[At]) -> Table | None:
    rows: list[list[Cell]] = []
    for name, one in _settings(models):
        joules = one["estimated"].get("joules_per_token")
        if joules is not None:
            rows.append([*_placed(name, one), joules.figure(f"{joules.data:.4f}")])
    columns = ("model", "setting", ">J/token from the watts you gave")
    return Table("Energy that no counter measured", columns, rows, ESTIMATED) if rows else None


def _ratios(at: At) -> Table | None:
    rounds = at.data["settings"].get("repeats", FEWEST_PAIRS)
    rows: list[list[Cell]] = []
    for ratio in at["ratios"].items():
        cells: list[Cell] = [_named(ratio)]
        for part in ("prefill", "decode"):
            cells += _ratio(ratio[part], rounds)
        rows.append(cells)
    if not rows:
        return None
    names = [model["model"] for model in at.data["models"]]
    between = "from least to most" if rounds < FEWEST_PAIRS else "interval at 95 %"
    title = f"Speed of {names[0]} over {names[1]}, paired by round, {between}"
    return Table(title, ("setting", ">prefill", "", ">decode", ""), rows, MEASURED)


def _ratio(at: At, rounds: int) -> list[Cell]:
    middle, low, high = at.data
    word = "faster" if low > 1 else "SLOWER" if high < 1 else "no clear difference"
    if rounds < FEWEST_PAIRS:
        word = f"fewer than {FEWEST_PAIRS} rounds say nothing at 95 %"
    between = (at[1].figure(f"{low:.2f}x"), " to ", at[2].figure(f"{high:.2f}x"), f": {word}")
    return [at[0].figure(f"{middle:.2f}x"), between]

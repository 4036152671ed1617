"""The keys of every step of a recipe, out of its schema, as tables in docs/recipes.md.

python scripts/recipe_keys.py            print them
python scripts/recipe_keys.py --write    and put them into the page
"""

import argparse
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from kanna.recipe.schema import json_schema

PAGE = Path(__file__).resolve().parents[1] / "docs" / "recipes.md"
BEGIN, END = "<!-- made by scripts/recipe_keys.py -->\n", "<!-- made until here -->\n"
_TYPES = {
    "string": "text", "number": "number", "integer": "whole number", "boolean": "true, false", "array": "list"
}  # fmt: skip


def tables(schema: Mapping[str, Any]) -> str:
    """One table a step, then those of the tolerance and of the evaluation."""
    parts = []
    for choice in schema["properties"]["steps"]["items"]["oneOf"]:
        ((name, settings),) = choice["properties"].items()
        parts.append(f"### `{name}`\n\n{choice['description']}\n\n{_table(settings)}")
    shared = schema["$defs"]
    parts.append(f"### In `tolerance`\n\n{_table(shared['Tolerances'])}")
    parts.append(f"### In `tasks` and `guards` of it\n\n{_table(shared['Line'])}")
    options = {**shared["EvalOptions"]}
    # A recipe has one device, for all that it does.
    options["properties"] = {key: one for key, one in options["properties"].items() if key != "device"}
    parts.append(f"### In `evaluation`\n\n{_table(options)}")
    return "\n\n".join(parts) + "\n"


def _table(settings: Mapping[str, Any]) -> str:
    lines = ["| key | takes | default | |", "|---|---|---|---|"]
    required = settings.get("required", ())
    for key, one in settings["properties"].items():
        default = "needed" if key in required else _default(one.get("default"))
        said = _cell(one.get("description", ""))
        lines.append(f"| `{key}` | {_cell(', '.join(_takes(one)))} | {default} | {said} |")
    return "\n".join(lines)


def _default(value: Any) -> str:
    if value is None or value == []:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    return _cell(", ".join(map(str, value)) if isinstance(value, list) else str(value))


def _takes(one: Mapping[str, Any]) -> Iterator[str]:
    """Types and values, without the null that only says that there is no default."""
    for choice in one.get("anyOf", [one]):
        if "enum" in choice:
            yield from map(str, choice["enum"])
        elif "const" in choice:
            yield str(choice["const"])
        elif "$ref" in choice:
            yield "mapping"
        elif choice.get("type") != "null":
            yield _TYPES[choice["type"]]


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def written(page: str) -> str:
    """The page with tables as the schema has them now."""
    before, rest = page.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n{tables(json_schema())}\n{END}{after}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--write", action="store_true")
    if parser.parse_args().write:
        PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    print(tables(json_schema()), end="")


if __name__ == "__main__":
    main()

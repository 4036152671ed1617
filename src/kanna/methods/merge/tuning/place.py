"""Where what a search found is going to be written."""

from __future__ import annotations

from pathlib import Path

from kanna.checkpoint.outputs import final_name
from kanna.methods.merge.adapted import directories
from kanna.methods.merge.plan import MergePlan
from kanna.methods.merge.run import check_room
from kanna.runs.in_the_way import refuse_existing, refuse_input
from kanna.runs.room import check_memory
from kanna.runs.unfinished import replaces


def place_of(plan: MergePlan, out: str | Path, force: bool, resume: bool) -> Path:
    """The directory; raises InputError where a merge must not go there, or there is no room for it."""
    place = final_name(out)
    refuse_input(place, *(directory for model in plan.inputs.models for directory in directories(model)))
    refuse_existing(place, replaces(place, force, resume))
    check_memory(plan.chunk_bytes, "give a smaller --max-memory")
    check_room(plan, place)
    return place

"""Threads sleep while they wait, unless the user wants them to spin."""

import os
import tomllib
from pathlib import Path

import pytest

from kanna import __main__ as program
from kanna.cli import main as cli

PROJECT = Path(__file__).parents[3] / "pyproject.toml"


@pytest.mark.parametrize(("given", "seen"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_it_is_set_before_the_program_begins(monkeypatch, given, seen):
    if given is None:
        monkeypatch.setenv("OMP_WAIT_POLICY", "")  # so that it is put back
        monkeypatch.delenv("OMP_WAIT_POLICY")
    else:
        monkeypatch.setenv("OMP_WAIT_POLICY", given)
    during = []
    monkeypatch.setattr(cli, "main", lambda: during.append(os.environ["OMP_WAIT_POLICY"]) or 7)
    assert program.run() == 7 and during == [seen]


def test_it_is_what_the_script_calls():
    assert tomllib.loads(PROJECT.read_text())["project"]["scripts"]["kanna"] == "kanna.__main__:run"

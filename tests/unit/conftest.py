import pytest


@pytest.fixture(autouse=True)
def _no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables as wide as where no terminal is, whatever the shell that runs the tests says."""
    monkeypatch.delenv("COLUMNS", raising=False)

"""A shell completes verbs, flags, and the names that flags take; nothing heavy is imported for it."""

import os
import subprocess
import sys

import pytest

from kanna.cli.main import main


@pytest.mark.parametrize(
    ("typed", "known"),
    [
        ("low", {"lowrank"}),
        ("scales ro", {"rollback"}),
        ("lowrank --alloc", {"--allocation", "--allocate"}),
        ("lowrank --method w", {"whitened"}),
        ("lowrank m --keep 0.5 --outputs ", {"gradient", "equal"}),
        ("eval m --dtype f", {"float32", "float16"}),
        ("eval m --metric acc", {"acc", "acc_norm"}),
        ("eval m --device c", {"cpu", "cuda"}),
        ("inspect --sel", {"--select"}),
        ("generate m --dtype a", {"auto"}),
        ("laser search m --rule ", {"constrained", "published"}),
        ("laser apply m --mode ma", {"magnitude"}),
        ("export m --format g", {"gguf", "gptq"}),
        ("tune m --granularity ", {"channel", "group"}),
        ("merge hi m --stages l", {"layer"}),
        ("merge run r.yaml --out-dtype b", {"bfloat16"}),
        ("task new f --kind s", {"similarity"}),
        ("cache s", {"show"}),
    ],
)
def test_names_are_completed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], typed: str, known: set[str]
) -> None:
    words = f"kanna {typed}"
    monkeypatch.setenv("_KANNA_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(len(words.split(" ")) - 1))
    main([])
    assert set(capsys.readouterr().out.split()) == known


def test_a_shell_gets_its_script_and_waits_for_no_library() -> None:
    program = "import sys; from kanna.cli.main import main; main([]); print('torch' in sys.modules)"
    asked = {"_KANNA_COMPLETE": "complete_bash", "COMP_WORDS": "kanna lowrank --method ", "COMP_CWORD": "3"}
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env={**os.environ, **asked}
    )
    assert ran.stdout.split()[-1] == "False" and "anchored" in ran.stdout

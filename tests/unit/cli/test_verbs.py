import json

import pytest
from tiny_model import save_model

import kanna as package
from kanna.runs.probe import Verdict

ROLES = ("q", "k", "v", "o", "gate", "up", "down")


def test_inspect_lists_roles_and_what_is_left_alone(kanna, shared_base):
    ran = kanna("inspect", shared_base)
    assert ran.code == 0
    assert all(f" {role} " in ran.out for role in ROLES)
    assert "64 x 32" in ran.out
    assert "model.embed_tokens.weight" in ran.out and "tied" in ran.out


def test_inspect_verbose_lists_every_matrix(kanna, shared_base):
    ran = kanna("inspect", shared_base, "-v")
    assert "model.layers.1.mlp.down_proj" in ran.out


def test_inspect_json_counts_bytes_exactly(kanna, shared_base):
    found = kanna("inspect", shared_base, "--json").json
    assert found["schema_version"] == 1
    assert len(found["matrices"]) == 14
    assert found["bytes"] == sum(m["bytes"] for m in found["matrices"]) + 4 * (96 * 32 + 5 * 32)
    up = next(m for m in found["matrices"] if m["role"] == "up")
    assert (up["shape"], up["break_even_rank"], up["form"]) == ([64, 32], 21, "dense")


def test_inspect_reads_no_weight_without_spectra(kanna, shared_base, monkeypatch):
    from kanna.checkpoint.reader import Checkpoint

    def refuse(*_: object) -> None:
        raise AssertionError("a weight was read")

    monkeypatch.setattr(Checkpoint, "tensor", refuse)
    monkeypatch.setattr(Checkpoint, "raw", refuse)
    assert kanna("inspect", shared_base).code == 0


def test_inspect_spectra_plot_and_cache(kanna, shared_base, tmp_path):
    picture = tmp_path / "spectra.png"
    ran = kanna("inspect", shared_base, "--plot", picture, "--json", "--select", "mlp")
    assert ran.code == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    spectrum = ran.json["matrices"][0]["spectrum"]
    values = spectrum["singular_values"]
    assert len(values) == 32 and values == sorted(values, reverse=True)
    assert 1 <= spectrum["rank_90"] <= spectrum["rank_99"] <= 32
    assert 1 <= spectrum["effective_rank"] <= 32
    assert kanna("cache", "--json").json["bytes"]["spectra"] > 0
    again = kanna("inspect", shared_base, "--spectra", "--select", "mlp", "--json").json
    assert again["matrices"][0]["spectrum"] == spectrum
    assert kanna("cache", "clear").code == 0
    assert kanna("cache", "--json").json["total_bytes"] == 0


def test_spectra_show_whole_layers_and_the_break_even_rank(kanna, shared_base, tmp_path, monkeypatch):
    """32 x 64: 32 * 64 / (32 + 64) = 21.3, so 21 of 32 is the last rank that saves anything."""
    import matplotlib.figure

    from kanna.runs.inspect import inspect, plot_spectra

    drawn = []
    save = matplotlib.figure.Figure.savefig
    monkeypatch.setattr(
        matplotlib.figure.Figure, "savefig", lambda self, *a, **k: drawn.append(self) or save(self, *a, **k)
    )
    found = inspect(shared_base, select="down", spectra=True, cache=tmp_path / "cache")
    plot_spectra(found, tmp_path / "spectra.png")
    panel, bar = (axis for axis in drawn[0].axes if axis.get_visible())
    dashed = [line for line in panel.lines if line.get_linestyle() == "--"]
    (matrix,) = {(entry.matrix.shape, entry.matrix.break_even_rank) for entry in found.entries}
    (rows, columns), even = matrix
    assert even == (rows * columns - 1) // (rows + columns)
    assert [line.get_xdata()[0] for line in dashed] == [even / min(rows, columns)]
    assert f"break-even {even}" in panel.get_title()
    layers = {entry.matrix.layer for entry in found.entries}
    assert set(bar.get_yticks()) == layers and len(panel.lines) == len(layers) + 1


def test_spectra_are_those_of_an_svd(kanna, shared_base):
    import torch
    from safetensors.torch import load_file

    found = kanna("inspect", shared_base, "--spectra", "--select", "q@0", "--json").json["matrices"][0]
    weight = load_file(shared_base / "model.safetensors")["model.layers.0.self_attn.q_proj.weight"]
    expected = torch.linalg.svdvals(weight.double())
    torch.testing.assert_close(
        torch.tensor(found["spectrum"]["singular_values"], dtype=torch.float64),
        expected,
        atol=1e-6,
        rtol=1e-6,
    )


def test_spectra_use_the_cache(kanna, shared_base, monkeypatch):
    import kanna.runs.inspect as module

    first = kanna("inspect", shared_base, "--spectra", "--json").json
    monkeypatch.setattr(module, "singular_values", None)
    assert kanna("inspect", shared_base, "--spectra", "--json").json == first


def test_inspect_of_a_compressed_model_shows_forms(kanna, shared_base, shared_small):
    found = kanna("inspect", shared_small, "--spectra", "--json").json
    ranked = [m for m in found["matrices"] if m["form"] == "low_rank"]
    assert ranked
    dense = {m["name"]: m["bytes"] for m in kanna("inspect", shared_base, "--json").json["matrices"]}
    for matrix in ranked:
        assert matrix["bytes"] < dense[matrix["name"]]
        assert matrix["bytes"] == 4 * (matrix["rank"] * sum(matrix["shape"]) + 1)  # and the sentinel
        assert matrix["spectrum"]["rank_99"] <= matrix["rank"]
    assert kanna("inspect", shared_small).code == 0


def test_lowrank_writes_a_smaller_model(kanna, base, text, tmp_path):
    out = tmp_path / "out"
    ran = kanna("lowrank", base, "--keep", "0.8", "--align", "1", "--calibration", text, "--out", out)
    assert ran.code == 0, ran.err
    assert "whole model" in ran.out and "selected matrices" in ran.out
    assert "written and read back; not judged: reloaded, logits finite" in ran.out and str(out) in ran.out
    assert "verdict" not in ran.out and "pass" not in ran.out
    assert "peak memory" in ran.err and "free" in ran.err and "matrices" in ran.err
    assert json.loads((out / "kanna.json").read_text())["steps"][0]["scores"]["status"] == "not judged"
    assert "not judged on a task" in (out / "README.md").read_text()


def test_modules_left_alone_for_one_reason_are_one_line(kanna, shared_base):
    from kanna.models.inventory import Skipped
    from kanna.runs.inspected import _left_alone

    alone = [Skipped(f"m{i}", "reason one", 10) for i in range(5)] + [Skipped("n", "reason two", 3)]
    assert _left_alone(alone) == [
        "left alone: m0, m1, m2 and 2 more (50 parameters): reason one",
        "left alone: n (3 parameters): reason two",
    ]
    assert _left_alone([]) == [] and "left alone" in kanna("inspect", shared_base).out


def test_the_calibration_text_is_in_lineage_and_report(kanna, base, text, tmp_path):
    out = tmp_path / "out"
    words = ("--keep", "0.8", "--align", "1", "--calibration", text, "--out", out)
    assert kanna("lowrank", base, *words).code == 0
    step = json.loads((out / "kanna.json").read_text())["steps"][0]
    assert step["scores"]["calibration"] == text.name and len(step["data_hash"]) == 64
    assert kanna("report", out, "--out", tmp_path / "report.html").code == 0
    page = (tmp_path / "report.html").read_text()
    assert f"{text.name} (sha256 {step['data_hash'][:16]})" in page and "data read" in page


def test_lowrank_json_is_all_of_stdout(kanna, base, tmp_path):
    ran = kanna("lowrank", base, "--rank", 4, "--layers", "-1", "--matrices", "q,down", "--method", "plain",
                "--align", 1, "--out", tmp_path / "out", "--json")  # fmt: skip
    assert ran.code == 0
    assert ran.json["schema_version"] == 1
    assert ran.json["figures"]["ranks"] == {
        "model.layers.1.self_attn.q_proj": 4,
        "model.layers.1.mlp.down_proj": 4,
    }
    assert ran.json["verdict"]["passed"] is True and ran.json["status"] == "not judged"


def test_tucker_of_single_matrices_is_plain(kanna, base, tmp_path):
    words = ("lowrank", base, "--keep", 0.7, "--align", 1)
    assert kanna(*words, "--method", "plain", "--out", tmp_path / "plain" / "out").code == 0
    ran = kanna(*words, "--method", "tucker", "--out", tmp_path / "tucker" / "out")
    assert ran.code == 0
    assert "tucker of a single matrix is its truncated SVD" in ran.err and "method plain" in ran.err
    recorded = json.loads((tmp_path / "tucker" / "out" / "kanna.json").read_text())
    assert recorded["steps"][0]["config"]["method"] == "plain"
    said = {"kanna.json", "recipe.yaml"}  # the recipe keeps the word that was used
    plain, tucker = (
        {
            path.name: path.read_bytes()
            for path in (tmp_path / name / "out").iterdir()
            if path.name not in said
        }
        for name in ("plain", "tucker")
    )
    assert plain == tucker and "model.safetensors" in plain


def test_a_dry_run_says_what_tucker_is(kanna, base):
    ran = kanna("lowrank", base, "--keep", 0.8, "--method", "tucker", "--align", 1, "--dry-run")
    assert ran.code == 0
    assert "note: tucker of a single matrix is its truncated SVD with the core folded" in ran.out + ran.err
    words = ("--keep", 0.8, "--method", "tucker", "--align", 1, "--dry-run", "--json")
    found = json.dumps(kanna("lowrank", base, *words).json)
    assert "the same as plain" in found and '"method": "plain"' in found


def test_lowrank_dry_run_writes_nothing(kanna, base, tmp_path, unchanged):
    before = unchanged(tmp_path)
    ran = kanna("lowrank", base, "--keep", 0.8, "--method", "plain", "--align", 1, "--dry-run")
    assert ran.code == 0 and "nothing was written" in ran.out
    assert unchanged(tmp_path) == before


def test_lowrank_exits_3_when_the_verdict_is_fail(kanna, base, tmp_path, monkeypatch):
    import kanna.runs.runner as module

    failed = Verdict(False, True, 1.0, "block outputs differ")
    monkeypatch.setattr(module, "verify_output", lambda *_, **__: (failed, None))
    ran = kanna("lowrank", base, "--keep", 0.8, "--method", "plain", "--align", 1, "--out", tmp_path / "out")
    assert ran.code == 3
    assert "FAIL: block outputs differ" in ran.out


def test_eval(kanna, shared_small, text):
    ran = kanna("eval", shared_small, "--text", text, "--context", 32)
    assert ran.code == 0 and "perplexity" in ran.out
    found = kanna("eval", shared_small, "--text", text, "--context", 32, "--tokens", 100, "--json").json
    (score,) = found["tasks"]
    assert found["schema_version"] == 1 and score["metric"] == "perplexity"
    assert score["settings"]["tokens_scored"] == 99 and score["settings"]["context"] == 32


@pytest.mark.parametrize(("words", "said"), [(("--task", "x.jsonl"), "x.jsonl"), ((), "--text FILE")])
def test_eval_without_anything_to_evaluate_on(kanna, shared_base, words, said):
    ran = kanna("eval", shared_base, *words)
    assert ran.code == 2 and said in ran.err


def test_generate_side_by_side(kanna, shared_base, shared_small):
    words = ("--prompt", "w1 w2", "--max-new-tokens", 5, "--against", shared_base)
    ran = kanna("generate", shared_small, *words)
    assert ran.code == 0 and "base" in ran.out and "small" in ran.out
    found = kanna("generate", shared_small, *words, "--json").json["continuations"]
    assert [one["model"] for one in found] == ["small", "base"]
    assert all(1 <= one["tokens"] <= 5 and not one["chat"] for one in found)


def test_generate_uses_the_chat_template_unless_raw(kanna, tmp_path):
    model = save_model(tmp_path / "chat", chat=True)
    words = ("generate", model, "--prompt", "w5", "--max-new-tokens", 4, "--json")
    templated, raw = kanna(*words).json["continuations"][0], kanna(*words, "--raw").json["continuations"][0]
    assert templated["chat"] and not raw["chat"]
    by_hand = kanna("generate", model, "--prompt", "w1 w5 w2", "--max-new-tokens", 4, "--json", "--raw").json
    assert by_hand["continuations"][0]["text"] == templated["text"]


def test_generate_refuses_more_than_the_model_can_read(kanna, shared_base):
    ran = kanna("generate", shared_base, "--prompt", "w1 w2", "--max-new-tokens", 500)
    assert ran.code == 2 and "64" in ran.err


def test_export_dense(kanna, shared_base, shared_small, tmp_path):
    out = tmp_path / "dense"
    ran = kanna("export", shared_small, "--format", "dense", "--out", out, "--json")
    assert ran.code == 0
    assert ran.json["bytes"] == kanna("inspect", shared_base, "--json").json["bytes"]
    assert kanna("export", shared_small, "--format", "dense", "--out", out).code == 2
    assert kanna("export", shared_small, "--format", "dense", "--out", out, "--force").code == 0
    assert kanna("export", shared_small, "--format", "gguf", "--out", out).code == 2
    assert kanna("export", shared_base, "--format", "dense", "--out", tmp_path / "d2").code == 2


@pytest.mark.slow
def test_a_chat_model_is_judged_in_its_template_by_whoever_writes(kanna, tmp_path):
    base = save_model(tmp_path / "base", chat=True)
    rows = [{"prompt": f"w{i}", "choices": ["w3", "w5"], "label": i % 2} for i in range(12)]
    task = tmp_path / "task.jsonl"
    task.write_text("\n".join(map(json.dumps, rows)))
    how = ("--rank", 4, "--select", "down@-1", "--method", "plain", "--task", task, "--max-drop", "90pt",
           "--accept-empty", "-q")  # fmt: skip
    wanted = kanna("eval", base, "--task", task, "--chat", "--json", "-q").json["tasks"][0]
    plain = kanna("eval", base, "--task", task, "--json", "-q").json["tasks"][0]
    assert plain["metrics"]["log_loss"] != pytest.approx(wanted["metrics"]["log_loss"], abs=1e-4)
    assert [any("has a chat template" in note for note in one["notes"]) for one in (plain, wanted)] == [
        True, False,
    ]  # fmt: skip
    for chat, seen in (((), plain), (("--chat",), wanted)):
        out = tmp_path / f"out{len(chat)}"
        assert kanna("lowrank", base, *how, *chat, "--out", out).code == 0
        compared = json.loads((out / "kanna.json").read_text())["steps"][-1]["scores"]["comparison"]["tasks"][
            0
        ]
        assert compared["base_metrics"]["log_loss"] == pytest.approx(seen["metrics"]["log_loss"], abs=1e-5)


def test_explore_space(kanna, shared_base):
    found = kanna("explore", shared_base, "--json").json
    assert found["size"] == (2**2 - 1) * (2**7 - 1)
    assert sum(role["parameters"] for role in found["roles"]) == sum(found["by_layer"].values())
    ran = kanna("explore", "--space", shared_base / "config.json")
    assert ran.code == 0 and "381" in ran.out and "deleted" in ran.out


@pytest.mark.parametrize("words", [(), ("MODEL",), ("--space", "/nowhere")])
def test_explore_without_a_space(kanna, words):
    assert kanna("explore", *words).code == 2


def test_run_a_recipe(kanna, base, text, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    out = tmp_path / "out"
    step = {"lowrank": {"keep": 0.8, "align": 1, "method": "whitened", "select": "mlp"}}
    content = {"model": str(base), "out": str(out), "calibration": str(text), "steps": [step]}
    recipe.write_text(json.dumps(content))  # JSON is YAML
    ran = kanna("run", recipe, "--json")
    assert ran.code == 0, ran.err
    assert ran.json["plan"]["config"]["select"] == "mlp" and (out / "config.json").is_file()


@pytest.mark.parametrize(
    ("recipe", "named"),
    [
        ("model: a\nout: b\nsteps: [{lowrank: {keep: 0.8}}]\nmodle: c", "modle"),
        ("model: a\nout: b\nsteps: [{lowrank: {kep: 0.8}}]", "kep"),
        ("model: a\nout: b\nsteps: [{lowrank: {keep: 0.8}}, {lowrank: {keep: 5}}]", "step 2: lowrank: keep"),
        ("model: a\nout: b\nsteps: [{quantise: {}}]", "quantise"),
        ("model: a\nout: b\nsteps: [{lowrank: {}, other: {}}]", "lowrank"),
        ("model: a\nout: b\nsteps: []", "steps"),
        ("model: a\nsteps: [{lowrank: {keep: 0.8}}]", "out"),
        ("model: [", "not YAML"),
        ("- 1", "the file"),
    ],
)
def test_recipes_refused(kanna, tmp_path, recipe, named):
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe)
    ran = kanna("run", path)
    assert ran.code == 2 and named in ran.err


def test_python_functions_have_the_names_of_the_verbs():
    for name in package.__all__:
        assert getattr(package, name) is not None


def test_inspect_counts_what_is_stored_beside_the_dense_count(kanna, shared_base, shared_small):
    dense = kanna("inspect", shared_base, "--json").json
    assert dense["stored_parameters"] == dense["parameters"] and dense["dense_bytes"] == dense["bytes"]
    found = kanna("inspect", shared_small, "--json").json
    assert found["parameters"] == dense["parameters"] and found["dense_bytes"] == dense["bytes"]
    saved = [m["parameters"] - m["stored_parameters"] for m in found["matrices"]]
    assert sum(saved) > 0 and found["stored_parameters"] == dense["parameters"] - sum(saved)
    for matrix in found["matrices"]:
        if matrix["form"] == "low_rank":
            assert matrix["stored_parameters"] == matrix["rank"] * sum(matrix["shape"])
    told = kanna("inspect", shared_small).out
    assert f"{found['stored_parameters']:,} numbers stored" in told
    assert f"dense it has {dense['parameters']:,} parameters" in told and "if dense" in told
    assert "if dense" not in kanna("inspect", shared_base).out


@pytest.mark.parametrize("width", [60, 80, 100, 130])
def test_inspect_fits(kanna, shared_small, monkeypatch, width):
    from kanna.reporting.wording import size

    found = kanna("inspect", shared_small, "--json").json["matrices"]
    monkeypatch.setenv("COLUMNS", str(width))
    told = kanna("inspect", shared_small, "--spectra", "-v").out.splitlines()
    assert max(map(len, told)) <= width
    for matrix in found:
        assert any(matrix["name"][-15:] in line for line in told)
        for number in (size(matrix["bytes"]), size(matrix["dense_bytes"]), "32 x 32"):
            assert any(number in line for line in told)
    assert max(map(len, kanna("inspect", shared_small, "--spectra").out.splitlines())) <= width

"""Which setting keeps a run from being resumed."""

from kanna.runs.begun import differing, parts_of


def facts(**changes):
    settings = {"keep": 0.8, "select": None, "tokens": 512} | changes
    return {"base": "ab", "steps": [["lowrank", settings, {}, None]], "threads": 2, "first": {}}


def test_each_setting_is_told_with_both_values():
    then = parts_of(facts())
    assert differing(then, parts_of(facts())) == ""
    assert differing(then, parts_of(facts(keep=0.5))) == "keep was 0.8 and is 0.5"
    assert differing(then, parts_of(facts(select="mlp", tokens=9))) == (
        'select was null and is "mlp"; tokens was 512 and is 9'
    )
    assert differing(then, parts_of(facts() | {"threads": 1})) == "threads was 2 and is 1"
    assert differing(then, parts_of(facts() | {"base": "cd"})) == "the model is another one"
    assert differing(then, parts_of(facts(select="x" * 99))) == "select is another one"
    assert differing(then, parts_of(facts(**{f"s{i}": i for i in range(7)}))).endswith("; and 3 more")


def test_of_a_chain_the_step_is_named():
    chain = facts()
    chain["steps"] = [*chain["steps"], ["export", {"format": "dense"}, {}, None]]
    other = {**chain, "steps": [chain["steps"][0], ["export", {"format": "gguf"}, {}, None]]}
    assert differing(parts_of(chain), parts_of(other)) == 'step 2: format was "dense" and is "gguf"'
    longer = differing(parts_of(facts()), parts_of(chain))
    assert longer == "the steps were lowrank and are lowrank, export"


def test_what_is_read_is_named_where_no_setting_explains_it():
    then = parts_of(facts() | {"data": "12"})
    assert differing(then, parts_of(facts(tokens=9) | {"data": "34"})) == "tokens was 512 and is 9"
    assert "text or task" in differing(then, parts_of(facts() | {"data": "34"}))

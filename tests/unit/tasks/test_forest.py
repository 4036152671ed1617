"""Packs hold every sequence along a path, each shared prefix once."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from kanna.tasks.tokens.forest import Pack, packs, singles

SEQUENCES = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=8), min_size=1, max_size=12)


def recovered(made: list[Pack]) -> dict[int, list[int]]:
    return {n: [pack.tokens[i] for i in path] for pack in made for n, path in pack.paths.items()}


@given(SEQUENCES, st.integers(1, 40))
def test_every_sequence_lies_along_its_path(sequences, size):
    for made in (list(packs(sequences, size)), list(singles(sequences))):
        assert recovered(made) == dict(enumerate(sequences))
        for pack in made:
            assert all(parent < place for place, parent in enumerate(pack.parents))
            for path in pack.paths.values():
                assert [pack.depths[i] for i in path] == list(range(len(path)))


@given(SEQUENCES)
def test_one_pack_has_each_distinct_prefix_once(sequences):
    (pack,) = packs(sequences, 10**6)
    prefixes = {tuple(one[: n + 1]) for one in sequences for n in range(len(one))}
    assert len(pack) == len(prefixes)


@given(SEQUENCES, st.integers(1, 20))
def test_no_pack_is_larger_than_asked_unless_one_sequence_is(sequences, size):
    for pack in packs(sequences, size):
        assert len(pack) <= max(size, *(len(sequences[n]) for n in pack.paths))


def test_a_sequence_longer_than_a_pack_is_there_once():
    long = list(range(9))
    made = list(packs([long, [3], long, long, long[:4]], 4))
    assert [pack.tokens for pack in made] == [long, [3]]
    assert recovered(made) == {0: long, 1: [3], 2: long, 3: long, 4: long[:4]}


@given(SEQUENCES)
def test_ancestors_are_what_a_walk_along_parents_finds(sequences):
    (pack,) = packs(sequences, 10**6)
    expected = np.zeros((len(pack), len(pack)), dtype=bool)
    for place in range(len(pack)):
        at = place
        while at >= 0:
            expected[place, at] = True
            at = pack.parents[at]
    assert (pack.ancestors() == expected).all()

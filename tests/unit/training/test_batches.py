"""Which examples go into a step."""

from collections import Counter

import torch

from kanna.training.batches import Batches, mixed, order_of, permutation


def test_every_example_is_in_one_batch_of_each_epoch() -> None:
    sizes = tuple((7 * i) % 31 + 1 for i in range(103))
    batches = Batches(sizes, rows=8, seed=3)
    assert batches.per_epoch == 13
    for epoch in range(3):
        seen = [batches.at(epoch * 13 + place) for place in range(13)]
        assert Counter(i for batch in seen for i in batch) == Counter(range(103))
        assert max(map(len, seen)) - min(map(len, seen)) <= 1
        assert max(map(len, seen)) <= 8


def test_a_batch_depends_on_the_seed_and_the_step_alone() -> None:
    sizes = tuple(range(1, 60))
    later, fresh = Batches(sizes, 4, 1), Batches(sizes, 4, 1)
    for step in range(40):
        later.at(step)
    assert later.at(40) == fresh.at(40)
    assert Batches(sizes, 4, 2).at(40) != fresh.at(40)
    assert fresh.at(0) != fresh.at(fresh.per_epoch)


def test_rows_of_a_batch_are_of_like_length() -> None:
    draw = torch.Generator().manual_seed(0)
    sizes = tuple(torch.randint(1, 200, (256,), generator=draw).tolist())
    batches = Batches(sizes, 8, 0)
    padded = sum(len(b) * max(sizes[i] for i in b) for b in map(batches.at, range(batches.per_epoch)))
    assert padded < 1.1 * sum(sizes)


def test_an_order_is_permutations_one_after_the_other() -> None:
    generator = torch.Generator().manual_seed(5)
    drawn = [torch.randperm(7, generator=generator).tolist() for _ in range(3)]
    assert [permutation(7, 5, epoch) for epoch in range(3)] == drawn
    assert order_of(7, 16, 5) == [i for order in drawn for i in order][:16]


def test_replayed_text_has_its_share_of_each_step() -> None:
    both = mixed([3] * 50, [9] * 20, rows=16, share=0.25, seed=0)
    for step in range(30):
        task, replay = both.at(step)
        assert len(replay) == 4 and len(task) <= 12
    assert mixed([3] * 50, [], 16, 0.25, 0).at(0)[1] == ()
    assert len(mixed([3] * 50, [9] * 20, 16, 0.001, 0).at(0)[1]) == 1

"""The pictures of the fault suite: fatal to look at where they are meant to be, and nowhere else."""

from __future__ import annotations

import random

import pytest

from infra.faults import pictures

# Damage of these numbers alone turned a picture's middle black or white.
BY_CHANCE = (366, 21_356, 39_826)


def test_the_two_traps_are_fatal_and_ordinary_pictures_are_not() -> None:
    assert pictures.fatal(pictures.crashing())
    assert pictures.fatal(pictures.endless())
    assert not any(pictures.fatal(pictures.spots(number)) for number in range(100))


@pytest.mark.parametrize("number", BY_CHANCE)
def test_damage_that_is_fatal_by_chance_is_not_used(number: int) -> None:
    assert pictures.fatal(pictures._damaged(number, random.Random(~number)))
    assert not pictures.fatal(pictures.corrupted(number))


def test_damage_is_the_same_for_the_same_number() -> None:
    assert pictures.corrupted(366) == pictures.corrupted(366)

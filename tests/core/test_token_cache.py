"""The generation cache against its slow twin, and its bounds."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ichicore.token.cache import GenerationCache
from tests.oracle.token_cache import SlowCache

STEPS = st.lists(st.tuples(st.sampled_from("gpd"), st.integers(0, 12), st.integers(1, 99)))


@given(STEPS, st.integers(2, 9))
def test_it_does_what_its_twin_does(steps, capacity):
    fast, slow = GenerationCache(capacity), SlowCache(capacity)
    for step, key, value in steps:
        if step == "g":
            assert fast.get(key) == slow.get(key)
        elif step == "p":
            fast.put(key, value)
            slow.put(key, value)
        else:
            fast.drop(key)
            slow.drop(key)
        assert len(fast) <= 2 * (capacity // 2)


def test_what_is_read_stays():
    cache = GenerationCache(100)
    cache.put("kept", 1)
    for number in range(10_000):
        cache.put(number, 1)
        if number % 40 == 0:
            assert cache.get("kept") == 1
    assert cache.get(0) is None
    assert cache.hits == 250
    assert cache.misses == 1


def test_none_is_no_value():
    cache = GenerationCache(4)
    with pytest.raises(ValueError, match="None"):
        cache.put("a", None)
    with pytest.raises(ValueError, match="two"):
        GenerationCache(1)

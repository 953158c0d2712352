"""A frozen mapping is hashed and compared with the order of its keys."""

from hope_jax.core.types import FrozenMapping


def test_the_order_of_a_frozen_mapping_counts() -> None:
    one, other = FrozenMapping({"a": 1, "b": 2}), FrozenMapping({"b": 2, "a": 1})
    assert one != other and one == FrozenMapping({"a": 1, "b": 2}) == {"a": 1, "b": 2}
    assert len({one, FrozenMapping(one), other}) == 2
    assert dict(one) == dict(other) and list(other) == ["b", "a"]

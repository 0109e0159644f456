from itertools import combinations, product

import numpy as np
import pytest

from datamodules.streams import stream

KEYS = list(product((0, 1, 2**32 - 1), ("split", "order", "label_noise", "table"), (0, 1, 1000)))


def test_a_stream_is_the_same_every_time():
    for key in KEYS:
        np.testing.assert_array_equal(stream(*key).random(5), stream(*key).random(5))


def test_no_two_streams_have_anything_in_common():
    numbers = {key: stream(*key).random(200) for key in KEYS}
    for a, b in combinations(KEYS, 2):
        assert not set(numbers[a]) & set(numbers[b])
        assert abs(np.corrcoef(numbers[a], numbers[b])[0, 1]) < 0.35  # five standard deviations


def test_an_order_is_no_part_of_the_split():
    """As it was when both were drawn from the seed itself."""
    split, order = (stream(3, name).permutation(100) for name in ("split", "order"))
    assert 0 <= (split == order).sum() <= 6


def test_a_purpose_that_is_none_is_refused():
    with pytest.raises(ValueError, match="not in tuple"):
        stream(0, "init")

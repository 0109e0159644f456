import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_grok.measures.inequality import gini

values = st.lists(st.integers(-1000, 1000), min_size=1, max_size=30).filter(any)


@settings(deadline=None)
@given(values, st.floats(1e-3, 1e3))
def test_is_the_mean_difference_over_twice_the_mean(numbers, scale):
    x = [abs(v) * scale for v in numbers]
    n = len(x)
    slow = sum(abs(a - b) for a in x for b in x) / (2 * n * sum(x))
    assert gini(torch.tensor(numbers).double() * scale).item() == pytest.approx(slow, abs=1e-12)


@settings(deadline=None)
@given(values)
def test_order_and_sign_do_not_matter(numbers):
    x = torch.tensor(numbers, dtype=torch.float64)
    torch.testing.assert_close(gini(-x.flip(0)), gini(x))


@pytest.mark.parametrize("n", [1, 2, 7, 100])
def test_equal_values_have_none_and_a_single_holder_the_most(n):
    one = torch.zeros(n, dtype=torch.float64)
    one[-1] = -1e-3
    assert gini(torch.full((n,), 0.1)).item() == pytest.approx(0, abs=1e-15)
    assert gini(one).item() == pytest.approx((n - 1) / n, abs=1e-15)


def test_uniform_distribution_has_one_third():
    assert gini(torch.linspace(0, 1, 100_001)).item() == pytest.approx(1 / 3, abs=1e-4)


def test_all_zero_is_nan_and_leading_dimensions_are_kept():
    stacked = gini(torch.tensor([[[0.0, 0.0], [0.0, 1.0]], [[1.0, 1.0], [1.0, 3.0]]]))
    torch.testing.assert_close(
        stacked, torch.tensor([[torch.nan, 0.5], [0, 0.25]], dtype=torch.float64), equal_nan=True
    )


def test_denormal_weights_count():
    assert gini(torch.tensor([0.0, 2.0**-149])).item() == 0.5

import pytest
import torch

from lit_grok.kernels.tables import look_up, look_up_sum
from tests.simulated_gpu import NAME


@pytest.fixture(params=["cpu", NAME])
def device(request):
    if request.param == NAME:
        request.getfixturevalue("gpu")
    return request.param


@pytest.mark.parametrize("shape", [(3, 7, 4), (1, 7, 4), (3, 7, 2, 5)])
def test_rows_and_their_gradient_are_those_of_a_loop(device, shape):
    generator = torch.Generator().manual_seed(0)
    tables = torch.randn(shape, generator=generator)
    rows = torch.randint(shape[1], (shape[0], 6), generator=generator)
    weight = torch.randn(shape[0], 6, *shape[2:], generator=generator)
    expected, theirs = torch.zeros_like(weight), torch.zeros_like(tables)
    for r in range(shape[0]):
        for b in range(6):
            expected[r, b] = tables[r, rows[r, b]]
            theirs[r, rows[r, b]] += weight[r, b]
    own = tables.clone().to(device).requires_grad_()
    found = look_up(own, rows.to(device))
    (found * weight.to(device)).sum().backward()
    torch.testing.assert_close(found.detach().cpu(), expected, rtol=0, atol=0)
    torch.testing.assert_close(own.grad.cpu(), theirs)
    with torch.no_grad():  # another way on a GPU
        assert torch.equal(look_up(own, rows.to(device)).cpu(), expected)


def test_sums_of_rows_and_their_gradient_are_those_of_a_loop(device):
    generator = torch.Generator().manual_seed(0)
    tables = torch.randn(2, 9, 4, generator=generator)
    rows = torch.stack([torch.randperm(9, generator=generator)[:3] for _ in range(10)]).view(2, 5, 3)
    weight = torch.randn(2, 5, 4, generator=generator)
    expected, theirs = torch.zeros_like(weight), torch.zeros_like(tables)
    for r in range(2):
        for b in range(5):
            for row in rows[r, b]:
                expected[r, b] += tables[r, row]
                theirs[r, row] += weight[r, b]
    own = tables.clone().to(device).requires_grad_()
    found = look_up_sum(own, rows.to(device))
    (found * weight.to(device)).sum().backward()
    torch.testing.assert_close(found.detach().cpu(), expected)
    torch.testing.assert_close(own.grad.cpu(), theirs)
    with torch.no_grad():
        torch.testing.assert_close(look_up_sum(own, rows.to(device)).cpu(), expected)

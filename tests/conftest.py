import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """Two test processes share two cores; more threads than that only get in each other's way."""
    torch.set_num_threads(1)

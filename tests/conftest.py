"""What every test may count on."""

import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Sums depend on the number of threads, and small tensors are fastest on one."""
    torch.set_num_threads(1)

"""Two processes, half of every batch each: the same topology and the same weights on both, by construction."""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from toys import mlp, points, supernet

from subnet_search.training import train


def work(rank, folder, name):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    net = supernet(name, mlp(), epochs=3, batch_size=40, lr=1.0)
    outcome = train(net, points(), 0)
    torch.save(
        {"masks": dict(net.masks), "state": net.state(), "loss": [e.train_loss for e in outcome.history]},
        f"{folder}/{rank}.pt",
    )
    dist.destroy_process_group()


@pytest.mark.parametrize("name", ["gumbel", "redraw"])
def test_two_ranks_agree(name, tmp_path):
    mp.spawn(_entry, args=(str(tmp_path), name), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert all(torch.equal(first["masks"][key], second["masks"][key]) for key in first["masks"])
    assert all(torch.equal(first["state"][key], second["state"][key]) for key in first["state"])
    assert first["loss"] != second["loss"]  # each has seen its own half
    alone = supernet(name, mlp(), epochs=3, batch_size=40, lr=1.0)
    train(alone, points(), 0)
    for key, value in alone.state().items():
        assert torch.allclose(value.float(), first["state"][key].float(), atol=1e-4), key


def _entry(rank, folder, name):
    import conftest  # noqa: F401  the test-only extractor, in this process too

    work(rank, folder, name)

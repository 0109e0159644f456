"""The simulated device does what CUDA does, and refuses what CUDA refuses."""

import copy
import gc

import pytest
import torch
from torch import nn

from tests.simulated_gpu import NAME


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(12, 2)
    )


def test_it_calculates_as_the_cpu_does(gpu):
    ours, theirs = network(), network().to(NAME)
    inputs, targets = torch.randn(5, 1, 4, 4), torch.arange(5) % 2
    for _ in range(3):
        for net, device in ((ours, "cpu"), (theirs, NAME)):
            net.zero_grad()
            nn.functional.cross_entropy(net(inputs.to(device)), targets.to(device)).backward()
            torch.optim.SGD(net.parameters(), lr=0.1).step()
    assert all(p.is_cuda and p.grad.is_cuda for p in theirs.parameters())
    for p, q in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True):
        torch.testing.assert_close(p, q.cpu())


def test_views_share_memory_and_copies_do_not(gpu):
    whole = torch.zeros(2, 3, device=NAME)
    part, other = whole[1], copy.deepcopy(whole)
    part += 1
    whole.T.mul_(2)
    assert whole.tolist() == [[0, 0, 0], [2, 2, 2]]
    assert part.tolist() == [2, 2, 2]
    assert other.tolist() == [[0, 0, 0], [0, 0, 0]]


def test_memory_is_given_back(gpu):
    def held():
        gc.collect()
        gpu.sweep()
        return len(gpu._memory)

    before = held()
    tensors = [torch.zeros(3, device=NAME)[1:] + 1 for _ in range(10)]
    parts = [tensor[:1] for tensor in tensors]
    assert held() == before + 10
    del tensors
    assert held() == before + 10
    del parts
    assert held() == before


@pytest.mark.parametrize(
    "mixed",
    [
        lambda x, y: x + y,
        lambda x, y: x @ y,
        lambda x, y: x.add_(y),
        lambda x, y: torch.stack([x, y]),
        lambda x, y: torch.where(x > 0, x, y),
        lambda x, y: torch.sum(x, dim=0, out=y),
        lambda x, y: torch.sum(x, dim=None, out=torch.empty(())),
        lambda x, y: y.index_put_((torch.zeros_like(x[0], dtype=torch.long),), x),
    ],
)
def test_it_does_not_mix_with_the_cpu(gpu, mixed):
    with pytest.raises(RuntimeError, match="device"):
        mixed(torch.ones(2, 2, device=NAME), torch.ones(2, 2))


def test_lazy_conjugates_are_refused(gpu):
    x = torch.ones(2, 2, device=NAME)
    with pytest.raises(NotImplementedError, match="conj_physical"):
        torch.complex(x, x).conj()


def test_numpy_cannot_read_it(gpu):
    x = torch.ones(2, device=NAME)
    with pytest.raises(TypeError, match="numpy"):
        x.numpy()


def test_what_waits_is_counted(gpu):
    x = torch.ones(3).to(NAME)
    gpu.watch()
    _ = (x * 2 + torch.tensor(1.0)).sum().exp()
    assert not gpu.waits
    _ = x.sum().item(), x[x > 0], x.cpu(), bool((x > 0).all())
    assert gpu.waits == ["_local_scalar_dense", "nonzero", "_copy_from", "_local_scalar_dense"]


def test_a_graph_computes_when_it_is_replayed(gpu):
    x, factor = torch.ones(2, device=NAME), torch.tensor(3.0)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = x * factor
        x.add_(1)
        z = y + x[:1]
    assert x.tolist() == [1, 1]
    factor.fill_(100.0)  # a number of the CPU is a constant of the graph
    for expected in (1, 2, 3):
        graph.replay()
        assert (y.tolist(), z.tolist()) == ([3 * expected] * 2, [4 * expected + 1] * 2)
        assert x.tolist() == [expected + 1] * 2


@pytest.mark.parametrize("read", [lambda x: x.sum().item(), lambda x: x.cpu(), lambda x: x[x > 0]])
def test_a_graph_records_nothing_that_waits(gpu, read):
    x = torch.ones(2, device=NAME)
    with (
        pytest.raises(RuntimeError, match="not permitted when stream is capturing"),
        torch.cuda.graph(torch.cuda.CUDAGraph()),
    ):
        read(x)


def test_a_step_counted_on_the_host_is_frozen_in_a_graph(gpu):
    """Adam's bias correction: without ``capturable`` all replays make the first step."""
    ends = {}
    for capturable in (False, True):
        for recorded in (False, True):
            weight = torch.ones(3, device=NAME, requires_grad=True)
            adam = torch.optim.Adam([weight], lr=0.1, capturable=capturable, foreach=False)

            def step(weight=weight, adam=adam):
                adam.zero_grad()
                weight.square().sum().backward()
                adam.step()

            step()
            graph = torch.cuda.CUDAGraph()
            if recorded:
                with torch.cuda.graph(graph):
                    step()
            for _ in range(3):
                graph.replay() if recorded else step()
            ends[capturable, recorded] = weight.detach().cpu()
    assert torch.equal(ends[True, True], ends[True, False])
    assert not torch.equal(ends[False, True], ends[False, False])

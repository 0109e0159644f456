import threading

import pytest
import torch
import torch.nn.functional as F

from lit_grok.kernels.convolution import conv_relu_pool


def reference(inputs, weight, bias):
    """Written down as it is read, one replica after the other."""
    replicas = zip(inputs.expand(len(weight), -1, -1, -1, -1), weight, bias, strict=True)
    return torch.stack([F.max_pool2d(F.relu(F.conv2d(x, w, b, padding=1)), 2) for x, w, b in replicas])


def results(function, tensors, grad_output):
    """Output and the gradients of all that is differentiated."""
    leaves = [t.detach().clone(memory_format=torch.preserve_format).requires_grad_() for t in tensors]
    output = function(*leaves)
    return [output.detach(), *torch.autograd.grad(output, leaves, grad_output)]


def case(seed, R=2, B=5, C=2, filters=3, H=6, W=4, shared=False):
    g = torch.Generator().manual_seed(seed)
    inputs = torch.randn(1 if shared else R, B, C, H, W, generator=g)
    weight, bias = torch.randn(R, filters, C, 3, 3, generator=g), torch.randn(R, filters, generator=g) / 10
    return (inputs, weight, bias), torch.randn(R, B, filters, H // 2, W // 2, generator=g)


def assert_close(found, expected, tolerance=1e-5):
    """Equal up to a fraction of the largest entry."""
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a.to(b.dtype), b, rtol=0, atol=tolerance * max(1e-30, b.abs().max().item()))


def assert_same(found, expected):
    """Equal bit for bit, NaN included."""
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


def double(tensors):
    return [t.double() for t in tensors]


@pytest.mark.parametrize("seed", range(30))
def test_output_and_gradients_are_those_of_pytorch(seed):
    sizes = torch.randint(1, 6, (6,), generator=torch.Generator().manual_seed(seed)).tolist()
    R, C, filters, H, W = (*sizes[:3], 2 * sizes[3], 2 * sizes[4])
    B = [1, 7, 16, 33, 40][sizes[5] - 1]
    tensors, grad_output = case(seed, R, B, C, filters, H, W, shared=seed % 3 == 0)
    found = results(conv_relu_pool, tensors, grad_output)
    assert_close(found, results(reference, tensors, grad_output), 2e-5)
    assert_close(found, results(reference, double(tensors), grad_output.double()))


@pytest.mark.parametrize("seed", range(5))
def test_spins_train_the_layers_of_the_ising_network_as_in_double_precision(seed):
    (spins, w1, b1), _ = case(seed, B=300, C=1, filters=2, H=16, W=16)
    (_, w2, b2), grad_output = case(seed + 100, B=300, C=2, filters=4, H=8, W=8)
    spins[:, ::2] = spins[:, ::2, :, :1, :1]  # half of the snapshots are all up or all down
    spins = torch.where(spins > 0, 1.0, -1.0)
    # Multiples of 1/64: sums of spins are then exact, and no maximum is decided by rounding.
    w1, b1, w2, b2 = ((t * 64).round() / 64 for t in (w1, b1, w2, b2))

    def two_layers(block):
        return lambda x, w1, b1, w2, b2: block(block(x, w1, b1), w2, b2)

    tensors = (spins, w1, b1, w2, b2)
    found = results(two_layers(conv_relu_pool), tensors, grad_output)
    assert_close(found, results(two_layers(reference), tensors, grad_output))
    assert_close(found, results(two_layers(reference), double(tensors), grad_output.double()))


@pytest.mark.parametrize("seed", range(10))
def test_ties_go_to_the_first_maximum(seed):
    """Small integers tie in most windows, also at zero, and their sums are exact: so every bit must agree."""
    tensors, grad_output = case(seed, B=17, H=8, W=8)
    tensors, grad_output = [t.sign() for t in tensors], grad_output.sign()
    tensors[2].zero_()
    windows = F.conv2d(tensors[0][0], tensors[1][0], padding=1).unfold(2, 2, 2).unfold(3, 2, 2).flatten(-2)
    assert ((windows == windows.amax(-1, keepdim=True)).sum(-1) > 1).float().mean() > 0.1
    assert_same(results(conv_relu_pool, tensors, grad_output), results(reference, tensors, grad_output))


@pytest.mark.parametrize("height", [-1.0, 0.0])
def test_dead_units_have_no_gradient(height):
    (inputs, weight, bias), grad_output = case(0)
    found = results(conv_relu_pool, (inputs, torch.zeros_like(weight), bias * 0 + height), grad_output)
    assert all((tensor == 0).all() for tensor in found)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("where", ["inputs", "weight", "bias", "grad_output"])
def test_what_is_not_finite_is_kept_and_stays_in_its_replica(where, value):
    tensors, grad_output = case(3, R=3, B=5, filters=2, H=6, W=6)  # five samples leave most vector lanes unused
    clean = results(conv_relu_pool, tensors, grad_output)
    broken = dict(zip(("inputs", "weight", "bias"), tensors, strict=True), grad_output=grad_output)[where]
    broken[1].view(-1)[-1] = value
    found = results(conv_relu_pool, tensors, grad_output)
    expected = results(reference, tensors, grad_output)
    for a, b, c in zip(found, expected, clean, strict=True):
        assert not (a.isfinite() & ~b.isfinite()).any()  # 0 · ∞ at the border of zeros makes a few more
        assert torch.equal(a[[0, 2]], c[[0, 2]])
    assert not all(torch.equal(a[1], c[1]) for a, c in zip(found, clean, strict=True))


@pytest.mark.parametrize("corner", [(1, 1), (1, 4), (4, 1), (4, 4)])
def test_one_nan_in_a_window_wins_wherever_it_is(corner):
    """Each corner of the 4×4 inputs of a window is seen by one of its four positions."""
    (inputs, weight, bias), grad_output = case(0, R=1, B=1, H=6, W=6)
    inputs[..., corner[0], corner[1]] = float("nan")
    found = results(conv_relu_pool, (inputs, weight, bias), grad_output)
    assert found[0][..., 1, 1].isnan().all()
    assert found[1].isfinite().all()  # the gradient in the inputs tells the position that was chosen
    expected = results(reference, (inputs, weight, bias), grad_output)
    torch.testing.assert_close(found, expected, equal_nan=True, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("B", [5, 16, 300])
def test_a_replica_does_not_depend_on_its_neighbours(B, shared):
    (inputs, weight, bias), grad_output = case(1, R=6, B=B, H=8, W=8)
    inputs = inputs[:1].expand(6, -1, -1, -1, -1) if shared else inputs
    together = results(conv_relu_pool, (inputs, weight, bias), grad_output)
    for r in range(6):
        alone = results(conv_relu_pool, (inputs[r : r + 1], weight[r : r + 1], bias[r : r + 1]), grad_output[r : r + 1])
        assert_same([tensor[r : r + 1] for tensor in together], alone)


def test_shared_inputs_give_the_same_as_copies_of_them():
    (inputs, weight, bias), grad_output = case(2, R=3, shared=True)
    copies = results(conv_relu_pool, (inputs.repeat(3, 1, 1, 1, 1), weight, bias), grad_output)
    one = results(conv_relu_pool, (inputs, weight, bias), grad_output)
    expanded = results(
        lambda x, w, b: conv_relu_pool(x.expand(3, -1, -1, -1, -1), w, b), (inputs, weight, bias), grad_output
    )
    copies[1] = copies[1].sum(0, keepdim=True)
    assert_same(one, expanded)
    assert_close(one, copies, 1e-6)


def test_shared_inputs_are_kept_once():
    (inputs, weight, bias), _ = case(2, R=3, shared=True)
    for shared in (inputs, inputs.expand(3, -1, -1, -1, -1)):
        images, *_ = conv_relu_pool(shared, weight.requires_grad_(), bias).grad_fn.saved_tensors
        assert len(images) == 1


def test_a_gradient_in_the_inputs_changes_nothing_else():
    (inputs, weight, bias), grad_output = case(4)
    without = results(lambda w, b: conv_relu_pool(inputs, w, b), (weight, bias), grad_output)
    output, _, *grads = results(conv_relu_pool, (inputs, weight, bias), grad_output)
    assert_same(without, [output, *grads])


def test_the_order_in_memory_does_not_matter():
    tensors, grad_output = case(5)
    expected = results(conv_relu_pool, tensors, grad_output)
    reversed_order = [t.permute(*reversed(range(t.ndim))).contiguous() for t in (*tensors, grad_output)]
    *strided, strided_grad = (t.permute(*reversed(range(t.ndim))) for t in reversed_order)
    assert not any(t.is_contiguous() for t in strided)
    assert_same(results(conv_relu_pool, strided, strided_grad), expected)


def test_the_next_block_reads_the_output_without_a_copy():
    (inputs, weight, bias), _ = case(6)
    output = conv_relu_pool(inputs, weight, bias)
    assert output.shape == (2, 5, 3, 3, 2)
    assert output.movedim(1, -1).is_contiguous()


def test_double_precision_and_odd_sizes_run_as_plain_pytorch():
    tensors, grad_output = case(8)
    found = results(conv_relu_pool, double(tensors), grad_output.double())
    assert found[0].dtype == torch.float64
    assert_close(found, results(reference, double(tensors), grad_output.double()), 1e-12)
    assert torch.autograd.gradcheck(conv_relu_pool, [t.requires_grad_() for t in double(tensors)])
    odd, grad_output = case(9, H=7, W=5)
    assert_close(results(conv_relu_pool, odd, grad_output), results(reference, odd, grad_output), 1e-5)


@pytest.mark.parametrize("wrong", [0, 1, 2])
def test_shapes_that_do_not_fit_are_refused(wrong):
    tensors = list(case(0)[0])
    tensors[wrong] = tensors[wrong].repeat_interleave(2, dim=[2, 2, 1][wrong])
    with pytest.raises((RuntimeError, ValueError)):
        conv_relu_pool(*tensors)


def test_an_empty_batch_is_no_special_case():
    tensors, grad_output = case(0, B=0)
    assert_same(results(conv_relu_pool, tensors, grad_output), results(reference, tensors, grad_output))


def test_a_second_derivative_is_refused():
    inputs, weight, bias = case(0)[0]
    weight.requires_grad_()
    (grad,) = torch.autograd.grad(conv_relu_pool(inputs, weight, bias).square().sum(), weight, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


def test_threads_do_not_meet():
    cases = [case(seed, B=40, H=16, W=16) for seed in range(4)]
    expected = [results(conv_relu_pool, *c) for c in cases]
    failures = []

    def work(index):
        for _ in range(20):
            try:
                assert_same(results(conv_relu_pool, *cases[index]), expected[index])
            except AssertionError as error:
                failures.append(error)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures

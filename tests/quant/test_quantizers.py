"""Every quantizer keeps its grid, its state and its stillness."""

import copy
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qat_vsam.errors import CheckpointError, InputError
from qat_vsam.quant import (
    LSQQuantizer,
    MinMaxQuantizer,
    TensorSpec,
    TensorStatistics,
    initial_step_size,
    make_quantizer,
)


def seen(*tensors, per_channel=False):
    statistics = TensorStatistics(per_channel)
    for tensor in tensors:
        statistics.update(tensor)
    return statistics


def ready(x, bits=4, method="lsq", role="activation", granularity="per_tensor", signed=None, narrow=False):
    spec = TensorSpec(bits, signed, granularity, method, narrow)
    quantizer = make_quantizer(spec, role, x.shape[0])
    quantizer.initialise(seen(x, per_channel=granularity == "per_channel"))
    return quantizer


@settings(max_examples=300, deadline=None)
@given(
    bits=st.integers(1, 8),
    method=st.sampled_from(["lsq", "pact", "minmax", "percentile", "mse"]),
    role=st.sampled_from(["weight", "activation"]),
    granularity=st.sampled_from(["per_tensor", "per_channel"]),
    narrow=st.booleans(),
    shape=st.sampled_from([(1, 1), (3, 7), (4, 2, 3, 3)]),
    seed=st.integers(0, 1000),
    constant=st.sampled_from([None, 0.0, -1.5, 2.0]),
)
def test_output_is_scale_times_codes_and_the_scale_is_positive(
    bits, method, role, granularity, narrow, shape, seed, constant
):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    if constant is not None:
        x[0] = constant
    quantizer = ready(x, bits, method, role, granularity, narrow=narrow)
    codes = quantizer.codes(x)
    assert torch.all(quantizer.scale() > 0)
    assert quantizer.scale().shape == ((shape[0],) if granularity == "per_channel" else ())
    assert torch.equal(quantizer(x), quantizer.dequantize(codes))
    assert quantizer.q_min <= codes.min()
    assert codes.max() <= quantizer.q_max
    if role == "weight":
        assert quantizer.signed
    else:
        assert quantizer.signed == bool((x < 0).any())


def test_one_bit_weights_are_sign_times_mean_magnitude_at_every_forward():
    weight = torch.tensor([[0.5, -1.5], [-2.0, 4.0]])
    quantizer = ready(weight, bits=1, role="weight", granularity="per_channel")
    assert quantizer(weight).tolist() == [[1, -1], [-3, 3]]
    assert quantizer(weight * 2).tolist() == [[2, -2], [-6, 6]]
    assert quantizer.codes(weight).tolist() == [[1, -1], [-1, 1]]


def test_off_is_the_identity():
    quantizer = LSQQuantizer(TensorSpec(4), "activation")
    quantizer.enabled = False
    x = torch.randn(3)
    assert quantizer(x) is x


def test_without_a_step_size_it_says_what_to_do():
    quantizer = LSQQuantizer(TensorSpec(4), "activation")
    for use in (quantizer, quantizer.codes):
        with pytest.raises(InputError, match=r"activation quantizer: got no step size; .*calibrate"):
            use(torch.zeros(2))
    with pytest.raises(InputError, match="channels"):
        LSQQuantizer(TensorSpec(4, granularity="per_channel"), "weight")


def test_gradient_factor_counts_the_elements_that_share_a_step():
    assert ready(torch.rand(8, 3, 4, 4)).gradient_factor(torch.rand(2, 3, 4, 4)) == (48 * 15) ** -0.5
    weight = torch.randn(6, 3, 2, 2)
    assert ready(weight, role="weight", granularity="per_channel").gradient_factor(weight) == (12 * 7) ** -0.5
    assert ready(weight, role="weight").gradient_factor(weight) == (72 * 7) ** -0.5


def test_the_factor_reaches_the_gradient_of_the_step():
    x, upstream = torch.rand(4, 10), torch.randn(4, 10)
    quantizer = ready(x)
    quantizer(x).backward(upstream)
    v = x / quantizer.scale()
    full = (upstream * torch.where(v <= 15, v.round() - v, 15.0)).sum()
    torch.testing.assert_close(quantizer.step_size.grad[0], full * (10 * 15) ** -0.5, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("method", ["lsq", "pact", "minmax", "percentile", "mse"])
def test_a_plain_state_dict_restores_scale_sign_and_readiness(method, tmp_path):
    x = torch.rand(5, 4)
    trained = ready(x, method=method)
    torch.save(trained.state_dict(), tmp_path / "state.pt")
    fresh = make_quantizer(TensorSpec(4, method=method), "activation")
    fresh.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert (fresh.signed, fresh.initialised) == (False, True)
    assert torch.equal(fresh(x), trained(x))


@pytest.mark.parametrize("other", [TensorSpec(3), TensorSpec(4, narrow=True)])
def test_state_of_another_grid_is_refused(other):
    with pytest.raises(CheckpointError, match="quantizer state: got 4 bits; expected"):
        make_quantizer(other, "activation").load_state_dict(ready(torch.rand(5)).state_dict())


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda q: pickle.loads(pickle.dumps(q))])
def test_copies_compute_the_same_and_are_independent(clone):
    x = torch.rand(5, 4)
    original = ready(x)
    twin = clone(original)
    assert torch.equal(twin(x), original(x))
    with torch.no_grad():
        twin.step_size.mul_(2)
    assert not torch.equal(twin(x), original(x))


def test_minmax_spans_the_range_of_a_weight_as_it_is_now():
    weight = torch.tensor([[-1.0, 0.7], [0.35, 0.0]])
    quantizer = ready(weight, method="minmax", role="weight", granularity="per_channel")
    torch.testing.assert_close(quantizer.scale(), torch.tensor([1 / 8, 0.05]))
    quantizer(weight * 2)
    torch.testing.assert_close(quantizer.scale(), torch.tensor([2 / 8, 0.1]))


def test_minmax_follows_activations_only_in_training_and_only_while_it_may():
    x = torch.linspace(0, 1.5, 16)
    quantizer = ready(x, method="minmax").eval()
    start = quantizer.scale()
    quantizer(x * 2)
    assert torch.equal(quantizer.scale(), start)
    quantizer.train()
    quantizer.updates_state = False
    quantizer(x * 2)
    assert torch.equal(quantizer.scale(), start)
    quantizer.updates_state = True
    quantizer(x * 2)
    torch.testing.assert_close(quantizer.scale(), start * 1.1)
    quantizer(x * float("nan"))
    torch.testing.assert_close(quantizer.scale(), start * 1.1)
    assert isinstance(quantizer, MinMaxQuantizer)


def test_squared_error_start_is_no_worse_than_its_neighbours_and_lsqs():
    x = torch.randn(4096, generator=torch.Generator().manual_seed(0))
    statistics = seen(x)

    def error(step):
        return ((x / step).clamp(-8, 7).round() * step - x).square().mean().item()

    best = initial_step_size(statistics, -8, 7, "mse")
    assert error(best) <= min(error(best * 0.9), error(best * 1.1), error(initial_step_size(statistics, -8, 7, "lsq")))
    torch.testing.assert_close(initial_step_size(statistics, -8, 7, "lsq"), 2 * x.abs().mean() / 7**0.5)


def test_a_channel_of_zeros_takes_the_mean_of_the_others_and_a_zero_tensor_one():
    weight = torch.stack([torch.zeros(8), torch.linspace(-1, 1, 8), torch.linspace(-3, 3, 8)])
    step = initial_step_size(seen(weight, per_channel=True), -8, 7)
    assert step[0] == (step[1] + step[2]) / 2
    assert initial_step_size(seen(torch.zeros(8)), 0, 15) == 1


def test_statistics_of_parts_are_those_of_the_whole():
    x = torch.randn(4, 100, generator=torch.Generator().manual_seed(0))
    parts, whole = seen(x[:, :30], x[:, 30:], per_channel=True), seen(x, per_channel=True)
    for name in ("minimum", "maximum", "mean_magnitude", "sample"):
        torch.testing.assert_close(getattr(parts, name), getattr(whole, name))
    assert seen(torch.zeros(0, 3)).count == 0

"""Roundings and their stand-in derivatives, against closed forms, autograd and torch's learnable operators."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from trimtab.compressors.recovery.straight_through import (
    SIGN_CLIP,
    RoundBlocks,
    RoundChannels,
    RoundPassing,
    RoundTensor,
    SignInput,
    SignWeight,
    TakeValues,
)
from trimtab.compressors.weights.binarize import binarize_weight
from trimtab.compressors.weights.quantized_weights import quantize_blocks


def draw(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape).astype(np.float32))


def run(function, x, step, *rest):
    """Returns the output, and the gradients of x and the step for a random gradient from above."""
    x, step = x.clone().requires_grad_(), step.clone().requires_grad_()
    out = function.apply(x, step, *rest)
    above = draw(*x.shape, seed=7)
    out.backward(above)
    return out.detach(), x.grad, step.grad, above


def step_gradient_of_the_paper(value, step, low, high):
    """Esser et al. (2020), eq. 3, for one number."""
    scaled = value / step
    if scaled <= low:
        return low
    if scaled >= high:
        return high
    return np.rint(scaled) - scaled


@pytest.mark.parametrize("n_steps", [1, 3])
def test_steps_of_a_weight_have_the_gradient_of_the_paper(n_steps) -> None:
    weight, step, limit = draw(3, 4, 2), torch.tensor([0.2, 0.05, 0.4])[:n_steps], 7
    out, passed, gradient, above = run(RoundChannels, weight, step, limit)
    expected = np.zeros(n_steps)
    for place, value in np.ndenumerate(weight.numpy().astype(np.float64)):
        channel = min(place[0], n_steps - 1)
        size = float(step[channel])
        expected[channel] += float(above[place]) * step_gradient_of_the_paper(value, size, -limit, limit)
        assert passed[place] == (above[place] if -limit < value / size < limit else 0)
        assert out[place] == pytest.approx(np.clip(np.rint(value / size), -limit, limit) * size, rel=1e-6)
    expected /= np.sqrt(weight.numel() / n_steps * limit)
    np.testing.assert_allclose(gradient.numpy(), expected, rtol=1e-5)


def away_from_the_edge(x, step, low, high):
    """Moves values off the half step beyond the last codes, where torch's operator still passes gradients."""
    scaled = x / step
    near = ((scaled > high) & (scaled < high + 0.6)) | ((scaled < low) & (scaled > low - 0.6))
    return torch.where(near, 0.3 * step, x)


def test_steps_of_a_weight_are_those_of_torchs_learnable_operator() -> None:
    step = torch.tensor([0.2, 0.05, 0.4])
    weight = away_from_the_edge(draw(3, 50), step[:, None], -7, 7)
    out, passed, gradient, above = run(RoundChannels, weight, step, 7)
    x, theirs = weight.clone().requires_grad_(), step.clone().requires_grad_()
    factor = 1 / np.sqrt(50 * 7)
    other = torch._fake_quantize_learnable_per_channel_affine(x, theirs, torch.zeros(3), 0, -7, 7, factor)
    other.backward(above)
    torch.testing.assert_close(out, other.detach())
    torch.testing.assert_close(passed, x.grad)
    torch.testing.assert_close(gradient, theirs.grad)


@pytest.mark.parametrize(("low", "high"), [(0, 255), (-127, 127), (-40, 215)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_steps_of_activations_are_those_of_torchs_learnable_operator(low, high, layout) -> None:
    step = torch.tensor([0.01])
    x = away_from_the_edge(draw(2, 3, 5, 4), step, low, high).contiguous(memory_format=layout)
    out, passed, gradient, above = run(RoundTensor, x, step, low, high)
    other, theirs = x.clone().requires_grad_(), step.clone().requires_grad_()
    factor = 1 / np.sqrt(60 * high)
    rounded = torch._fake_quantize_learnable_per_tensor_affine(
        other, theirs, torch.tensor([float(-low)]), 0, high - low, factor
    )
    rounded.backward(above)
    torch.testing.assert_close(out, rounded.detach())
    torch.testing.assert_close(passed, other.grad)
    torch.testing.assert_close(gradient, theirs.grad, rtol=1e-4, atol=1e-5)


def test_a_slice_of_a_larger_tensor_is_rounded_by_its_own_values() -> None:
    step, whole = torch.tensor([0.01]), draw(4, 6)
    part, alone = whole[1:3, ::2], whole[1:3, ::2].clone()
    for got, want in zip(run(RoundTensor, part, step, 0, 255), run(RoundTensor, alone, step, 0, 255), strict=True):
        torch.testing.assert_close(got, want)


def test_a_range_that_holds_everything_passes_every_gradient() -> None:
    x = draw(4, 5).requires_grad_()
    out = RoundPassing.apply(x, 0.1, -100, 100)
    out.sum().backward()
    assert torch.equal(x.grad, torch.ones(4, 5))
    torch.testing.assert_close(out, torch.fake_quantize_per_tensor_affine(x, 0.1, 0, -100, 100))


@pytest.mark.parametrize("form", ["binary", "ternary"])
def test_signs_are_those_that_the_file_will_hold(form) -> None:
    weight = draw(4, 3, 3, 3)
    np.testing.assert_allclose(
        SignWeight.apply(weight, form).numpy(), binarize_weight(weight.numpy(), form, axis=0).array, rtol=1e-6
    )


@pytest.mark.parametrize("form", ["binary", "ternary"])
def test_signs_learn_by_the_derivative_of_their_scale_and_a_clipped_identity(form) -> None:
    weight = draw(3, 40).requires_grad_()
    above = draw(3, 40, seed=1)
    SignWeight.apply(weight, form).backward(above)
    for row, gradient, got in zip(weight.detach(), above, weight.grad, strict=True):
        stays = torch.ones(40) if form == "binary" else (row.abs() > 0.7 * row.abs().mean()).float()
        scale = (row.abs() * stays).sum() / stays.sum()
        through_scale = torch.autograd.functional.jacobian(
            lambda w, s=stays: (w.abs() * s).sum() / s.sum() * (torch.sign(w) * s).detach(), row
        )
        expected = gradient @ through_scale + gradient * (row.abs() <= SIGN_CLIP * scale)
        torch.testing.assert_close(got, expected)


def test_signs_of_activations_learn_within_one_deviation_of_their_middle() -> None:
    """Of a normal distribution around 5: mean distance sqrt(2 / π)."""
    distance = np.sqrt(2 / np.pi)
    x = torch.tensor([[3.9, 4.1, 5.0, 5.9, 6.1]], requires_grad=True)
    out = SignInput.apply(x, 5 - distance, 5 + distance)
    out.sum().backward()
    low, high = pytest.approx(5 - distance), pytest.approx(5 + distance)
    assert out.tolist() == [[low, low, high, high, high]]
    assert x.grad.tolist() == [[0.0, 1.0, 1.0, 1.0, 0.0]]


def test_a_shared_value_learns_from_the_sum_of_its_members() -> None:
    index = torch.tensor([[0, 2, 2], [1, 0, 2]])
    codebooks = [torch.tensor([1.0, 2.0, 3.0, 9.0], requires_grad=True) for _ in range(2)]
    above = draw(2, 3)
    TakeValues.apply(codebooks[0], index).backward(above)
    codebooks[1][index].backward(above)
    torch.testing.assert_close(codebooks[0].grad, codebooks[1].grad)


@settings(max_examples=30, deadline=None)
@given(
    n_outputs=st.integers(1, 4), n_inputs=st.integers(1, 70), bits=st.sampled_from([4, 8]), seed=st.integers(0, 2**32)
)
def test_blocks_are_rounded_as_the_file_will_hold_them(n_outputs, n_inputs, bits, seed) -> None:
    weight = draw(n_outputs, n_inputs, seed=seed)
    stored = quantize_blocks(weight.numpy().T, bits=bits, block_size=32)
    codes = stored.codes.astype(np.int64)
    if bits == 4:
        codes = np.stack([codes & 15, codes >> 4], -1).reshape(n_outputs, -1, 32)
    scales = stored.scales.reshape(n_outputs, -1, 1)
    expected = ((codes - (1 << (bits - 1))) * scales).reshape(n_outputs, -1)[:, :n_inputs]
    rounded = RoundBlocks.apply(weight, bits, 32)
    assert np.array_equal(rounded.numpy(), expected.astype(np.float32))
    assert torch.equal(RoundBlocks.apply(rounded, bits, 32), rounded)

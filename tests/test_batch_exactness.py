"""How far the kernel's arithmetic is from the formula: the bounds and figures of docs/batch.md."""

import torch

CPU = torch.device("cpu")
MEANS_AND_STDS = (
    (0.485, 0.229),
    (0.456, 0.224),
    (0.406, 0.225),
    (0.5, 0.25),
    (0.0, 1.0),
    (0.1307, 0.3081),
    (0.9, 0.05),
    (1.0, 0.5),
)


def largest_error(shares):
    """Return it over all pairs of bytes, in 2^-24 of the largest normalised value."""
    own = torch.arange(256.0, device=CPU).repeat_interleave(256)
    other = torch.arange(256.0, device=CPU).repeat(256)
    worst = 0.0
    for mean, std in MEANS_AND_STDS:
        shift = torch.tensor(255 * mean, device=CPU)
        scale = torch.tensor(1 / (255 * std), device=CPU)
        for share in shares:
            found = (other + share * (own - other) - shift) * scale
            exact_blend = other.double() + share.double() * (own.double() - other.double())
            exact = (exact_blend / 255 - mean) / std
            largest = max(abs(mean), abs(1 - mean)) / std
            worst = max(worst, ((found - exact).abs().max() / largest).item() * 2**24)
    return worst


def test_without_a_blend_errors_stay_below_2_to_the_minus_22():
    found = largest_error(torch.ones(1, device=CPU))
    assert found <= 4
    assert round(found, 1) == 1.6


def test_with_a_blend_errors_stay_below_2_to_the_minus_21():
    found = largest_error(torch.linspace(0.005, 0.995, 100, device=CPU))
    assert found <= 8
    assert round(found, 1) == 3.1

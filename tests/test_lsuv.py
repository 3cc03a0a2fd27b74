"""LSUV: unit variance measured by hooks of the test, and nothing else changed."""

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import prune

from fusedtricks.nn.lsuv import LSUVLayer, lsuv_
from tests.devices import DEVICE
from tests.lsuv_nets import Net, measure, scramble


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("target_std", [1.0, 0.25])
def test_every_layer_has_the_wanted_deviation(training, target_std):
    model = scramble(Net()).train(training)
    batch = 5 * torch.randn(17, 3, 7, 9) + 2
    torch.manual_seed(5)
    # Dropout draws as it will below, because the orthonormal weights come from elsewhere.
    record = lsuv_(
        model,
        batch,
        target_std=target_std,
        tolerance=0.02,
        max_iterations=4,
        generator=torch.Generator().manual_seed(6),
    )
    stds = measure(model, batch)
    assert [layer.name for layer in record.layers] == ["first", "second", "head"] == list(stds)
    for layer in record.layers:
        variance = (stds[layer.name] / target_std) ** 2
        assert variance == pytest.approx(1, abs=0.02)
        assert layer.std_after == pytest.approx(stds[layer.name], rel=1e-4)
        assert layer.n_iterations in (0, 1)
    assert record.layers[0].n_iterations == 1 and record.layers[0].std_before > 3
    assert record.left == {"unused": "not run"}


def test_weights_are_orthonormal_up_to_a_factor_and_biases_zero():
    model = scramble(Net())
    record = lsuv_(model, torch.randn(17, 3, 7, 9), tolerance=0.02, max_iterations=4)
    for layer in record.layers:
        module = model.get_submodule(layer.name)
        matrix = module.weight.detach().double().flatten(1)
        values = torch.linalg.svdvals(matrix)
        factor = layer.std_after / layer.std_before
        torch.testing.assert_close(values, torch.full_like(values, factor), rtol=1e-4, atol=1e-4)
        assert module.bias is None or (module.bias == 0).all()


def test_a_layer_within_the_tolerance_is_not_scaled():
    model = nn.Linear(4, 4, bias=False)
    # An orthonormal matrix keeps the variance, here 1.1^2 = 1.21.
    batch = torch.tensor([[1.1, 1.1, 1.1, 1.1], [-1.1, -1.1, -1.1, -1.1]])
    (layer,) = lsuv_(model, batch, tolerance=0.22, max_iterations=3).layers
    assert (layer.name, layer.n_iterations) == ("", 0)
    assert layer.std_before == layer.std_after == pytest.approx(1.1)
    (layer,) = lsuv_(model, batch, tolerance=0.2, max_iterations=3).layers
    assert layer.n_iterations == 1 and layer.std_after == pytest.approx(1)


def test_iterations_end():
    class Stubborn(nn.Linear):
        """Puts out half of what a linear layer would move to, so that one division is too few."""

        def forward(self, features: Tensor) -> Tensor:
            product = super().forward(features)
            return product.sign() * product.abs().sqrt()

    batch = 100 * torch.randn(50, 6)
    start = copy.deepcopy(model := Stubborn(6, 5, bias=False))
    options = {"tolerance": 1e-3, "generator": torch.Generator()}
    stds = []
    for max_iterations in (1, 2, 3, 40):
        options["generator"].manual_seed(3)
        model.load_state_dict(start.state_dict())
        (layer,) = lsuv_(model, batch, max_iterations=max_iterations, **options).layers
        if max_iterations < 40:
            assert layer.n_iterations == max_iterations
        stds.append(layer.std_after)
    # Each iteration takes the square root of the deviation.
    assert stds[1] == pytest.approx(stds[0] ** 0.5, rel=1e-3)
    assert stds[2] == pytest.approx(stds[1] ** 0.5, rel=1e-3)
    assert 3 < layer.n_iterations < 40 and stds[3] == pytest.approx(1, abs=1e-3)


def random_states() -> list[Tensor]:
    of_device = [torch.cuda.get_rng_state()] if DEVICE.type == "cuda" else []
    return [torch.get_rng_state(), *of_device]


def test_nothing_else_changes():
    model = scramble(Net())
    model(torch.randn(5, 3, 7, 9)).sum().backward()
    model.dropout.eval()
    model.first.bias.requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    grads = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    buffers = dict(model.named_buffers())
    modes = [module.training for module in model.modules()]
    flags = [p.requires_grad for p in model.parameters()]
    batch = torch.randn(17, 3, 7, 9)
    states = random_states()
    lsuv_(model, batch, generator=torch.Generator())
    model.dropout.train()
    lsuv_(model, batch, generator=torch.Generator())
    model.dropout.eval()
    assert all(map(torch.equal, random_states(), states))
    assert [module.training for module in model.modules()] == modes
    assert [p.requires_grad for p in model.parameters()] == flags
    assert all(torch.equal(p.grad, grads[n]) for n, p in model.named_parameters() if n in grads)
    assert all(model.get_buffer(name) is buffer for name, buffer in buffers.items())
    assert not any(module._forward_hooks for module in model.modules())
    changed = {n for n, value in model.state_dict().items() if not torch.equal(value, before[n])}
    assert changed == {"first.weight", "first.bias", "second.weight", "head.weight", "head.bias"}


def test_orthonormal_weights_come_from_torch_s_generator_without_one():
    models = [Net() for _ in range(3)]
    for seed, model in zip((1, 1, 2), models, strict=True):
        torch.manual_seed(seed)
        lsuv_(model.eval(), torch.ones(2, 3, 7, 9).cumsum(3))
    weights = [model.second.weight for model in models]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_a_generator_alone_decides():
    models = [Net().eval() for _ in range(2)]
    for seed, model in enumerate(models):
        torch.manual_seed(seed)
        lsuv_(model, torch.ones(2, 3, 7, 9).cumsum(3), generator=torch.Generator().manual_seed(4))
    for name in ("first", "second", "head"):
        one, other = (model.get_submodule(name).weight for model in models)
        assert torch.equal(one, other)


def test_buffers_that_the_model_replaces_come_back():
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 3)
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, features: Tensor) -> Tensor:
            self.calls = self.calls + 1
            return self.layer(features)

    model = Counting()
    calls = model.calls
    lsuv_(model, torch.randn(9, 3))
    assert model.calls is calls and calls.item() == 0


def test_bad_arguments_change_nothing():
    model = Net()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    batch = torch.randn(17, 3, 7, 9)
    for name, value in (("target_std", 0.0), ("target_std", float("inf")), ("tolerance", -1.0)):
        with pytest.raises(ValueError, match=f"lsuv_: expected {name} .* above 0, got {value}"):
            lsuv_(model, batch, **{name: value})
    with pytest.raises(ValueError, match="max_iterations of at least 1, got 0"):
        lsuv_(model, batch, max_iterations=0)
    with pytest.raises(TypeError, match=r"max_iterations to be a whole number, got 1\.5"):
        lsuv_(model, batch, max_iterations=1.5)
    for name in ("target_std", "tolerance", "max_iterations"):
        for value in ("a", True):
            with pytest.raises(
                TypeError, match=f"lsuv_: expected {name} to be a .*, got {value!r}"
            ):
                lsuv_(model, batch, **{name: value})
    with pytest.raises(TypeError, match="lsuv_: expected model to be a Module, got list"):
        lsuv_([model], batch)
    with pytest.raises(TypeError, match=r"a tuple of tensors, got a list; .* batch\[0\]"):
        lsuv_(model, [batch, torch.zeros(17)])
    with pytest.raises(ValueError, match=r"outputs of first that vary .* deviation of 0.0; use a"):
        lsuv_(model, torch.zeros(2, 3, 7, 9))
    with pytest.raises(ValueError, match="deviation of nan"):
        lsuv_(model, torch.empty(0, 3, 7, 9))
    # Fails in the second layer, when the first one is done.
    with pytest.raises(ValueError, match=r"outputs of second .* deviation of nan"):
        model.first.register_forward_hook(lambda *_: torch.full((2, 7, 7, 9), float("inf")))
        lsuv_(model, batch)
    model.first._forward_hooks.clear()
    with pytest.raises(RuntimeError, match="channels"):
        lsuv_(model, torch.randn(17, 4, 7, 9))
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("own", [False, True])
def test_an_error_puts_the_random_state_back(own):
    model = Net()
    generator = torch.Generator()
    states = [*random_states(), generator.get_state()]
    with pytest.raises(ValueError, match="use a larger batch"):
        lsuv_(model, torch.zeros(2, 3, 7, 9), generator=generator if own else None)
    assert all(map(torch.equal, [*random_states(), generator.get_state()], states))


def test_success_moves_the_random_state_on():
    model, batch = Net(), torch.randn(17, 3, 7, 9)
    state = random_states()[-1]
    lsuv_(model, batch)
    assert not torch.equal(random_states()[-1], state)


def test_weights_that_cannot_be_set_are_refused():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    before = copy.deepcopy(model[0].weight)
    torch.nn.utils.parametrizations.weight_norm(model[1])
    with pytest.raises(ValueError, match="the weight of 1 to be a parameter, it is computed from"):
        lsuv_(model, torch.randn(5, 3))
    # Reading such a weight would count as a step of the power iteration.
    torch.nn.utils.parametrizations.spectral_norm(normed := nn.Linear(3, 3))
    norms = copy.deepcopy(normed.state_dict())
    with pytest.raises(ValueError, match="the weight of the model to be a parameter"):
        lsuv_(normed, torch.randn(5, 3))
    assert all(torch.equal(value, norms[name]) for name, value in normed.state_dict().items())
    prune.l1_unstructured(pruned := nn.Linear(3, 3), "bias", amount=1)
    with pytest.raises(ValueError, match="the bias of the model to be a parameter"):
        lsuv_(pruned, torch.randn(5, 3))
    with pytest.raises(ValueError, match="1 has no shape yet; run the model once before"):
        lsuv_(nn.Sequential(model[0], nn.LazyLinear(3)), torch.randn(5, 3))
    assert torch.equal(model[0].weight, before)


def test_numbers_of_numpy_count_as_numbers():
    records = []
    for real, whole in ((float, int), (np.float32, np.int64)):
        model = nn.Linear(3, 3)
        options = {"target_std": real(0.5), "tolerance": real(0.25), "max_iterations": whole(2)}
        generator = torch.Generator().manual_seed(1)
        batch = torch.linspace(-5, 5, 21).view(7, 3)
        records.append(lsuv_(model, batch, **options, generator=generator))
    assert records[1].layers[0].std_after == pytest.approx(records[0].layers[0].std_after)


def test_ddp_is_refused():
    import torch.distributed as distributed

    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        model = DistributedDataParallel(nn.Linear(3, 3, device="cpu"))
        with pytest.raises(ValueError, match=r"without DistributedDataParallel.* before wrap"):
            lsuv_(model, torch.randn(5, 3))
    finally:
        distributed.destroy_process_group()


def test_the_record_is_plain_data():
    record = lsuv_(nn.Sequential(nn.Linear(3, 3)), torch.randn(50, 3))
    (layer,) = record.layers
    assert isinstance(layer, LSUVLayer) and isinstance(layer.std_before, float)
    assert copy.deepcopy(record) == record

from collections.abc import Iterator
from copy import deepcopy
from functools import cache

import numpy as np
import onnxruntime
import openvino
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from trimtab.compressors.pruning.cuts import clone_module, keep_units
from trimtab.compressors.pruning.importance import score_units
from trimtab.compressors.pruning.prune import count_kept, prune_module, prune_structures
from trimtab.compressors.pruning.structures import FoundStructures, find_structures
from trimtab.compressors.source import load_source
from trimtab.compressors.testing import small_transformer
from trimtab.compressors.testing_models import TEST_MODELS, build_test_model
from trimtab.core.errors import PolicyError
from trimtab.experiments.resnet import ResNet
from trimtab.spaces.layer import Structure
from trimtab.spaces.treatment import IMPORTANCES, Treatment

HALF = Treatment(keep_channels=0.5)
#: a group norm sees all channels: one that is zero still counts in its mean
SEES_ALL = {"channels:grow"}


@cache
def resnet() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = ResNet(1).eval()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.5, 1.5)
    model.example_inputs = {"x": torch.randn(2, 1, 28, 28, generator=torch.Generator().manual_seed(0))}
    return model


def prune(model: nn.Module, choices: dict[str, Treatment], **how: object) -> nn.Module:
    return prune_module(model, model.example_inputs, choices, **how)


def run(model: nn.Module) -> torch.Tensor:
    with torch.inference_mode():
        return model(**model.example_inputs)


@cache
def shared(name: str) -> nn.Module:
    """A model that no test changes: what can be pruned is sought once."""
    return small_transformer() if name == "transformer" else build_test_model(name)


def found_in(name: str) -> FoundStructures:
    return find_structures(shared(name), shared(name).example_inputs)


def all_at_once(model: nn.Module, *, with_blocks: bool) -> dict[str, Treatment]:
    found = find_structures(model, model.example_inputs).structures
    choices = {s.name: Treatment(keep_channels=0.0) if s.kind == "block" else HALF for s in found}
    return {name: choice for name, choice in choices.items() if with_blocks or not name.startswith("block:")}


# what a unit is, written down without the code under test: channels of grouped convolutions go by their places in the
# groups, heads by their rows


def channels_of(structure: Structure, n_channels: int, unit: int) -> list[int]:
    width = n_channels // structure.n_units
    if structure.kind == "heads":
        return list(range(unit * width, (unit + 1) * width))
    return list(range(unit, n_channels, structure.n_units))


def norm_after(model: nn.Module, path: str) -> nn.Module | None:
    modules = list(model.named_modules())
    position = [name for name, _ in modules].index(path)
    following = modules[position + 1][1] if position + 1 < len(modules) else None
    return following if isinstance(following, nn.BatchNorm2d) else None


@torch.no_grad()
def empty_units(model: nn.Module, structure: Structure, units: list[int]) -> None:
    """Makes what the layers put out for these units zero, and everything else that they put out large."""
    for path in structure.layers[: structure.n_producers]:
        layer, norm = model.get_submodule(path), norm_after(model, path)
        weight = layer.weight if not getattr(layer, "transposed", False) else layer.weight.transpose(0, 1)
        gone = [c for unit in units for c in channels_of(structure, len(weight), unit)]
        weight *= 4.0
        for tensor in (weight, layer.bias, *((norm.weight, norm.bias) if norm is not None else ())):
            if tensor is not None:
                tensor[gone] = 0.0
    if "point.0" in structure.name:
        model.places[..., units] = 0.0


@pytest.mark.parametrize("name", TEST_MODELS)
def test_units_that_put_out_nothing_go_without_a_trace(name: str) -> None:
    found = found_in(name)
    for structure in found.structures:
        if structure.kind == "block" or structure.name in SEES_ALL:
            continue
        model = build_test_model(name)
        n_gone = structure.n_units - round(0.5 * structure.n_units)
        empty_units(model, structure, list(range(structure.n_units))[1 : 1 + n_gone])
        want, got = run(model), run(prune_structures(model, found, {structure.name: HALF}))
        assert (got - want).abs().max() <= 1e-5 * want.abs().max(), structure


@pytest.mark.parametrize("name", TEST_MODELS)
def test_units_that_put_out_nothing_go_from_all_structures_at_once(name: str) -> None:
    model, rng, kept = build_test_model(name), np.random.default_rng(0), []
    for coupling in found_in(name).couplings:
        structure = coupling.structure
        order = rng.permutation(structure.n_units)
        if structure.name not in SEES_ALL:
            empty_units(model, structure, sorted(order[1 : 1 + structure.n_units // 2].tolist()))
            kept.append((coupling, np.setdiff1d(order, order[1 : 1 + structure.n_units // 2])))
    want, smaller = run(model), clone_module(model)
    keep_units(smaller, kept)
    assert (run(smaller) - want).abs().max() <= 1e-5 * want.abs().max()
    assert sum(p.numel() for p in smaller.parameters()) < 0.5 * sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("with_blocks", [False, True])
@pytest.mark.parametrize("name", ["mixed", "dense", "plain", "mobile", "transformer"])
def test_a_pruned_model_runs_in_both_runtimes_as_in_torch(name: str, with_blocks: bool) -> None:
    model = shared(name)
    pruned = prune(model, all_at_once(model, with_blocks=with_blocks))
    want = run(pruned).numpy()
    content = load_source(pruned).onnx_bytes
    feed = {key: tensor.numpy() for key, tensor in model.example_inputs.items()}
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(content), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    for got in (session.run(None, feed)[0], next(iter(compiled(feed).values()))):
        assert np.abs(got - want).max() <= 1e-3 * np.abs(want).max()


def test_the_weights_that_stay_are_those_of_the_largest_squares() -> None:
    model = resnet()
    conv1, bn1, conv2 = model.layer2[0].conv1, model.layer2[0].bn1, model.layer2[0].conv2
    with torch.no_grad():
        squares = conv1.weight.square().sum((1, 2, 3)) + bn1.weight.square() + conv2.weight.square().sum((0, 2, 3))
    inner = squares.topk(12).indices.sort().values
    stage = model.conv1.weight.square().sum((1, 2, 3)) + model.bn1.weight.square()
    stage = stage + model.layer1[0].conv2.weight.square().sum((1, 2, 3)) + model.layer1[0].bn2.weight.square()
    for reader in (model.layer1[0].conv1, conv1, model.layer2[0].downsample[0]):
        stage = stage + reader.weight.square().sum((0, 2, 3))
    outer = stage.topk(8).indices.sort().values
    pruned = prune(model, {"channels:layer2.0.conv1": Treatment(keep_channels=12 / 32), "channels:conv1": HALF})
    block = pruned.layer2[0]
    assert torch.equal(block.conv1.weight, conv1.weight[inner][:, outer])
    assert torch.equal(block.conv2.weight, conv2.weight[:, inner])
    for tensor in ("weight", "bias", "running_mean", "running_var"):
        assert torch.equal(getattr(block.bn1, tensor), getattr(bn1, tensor)[inner])
        assert torch.equal(getattr(pruned.bn1, tensor), getattr(model.bn1, tensor)[outer])
    assert torch.equal(pruned.conv1.weight, model.conv1.weight[outer])
    assert torch.equal(block.downsample[0].weight, model.layer2[0].downsample[0].weight[:, outer])


def test_the_residual_width_of_a_transformer_goes_everywhere() -> None:
    model = small_transformer()
    n = 32
    squares = torch.zeros(n)
    with torch.no_grad():
        for layer in (model.out, model.down, model.twice):  # embeddings do not vote
            squares += layer.weight.square().sum(1)
        for layer in (model.query, model.key, model.value, model.up, model.head, model.twice):
            squares += layer.weight.square().sum(0)
        for norm in (model.norm, model.norm2):
            squares += norm.weight.square()
    kept = squares.topk(n // 2).indices.sort().values
    by_hand = deepcopy(model)
    for name in ("tokens", "places"):
        setattr(by_hand, name, nn.Embedding.from_pretrained(getattr(model, name).weight[:, kept]))
    for name in ("norm", "norm2"):
        norm = nn.LayerNorm(n // 2)
        norm.weight, norm.bias = (nn.Parameter(tensor[kept]) for tensor in getattr(model, name).parameters())
        setattr(by_hand, name, norm)
    for name in ("query", "key", "value", "up", "head"):
        getattr(by_hand, name).weight = nn.Parameter(getattr(model, name).weight[:, kept])
    for name in ("out", "down"):
        getattr(by_hand, name).weight = nn.Parameter(getattr(model, name).weight[kept])
        getattr(by_hand, name).bias = nn.Parameter(getattr(model, name).bias[kept])
    by_hand.twice.weight = nn.Parameter(model.twice.weight[kept][:, kept])
    torch.testing.assert_close(run(prune(model, {"channels:tokens": HALF})), run(by_hand))


def test_a_resnet_of_half_the_width_has_the_parameters_that_paper_and_pencil_say() -> None:
    def count(w: list[int], inner: list[int]) -> int:
        total = 9 * w[0] + 2 * w[0]  # the first convolution sees one channel; a batch norm has two parameters a channel
        for before, after, n in zip([w[0], w[0], w[1]], w, inner, strict=True):
            total += 9 * before * n + 2 * n + 9 * n * after + 2 * after
            total += before * after + 2 * after if before != after else 0
        return total + w[2] * 10 + 10

    model = resnet()
    assert sum(p.numel() for p in model.parameters()) == count([16, 32, 64], [16, 32, 64])
    shares = {
        "channels:conv1": 0.5, "channels:layer2.0.conv2": 0.75, "channels:layer3.0.conv2": 0.25,
        "channels:layer1.0.conv1": 0.25, "channels:layer2.0.conv1": 0.5, "channels:layer3.0.conv1": 0.125,
    }  # fmt: skip
    pruned = prune(model, {name: Treatment(keep_channels=share) for name, share in shares.items()})
    assert sum(p.numel() for p in pruned.parameters()) == count([8, 24, 16], [4, 16, 8])


def losses_of(model: nn.Module) -> Iterator[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    for _ in range(3):
        x = torch.randn(4, *model.example_inputs["x"].shape[1:], generator=generator)
        yield nn.functional.cross_entropy(model(x), torch.arange(4) % 3)


def gradients_of(model: nn.Module) -> list[dict[str, torch.Tensor]]:
    copy = deepcopy(model)
    found = []
    for loss in losses_of(copy):
        copy.zero_grad()
        loss.backward()
        found.append({name: p.grad.clone() for name, p in copy.named_parameters()})
    return found


def brute_force(model: nn.Module, structure: Structure, norms: list[str], criterion: str) -> np.ndarray:
    """Scores by loops over the layers of a structure, with nothing but torch; depthwise convolutions have no vote."""
    gradients = gradients_of(model) if criterion in ("taylor", "fisher") else []
    voters = [path for path in structure.layers if "depthwise" not in path]
    producers = [path for path in structure.layers[: structure.n_producers] if path in voters]
    chosen = {"bn_scale": norms, "geometric_median": producers, "taylor": voters}.get(criterion, voters + norms)
    parts = []
    for path in chosen:
        weight = model.get_submodule(path).weight.detach()
        g = [gradient[f"{path}.weight"] for gradient in gradients]
        if path in voters and path not in producers:  # what it reads
            weight, g = weight.transpose(0, 1), [x.transpose(0, 1) for x in g]
        rows, g = weight.reshape(len(weight), -1), [x.reshape(len(weight), -1) for x in g]
        scores = {
            "magnitude": lambda rows=rows: (rows * rows).sum(1),
            "bn_scale": lambda rows=rows: rows.abs().sum(1),
            "geometric_median": lambda rows=rows: torch.stack(
                [(rows - row).square().sum(1).sqrt().sum() for row in rows]
            ),
            "taylor": lambda rows=rows, g=g: (rows * sum(g) / 3).abs().sum(1),
            "fisher": lambda rows=rows, g=g: (rows.square() * sum(x.square() for x in g) / 3).sum(1),
        }[criterion]()
        parts.append([scores[channels_of(structure, len(rows), u)].sum().item() for u in range(structure.n_units)])
    return np.array(parts).mean(0)


#: structure → its batch norms
CASES = {
    "channels:stem.0": ["stem.1", "blocks.0.norm", "blocks.1.norm"],
    "channels:grouped.0": ["grouped.1", "depthwise.1"],
    "heads:attention": [],
    "channels:up": [],
}


@pytest.mark.parametrize(
    ("name", "criterion"), [(n, c) for n in CASES for c in IMPORTANCES if c != "bn_scale" or CASES[n]]
)
def test_importance_is_what_loops_over_the_weights_give(name: str, criterion: str) -> None:
    model = build_test_model("mixed", seed=3)
    coupling = next(c for c in found_in("mixed").couplings if c.structure.name == name)
    (got,) = score_units(model, [(coupling, criterion)], losses=losses_of)
    np.testing.assert_allclose(got, brute_force(model, coupling.structure, CASES[name], criterion), rtol=1e-4)


def test_the_order_of_the_choices_and_other_choices_do_not_matter() -> None:
    model = shared("mixed")
    choices = all_at_once(model, with_blocks=False)
    pruned = prune(model, choices)
    turned = prune(model, dict(reversed(choices.items())))
    assert all(torch.equal(a, b) for a, b in zip(pruned.parameters(), turned.parameters(), strict=True))
    alone = prune(model, {"channels:up": HALF})
    assert torch.equal(alone.up.bias, pruned.up.bias)


def test_of_equal_units_the_first_stay_and_all_keep_their_order() -> None:
    model = build_test_model("plain")
    with torch.no_grad():
        for tensor in (model.classifier[0].weight, model.classifier[2].weight):
            tensor.fill_(0.1)
        model.classifier[0].weight[[3, 11]] = 0.2
        model.classifier[0].bias.copy_(torch.arange(14.0))
    pruned = prune(model, {"channels:classifier.0": Treatment(keep_channels=4 / 14)})
    assert pruned.classifier[0].bias.tolist() == [0.0, 1.0, 3.0, 11.0]


def test_the_original_stays_as_it_was_and_shares_nothing_with_what_was_made_of_it() -> None:
    model = build_test_model("mixed")
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    pruned = prune(model, all_at_once(model, with_blocks=True), losses=losses_of)
    with torch.no_grad():
        for tensor in (*pruned.parameters(), *pruned.buffers()):
            tensor.fill_(7)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_modes_frozen_parameters_shared_weights_and_example_inputs_stay() -> None:
    model = build_test_model("mixed").train()
    model.blocks.eval()
    for parameter in (model.stem[0].weight, model.up.bias):
        parameter.requires_grad_(False)
    pruned = prune(model, all_at_once(model, with_blocks=False))
    assert [m.training for m in pruned.modules()] == [m.training for m in model.modules()]
    frozen = [name for name, p in pruned.named_parameters() if not p.requires_grad]
    assert frozen == ["stem.0.weight", "up.bias"]
    assert pruned.tied[0].weight is pruned.tied[1].weight
    assert pruned.tied[0].weight.shape == (8, 8)
    assert pruned.attention.n_heads == 2
    assert torch.equal(pruned.example_inputs["x"], model.example_inputs["x"])


def test_nothing_chosen_gives_an_equal_copy() -> None:
    model = shared("mixed")
    for choices in ({}, {"channels:up": Treatment()}):
        copy = prune(model, choices)
        assert copy is not model
        assert torch.equal(run(copy), run(model))
        assert not {id(p) for p in copy.parameters()} & {id(p) for p in model.parameters()}


def test_structures_found_once_serve_retrained_weights() -> None:
    model, retrained = shared("mixed"), build_test_model("mixed", seed=9)
    choices = all_at_once(model, with_blocks=True)
    again = prune_structures(retrained, find_structures(model, model.example_inputs), choices)
    assert torch.equal(run(again), run(prune(retrained, choices)))


def test_channel_counts_come_in_multiples_and_heads_bring_theirs_with_them() -> None:
    model = shared("mixed")
    choices = all_at_once(model, with_blocks=False)
    pruned = prune(model, choices, multiple=8)
    assert pruned.point[0].out_channels == 8
    assert pruned.stem[0].out_channels == 8  # 12 is a multiple of 4 only, and 6 is as near to 4 as to 8
    assert pruned.grouped[0].out_channels == 16  # 24, of which 4 go together: 8, 16 and 24 are multiples
    assert pruned.attention.query.out_features == 24  # heads of 6: only all 4 make a multiple of 8
    assert prune(model, choices, multiple=4).attention.query.out_features == 12


@given(st.integers(1, 200), st.floats(0.01, 1.0), st.integers(1, 64))
def test_the_number_that_stays_is_the_nearest_that_the_multiple_allows(n: int, keep: float, multiple: int) -> None:
    got = count_kept(n, keep, multiple=multiple)
    powers = [2**i for i in range(7) if 2**i <= multiple and n % 2**i == 0]
    step = multiple if n % multiple == 0 else max(powers)
    allowed = range(step, n + 1, step)
    assert got in allowed
    assert abs(got - keep * n) <= min(abs(other - keep * n) for other in allowed) + 1e-9


@pytest.mark.parametrize(
    ("name", "choice", "message"),
    [
        (
            "channels:stem",
            HALF,
            "unknown structure 'channels:stem'; did you mean 'channels:stem.0'.*known: block:blocks",
        ),
        ("channels:fc", HALF, "channels:fc cannot be pruned: the model's output would have another shape"),
        ("channels:up", Treatment(keep_channels=0.0), "channels:up cannot lose all its 20 units"),
        ("heads:attention", Treatment(keep_channels=0.0), "heads:attention cannot lose all its 4 units"),
        ("channels:up", Treatment(keep_channels=0.5, importance="taylor"), "importance taylor needs training data"),
        ("channels:up", Treatment(keep_channels=0.5, importance="fisher"), "importance fisher needs training data"),
        (
            "channels:up",
            Treatment(keep_channels=0.5, importance="bn_scale"),
            "needs a batch norm.*channels:up has none",
        ),
    ],
)
def test_what_cannot_be_pruned_is_refused_with_the_reason(name: str, choice: Treatment, message: str) -> None:
    with pytest.raises(PolicyError, match=message):
        prune(shared("mixed"), {name: choice})


def test_losses_that_yield_nothing_or_nan_are_refused() -> None:
    model = shared("mixed")
    choices = {"channels:up": Treatment(keep_channels=0.5, importance="taylor")}
    with pytest.raises(PolicyError, match="the losses yield none"):
        prune(model, choices, losses=lambda _: [])
    with pytest.raises(PolicyError, match="is not finite"):
        prune(model, choices, losses=lambda copy: [copy(**copy.example_inputs).sum() * float("nan")])

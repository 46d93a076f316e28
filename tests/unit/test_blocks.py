from typing import Any

import pytest
import torch
from torch import nn
from trimtab.compressors.pruning.blocks import PassThrough
from trimtab.compressors.pruning.prune import prune_module
from trimtab.compressors.pruning.structures import FoundStructures, find_structures
from trimtab.compressors.testing_models import ConvNorm, Residual, build_test_model
from trimtab.core.errors import PolicyError
from trimtab.experiments.resnet import ResNet
from trimtab.spaces.treatment import Treatment

GONE = Treatment(keep_channels=0.0)


def build(make: Any) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make().eval()


def blocks_of(found: FoundStructures) -> list[str]:
    return [structure.name for structure in found.structures if structure.kind == "block"]


def run(model: nn.Module, **inputs: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return model(**inputs)


def test_a_resnet_without_two_blocks_is_the_shorter_resnet() -> None:
    model = build(lambda: ResNet(3))
    inputs = {"x": torch.randn(2, 1, 28, 28)}
    names = ("block:layer1.1", "block:layer2.2", "block:layer3.1")
    pruned = prune_module(model, inputs, dict.fromkeys(names, GONE))
    shorter = ResNet(2).eval()
    state = model.state_dict()
    moved = {"layer1.1": "layer1.2", "layer2.1": "layer2.1", "layer3.1": "layer3.2"}  # what stays where the second was
    shorter.load_state_dict({key: state[moved.get(key[:8], key[:8]) + key[8:]] for key in shorter.state_dict()})
    torch.testing.assert_close(run(pruned, **inputs), run(shorter, **inputs))
    assert sum(p.numel() for p in pruned.parameters()) == sum(p.numel() for p in shorter.parameters())


def test_a_block_names_all_its_layers_and_none_is_left_over() -> None:
    structure = find_structures(build(lambda: ResNet(2)), {"x": torch.randn(1, 1, 28, 28)}).structures[-1]
    assert (structure.name, structure.layers, structure.n_producers, structure.n_units) == (
        "block:layer3.1", ("layer3.1.conv1", "layer3.1.conv2"), 2, 1
    )  # fmt: skip


class Members(nn.Module):
    """Members of a Sequential, some of which add to what they get."""

    def __init__(self) -> None:
        super().__init__()
        self.members = nn.Sequential(
            ConvNorm(3, 8),  # another shape
            ConvNorm(8, 8),  # the same shape, nothing added
            Residual(8, 6),
            nn.Sequential(Residual(8, 4), Residual(8, 5)),  # the inner ones count
        )
        self.alone = Residual(8, 4)  # in no container
        self.fc = nn.Linear(8, 3)
        self.example_inputs = {"x": torch.randn(2, 3, 8, 8)}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.alone(self.members(x)).mean((2, 3)))


def test_only_members_that_add_to_their_input_are_blocks() -> None:
    found = find_structures(model := build(Members), model.example_inputs)
    assert blocks_of(found) == ["block:members.2", "block:members.3.0", "block:members.3.1"]


class Layer(nn.Module):
    """As in HuggingFace's transformers: more arguments, a tuple of one."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down, self.norm = nn.Linear(6, 10), nn.Linear(10, 6), nn.LayerNorm(6)

    def forward(self, hidden_states: torch.Tensor, mask: torch.Tensor | None = None) -> tuple[torch.Tensor]:
        return (self.norm(hidden_states + mask * self.down(torch.relu(self.up(hidden_states)))),)


class Encoder(nn.Module):
    """Calls its layers by position or by name."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.layer, self.fc = nn.Linear(4, 6), nn.ModuleList(Layer() for _ in range(3)), nn.Linear(6, 2)
        self.example_inputs = {"x": torch.randn(2, 5, 4), "mask": torch.rand(2, 5, 1)}

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        x = self.embed(x)
        x = self.layer[0](x, mask)[0]
        x = self.layer[1](hidden_states=x, mask=mask)[0]
        return self.fc(self.layer[2](x, mask=mask)[0])


@pytest.mark.parametrize("gone", [0, 1, 2])
def test_a_layer_with_a_mask_and_a_tuple_can_go(gone: int) -> None:
    model = build(Encoder)
    pruned = prune_module(model, model.example_inputs, {f"block:layer.{gone}": GONE})
    x = model.embed(model.example_inputs["x"])
    for i, layer in enumerate(model.layer):
        x = x if i == gone else layer(x, model.example_inputs["mask"])[0]
    torch.testing.assert_close(run(pruned, **model.example_inputs), model.fc(x))


class Asked(nn.Module):
    """The model's code asks its first layer something."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Residual(8, 4), Residual(8, 5)])
        self.layers[0].scale = 0.5
        self.stem, self.fc = ConvNorm(3, 8), nn.Linear(8, 3)
        self.example_inputs = {"x": torch.randn(2, 3, 8, 8)}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x) * self.layers[0].scale
        for layer in self.layers:
            x = layer(x)
        return self.fc(x.mean((2, 3)))


def test_a_block_that_the_model_cannot_do_without_is_left_out() -> None:
    found = find_structures(model := build(Asked), model.example_inputs)
    assert blocks_of(found) == ["block:layers.1"]
    assert "without it the model does not run: AttributeError" in dict(found.dropped)["block:layers.0"]


def test_what_goes_with_a_block_need_not_be_chosen() -> None:
    model = build_test_model("mixed")
    alone = prune_module(model, model.example_inputs, {"block:blocks.0": GONE})
    half = Treatment(keep_channels=0.5)
    inside = {"block:blocks.0": GONE, "channels:blocks.0.first.0": half}
    both = prune_module(model, model.example_inputs, inside)
    assert isinstance(alone.blocks[0], PassThrough)
    assert torch.equal(run(both, **model.example_inputs), run(alone, **model.example_inputs))


def test_a_block_cannot_go_by_half() -> None:
    model = build_test_model("mixed")
    with pytest.raises(PolicyError, match=r"goes or stays as a whole; keep 0 or 1 of it, got 0\.5"):
        prune_module(model, model.example_inputs, {"block:blocks.0": Treatment(keep_channels=0.5)})


def test_all_blocks_and_all_widths_go_together() -> None:
    model = build_test_model("mobile")
    found = find_structures(model, model.example_inputs)
    choices = {s.name: GONE if s.kind == "block" else Treatment(keep_channels=0.5) for s in found.structures}
    pruned = prune_module(model, model.example_inputs, choices)
    assert run(pruned, **model.example_inputs).shape == (2, 3)
    assert pruned.stem[0].out_channels == 4
    assert pruned.grow.weight.shape == (4, 4, 2, 2)  # of 5 pairs of channels, 2 stay: halves go to the even number

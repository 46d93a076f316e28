import pickle
import sys
from collections.abc import Callable, Mapping

import pytest
import torch
from torch import nn
from torch.nn import functional
from trimtab.compressors.pruning.prune import prune_module
from trimtab.compressors.pruning.structures import FoundStructures, describe_structures, find_structures
from trimtab.compressors.testing import small_transformer
from trimtab.compressors.testing_models import TEST_MODELS, Attention, ConvNorm, build_test_model
from trimtab.core.errors import SpecError
from trimtab.experiments import minilm
from trimtab.experiments.resnet import ResNet
from trimtab.spaces.treatment import Treatment


def build(make: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make().eval()


def find(model: nn.Module) -> FoundStructures:
    return find_structures(model, model.example_inputs)


def layers_of(found: FoundStructures) -> dict[str, tuple[tuple[str, ...], tuple[str, ...], int]]:
    """Name → (producers, readers, units)."""
    return {
        s.name: (s.layers[: s.n_producers], s.layers[s.n_producers :], s.n_units)
        for s in found.structures
        if s.kind != "block"
    }


def test_the_structures_of_a_resnet_are_its_stages_and_the_inside_of_its_blocks() -> None:
    model = build(lambda: ResNet(2))
    found = find_structures(model, {"x": torch.randn(2, 1, 28, 28)})
    inside = {
        f"channels:layer{stage}.{i}.conv1": ((f"layer{stage}.{i}.conv1",), (f"layer{stage}.{i}.conv2",), 8 * 2**stage)
        for stage in (1, 2, 3)
        for i in (0, 1)
    }
    across = {
        "channels:conv1": (
            ("conv1", "layer1.0.conv2", "layer1.1.conv2"),
            ("layer1.0.conv1", "layer1.1.conv1", "layer2.0.conv1", "layer2.0.downsample.0"), 16,
        ),
        "channels:layer2.0.conv2": (
            ("layer2.0.conv2", "layer2.0.downsample.0", "layer2.1.conv2"),
            ("layer2.1.conv1", "layer3.0.conv1", "layer3.0.downsample.0"), 32,
        ),
        "channels:layer3.0.conv2": (
            ("layer3.0.conv2", "layer3.0.downsample.0", "layer3.1.conv2"), ("layer3.1.conv1", "fc"), 64,
        ),
    }  # fmt: skip
    assert layers_of(found) == inside | across
    assert [s.name for s in found.structures if s.kind == "block"] == [
        "block:layer1.0", "block:layer1.1", "block:layer2.1", "block:layer3.1"
    ]  # fmt: skip
    assert dict(found.dropped) == {"channels:fc": "the model's output would have another shape"}


def test_every_coupling_of_a_mixed_model_is_found() -> None:
    residual = ("point.0", "twice", "attention.out", "tied.0", "tied.1", "down")
    assert layers_of(find(build_test_model("mixed"))) == {
        "channels:stem.0": (
            ("stem.0", "blocks.0.second", "blocks.1.second"),
            ("blocks.0.first.0", "blocks.1.first.0", "left.0", "right.0"), 12,
        ),
        "channels:blocks.0.first.0": (("blocks.0.first.0",), ("blocks.0.second",), 8),
        "channels:blocks.1.first.0": (("blocks.1.first.0",), ("blocks.1.second",), 10),
        "channels:left.0": (("left.0",), ("mix.0",), 6),
        "channels:right.0": (("right.0",), ("mix.0",), 10),
        "channels:mix.0": (("mix.0",), ("grouped.0",), 4),  # 16 channels in 4 groups
        "channels:grouped.0": (("grouped.0", "depthwise.0"), ("point.0",), 6),
        "channels:point.0": (residual, ("attention.query", "attention.key", "attention.value", "up", "fc"), 16),
        "heads:attention": (("attention.query", "attention.key", "attention.value"), ("attention.out",), 4),
        "channels:up": (("up",), ("down",), 20),
    }  # fmt: skip


def test_a_densely_connected_layer_is_read_by_all_that_follow() -> None:
    assert layers_of(find(build_test_model("dense"))) == {
        "channels:stem.0": (("stem.0",), ("dense.0.0", "dense.1.0", "dense.2.0", "squeeze.0"), 8),
        "channels:dense.0.0": (("dense.0.0",), ("dense.1.0", "dense.2.0", "squeeze.0"), 4),
        "channels:dense.1.0": (("dense.1.0",), ("dense.2.0", "squeeze.0"), 4),
        "channels:dense.2.0": (("dense.2.0",), ("squeeze.0",), 4),
        "channels:squeeze.0": (("squeeze.0",), ("last.0", "fc"), 10),
        "channels:last.0": (("last.0",), ("fc",), 6),
    }


@pytest.mark.parametrize("name", TEST_MODELS)
def test_every_layer_of_a_structure_is_a_module_with_a_weight(name: str) -> None:
    model = build_test_model(name)
    for structure in find(model).structures:
        assert structure.layers
        assert len(set(structure.layers)) == len(structure.layers)
        assert all(isinstance(model.get_submodule(path).weight, nn.Parameter) for path in structure.layers)


def test_finding_leaves_the_model_and_the_random_state_alone() -> None:
    model = build_test_model("mixed").train()
    model.fc.weight.requires_grad_(False)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    random = torch.get_rng_state()
    find(model)
    assert torch.equal(random, torch.get_rng_state())
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert all(module.training and not module._forward_hooks for module in model.modules())
    assert [p.requires_grad for p in model.parameters()].count(False) == 1
    assert all(p.grad is None for p in model.parameters())


def test_what_was_found_is_kept_with_the_model_until_its_shapes_change() -> None:
    model = build_test_model("plain")
    first = find(model)
    assert find(model) is first
    model.classifier[0] = nn.Linear(81, 12)
    model.classifier[2] = nn.Linear(12, 4)
    assert layers_of(find(model))["channels:classifier.0"][2] == 12


def test_what_was_found_survives_pickling() -> None:
    found = find(build_test_model("mixed"))
    assert pickle.loads(pickle.dumps(found)).structures == found.structures  # noqa: S301 - our own bytes


def test_each_structure_has_a_line_and_so_has_each_reason() -> None:
    found = find(build_test_model("mixed"))
    lines = list(describe_structures(found))
    assert len(lines) == len(found.structures) + len(found.dropped)
    assert "channels:up, 20 channels: up → down" in lines
    assert "channels:mix.0, 4 × 4 channels: mix.0 → grouped.0" in lines
    assert "heads:attention, 4 heads: attention.query, attention.key, attention.value → attention.out" in lines
    assert "block:blocks.0, whole: blocks.0.first.0, blocks.0.second" in lines
    assert "channels:fc: not on offer: the model's output would have another shape" in lines
    assert any(line.endswith("point.0, twice, attention.out, tied.0 … (6 layers) → attention.query, attention.key, "
                             "attention.value, up … (5 layers)") for line in lines)  # fmt: skip


class BertAttention(nn.Module):
    """Written as in HuggingFace's BertSelfAttention."""

    def __init__(self) -> None:
        super().__init__()
        self.num_attention_heads, self.attention_head_size, self.all_head_size = 4, 4, 16
        self.query, self.key, self.value = (nn.Linear(12, self.all_head_size) for _ in range(3))

    def split(self, x: torch.Tensor) -> torch.Tensor:
        return x.view(*x.shape[:-1], self.num_attention_heads, self.attention_head_size).permute(0, 2, 1, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.split(self.query(x)), self.split(self.key(x)), self.split(self.value(x))
        context = functional.scaled_dot_product_attention(q, k, v).permute(0, 2, 1, 3).contiguous()
        return context.view(*context.shape[:-2], self.all_head_size)


class LiteralAttention(BertAttention):
    """Its numbers stand in the code."""

    def __init__(self) -> None:
        super().__init__()
        del self.num_attention_heads, self.attention_head_size, self.all_head_size

    def split(self, x: torch.Tensor) -> torch.Tensor:
        return x.view(-1, 6, 4, 4).permute(0, 2, 1, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.all_head_size = 16
        return super().forward(x)


class GreedyAttention(BertAttention):
    """With fewer heads it would take tokens together, run, and return the right shape."""

    def split(self, x: torch.Tensor) -> torch.Tensor:
        return x.view(x.shape[0], -1, 4, 4).permute(0, 2, 1, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.split(self.query(x)), self.split(self.key(x)), self.split(self.value(x))
        return functional.scaled_dot_product_attention(q, k, v).permute(0, 2, 1, 3).reshape(x.shape[0], 6, -1)


def around(attention: type[nn.Module]) -> type[nn.Module]:
    class Around(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.self, self.dense = nn.Linear(5, 12), attention(), nn.Linear(16, 12)
            self.fc = nn.Linear(12, 3)
            self.example_inputs = {"x": torch.randn(2, 6, 5)}

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.embed(x)
            return self.fc((x + self.dense(self.self(x))).mean(1))

    return Around


def test_heads_are_found_where_the_code_reads_their_number() -> None:
    found = layers_of(find(build(around(BertAttention))))
    assert found["heads:self"] == (("self.query", "self.key", "self.value"), ("dense",), 4)
    assert layers_of(find(small_transformer()))["heads:query"] == (("query", "key", "value"), ("out",), 4)


@pytest.mark.parametrize(
    ("attention", "reason"),
    [(LiteralAttention, "let their module read their number"), (GreedyAttention, "computes something else")],
)
def test_heads_whose_number_stands_in_the_code_are_left_out(attention: type[nn.Module], reason: str) -> None:
    found = find(build(around(attention)))
    assert not any(name.startswith("heads:") for name in layers_of(found))
    assert reason in dict(found.dropped)["channels:self.query"]


class SharedHeads(nn.Module):
    """Two attentions that read one number of heads."""

    def __init__(self) -> None:
        super().__init__()
        self.n_heads = 4
        self.first, self.second = (nn.ModuleList(nn.Linear(8, 8) for _ in range(4)) for _ in range(2))
        self.fc = nn.Linear(8, 3)
        self.example_inputs = {"x": torch.randn(2, 6, 8)}

    def attend(self, x: torch.Tensor, layers: nn.ModuleList) -> torch.Tensor:
        q, k, v = (layer(x).view(-1, 6, self.n_heads, 2).transpose(1, 2) for layer in layers[:3])
        y = functional.softmax(q @ k.transpose(-1, -2), -1) @ v
        return layers[3](y.transpose(1, 2).reshape(-1, 6, self.n_heads * 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.attend(self.attend(x, self.first), self.second).mean(1))


def test_attentions_that_share_one_number_of_heads_are_left_out() -> None:
    assert not any(name.startswith("heads:") for name in layers_of(find(build(SharedHeads))))


class TorchTransformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(9, 8)
        self.layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True)
        self.fc = nn.Linear(8, 2)
        self.example_inputs = {"ids": torch.randint(0, 9, (2, 5))}

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.fc(self.layer(self.embed(ids)).mean(1))


def test_of_torch_s_own_attention_only_the_feed_forward_width_is_on_offer() -> None:
    found = find(build(TorchTransformer))
    assert layers_of(found) == {"channels:layer.linear1": (("layer.linear1",), ("layer.linear2",), 12)}
    assert "ties heads times their width" in dict(found.dropped)["heads:layer.self_attn"]


class Tied(nn.Module):
    """A weight that is read both ways: what `down` reads is not what `up` makes of it."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down, self.fc = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.down.weight = self.up.weight
        self.example_inputs = {"x": torch.randn(2, 6)}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(torch.tanh(self.down(torch.tanh(self.up(x)))))


class LanguageModel(nn.Module):
    """The weight of the embedding is that of the head too."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm, self.attention = nn.Embedding(30, 16), nn.LayerNorm(16), Attention(16, 4, 4)
        self.head = nn.Linear(16, 30, bias=False)
        self.head.weight = self.embed.weight
        self.example_inputs = {"ids": torch.randint(0, 30, (2, 7))}

    def forward(self, ids: torch.Tensor) -> Mapping[str, torch.Tensor]:
        x = self.embed(ids)
        x = x + self.attention(self.norm(x))
        return {"logits": self.head(x), "hidden": x.mean((1, 2))}


def test_a_shared_weight_is_pruned_only_where_all_its_users_agree() -> None:
    found = find(build(Tied))
    assert "shares a weight with it" in dict(found.dropped)["channels:up"]
    found = find(build(LanguageModel))
    readers = ("attention.query", "attention.key", "attention.value", "head")
    assert layers_of(found)["channels:embed"] == (("embed", "attention.out"), readers, 16)
    assert "shares a weight with it" in dict(found.dropped)["channels:head"]


class Shuffle(nn.Module):
    """Channels change places between grouped convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = ConvNorm(3, 12, 1), ConvNorm(12, 12, groups=3), ConvNorm(12, 12, groups=3)
        self.fc = nn.Linear(12, 3)
        self.example_inputs = {"x": torch.randn(2, 3, 8, 8)}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.b(self.a(x))
        x = x.view(-1, 3, 4, 8, 8).transpose(1, 2).reshape(-1, 12, 8, 8)
        return self.fc(self.c(x).mean((2, 3)))


def test_channels_that_are_shuffled_are_left_out() -> None:
    found = find(build(Shuffle))
    assert set(layers_of(found)) == {"channels:a.0", "channels:c.0"}
    assert "channels:b.0" in dict(found.dropped)


class Bare(nn.Module):
    """A class token, places and a scale of its own, as vision transformers and ConvNeXt have them."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, 4)
        self.token, self.places = nn.Parameter(torch.randn(1, 1, 8)), nn.Parameter(torch.randn(1, 17, 8))
        self.norm, self.up, self.down = nn.RMSNorm(8), nn.Linear(8, 20), nn.Linear(20, 8)
        self.scale = nn.Parameter(torch.rand(8))
        self.fc = nn.Linear(8, 3)
        self.example_inputs = {"x": torch.randn(2, 3, 16, 16)}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.places
        x = x + self.scale * self.down(functional.gelu(self.up(self.norm(x))))
        return self.fc(x[:, 0])


def test_parameters_of_no_layer_shrink_with_their_channels() -> None:
    assert layers_of(find(build(Bare))) == {
        "channels:patches": (("patches", "down"), ("up", "fc"), 8),
        "channels:up": (("up",), ("down",), 20),
    }


class Untraceable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 2)
        self.example_inputs = {"x": torch.randn(2, 4)}

    @torch.no_grad()
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.a(x))


def test_a_model_that_cannot_be_traced_has_no_structures_and_says_why() -> None:
    found = find(build(Untraceable))
    assert found.structures == ()
    assert "torch-pruning" in dict(found.dropped)["channels:a"]


def test_a_model_that_does_not_run_has_no_structures_and_says_why() -> None:
    found = find_structures(build(lambda: ResNet(1)), {"x": torch.zeros(2, 3, 8, 8)})
    assert found.structures == ()
    assert "does not run on its example inputs" in found.dropped[0][1]


def test_a_missing_library_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    with pytest.raises(SpecError, match=r"torch-pruning is not installed.*pip install 'trimtab\[torch\]'"):
        find(build_test_model("plain"))


def test_of_minilm_heads_inner_widths_the_residual_width_and_layers_are_on_offer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, small in (("N_LAYERS", 2), ("_N_WORDS", 40), ("N_TOKENS", 6), ("_N_INNER", 48)):
        monkeypatch.setattr(minilm, name, small)
    ids = torch.arange(12).reshape(2, 6) + 1
    model = build(minilm.MiniLmClassifier)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    found = find_structures(model, inputs)
    layer = "bert.encoder.layer"
    assert {s.name: s.n_units for s in found.structures} == {
        "channels:bert.embeddings.position_embeddings": 384,
        f"heads:{layer}.0.attention.self": 12,
        f"channels:{layer}.0.intermediate.dense": 48,
        f"heads:{layer}.1.attention.self": 12,
        f"channels:{layer}.1.intermediate.dense": 48,
        f"block:{layer}.0": 1,
        f"block:{layer}.1": 1,
    }
    heads = f"heads:{layer}.0.attention.self"
    pruned = prune_module(model, inputs, {heads: Treatment(keep_channels=0.5)})
    attention = pruned.bert.encoder.layer[0].attention
    assert attention.self.n_heads == 6
    assert attention.self.query.weight.shape == (192, 384)
    assert attention.output.dense.weight.shape == (384, 192)
    assert pruned.bert.encoder.layer[1].attention.self.n_heads == 12

"""For tests: small real models, and the contract that every technique must keep."""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnxruntime

from ..spaces.policy import GraphTreatment, Policy
from ..spaces.recovery import Recovery
from ..spaces.treatment import Treatment
from .artifact import Artifact
from .pipeline import Pipeline
from .weights.storage import stored_bytes


def small_cnn(*, seed: int = 0) -> Any:
    """Returns an ``nn.Module``: convolutions with batch norm, a residual add, a depthwise one, pooling, linear.

    Input ``x`` (batch, 3, 16, 16) float32, output (batch, 5).
    """
    import torch
    from torch import nn

    def block(n_in: int, n_out: int, **how: Any) -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(n_in, n_out, 3, padding=1, bias=False, **how), nn.BatchNorm2d(n_out), nn.ReLU())

    class SmallCnn(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.left, self.right = block(3, 8), block(8, 8), block(8, 8)
            self.depthwise = block(8, 8, groups=8)
            self.point = nn.Conv2d(8, 16, 1)
            self.pool = nn.AdaptiveAvgPool2d(1)
            self.fc = nn.Linear(16, 5)
            self.example_inputs = {"x": torch.zeros(2, 3, 16, 16)}

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.stem(x)
            x = self.right(self.left(x)) + x
            x = torch.relu(self.point(self.depthwise(x)))
            result: torch.Tensor = self.fc(self.pool(x).flatten(1))
            return result

    torch.manual_seed(seed)
    model = SmallCnn()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model.eval()


def small_transformer(*, seed: int = 0) -> Any:
    """Returns an ``nn.Module``: two embeddings, one encoder block, a tied linear weight, a head.

    Inputs ``ids`` (batch, 12) int64 below 50 and ``mask`` (batch, 12) int64; output (batch, 3).
    """
    import torch
    from torch import nn

    class SmallTransformer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens, self.places = nn.Embedding(50, 32), nn.Embedding(12, 32)
            self.query, self.key, self.value, self.out = (nn.Linear(32, 32) for _ in range(4))
            self.up, self.down = nn.Linear(32, 64), nn.Linear(64, 32)
            self.norm, self.norm2 = nn.LayerNorm(32), nn.LayerNorm(32)
            self.twice = nn.Linear(32, 32, bias=False)
            self.head = nn.Linear(32, 3)
            self.n_heads = 4
            self.example_inputs = {
                "ids": torch.zeros(2, 12, dtype=torch.long), "mask": torch.ones(2, 12, dtype=torch.long)
            }  # fmt: skip

        def split(self, x: torch.Tensor) -> torch.Tensor:
            return x.view(-1, 12, self.n_heads, 8).transpose(1, 2)

        def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            x = self.tokens(ids) + self.places(torch.arange(12))
            q, k, v = self.split(self.query(x)), self.split(self.key(x)), self.split(self.value(x))
            bias = (1.0 - mask[:, None, None, :].float()) * -1e4
            scores = torch.softmax(q @ k.transpose(-1, -2) / 8**0.5 + bias, -1)
            x = self.norm(x + self.out((scores @ v).transpose(1, 2).reshape(-1, 12, self.n_heads * 8)))
            x = self.norm2(x + self.down(nn.functional.gelu(self.up(x))))
            x = self.twice(torch.tanh(self.twice(x)))
            result: torch.Tensor = self.head(x.mean(1))
            return result

    torch.manual_seed(seed)
    return SmallTransformer().eval()


def random_inputs(name: str, n: int, *, seed: int = 0) -> dict[str, np.ndarray]:
    """Returns inputs for ``cnn`` or ``transformer``: input name → (n, …) array."""
    rng = np.random.default_rng(seed)
    if name == "cnn":
        return {"x": rng.normal(size=(n, 3, 16, 16)).astype(np.float32)}
    mask = np.ones((n, 12), np.int64)
    mask[:, 9:] = 0
    return {"ids": rng.integers(0, 50, (n, 12)), "mask": mask}


@dataclass(frozen=True)
class CompressionCase:
    """A technique, as a treatment of some layers or structures of a model, with or without recovery."""

    #: returns a pipeline that has built nothing yet
    make_pipeline: Callable[[], Pipeline]
    #: the layers that take the treatment, at least one
    layers: tuple[str, ...]
    treatment: Treatment
    #: model input name → (batch, …) array
    inputs: Mapping[str, np.ndarray]
    recovery: Recovery = field(default_factory=Recovery)

    @property
    def policy(self) -> Policy:
        """The policy of the case; groups are called as what they treat."""
        return Policy(dict.fromkeys(self.layers, self.treatment), recovery=self.recovery)

    def build(self, pipeline: Pipeline | None = None) -> Artifact:
        """Builds the artifact in which everything that the case names is treated."""
        treatments = dict.fromkeys(self.layers, self.treatment)
        return (pipeline or self.make_pipeline()).build(treatments, GraphTreatment(), self.recovery)


def run_artifact(artifact: Artifact, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """Runs an artifact in ONNX Runtime; returns its outputs, each with the batch first."""
    session = onnxruntime.InferenceSession(artifact.model, providers=["CPUExecutionProvider"])
    outputs: list[np.ndarray] = session.run(None, dict(inputs))
    return outputs


def outputs_are_finite_and_shaped_as_before(case: CompressionCase) -> None:
    """A treated model gives finite outputs of the original's shapes and dtypes."""
    original = case.make_pipeline().build({}, GraphTreatment())
    for got, want in zip(run_artifact(case.build(), case.inputs), run_artifact(original, case.inputs), strict=True):
        _require(bool(np.isfinite(got).all()), "outputs must be finite")
        _require((got.shape, got.dtype) == (want.shape, want.dtype), f"{got.dtype} {got.shape} must be as before")


def the_identity_changes_nothing(case: CompressionCase) -> None:
    """Layers that are listed as untouched compute bit for bit what they computed, after any other build."""
    pipeline = case.make_pipeline()
    original = run_artifact(pipeline.build({}, GraphTreatment()), case.inputs)
    case.build(pipeline)
    untouched = pipeline.build(dict.fromkeys(case.layers, Treatment()), GraphTreatment())
    for got, want in zip(run_artifact(untouched, case.inputs), original, strict=True):
        _require(np.array_equal(got, want), "the identity treatment must leave the outputs bit-equal")


def building_is_pure(case: CompressionCase) -> None:
    """One pipeline builds the same bytes again, whatever it built in between; the torch module stays as it was."""
    pipeline = case.make_pipeline()
    before = _state_of(pipeline)
    first, original = case.build(pipeline), pipeline.build({}, GraphTreatment())
    pipeline.build({case.layers[0]: case.treatment}, GraphTreatment())
    _require(case.build(pipeline) == first, "a build must not depend on those before it")
    _require(pipeline.build({}, GraphTreatment()) == original, "a build must not change the model")
    after = _state_of(pipeline)
    is_same = before.keys() == after.keys() and all(np.array_equal(before[name], after[name]) for name in before)
    _require(is_same, "a build must not change the torch module")


def building_is_deterministic(case: CompressionCase) -> None:
    """Two pipelines build the same bytes, whatever the order in which layers are named."""
    treatments = dict.fromkeys(reversed(case.layers), case.treatment)
    other = case.make_pipeline().build(treatments, GraphTreatment(), case.recovery)
    _require(case.build() == other, "equal policies must give equal bytes")


def size_and_digest_are_those_of_the_bytes(case: CompressionCase) -> None:
    """An artifact states what a file of it would have."""
    artifact = case.build()
    _require(artifact.size_bytes == len(artifact.model), "size_bytes must count the bytes")
    _require(artifact.sha256 == hashlib.sha256(artifact.model).hexdigest(), "sha256 must be that of the bytes")


def the_file_is_as_large_as_accounted(case: CompressionCase) -> None:
    """What the weights take in the file is what shapes and treatments say, within 1 % of the file."""
    pipeline = case.make_pipeline()
    artifact = case.build(pipeline)
    accounted = pipeline.account(dict.fromkeys(case.layers, case.treatment), case.recovery)
    shape = pipeline.shape_of(dict.fromkeys(case.layers, case.treatment), case.recovery)
    names = tuple(f"{layer.name}.weight" for layer in pipeline.stage_of(shape).prepared.layers)
    constants = onnx.load_model_from_string(artifact.model).graph.initializer
    found = sum(stored_bytes(tensor) for tensor in constants if tensor.name.startswith(names))
    _require(
        abs(accounted - found) <= 0.01 * artifact.size_bytes, f"weights take {found} bytes, accounted were {accounted}"
    )


def its_policy_survives_json(case: CompressionCase) -> None:
    """A policy with this treatment comes back from JSON equal, with the same id."""
    policy = case.policy
    again = Policy.from_json(json.loads(json.dumps(policy.to_json())))
    _require((again, again.id, hash(again)) == (policy, policy.id, hash(policy)), "a policy must survive JSON")


#: The contract: what every technique has to keep. Each takes a `CompressionCase` and raises AssertionError.
COMPRESSION_CHECKS: tuple[Callable[[CompressionCase], None], ...] = (
    outputs_are_finite_and_shaped_as_before,
    the_identity_changes_nothing,
    building_is_pure,
    building_is_deterministic,
    size_and_digest_are_those_of_the_bytes,
    the_file_is_as_large_as_accounted,
    its_policy_survives_json,
)


def _state_of(pipeline: Pipeline) -> dict[str, np.ndarray]:
    origin = pipeline.prepared.origin
    return {} if origin is None else {n: t.detach().numpy().copy() for n, t in origin.module.state_dict().items()}


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise AssertionError(message)

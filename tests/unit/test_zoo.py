"""The recipes' models: trained, repeatable, and equal to the models that they say they are."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from trimtab.core.errors import DataError  # noqa: E402  (what follows needs torch)
from trimtab.experiments import datasets, zoo  # noqa: E402
from trimtab.experiments.minilm import N_TOKENS, load_bert  # noqa: E402
from trimtab.experiments.probe import L2_PENALTY, fit_probe  # noqa: E402
from trimtab.experiments.resnet import ResNet  # noqa: E402
from trimtab.experiments.sources import minilm_folder  # noqa: E402
from trimtab.experiments.training import Schedule, train_classifier  # noqa: E402


def stripes(n_samples: int) -> tuple[np.ndarray, np.ndarray]:
    """Images with a bright band, above or below: (n, 1, 28, 28) float32 and (n,) int64."""
    labels = np.arange(n_samples) % 2
    images = np.random.default_rng(0).normal(size=(n_samples, 1, 28, 28)).astype(np.float32)
    images[labels == 0, :, :14] += 1
    images[labels == 1, :, 14:] += 1
    return images, labels


def accuracy(model: torch.nn.Module, inputs: Mapping[str, np.ndarray], labels: np.ndarray) -> float:
    with torch.inference_mode():
        logits = model(*(torch.from_numpy(array) for array in inputs.values()))
    return float((logits.argmax(1).numpy() == labels).mean())


def n_parameters(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_resnet20_has_the_parameters_of_its_paper() -> None:
    # He et al. 2015, table 6: 0.27 M with identity shortcuts; a grey input and two 1×1 shortcuts differ by 2,464
    assert round(n_parameters(ResNet(3)) / 1e6, 2) == 0.27


def test_training_is_repeatable() -> None:
    images, labels = stripes(64)
    schedule = Schedule(n_epochs=1, batch_size=16, max_shift=1, mirror=True)
    first, second = (train_classifier(lambda: ResNet(1, 2), images, labels, schedule) for _ in range(2))
    for name, tensor in first.state_dict().items():
        torch.testing.assert_close(tensor, second.state_dict()[name], rtol=1e-4, atol=1e-5)


def test_training_leaves_the_random_state_alone() -> None:
    images, labels = stripes(16)
    before = torch.random.get_rng_state()
    train_classifier(lambda: ResNet(1, 2), images, labels, Schedule(n_epochs=1))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_training_learns() -> None:
    images, labels = stripes(256)
    model = train_classifier(lambda: ResNet(1, 2), images, labels, Schedule(n_epochs=4, batch_size=16))
    # guessing gives 0.5; the bands differ by 28 standard errors
    assert accuracy(model, {"x": images}, labels) > 0.95


def test_the_probe_agrees_with_scikit_learn() -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    x = np.random.default_rng(0).normal(size=(200, 5)).astype(np.float32)
    y = (x[:, 0] + 0.5 * x[:, 1] > 0.3).astype(np.int64)
    probe = fit_probe(x, y)
    # softmax rows w and -w with penalty 2λ|w|² are one logistic row v = 2w with penalty λ/2 |v|², so C = 1/(λn)
    peer = linear_model.LogisticRegression(C=1 / (L2_PENALTY * len(x)), tol=1e-8, max_iter=1000).fit(x, y)
    np.testing.assert_allclose(probe["weight"][1] - probe["weight"][0], peer.coef_[0], rtol=1e-2)
    np.testing.assert_allclose(probe["bias"][1] - probe["bias"][0], peer.intercept_[0], rtol=1e-2)


@pytest.mark.slow
def test_resnet8_tells_digits_apart() -> None:
    model = zoo.resnet8()
    test = datasets.digits().test
    # 0.98 was seen; three standard errors of 1,000 samples below it, 0.967, would still pass
    assert accuracy(model, test.inputs, test.labels) >= 0.96


@pytest.mark.slow
def test_resnet8_carries_inputs_that_fit() -> None:
    model = zoo.resnet8()
    assert model(**model.example_inputs).shape == (2, 10)
    assert not model.training


def minilm_path() -> Path:
    try:
        return minilm_folder()
    except DataError as error:
        pytest.skip(str(error))


def test_the_plain_encoder_equals_huggingface() -> None:
    transformers = pytest.importorskip("transformers")
    folder = minilm_path()
    bert = load_bert(folder / "model.safetensors")
    configuration = transformers.BertConfig(**json.loads((folder / "config.json").read_text()))
    peer = transformers.BertModel(configuration, add_pooling_layer=False).eval()
    peer.load_state_dict(bert.state_dict())
    inputs = zoo._example_tokens()
    with torch.inference_mode():
        expected = peer(**inputs).last_hidden_state
        found = bert(**inputs)
    # hidden states of padding mean nothing
    kept = inputs["attention_mask"].bool()
    torch.testing.assert_close(found[kept], expected[kept], rtol=0, atol=1e-5)


@pytest.mark.slow
# the TorchScript exporter is chosen on purpose: it writes the pattern that ONNX Runtime's optimizer knows
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_onnx_runtime_finds_the_attention_of_the_exported_model(tmp_path: Path) -> None:
    optimizer = pytest.importorskip("onnxruntime.transformers.optimizer")
    model = zoo.MiniLmClassifier().eval()
    inputs = zoo._example_tokens()
    names = {name: {0: "batch"} for name in (*inputs, "logits")}
    torch.onnx.export(
        model,
        tuple(inputs.values()),
        tmp_path / "model.onnx",
        dynamo=False,
        opset_version=17,
        input_names=list(inputs),
        output_names=["logits"],
        dynamic_axes=names,
    )
    fused = optimizer.optimize_model(
        str(tmp_path / "model.onnx"), model_type="bert", num_heads=12, hidden_size=384, opt_level=0
    )
    assert fused.get_fused_operator_statistics()["Attention"] == 6


def test_example_tokens_hold_a_padded_sentence() -> None:
    assert zoo._example_tokens()["attention_mask"].sum(1).tolist() == [N_TOKENS, N_TOKENS // 2]

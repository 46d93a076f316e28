import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn
from trimtab.compressors.source import load_source
from trimtab.core.errors import ModelError, SpecError


class Scale(nn.Module):
    """Two inputs, one weight."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 3)

    def forward(self, x, shift):
        return self.fc(x) + shift


def _inputs():
    return {"x": torch.zeros(2, 4), "shift": torch.zeros(2, 3)}


def _scale_with_inputs():
    module = Scale()
    module.example_inputs = _inputs()
    return module


def _inputs_of(source):
    return [value.name for value in onnx.load_model_from_string(source.onnx_bytes).graph.input]


@pytest.mark.parametrize(
    "model",
    [
        _scale_with_inputs,
        _scale_with_inputs(),
        lambda: (Scale(), _inputs()),
        (Scale(), _inputs()),
        lambda: (Scale(), (torch.zeros(2, 4), torch.zeros(2, 3))),
        lambda: (Scale(), [torch.zeros(2, 4), torch.zeros(2, 3)]),
    ],
    ids=["callable", "module", "callable of a pair", "pair", "tuple of inputs", "list of inputs"],
)
def test_every_form_of_a_torch_model_is_exported_with_its_input_names(model):
    source = load_source(model)
    assert _inputs_of(source) == ["x", "shift"]
    assert {name: array.shape for name, array in source.sample.items()} == {"x": (1, 4), "shift": (1, 3)}
    assert sorted(source.parameters) == ["fc.bias", "fc.weight"]


def test_a_single_tensor_stands_for_the_only_input():
    assert _inputs_of(load_source(lambda: (nn.Sequential(nn.Linear(4, 3)), torch.zeros(2, 4)))) == ["input"]


def test_a_model_is_imported_by_name():
    source = load_source("trimtab.compressors.testing:small_cnn")
    assert _inputs_of(source) == ["x"]


def test_the_batch_is_left_open():
    graph = onnx.load_model_from_string(load_source(_scale_with_inputs).onnx_bytes).graph
    for value in (*graph.input, *graph.output):
        first, *rest = value.type.tensor_type.shape.dim
        assert first.dim_param
        assert all(side.dim_value for side in rest)


def test_the_users_module_keeps_its_mode():
    module = _scale_with_inputs().train()
    load_source(module)
    assert module.training


def test_models_are_exported_as_they_predict():
    module = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.9)).train()
    source = load_source((module, torch.zeros(1, 4)))
    assert "Dropout" not in [node.op_type for node in onnx.load_model_from_string(source.onnx_bytes).graph.node]


def _fail():
    raise ValueError("no weights here")


def _fail_clearly():
    raise ModelError("download the weights first")


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Scale, "the model has no example inputs; set model.example_inputs to a dict"),
        (lambda: (Scale(), [torch.zeros(1)] * 3), r"the model takes 2 inputs \(x, shift\), got 3 example inputs"),
        (lambda: 3, "the model must be an nn.Module or an .onnx path, got int"),
        (3, "the model must be an nn.Module or an .onnx path, got int"),
        (_fail, "the model's callable failed: ValueError\\('no weights here'\\)"),
        (_fail_clearly, "^download the weights first$"),
        ("nowhere.onnx", "model nowhere.onnx does not exist"),
    ],
)
def test_what_is_no_model_is_refused_with_what_to_change(model, message):
    with pytest.raises(ModelError, match=message):
        load_source(model)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("resnet", "model 'resnet' must be written module:name"),
        ("trimtab.nowhere:build", "module 'trimtab.nowhere' does not import"),
        ("trimtab.compressors.testing:build", "has no 'build'"),
    ],
)
def test_a_name_that_leads_nowhere_is_refused(model, message):
    with pytest.raises(SpecError, match=message):
        load_source(model)


class Untraceable(nn.Module):
    """Leaves torch, so that neither exporter can follow."""

    def forward(self, x):
        raise RuntimeError("needs a graphics card")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_model_that_no_exporter_can_follow_is_refused_with_the_words_of_both(capsys):
    with pytest.raises(ModelError) as caught:
        load_source(lambda: (Untraceable(), torch.zeros(1, 4)))
    text = str(caught.value)
    assert text.startswith("the model cannot be exported to ONNX; TorchScript: RuntimeError: needs a graphics card;")
    assert "torch.export: " in text
    assert "\n" not in text


# -- .onnx files ----------------------------------------------------------------------------------


def _relu():
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])],
        "relu",
        [helper.make_tensor_value_info("x", TensorProto.INT64, ["batch", 4, "time"])],
        [helper.make_tensor_value_info("y", TensorProto.INT64, ["batch", 4, "time"])],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("as_path", [str, lambda path: path], ids=["text", "path"])
def test_an_onnx_file_is_read(as_path, tmp_path):
    onnx.save(_relu(), tmp_path / "relu.onnx")
    source = load_source(as_path(tmp_path / "relu.onnx"))
    assert onnx.load_model_from_string(source.onnx_bytes) == _relu()
    assert source.parameters == {}
    assert (source.sample["x"].shape, source.sample["x"].dtype) == ((1, 4, 1), np.int64)


def _truncate(content):
    return content[: len(content) // 2]


@pytest.mark.parametrize(
    "damage",
    [_truncate, lambda _: b"", lambda _: b"not a model at all", lambda content: content.replace(b"Relu", b"Rely")],
    ids=["truncated", "empty", "text", "unknown operator"],
)
def test_a_file_that_is_no_valid_onnx_is_refused(damage, tmp_path):
    path = tmp_path / "broken.onnx"
    path.write_bytes(damage(_relu().SerializeToString()))
    with pytest.raises(ModelError, match=f"model {path} is not a valid ONNX file: "):
        load_source(path)


def test_a_folder_is_no_model(tmp_path):
    (tmp_path / "folder.onnx").mkdir()
    with pytest.raises(ModelError, match="does not exist"):
        load_source(tmp_path / "folder.onnx")


def test_weights_beside_the_file_are_read_into_the_source(tmp_path):
    weight = onnx.numpy_helper.from_array(np.arange(2000, dtype=np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "w"], ["y"])],
        "add",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, 2000])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, 2000])],
        [weight],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    source = load_source(tmp_path / "m.onnx")
    (stored,) = onnx.load_model_from_string(source.onnx_bytes).graph.initializer
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(stored), np.arange(2000))

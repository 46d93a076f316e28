"""Sensitivity of a spec: what is measured and what is known already, what falls away, the picture and the table."""

import io
import json
from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from rich.console import Console
from trimtab.core.errors import ModelError, SpecError
from trimtab.experiments.preparation import prepare
from trimtab.experiments.sensitivity import measure_sensitivity
from trimtab.experiments.sensitivity_plot import draw_sensitivity
from trimtab.experiments.spec_file import load_spec
from trimtab.experiments.terminal_sensitivity import print_sensitivity
from trimtab.search.knowledge import Knowledge
from trimtab.spaces.treatment import QUANTIZE_OPTIONS, Treatment

PNG = b"\x89PNG\r\n\x1a\n"
PLAIN = [{"layers": "*", "quantize": ["none", "int8"]}]
#: beside what PLAIN offers
MORE = [*PLAIN, {"layers": "*", "cluster": ["none", 8]}]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "sensitivity"


@pytest.fixture
def prepared(workplace):
    """Returns a function: parts of a spec → `Preparation`."""
    return lambda **parts: prepare(load_spec(workplace.path / workplace.write_spec(**parts)))


def write_model(path, nodes, weights):
    """A model of ``x`` (batch, 1024) → ``z``, small, with layers ``w1`` …."""
    graph = helper.make_graph(
        nodes, "graph", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 1024])],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, ["batch", None])],
        [numpy_helper.from_array(array.astype(np.float32), name) for name, array in weights.items()],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path.name


def test_scores_fit_the_space_and_untouched_layers_have_none(prepared):
    preparation = prepared(space=MORE)
    found = measure_sensitivity(preparation)
    assert found.space == preparation.space
    assert found.method == "gradient"
    for options, scores in zip(found.space.options, found.scores, strict=True):
        assert [score == 0.0 for score in scores] == [option == Treatment() for option in options]
    assert Knowledge.from_json(json.loads(json.dumps(Knowledge(influence=found.scores).to_json())))
    json.dumps(found.to_json(), allow_nan=False)


def test_both_methods_agree_on_small_errors(prepared):
    preparation = prepared(space=MORE)
    gradient, divergence = (measure_sensitivity(preparation, method=name) for name in ("gradient", "divergence"))
    assert divergence.method == "divergence"
    np.testing.assert_allclose(np.concatenate(gradient.scores), np.concatenate(divergence.scores), rtol=0.5)


def test_what_is_known_is_not_measured_again(prepared, cache):
    first = measure_sensitivity(prepared(space=PLAIN))
    again = measure_sensitivity(prepared(space=PLAIN, budget={"accuracy_drop": 0.01, "latency": "0.5x"}))
    assert (first.n_measured, again.n_measured) == (2, 0)
    assert [scores.tolist() for scores in again.scores] == [scores.tolist() for scores in first.scores]
    more = measure_sensitivity(prepared(space=MORE))
    assert more.n_measured == 4  # cluster 8, and cluster 8 + int8, of two layers
    assert [path.suffix for path in sorted(cache.iterdir())] == [".json", ".lock"]


def test_other_data_other_scores(prepared, workplace):
    measure_sensitivity(prepared(space=PLAIN))
    text = (workplace.path / "tiny.py").read_text()
    (workplace.path / "mine.py").write_text(text.replace("default_rng(seed)", "default_rng(seed + 7)"))
    assert measure_sensitivity(prepared(space=PLAIN, data="mine:vectors")).n_measured == 2


def test_a_damaged_cache_is_measured_again(prepared, cache):
    first = measure_sensitivity(prepared(space=PLAIN))
    (file,) = cache.glob("*.json")
    file.write_text(file.read_text()[:-40])
    again = measure_sensitivity(prepared(space=PLAIN))
    assert again.n_measured == 2
    assert [scores.tolist() for scores in again.scores] == [scores.tolist() for scores in first.scores]


def test_a_method_that_is_unknown_is_named(prepared):
    with pytest.raises(SpecError, match="divergence"):
        measure_sensitivity(prepared(space=PLAIN), method="hessian")


@pytest.fixture
def logarithm(workplace):
    """The logarithm of what is just above 0 for some sample: rounding to int8 makes it negative, to float16 not."""
    weights = {"w1.weight": np.random.default_rng(0).normal(size=(1024, 16)) * 1e-3, "w2.weight": np.eye(16)}
    nodes = [
        helper.make_node("MatMul", ["x", "w1.weight"], ["h"]), helper.make_node("Sigmoid", ["h"], ["s"]),
        helper.make_node("MatMul", ["s", "w2.weight"], ["t"]), helper.make_node("Sub", ["t", "bound"], ["u"]),
        helper.make_node("Log", ["u"], ["z"]),
    ]  # fmt: skip
    rng = np.random.default_rng(0)  # the calibration split of tiny.vectors
    seen = 1 / (1 + np.exp(-rng.normal(size=(8, 1024)).astype(np.float32) @ weights["w1.weight"]))
    return write_model(workplace.path / "log.onnx", nodes, {**weights, "bound": seen.min(0) - 1e-5})


def test_an_option_without_a_finite_influence_is_dropped_by_name(prepared, logarithm):
    preparation = prepared(model=logarithm, space=[{"layers": "*", "quantize": ["none", "int8", "float16"]}])
    found = measure_sensitivity(preparation, method="divergence")
    assert ("w1", "int8") in [(drop.layer, drop.option) for drop in found.dropped]
    assert "finite" in found.dropped[0].reason
    assert all(np.isfinite(scores).all() for scores in found.scores)
    (options,) = (o for g, o in zip(found.space.groups, found.space.options, strict=True) if g.name == "w1")
    assert options == (Treatment(), QUANTIZE_OPTIONS["float16"])
    output = io.StringIO()
    print_sensitivity(Console(file=output, width=120), found)
    assert "dropped: int8 of w1: " in output.getvalue()


def test_a_layer_that_loses_every_option_is_an_error(prepared, logarithm):
    preparation = prepared(model=logarithm, space=[{"layers": "*", "quantize": ["int8"]}])
    with pytest.raises(SpecError, match=r"layer w1: none of its options can be had .* finite"):
        measure_sensitivity(preparation, method="divergence")


def test_where_the_gradient_is_infinite_the_model_is_run(prepared, workplace):
    """The square root of a Relu that is 0: it has no gradient there, and the output an error all the same."""
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("MatMul", ["x", "w1.weight"], ["h"]), helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Sqrt", ["r"], ["q"]), helper.make_node("MatMul", ["q", "w2.weight"], ["z"]),
    ]  # fmt: skip
    weights = {"w1.weight": rng.normal(size=(1024, 16)), "w2.weight": rng.normal(size=(16, 3))}
    model = write_model(workplace.path / "root.onnx", nodes, weights)
    found = measure_sensitivity(prepared(model=model, space=PLAIN))
    methods = dict(zip([group.name for group in found.space.groups], found.methods, strict=True))
    assert methods == {"w1": ("", "divergence"), "w2": ("", "gradient")}
    assert not found.dropped


def test_a_graph_that_torch_cannot_run_is_measured_by_divergence(prepared, workplace):
    nodes = [
        helper.make_node("MatMul", ["x", "w1.weight"], ["h"]), helper.make_node("Det", ["m"], ["d"]),
        helper.make_node("Add", ["h", "d"], ["z"]),
    ]  # fmt: skip
    nodes.insert(1, helper.make_node("Reshape", ["h", "shape"], ["m"]))
    weights = {"w1.weight": np.random.default_rng(0).normal(size=(1024, 4)) / 30}
    model = write_model(workplace.path / "det.onnx", nodes, weights)
    proto = onnx.load(workplace.path / model)
    proto.graph.initializer.append(numpy_helper.from_array(np.array([-1, 1, 2, 2]), "shape"))
    onnx.save(proto, workplace.path / model)
    preparation = prepared(model=model, space=PLAIN)
    assert measure_sensitivity(preparation).method == "divergence"
    with pytest.raises(SpecError, match=r"sensitivity by gradient is not to be had: .*Det"):
        measure_sensitivity(preparation, method="gradient")


def test_a_model_that_says_nothing_is_refused(prepared, workplace):
    nodes = [
        helper.make_node("MatMul", ["x", "w1.weight"], ["h"]), helper.make_node("Mul", ["h", "zero"], ["z"]),
    ]  # fmt: skip
    weights = {"w1.weight": np.ones((1024, 3)), "zero": np.zeros(3)}
    preparation = prepared(model=write_model(workplace.path / "zero.onnx", nodes, weights), space=PLAIN)
    for method in ("auto", "divergence"):
        with pytest.raises(ModelError, match="outputs are 0"):
            measure_sensitivity(preparation, method=method)


def test_structures_are_measured_by_divergence(prepared):
    space = [*PLAIN, {"layers": "*", "prune": [0.5]}]
    found = measure_sensitivity(prepared(model="tiny:cnn", data="tiny:images", space=space))
    rows = list(zip(found.space.groups, found.methods, found.scores, strict=True))
    structures = [(methods, scores) for group, methods, scores in rows if group.kind != "layers"]
    assert structures
    assert all(methods == ("", "divergence") and scores[1] > 0.0 for methods, scores in structures)


def test_the_picture_is_one(prepared, tmp_path):
    found = measure_sensitivity(prepared(space=MORE))
    draw_sensitivity(tmp_path / "sensitivity.png", found, title="tiny")
    nothing = replace(found, scores=tuple(0.0 * scores for scores in found.scores))
    draw_sensitivity(tmp_path / "nothing.png", nothing, title="tiny")
    assert all((tmp_path / f"{name}.png").read_bytes().startswith(PNG) for name in ("sensitivity", "nothing"))

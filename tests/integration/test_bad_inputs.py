"""What a user may get wrong: each ends before any trial, in one line that names the place and the remedy."""

import json
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx
import pytest
import yaml
from filelock import FileLock


@dataclass(frozen=True)
class Case:
    name: str
    #: prepares the place and returns the arguments of the command line
    prepare: Callable[..., list[object]]
    #: the class of the error
    error: str
    #: stands in the message, all of it
    says: tuple[str, ...]
    exit_code: int = 2


def spec(name, error, /, *says, **parts):
    """A search whose spec has these parts."""
    return Case(name, lambda place: ["search", place.write_spec(**parts)], error, says)


def raw(name, content, *says):
    """A search whose spec is this text."""

    def prepare(place):
        content_bytes = content if isinstance(content, bytes) else content.encode()
        (place.path / "spec.yaml").write_bytes(content_bytes)
        return ["search", "spec.yaml"]

    return Case(name, prepare, "SpecError", says)


def module(name, code, error, /, *says, **parts):
    """A search whose spec names things in a module ``mine`` with this code."""

    def prepare(place):
        (place.path / "mine.py").write_text(f"import numpy as np\nimport tiny\nfrom trimtab import *\n{code}\n")
        return ["search", place.write_spec(**{"data": "mine:data", **parts})]

    return Case(name, prepare, error, says)


def call(name, error, *says, arguments, prepare=lambda place: None, exit_code=2):
    """Any call of the command line."""

    def both(place):
        prepare(place)
        return arguments

    return Case(name, both, error, says, exit_code)


def copy_run(place, finished):
    shutil.copytree(finished.path / "runs", place.path / "done")
    return place.path / "done" / "tiny"


def altered(path, change):
    """Reads JSON, changes it in place, writes it."""
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def policy(name, change, error, *says, model="tiny.onnx"):
    """An `apply` of a policy that was changed: a function of its JSON, or the bytes of the file."""

    def prepare(place, finished):
        path = copy_run(place, finished) / "policy.json"
        if callable(change):
            altered(path, change)
        else:
            path.write_bytes(change)
        return ["apply", path, "--model", model, "--out", "out"]

    return Case(name, prepare, error, says)


def run(name, change, /, *says, **parts):
    """A `resume` of a finished run that was changed: a function of its folder, and parts of its spec."""

    def prepare(place, finished):
        folder = copy_run(place, finished)
        content = yaml.safe_load((folder / "spec.yaml").read_text())
        content.update(parts)
        (folder / "spec.yaml").write_text(yaml.safe_dump(content))
        change(folder)
        return ["resume", folder]

    return Case(name, prepare, "RunError", says)


def journal(name, change, *says):
    """A `resume` of a run whose journal was changed: a function of its lines."""

    return run(name, lambda folder: altered_lines(folder, change), "journal.jsonl", *says)


def altered_lines(folder, change):
    path = folder / "journal.jsonl"
    path.write_bytes(b"".join(change(path.read_bytes().splitlines(keepends=True))))


def record(name, *says, **fields):
    """A `resume` of a run in whose journal the second record has other fields."""

    def change(lines):
        return [*lines[:2], json.dumps({**json.loads(lines[2]), **fields}).encode() + b"\n", *lines[3:]]

    return journal(name, change, *says)


def header(name, part):
    """A `resume` of a run that began with another fingerprint of one part."""

    def change(lines):
        content = json.loads(lines[0])
        content["fingerprints"][part] = "another"
        return [json.dumps(content).encode() + b"\n", *lines[1:]]

    return Case(name, run(name, lambda folder: altered_lines(folder, change)).prepare, "RunError",
                (f"{part} (another →", "changed since this run began", "--force"))  # fmt: skip


def artifact(name, change, *says, error="ArtifactError", exit_code=1):
    """A `verify` of an artifact that was changed: a function of its folder."""

    def prepare(place, finished):
        folder = copy_run(place, finished) / "artifact"
        change(folder)
        return ["verify", folder]

    return Case(name, prepare, error, says, exit_code)


def manifest(name, change, *says):
    """A `verify` of an artifact whose manifest was changed: a function of its JSON."""
    return artifact(name, lambda folder: altered(folder / "manifest.json", change), "manifest", *says)


def write_onnx(path, nodes, inputs, outputs, weights):
    graph = onnx.helper.make_graph(
        nodes, "g",
        [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape) for name, shape in inputs.items()],
        [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape) for name, shape in outputs.items()],
        [onnx.numpy_helper.from_array(array, name) for name, array in weights.items()],
    )  # fmt: skip
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(model.SerializeToString())


def fixed_batch(place, n):
    node = onnx.helper.make_node("MatMul", ["x", "w"], ["y"])
    weights = {"w": np.eye(1024, 4, dtype=np.float32)}
    write_onnx(place.path / "fixed.onnx", [node], {"x": [n, 1024]}, {"y": [n, 4]}, weights)


def fixed(name, n, batch_size, *says):
    def prepare(place):
        fixed_batch(place, n)
        return ["search", place.write_spec(model="fixed.onnx", target={"batch_size": batch_size})]

    return Case(name, prepare, "ModelError", says)


def no_layers(place):
    node = onnx.helper.make_node("Relu", ["x"], ["y"])
    write_onnx(place.path / "relu.onnx", [node], {"x": ["n", 1024]}, {"y": ["n", 1024]}, {})
    return ["search", place.write_spec(model="relu.onnx")]


def flip_a_byte(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def set_keys(*keys, to):
    """Returns a function that sets content[keys[0]][keys[1]]… to a value."""

    def change(content):
        for key in keys[:-1]:
            content = content[key]
        content[keys[-1]] = to

    return change


#: keeps the lock of the test that holds one: it is freed with its object
HELD = []


def lock(folder):
    HELD[:] = [FileLock(folder / "journal.jsonl.lock")]
    HELD[0].acquire()


def symlink(folder):
    (folder / "model.onnx").rename(folder.parent / "elsewhere.onnx")
    (folder / "model.onnx").symlink_to(folder.parent / "elsewhere.onnx")


BOMB = "a: &a [x, x]\n" + "".join(f"{b}: &{b} [*{a}, *{a}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True))
HUGE = "9" * 5000
CNN = {"model": "tiny:cnn", "data": "tiny:images"}
LAYERS = [["fc", "linear", [8, 4]]]

SPECS = [
    spec("a misspelt key", "SpecError", "spec.yaml", "unknown key 'modle'", "did you mean 'model'?", modle="x"),
    spec("an unknown key that begins like a type", "SpecError", "unknown key 'strategy'", strategy="x"),
    spec("a misspelt key of the target", "SpecError", "'target.threds'", "'threads'?", target={"threds": 1}),
    spec("a misspelt key of a rule", "SpecError", "'space.0.quantise'", "'quantize'?",
         space=[{"layers": "*", "quantise": ["int8"]}]),
    spec("a misspelt bound", "SpecError", "'budget.latancy'", "'latency'?", budget={"latancy": "1ms"}),
    spec("a misspelt key of the search", "SpecError", "'search.trails'", "'trials'?", search={"trails": 3}),
    spec("a misspelt key of the workers", "SpecError", "'workers.adress'", "'address'?", workers={"adress": "x"}),
    spec("a misspelt key of the graph", "SpecError", "'graph.fusions'", "'fusion'?", graph={"fusions": ["none"]}),
    spec("an unknown key of the timing", "SpecError", "'timing.x'", "known keys here: runs", timing={"x": 1}),
    spec("a key that is missing", "SpecError", "key 'data' is missing", data=None),
    spec("a number that is a word", "SpecError", "search.trials", "integer", search={"trials": "many"}),
    spec("a target that is a word", "SpecError", "target: ", "dictionary", target="onnxruntime"),
    spec("a space that is no list", "SpecError", "space", "tuple", space={"layers": "*"}),
    spec("an empty space", "SpecError", "space", "at least one rule", space=[]),
    spec("a key that is a number", "SpecError", "target", target={1: 2}),
    spec("a name that is a path", "SpecError", "name", "pattern", name="../tiny"),
    spec("an unknown objective", "SpecError", "objective", "'latency'", objective="speed"),
    raw("YAML that refers to itself", BOMB, "spec.yaml", "aliases"),
    raw("a key given twice", "name: a\nname: b\n", "spec.yaml", "'name' is given twice"),
    raw("broken YAML", "name: [a\nmodel: }", "spec.yaml is not YAML", "line 2"),
    raw("YAML nested too deeply", "a: " + "[" * 5000, "spec.yaml is not YAML"),
    raw("YAML that makes objects", "name: !!python/object/apply:os.system ['true']", "spec.yaml is not YAML"),
    raw("a day that does not exist", "name: 2024-13-45", "spec.yaml is not YAML"),
    raw("a number of 5,000 digits", f"name: {HUGE}", "spec.yaml is not YAML"),
    raw("an empty file", "", "spec.yaml must be a mapping"),
    raw("a list", "- name", "spec.yaml must be a mapping"),
    raw("another encoding", "name: café".encode("latin-1"), "spec.yaml cannot be read", "utf-8"),
    call("a folder", "SpecError", "spec . cannot be read", arguments=["search", "."]),
    call("no such file", "SpecError", "spec x/y.yaml does not exist", arguments=["search", "x/y.yaml"]),
    call("an unknown recipe", "SpecError", "did you mean 'digits'?", arguments=["search", "digit"]),
    call("an endless name", "SpecError", "recipe", arguments=["search", "x" * 5000]),
    Case("a folder of runs that is a file", lambda place: ["search", place.write_spec(), "--runs", "tiny.py"],
         "RunError", ("tiny.py", "--runs")),
]  # fmt: skip

BOUNDS = [
    spec("a number of trials that is a boolean", "SpecError", "search.trials", "integer", search={"trials": True}),
    spec("a latency that is NaN", "SpecError", "budget.latency", "0.5x", budget={"latency": float("nan")}),
    spec("a negative latency", "SpecError", "budget.latency", budget={"latency": -1}),
    spec("a latency of 0", "SpecError", "budget.latency", "more than 0", budget={"latency": "0ms"}),
    spec("a latency without a unit that is known", "SpecError", "budget.latency", budget={"latency": "3 parsec"}),
    spec("a latency beyond all numbers", "SpecError", "budget.latency", budget={"latency": "1e400ms"}),
    spec("a drop that is NaN", "SpecError", "budget.accuracy_drop", budget={"accuracy_drop": float("nan")}),
    spec("a drop below 0", "SpecError", "budget.accuracy_drop", budget={"accuracy_drop": -0.01}),
    spec("a drop in percent", "SpecError", "budget.accuracy_drop", "less than 1", budget={"accuracy_drop": 2}),
    spec("a size of 0", "SpecError", "budget.size_mb", budget={"size_mb": 0}),
    spec("a size below the smallest policy", "SpecError", "budget.size_mb", "smallest policy", "raise the budget",
         budget={"size_mb": "100b"}),
    spec("an energy of 0", "SpecError", "budget.energy_mj", "more than 0", budget={"energy_mj": "0mJ"}),
    spec("an energy in watts", "SpecError", "budget.energy_mj", "0.5x, 2mJ", budget={"energy_mj": "3W"}),
    spec("a table of energies that is not there", "SpecError", "energy table", "does not exist",
         budget={"energy_mj": 1}, timing={"energy_table": "nowhere.json"}),
    spec("a memory limit beyond all numbers", "SpecError", "memory_limit", workers={"memory_limit": "1e400GB"}),
    spec("a time limit of 0", "SpecError", "search.time_limit", search={"time_limit": "0s"}),
    spec("no trials", "SpecError", "search.trials", search={"trials": 0}),
    spec("a negative seed", "SpecError", "search.seed", search={"seed": -1}),
    spec("too few timed runs", "SpecError", "timing.runs", "30", timing={"runs": 5}),
    spec("no workers", "SpecError", "workers.count", workers={"count": 0}),
    spec("an address of no cluster", "SpecError", "workers.address", "inline", workers={"address": "the moon"}),
]  # fmt: skip

SPACES = [
    spec("a rule that matches nothing", "SpecError", "space.1.layers", "'nothing.*'", "w1, w2",
         space=[{"layers": "*"}, {"layers": "nothing.*", "quantize": ["int8"]}]),
    spec("an unknown kind", "SpecError", "space.0.layers", "kind 'lineare'", "this model has linear",
         space=[{"layers": "kind:lineare"}]),
    spec("a kind that the model lacks", "SpecError", "space.0.layers", "kinds linear",
         space=[{"layers": "kind:conv", "quantize": ["int8"]}]),
    spec("an unknown option", "SpecError", "space.0.quantize", "did you mean 'int8'?",
         space=[{"layers": "*", "quantize": ["int9"]}]),
    spec("an option given twice", "SpecError", "space.0.quantize", "twice: int8, int8",
         space=[{"layers": "*", "quantize": ["int8", "int8"]}]),
    spec("no option", "SpecError", "space.0.quantize", "at least one", space=[{"layers": "*", "quantize": []}]),
    spec("an option that no layer can take", "SpecError", "space.0.quantize", "int4_weight", "conv", "remove it",
         space=[{"layers": "kind:conv", "quantize": ["int4_weight"]}], **CNN),
    spec("an unknown fusion", "SpecError", "graph.fusion", "did you mean 'gelu'?", graph={"fusion": ["gelo"]}),
    spec("a fusion that the target lacks", "SpecError", "graph.fusion", "openvino does not offer gelu",
         target={"runtime": "openvino"}, graph={"fusion": ["gelu"]}),
    spec("a precision that the target lacks", "SpecError", "graph.precision", "bfloat16", "remove it",
         graph={"precision": ["bfloat16"]}),
    spec("an unknown calibration", "SpecError", "graph.calibration", "minmax", graph={"calibration": ["max"]}),
    spec("an unknown operator", "SpecError", "graph.quantized_ops", "did you mean 'add'?",
         graph={"quantized_ops": [["ad"]]}),
    spec("an unknown algorithm", "SpecError", "algorithm 'tpee'", "did you mean 'tpe'?", search={"algorithm": "tpee"}),
]  # fmt: skip

TARGETS = [
    spec("an unknown runtime", "SpecError", "runtime 'onnxruntim'", "did you mean 'onnxruntime'?",
         target={"runtime": "onnxruntim"}),
    spec("an unknown device", "SpecError", "onnxruntime", "cpu", "'gpu'",
         target={"runtime": "onnxruntime", "device": "gpu"}),
    spec("a runtime in no module", "SpecError", "runtime 'nowhere:Device'", "does not import",
         target={"runtime": "nowhere:Device"}),
    spec("a runtime that is something else", "SpecError", "runtime 'builtins:repr'", "device", "str",
         target={"runtime": "builtins:repr"}),
    spec("a runtime that fails", "SpecError", "runtime 'tiny:vectors'", target={"runtime": "tiny:vectors"}),
    spec("no threads", "SpecError", "target.threads", target={"threads": 0}),
    fixed("a model whose batch is one sample", 1, 4, "target.batch_size is 4", "'x'", "set target.batch_size: 1"),
    fixed("a model whose batch is fixed", 4, 1, "target.batch_size is 1", "'x' to 4", "open batch"),
]  # fmt: skip

MODELS = [
    spec("a model in no module", "SpecError", "model 'nowhere:cnn'", "'nowhere' does not import", model="nowhere:cnn"),
    spec("a model that its module lacks", "SpecError", "module 'tiny' has no 'bnn'", model="tiny:bnn"),
    spec("a model that is a word", "SpecError", "model", "module:callable", model="resnet"),
    spec("a model that is a number", "ModelError", "int", model=3),
    module("a model whose callable fails", "def model(): raise OSError('no weights here')", "ModelError",
           "no weights here", model="mine:model", data="tiny:vectors"),
    module("a model that is none", "def model(): return 3", "ModelError", "nn.Module", "int",
           model="mine:model", data="tiny:vectors"),
    module("a model without example inputs", "import torch\ndef model(): return torch.nn.Linear(8, 2)", "ModelError",
           "example_inputs", model="mine:model", data="tiny:vectors"),
    Case("a model without layers", no_layers, "SpecError", ("no layer that can be compressed",)),
    spec("an ONNX file that is missing", "ModelError", "nothing.onnx does not exist", model="nothing.onnx"),
    Case("an ONNX file that is cut off", lambda place: [
             (place.path / "half.onnx").write_bytes((place.path / "tiny.onnx").read_bytes()[:5000]),
             ["search", place.write_spec(model="half.onnx")]][1],
         "ModelError", ("half.onnx is not a valid ONNX file",)),
    Case("an ONNX file that is something else", lambda place: [
             shutil.copy(place.path / "tiny.py", place.path / "text.onnx"),
             ["search", place.write_spec(model="text.onnx")]][1],
         "ModelError", ("text.onnx is not a valid ONNX file",)),
    Case("an ONNX file that is empty", lambda place: [
             (place.path / "void.onnx").touch(), ["search", place.write_spec(model="void.onnx")]][1],
         "ModelError", ("void.onnx",)),
]  # fmt: skip

SPLIT = "def split(n=8, width=1024, dtype=np.float32, name='x', labels=None):\n" \
        "    return Split({name: np.ones((n, width), dtype)}, labels)\n"  # fmt: skip

DATA = [
    spec("data in no module", "SpecError", "data 'nowhere:x'", data="nowhere:x"),
    module("data that are no Dataset", "data = lambda: [1, 2]", "DataError", "trimtab.Dataset", "list"),
    module("data whose callable fails", "def data(): raise OSError('no disk')", "DataError", "no disk"),
    module("an input of another name", SPLIT + "data = lambda: tiny.vectors(calibration=split(name='y'))", "DataError",
           "inputs x", "the data have y"),
    module("an input of another dtype", SPLIT + "data = lambda: tiny.vectors(calibration=split(dtype=np.float64))",
           "DataError", "input x", "float32", "float64"),
    module("an input of another shape", SPLIT + "data = lambda: tiny.vectors(calibration=split(width=9))",
           "DataError", "input x", "1024", "9"),
    module("inputs that are lists", "data = lambda: Dataset(*[Split({'x': [[0.0] * 1024] * 4})] * 3)", "DataError",
           "'x'", "numpy"),
    module("labels that are lists", "data = lambda: tiny.vectors(test=Split({'x': np.ones((2, 1024))}, [1, 2]))",
           "DataError", "labels", "numpy"),
    *(module(f"a {part} split whose input has another name",
             SPLIT + f"data = lambda: tiny.vectors({part}=split(name='y'))", "DataError", part, "y")
      for part in ("validation", "test")),
    *(module(f"a {part} split of another dtype",
             SPLIT + f"data = lambda: tiny.vectors({part}=split(dtype=np.float16))", "DataError", part, "float16")
      for part in ("validation", "test")),
    *(module(f"a {part} split of another shape",
             SPLIT + f"data = lambda: tiny.vectors({part}=split(width=9))", "DataError", part, "1024", "9")
      for part in ("validation", "test")),
    module("an empty split", SPLIT + "data = lambda: tiny.vectors(test=split(n=0))", "DataError", "at least 1"),
    module("labels of another length", SPLIT + "data = lambda: tiny.vectors(test=split(labels=np.zeros(3)))",
           "DataError", "one length", "'labels': 3"),
    module("labels that the metric needs and test lacks",
           SPLIT + "data = lambda: tiny.vectors(metric='accuracy', validation=split(labels=np.zeros(8, int)))",
           "DataError", "metric 'accuracy'", "labels"),
    module("a split of one sample", SPLIT + "data = lambda: tiny.vectors(test=split(n=1))", "DataError", "2 samples"),
    module("an unknown metric", "data = lambda: tiny.vectors(metric='acuracy')", "SpecError", "metric 'acuracy'",
           "did you mean 'accuracy'?"),
    module("a metric that fails", "data = lambda: tiny.vectors(metric=lambda outputs, labels: 1 / 0)", "DataError",
           "division by zero"),
    module("activations that are not finite", SPLIT + "bad = split()\nbad.inputs['x'][:] = np.inf\n"
           "data = lambda: tiny.vectors(calibration=bad)", "ModelError", "not finite on the calibration data"),
    module("outputs that are not finite", SPLIT + "bad = split()\nbad.inputs['x'][:] = np.inf\n"
           "data = lambda: tiny.vectors(validation=bad)", "ModelError", "validation", "finite"),
]  # fmt: skip

POLICIES = [
    call("a policy that does not exist", "SpecError", "policy nothing.json does not exist",
         arguments=["apply", "nothing.json", "--model", "tiny.onnx", "--out", "out"]),
    policy("a policy that is not JSON", b"{", "SpecError", "policy.json is not JSON"),
    policy("a number of too many digits", f'{{"kind": {HUGE}}}'.encode(), "SpecError", "policy.json is not JSON"),
    policy("a list for a policy", b"[]", "SpecError", "policy.json", "'trimtab-policy'"),
    policy("a policy of another kind", set_keys("kind", to="x"), "SpecError", "policy.json", "'trimtab-policy'"),
    policy("a policy of a later schema", set_keys("schema", to=2), "SpecError", "policy.json has schema 2", "schema 1"),
    policy("a field that treatments lack", set_keys("groups", "w2", to={"weight_dtyp": "int8"}), "SpecError",
           "policy.json", "'weight_dtyp'", "did you mean 'weight_dtype'?"),
    policy("a dtype that does not exist", set_keys("groups", "w2", to={"weight_dtype": "int9"}), "SpecError",
           "policy.json", "weight_dtype", "int9"),
    policy("a fusion that does not exist", set_keys("graph", "fusion", to="x"), "SpecError", "policy.json", "fusion"),
    policy("layers that do not match their fingerprint", set_keys("model", "layers", to=LAYERS), "SpecError",
           "policy.json", "fingerprint"),
    policy("groups that are no members", set_keys("members", to={}), "SpecError", "policy.json", "w1",
           "'members'"),
    policy("members that the model lacks", set_keys("members", "w2", to=["w3"]), "SpecError", "policy.json", "w3"),
    policy("a layer in two groups", set_keys("members", "w2", to=["w2", "w1"]), "SpecError", "w1",
           "two groups"),
    policy("a range that is not finite", set_keys("activation_ranges", "x", to=[0, float("inf")]), "SpecError",
           "policy.json", "not finite"),
    policy("a range beyond all numbers", set_keys("activation_ranges", "x", to=[0, 10**400]), "SpecError",
           "policy.json is damaged"),
    policy("a range upside down", set_keys("activation_ranges", "x", to=[1, -1]), "SpecError", "policy.json", "'x'"),
    policy("ranges that are missing", set_keys("activation_ranges", to={}), "PolicyError", "range"),
    policy("a target that is none", set_keys("target", to={"runtime": 3}), "SpecError", "policy.json", "runtime"),
    policy("a target without threads", set_keys("target", "threads", to=0), "SpecError", "policy.json", "threads"),
    policy("an unknown runtime", set_keys("target", "runtime", to="x"), "SpecError", "runtime 'x'"),
    policy("a precision that the target lacks", set_keys("graph", "precision", to="bfloat16"), "PolicyError",
           "bfloat16", "float32"),
    policy("a policy of another model", lambda content: None, "PolicyError", "lacks w1, w2",
           "does not know", "first, last, second", model="tiny:cnn"),
    Case("a folder that is no artifact", lambda place, finished: [
             "apply", copy_run(place, finished) / "policy.json", "--model", "tiny.onnx", "--out", "."],
         "SpecError", ("--out .", "not an artifact")),
    Case("an artifact's place that is a file", lambda place, finished: [
             "apply", copy_run(place, finished) / "policy.json", "--model", "tiny.onnx", "--out", "tiny.py"],
         "SpecError", ("--out tiny.py", "not an artifact")),
]  # fmt: skip

RUNS = [
    call("a run that does not exist", "RunError", "nothing is not a run folder", arguments=["resume", "nothing"]),
    run("a journal that was lost", lambda folder: (folder / "journal.jsonl").unlink(), "journal.jsonl", "missing"),
    journal("a journal without its header", lambda lines: lines[1:], "line 1", "header"),
    journal("a journal with half a header", lambda lines: [lines[0][:20]], "line 1", "header"),
    journal("an empty journal", lambda lines: [], "line 1", "header"),
    journal("a journal of a later schema", lambda lines: [lines[0].replace(b'"schema":1', b'"schema":2'), *lines[1:]],
            "schema 2", "schema 1"),
    journal("a damaged line", lambda lines: [*lines[:2], b"{]\n", *lines[3:]], "line 3 is damaged"),
    journal("a record that stands there twice", lambda lines: [*lines, lines[1]], "trial 0", "twice"),
    record("a record without a policy", "line 3", "damaged", policy=None),
    record("a record whose measurement is a word", "line 3", "damaged", measurement="fast"),
    record("a record whose id is endless", "line 3", "damaged", id=float("inf")),
    record("a record of another seed", "trial 1 differs", "start a new search", seed=1),
    run("a journal of another spec", lambda folder: None, "spec (", "--force", objective="size"),
    *(header(f"a journal of other {part}", part)
      for part in ("spec", "model", "weights", "data", "target", "versions")),
    run("a damaged original", lambda folder: (folder / "original.json").write_text('"fast"'), "original.json"),
    run("a journal in use", lock, "in use by another process"),
]  # fmt: skip

ARTIFACTS = [
    call("an artifact that does not exist", "ArtifactError", "nothing is not a folder",
         arguments=["verify", "nothing"], exit_code=1),
    artifact("an artifact without a manifest", lambda folder: (folder / "manifest.json").unlink(),
             "manifest.json does not exist"),
    artifact("a manifest that is not JSON", lambda folder: (folder / "manifest.json").write_text("{"),
             "manifest.json is not JSON"),
    manifest("a manifest of another kind", set_keys("kind", to="x"), "'trimtab-artifact'"),
    manifest("a manifest of a later schema", set_keys("schema", to=2), "schema 2"),
    manifest("a manifest without files", set_keys("files", to={}), "does not name model.onnx"),
    manifest("files that are a list", set_keys("files", to=[]), "damaged"),
    manifest("a target that is none", set_keys("target", to={"runtime": 3}), "damaged", "runtime"),
    manifest("another target than the policy's", set_keys("target", "threads", to=2), "different targets"),
    manifest("a file that leads out of the folder", set_keys("files", "../x", to={"sha256": "0"}), "'../x'"),
    manifest("a promise of 0", set_keys("promise", "measurement", "latency", "median_s", to=0), "damaged", "0"),
    manifest("a promise without end", set_keys("promise", "measurement", "size_bytes", to=float("inf")), "damaged"),
    manifest("a promise that is a word", set_keys("promise", "measurement", "latency", "median_s", to="1"), "damaged"),
    manifest("a spread that is a word", set_keys("promise", "measurement", "latency", "iqr_s", to="1"), "damaged"),
    artifact("a model with another byte", lambda folder: flip_a_byte(folder / "model.onnx"), "model.onnx was altered"),
    artifact("a policy with another byte", lambda folder: flip_a_byte(folder / "policy.json"),
             "policy.json was altered"),
    artifact("a file that is missing", lambda folder: (folder / "probe.safetensors").unlink(),
             "probe.safetensors is missing"),
    artifact("a link for a file", symlink, "'model.onnx'", "not a plain file"),
]  # fmt: skip

TABLE = [*SPECS, *BOUNDS, *SPACES, *TARGETS, *MODELS, *DATA, *POLICIES, *RUNS, *ARTIFACTS]


@pytest.mark.parametrize("case", TABLE, ids=lambda case: case.name.replace(" ", "-"))
def test_bad_input_ends_before_any_trial_and_says_what_to_do(case, workplace, finished):
    wants_run = case.prepare.__code__.co_argcount == 2
    arguments = case.prepare(workplace, finished) if wants_run else case.prepare(workplace)
    n_lines = count_journal_lines(workplace)
    ended = workplace.call(*arguments)
    assert (ended.exit_code, ended.bug) == (case.exit_code, None), ended
    assert "Traceback" not in ended.stderr + ended.stdout
    assert ended.stdout == ""
    assert re.match(rf"trimtab: {case.error}: ", ended.stderr), ended.stderr
    assert [words for words in case.says if words not in ended.stderr] == [], ended.stderr
    assert len(ended.stderr.splitlines()) == 1, ended.stderr
    assert count_journal_lines(workplace) == n_lines


def count_journal_lines(place):
    """Lines beyond the headers."""
    return sum(max(0, len(path.read_bytes().splitlines()) - 1) for path in place.path.rglob("journal.jsonl"))


def test_a_runtime_that_is_not_installed_is_refused_with_the_remedy(workplace, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    ended = workplace.call("search", workplace.write_spec(target={"runtime": "openvino"}))
    assert ended.exit_code == 2
    assert ended.stderr == "trimtab: SpecError: openvino is not installed; pip install 'trimtab[openvino]'\n"


@pytest.mark.parametrize(
    "change", [{"trials": 3}, {"time_limit": "1m"}, {"patience": 2}], ids=["trials", "time limit", "patience"]
)
def test_how_long_to_search_may_change_between_calls(change, workplace, finished):
    folder = copy_run(workplace, finished)
    content = yaml.safe_load((folder / "spec.yaml").read_text())
    content["search"].update(change)
    (folder / "spec.yaml").write_text(yaml.safe_dump(content))
    assert workplace.call("resume", folder).exit_code == 0


@pytest.mark.parametrize("command", ["search", "plan", "resume", "apply", "verify"])
def test_ctrl_c_ends_every_command_alike(command, workplace, finished):
    (workplace.path / "mine.py").write_text("def data():\n    raise KeyboardInterrupt\n")
    run = copy_run(workplace, finished)
    spec_text = (run / "spec.yaml").read_text()
    (run / "spec.yaml").write_text(spec_text.replace("tiny:vectors", "mine:data"))
    arguments = {
        "search": ["search", run / "spec.yaml"],
        "plan": ["plan", run / "spec.yaml"],
        "resume": ["resume", run],
        "apply": ["apply", run / "policy.json", "--model", "tiny.onnx", "--out", "out", "--data", "mine:data"],
        "verify": ["verify", run / "artifact", "--data", "mine:data"],
    }
    ended = workplace.call(*arguments[command])
    hint = f"; go on with: trimtab resume {run}" if command == "resume" else ""
    assert (ended.exit_code, ended.stdout, ended.stderr) == (130, "", f"\ninterrupted{hint}\n")

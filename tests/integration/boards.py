"""A board for ``tiny.onnx``, whose prices were made up so that the best policy can be told by adding them."""

import yaml
from trimtab.hw_profiles.kernels.chain_kernel import make_chain_kernel
from trimtab.hw_profiles.kernels.kernel import KernelTiming, Tensor
from trimtab.hw_profiles.kernels.kernel_table import KernelTable
from trimtab.hw_profiles.kernels.table_file import write_table
from trimtab.hw_profiles.kernels.table_identity import TableIdentity

N_FEATURES = 1024
NAME = "a made-up board"
RULE = {"patterns": ["MatMul > Add? > Relu?"], "integer": {"MatMul": "inputs"}}
#: microseconds: a layer in float32 and int8
FIRST_US = {"none": 10, "int8": 4}
SECOND_US = {"none": 2, "int8": 4}
#: of the model's input, and of what goes from the first layer to the second
QUANTIZE_INPUT_US, QUANTIZE_US, DEQUANTIZE_US = 3, 2, 1
INFERENCE_US = 5
#: (first layer, second layer) → the price of the policy, added up by hand
PRICES_US = {
    ("none", "none"): 5 + 10 + 2,
    ("none", "int8"): 5 + 10 + 2 + 4,
    ("int8", "none"): 5 + 3 + 4 + 1 + 2,
    ("int8", "int8"): 5 + 3 + 4 + 4,
}


def write_board(folder, **replaced):
    """Writes board.yaml and board.jsonl; returns the path of the first."""
    table = KernelTable(TableIdentity(NAME, (), "lut", "1", {"threads": 1}))
    add_layer(table, ["MatMul", "Add", "Relu"], (1, N_FEATURES), (N_FEATURES, 16), ("uint8", FIRST_US))
    add_layer(table, ["MatMul"], (1, 16), (16, 3), ("float32", SECOND_US))
    for op, shape, prices_us in (
        ("QuantizeLinear", (1, N_FEATURES), QUANTIZE_INPUT_US),
        ("QuantizeLinear", (1, 16), QUANTIZE_US),
        ("DequantizeLinear", (1, 16), DEQUANTIZE_US),
    ):
        sides = [Tensor("float32", shape)], [Tensor("uint8", shape)]
        read, written = sides if op == "QuantizeLinear" else sides[::-1]
        add(table, make_chain_kernel([op], read, written, {}), prices_us)
    write_table(folder / "board.jsonl", table)
    content = {
        "name": NAME,
        "table": "board.jsonl",
        "capabilities": {"quantize": {"int8": ["linear"], "int8_weight": ["linear"]}},
        "fusion": RULE,
        "constants": {"inference_us": INFERENCE_US},
        **replaced,
    }
    (folder / "board.yaml").write_text(yaml.safe_dump(content))
    return folder / "board.yaml"


def add_layer(table, chain, read, weight, integer):
    """Adds a layer in float32 and in int8; ``integer`` is the dtype of the int8 form's output, and the prices."""
    int8_output, prices_us = integer
    for option, dtypes in {"none": ("float32",) * 3, "int8": ("uint8", "int8", int8_output)}.items():
        inputs = [Tensor(dtypes[0], read), Tensor(dtypes[1], weight, is_constant=True)]
        add(table, make_chain_kernel(chain, inputs, [Tensor(dtypes[2], (1, weight[1]))], {}), prices_us[option])


def add(table, kernel, median_us):
    table.add([KernelTiming(kernel, median_us * 1e-6, 0.0, 30)], "made up")

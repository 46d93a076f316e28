"""Prices of kernels against sums worked out by hand from the figures of Horowitz, ISSCC 2014."""

import json

import pytest
from trimtab.core.errors import SpecError
from trimtab.hw_profiles.energy.energy_table import DEFAULT_TABLE, arithmetic_dtype, load_energy_table
from trimtab.hw_profiles.kernels.kernel import Kernel, LoweredGraph, Step, Tensor, pack_attributes


@pytest.fixture
def table():
    return load_energy_table()


def product(dtype, *, op="MatMul", out=None, rows=4, depth=16, columns=8, **attributes):
    inputs = (Tensor(dtype, (rows, depth)), Tensor(dtype, (depth, columns), is_constant=True))
    return Kernel(op, inputs, (Tensor(out or dtype, (rows, columns)),), attributes=pack_attributes(attributes))


def graph_of(kernel):
    step = Step("k", kernel, ("x", "")[: len(kernel.inputs)], ("y",))
    return LoweredGraph((step,), {"x": kernel.inputs[0]}, ("y",))


def test_the_table_that_ships_is_that_of_the_paper(table):
    # M. Horowitz, ISSCC 2014: 45 nm, 0.9 V; picojoules
    assert table.add_pj == {"int8": 0.03, "int32": 0.1, "float16": 0.4, "float32": 0.9}
    assert table.multiply_pj == {"int8": 0.2, "int32": 3.1, "float16": 1.1, "float32": 3.7}
    # 64 bits from 8 KB: 10 pJ, 32 KB: 20 pJ, 1 MB: 100 pJ, DRAM: 1.3 to 2.6 nJ
    assert [table.byte_pj(size) for size in (8e3, 3e4, 1e6)] == [(1.25, 1.25), (2.5, 2.5), (12.5, 12.5)]
    assert table.byte_pj(1e9) == (162.5, 325.0)
    assert (table.source, "ISSCC 2014" in table.reference) == ("table: Horowitz 2014, 45 nm", True)


def test_a_float_product_costs_its_arithmetic_and_its_bytes(table):
    n_macs, n_bytes = 4 * 16 * 8, 4 * (4 * 16 + 16 * 8 + 4 * 8)
    energy = table.estimate(graph_of(product("float32")))
    assert energy.joules == pytest.approx((n_macs * (3.7 + 0.9) + n_bytes * 1.25) * 1e-12)
    assert (energy.iqr_j, energy.runs, energy.is_measured) == (0.0, 0, False)


def test_an_integer_product_multiplies_8_bits_and_adds_32(table):
    n_macs, n_bytes = 4 * 16 * 8, 4 * 16 + 16 * 8 + 4 * (4 * 8)
    energy = table.estimate(graph_of(product("int8", op="MatMulInteger", out="int32")))
    assert energy.joules == pytest.approx((n_macs * (0.2 + 0.1) + n_bytes * 1.25) * 1e-12)


def test_what_does_not_multiply_adds(table):
    kernel = Kernel("Relu", (Tensor("float32", (100,)),), (Tensor("float32", (100,)),))
    assert table.estimate(graph_of(kernel)).joules == pytest.approx((100 * 0.9 + 800 * 1.25) * 1e-12)


def test_weights_that_are_unpacked_in_every_run_are_moved_twice(table):
    codes, scale = Tensor("int8", (100,), is_constant=True), Tensor("float32", (), is_constant=True)
    kernel = Kernel("DequantizeLinear", (codes, scale), (Tensor("float32", (100,)),))
    graph = LoweredGraph((Step("k", kernel, ("", ""), ("y",)),), {}, ("y",))
    assert table.estimate(graph).joules == pytest.approx((100 * 0.03 + (100 + 4 + 400) * 1.25) * 1e-12)


def test_main_memory_leaves_a_range(table):
    energy = table.estimate(graph_of(product("float32", rows=1, depth=1024, columns=1024)))
    arithmetic_j, live, constant = 1024**2 * 4.6e-12, 4 * 2048, 4 * 1024**2
    # the weights fill more than the largest cache; so does the kernel, and with it its activations
    assert energy.joules == pytest.approx(arithmetic_j + (live + constant) * (162.5 + 325) / 2 * 1e-12)
    assert energy.iqr_j == pytest.approx((live + constant) * 162.5e-12)


@pytest.mark.parametrize(
    ("kernel", "dtype"),
    [
        (product("float32"), "float32"),
        (product("uint8", op="MatMulInteger", out="int32"), "uint8"),
        (product("float32", op="com.microsoft.DynamicQuantizeMatMul"), "int8"),
        (product("float32", op="com.microsoft.MatMulNBits", accuracy_level=4), "int8"),
        (product("float32", op="com.microsoft.MatMulNBits", accuracy_level=0), "float32"),
        (Kernel("FullyConnected", (Tensor("float32", (1, 8)),), (), "brgemm_avx512_amx_bf16"), "bfloat16"),
        (Kernel("Convolution", (Tensor("uint8", (1, 8)),), (), "brgconv_avx512_amx_i8"), "int8"),
        (Kernel("Shape", (), (Tensor("int64", (4,)),)), "int64"),
    ],
)
def test_the_type_of_the_arithmetic_is_known(kernel, dtype):
    assert arithmetic_dtype(kernel) == dtype


def test_types_that_are_not_listed_take_the_nearest(table):
    assert table.estimate(graph_of(product("bfloat16"))) == table.estimate(graph_of(product("float16")))


def test_another_table_can_be_read(tmp_path):
    content = json.loads(DEFAULT_TABLE.read_text())
    content.update(name="mine", multiply_pj={"float32": 7.4}, add_pj={"float32": 1.8})
    content["access_pj"] = [{"up_to_bytes": None, "pj": [0, 0]}]
    (tmp_path / "mine.json").write_text(json.dumps(content))
    energy = load_energy_table(tmp_path / "mine.json").estimate(graph_of(product("float32")), note="why")
    assert energy.joules == pytest.approx(4 * 16 * 8 * 9.2e-12)
    assert (energy.source, energy.note) == ("table: mine", "why")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"add_pj": None}, "damaged"),
        ({"add_pj": {"int8": 1}}, "float32 among them"),
        ({"multiply_pj": {"float32": -1}}, "0 or more"),
        ({"access_bits": 0}, "damaged"),
        ({"access_pj": []}, "end with null"),
        ({"access_pj": [{"up_to_bytes": 5, "pj": [1, 1]}]}, "end with null"),
        ({"access_pj": [{"up_to_bytes": None, "pj": [2, 1]}]}, r"\[least, most\]"),
        ({"access_pj": [{"up_to_bytes": n, "pj": [1, 1]} for n in (9, 5, None)]}, "must ascend"),
    ],
)
def test_a_damaged_table_is_refused(tmp_path, change, message):
    path = tmp_path / "table.json"
    path.write_text(json.dumps({**json.loads(DEFAULT_TABLE.read_text()), **change}))
    with pytest.raises(SpecError, match=message):
        load_energy_table(path)


def test_a_table_that_misses_something_is_refused(tmp_path):
    (tmp_path / "table.json").write_text("{}")
    with pytest.raises(SpecError, match="misses 'name'"):
        load_energy_table(tmp_path / "table.json")

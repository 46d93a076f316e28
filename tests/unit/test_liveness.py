import pytest
from trimtab.hw_profiles.kernels.kernel import Kernel, LoweredGraph, Step, Tensor
from trimtab.hw_profiles.liveness import measure_liveness


def tensor(n_bytes):
    return Tensor("int8", (n_bytes,))


def step(name, reads, n_bytes, *, in_place=None, sizes=None):
    inputs = tuple(tensor((sizes or {}).get(source, 0)) for source in reads)
    return Step(name, Kernel(name, inputs, (tensor(n_bytes),)), reads, (name,), in_place)


@pytest.fixture
def diamond():
    """x (10) → a (100) → b (40), c (50) → d (1), which reads both; x is the input, d the output."""
    steps = (step("a", ("x",), 100), step("b", ("a",), 40), step("c", ("a",), 50), step("d", ("b", "c"), 1))
    return LoweredGraph(steps, {"x": tensor(10)}, ("d",))


def test_a_value_lives_until_its_last_reader(diamond):
    assert measure_liveness(diamond).step_bytes == (100, 140, 190, 91)


def test_the_inputs_are_counted_apart_and_all_the_time(diamond):
    liveness = measure_liveness(diamond)
    assert (liveness.input_bytes, liveness.allocated_bytes, liveness.peak_bytes) == (10, 190, 200)
    assert liveness.peak_step == 2


def test_an_output_lives_to_the_end():
    steps = (step("a", ("x",), 100), step("b", ("x",), 7), step("c", ("b",), 5))
    liveness = measure_liveness(LoweredGraph(steps, {"x": tensor(10)}, ("a", "c")))
    assert liveness.step_bytes == (100, 107, 112)


def test_a_step_in_place_takes_no_memory_of_its_own():
    steps = (step("a", ("x",), 100), step("b", ("a",), 100, in_place=0), step("c", ("b",), 5))
    liveness = measure_liveness(LoweredGraph(steps, {"x": tensor(10)}, ("c",)))
    assert liveness.step_bytes == (100, 100, 105)


def test_a_view_of_the_input_is_the_input():
    steps = (step("a", ("x",), 10, in_place=0), step("b", ("a",), 5))
    assert measure_liveness(LoweredGraph(steps, {"x": tensor(10)}, ("b",))).step_bytes == (0, 5)


def test_constants_are_no_activations():
    weight = Tensor("float32", (1000,), is_constant=True)
    kernel = Kernel("op", (weight, tensor(10)), (tensor(20),))
    view = Step("v", Kernel("view", (weight,), (weight,)), ("",), ("v",), in_place=0)
    graph = LoweredGraph((Step("a", kernel, ("", "x"), ("a",)), view), {"x": tensor(10)}, ("a",))
    assert measure_liveness(graph).peak_bytes == 30


def test_a_value_that_nobody_writes_counts_as_an_input():
    graph = LoweredGraph((step("a", ("w",), 5, sizes={"w": 30}),), {}, ("a",))
    assert (measure_liveness(graph).input_bytes, measure_liveness(graph).peak_bytes) == (30, 35)


def test_values_without_a_size_are_named():
    kernel = Kernel("op", (tensor(1),), (Tensor("float32", (-1, 8)),))
    graph = LoweredGraph((Step("a", kernel, ("x",), ("a",)),), {"x": tensor(1)}, ("a",))
    assert measure_liveness(graph).unknown == ("a",)


def test_an_empty_graph_holds_its_inputs():
    liveness = measure_liveness(LoweredGraph((), {"x": tensor(10)}, ("x",)))
    assert (liveness.peak_bytes, liveness.peak_step) == (10, None)

"""Liveness against a recount from scratch at every step, on random graphs."""

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st
from trimtab.hw_profiles.kernels.kernel import Kernel, LoweredGraph, Step, Tensor
from trimtab.hw_profiles.liveness import measure_liveness


@dataclass
class Random:
    graph: LoweredGraph
    #: value → name of the value whose memory it lives in
    roots: dict
    sizes: dict


@st.composite
def graphs(draw):
    n_inputs = draw(st.integers(1, 2))
    sizes = {f"in{i}": draw(st.integers(1, 50)) for i in range(n_inputs)}
    given_names = set(sizes)
    roots = {name: name for name in sizes}
    steps = []
    for i in range(draw(st.integers(1, 8))):
        sources = draw(st.lists(st.sampled_from(sorted(sizes)), min_size=1, max_size=3))
        constant = Tensor("int8", (draw(st.integers(1, 9)),), is_constant=True)
        inputs = [*(Tensor("int8", (sizes[name],)) for name in sources), constant]
        in_place = draw(st.none() | st.integers(0, len(sources) - 1))
        names = [f"v{i}.{j}" for j in range(draw(st.integers(1, 2)))]
        for j, name in enumerate(names):
            sizes[name] = draw(st.integers(1, 50))
            roots[name] = name
            if j == 0 and in_place is not None:
                roots[name] = roots[sources[in_place]]
        outputs = tuple(Tensor("int8", (sizes[name],)) for name in names)
        steps.append(Step(f"s{i}", Kernel("op", tuple(inputs), outputs), (*sources, ""), tuple(names), in_place))
    written = sorted(set(sizes) - given_names)
    kept = draw(st.lists(st.sampled_from(written), max_size=2, unique=True))
    inputs = {name: Tensor("int8", (sizes[name],)) for name in sorted(given_names)}
    return Random(LoweredGraph(tuple(steps), inputs, tuple(kept)), roots, sizes)


def recount(random, now):
    """Bytes of all memory that holds a value which was written and is still needed at step ``now``."""
    steps, needed = random.graph.steps, {}
    for name, root in random.roots.items():
        written = next((i for i, step in enumerate(steps) if name in step.writes), None)
        if written is None:
            continue
        uses = [i for i, step in enumerate(steps) if name in step.reads]
        needed[name] = (written, max([written, *uses, *([len(steps)] if name in random.graph.outputs else [])]), root)
    total = 0
    for root in set(random.roots.values()) - set(random.graph.inputs):
        members = [name for name, r in random.roots.items() if r == root]
        begins = min(needed[name][0] for name in members)
        ends = max(needed[name][1] for name in members)
        if begins <= now <= ends:
            total += max(random.sizes[name] for name in members)
    return total


@given(graphs())
def test_every_step_holds_what_a_recount_finds(random):
    liveness = measure_liveness(random.graph)
    assert liveness.step_bytes == tuple(recount(random, now) for now in range(len(random.graph.steps)))


@given(graphs())
def test_alignment_adds_less_than_one_unit_per_value(random):
    exact, aligned = measure_liveness(random.graph), measure_liveness(random.graph, alignment=64)
    n_values = len(random.sizes)
    assert exact.peak_bytes <= aligned.peak_bytes < exact.peak_bytes + 64 * n_values


@given(graphs())
def test_the_peak_lies_between_the_largest_step_and_all_values(random):
    largest = max(sum(tensor.n_bytes for tensor in step.kernel.outputs[1:]) for step in random.graph.steps)
    liveness = measure_liveness(random.graph)
    assert largest <= liveness.allocated_bytes <= sum(random.sizes.values())

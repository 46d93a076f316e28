import pytest
from hypothesis import given
from hypothesis import strategies as st
from trimtab.experiments.quantities import Bound, parse_bytes, parse_duration, parse_latency, parse_size

_positive = st.floats(min_value=1e-9, max_value=1e9, allow_nan=False)


@given(_positive)
def test_relative_bounds_scale_the_original(share):
    for parse in (parse_latency, parse_size):
        bound = parse(f"{share!r}x")
        assert bound == Bound(share, is_relative=True)
        assert bound.resolve(2.0) == share * 2.0


@given(_positive, st.sampled_from([("s", 1), ("ms", 1e-3), ("us", 1e-6), ("µs", 1e-6), ("", 1e-3), ("MS", 1e-3)]))
def test_a_latency_is_read_in_seconds(number, unit):
    text, factor = unit
    assert parse_latency(f" {number!r} {text}").resolve(99.0) == pytest.approx(number * factor)


@given(_positive, st.sampled_from([("kB", 10**3), ("MB", 10**6), ("GB", 10**9), ("", 10**6), ("MiB", 2**20), ("b", 1)]))
def test_a_size_is_read_in_bytes(number, unit):
    text, factor = unit
    assert parse_size(f"{number!r}{text}").resolve(99.0) == pytest.approx(number * factor)


@given(_positive, st.sampled_from([("s", 1), ("m", 60), ("min", 60), ("h", 3600), ("", 1)]))
def test_a_duration_is_read_in_seconds(number, unit):
    text, factor = unit
    assert parse_duration(f"{number!r}{text}") == pytest.approx(number * factor)


@given(_positive)
def test_a_bare_number_reads_like_its_text(number):
    assert parse_latency(number) == parse_latency(repr(number))


@pytest.mark.parametrize("text", ["", "x", "-1ms", "0", "0x", "nan", "inf", "1 parsec", "1ms2", True, None, [1]])
@pytest.mark.parametrize("parse", [parse_latency, parse_size, parse_duration, parse_bytes])
def test_anything_else_is_refused(parse, text):
    with pytest.raises(ValueError, match=r"must be "):
        parse(text)


@pytest.mark.parametrize("parse", [parse_duration, parse_bytes])
def test_durations_and_byte_counts_are_never_relative(parse):
    with pytest.raises(ValueError, match="must be a"):
        parse("0.5x")

"""Board files: what is read, and what is refused and where."""

import pytest
import yaml
from trimtab.core.errors import SpecError, TableError
from trimtab.hw_profiles.boards.board import load_board
from trimtab.hw_profiles.kernels.kernel import Kernel, KernelTiming, Tensor
from trimtab.hw_profiles.kernels.kernel_table import KernelTable
from trimtab.hw_profiles.kernels.table_file import write_table
from trimtab.hw_profiles.kernels.table_identity import TableIdentity

RELU = Kernel("Relu", (Tensor("float32", (1, 8)),), (Tensor("float32", (1, 8)),))
CONTENT = {
    "name": "a board",
    "table": "board.jsonl",
    "capabilities": {"quantize": {"int8": ["conv"]}, "activation_codes": "symmetric"},
    "fusion": {"patterns": ["Conv > Relu?"], "integer": {"Conv": "all"}},
    "constants": {"inference_us": 20, "kernel_us": 1.5},
}


def make_table(device="a board", runtime="lut", timed=True):
    table = KernelTable(TableIdentity(device, (), runtime, "1", {}))
    if timed:
        table.add([KernelTiming(RELU, 1e-6, 1e-7, 30)], "by hand")
    return table


@pytest.fixture
def write(tmp_path):
    write_table(tmp_path / "board.jsonl", make_table())

    def write_content(**replaced):
        path = tmp_path / "board.yaml"
        kept = {key: value for key, value in {**CONTENT, **replaced}.items() if value is not None}
        path.write_text(yaml.safe_dump(kept))
        return path

    return write_content


def test_all_that_is_stated_is_read(write):
    board = load_board(write(error=0.05, max_predicted_share=0.5))
    assert board.name == "a board"
    assert board.capabilities.why_not("int8", "conv") is None
    assert board.capabilities.why_not("int8", "linear") == "the target does not run int8 on linear layers"
    assert board.capabilities.why_not("none", "embedding") is None
    assert board.capabilities.activation_codes == "symmetric"
    assert (board.inference_s, board.kernel_s) == pytest.approx((20e-6, 1.5e-6))
    assert (board.error, board.max_predicted_share) == (0.05, 0.5)
    assert RELU in board.table


def test_what_only_shrinks_a_file_and_what_channels_are_filled_up_to_is_read(write):
    stated = load_board(write(capabilities={"size_only": ["cluster", "int8_weight"], "channel_multiple": 16}))
    assert stated.capabilities.size_only == {"cluster", "int8_weight"}
    assert stated.capabilities.channel_multiple == 16
    silent = load_board(write(capabilities={})).capabilities
    assert (silent.size_only, silent.channel_multiple) == (frozenset(), 1)


def test_json_is_yaml(write):
    path = write()
    path.write_text('{"name": "a board", "table": "board.jsonl"}')
    assert load_board(path).error is None


def test_the_digest_follows_the_file_and_the_table(write, tmp_path):
    first = load_board(write()).digest
    assert load_board(write()).digest == first
    assert load_board(write(error=0.1)).digest != first
    table = make_table()
    table.add([KernelTiming(RELU, 2e-6, 1e-7, 30)], "again")
    write_table(tmp_path / "board.jsonl", table)
    assert load_board(write()).digest != first


@pytest.mark.parametrize(
    ("replaced", "message"),
    [
        ({"nmae": "x"}, r"unknown key 'nmae'; did you mean 'name'\?"),
        ({"schema": 2}, "has schema 2; this version reads schema 1"),
        ({"name": None}, "key 'name' is missing; add it"),
        ({"name": "\x07"}, "must be 1 to 200 printable characters"),
        ({"table": None}, "key 'table' is missing"),
        ({"table": "none.jsonl"}, r"its table .*none\.jsonl does not exist"),
        ({"table": "../board.jsonl"}, "must lie in the board's own folder"),
        ({"table": "/etc/passwd"}, "must lie in the board's own folder"),
        ({"capabilities": {"quantise": {}}}, r"capabilities: unknown key 'quantise'; did you mean 'quantize'\?"),
        ({"capabilities": {"quantize": {"int9": ["conv"]}}}, r"unknown key 'int9'; did you mean 'int8'\?"),
        ({"capabilities": {"quantize": {"int8": ["cnov"]}}}, r"unknown layer kind 'cnov'; did you mean 'conv'\?"),
        ({"capabilities": {"quantize": {"int4_weight": ["conv"]}}}, "unknown layer kind 'conv'"),
        ({"capabilities": {"precisions": ["float16"]}}, "must begin with float32"),
        ({"capabilities": {"precisions": ["float7"]}}, r"precisions\[0\]: 'float7'"),
        ({"capabilities": {"activation_codes": "odd"}}, "activation_codes must be one of asymmetric"),
        ({"capabilities": {"dynamic_form": "odd"}}, "dynamic_form must be one of operators, weights"),
        ({"capabilities": {"quantize": {"float8": ["conv"]}}}, "float8: ONNX Runtime, .* runs no float8 layers"),
        ({"capabilities": {"quantize": {"float32": ["conv"]}}}, "float32: .* one type of floats"),
        ({"capabilities": {"size_only": ["clutser"]}}, r"unknown technique or quantize option 'clutser'; did you mean"),
        ({"capabilities": {"size_only": ["none"]}}, "unknown technique or quantize option 'none'"),
        ({"capabilities": {"size_only": ["float8"]}}, "unknown technique or quantize option 'float8'"),
        ({"capabilities": {"size_only": "cluster"}}, "size_only must be a list"),
        ({"capabilities": {"size_only": [1]}}, r"size_only\[0\]: 1 is not a name"),
        ({"capabilities": {"channel_multiple": 0}}, "channel_multiple must be a whole number from 1 to 1024, got 0"),
        ({"capabilities": {"channel_multiple": 1.5}}, "channel_multiple must be a whole number"),
        ({"capabilities": {"channel_multiple": 2048}}, "channel_multiple must be a number from 0 to 1024"),
        ({"capabilities": {"channel_multiple": True}}, "channel_multiple must be a number"),
        ({"fusion": {"patterns": ["Conv >"]}}, r"fusion\.patterns\[0\] 'Conv >', stage 2"),
        ({"constants": {"inference_ms": 1}}, r"unknown key 'inference_ms'; did you mean 'inference_us'\?"),
        ({"constants": {"kernel_us": -1}}, "kernel_us must be a number from 0"),
        ({"constants": {"kernel_us": float("nan")}}, "kernel_us must be a number from 0"),
        ({"constants": {"kernel_us": True}}, "kernel_us must be a number from 0"),
        ({"max_predicted_share": 20}, "max_predicted_share must be a number from 0 to 1"),
        ({"capabilities": [1]}, "capabilities must be a mapping"),
    ],
)
def test_what_cannot_be_is_refused_and_located(write, replaced, message):
    with pytest.raises(SpecError, match=message):
        load_board(write(**replaced))


def test_a_table_may_not_be_reached_through_a_link(write, tmp_path_factory, tmp_path):
    outside = tmp_path_factory.mktemp("outside") / "board.jsonl"
    write_table(outside, make_table())
    (tmp_path / "link.jsonl").symlink_to(outside)
    with pytest.raises(SpecError, match="must lie in the board's own folder"):
        load_board(write(table="link.jsonl"))


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (make_table(device="another"), "is named 'a board', and its table board.jsonl is of 'another'"),
        (make_table(runtime="onnxruntime"), "holds kernels of onnxruntime, not of a fusion rule"),
        (make_table(timed=False), "holds no timed kernel"),
    ],
)
def test_a_table_that_does_not_belong_is_refused(write, tmp_path, table, message):
    write_table(tmp_path / "board.jsonl", table)
    with pytest.raises(SpecError, match=message):
        load_board(write())


def test_damaged_files_are_refused(write, tmp_path):
    path = write()
    content = (tmp_path / "board.jsonl").read_bytes()
    (tmp_path / "board.jsonl").write_bytes(content[: len(content) // 2])
    with pytest.raises(TableError, match="truncated"):
        load_board(path)
    for text, message in [
        ("name: [", "is not YAML that can be read"),
        ("a: &x 1\nb: *x\n", "aliases"),
        ("name: a\nname: b\n", "given twice"),
        ("!!python/object/apply:os.abort []", "is not YAML that can be read"),
        ("- 1", "must be a mapping"),
        ("#" * (1024 * 1024 + 1), "more than 1048576 bytes"),
    ]:
        path.write_text(text)
        with pytest.raises(SpecError, match=message):
            load_board(path)


def test_a_folder_or_a_missing_file_is_no_board(tmp_path):
    with pytest.raises(SpecError, match="is not a file"):
        load_board(tmp_path)
    with pytest.raises(SpecError, match=r"board .*none\.yaml does not exist"):
        load_board(tmp_path / "none.yaml")

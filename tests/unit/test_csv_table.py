"""Kernel tables from CSV files: what is read, and what is refused on which line."""

import pytest
from trimtab.core.errors import TableError
from trimtab.experiments.cli import app
from trimtab.hw_profiles.kernels.csv_table import read_csv_table
from trimtab.hw_profiles.kernels.kernel import Kernel, Tensor, pack_attributes
from trimtab.hw_profiles.kernels.table_file import read_table
from typer.testing import CliRunner

HEADER = "op,input_shapes,weight_shapes,output_shapes,dtypes,attributes,latency_us,iqr_us,runs\n"
CONV = "Conv+Relu,1x32x56x56,64x32x3x3,1x64x28x28,uint8;int8;uint8,strides=2x2; pads=1x1x1x1; group=1,120.5,3,50\n"
KERNEL = Kernel(
    "Conv",
    (Tensor("uint8", (1, 32, 56, 56)), Tensor("int8", (64, 32, 3, 3), is_constant=True)),
    (Tensor("uint8", (1, 64, 28, 28)),),
    attributes=pack_attributes(
        {"strides": [2, 2], "pads": [1, 1, 1, 1], "fused": "Relu", "n_fused": 2, "activation": "Relu"}
    ),
)


@pytest.fixture
def read(tmp_path):
    def read_text(text, **settings):
        path = tmp_path / "ops.csv"
        path.write_text(text)
        return read_csv_table(path, device="a board", **settings)

    return read_text


def test_a_line_becomes_a_kernel_as_a_rule_would_make_it(read):
    found = read(HEADER + CONV)
    [observation] = found.table.observations(KERNEL)
    assert (observation.median_s, observation.iqr_s, observation.runs) == (120.5e-6, 3e-6, 50)
    assert observation.source == "ops.csv line 2"
    assert (found.table.identity.device, found.table.identity.runtime) == ("a board", "lut")


@pytest.mark.parametrize(
    "text",
    [
        "Latency (ms),Operator,Input Shape,Weight-Shape,outputs,DataType,attrs\n"
        "0.1205,Conv + Relu,\"[1, 32, 56, 56]\",\"(64,32,3,3)\",1×32×56×56,U8;i8;u8,\n",
        "op,inputs,output,type,latency_s\n"
        "Conv>Relu,1*32*56*56;64 32 3 3!,1x32x56x56,uint8|int8|uint8,1.205e-4\n",
        "\ufeffop,inputs,output,type,time_ns\r\n"
        "Conv>Relu,1x32x56x56|64x32x3x3!,1x32x56x56,uint8/int8/uint8,120500\r\n\r\n",
    ],
)  # fmt: skip
def test_columns_may_be_called_otherwise_and_stand_in_any_order(read, text):
    [kernel] = read(text).table.kernels()
    assert [tensor.to_json() for tensor in kernel.inputs] == ["uint8[1,32,56,56]", "int8[64,32,3,3]!"]
    assert [tensor.to_json() for tensor in kernel.outputs] == ["uint8[1,32,56,56]"]
    assert kernel.attribute_values["fused"] == "Relu"
    assert read(text).table.latency(kernel).median_s == pytest.approx(120.5e-6)


def test_lines_of_one_kernel_are_merged(read):
    found = read(HEADER + CONV + CONV.replace("120.5", "130.5"))
    assert (found.n_read, found.n_merged, len(found.table)) == (2, 1, 1)
    assert found.table.latency(KERNEL).median_s == pytest.approx(125.5e-6)
    assert found.describe() == "2 lines read, 1 of them merged as duplicates of earlier kernels, 0 refused; 1 kernels"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("Conv+Relu", "Conv+", "line 3: op: '' is not an operator's name"),
        ("1x32x56x56", "1x32xNx56", "line 3: input_shapes: '1x32xNx56' is not a shape"),
        ("1x64x28x28", "", "line 3: input_shapes and output_shapes must name at least one shape"),
        ("uint8;int8;uint8", "uint8;int8", "line 3: dtypes must be one, or one for each of the 3"),
        ("uint8;int8;uint8", "quint8", "line 3: dtypes: 'quint8' is not known"),
        ("strides=2x2", "strides", "line 3: attributes: 'strides' does not read like"),
        ("strides=2x2", "group=2", "line 3: attributes: 'group' is given twice"),
        ("strides=2x2", "fused=Add", "line 3: attributes: 'fused' is given twice, or follows from op"),
        ("120.5", "=1+2", "line 3: latency must be a number from 0, got '=1\\+2'"),
        ("120.5", "nan", "line 3: latency must be a number from 0"),
        ("120.5", "0", "line 3: latency must be more than 0"),
        ("120.5", "1e300", "line 3: median_s must be a number of seconds"),
        (",50", ",0", "line 3: runs must be a whole number"),
        (",50", ",5.5", "line 3: runs must be a whole number from 1, got '5.5'"),
        (",50", ",50,1", "line 3: has 10 cells where the header names 9"),
        ("Conv+Relu", '"Conv', "line 3: is not CSV"),
    ],
)
def test_a_bad_line_is_refused_with_its_number(read, old, new, message):
    with pytest.raises(TableError, match=message):
        read(HEADER + CONV + CONV.replace(old, new))


def test_bad_lines_can_be_left_out(read):
    found = read(HEADER + CONV + CONV.replace("120.5", "fast"), keep_going=True)
    assert (found.n_read, len(found.refused)) == (1, 1)
    assert found.refused[0].startswith("line 3: latency must be a number")


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("op,inputs,outputs,dtype", r"line 1: lacks the columns: latency_us \(or _ms, _s\)"),
        ("op,inputs,outputs,dtype,latency", r"'latency' needs its unit: latency_us, latency_ms or latency_s"),
        ("op,inputs,outputs,dtype,latency_h", r"unknown column 'latency_h'; did you mean 'latency_"),
        ("op,operator,inputs,outputs,dtype,latency_us", r"the column op is given twice \('operator'\)"),
        ("op,inputs,outputs,dtype,latency_us,atributes", r"unknown column 'atributes'; did you mean 'attributes'\?"),
        ("", r"lacks the columns: op, input_shapes"),
    ],
)
def test_a_header_that_is_not_understood_is_refused(read, header, message):
    with pytest.raises(TableError, match=message):
        read(header + "\n")


def test_a_file_without_lines_or_of_too_many_bytes_is_refused(read, tmp_path, monkeypatch):
    with pytest.raises(TableError, match="no line with an operator"):
        read(HEADER)
    with pytest.raises(TableError, match="does not exist"):
        read_csv_table(tmp_path / "none.csv", device="a board")
    monkeypatch.setattr("trimtab.hw_profiles.kernels.csv_table.MAX_CSV_BYTES", 100)
    with pytest.raises(TableError, match="more than 100 bytes"):
        read(HEADER + CONV)


def test_the_command_writes_a_table_and_says_what_it_read(tmp_path):
    (tmp_path / "ops.csv").write_text(HEADER + CONV + CONV.replace("120.5", "fast"))
    (tmp_path / "board.yaml").write_text("name: a board\ntable: board.jsonl\n")
    arguments = ["table", "import-csv", str(tmp_path / "ops.csv"), "--out", str(tmp_path / "board.jsonl")]
    refused = CliRunner().invoke(app, [*arguments, "--name", "a board"])
    assert refused.exit_code == 2
    assert "line 3: latency must be a number" in refused.stderr
    done = CliRunner().invoke(app, [*arguments, "--board", str(tmp_path / "board.yaml"), "--keep-going"])
    assert done.exit_code == 0, done.stderr
    assert "1 lines read, 0 of them merged" in done.stdout
    assert "refused line 3" in done.stdout
    assert read_table(tmp_path / "board.jsonl").identity.device == "a board"
    unnamed = CliRunner().invoke(app, arguments)
    assert "--board board.yaml or --name NAME" in unnamed.stderr

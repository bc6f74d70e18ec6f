"""`hf-transfer predict`: a file in, a file out, and what is wrong in one sentence with nothing written."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import hf_transfer as ht
from hf_transfer.evaluation import prediction
from tests.conftest import Run, make_rows, refused, write_csv


def test_a_file_is_labelled(run: Run, topics_model: Path, tmp_path: Path) -> None:
    source = write_csv(tmp_path / "new.csv", make_rows(9))
    code, out, err = run("predict", topics_model, "--input", source, "--output", "labelled.jsonl", "--precision", "fp32")
    assert (code, err) == (0, "")
    assert out.startswith("9 rows in ") and out.endswith(" rows/s): labelled.jsonl\n")
    done = ht.load(topics_model).predict_file(source, tmp_path / "again.jsonl", {"text": "text"}, precision="fp32")
    assert done.num_rows == 9
    assert (tmp_path / "again.jsonl").read_bytes() == Path("labelled.jsonl").read_bytes()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.csv", b"", "x.csv is empty: expected a header line and rows"),
        ("x.csv", b"text,label\nfine,1\ncaf\xe9,2\n", "not UTF-8: line 3 holds the byte 0xe9"),
        ("x.csv", b"text,label\na,b\nc,d,e\n", "malformed: line 3 has 3 fields, expected 2 as in the header"),
        ("x.csv", b"text,text\na,b\n", "names the column 'text' twice"),
        ("x.csv", b"review,label\na,b\n", "has no column 'text' (the text); it has review, label: name it with --columns text=COLUMN"),
        ("x.csv", b"txt,label\na,b\n", "did you mean 'txt'?"),
        ("x.csv", b"text,score\na,b\n", "has a column 'score' already, which the predictions need: rename or remove it"),
        ("x.csv", b"text,label\na\n", "malformed: line 2 has 1 fields, expected 2 as in the header"),
        ("x.jsonl", b"\n", "x.jsonl is empty: expected a JSON object a line"),
        ("x.jsonl", b'{"text": "a"}\n{"text": \n', "x.jsonl is malformed: line 2"),
        ("x.jsonl", b'{"text": "a"}\n\n["b"]\n', "line 3 is list, expected an object"),
        ("x.jsonl", b'[{"text": "a"}]', "line 1 is list, expected an object"),
        ("x.jsonl", b'{"text": "a"}\n{"text": null}\n', "1 of 2 given rows have no text (row 1: None)"),
        ("x.jsonl", b'{"text": "a"}\n{"txt": "b"}\n', "1 of 2 given rows have no text (row 1: None)"),
        ("x.jsonl", b'{"text": 7}\n', "the text column of the given data holds int (7), expected text"),
        ("x.jsonl", b'{"text": "\\ud83d"}\n', "line 1 holds half of a character"),
        ("x.jsonl", b'{"text": "caf\xe9"}\n', "not UTF-8: line 1 holds the byte 0xe9"),
        ("x.parquet", b"no parquet", "no readable Parquet"),
        ("x.xlsx", b"hello", "the input file must end in .csv, .tsv, .jsonl, .parquet, found"),
    ],
)
def test_a_bad_file(run: Run, topics_model: Path, tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    assert message in refused(run("predict", topics_model, "--input", tmp_path / name, "--output", "out.csv"))


def test_a_bad_command(run: Run, topics_model: Path, names_model: Path, tmp_path: Path) -> None:
    source = write_csv(tmp_path / "new.csv", make_rows(3))
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "there.parquet")
    for words, message in (
        ([topics_model, "--input", source], "the following arguments are required: --output"),
        (
            [topics_model, "--input", source, "--output", "out.txt"],
            "the output file must end in .csv, .tsv, .jsonl, .parquet, found out.txt",
        ),
        ([topics_model, "--input", source, "--output", tmp_path / "there.parquet"], "there.parquet exists already: name another"),
        ([topics_model, "--input", source, "--output", "no/out.csv"], "no/out.csv has no folder to lie in: create no"),
        ([topics_model, "--input", tmp_path / "new.tsv", "--output", "out.csv"], "does not exist; did you mean 'new.csv'?"),
        ([topics_model, "--input", source, "--output", "out.csv", "--precision", "bf61"], "precision must be auto, bf16"),
        ([topics_model, "--input", source, "--output", "out.csv", "--columns", "text"], "expected --columns role=column, found 'text'"),
        ([topics_model, "--input", source, "--output", "out.csv", "--columns", "txt=text"], "this model reads text, found the role 'txt'"),
        (
            [names_model, "--input", source, "--output", "out.csv", "--columns", "tokens=text"],
            "a CSV holds no lists: write CoNLL or JSONL, or",
        ),
        (["./gone", "--input", source, "--output", "out.csv"], "checkpoint folder ./gone does not exist"),
    ):
        assert message in refused(run("predict", *words))


def test_ctrl_c_leaves_nothing(run: Run, topics_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_csv(tmp_path / "new.csv", make_rows(3))

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(prediction, "predict_logits", stop)
    assert run("predict", topics_model, "--input", source, "--output", "out.csv") == (130, "", "interrupted: out.csv was not written\n")
    assert list(Path.cwd().iterdir()) == []


def test_an_output_that_cannot_be_written(topics_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_csv(tmp_path / "new.csv", make_rows(3))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("hf_transfer.data.table_writing._write_json", full)
    with pytest.raises(ht.TransferError, match=r"cannot write .*out.jsonl: No space left on device"):
        ht.load(topics_model).predict_file(source, tmp_path / "out.jsonl")
    assert [path.name for path in tmp_path.iterdir()] == ["new.csv"]

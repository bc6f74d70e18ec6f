from pathlib import Path

import pytest

from hf_transfer.data.conll import read_conll
from hf_transfer.data.sources import load_source, read_file
from hf_transfer.errors import DataError


def test_sentences_words_and_tags(tmp_path: Path) -> None:
    path = tmp_path / "x.conll"
    text = "\ufeff-DOCSTART- -X- O O\r\n\r\nAnn NNP B-NP B-PER\r\nLee NNP I-NP I-PER\r\n# a comment\r\n\r\n\r\n# NN I-NP O\r\n 3 CD x O"
    path.write_bytes(text.encode())
    dataset = read_conll(path)
    assert dataset["tokens"][:] == [["Ann", "Lee"], ["#", "3"]]
    assert dataset["ner_tags"][:] == [["B-PER", "I-PER"], ["O", "O"]]


def test_a_new_document_ends_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "x.conll"
    path.write_text("A NN B-x\n-DOCSTART- -X- O\nB NN I-x\n10\u00a0000 CD O\n", encoding="utf-8")
    assert read_conll(path)["tokens"][:] == [["A"], ["B", "10\u00a0000"]]
    assert read_conll(path)["document"][:] == [0, 1]
    for head in ("", "-DOCSTART- -X- O\n\n"):
        path.write_text(f"{head}A NN B-x\n\nB NN I-x\n", encoding="utf-8")
        assert read_conll(path).column_names == ["tokens", "ner_tags"], "nothing parts documents: one of all rows would be no evidence"


def test_tabs_keep_blanks_and_empty_words(tmp_path: Path) -> None:
    path = tmp_path / "x.bio"
    path.write_text("New York\tB-LOC\n\tO\n5\u20093\tO\n", encoding="utf-8")
    assert read_file(path)["tokens"][:] == [["New York", "", "5\u20093"]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Ann B-PER\nLee\n", r"line 2 has 1 \('Lee'\), expected 2 columns as in the lines before"),
        ("Ann\n", r"line 1 has 1 \('Ann'\), expected a word and its tag"),
        ("Ann x B-PER\nLee I-PER\n", "line 2 has 2"),
        ("\n\n", "holds no rows"),
    ],
)
def test_a_malformed_file_is_one_sentence(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "train.txt").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        load_source(str(tmp_path))

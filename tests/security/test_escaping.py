"""What others wrote shows as the text it is: in the page, the markdown, the card, the sheet and the terminal."""

import csv
import io
import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt
from markdown_it.token import Token

import hf_transfer as ht
from hf_transfer.errors import DataError, TransferError
from hf_transfer.escaping import CONTROLS, WORD_JOINER, markdown_code, markdown_text, visible
from hf_transfer.evidence.report.render import render_report
from hf_transfer.publish.card import render_card
from tests.conftest import Run, make_rows, write_csv, write_jsonl
from tests.evidence.made_runs import write_run

HOSTILE = {
    "script": "<script>alert(1)</script>",
    "attribute": "\"' onmouseover='alert(1)' x=\"",
    "image": "<img src=x onerror=alert(1)>",
    "comment": "--> <!-- ]]> </style></title></textarea>",
    "entity": "&lt;script&gt; &#60;b&#62; &amp;",
    "javascript link": "[click](javascript:alert(1))",
    "link": "[click](https://evil.invalid 'x')",
    "bare link": "https://evil.invalid/x www.evil.invalid ftp://evil.invalid",
    "angle link": "<https://evil.invalid> <me@evil.invalid>",
    "reference": "[click][1]\n\n[1]: javascript:alert(1)",
    "picture": "![x](https://evil.invalid/pixel.png)",
    "mention": "@everyone #1 me@evil.invalid",
    "row": "a | b || c |\n|---|---|\n| x |",
    "escaped row": "a \\| <img src=x onerror=alert(1)> \\\\| [c](javascript:d) \\\\\\| e",
    "code": "` `` ``` ~~~ `x",
    "fence": "```\n</details><script>alert(1)</script>\n```",
    "heading": "\n# x\n\nx\n===\n",
    "list": "\n- x\n1. x\n> x\n\n    x",
    "front matter": "---\nlicense: mine\n---\n",
    "document end": "...\n--- !!python/object/apply:os.mkdir [x]",
    "mapping": "a: b\n? c : d #e\n- f",
    "tag": "!!python/object/apply:os.mkdir ['x'] &a *a %b @c",
    "template": "{{ 7 * 7 }} {% raw %} ${7*7} #{7*7} <%= 7 %>",
    "math": "$x^2$ $$\\href{javascript:alert(1)}{x}$$",
    "clear screen": "\x1b[2J\x1b[1;1H\x1b]0;title\x07\x1b]8;;http://evil.invalid\x07x\x1b]8;;\x07",
    "8-bit escape": "\x9b2J\x9d0;title\x9c\x90",
    "line over": "good\rbad\x08\x08\x08worse\x0b\x0c\x00\x7f",
    "right to left": "abc\u202egnp.exe\u2066x\u2069\u202a",
    "separators": "a\u2028b\u2029c\x85d",
    "formula": "=cmd|' /C calc'!A0",
    "formula by plus": "+1+cmd|' /C calc'!A0",
    "formula by at": "@SUM(1+1)*cmd|' /C calc'!A0",
    "formula by tab": "\t=1+1",
    "sql": "'; DROP TABLE trials; --",
    "shell": "$(touch x) `touch x`; touch x",
    "long": "w" * 3000,
    "emoji and joined letters": "👩‍👩‍👧 می‌خواهم שלום ‏",
}
"""Name -> text that would do something where it is not escaped."""


GITHUB_CELL = r"(?:\\[!-/:-@\[-`{-~]|[^|\r\n])+"
"""What cmark-gfm takes for a table's cell."""


class Page(HTMLParser):
    """What a browser would find: elements, attributes and text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text: list[str] = []
        self.feed(page)
        self.words = " ".join(" ".join(self.text).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def flat(tokens: list[Token]) -> Iterator[Token]:
    for token in tokens:
        yield token
        yield from flat(token.children or [])


OURS = re.compile(r"(</?details>|<summary>[^<>]*</summary>|\s)*")
"""The only HTML that our markdown holds."""


def parsed(markdown: str) -> list[Token]:
    """Parse markdown as the Hub and GitHub do, and check that nobody else's links, pictures or HTML are in it."""
    tokens = list(flat(MarkdownIt("commonmark").enable("table").parse(markdown)))
    found = {token.type for token in tokens}
    assert not found & {"link_open", "image", "html_inline"}, found
    for token in tokens:
        if token.type == "html_block":
            assert OURS.fullmatch(token.content), token.content
        elif token.type == "text":
            # What is no code and looks like an address becomes a link on GitHub.
            assert not re.search(r"\w://|www\.\w|@\w", token.content), token.content
    assert not CONTROLS.search(markdown)
    return tokens


def shown(tokens: list[Token]) -> str:
    """Give the text a reader sees, on one line."""
    kinds = ("text", "code_inline", "code_block", "fence")
    return " ".join(" ".join(token.content for token in tokens if token.type in kinds).replace(WORD_JOINER, "").split())


def line_of(text: str) -> str:
    return " ".join(visible(text).split())


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("where", ["text", "cell", "code", "code cell"])
def test_markdown_shows_any_text_as_it_is(name: str, where: str) -> None:
    escaped = markdown_code(HOSTILE[name]) if "code" in where else markdown_text(HOSTILE[name])
    expected = line_of(HOSTILE[name])
    if "cell" not in where:
        said = shown(parsed(f"see {escaped} there"))
        # In a code span outside a table the backslash before a | is seen.
        assert expected in said or ("code" in where and expected in said.replace("\\|", "|"))
        return
    row = f"| {escaped} | last |"
    assert len(re.findall(GITHUB_CELL, row)) == 2, "GitHub cuts a row at every | without a backslash of its own"
    tokens = parsed(f"| a | b |\n|---|---|\n{row}\n")
    cells = [token.content for token in tokens if token.type == "inline"]
    assert len(cells) == 4 and cells[3] == "last", "a row has the cells it should have"
    assert expected in shown(tokens)


def chain_link(text: str) -> dict[str, Any]:
    return {
        "checkpoint": text,
        "checkpoint_sha256": "5f" * 32,
        "architecture": text,
        "dataset": text,
        "num_labels": 2,
        "arm": text,
        "tuning": "lora",
        "train_rows": 80,
    }


def card_of(text: str) -> str:
    result = {
        "chain": [chain_link(text), chain_link(text) | {"num_labels": text, "tuning": text}, chain_link(text)],
        "metrics": {"test": {"loss": 0.5, "accuracy": 0.75, text: 0.25}},
        "cost": {"train_seconds": 3.2, "updates": 10, "trainable_parameters": 5, "total_parameters": 7},
        "environment": {"device": text},
        "data": {"test_rows": 31},
        "seed": 0,
        "budget": 100,
    }
    return render_card(result, {"task": {"kind": "text-classification"}, "labels": [text, "b"]})


@pytest.mark.parametrize("name", HOSTILE)
def test_the_card_shows_any_text_as_it_is(name: str) -> None:
    text = HOSTILE[name]
    card = card_of(text)
    read = ModelCard(card)
    values, body = read.data.to_dict(), read.text
    assert values["library_name"] == "peft" and values["pipeline_tag"] == "text-classification"
    assert set(values) == {"library_name", "pipeline_tag", "metrics", "tags"}, "no made-up id of the Hub, no key of theirs"
    tokens = parsed(body)
    plain = parsed(ModelCard(card_of("plain")).text)
    structure = [token.type for token in tokens if token.level == 0]
    assert structure == [token.type for token in plain if token.level == 0], "no heading, list or row is added"
    assert sum(token.type == "td_open" for token in tokens) == sum(token.type == "td_open" for token in plain)
    assert shown(tokens).count(line_of(text)) >= 10


@pytest.mark.parametrize("task", ["text-classification", "token-classification"])
def test_a_report_shows_any_text_as_it_is(tmp_path: Path, task: str) -> None:
    texts = list(HOSTILE.values())
    plain = [f"plain {number}" for number in range(len(texts))]
    pages, sources = {}, {}
    for name, given in (("plain", plain), ("hostile", texts)):
        labels = ["O", *(f"{prefix}-{text}" for text in given for prefix in "BI")] if task == "token-classification" else given
        failed = [{"arm": "head", "budget": 60, "seed": seed, "error": text} for seed, text in enumerate(given)]
        folder = write_run(tmp_path, name=name, task=task, labels=labels, texts=given, failed=failed)
        recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
        recipe |= {"name": "; ".join(given), "data": {"source": given}}
        (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        for path in folder.glob("*/*/*/result.json"):
            result = json.loads(path.read_text())
            names = {"checkpoint": "; ".join(given), "dataset": "; ".join(given)}
            path.write_text(json.dumps(result | names | {"environment": result["environment"] | {"device": "; ".join(given)}}))
        pages[name] = Page(render_report(folder, "html"))
        sources[name] = render_report(folder, "html"), render_report(folder, "md")
    page, (html, markdown) = pages["hostile"], sources["hostile"]
    assert page.tags == pages["plain"].tags, "what others wrote makes no element"
    assert [name for name, _ in page.attributes] == [name for name, _ in pages["plain"].attributes]
    assert all(value.startswith(("#", "data:image/")) for name, value in page.attributes if name in ("href", "src", "xlink:href"))
    assert not CONTROLS.search(html)
    for text in texts:
        assert line_of(text) in page.words, text

    tokens, expected = parsed(markdown), parsed(sources["plain"][1])
    for kind in ("heading_open", "td_open", "tr_open", "html_block", "list_item_open", "fence"):
        assert sum(token.type == kind for token in tokens) == sum(token.type == kind for token in expected), kind
    words = shown(tokens)
    for text in texts:
        assert line_of(text) in words, text


def test_a_sheet_of_the_report_holds_no_formula(tmp_path: Path) -> None:
    """Its words are ours (arms, metrics, verdicts), whatever labels and rows say."""
    folder = write_run(tmp_path, labels=list(HOSTILE.values()), texts=list(HOSTILE.values()))
    rows = list(csv.reader(io.StringIO(render_report(folder, "csv"))))
    assert len(rows) > 10
    for cell in {cell for row in rows for cell in row if cell}:
        try:
            float(cell)
        except ValueError:
            assert re.fullmatch(r"[A-Za-z0-9][\w+-]*( [\w]+)*", cell), cell


def test_an_arm_cannot_be_called_like_a_formula() -> None:
    for name in ("=1+1", "+1", "-1", "@x", "\t=1", "a\r=1"):
        with pytest.raises(TransferError, match="arms"):
            ht.Recipe("x", arms={name: ht.Arm(learning_rate=1e-3, num_epochs=1)})


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "parquet"])
def test_predictions_keep_the_values_of_the_input_as_they_are(topics_model: Path, tmp_path: Path, suffix: str) -> None:
    """They are data for the next program: whoever opens a sheet of strangers' rows must not let it run formulas."""
    texts = [text for text in HOSTILE.values() if "\0" not in text]
    rows = [{"text": text, "=note": text} for text in texts]
    write_jsonl(tmp_path / "in.jsonl", rows)
    ht.load(topics_model).predict_file(tmp_path / "in.jsonl", tmp_path / f"out.{suffix}")
    if suffix == "parquet":
        found = pq.read_table(tmp_path / "out.parquet").to_pylist()
    elif suffix == "jsonl":
        found = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text(encoding="utf-8").split("\n") if line]
    else:
        with (tmp_path / f"out.{suffix}").open(newline="", encoding="utf-8") as file:
            found = list(csv.DictReader(file, delimiter="\t" if suffix == "tsv" else ","))
    assert [(row["text"], row["=note"]) for row in found] == [(text, text) for text in texts]


def test_a_run_on_hostile_rows_and_labels(run: Run, tiny_bert: Path, tmp_path: Path) -> None:
    """From the file to the card: nothing printed moves the cursor, every JSON file is JSON, every page shows text."""
    names = [text for text in HOSTILE.values() if "\0" not in text]
    labels = dict(zip(("boats", "bread", "chess"), (names[0], HOSTILE["clear screen"], HOSTILE["right to left"]), strict=True))
    rows = [
        {"text": f"{row['text']} {names[index % len(names)]}", "label": labels[row["label"]]} for index, row in enumerate(make_rows(90))
    ]
    data = write_csv(tmp_path / "a|b [c](javascript:d) <b> @e `f.csv", rows)
    words = ["text", "--dataset", data, "--checkpoint", tiny_bert, "--max-length", 32, "--arms", "scratch", "lora", "--epochs", 1]
    printed = []
    for more in (["validate"], ["run", "--output-dir", "out"], ["run", "--output-dir", "out", "--resume"]):
        code, out, err = run(more[0], *words, *more[1:])
        assert code == 0, err
        printed.append(out + err)
    printed.append(ht.Comparison("out").table())
    assert not [text for text in printed if CONTROLS.search(text)]
    assert "\\x1b[2J" in printed[0], "the label is shown, written out"

    def refuse(constant: str) -> None:
        pytest.fail(f"{constant} is no JSON")

    held = [path for path in Path("out").rglob("*.json") if path.name != "tokenizer.json"]
    assert len(held) >= 8
    for path in held:
        json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)
    for card in Path("out").rglob("README.md"):
        read = ModelCard(card.read_text(encoding="utf-8"))
        assert read.data.to_dict()["library_name"] in ("transformers", "peft")
        assert data.name in shown(parsed(read.text))
    page = Page(Path("out/report.html").read_text(encoding="utf-8"))
    assert "script" not in page.tags and not [name for name, _ in page.attributes if name.startswith("on")]
    parsed(render_report(Path("out"), "md"))


@pytest.mark.parametrize("name", HOSTILE)
def test_an_error_is_one_line_and_moves_no_cursor(name: str) -> None:
    said = str(DataError(f"row 3 holds {HOSTILE[name]}"))
    assert "\n" not in said and "\t" not in said and not CONTROLS.search(said)
    assert str(DataError(said)) == said


def test_what_is_written_out_can_be_told_from_letters() -> None:
    assert visible("a\x1b[2Jb\u202ec\x00d") == "a\\x1b[2Jb\\u202ec\\x00d"
    assert visible("tab\tand\nline") == "tab\tand\nline"
    assert visible(HOSTILE["emoji and joined letters"]) == HOSTILE["emoji and joined letters"]
    assert visible("\ud800") == "\\ud800", "half a letter cannot be printed at all"

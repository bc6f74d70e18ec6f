"""The report of made-up runs: its numbers are the files', what users wrote stays text, and what is absent is left out."""

import csv
import io
import itertools
import json
import re
import subprocess
import sys
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

import hf_transfer as ht
from hf_transfer.cli import run_cli
from hf_transfer.disk import read_json, write_json
from hf_transfer.errors import ConfigError, RunFolderError
from hf_transfer.escaping import markdown_code, markdown_text
from hf_transfer.evidence.report.formats import interval, percent, score, signed
from hf_transfer.evidence.report.render import FORMATS, render_report
from hf_transfer.evidence.report.sentences import (
    about_seeds,
    budget_name,
    detectable,
    disagreements,
    judge,
    label_efficiency,
    ship_evidence,
)
from tests.evidence.made_runs import PIXEL, MakeRun

HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "$x^2$ and $\\frac{",
    "</td></table><h1>",
    "{{ 7 * 7 }} {% raw %}",
    "`code` | **bold** [link](http://a.b) @everyone",
    "שלום עולם",
    "🐢 turtles 龟",
    "w" * 300,
    "]]> --> </style>",
]
TAGS = ("O", "B-person", "I-person", "B-place", "I-place")


class Page(HTMLParser):
    """What a browser would find: elements, attributes, and text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).replace("\u00a0", " ").split())


def shown(folder: Path) -> str:
    return Page(render_report(folder, "html")).words


def unescaped(markdown: str) -> str:
    return re.sub(r"\\([\\`*_\[\]<>|~$#&])", r"\1", markdown)


@pytest.mark.parametrize("format", ["html", "md"])
@pytest.mark.parametrize("seeds", [(0,), (0, 1), tuple(range(10))])
def test_every_score_and_gain_of_the_files_is_shown(make_run: MakeRun, format: str, seeds: Sequence[int]) -> None:
    folder = make_run(seeds=seeds)
    text = render_report(folder, format)
    words = Page(text).words if format == "html" else unescaped(text)
    comparison = read_json(folder / "comparison.json")
    for entry in comparison["arms"]:
        assert f"{score(entry['mean'])} {interval(entry)}" in words, entry
    for gain in comparison["gains"]:
        assert signed(gain["delta"]) in words and interval(gain, of_difference=True) in words, gain
        if gain["minimum_detectable"] is not None:
            assert score(gain["minimum_detectable"]) in words
    for number in ("0.087", "0.067", "31", "37", "93 %", "0.00123", "17", "0.00321", "0.432", "3.25"):
        assert number in words, f"{number}: floors, overlap, what was allowed, search, labels needed"


def test_a_changed_file_changes_the_report(make_run: MakeRun) -> None:
    folder = make_run()
    before = {format: render_report(folder, format) for format in FORMATS}
    assert before == {format: render_report(folder, format) for format in FORMATS}, "the same files give the same report"
    comparison = read_json(folder / "comparison.json")
    gain = next(gain for gain in comparison["gains"] if gain["metric"] == comparison["primary_metric"])
    gain["delta"] = 0.9876
    write_json(folder / "comparison.json", comparison)
    for format in FORMATS:
        assert "0.987" in render_report(folder, format).replace("0.988", "0.987") and "0.988" not in before[format]


@pytest.mark.parametrize("task", ["text-classification", "token-classification"])
def test_what_users_wrote_stays_text(make_run: MakeRun, task: str) -> None:
    of_words = task == "token-classification"
    plain = [f"plain {number}" for number in range(len(HOSTILE))]
    pages = {}
    for name, texts in (("plain", plain), ("hostile", HOSTILE)):
        labels = ["O", *(f"{prefix}-{text}" for text in texts for prefix in "BI")] if of_words else texts
        failed = [{"arm": "head", "budget": 60, "seed": 7, "error": texts[0]}]
        folder = make_run(name=name, task=task, labels=labels, texts=texts, failed=failed)
        pages[name] = Page(render_report(folder, "html"))
    page = pages["hostile"]
    assert page.tags == pages["plain"].tags, "what users write makes no element"
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    for text in HOSTILE:
        assert text in page.words, text
    assert all(value.startswith(("#", "data:image/")) for name, value in page.attributes if name in ("href", "src", "xlink:href"))

    markdown = render_report(folder, "md")
    markdown = markdown.replace("\\`", "")  # An escaped backtick begins no code.
    outside = re.sub(r"(`+)(?!`).*?(?<!`)\1(?!`)", "", re.sub(r"^(```+).*?^\1$", "", markdown, flags=re.S | re.M), flags=re.S)
    for piece in ("<script", "<img", "<h1", "@everyone", "](http"):
        assert piece not in outside, piece
    tables = re.findall(r"(?:^\|.*\n)+", markdown, flags=re.M)
    assert len(tables) > 10
    for table in tables:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1, f"a cell breaks its row: {table}"


def test_markdown_neither_formats_nor_calls_anybody() -> None:
    assert "@everyone" not in markdown_text("@everyone") and markdown_text("a|b_c*") == "a\\|b\\_c\\*"
    assert markdown_text("<b>[x](y)") == "\\<b\\>\\[x\\](y)"
    assert [markdown_code(text) for text in ("a|b", "", "two\nlines", "a`b", "`")] == ["`a\\|b`", "", "`two lines`", "``a`b``", "`` ` ``"]


def test_a_page_stands_alone(make_run: MakeRun) -> None:
    html = render_report(make_run(budgets=(60, 250, "all")), "html")
    page = Page(html)
    ids = [value for name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    assert {value[1:] for name, value in page.attributes if name in ("href", "xlink:href")} <= set(ids), "every reference has its target"
    assert "script" not in page.tags and "link" not in page.tags
    assert ("content", "default-src 'none'; style-src 'unsafe-inline'; img-src data:") in page.attributes
    assert "#f00" not in html.lower(), "every placeholder colour became a variable"
    assert all(label for name, label in page.attributes if name == "aria-label") and page.tags.count("svg") >= 8
    assert not re.search(r"\d{4}-\d\d-\d\dT", html), "no date: the same files give the same page"


def test_the_sheet_and_the_json_hold_what_the_files_hold(make_run: MakeRun) -> None:
    folder = make_run()
    comparison = read_json(folder / "comparison.json")
    rows = list(csv.DictReader(io.StringIO(render_report(folder, "csv"))))
    assert [(row["arm"], row["budget"], row["metric"]) for row in rows] == [
        (entry["arm"], str(entry["budget"]), entry["metric"]) for entry in comparison["arms"]
    ]
    assert [float(row["mean"]) for row in rows] == [entry["mean"] for entry in comparison["arms"]]
    gains = {(gain["arm"], str(gain["budget"]), gain["metric"]): gain for gain in comparison["gains"]}
    for row in rows:
        gain = gains.get((row["arm"], row["budget"], row["metric"]))
        assert row["gain_delta"] == ("" if gain is None else str(gain["delta"]))
        assert row["gain_verdict"] == ("" if gain is None else gain["verdict"] or "")
        assert (row["majority"], row["random"]) == ("0.0871", "0.0672")
    found = json.loads(render_report(folder, "json"))
    assert found == comparison | {"hygiene": read_json(folder / "hygiene.json"), "search": read_json(folder / "search.json")}


@pytest.mark.parametrize(
    ("verdicts", "arms", "tone", "begins", "holds"),
    [
        ({}, ("scratch", "lora"), "helps", "Transfer helps: on all 640 labelled rows lora scores accuracy", "a gain of +"),
        ({"rest": "hurts"}, ("scratch", "lora"), "hurts", "Transfer hurts: on all 640 labelled rows", "a loss of -"),
        ({"rest": "no evidence"}, ("scratch", "lora"), "no evidence", "No evidence that transfer helps: on all 640", "may be chance"),
        (
            {("lora", "all"): "no evidence"},
            ("scratch", "lora"),
            "mixed",
            "Transfer (lora against scratch, accuracy) helps with 60 labelled rows (+",
            "; shows no evidence with all 640",
        ),
        ({}, ("head", "lora"), "unknown", "Whether transfer helps this run cannot say", "lora scores accuracy"),
        # The arm from scratch is the one to ship: the verdict is about the other with the largest gain.
        ({"rest": "hurts"}, ("lora", "scratch"), "hurts", "Transfer hurts: on all 640 labelled rows lora", "a loss of -"),
    ],
)
def test_the_verdict(make_run: MakeRun, verdicts: dict[Any, str], arms: Sequence[str], tone: str, begins: str, holds: str) -> None:
    folder = make_run(verdicts=verdicts, arms=arms)
    verdict = judge(read_json(folder / "comparison.json"))
    assert verdict.tone == tone
    assert verdict.sentence.startswith(begins) and holds in verdict.sentence
    words = shown(folder)
    assert verdict.sentence in words and words.index(verdict.sentence) < words.index("Ship:"), "the verdict comes first"
    assert verdict.sentence in unescaped(render_report(folder, "md"))


@pytest.mark.parametrize(
    ("arms", "verdicts", "said"),
    [
        (("scratch", "lora"), {}, "Its gain over scratch has evidence: +"),
        (("scratch", "lora"), {"rest": "no evidence"}, "Its gain over scratch has no evidence: +"),
        (("scratch", "lora"), {"rest": "hurts"}, "But on test it is worse than scratch: -"),
        (("lora", "scratch"), {}, "It is the arm trained from scratch"),
        (("head", "lora"), {}, "No training from scratch was finished"),
    ],
)
def test_what_is_shipped_says_whether_it_has_evidence(make_run: MakeRun, arms: Sequence[str], verdicts: dict[Any, str], said: str) -> None:
    folder = make_run(arms=arms, verdicts=verdicts)
    assert ship_evidence(read_json(folder / "comparison.json")).startswith(said)
    assert said in shown(folder)


def test_few_seeds_say_what_they_cannot_show(make_run: MakeRun) -> None:
    assert "another draw of training rows" in (about_seeds(1) or "")
    assert "12.7 standard errors" in (about_seeds(2) or "")
    assert about_seeds(3) is None
    assert "12.7 standard errors" in shown(make_run(seeds=(4, 5)))


def test_without_an_arm_from_scratch_there_are_no_gains(make_run: MakeRun) -> None:
    folder = make_run(arms=("head", "lora"))
    for format in FORMATS:
        assert render_report(folder, format)
    assert "Gain over" not in shown(folder)


def test_labels_needed(make_run: MakeRun) -> None:
    comparison = read_json(make_run() / "comparison.json")
    assert label_efficiency(comparison) == [
        f"{arm}: to match it scratch needs 3.2 times the labels (budget 60); more labels than there are (budget all)."
        for arm in ("head", "lora")
    ]
    comparison["label_efficiency"][0]["matched"] = "not reached"
    assert "more than 10.7 times the labels (budget 60)" in label_efficiency(comparison)[0], "640 rows were not enough for 60"


def test_metrics_that_disagree_are_named(make_run: MakeRun) -> None:
    comparison = read_json(make_run(arms=("scratch", "lora"), budgets=("all",)) / "comparison.json")
    gains = {gain["metric"]: gain for gain in comparison["gains"]}
    gains["ece"]["delta"] = -0.05
    assert disagreements(comparison) is None, "less ece is better"
    gains["ece"]["delta"], gains["mcc"]["delta"] = 0.05, -0.07
    found = disagreements(comparison)
    assert found is not None and "ece (less is better) lora at all (+0.050)" in found and "mcc lora at all (-0.070)" in found


@pytest.mark.parametrize("task", ["text-classification", "token-classification", "image-classification"])
@pytest.mark.parametrize("private", [False, True])
def test_every_task_private_or_not(make_run: MakeRun, task: str, private: bool) -> None:
    labels = TAGS if task == "token-classification" else ("boats", "bread", "chess")
    folder = make_run(task=task, labels=labels, private=private, texts=["an anchor in the oven"])
    (folder / "recipe.yaml").write_text("name: topics\nrun: {arms: [scratch, head, lora], budgets: [60, all], seeds: [0, 1, 2]}\n")
    page = Page(render_report(folder, "html"))
    assert ("anchor" in page.words) is not private
    assert (("src", PIXEL) in page.attributes) is (task == "image-classification" and not private)
    assert ("mark" in page.tags) is (task == "token-classification" and not private)
    assert ("The data is private" in page.words) is private
    assert ("person (words 42 to 42)" in page.words) is (task == "token-classification" and private)
    assert "test row 0" in page.words


def test_optional_files_leave_their_sections_out(make_run: MakeRun) -> None:
    folder = make_run(bare=True)
    words = shown(folder)
    for title in ("Errors to look at", "The data", "What was searched", "What failed"):
        assert title not in words
    for path in folder.rglob("predictions.parquet"):
        path.unlink()
    assert "Class by class" in words and "Class by class" not in shown(folder)
    for format in FORMATS:
        assert render_report(folder, format)


def test_failed_trainings_are_told(make_run: MakeRun) -> None:
    folder = make_run(failed=[{"arm": "head", "budget": 60, "seed": 7, "error": "the loss became no number"}])
    words = shown(folder)
    assert "1 training is missing" in words and "the loss became no number" in words


def test_many_classes_name_the_confusions_and_the_lost_class(make_run: MakeRun) -> None:
    labels = [f"intent {number:02d}" for number in range(77)]
    folder = make_run(labels=labels)
    words = shown(folder)
    assert "Most confused" in words and "is \\ predicted" not in words
    assert re.search(r"Never predicted, though test holds it: class [^.]*intent 76", words) and "never predicted" in words
    assert all(label in words for label in labels)


def test_many_arms_keep_a_look_each(make_run: MakeRun) -> None:
    arms = ["scratch", *(f"a-rather-long-name-of-an-arm-{number}" for number in range(8))]
    html = render_report(make_run(arms=arms, budgets=(30, 60, 120, 240, 480, "all")), "html")
    assert {f"var(--arm-{number})" for number in range(9)} <= set(re.findall(r"var\(--arm-\d\)", html))


def test_a_report_needs_a_finished_run_of_this_version(make_run: MakeRun, tmp_path: Path) -> None:
    folder = make_run()
    with pytest.raises(RunFolderError, match=r"holds no comparison\.json: expected the folder of a finished run"):
        render_report(tmp_path)
    with pytest.raises(ConfigError, match="html, md, csv, json, found 'htm'; did you mean 'html'?"):
        render_report(folder, "htm")
    comparison = read_json(folder / "comparison.json")
    del comparison["labels"], comparison["failed"]
    write_json(folder / "comparison.json", comparison)
    for read in (render_report, lambda run: ht.Comparison(run).table()):
        with pytest.raises(RunFolderError, match=r"has no labels, failed: an older version"):
            read(folder)


@pytest.mark.parametrize(
    "name", ["comparison.json", "hygiene.json", "head/budget-60/seed-2/result.json", "*/budget-*/seed-*/predictions.parquet"]
)
def test_a_damaged_file_is_named(make_run: MakeRun, name: str) -> None:
    folder = make_run()
    paths = list(folder.glob(name))
    assert paths
    for path in paths:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(RunFolderError, match=rf"{Path(name).name} is damaged and cannot be read"):
        render_report(folder)


def test_a_run_without_any_result_is_named(make_run: MakeRun) -> None:
    folder = make_run()
    for result in folder.glob("*/budget-*/seed-*/result.json"):
        result.unlink()
    with pytest.raises(RunFolderError, match=r"holds no result\.json of any training"):
        render_report(folder)


@pytest.mark.parametrize(("budget", "said"), [("all", "--budgets 160 320 all would"), (60, "--budgets 15 30 60 would")])
def test_the_budgets_proposed_are_within_the_rows_there_are(make_run: MakeRun, budget: int | str, said: str) -> None:
    assert said in render_report(make_run(budgets=(budget,)), "md")


def test_the_verdict_tells_of_an_arm_that_fared_otherwise(make_run: MakeRun) -> None:
    comparison = read_json(make_run(budgets=("all",), verdicts={"rest": "no evidence"}) / "comparison.json")
    assert judge(comparison).sentence.startswith("No evidence that transfer helps: on all ")
    next(gain for gain in comparison["gains"] if gain["arm"] == "head" and gain["verdict"])["verdict"] = "helps"
    sentence = judge(comparison).sentence
    assert sentence.startswith("No evidence that lora helps: on all ") and re.search(
        r"\. But head helps \([+-]0\.\d+ \[.*\]\)\.$", sentence
    )


def test_no_gain_is_larger_than_one(make_run: MakeRun) -> None:
    comparison = read_json(make_run() / "comparison.json")
    for gain in comparison["gains"]:
        gain["minimum_detectable"] = gain["minimum_detectable"] and 2.3
    assert detectable(comparison) == (
        "Of lora (budget all) this design could not be expected to detect any gain, however large: more seeds or more test rows would."
    )


def test_percentages_round_neither_to_none_nor_to_all() -> None:
    assert [percent(share) for share in (0, 0.004, 0.5, 0.996, 1)] == ["0 %", "< 1 %", "50 %", "> 99 %", "100 %"]


def test_budget_names(make_run: MakeRun) -> None:
    comparison = read_json(make_run(budgets=(1200, "all")) / "comparison.json")
    assert [budget_name(comparison, budget) for budget in (1200, "all")] == ["1,200 labelled rows", "all 640 labelled rows"]


def run_verb(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as end:
        run_cli(["report", *map(str, arguments)])
    written = capsys.readouterr()
    assert isinstance(end.value.code, int)
    return end.value.code, written.out, written.err


def test_the_verb(make_run: MakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, other = make_run(), tmp_path / "report.md"
    for _ in range(2):
        assert run_verb(capsys, folder) == (0, f"written to {folder / 'report.html'}\n", ""), "the run's own page is renewed"
    assert (folder / "report.html").read_text(encoding="utf-8") == render_report(folder)
    for format in ("md", "csv", "json"):
        assert run_verb(capsys, folder, "--format", format) == (0, render_report(folder, format), "")
    assert run_verb(capsys, folder, "--format", "md", "--output", other)[0] == 0
    assert other.read_text(encoding="utf-8") == render_report(folder, "md")
    code, _, said = run_verb(capsys, folder, "--output", other)
    assert code == 2 and said == f"error: {other} is there already: name another with --output, or remove it\n"
    code, _, said = run_verb(capsys, tmp_path / "nowhere")
    assert code == 2 and said.startswith("error: ") and "holds no comparison.json" in said
    assert run_verb(capsys, folder, "--format", "pdf")[0] == 2


def test_a_report_loads_no_torch(make_run: MakeRun) -> None:
    folders = [str(make_run())]
    code = f"""
import sys
from pathlib import Path
from hf_transfer.evidence.report.render import render_report
for folder, format in {list(itertools.product(folders, FORMATS))}:
    render_report(Path(folder), format)
assert not {{"torch", "transformers", "datasets"}} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

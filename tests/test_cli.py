"""Bad input is one `error: ` sentence on standard error, exit code 2, before any training, and nothing is written."""

import json
import socket
import sys
import time
from importlib import metadata
from pathlib import Path

import pytest
import yaml

import hf_transfer as ht
from hf_transfer import cli
from hf_transfer import flags as flags_module
from hf_transfer.data import hub
from tests.conftest import Run, make_rows, make_sentences, refused, save_tiny_bert, write_csv, write_jsonl


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["rum", "newsgroups"], "no verb 'rum', there are run, validate, tune, report, predict, new, ls; did you mean 'run'?"),
        (["run"], "name a recipe (image, ner, newsgroups, sentiment, text, vit)"),
        (["run", "newsgrups"], "no recipe 'newsgrups'"),
        (["run", "newsgrups"], "did you mean 'newsgroups'?"),
        (["run", "mine.py"], "recipe file mine.py does not exist"),
        (["run", "newsgroups", "--arm", "full"], "unknown flag '--arm'; did you mean '--arms'?"),
        (["run", "newsgroups", "--save-evry"], "unknown flag '--save-evry'; did you mean '--save-every'?"),
        (
            ["run", "newsgroups", "--embedded", "--arms", "lroa"],
            "no arm 'lroa', it has scratch, head, top, lora, full; did you mean 'lora'?",
        ),
        (["run", "newsgroups", "--epochs", "many"], "argument --epochs: invalid int value: 'many'"),
        (
            ["run", "newsgroups", "--arms", "full", "--epochs", "0"],
            "--epochs: expected a number above 0, found 0",
        ),
        (["run", "newsgroups", "--batch-size", "-4"], "training.batch_size: expected a value greater than 0, found -4"),
        (
            ["run", "newsgroups", "--arms", "full", "--learning-rate", "-1"],
            "--learning-rate: expected a number above 0, found -1.0",
        ),
        (
            ["run", "newsgroups", "--max-length", "0"],
            "task.max_length: expected a value greater than or equal to 4, found 0",
        ),
        (
            ["run", "newsgroups", "--precision", "bf61"],
            "training.precision: expected 'auto', 'bf16', 'fp16' or 'fp32', found 'bf61'; did you mean 'bf16'?",
        ),
        (["run", "newsgroups", "--set", "arms.lora.lora.rank=3"], "arms.lora.lora.rank: unknown key"),
        (
            ["run", "newsgroups", "--set", "training.batch_sise=3"],
            "training.batch_sise: unknown key; did you mean 'batch_size'?",
        ),
        (["run", "newsgroups", "--set", "training"], "expected --set field=value, found 'training'"),
        (["run", "newsgroups", "--set", "training.batch_size=[1"], "'[1' is no YAML value"),
        (
            ["run", "newsgroups", "--columns", "txt=body"],
            "unknown role 'txt', roles are text, text_pair, label, label_name, document; did you mean 'text'?",
        ),
        (["run", "newsgroups", "--config", "gone.yaml"], "config file gone.yaml does not exist"),
        (
            ["run", "newsgroups", "--embedded", "--budgets", "many"],
            "a budget is a number of rows above 0, or 'all', found 'many'",
        ),
        (
            ["run", "newsgroups", "--embedded", "--budgets", "10"],
            "a budget of 10 rows is too small for 8 classes: at least 16",
        ),
        (
            ["run", "newsgroups", "--embedded", "--budgets", "5000"],
            "a budget of 5000 rows is more than the 256 training rows",
        ),
        (["run", "newsgroups", "--embedded", "--seeds", "-1"], "a seed is a whole number from 0 to 4294967295, found -1"),
        (["run", "newsgroups", "--embedded", "--max-test-rows", "0"], "max_test_rows must be a number of at least 1, found 0"),
        (["run", "newsgroups", "--embedded", "--max-length", "600"], "max_length 600 is more than the 512 tokens"),
        (["run", "newsgroups", "--embedded", "--output-dir", ""], "--output-dir must not be empty"),
        (["run", "newsgroups", "--checkpoint", ""], "checkpoint: must not be empty"),
        (["run", "text"], "recipe text names no data: give --dataset"),
        (["run", "sentiment", "--set", "task.keep=ends"], "task.keep: expected 'head', 'tail' or 'both', found 'ends'"),
        (["run", "sentiment", "--set", "training.sampling=even"], "training.sampling: expected 'shuffled' or 'balanced', found 'even'"),
        (["run", "ner", "--set", "task.loss_per=words"], "task.loss_per: expected 'word' or 'row', found 'words'; did you mean 'word'?"),
        (["run", "ner", "--set", "task.lenght=9"], "task.lenght: unknown key; did you mean 'max_length'?"),
        (["run", "ner", "--set", "task.kind=token-clasification"], "did you mean 'token-classification'?"),
        (["run", "ner", "--set", "task.text=body"], "text and spans belong together"),
        (
            ["run", "ner", "--columns", "token=words"],
            "unknown role 'token', roles are tokens, ner_tags, text, spans, document; did you mean 'tokens'?",
        ),
        (["run", "ner", "--embedded", "--budgets", "9"], "a budget of 9 rows is too small to train and validate on: at least 10"),
        (["run", "ner", "--embedded", "--set", "training.sampling=balanced"], "sampling 'balanced' needs one label a row"),
        (["run", "ner", "--embedded", "--set", "training.class_weights={persn: 2}"], "names 'persn', entity types are"),
        (["run", "ner", "--embedded", "--set", "training.class_weights={persn: 2}"], "did you mean 'person'?"),
        (["run", "text", "--columns", "text=a", "--columns", "text=b"], "--columns gives text twice: a and b"),
        (["run", "text", "--dataset", "gone/", "--embedded"], "no file or folder gone/"),
        (["validate"], "name a recipe (image, ner, newsgroups"),
        (["validate", "ner", "--output-dir", "x"], "unknown flag '--output-dir'"),
        (["validate", "newsgroups", "--embedded", "--budgets", "5000"], "more than the 256 training rows"),
        (["validate", "newsgroups", "--embedded", "--budgets", "256", "all"], "budget 256 and budget all are the same rows"),
        (["new"], "the following arguments are required: FILE.py, --from"),
        (["new", "mine", "--from", "ner"], "a recipe file is called NAME.py, of letters, digits, . _ and -, found 'mine'"),
        (["new", "my recipe.py", "--from", "ner"], "found 'my recipe.py'"),
        (["new", "mine.py", "--from", "nerr"], "no recipe 'nerr'"),
        (["new", "nowhere/mine.py", "--from", "ner"], "cannot write nowhere/mine.py: No such file or directory"),
        (["ls", "ner"], "unknown argument 'ner'"),
        (["run", "text", "--embedded"], "recipe text names no data: give --dataset"),
        (["run", "text", "--embedded", "--dataset", "reviews.csv"], "no file or folder reviews.csv"),
        (["run", "newsgroups", "--embedded", "--precision", "fp16"], "precision fp16 needs a GPU"),
        (["run", "newsgroups", "--embedded", "--parallel", "999"], "parallel 999 needs as many "),
    ],
)
def test_a_mistake_on_the_command_line(run: Run, words: list[str], message: str) -> None:
    assert message in refused(run(*words))


def test_several_mistakes_come_at_once(run: Run) -> None:
    message = refused(run("run", "newsgroups", "--batch-size", 0, "--max-length", 1, "--set", "arms.full.tuning=ful"))
    assert all(part in message for part in ("3 problems", "training.batch_size", "task.max_length", "did you mean 'full'"))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("text,label\n", "holds no rows"),
        ("", "is empty"),
        (
            "review,stars\ngood,5\nbad,1\n",
            "no column 'text' (the text), 'label' (the label); it has review, stars",
        ),
        ("text,label\na,x\nb,x\nc,x\nd,x\n", "at least two classes, every training row is 'x'"),
        ("text,label\na,x\nb,y\n", "no test row can be set aside: no class has two different inputs; give a test split"),
    ],
)
def test_bad_files(run: Run, tmp_path: Path, tiny_bert: Path, rows: str, message: str) -> None:
    (tmp_path / "data.csv").write_text(rows)
    assert message in refused(run("run", "text", "--dataset", tmp_path / "data.csv", "--checkpoint", tiny_bert, "--max-length", 32))


@pytest.mark.parametrize(("missing", "message"), [("null", "1 of 20 train rows have no text (row 7: None)"), ("NaN", "mixes number, str")])
def test_a_row_without_text(run: Run, tmp_path: Path, tiny_bert: Path, missing: str, message: str) -> None:
    lines = [json.dumps(row) for row in make_rows(20)]
    lines[7] = f'{{"text": {missing}, "label": "boats"}}'
    (tmp_path / "data.jsonl").write_text("\n".join(lines))
    assert message in refused(run("run", "text", "--dataset", tmp_path / "data.jsonl", "--checkpoint", tiny_bert, "--max-length", 32))


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ("{seeds: 3}", "seeds must be a list of one or more, found 3"),
        ("{seeds: [a]}", "a seed is a whole number from 0 to 4294967295, found 'a'"),
        ("{budgets: 128}", "budgets must be a list of one or more, found 128"),
        ("{max_test_rows: x}", "max_test_rows must be a number of at least 1, found 'x'"),
        ("{arms: [[1]]}", "recipe newsgroups has no arm '[1]'"),
        ("{arm: [full]}", "`run` must be a mapping of arms, budgets, seeds, max_test_rows, search, private_data, found arm"),
        ("[arms]", "`run` must be a mapping of arms, budgets, seeds, max_test_rows, search, private_data, found ['arms']"),
        ("5", "`run` must be a mapping of arms, budgets, seeds, max_test_rows, search, private_data, found 5"),
        ("true", "`run` must be a mapping of arms, budgets, seeds, max_test_rows, search, private_data, found True"),
    ],
)
def test_a_bad_run_section(run: Run, tmp_path: Path, section: str, message: str) -> None:
    (tmp_path / "x.yaml").write_text(f"run: {section}\n")
    assert message in refused(run("run", "newsgroups", "--embedded", "--config", tmp_path / "x.yaml"))


def test_a_column_of_numbers_is_no_text(run: Run, tmp_path: Path, tiny_bert: Path) -> None:
    rows = [{"text": index, "label": row["label"]} for index, row in enumerate(make_rows(20))]
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    message = refused(run("run", "text", "--dataset", tmp_path / "data.jsonl", "--checkpoint", tiny_bert, "--max-length", 32))
    assert "the text column of the train data holds int (0), expected text" in message


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("def (:", "line 1: SyntaxError: invalid syntax"),
        ("import nothing_here", "line 1: ModuleNotFoundError: No module named 'nothing_here'"),
        ("x = 1", "must define RECIPE = ht.Recipe(...)"),
        ("import hf_transfer as ht\nRECIPE = ht.Recipe(name='x', arm=1)", "arm: unknown key; did you mean 'arms'?"),
    ],
)
def test_a_recipe_file_that_does_not_load(run: Run, tmp_path: Path, code: str, message: str) -> None:
    (tmp_path / "mine.py").write_text(code)
    assert message in refused(run("run", tmp_path / "mine.py"))


def test_every_run_section_counts_and_the_nearest_wins(run: Run, tmp_path: Path, tiny_bert: Path) -> None:
    recipe = ht.load_recipe("newsgroups").override({"data.source": "embedded:newsgroups", "checkpoint": str(tiny_bert)}).to_dict()
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(recipe | {"run": {"arms": ["zzz"], "seeds": [-1]}}))
    (tmp_path / "b.yaml").write_text("run: {arms: [head]}\n")
    (tmp_path / "c.json").write_text(json.dumps(recipe | {"run": {"arms": ["yyy"]}}))
    assert "no arm 'zzz'" in refused(run("run", tmp_path / "a.yaml"))
    assert "a seed is a whole number from 0" in refused(run("run", tmp_path / "a.yaml", "--config", tmp_path / "b.yaml"))
    assert "no arm 'xxx'" in refused(run("run", tmp_path / "a.yaml", "--config", tmp_path / "b.yaml", "--arms", "xxx"))
    assert "no arm 'yyy'" in refused(run("run", "--config", tmp_path / "c.json"))


def test_a_test_split_without_labels_is_told(run: Run, tmp_path: Path, tiny_bert: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    write_csv(folder / "train.csv", make_rows(40))
    write_csv(folder / "test.csv", [{"text": row["text"], "lable": row["label"]} for row in make_rows(9)])
    words = ["--dataset", folder, "--checkpoint", tiny_bert, "--max-length", 32, "--arms", "head", "--epochs", 1, "--output-dir", "out"]
    code, _, err = run("run", "text", *words)
    assert code == 0
    assert "32 training rows, 8 test rows (a fifth of the rows: the test split has no labels), 3 labels" in err
    assert "1 of 1 done: head, budget all, seed 0: validation accuracy" in err


def test_a_test_label_that_training_lacks(run: Run, tmp_path: Path, tiny_bert: Path) -> None:
    write_csv(tmp_path / "train.csv", make_rows(20, topics=("boats", "bread")))
    write_csv(tmp_path / "test.csv", make_rows(6))
    folder = tmp_path / "data"
    folder.mkdir()
    for name in ("train.csv", "test.csv"):
        (tmp_path / name).rename(folder / name)
    assert "the test data has labels that training lacks: chess" in refused(
        run("run", "text", "--dataset", folder, "--checkpoint", tiny_bert, "--max-length", 32)
    )


def test_bad_checkpoints(run: Run, tmp_path: Path, topics_folder: Path, tiny_bert: Path) -> None:
    def message(checkpoint: object, *more: object) -> str:
        return refused(run("run", "text", "--dataset", topics_folder, "--checkpoint", checkpoint, "--max-length", 32, *more))

    assert "checkpoint folder ./gone does not exist" in message("./gone")
    started = time.perf_counter()
    assert "go on with --checkpoint FOLDER (a local model) or with --embedded" in message("no-one/nothing")
    assert time.perf_counter() - started < 10
    untokenized = save_tiny_bert(tmp_path / "untokenized")
    for path in untokenized.glob("*token*"):
        path.unlink()
    assert "has no tokenizer" in message(untokenized)
    assert "'q_proj' matches no module" in message(tiny_bert, "--set", "arms.lora.lora.target_modules=[query,q_proj]")


def test_the_output_folder_is_not_touched(run: Run, tmp_path: Path, tiny_bert: Path, topics_folder: Path) -> None:
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "recipe.yaml").write_text("name: other")
    message = refused(
        run(
            "run",
            "text",
            "--dataset",
            topics_folder,
            "--checkpoint",
            tiny_bert,
            "--max-length",
            32,
            "--output-dir",
            taken,
        )
    )
    assert "already holds an unfinished run" in message
    assert [path.name for path in taken.iterdir()] == ["recipe.yaml"]
    assert (taken / "recipe.yaml").read_text() == "name: other"


def test_an_own_csv_from_start_to_table(run: Run, tmp_path: Path, tiny_bert: Path) -> None:
    rows = [{"review": row["text"], "stars": str(["boats", "bread", "chess"].index(row["label"]) + 1)} for row in make_rows(60)]
    data = write_csv(tmp_path / "reviews.csv", rows)
    words = [
        "run",
        "text",
        "--dataset",
        data,
        "--columns",
        "text=review",
        "label=stars",
        "--checkpoint",
        tiny_bert,
        "--max-length",
        32,
    ]
    code, out, err = run(
        *words,
        "--epochs",
        1,
        "--arms",
        "head",
        "full",
        "--set",
        "training.batch_size=16",
        "arms.full.weight_decay=0",
        "--output-dir",
        "out",
    )
    assert code == 0, err
    assert "budget all: 39 rows train, 9 validate, 12 test; seed 0" in out
    assert "Ship: " in out
    assert "gain over" not in out, "nothing was trained from scratch"
    resolved = yaml.safe_load(Path("out/recipe.yaml").read_text())
    assert resolved["data"]["columns"] == {"text": "review", "label": "stars"}
    assert resolved["arms"]["full"] | {"num_epochs": 1, "weight_decay": 0} == resolved["arms"]["full"]
    # The run's own recipe.yaml repeats it, bit for bit.
    code, _again, err = run("run", "--config", "out/recipe.yaml", "--output-dir", "again")
    assert code == 0, err
    for name in ("head", "full"):
        cell = f"{name}/budget-all/seed-0/model/model.safetensors"
        assert Path("out", cell).read_bytes() == Path("again", cell).read_bytes()


def test_flags_reach_the_selected_arms_and_their_data_only(tiny_bert: Path) -> None:
    recipe = ht.load_recipe("newsgroups").override({"task.text": "body", "data.drop_overlap": True})
    parser = flags_module.Parser()
    flags_module.add_run_flags(parser, recipe)

    def changed_by(words: list[str], config: dict[str, object] | None = None, arms: list[str] | None = None) -> ht.Recipe:
        flags = parser.parse(words)
        return flags_module.apply_flags(flags_module.with_config(recipe, config or {}, flags), flags, arms)

    changed = changed_by(["--epochs", "1", "--dataset", "x.csv"])
    assert {name: arm.num_epochs for name, arm in changed.arms.items()} == {"scratch": 1, "head": 1, "top": 6, "lora": 1, "full": 1}
    assert changed.columns == {"text": "text", "label": "label"}
    assert (changed.data.label_names, changed.data.drop_overlap) == (None, True), "names belong to the data, dropping overlaps does not"
    changed = changed_by(["--dataset", "x.csv"], {"data": {"label_names": ["a", "b"]}})
    assert (changed.data.source, changed.data.label_names) == ("x.csv", ["a", "b"]), "a config about the data that is run"
    changed = changed_by(["--dataset", "x.csv"], {"data": {"source": "y.csv", "label_names": ["a", "b"]}})
    assert (changed.data.source, changed.data.label_names) == ("x.csv", None), "a config about other data"
    changed = changed_by(["--embedded"], {"checkpoint": "a/b"})
    assert changed.checkpoint == "embedded:all-MiniLM-L6-v2", "a flag comes over a config"
    changed = changed_by(["--learning-rate", "0.5", "--embedded"], arms=["top"])
    assert {name for name, arm in changed.arms.items() if arm.learning_rate == 0.5} == {"top"}
    assert (changed.data.source, changed.checkpoint) == ("embedded:newsgroups", "embedded:all-MiniLM-L6-v2")


def test_version_and_help(run: Run) -> None:
    assert run("--version")[:2] == (0, "hf-transfer-recipes 0.1.0\n")
    code, out, _ = run("run", "--help")
    assert code == 0
    flags = "arms seeds budgets checkpoint dataset dataset-config columns output-dir epochs batch-size learning-rate max-length precision"
    flags += " max-test-rows embedded activation-checkpointing compile config set"
    assert {f"--{flag}" for flag in flags.split()} <= set(out.split())


def test_the_unrelated_package_of_the_same_name_is_refused(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    real = metadata.distribution
    monkeypatch.setattr(metadata, "distribution", lambda name: real("pytest") if name == "hf-transfer" else real(name))
    assert "pip uninstall -y hf-transfer" in refused(run("run", "newsgroups"))


def test_a_bug_of_ours_keeps_its_traceback(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(cli.api, "run", broken)
    with pytest.raises(ZeroDivisionError):
        cli.run_cli(["run", "newsgroups", "--embedded"])
    monkeypatch.setattr(cli.api, "run", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    assert run("run", "newsgroups", "--embedded")[0] == 130


def test_the_hub_is_asked_once_and_briefly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setattr(hub, "PROBE_SECONDS", 0.3)
        hub.hub_answers.cache_clear()
        started = time.perf_counter()
        assert hub.hub_answers() is False
        assert time.perf_counter() - started < 2
    hub.hub_answers.cache_clear()


def test_a_recipe_file_takes_the_same_flags(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["recipes/newsgroups.py", "--budget", "3"])
    with pytest.raises(SystemExit) as end:
        cli.main(ht.load_recipe("newsgroups"))
    assert end.value.code == 2
    assert capsys.readouterr().err == "error: unknown flag '--budget'; did you mean '--budgets'?\n"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.conll", "Ann PERSON\nran O\n\n" * 12, "train row 0 has the tag 'PERSON', expected O, or B-TYPE and I-TYPE"),
        ("x.conll", "Ann B-x\nran\n", "x.conll is malformed: line 2 has 1 ('ran')"),
        (
            "x.jsonl",
            '{"tokens": ["a", "b"], "ner_tags": ["O", "B-x"]}\n{"tokens": ["a"], "ner_tags": ["O", "O"]}\n',
            "train row 1 has 1 words and 2",
        ),
        ("x.jsonl", '{"text": "Ann", "spans": [{"start": 0, "end": 9, "label": "x"}]}\n', "train row 0: the span 0 to 9 (x) is outside"),
        (
            "x.jsonl",
            '{"text": "Ann Lee", "spans": [{"start": 0, "end": 7, "label": "x"}, {"start": 4, "end": 7, "label": "y"}]}\n',
            "train row 0: the spans x 'Ann Lee' (0 to 7) and y 'Lee' (4 to 7) overlap; keep one of them",
        ),
        (
            "x.jsonl",
            '{"text": "A b", "spans": []}\n' * 3 + '{"text": "A", "spans": [{"start": "0", "end": 1, "label": "x"}]}\n',
            "a span needs whole numbers",
        ),
        (
            "x.jsonl",
            '{"text": "A b", "spans": [{"start": 0, "end": 1, "label": "x"}]}\n' * 3 + '{"text": "A", "spans": [[0, 1, "x"]]}\n',
            "row 3 of column 'spans' does not fit the rows before",
        ),
        (
            "x.jsonl",
            '{"text": "A b", "spans": [{"start": 0, "end": 1, "label": "x"}]}\n' * 3
            + '{"text": "A", "spans": [{"start": 0.5, "end": 1, "label": "x"}]}\n',
            "train row 3: a span needs whole numbers for start and end and a name for label, found {'start': 0.5",
        ),
        ("x.csv", "tokens,ner_tags\na b,O O\n", "train row 0: tokens must be a list of words, found str"),
        ("x.conll", "".join(f"a{row} O\nb O\n\n" for row in range(20)), "16 training rows hold no entity: every word is tagged O"),
    ],
)
def test_bad_entities(run: Run, tmp_path: Path, tiny_bert: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    assert message in refused(run("run", "ner", "--dataset", tmp_path / name, "--checkpoint", tiny_bert, "--max-length", 32))


def test_a_pair_with_one_side_missing(run: Run, tmp_path: Path, tiny_bert: Path) -> None:
    rows = [{"text": f"sail {row}", "text_pair": f"mast {row}" if row != 7 else "", "label": "ab"[row % 2]} for row in range(20)]
    message = refused(run("run", "text", "--dataset", write_csv(tmp_path / "x.csv", rows), "--checkpoint", tiny_bert, "--max-length", 32))
    assert "1 of 20 train rows are pairs with one side empty (row 7; row 7 lacks its second text)" in message


def test_validate_says_what_a_run_would_do(run: Run, tiny_bert: Path, topics_folder: Path, names_folder: Path) -> None:
    code, out, err = run(
        "validate", "text", "--dataset", topics_folder, "--checkpoint", tiny_bert, "--max-length", 24, "--budgets", 30, "all"
    )
    assert (code, err) == (0, "")
    assert "90 training rows, 31 test rows" in out
    assert "boats 30, bread 30, chess 30" in out
    longer = sum(len(row["text"].split()) + 1 + len(row["text"].split()[-1]) > 24 for row in make_rows(90, seed=1))
    assert f"{longer / 90:.1%} are longer than max_length 24 and cut (the head kept)" in out
    assert "30: 24 rows train, 6 validate" in out
    assert "all: 72 rows train, 18 validate" in out
    for arm in ("scratch", "head", "lora", "full"):
        assert f"{arm:9}" in out
    assert list(Path.cwd().iterdir()) == []
    code, out, _ = run("validate", "ner", "--dataset", names_folder, "--checkpoint", tiny_bert, "--max-length", 16, "--arms", "full")
    assert code == 0
    assert "read in several windows" in out
    assert "lora" not in out


def test_a_new_recipe_is_ones_own(run: Run, tmp_path: Path) -> None:
    for name in ("sentiment", "ner", "newsgroups", "text"):
        code, out, _ = run("new", f"my_{name}.py", "--from", name)
        assert (code, f"hf-transfer validate my_{name}.py" in out) == (0, True)
        made, source = ht.load_recipe(f"my_{name}.py"), ht.load_recipe(name)
        assert made == ht.Recipe.from_dict(source.to_dict() | {"name": f"my_{name}"})
        text = Path(f"my_{name}.py").read_text()
        assert "Measured" not in text.split("import")[0], "another recipe's numbers are not this one's"
    before = Path("my_ner.py").read_text()
    assert run("new", "my_ner.py", "--from", "sentiment") == (2, "", "error: my_ner.py is there already: name another file\n")
    assert Path("my_ner.py").read_text() == before
    assert run("new", "again.py", "--from", "my_ner.py")[0] == 0
    assert ht.load_recipe("again.py").name == "again"
    assert "no embedded dataset 'my_ner'" in run("validate", "my_ner.py", "--embedded")[2]


def test_ls_shows_recipes_and_their_arms(run: Run) -> None:
    code, out, _ = run("ls")
    assert code == 0
    lines = out.splitlines()
    for name in ("ner", "newsgroups", "sentiment", "text"):
        start = next(index for index, line in enumerate(lines) if line.startswith(f"{name}: "))
        arms = ht.load_recipe(name).arms
        assert [line.split()[0] for line in lines[start + 1 : start + 1 + len(arms)]] == list(arms)


def test_every_kind_of_entity_file_is_read(run: Run, tmp_path: Path, tiny_bert: Path) -> None:
    rows = make_sentences(40)
    conll = "\n\n".join("\n".join(f"{word} {tag}" for word, tag in zip(row["tokens"], row["ner_tags"], strict=True)) for row in rows)
    (tmp_path / "a.conll").write_text(conll, encoding="utf-8")
    write_jsonl(tmp_path / "b.jsonl", rows)
    spans = []
    for row in rows:
        text, entities = "", []
        for word, tag in zip(row["tokens"], row["ner_tags"], strict=True):
            start = len(text) + bool(text)
            text = f"{text} {word}" if text else word
            if tag[0] == "B":
                entities.append({"start": start, "end": len(text), "label": tag[2:]})
            elif tag[0] == "I":
                entities[-1]["end"] = len(text)
        spans.append({"body": text, "found": entities})
    write_jsonl(tmp_path / "c.jsonl", spans)
    fingerprints = set()
    for name, columns in (("a.conll", []), ("b.jsonl", []), ("c.jsonl", ["--columns", "text=body", "spans=found"])):
        shape = ["--checkpoint", tiny_bert, "--arms", "head", "--epochs", 1, "--max-length", 32, "--output-dir", name]
        code, _, err = run("run", "ner", "--dataset", tmp_path / name, *columns, *shape)
        assert code == 0, err
        fingerprints.add(json.loads((Path(name) / "head/budget-all/seed-0/result.json").read_text())["data"]["fingerprint"])
    assert len(fingerprints) == 1, "the same words and tags, whichever way they are written"
    task = yaml.safe_load((Path("c.jsonl") / "recipe.yaml").read_text())["task"]
    assert (task["text"], task["spans"]) == ("body", "found")
    assert ht.load("c.jsonl").predict(["the anchor of chess"])[0].keys() == {"entities"}

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

import hf_transfer as ht
from hf_transfer.disk import read_json, write_json
from hf_transfer.flags import Parser, add_grid_flags, add_run_flags, apply_flags, column_pairs, pop_run_section
from hf_transfer.recipe import default_arms, read_yaml, to_yaml
from hf_transfer.recipe_files import load_recipe
from hf_transfer.run_settings import RECORDED, check_settings
from hf_transfer.task_configs import task_from_dict
from tests.fuzz.strategies import damaged, result_or_sentence, texts, values, wild_texts, write

NAMES = ("newsgroups", "sentiment", "ner", "vit")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("recipes")


given_names = texts.filter(bool)
rates = st.floats(1e-8, 10)
arms = st.one_of(
    st.builds(
        ht.Arm,
        rates,
        st.integers(1, 99),
        init=st.sampled_from(["pretrained", "scratch"]),
        weight_decay=st.floats(0, 1),
        augment=st.none() | st.booleans(),
    ),
    st.builds(
        ht.Arm,
        rates,
        st.integers(1, 99),
        tuning=st.just("top"),
        num_blocks=st.integers(1, 9),
        layer_decay=st.none() | st.floats(0.1, 1),
        l2_sp=st.none() | rates,
    ),
    st.builds(
        ht.Arm,
        rates,
        st.integers(1, 99),
        tuning=st.just("lora"),
        lora=st.builds(
            ht.LoRA,
            r=st.integers(1, 64),
            lora_alpha=rates,
            lora_dropout=st.floats(0, 0.9),
            target_modules=given_names | st.lists(given_names, max_size=2),
            use_dora=st.booleans(),
        ),
    ),
)
tasks = st.one_of(
    st.builds(
        ht.TextClassification,
        text=texts,
        text_pair=st.none() | texts,
        label=texts,
        max_length=st.integers(4, 10**6),
        keep=st.sampled_from(["head", "tail", "both"]),
        replace=st.dictionaries(given_names, texts, max_size=2),
    ),
    st.builds(ht.TokenClassification, tokens=texts, max_length=st.integers(8, 999), loss_per=st.sampled_from(["word", "row"])),
    st.builds(lambda text, spans: ht.TokenClassification(text=text, spans=spans), texts, texts),
    st.builds(
        ht.ImageClassification,
        image=texts,
        augmentation=st.sampled_from(["none", "photos", "digits"])
        | st.builds(ht.Augmentation, rotation=st.floats(0, 180), flip=st.floats(0, 1)),
    ),
)
trainings = st.builds(
    ht.TrainingConfig,
    batch_size=st.integers(1, 10**9),
    micro_batch_tokens=st.none() | st.integers(1, 10**9),
    warmup_fraction=st.floats(0, 0.99),
    max_grad_norm=st.none() | rates,
    class_weights=st.sampled_from(["none", "balanced"]) | st.dictionaries(texts, rates, max_size=3),
    dropout=st.none() | st.floats(0, 0.99),
    precision=st.sampled_from(["auto", "bf16", "fp16", "fp32"]),
)
datas = st.builds(
    ht.DataConfig,
    st.none() | given_names,
    config=st.none() | texts,
    columns=st.dictionaries(st.sampled_from(["label", "document"]), given_names, max_size=2) if False else st.just({}),
    label_names=st.none() | st.lists(texts, max_size=4),
    drop_overlap=st.booleans(),
)
recipes = st.builds(
    ht.Recipe,
    name=st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,8}", fullmatch=True),
    task=tasks,
    data=datas,
    checkpoint=given_names,
    arms=st.dictionaries(st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_-]{0,6}", fullmatch=True), arms, max_size=3),
    training=trainings,
)


@given(recipe=recipes)
def test_a_recipe_survives_yaml_json_and_dict(folder: Path, recipe: ht.Recipe) -> None:
    assert ht.Recipe.from_dict(recipe.to_dict()) == recipe
    path = folder / "recipe.yaml"
    path.write_text(to_yaml({**recipe.to_dict(), "run": {"arms": list(recipe.arms)}}), encoding="utf-8")
    assert load_recipe(path) == recipe
    write_json(folder / "recipe.json", recipe.to_dict())
    assert ht.Recipe.from_dict(read_json(folder / "recipe.json")) == recipe
    assert task_from_dict(dataclasses.asdict(recipe.task)) == recipe.task
    assert recipe.override({}) == recipe.merge({}) == recipe.merge(recipe.to_dict()) == recipe


@given(first=recipes, second=recipes)
def test_a_recipe_laid_over_another_is_the_last_word(first: ht.Recipe, second: ht.Recipe) -> None:
    merged = result_or_sentence(lambda: first.merge(second.to_dict()))
    if first.task.kind == second.task.kind and merged is not None:
        assert merged.training == second.training and merged.task == second.task
        assert {name: merged.arms[name] for name in second.arms} == second.arms


def paths_of(value: Any, before: str = "") -> list[str]:
    """Give every dotted path of nested mappings."""
    found = []
    for key, inner in value.items():
        found.append(f"{before}{key}")
        if isinstance(inner, dict):
            found += paths_of(inner, f"{before}{key}.")
    return found


PATHS = sorted({path for name in NAMES for path in paths_of(load_recipe(name).to_dict())})
paths = (
    st.sampled_from(PATHS)
    | st.builds("{}.{}".format, st.sampled_from(PATHS), texts)
    | texts
    | st.sampled_from(["", ".", "arms.", "task.kind", "arms.x", "arms.x.lora.r"])
)
plain_values = st.sampled_from(
    [
        None,
        True,
        0,
        1,
        -1,
        0.5,
        "1e-3",
        "none",
        "balanced",
        "full",
        "head",
        "top",
        [],
        {},
        [[]],
        2**70,
        float("nan"),
        float("inf"),
        "photos",
        {"kind": "token-classification"},
    ]
)


@given(name=st.sampled_from(NAMES), changes=st.dictionaries(paths, plain_values | values, min_size=1, max_size=3))
def test_any_override_is_refused_or_gives_a_recipe_that_comes_back(name: str, changes: dict[str, Any]) -> None:
    recipe = load_recipe(name)
    changed = result_or_sentence(lambda: recipe.override(changes))
    if changed is None:
        return
    assert ht.Recipe.from_dict(yaml.safe_load(to_yaml(changed.to_dict()))) == changed
    json.dumps(changed.to_dict(), allow_nan=False)


@given(
    name=st.sampled_from(NAMES),
    changes=st.dictionaries(st.sampled_from([*PATHS, "run", "x"]) | wild_texts, plain_values | values, max_size=3) | values,
)
def test_any_merge_is_refused_or_gives_a_recipe(name: str, changes: Any) -> None:
    if not isinstance(changes, dict):
        return
    nested: dict[str, Any] = {}
    for path, value in changes.items():
        here = nested
        *parents, last = path.split(".")
        for key in parents:
            here = here[key] if isinstance(here.get(key), dict) else here.setdefault(key, {}) if key not in here else {}
        here[last] = value
    changed = result_or_sentence(lambda: load_recipe(name).merge(nested))
    assert changed is None or ht.Recipe.from_dict(changed.to_dict()) == changed


yaml_files = damaged(
    st.one_of(
        recipes.map(lambda recipe: yaml.safe_dump({**recipe.to_dict(), "run": {"seeds": [0, 1]}}, allow_unicode=True).encode()),
        st.dictionaries(st.sampled_from(["name", "task", "data", "arms", "training", "run"]) | texts, values, max_size=4).map(
            lambda held: yaml.safe_dump(held, allow_unicode=True).encode()
        ),
        st.sampled_from(
            [
                b"a: &a [*a]\n",
                b"name: x\ntask: &t {text: *t}\n",
                b"? [1, 2]\n: 3\n",
                b"a: 2001-99-99\n",
                b"a: !!python/object:os.system x\n",
                b"a: !!int x\n",
                b"a: !!timestamp x\n",
                b"a: !!binary x\n",
                b"a: !!float x\n",
                b"- " * 20_000,
                b"[" * 20_000,
                b"{a: " * 5_000,
                b"a: 0x\n",
                b"a: 1:99:99\n",
                b"a: " + b"1" * 5000,
                b"%YAML 9.9\n---\na: b\n",
                b"a: b\n---\nc: d\n",
                b"<<: 3\n",
                b"1: 2\ntrue: 3\nnull: 4\n",
                b"name: x\n1: 2\n",
                b"name: x\narms: {1: {learning_rate: 1, num_epochs: 1}}\n",
                b"\x00",
            ]
        ),
    )
)


@given(data=yaml_files)
def test_any_yaml_file_is_a_recipe_or_refused(folder: Path, data: bytes) -> None:
    path = write(folder / "any.yaml", data)
    recipe = result_or_sentence(lambda: load_recipe(path))
    assert recipe is None or ht.Recipe.from_dict(recipe.to_dict()) == recipe
    result_or_sentence(lambda: load_recipe("newsgroups").merge(read_yaml(path)))
    run = result_or_sentence(lambda: pop_run_section(read_yaml(path), "any.yaml"))
    if run:
        result_or_sentence(lambda: check_settings(load_recipe("newsgroups"), **run))


settings = st.fixed_dictionaries(
    {name: plain_values | values | st.just([0, "all", np.int64(3)]) | st.just(np.int64(2)) for name in RECORDED}
)


@given(run=settings, parallel=plain_values, tracker=plain_values | wild_texts)
def test_any_run_section_is_checked(run: dict[str, Any], parallel: Any, tracker: Any) -> None:
    checked = result_or_sentence(lambda: check_settings(load_recipe("ner"), **run, parallel=parallel, tracker=tracker))
    if checked is not None:
        yaml.safe_load(yaml.safe_dump(checked.recorded()))
        assert all(type(seed) is int for seed in checked.seeds)
        assert all(budget == "all" or type(budget) is int for budget in checked.budgets)


def parsed(words: list[str]) -> argparse.Namespace:
    parser = Parser(prog="hf-transfer")
    add_run_flags(parser, None)
    add_grid_flags(parser)
    return parser.parse(words)


FLAGS = [
    "--arms",
    "--seeds",
    "--budgets",
    "--checkpoint",
    "--dataset",
    "--columns",
    "--max-test-rows",
    "--epochs",
    "--batch-size",
    "--learning-rate",
    "--max-length",
    "--precision",
    "--set",
    "--resume",
    "--parallel",
    "--embedded",
    "--sede",
    "-x",
    "--",
]
words = (
    st.sampled_from(
        [
            "scratch",
            "lora",
            "0",
            "-1",
            "nan",
            "inf",
            "1e999",
            "9" * 5000,
            "text=a",
            "=a",
            "a=",
            "training.batch_size=8",
            "training={}",
            "arms.full.lora=2001-99-99",
            "a.b=[",
            "x=&a [*a]",
            "task.text=*a",
            "x=" + "[" * 2000,
        ]
    )
    | wild_texts
)


@given(name=st.sampled_from(NAMES), words=st.lists(st.sampled_from(FLAGS) | words, max_size=6))
def test_any_command_line_is_read_or_refused(name: str, words: list[str]) -> None:
    recipe = load_recipe(name)

    def read() -> ht.Recipe:
        flags = parsed([word for word in words if word not in ("-h", "--help")])
        column_pairs(flags.columns)
        return apply_flags(recipe, flags, flags.arms)

    changed = result_or_sentence(read)
    assert changed is None or ht.Recipe.from_dict(changed.to_dict()) == changed


@given(value=values | wild_texts, data=st.binary(max_size=20))
def test_json_files_are_whole_or_refused(folder: Path, value: Any, data: bytes) -> None:
    path = folder / "x.json"
    path.unlink(missing_ok=True)
    try:
        write_json(path, value)
    except ValueError:
        assert not path.exists(), "nothing is half written"
        # NaN, infinities and halves of characters have no form.
        assert "NaN" in (text := json.dumps(value)) or "Infinity" in text or "\\ud" in text
    else:
        assert read_json(path) == value
    path.write_bytes(data)
    result_or_sentence(lambda: read_json(path))
    assert default_arms()

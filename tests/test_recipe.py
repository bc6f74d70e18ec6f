import dataclasses
import time
from pathlib import Path

import pytest
import yaml

import hf_transfer as ht
from hf_transfer.errors import ConfigError
from hf_transfer.recipe import default_arms, read_yaml, to_yaml
from hf_transfer.task_configs import task_from_dict


def recipe() -> ht.Recipe:
    return ht.Recipe(
        name="x",
        data=ht.DataConfig("a/b", columns={"text": "body"}, label_names=["no", "yes"]),
        arms=default_arms() | {"top": ht.Arm(tuning="top", num_blocks=2, learning_rate=1e-4, num_epochs=3)},
        training=ht.TrainingConfig(class_weights={"no": 2.0}, max_grad_norm=None),
    )


def test_yaml_round_trip() -> None:
    assert ht.Recipe.from_dict(yaml.safe_load(yaml.safe_dump(recipe().to_dict()))) == recipe()


def test_yaml_keeps_line_ends_and_letters_of_every_kind(tmp_path: Path) -> None:
    odd = recipe().override({"task.replace": {"\x85": "\u2028", "\r\n": "\n", "é 船\u2029": "\x00\ufeff"}})
    (tmp_path / "x.yaml").write_text(to_yaml(odd.to_dict()), encoding="utf-8")
    assert ht.Recipe.from_dict(read_yaml(tmp_path / "x.yaml")) == odd
    assert "é 船" in (tmp_path / "x.yaml").read_text(encoding="utf-8")


def test_override_changes_one_field_and_reads_yaml_numbers() -> None:
    # YAML 1.1 reads 1e-4 as a string.
    changed = recipe().override({"arms.full.learning_rate": yaml.safe_load("1e-4"), "arms.lora.lora.r": 4})
    assert changed.arms["full"].learning_rate == 1e-4
    assert changed.arms["lora"].lora.r == 4
    assert changed.override({"arms.full.learning_rate": 2e-4, "arms.lora.lora.r": 16}) == recipe()


def test_merge_lays_nested_values_over() -> None:
    merged = recipe().merge({"training": {"batch_size": 8}, "data": {"columns": {"label": "topic"}}})
    assert merged.training.batch_size == 8
    assert merged.training.class_weights == {"no": 2.0}
    assert merged.columns == {"text": "body", "label": "topic"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arms.lora.lora.rr": 3}, r"arms.lora.lora.rr: unknown key; did you mean 'r'\?"),
        ({"arms.lor.tuning": "full"}, r"no 'lor'.*did you mean 'lora'"),
        ({"traning.batch_size": 3}, r"no 'traning'.*did you mean 'training'"),
        ({"training.schedule": "liner"}, r"training.schedule: expected 'linear'.*found 'liner'; did you mean 'linear'"),
        ({"training.batch_size": 0}, "training.batch_size: expected a value greater than 0, found 0"),
        ({"arms.full.learning_rate": -1}, "arms.full.learning_rate: expected a value greater than 0, found -1"),
        ({"arms.full.learning_rate": float("nan")}, "arms.full.learning_rate"),
        ({"arms.full.num_epochs": 1.5}, "arms.full.num_epochs: expected a whole number, found 1.5"),
        ({"arms.full.tuning": "top"}, "arms.full: num_blocks belongs to tuning 'top'"),
        ({"arms.top.num_blocks": None}, "arms.top: num_blocks belongs to tuning 'top'"),
        ({"task.max_length": -3}, "task.max_length: expected a value greater than or equal to 4"),
        ({"training.class_weights": {"a": -2}}, r"^training.class_weights.a: expected a value greater than 0, found -2$"),
        ({"training.class_weights": "balansed"}, r"^training.class_weights: expected 'none' or 'balanced'.*did you mean 'balanced'\?$"),
        ({"training": {"class_weights": "balanced", "sampling": "balanced"}}, "make up for rare classes twice: take one of them"),
        ({"task.replace": {"": " "}}, "task.replace.*: must not be empty"),
        ({"task.kind": ["x"]}, r"task.kind: expected one of text-classification, .*, image-classification, found \['x'\]"),
        ({"task.kind": "txt"}, "task.kind: expected one of text-classification, .*, image-classification, found 'txt'"),
        ({"data.columns": {"txt": "a"}}, r"unknown role 'txt'.*did you mean 'text'"),
        ({"name": "../up"}, "name: expected a name of letters"),
        ({"data.source": ""}, "data.source: must not be empty"),
        ({"arms.full.learning_rate": "fast"}, "arms.full.learning_rate: expected a number, found 'fast'"),
        ({"training": [1]}, r"training: expected a mapping of its fields, found \[1\]"),
        ({"checkpoint.x": 1}, "cannot set checkpoint.x"),
        ({"a\nb": 1}, r"^a\\nb: unknown key"),
        ({"checkpoint": ["x" * 10_000] * 10_000}, r"^checkpoint: .{,3000}$"),
    ],
)
def test_a_mistake_says_expected_found_and_remedy(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        recipe().override(changes)


def test_all_problems_come_at_once() -> None:
    with pytest.raises(ConfigError, match="3 problems") as error:
        recipe().override({"training.batch_size": 0, "arms.full.learning_rate": 0, "task.max_length": "long"})
    assert all(name in str(error.value) for name in ("training.batch_size", "arms.full.learning_rate", "task.max_length"))
    with pytest.raises(ConfigError, match="2 problems in the Arm"):
        ht.Arm(learning_rate=-1, num_epochs=0)
    with pytest.raises(ConfigError, match="^source: must not be empty"):
        ht.DataConfig("")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a\n- b\n", "must hold a mapping"),
        ("a: [1", "is no YAML: line 1: "),
        ("a: b: c", "is no YAML: line 1: mapping values are not allowed here"),
        ("", "must hold a mapping of recipe fields, found nothing"),
        ("a: 2026-99-99", "is no YAML: month must be in 1..12"),
        ("a: !!bool 3", "is no YAML: "),
        ("a: !!float x", "is no YAML: "),
        ("a: !!timestamp x", "is no YAML: "),
        ("[" * 20_000, "lists or mappings stand too deep in each other"),
    ],
)
def test_a_bad_config_file(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_yaml(tmp_path / "x.yaml")
    with pytest.raises(ConfigError, match="does not exist"):
        read_yaml(tmp_path / "y.yaml")


@pytest.mark.parametrize(
    "fields", ["arms: *a8", "task: {kind: *a8}", "training: {precision: *a8}", "data: {label_names: *a8}", "data: {columns: {text: *a8}}"]
)
def test_a_small_file_that_spells_a_large_value_is_told_of_shortly(tmp_path: Path, fields: str) -> None:
    lists = [f"- &a{depth} [{', '.join([f'*a{depth - 1}'] * 9)}]" for depth in range(1, 9)]
    (tmp_path / "x.yaml").write_text("\n".join(["unused:", "- &a0 [x, x, x, x, x, x, x, x, x]", *lists, fields]))
    values = read_yaml(tmp_path / "x.yaml")
    del values["unused"]
    started = time.perf_counter()
    with pytest.raises(ConfigError) as told:
        ht.Recipe.from_dict({"name": "x"} | values)
    assert len(str(told.value)) < 5000 and time.perf_counter() - started < 20


def test_a_task_without_a_kind_is_a_text_classification_and_both_come_back() -> None:
    plain = ht.Recipe.from_dict({"name": "x", "task": {"text": "body"}})
    assert plain.task == ht.TextClassification(text="body")
    tags = ht.Recipe(name="y", task=ht.TokenClassification(max_length=64, loss_per="row"))
    for recipe in (plain, tags):
        assert ht.Recipe.from_dict(recipe.to_dict()) == recipe
        assert task_from_dict(dataclasses.asdict(recipe.task)) == recipe.task
    assert plain.override({"task.text_pair": "b"}).columns == {"text": "body", "label": "label", "text_pair": "b"}
    assert tags.override({"task": {"kind": "token-classification", "text": "t", "spans": "s"}}).columns == {"text": "t", "spans": "s"}


def test_a_recipe_laid_over_another_comes_back_whole() -> None:
    first = ht.Recipe(
        name="x",
        task=ht.TextClassification(replace={"<br />": " "}),
        data=ht.DataConfig("a/b", columns={"text": "body"}),
        training=ht.TrainingConfig(class_weights={"a": 5}),
    )
    second = first.override({"task.replace": {}, "training.class_weights": {"b": 2}})
    assert first.merge(second.to_dict()) == second

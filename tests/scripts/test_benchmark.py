"""`scripts/benchmark` on a tiny model: both sides get the same, and its arithmetic is right. How fast it is says nothing here."""

import importlib.util
import json
import statistics
from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import command
import flops
import memory
import peers
from cases import CASES, OURS
from comparison import Settings, check_same_start
from few_shot import compare_few_shot
from flops import count_flops, fit_quadratic, useful_flops
from hf_transfer.errors import CheckpointError
from material import Ground, Material, copy_plain, lay_ground
from measure import ratios, rotate
from quality import compare_quality
from report import render
from tests.conftest import TOPICS

SETTINGS = Settings("cpu").quickly()
WIDTH, HIDDEN, NUM_BLOCKS = 32, 64, 2
"""Of the tiny BERT."""


@pytest.fixture(scope="module")
def material(tiny_bert: Path, topics_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Material:
    return Material(str(topics_folder), str(tiny_bert), copy_plain(str(tiny_bert), tmp_path_factory.mktemp("benchmark") / "plain"))


@pytest.fixture(scope="module")
def ground(material: Material) -> Ground:
    return lay_ground(material, CASES["full-256"].quickly(), SETTINGS.batch_size)


@pytest.fixture(scope="module")
def result(tiny_bert: Path, topics_folder: Path) -> dict[str, Any]:
    cases = ["full-256", "lora-256", "head-256", "predict-512"]
    flags = {"device": "cpu", "rounds": None, "updates": None, "quick": True, "memory": False, "quality": False, "cases": cases}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flops, "SIDE", 64)
        return command.measure(Namespace(**flags, dataset=str(topics_folder), checkpoint=str(tiny_bert)), "scripts/benchmark --quick")


def test_every_contender_saw_the_same_rows_and_real_tokens(result: dict[str, Any], ground: Ground) -> None:
    lengths = [ground.rows_of(number, SETTINGS.num_rows).layout.lengths for number in range(SETTINGS.num_rounds)]
    assert [len(of_round) for of_round in lengths] == [16, 16]
    for name in ("full-256", "lora-256"):
        case = result["cases"][name]
        assert case["tokens"] == [of_round.sum() for of_round in lengths]
        for contender in (OURS, *CASES[name].peers):
            counted = case["contenders"][contender]["counted"]
            assert [(one["rows"], one["tokens"]) for one in counted] == [(16, of_round.sum()) for of_round in lengths]
            assert all(one["padded_tokens"] >= one["tokens"] for one in counted)
    head = result["cases"]["head-256"]
    assert head["tokens"] == [2 * of_round.sum() for of_round in lengths]
    assert {one["rows"] for one in head["contenders"]["trainer"]["counted"]} == {32}


def test_a_round_has_rows_of_its_own(ground: Ground) -> None:
    first, second = (set(ground.rows_of(number, 16).examples.row_ids.tolist()) for number in (0, 1))
    assert len(first) == len(second) == 16
    assert not first & second
    everything = ground.rows_of(3, 1000)
    assert len(set(everything.examples.row_ids.tolist())) == len(everything) == len(ground.rows)


def test_ratios_rates_and_targets_come_from_the_seconds(result: dict[str, Any]) -> None:
    assert set(result["cases"]["predict-512"]["ratios"]) == {"pipeline"}
    for name, case in result["cases"].items():
        mine = case["contenders"][OURS]["seconds"]
        for peer in CASES[name].peers:
            theirs, ratio = case["contenders"][peer]["seconds"], case["ratios"][peer]
            assert ratio["values"] == [other / own for other, own in zip(theirs, mine, strict=True)]
            assert ratio["median"] == statistics.median(ratio["values"])
            target = CASES[name].targets.get(peer)
            assert ratio["target"] == target
            assert ratio["met"] == (None if target is None else ratio["median"] >= target)
        rates = [tokens / seconds for tokens, seconds in zip(case["tokens"], mine, strict=True)]
        assert case["contenders"][OURS]["tokens_per_second"]["values"] == rates
    full = result["cases"]["full-256"]["contenders"]
    assert full["trainer"]["precision"] == "fp32"
    assert full["trainer-bf16"]["precision"] == "bf16"
    assert full[OURS]["flop_share"]["target"] == 0.55


def test_the_table_says_what_was_measured_and_json_can_hold_it(result: dict[str, Any]) -> None:
    table = render(json.loads(json.dumps(result)))
    for words in (
        "scripts/benchmark --quick",
        "torch 2.",
        "real tokens/s",
        "Trainer bf16 group_by_length",
        ">= 2.2x",
        "no number below means",
    ):
        assert words in table
    assert "missed" in table


@pytest.mark.parametrize("tuning", ["full", "lora", "head"])
def test_both_sides_start_from_the_same_weights(material: Material, tuning: str) -> None:
    case = replace(CASES["full-256"].quickly(), tuning=tuning)
    check_same_start(lay_ground(material, case, 8), case)


def test_a_copied_checkpoint_says_nothing_of_pooling(tiny_bert: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "1_Pooling").mkdir(parents=True)
    for name in ("config.json", "modules.json", "1_Pooling/config.json"):
        (source / name).write_text("{}")
    assert [path.name for path in copy_plain(str(source), tmp_path / "plain").iterdir()] == ["config.json"]
    with pytest.raises(CheckpointError, match="does not exist"):
        copy_plain("./nowhere", tmp_path / "none")


def test_flops_of_a_row_are_those_of_its_matrix_products(ground: Ground) -> None:
    full, lora, head = (peers.build_model(ground, CASES[name].arm, 0, "eager") for name in ("full-256", "lora-256", "head-256"))

    def forward(length: int) -> int:
        block = 2 * length * (4 * WIDTH**2 + 2 * WIDTH * HIDDEN) + 4 * length**2 * WIDTH
        return NUM_BLOCKS * block + 2 * WIDTH**2 + 2 * WIDTH * len(TOPICS)

    for length in (7, 16):
        assert count_flops(full, length, backward=False) == forward(length)
        # The backward of a product is two as large, for what it reads and for its weights.
        assert count_flops(full, length) == 3 * forward(length)
        assert forward(length) < count_flops(head, length) < 1.1 * forward(length)
        assert count_flops(head, length) < count_flops(lora, length)
    lengths = np.array([5, 11, 16])
    assert fit_quadratic(full, 16).total(lengths) == pytest.approx(sum(3 * forward(length) for length in lengths), rel=1e-9)
    assert useful_flops(full, 16, [lengths], 4, frozen=False) == pytest.approx([12 * sum(map(forward, lengths))], rel=1e-9)
    assert useful_flops(head, 16, [lengths], 4, frozen=True)[0] < 1.5 * sum(map(forward, lengths))


def test_the_order_rotates() -> None:
    assert [rotate("abc", number) for number in range(4)] == [list("abc"), list("bca"), list("cab"), list("abc")]
    assert ratios([4.0, 9.0, 2.0], [2.0, 3.0, 2.0]) == {"values": [2.0, 3.0, 1.0], "median": 2.0, "min": 1.0, "max": 3.0}
    assert flops.matrix_product_rate("fp32", "cpu") > 1e9


def test_memory_is_that_of_one_contender(material: Material) -> None:
    asked = {"contender": OURS, "dataset": material.dataset, "plain": str(material.plain), "settings": vars(SETTINGS)}
    found = memory.measure_here(asked)
    assert found["peak_bytes"] - found["before_bytes"] == found["above_bytes"]
    assert found["before_bytes"] > 0


def test_quality_is_measured_on_the_same_rows(material: Material, tmp_path: Path) -> None:
    found = compare_quality(material, SETTINGS, tmp_path, lambda line: None)
    mine, theirs = found["validation_loss"].values()
    assert len(mine) == len(theirs) == 3
    assert found["difference"] == pytest.approx(np.mean(mine) - np.mean(theirs))
    assert abs(found["difference"]) < 0.1


@pytest.mark.skipif(importlib.util.find_spec("setfit") is None, reason="setfit is not installed: pip install '.[benchmark]'")
@pytest.mark.filterwarnings("ignore")
def test_few_shot_trains_both_sides_on_eight_rows_a_class(material: Material, tmp_path: Path) -> None:
    found = compare_few_shot(material, SETTINGS, tmp_path, lambda line: None)
    assert found["rows"] == 8 * len(TOPICS)
    assert set(found["contenders"]) == {"head", "lora", "full", "setfit"}
    assert all(0 <= one["accuracy"] <= 1 for one in found["contenders"].values())


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--cases", "full-521"], "did you mean 'full-512'"),
        (["--rounds", "0"], "--rounds: expected a number above 0"),
        (["--round", "3"], "unknown flag '--round'; did you mean '--rounds'?"),
    ],
)
def test_a_mistake_is_one_sentence(argv: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(argv) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ")
    assert words in printed.err

"""One case from its data to its numbers."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import pipeline
from transformers.trainer_pt_utils import LengthGroupedSampler

import hf_transfer as ht
import ours
import peers
from cases import BATCH_SIZE, OURS, Case, precision_of
from flops import useful_flops
from hf_transfer.evidence.study import Rows
from hf_transfer.models.build import quiet_loading
from hf_transfer.models.tuning import freeze_unused
from hf_transfer.training.device import auto_precision
from material import Ground, Material, lay_ground
from measure import Job, interleave, ratios, summarise

WARM_UP_UPDATES = 2
GROUPED = "trainer-bf16-grouped"
TOLERANCE = 1e-4
"""Farthest two probabilities of one text may lie apart: when both sides predict in fp32, in batches of other sizes."""
Prepare = dict[str, Callable[[Rows], Job]]


@dataclass(frozen=True)
class Settings:
    """How every case is measured."""

    device: str
    num_rounds: int = 5
    num_updates: int = 8
    """Of a round, in each of its epochs."""
    batch_size: int = BATCH_SIZE
    is_quick: bool = False

    @property
    def num_rows(self) -> int:
        """Rows of a round."""
        return self.num_updates * self.batch_size

    def quickly(self) -> "Settings":
        """Give settings that show that the program runs, and measure nothing."""
        return replace(self, num_rounds=2, num_updates=2, batch_size=8, is_quick=True)


def compare(case: Case, material: Material, settings: Settings, folder: Path, tell: Callable[[str], None]) -> dict[str, Any]:
    """Measure a case.

    Args:
        case: What is compared.
        material: Data and checkpoint.
        settings: How it is measured.
        folder: For what is temporary.
        tell: Takes a line a round.

    Returns:
        Contenders with their seconds, real tokens/s and FLOP shares, a round each, and the ratios; all that JSON holds.
    """
    ground = lay_ground(material, case, settings.batch_size)
    prepare = prepare_predictions(ground, case, settings, folder) if case.tuning is None else prepare_trainings(ground, case, folder)
    if case.tuning is not None:
        check_same_start(ground, case)
    warm_up = ground.rows.take(np.arange(len(ground.rows))[-WARM_UP_UPDATES * settings.batch_size :])
    interleave(_by_round(prepare, lambda round_number: warm_up), 1, [], settings.device, lambda line: tell(f"warm-up {line}"))
    rounds = [ground.rows_of(round_number, settings.num_rows) for round_number in range(settings.num_rounds)]
    auto = auto_precision()
    precisions = {name: precision_of(name, auto) for name in prepare}
    measured = interleave(
        _by_round(prepare, rounds.__getitem__), settings.num_rounds, sorted(set(precisions.values())), settings.device, tell
    )
    tokens = [case.num_epochs * int(rows.layout.lengths.sum()) for rows in rounds]
    result = measured | {"max_length": case.max_length, "tuning": case.tuning, "num_epochs": case.num_epochs, "tokens": tokens}
    result["rows"] = [case.num_epochs * len(rows) for rows in rounds]
    if case.tuning is not None:
        _check_counts(result, case)
        _add_flops(result, ground, case, rounds, precisions)
        result["padding_of_an_epoch"] = {GROUPED: grouped_padding(ground.rows.layout.lengths, settings.batch_size)}
    seconds = {name: contender["seconds"] for name, contender in result["contenders"].items()}
    for name, contender in result["contenders"].items():
        contender["precision"] = precisions[name]
        contender["tokens_per_second"] = summarise([count / spent for count, spent in zip(tokens, seconds[name], strict=True)])
    result["ratios"] = {peer: _judge(ratios(seconds[peer], seconds[OURS]), case.targets.get(peer)) for peer in case.peers}
    return result


def prepare_trainings(ground: Ground, case: Case, folder: Path) -> Prepare:
    """Give each contender's way to prepare a training on rows."""

    def prepare_one(name: str, rows: Rows) -> Job:
        make = ours.prepare_training if name == OURS else partial(peers.prepare_training, name)
        return make(ground, case.arm, rows, 0, folder)

    return {name: partial(prepare_one, name) for name in (OURS, *case.peers)}


def prepare_predictions(ground: Ground, case: Case, settings: Settings, folder: Path) -> Prepare:
    """Save a model, load it on both sides, and give each side's way to prepare a prediction of rows; both must answer alike."""
    saved = ours.save_untrained(ground, case.arm, folder / "saved")
    model = ht.load(saved)
    with quiet_loading():
        classify = pipeline("text-classification", model=str(saved), device=settings.device)
    texts = list(ground.rows.examples.inputs[: settings.batch_size])
    mine: list[Any] = []
    theirs: list[Any] = []
    ours.prepare_prediction(model, texts, mine, precision="fp32").run()
    peers.prepare_prediction(classify, texts, case.max_length, theirs).run()
    for own, other in zip(mine, theirs, strict=True):
        assert abs(own["probabilities"][other["label"]] - other["score"]) < TOLERANCE, (own, other)
    return {
        OURS: lambda rows: ours.prepare_prediction(model, rows.examples.inputs, []),
        "pipeline": lambda rows: peers.prepare_prediction(classify, rows.examples.inputs, case.max_length, []),
    }


def check_same_start(ground: Ground, case: Case) -> None:
    """Hold both sides to the same weights at the start, and the same of them to train."""
    study = ground.study
    mine = ours.build_arm(study.architecture, case.arm, 0, study.task.PEFT_TASK_TYPE)
    freeze_unused(mine, study.collate(ground.rows.layout.windows[:1]))
    theirs = dict(peers.build_model(ground, case.arm, 0).named_parameters())
    named = dict(mine.named_parameters())
    assert named.keys() == theirs.keys()
    for name, parameter in named.items():
        assert parameter.requires_grad == theirs[name].requires_grad, name
        assert torch.equal(parameter, theirs[name]), name


def grouped_padding(lengths: np.ndarray, batch_size: int) -> float:
    """Give padded tokens a real one when Trainer groups all rows by length: it sorts within 50 batches, a round has fewer."""
    order = list(LengthGroupedSampler(batch_size, lengths=lengths.tolist(), generator=torch.Generator().manual_seed(0)))
    batches = [lengths[order[start : start + batch_size]] for start in range(0, len(order), batch_size)]
    return float(sum(batch.max() * len(batch) for batch in batches) / lengths.sum())


def _by_round(prepare: Prepare, rows_of: Callable[[int], Rows]) -> dict[str, Callable[[int], Job]]:
    def take(make: Callable[[Rows], Job], round_number: int) -> Job:
        return make(rows_of(round_number))

    return {name: partial(take, make) for name, make in prepare.items()}


def _check_counts(result: dict[str, Any], case: Case) -> None:
    """Hold every contender to the same rows and real tokens, as its model saw them."""
    expected = list(zip(result["rows"], result["tokens"], strict=True))
    for name, contender in result["contenders"].items():
        # A frozen prefix that is kept is not run again.
        if name == OURS and case.tuning == "head":
            continue
        assert [(counted["rows"], counted["tokens"]) for counted in contender["counted"]] == expected, name
        contender["padding"] = summarise([counted["padded_tokens"] / counted["tokens"] for counted in contender["counted"]])


def _add_flops(result: dict[str, Any], ground: Ground, case: Case, rounds: list[Rows], precisions: dict[str, str]) -> None:
    model: nn.Module = peers.build_model(ground, case.arm, 0, attention="eager")
    lengths = [rows.layout.lengths for rows in rounds]
    result["useful_flops"] = useful_flops(model, case.max_length, lengths, case.num_epochs, frozen=case.tuning == "head")
    for name, contender in result["contenders"].items():
        rates = result["matrix_product_rate"][precisions[name]]
        shares = zip(result["useful_flops"], contender["seconds"], rates, strict=True)
        contender["flop_share"] = summarise([flops / seconds / rate for flops, seconds, rate in shares])
    share = result["contenders"][OURS]["flop_share"]
    result["contenders"][OURS]["flop_share"] = _judge(share, case.share_target)


def _judge(found: dict[str, Any], target: float | None) -> dict[str, Any]:
    return found | {"target": target, "met": None if target is None else found["median"] >= target}

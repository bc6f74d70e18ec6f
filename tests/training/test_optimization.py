import itertools

import pytest
import torch
from torch import nn

from hf_transfer.training.optimization import build_optimizer, rate_factor


def test_the_rate_rises_then_falls() -> None:
    factors = [rate_factor(update, 20, 0.2, "linear") for update in range(20)]
    assert factors[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert factors[4:] == pytest.approx([1 - step / 16 for step in range(16)])
    cosine = [rate_factor(update, 20, 0.2, "cosine") for update in range(20)]
    assert cosine[4] == 1.0
    assert cosine[12] == pytest.approx(0.5)
    assert all(before > after for before, after in itertools.pairwise(cosine[4:]))
    assert {rate_factor(update, 20, 0.0, "constant") for update in range(20)} == {1.0}
    assert rate_factor(0, 1, 0.1, "linear") == 1.0


def test_biases_and_norms_do_not_decay() -> None:
    model = nn.Sequential(nn.Embedding(3, 4), nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    model[3].weight.requires_grad_(False)
    optimizer = build_optimizer(model, "adamw", 0.1, 0.3)
    decayed, plain = optimizer.param_groups
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.3, 0.0)
    assert {id(parameter) for parameter in decayed["params"]} == {id(model[0].weight), id(model[1].weight)}
    assert {id(parameter) for parameter in plain["params"]} == {
        id(model[1].bias),
        id(model[2].weight),
        id(model[2].bias),
        id(model[3].bias),
    }
    assert isinstance(build_optimizer(model, "sgd", 0.1, 0.0), torch.optim.SGD)
    assert build_optimizer(model, "sgd", 0.1, 0.0).defaults["momentum"] == 0.9

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from hf_transfer.errors import ConfigError
from hf_transfer.training.device import (
    auto_precision,
    make_accelerator,
    peak_memory_bytes,
    reset_loss_scale,
    reset_peak_memory,
    resolve_precision,
)


def test_a_second_run_of_a_process_may_ask_for_another_precision() -> None:
    assert [make_accelerator(precision).mixed_precision for precision in ("fp32", "bf16", "bf16", "fp32")] == ["no", "bf16", "bf16", "no"]
    assert make_accelerator("auto").mixed_precision == {"bf16": "bf16", "fp32": "no"}[auto_precision()]


def test_peak_memory_is_that_since_the_reset() -> None:
    accelerator = make_accelerator("fp32")
    if accelerator.device.type != "cpu":
        pytest.skip("measures resident memory, which is a CPU's")
    big = np.ones(2**25)  # 256 MiB
    with_big = peak_memory_bytes(accelerator)
    del big
    reset_peak_memory(accelerator)
    after = peak_memory_bytes(accelerator)
    assert with_big > 2**28
    assert after < with_big - 2**27


def test_a_training_in_fp16_does_not_inherit_the_scale_of_the_one_before() -> None:
    accelerator: Any = SimpleNamespace(scaler=torch.amp.GradScaler("cpu"), device=torch.device("cpu"))
    fresh, weight = accelerator.scaler.state_dict(), torch.nn.Parameter(torch.ones(1))
    accelerator.scaler.scale(weight * float("inf")).backward()
    optimizer = torch.optim.SGD([weight], 0.1)
    accelerator.scaler.step(optimizer)
    accelerator.scaler.update()
    assert accelerator.scaler.state_dict() != fresh
    reset_loss_scale(accelerator)
    assert accelerator.scaler.state_dict() == fresh
    reset_loss_scale(make_accelerator("fp32"))


def test_fp16_needs_a_gpu() -> None:
    if make_accelerator("fp32").device.type != "cpu":
        pytest.skip("there is a GPU")
    with pytest.raises(ConfigError, match="fp16 needs a GPU"):
        make_accelerator("fp16")


def test_an_unknown_precision_is_one_sentence() -> None:
    assert [resolve_precision(precision) for precision in ("auto", "bf16", "fp32")] == [auto_precision(), "bf16", "fp32"]
    with pytest.raises(ConfigError, match="precision must be auto, bf16, fp16, fp32, found 'bf61'; did you mean 'bf16'"):
        resolve_precision("bf61")

"""Dropout masks as fair and as independent as torch's, attention and sparse gradients that give torch's numbers."""

import gc
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn
from torch.nn import functional
from transformers import BertConfig, BertForSequenceClassification

from hf_transfer.models import cpu_kernels as kernels
from hf_transfer.models.cpu_kernels import LONGEST_ROW, cpu_kernels, draw_mask, make_dense, sparse_gradients
from hf_transfer.models.tuning import apply_tuning
from hf_transfer.recipe import LoRA

CPU = torch.device("cpu")
DTYPES = [torch.float32, torch.bfloat16]
attention = functional.scaled_dot_product_attention


def mask_of(shape: tuple[int, ...], p: float, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    """Give the mask that dropout of ones is."""
    with cpu_kernels(CPU, seed):
        return functional.dropout(torch.ones(shape, dtype=dtype), p)


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float16])
@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_a_mask_keeps_its_share_at_its_scale(p: float, dtype: torch.dtype) -> None:
    mask = mask_of((1000, 1001), p, dtype, seed=3)
    kept = mask != 0
    assert abs(kept.double().mean() - (1 - p)) < 4 * math.sqrt(p * (1 - p) / mask.numel())
    assert mask[kept].unique().tolist() == [torch.tensor(1 / (1 - p), dtype=dtype).item()]


@pytest.mark.parametrize("dtype", DTYPES)
def test_entries_of_a_mask_are_independent(dtype: torch.dtype) -> None:
    kept = (mask_of((2**20,), 0.5, dtype, seed=1) != 0).double() * 2 - 1
    # Within one random word of 64 bits (2 or 4 entries) and beyond; 9 lags, each N(0, 1 / n).
    for lag in (1, 2, 3, 4, 5, 8, 16, 64, 1024):
        assert abs((kept[lag:] * kept[:-lag]).mean()) < 4.5 / math.sqrt(len(kept) - lag), lag
    # All 16 patterns of four neighbours are as frequent.
    patterns = ((kept > 0).view(-1, 4).long() * torch.tensor([1, 2, 4, 8])).sum(1)
    assert stats.chisquare(torch.bincount(patterns, minlength=16).numpy()).pvalue > 1e-4
    # Masks of one block, and of neighbouring seeds, too.
    with cpu_kernels(CPU, 1):
        both = [functional.dropout(torch.ones(2**18, dtype=dtype), 0.5) != 0 for _ in range(2)]
    both.append(mask_of((2**18,), 0.5, dtype, seed=2) != 0)
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert abs((both[one] == both[other]).double().mean() - 0.5) < 4.5 * 0.5 / 2**9


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_rows_drop_as_many_as_torchs_do(p: float, dtype: torch.dtype) -> None:
    ours = (mask_of((4000, 65), p, dtype) == 0).sum(1).numpy()
    torch.manual_seed(0)
    torchs = (functional.dropout(torch.ones(4000, 65), p) == 0).sum(1).numpy()
    edges = np.unique(stats.binom(65, p).ppf([0, 0.05, 0.2, 0.4, 0.6, 0.8, 0.95, 1]))
    counts = [np.histogram(found, edges)[0] for found in (ours, torchs)]
    assert stats.chi2_contingency(counts).pvalue > 1e-3
    expected = np.diff(stats.binom(65, p).cdf(edges - 1))
    expected[-1] = 1 - expected[:-1].sum()
    assert stats.chisquare(counts[0], expected * 4000).pvalue > 1e-3


def test_the_seed_alone_decides_a_mask() -> None:
    torch.manual_seed(5)
    first = mask_of((7, 33), 0.3)
    torch.rand(100)
    np.random.seed(9)
    assert torch.equal(first, mask_of((7, 33), 0.3))
    assert not torch.equal(first, mask_of((7, 33), 0.3, seed=1))
    before = torch.get_rng_state()
    with cpu_kernels(CPU, 0):
        one, two = (functional.dropout(torch.ones(7, 33), 0.3) for _ in range(2))
    assert torch.equal(one, first)
    assert not torch.equal(one, two)
    assert torch.equal(before, torch.get_rng_state()), "torch's generator is left alone"


def test_outside_the_block_and_off_the_cpu_dropout_is_torchs() -> None:
    values = torch.rand(5, 7)

    def dropped() -> torch.Tensor:
        torch.manual_seed(1)
        return functional.dropout(values, 0.5)

    expected = dropped()
    with cpu_kernels(CPU, 0):
        assert not torch.equal(dropped(), expected)
    assert torch.equal(dropped(), expected)
    with cpu_kernels(torch.device("cuda"), 0):
        assert torch.equal(dropped(), expected)


@pytest.mark.parametrize(("p", "training"), [(0.5, False), (0.0, True), (1.0, True)])
def test_what_drops_nothing_or_all_is_torchs(p: float, training: bool) -> None:
    values = torch.rand(5, 7)
    with cpu_kernels(CPU):
        found = nn.Dropout(p).train(training)(values)
    assert torch.equal(found, nn.Dropout(p).train(training)(values))


def test_what_is_refused_is_torchs_to_refuse() -> None:
    with cpu_kernels(CPU), pytest.raises(ValueError, match="probability"):
        functional.dropout(torch.ones(3), 1.5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_are_those_of_multiplying_with_the_mask(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    values, slope = torch.randn(2, 9, 5).to(dtype)
    values.requires_grad_()
    mask = mask_of((9, 5), 0.4, dtype)
    with cpu_kernels(CPU):
        dropped = functional.dropout(values, 0.4)
    dropped.backward(slope)
    assert torch.equal(dropped, values * mask)
    assert torch.equal(values.grad, slope * mask)


def test_inplace_writes_to_what_it_is_given() -> None:
    values, mask = torch.ones(9, 5), mask_of((9, 5), 0.4)
    with cpu_kernels(CPU):
        found = nn.Dropout(0.4, inplace=True)(values)
    assert found is values
    assert torch.equal(values, mask)
    with cpu_kernels(CPU):
        kept = nn.Dropout(0.4)(torch.ones(9, 5).t())
    assert kept.shape == (5, 9), "nor does a transposed tensor matter"


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float16])
@pytest.mark.parametrize("shape", [(), (0,), (0, 4), (1,), (3,), (5, 7), (2, 3, 5, 1)])
def test_every_shape_gets_a_mask(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    mask = draw_mask(torch.Size(shape), 0.5, dtype, np.random.SFC64(1))
    assert (mask.shape, mask.dtype) == (shape, dtype)
    assert set(mask.unique().tolist()) <= {0.0, 2.0}
    assert mask_of(shape, 0.5, dtype).shape == shape


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("p", [1 - 2**-15, 1 - 2**-18, 1 - 2**-35, 1 - 2**-52])
def test_dropping_nearly_all_is_not_dropping_nothing(p: float, dtype: torch.dtype) -> None:
    assert (mask_of((10_000,), p, dtype) != 0).double().mean() < 1e-3


def test_double_precision_is_torchs() -> None:
    values = torch.ones(5, 7, dtype=torch.float64)
    torch.manual_seed(1)
    expected = functional.dropout(values, 0.5)
    torch.manual_seed(1)
    with cpu_kernels(CPU):
        assert torch.equal(functional.dropout(values, 0.5), expected)


def inputs_of(length: int = 13, dtype: torch.dtype = torch.float32, keys: int | None = None, heads: int = 3) -> list[torch.Tensor]:
    """Give queries, keys and values of 2 rows."""
    generator = torch.Generator().manual_seed(length)
    shapes = [(2, heads, length, 16), *[(2, heads, keys or length, 16)] * 2]
    return [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes]


def padding(length: int = 13) -> torch.Tensor:
    """Give a mask of two rows, (2, 1, 1, L), the second of which ends early."""
    return (torch.arange(length) < torch.tensor([[length], [length - 5]]))[:, None, None]


SEEN = torch.rand(2, 1, 13, 13, generator=torch.Generator().manual_seed(0)) < 0.6
SEEN[..., 0] = True
MASKS: dict[str, torch.Tensor | None] = {
    "none": None,
    "bool-padding": padding(),
    "bool-every-pair": SEEN,
    "bool-a-head": SEEN.expand(2, 3, 13, 13),
    "bool-no-row": SEEN[0, 0],
    "float-padding": torch.zeros(2, 1, 1, 13).masked_fill(~padding(), -math.inf),
    "float-lowest": torch.zeros(2, 1, 1, 13).masked_fill(~padding(), torch.finfo(torch.float32).min),
    "float-bias": torch.randn(1, 3, 13, 13, generator=torch.Generator().manual_seed(1)),
}


def with_gradients(found: torch.Tensor, given: list[torch.Tensor]) -> list[torch.Tensor]:
    slope = torch.randn(found.shape, generator=torch.Generator().manual_seed(7)).to(found.dtype)
    return [found, *torch.autograd.grad(found, given, slope)]


def far(found: list[torch.Tensor], expected: list[torch.Tensor]) -> float:
    """Give the largest difference, relative to the largest number of its tensor."""
    return max(((one - two).abs().max() / two.abs().max()).item() for one, two in zip(found, expected, strict=True))


@pytest.mark.parametrize("name", MASKS)
def test_attention_is_torchs(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mask = MASKS[name]
    given = inputs_of()
    expected = with_gradients(attention(*given, attn_mask=mask), given)
    with cpu_kernels(CPU):
        found = with_gradients(attention(*given, attn_mask=mask), given)
    assert all(torch.equal(one, two) for one, two in zip(found, expected, strict=True)), "fp32 without dropout is torch's own"
    # The same formula in fp32: no dropout by a mask of ones.
    monkeypatch.setattr(kernels, "draw_mask", lambda shape, p, dtype, words: torch.ones(shape, dtype=dtype))
    with cpu_kernels(CPU):
        assert far(with_gradients(attention(*given, attn_mask=mask, dropout_p=0.5), given), expected) < 2e-6
    halves = [tensor.detach().bfloat16().requires_grad_() for tensor in given]
    half_mask = mask.bfloat16() if mask is not None and mask.is_floating_point() else mask
    exact = [tensor.detach().float().requires_grad_() for tensor in halves]
    expected = with_gradients(attention(*exact, attn_mask=half_mask if half_mask is None else half_mask.to(mask.dtype)), exact)
    with cpu_kernels(CPU):
        found = with_gradients(attention(*halves, attn_mask=half_mask), halves)
    assert {tensor.dtype for tensor in found} == {torch.bfloat16}
    assert far([tensor.float() for tensor in found], expected) < 2e-2
    # Not farther than torch's own, give or take.
    torchs = [tensor.float() for tensor in with_gradients(attention(*halves, attn_mask=half_mask), halves)]
    assert far([tensor.float() for tensor in found], expected) < 3 * far(torchs, expected) + 1e-3
    with cpu_kernels(CPU), torch.autocast("cpu", torch.bfloat16):
        cast = attention(*given, attn_mask=mask)
    assert cast.dtype == torch.bfloat16
    assert far([cast.float()], [attention(*given, attn_mask=mask)]) < 2e-2


@pytest.mark.parametrize(
    ("given", "settings"),
    [
        (inputs_of(), {"scale": 0.7}),
        (inputs_of(), {"is_causal": True}),
        (inputs_of(keys=9), {}),
        ([inputs_of(heads=4)[0], *inputs_of(heads=2)[1:]], {"enable_gqa": True}),
        (inputs_of(LONGEST_ROW + 1), {}),
        ([tensor[0] for tensor in inputs_of()], {}),
    ],
    ids=["scale", "causal", "other-keys", "gqa", "long", "one-row"],
)
def test_attention_is_torchs_in_its_other_forms(given: list[torch.Tensor], settings: dict[str, Any]) -> None:
    expected = attention(*given, **settings)
    for dtype, bound in ((torch.float32, 0), (torch.bfloat16, 2e-2)):
        cast = [tensor.to(dtype) for tensor in given]
        with cpu_kernels(CPU):
            assert far([attention(*cast, **settings).float()], [expected]) <= bound
    if "scale" in settings or given[1].shape[-2] == 9:
        with cpu_kernels(CPU):
            dropped = [attention(*given, **settings, dropout_p=0.3) for _ in range(300)]
        assert (torch.stack(dropped).mean(0) - expected).abs().mean() < 0.05


def test_what_torch_refuses_is_refused() -> None:
    given = inputs_of(dtype=torch.bfloat16)
    with cpu_kernels(CPU), pytest.raises(RuntimeError):
        attention(*given, attn_mask=torch.ones(5, 1, 1, 13, dtype=torch.bool))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["none", "bool-padding", "float-bias"])
def test_attention_with_dropout_is_right_in_the_mean(name: str, dtype: torch.dtype) -> None:
    given, mask, p, num = inputs_of(dtype=dtype), MASKS[name], 0.2, 2000
    given = [tensor.detach() for tensor in given]
    with cpu_kernels(CPU, 4):
        found = torch.stack([attention(*given, attn_mask=mask, dropout_p=p).float() for _ in range(num)])
    expected = attention(*[tensor.float() for tensor in given], attn_mask=mask)
    # Of a sum of shares times values each of which stays with 1 - p: the variance is p / (1 - p) of the sum of the squares.
    query, key, value = (tensor.float() for tensor in given)
    scores = query @ key.mT / 4 + (0 if mask is None else mask if mask.is_floating_point() else torch.zeros(()).where(mask, -math.inf))
    spread = (scores.softmax(-1).square() @ value.square() * p / (1 - p)).sqrt()
    deviation = (found.mean(0) - expected) / (spread / math.sqrt(num))
    rounding = 0.0 if dtype == torch.float32 else 2e-2
    assert ((found.mean(0) - expected).abs() <= 5 * spread / math.sqrt(num) + rounding).all()
    if dtype == torch.float32:
        assert 0.8 < deviation.std() < 1.25
        assert torch.allclose(found.std(0).mean(), spread.mean(), rtol=0.05)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("hidden", ["bool", -math.inf, torch.finfo(torch.float32).min])
def test_a_row_that_sees_nothing_is_no_nan(hidden: Any, autocast: bool, dropout: float) -> None:
    given = inputs_of()
    seen = padding().repeat(1, 1, 13, 1)
    seen[0, :, 3] = seen[1] = False
    mask = seen if hidden == "bool" else torch.zeros(seen.shape).masked_fill(~seen, hidden)
    with cpu_kernels(CPU), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found = attention(*given, attn_mask=mask, dropout_p=dropout)
    assert found.isfinite().all()
    assert all(slope.isfinite().all() for slope in with_gradients(found, given))
    # The others are not touched by it.
    if not dropout:
        assert far([found[0, :, 4:].float()], [attention(*given)[0, :, 4:]]) < (2e-2 if autocast else 1e-5)


def test_a_learned_bias_gets_its_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    given, bias = inputs_of(), torch.randn(1, 3, 13, 13, requires_grad=True)
    expected = with_gradients(attention(*given, attn_mask=bias), [*given, bias])
    monkeypatch.setattr(kernels, "draw_mask", lambda shape, p, dtype, words: torch.ones(shape, dtype=dtype))
    with cpu_kernels(CPU):
        assert far(with_gradients(attention(*given, attn_mask=bias, dropout_p=0.1), [*given, bias]), expected) < 2e-6


def test_masks_are_not_mixed_up() -> None:
    given = inputs_of(dtype=torch.bfloat16)

    def plain(mask: torch.Tensor) -> torch.Tensor:
        with cpu_kernels(CPU):
            return attention(*given, attn_mask=mask)

    masks = [padding(), SEEN, padding().flip(0)]
    expected = [plain(mask) for mask in masks]
    assert not any(torch.equal(expected[one], expected[other]) for one, other in ((0, 1), (0, 2), (1, 2)))
    with cpu_kernels(CPU):
        for index in (0, 0, 1, 0, 2, 2, 1):
            assert torch.equal(attention(*given, attn_mask=masks[index]), expected[index])
        # Masks that live only for a call may get the place, and the id, of the one before.
        for index in [0, 2] * 20:
            assert torch.equal(attention(*given, attn_mask=masks[index].clone()), expected[index])
            gc.collect(0)
        # And the same mask in another precision: fp32's lowest number would be -inf in bf16.
        hidden = torch.zeros_like(SEEN)
        assert attention(*[tensor.float() for tensor in given], attn_mask=hidden, dropout_p=0.1).isfinite().all()
        assert attention(*given, attn_mask=hidden).isfinite().all()


def test_a_mask_is_turned_into_a_bias_once_for_all_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    original = torch.Tensor.masked_fill_
    monkeypatch.setattr(torch.Tensor, "masked_fill_", lambda *args: made.append(1) or original(*args))
    given, mask = inputs_of(dtype=torch.bfloat16), padding()
    with cpu_kernels(CPU):
        for _ in range(4):
            attention(*given, attn_mask=mask)
    assert len(made) == 1


@pytest.fixture
def bert() -> Iterator[BertForSequenceClassification]:
    """Give a BERT of a vocabulary of 400 that counts as large."""
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "max_position_embeddings": 32}
    return BertForSequenceClassification(BertConfig(vocab_size=400, num_labels=3, pad_token_id=0, **shape))


def gradients(model: nn.Module, in_mode: bool, num_batches: int = 3) -> dict[str, torch.Tensor]:
    """Sum up the gradients of a few padded micro-batches, as an update does."""
    generator = torch.Generator().manual_seed(0)
    model.zero_grad()
    for index in range(num_batches):
        ids = torch.randint(1, 400, (4, 9 + index), generator=generator)
        ids[:, 0] = 7
        ids[1:, 6:] = 0
        with cpu_kernels(CPU if in_mode else torch.device("meta"), index):
            logits = model(input_ids=ids, attention_mask=(ids > 0).long()).logits
        functional.cross_entropy(logits, torch.arange(4) % 3, reduction="sum").backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("adapted", [False, True])
def test_an_updates_gradients_are_torchs(bert: BertForSequenceClassification, adapted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "LARGE_VOCABULARY", 300)
    for module in bert.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    model: nn.Module = bert.train()
    if adapted:
        head = frozenset({"classifier.weight", "classifier.bias"})
        model = apply_tuning(bert, head, "lora", None, LoRA(lora_dropout=0.0), "SEQ_CLS").train()
    expected = gradients(model, in_mode=False)
    sparse = sparse_gradients(model)
    assert len(sparse) == (0 if adapted else 1), "the word embeddings alone, where they train"
    found = gradients(model, in_mode=True)
    assert [name for name, gradient in found.items() if gradient.is_sparse] == (
        [] if adapted else ["bert.embeddings.word_embeddings.weight"]
    )
    make_dense(sparse)
    found = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        assert not gradient.is_sparse
        assert (gradient - expected[name]).abs().max() < 1e-6 * max(1, float(expected[name].abs().max())), name


def test_sparse_gradients_repeat_bit_for_bit_with_dropout(bert: BertForSequenceClassification, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "LARGE_VOCABULARY", 300)
    sparse = sparse_gradients(bert.train())
    found = []
    for repeat in range(2):
        torch.manual_seed(repeat)
        gradients(bert, in_mode=True)
        make_dense(sparse)
        found.append({name: parameter.grad.clone() for name, parameter in bert.named_parameters() if parameter.grad is not None})
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
    # Unused words, and the padding, got none.
    assert not sparse[0].grad[0].any()
    make_dense(sparse)
    bert.zero_grad()
    make_dense(sparse)
    assert sparse[0].grad is None


def test_small_and_frozen_embeddings_stay_dense(bert: BertForSequenceClassification) -> None:
    assert sparse_gradients(bert) == []
    bert.bert.embeddings.word_embeddings.requires_grad_(False)
    large = nn.ModuleList([bert, nn.Embedding(10_000, 2)])
    assert sparse_gradients(large) == [large[1].weight]


BOUND = """
import os
from hf_transfer.training.device import make_accelerator
make_accelerator("fp32")
print(os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"], os.environ["LRU_CACHE_CAPACITY"])
"""


def test_the_kernel_cache_is_bounded_unless_the_user_says_how(monkeypatch: pytest.MonkeyPatch) -> None:
    if torch.accelerator.is_available():
        pytest.skip("there is a GPU")
    for name in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        monkeypatch.delenv(name, raising=False)
    kernels.bound_kernel_cache()
    assert os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] == os.environ["LRU_CACHE_CAPACITY"] == str(kernels.KEPT_KERNELS)
    environment = {name: value for name, value in os.environ.items() if name != "LRU_CACHE_CAPACITY"}
    environment["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] = "7"
    done = subprocess.run([sys.executable, "-c", BOUND], capture_output=True, text=True, env=environment)
    assert done.stdout.split() == ["7", str(kernels.KEPT_KERNELS)], done.stderr

"""What a CPU does cheaper by other means to the same end: dropout masks, and the attention of rows that are not long."""

import math
import os
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

LONGEST_ROW = 512
"""Tokens up to which three plain bf16 products beat torch's fused attention on a CPU, forward and backward: 3.6 times at 64 tokens, 2.4 at
256, 1.5 at 512 (12 heads of width 64; of width 32: 3.2, 1.2, 1.1), while 1,024 tokens are about even and in fp32 the fused one wins (AMD
EPYC with AVX512-BF16, one thread, medians of 9 in turn, 2026-11-20). Scores and shares are rounded to bf16, as by eager attention under
autocast; the fused kernel keeps them in fp32. Root-mean-square error at scores of standard deviation 1: 6e-4 against 3e-4; of 4: 6e-3
against 1e-3."""
LARGE_VOCABULARY = 8192
"""Rows from which an embedding's gradient is collected sparse: some more than a micro-batch has tokens."""
KEPT_KERNELS = 64
"""Compiled kernels kept a kind: a micro-batch needs about 20. torch keeps 1,024, about a MiB each, and MiniLM grew to 2.8 GB in 72 updates
of new shapes where it stays at 1.5 GB with 64, in no more time (2 cores, 2026-11-20)."""
_WORDS = {torch.bfloat16: torch.int16, torch.float16: torch.int16, torch.float32: torch.int32}


def bound_kernel_cache() -> None:
    """Keep fewer compiled kernels of batch shapes, unless the user's environment says how many; needed before the first product."""
    for name in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        os.environ.setdefault(name, str(KEPT_KERNELS))


def cpu_kernels(device: torch.device, seed: int = 0) -> AbstractContextManager[Any]:
    """Replace torch's dropout and attention inside the block where the model runs on a CPU; elsewhere do nothing.

    Args:
        device: Where the model runs.
        seed: Draws the dropout masks of the block, without torch's generators; but for causal attention, grouped heads and fp64, which stay
            torch's own.
    """
    return _CpuKernels(seed) if device.type == "cpu" else nullcontext()


def draw_mask(shape: torch.Size, p: float, dtype: torch.dtype, words: np.random.SFC64) -> torch.Tensor:
    """Draw a dropout mask: 1 / (1 - p) with probability 1 - p, else 0, each entry for itself.

    An entry is kept where a random word of its own width (16 bits or 32) is high enough, so p is met to 2 ** -17. torch's `bernoulli_`
    draws one number an entry, by one thread, and took 27 % of a micro-batch.

    Args:
        shape: Of the mask.
        p: Probability of 0, below 1.
        dtype: One of 16 or 32 bits.
        words: Random words.
    """
    word = _WORDS[dtype]
    size = torch.iinfo(word).bits
    count = math.prod(shape)
    drawn = torch.from_numpy(words.random_raw(count * size // 64 + 1)).view(word)[:count].view(shape)
    kept = int(torch.tensor(1 / (1 - p), dtype=dtype).view(word))
    # Comparing and multiplying integers in place is vectorised; going through booleans is not.
    dropped = min(round(p * 2**size), 2**size - 1)
    return drawn.ge_(dropped - 2 ** (size - 1)).mul_(kept).view(dtype)


def sparse_gradients(model: nn.Module) -> list[nn.Parameter]:
    """Let the large embeddings that train collect sparse gradients: of the tokens of a micro-batch, not of the whole vocabulary.

    Dense ones cost MiniLM 47 MB to clear and 47 MB to add up in every micro-batch, a twentieth of its time.

    Returns:
        Their weights, for `make_dense` before anybody looks at a gradient.
    """
    large = [
        module
        for module in model.modules()
        if isinstance(module, nn.Embedding) and module.weight.requires_grad and module.num_embeddings >= LARGE_VOCABULARY
    ]
    for module in large:
        module.sparse = True
    return [module.weight for module in large]


def make_dense(parameters: Iterable[nn.Parameter]) -> None:
    """Turn sparse gradients into ordinary ones."""
    for parameter in parameters:
        if parameter.grad is not None and parameter.grad.is_sparse:
            parameter.grad = parameter.grad.to_dense()


class _CpuKernels(TorchFunctionMode):
    def __init__(self, seed: int) -> None:
        super().__init__()
        self._words = np.random.SFC64(seed)
        self._mask: torch.Tensor | None = None
        self._bias: torch.Tensor | None = None

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        if func is functional.dropout:
            return self._dropout(*args, **(kwargs or {}))
        if func is functional.scaled_dot_product_attention:
            return self._attention(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _dropout(self, input: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> torch.Tensor:
        if not training or not 0 < p < 1 or input.dtype not in _WORDS:
            return functional.dropout(input, p, training, inplace)
        mask = draw_mask(input.shape, p, input.dtype, self._words)
        return input.mul_(mask) if inplace else input * mask

    def _attention(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attn_mask: torch.Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> torch.Tensor:
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else query.dtype
        # With dropout torch leaves its fused kernel, too, for products in fp32.
        is_cheaper = dropout_p > 0 or (dtype == torch.bfloat16 and key.shape[-2] <= LONGEST_ROW)
        scores_shape = (*query.shape[:-1], key.shape[-2])
        fits = attn_mask is None or torch.broadcast_shapes(attn_mask.shape, scores_shape) == scores_shape
        if not is_cheaper or not fits or is_causal or enable_gqa or dtype not in _WORDS or dropout_p >= 1:
            return functional.scaled_dot_product_attention(
                query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
            )
        scores = (query * (query.shape[-1] ** -0.5 if scale is None else scale)) @ key.transpose(-1, -2)
        if attn_mask is not None:
            scores = scores.add_(self._bias_of(attn_mask, scores.dtype))
        shares = scores.softmax(-1)
        return (shares * draw_mask(shares.shape, dropout_p, shares.dtype, self._words) if dropout_p else shares) @ value

    def _bias_of(self, mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Give what a mask adds to the scores; once for all blocks of a model, which share it."""
        # The lowest finite number: a padded row that sees nothing at all gets a mean, not NaN.
        lowest = torch.finfo(dtype).min
        if mask.dtype != torch.bool:
            # fp32's lowest is -inf in bf16.
            return mask.clamp(min=lowest)
        if self._bias is None or mask is not self._mask or self._bias.dtype != dtype:
            self._mask, self._bias = mask, torch.zeros(mask.shape, dtype=dtype).masked_fill_(~mask, lowest)
        return self._bias

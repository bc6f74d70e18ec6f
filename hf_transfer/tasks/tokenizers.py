"""Tokenizers of the text tasks: loaded, and how many of their tokens a model reads."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoTokenizer, PretrainedConfig, PreTrainedTokenizerBase

from hf_transfer.errors import CheckpointError, ConfigError, first_line, listed
from hf_transfer.tasks.items import EncodedRow, lay_out

NO_LIMIT = 10**9
"""A `max_length` that cuts nothing."""


def check_whole(text: str, index: int) -> None:
    """Refuse a text that no tokenizer reads.

    Raises:
        ConfigError: It holds half of a character (a lone surrogate), as a text cut in UTF-16 may.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = f"\\u{ord(text[error.start]):04x}"
        raise ConfigError(f"the text at position {index} holds half of a character, {half}: remove it, or decode the text anew") from None


def load_tokenizer(folder: Path, name: str, config: PretrainedConfig) -> PreTrainedTokenizerBase:
    """Load a folder's tokenizer, which gives token types only to a model that knows them.

    Raises:
        CheckpointError: There is none, it cannot pad, or it cannot say which token belongs to which word.
    """
    vocabularies = [path for name in ("*token*", "vocab*", "*.model") for path in folder.glob(name)]
    if (folder / "preprocessor_config.json").is_file() and not vocabularies:
        raise CheckpointError(f"checkpoint {name} reads images, not texts: it has a preprocessor_config.json and no tokenizer")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"checkpoint {name} has no tokenizer that can be loaded: {first_line(error)}") from None
    # Without any tokenizer file, transformers 5 makes one up that knows its special tokens only.
    if len(tokenizer) <= len(tokenizer.all_special_ids):
        raise CheckpointError(
            f"checkpoint {name} has no tokenizer: expected tokenizer.json or vocabulary files, the folder holds "
            f"{listed(sorted(path.name for path in folder.iterdir())) or 'nothing'}"
        )
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise CheckpointError(f"the tokenizer of checkpoint {name} has neither a padding nor an end token: batches cannot be padded")
        tokenizer.pad_token = tokenizer.eos_token
    if not tokenizer.is_fast:
        raise CheckpointError(
            f"the tokenizer of checkpoint {name} ({type(tokenizer).__name__}) has no tokenizer.json and cannot say which token belongs to "
            "which word: take a checkpoint with one"
        )
    if (getattr(config, "type_vocab_size", None) or 0) < 2:
        tokenizer.model_input_names = [argument for argument in tokenizer.model_input_names if argument != "token_type_ids"]
    return tokenizer


def most_tokens(tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig) -> int | None:
    """Give the most tokens a row may have, or None where the model knows no bound."""
    bounds = [getattr(config, "max_position_embeddings", None), tokenizer.model_max_length]
    # Tokenizers without a bound say 10^30.
    known = [bound for bound in bounds if bound is not None and 0 < bound < 10**9]
    return min(known) if known else None


def check_reach(tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig, task: Any, name: str) -> None:
    """Refuse a task's `max_length` beyond what the checkpoint says it can read.

    Raises:
        ConfigError: Says what it can.
    """
    most = most_tokens(tokenizer, config)
    if most is not None and task.max_length > most:
        raise ConfigError(
            f"max_length {task.max_length} is more than the {most} tokens that checkpoint {name} can read: take --max-length {most}"
        )


def describe_reach(tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig) -> str:
    """Say what the checkpoint reads."""
    most = most_tokens(tokenizer, config)
    return f", reads {most:,} tokens" if most else ""


def describe_misfit(task: Any, tokenizer: PreTrainedTokenizerBase, reason: str) -> str:
    """Say why a model cannot read a row of `max_length`, and what to do."""
    return f"cannot read max_length {task.max_length} tokens ({reason}): lower --max-length"


def augmenter(tokenizer: PreTrainedTokenizerBase, task: Any) -> None:
    """Give nothing: texts are not augmented."""


@dataclass(frozen=True)
class Lengths:
    """Tokens of rows before any is cut, special tokens included."""

    median: int
    percentile_95: int
    longest: int
    share_too_long: float
    """Rows longer than `max_length`: cut, or read in several windows."""
    max_length: int
    too_long: str
    """What becomes of those."""

    def lines(self, sample: str) -> list[tuple[str, str]]:
        """Give what a person reads; `sample` says of how many rows, where not of all."""
        return [
            ("lengths", f"median {self.median}, 95 % up to {self.percentile_95}, longest {self.longest:,} tokens{sample}"),
            ("", f"{self.share_too_long:.1%} are longer than max_length {self.max_length} and {self.too_long}"),
        ]


def measure_lengths(uncut: Sequence[EncodedRow], max_length: int, too_long: str) -> Lengths:
    """Measure rows encoded without a limit."""
    lengths: Any = lay_out(uncut).lengths
    return Lengths(
        median=int(np.median(lengths)),
        percentile_95=int(np.quantile(lengths, 0.95)),
        longest=int(lengths.max()),
        share_too_long=float((lengths > max_length).mean()),
        max_length=max_length,
        too_long=too_long,
    )

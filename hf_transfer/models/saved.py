"""A trained arm on disk, and a model again: weights as transformers or PEFT save them, beside a sidecar with what neither keeps."""

import functools
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig

from hf_transfer.checked import config as checked
from hf_transfer.data.hub import EMBEDDED, hub_answers, is_local_checkpoint
from hf_transfer.disk import atomic_folder, read_json, temporary_folder, write_json
from hf_transfer.errors import CheckpointError, ConfigError, TransferError
from hf_transfer.files import CARD_FILE, MODEL_FOLDER, RECIPE_FILE, SIDECAR_FILE, run_folder_of
from hf_transfer.models.build import Architecture, build_model, labelled_config, loading, quiet_loading
from hf_transfer.models.checkpoint import (
    EMBEDDED_CHECKPOINTS,
    Checkpoint,
    check_folder,
    find_checkpoint_folder,
    is_adapter,
    open_checkpoint,
    read_config,
    sha256_of_weights,
)
from hf_transfer.models.cpu_kernels import bound_kernel_cache
from hf_transfer.models.pooling import with_pooling_block, without_pooling_block
from hf_transfer.models.tuning import quiet_peft, show_convolutions
from hf_transfer.recipe import read_yaml
from hf_transfer.task_configs import Task, task_from_dict
from hf_transfer.tasks import functions_of


@checked
class Sidecar:
    """What a saved model needs beside its weights; written as `hf_transfer.json`."""

    task: dict[str, Any]
    """The task config: kind, columns, lengths."""
    labels: list[str]
    """(C,), by class id. An adapter keeps neither their number nor their names."""
    base_checkpoint: str
    """Hub id, or the last component of a local path; never an absolute path."""
    base_revision: str | None
    base_sha256: str
    """Hash of the base's weight files."""
    pooling: str | None = None
    """"mean" where a fixed block that pools was added behind the base's last."""
    chain: list[dict[str, Any]] = field(default_factory=list)
    """The trainings that made the weights, the first one first, this one last."""


@dataclass(frozen=True)
class SavedModel:
    """A model read back, in eval mode and fp32, on the accelerator where there is one."""

    model: nn.Module
    processor: Any
    """Tokenizer, or image processor."""
    sidecar: Sidecar

    @property
    def task(self) -> Task:
        """The task it was trained for."""
        return task_from_dict(self.sidecar.task)


def save_model(model: nn.Module, processor: Any, sidecar: Sidecar, folder: Path, weights: dict[str, torch.Tensor] | None = None) -> None:
    """Save a model (an adapter with its head, where it is a `PeftModel`), its processor and its sidecar; whole or not at all.

    Args:
        model: On one process.
        processor: Tokenizer, or image processor.
        sidecar: What neither keeps.
        folder: To be written.
        weights: The state dict of a sharded model, from `whole_weights`; None = the model holds its own.
    """
    from peft import PeftModel

    with atomic_folder(folder) as temporary:
        if isinstance(model, PeftModel):
            # PEFT would write a local path here, and a generic card.
            for adapter in model.peft_config.values():
                adapter.base_model_name_or_path = sidecar.base_checkpoint
                adapter.revision = sidecar.base_revision
            model.save_pretrained(temporary, save_embedding_layers=False, state_dict=weights)
            (temporary / CARD_FILE).unlink(missing_ok=True)
        else:
            with quiet_loading():
                model.save_pretrained(temporary, state_dict=weights)
        processor.save_pretrained(temporary)
        write_json(temporary / SIDECAR_FILE, asdict(sidecar))


def load_saved(name: str, base: str | None = None) -> SavedModel:
    """Read a saved arm.

    Args:
        name: A `model/` folder, or a Hub id.
        base: Checkpoint an adapter belongs to; None finds it by the sidecar.

    Raises:
        CheckpointError: There is no such folder or id, no sidecar, or no base with the right weights.
    """
    if not torch.accelerator.is_available():
        bound_kernel_cache()
    folder = find_checkpoint_folder(name, _cache_only(name))
    if not (folder / SIDECAR_FILE).exists():
        raise CheckpointError(
            f"{name} holds no {SIDECAR_FILE}: expected a run folder, a cell's folder (arm/budget/seed), or its model/ folder"
        )
    check_folder(folder, name)
    sidecar = _read_sidecar(folder, name)
    functions = functions_of(task_from_dict(sidecar.task))
    auto_model = functions.AUTO_MODEL
    if is_adapter(folder):
        from peft import PeftModel

        started_from = str(base or _find_base(folder, sidecar))
        checkpoint = open_base(started_from, functions.load_processor, _cache_only(started_from))
        if checkpoint.sha256 != sidecar.base_sha256:
            raise CheckpointError(
                f"{base} is not the base of adapter {name}: expected weights {sidecar.base_sha256[:12]} ({sidecar.base_checkpoint}), "
                f"found {checkpoint.sha256[:12]}"
            )
        config = labelled_config(checkpoint.config, sidecar.labels)
        if sidecar.pooling is not None:
            config = with_pooling_block(config, checkpoint.folder)
        else:
            config = without_pooling_block(config, checkpoint.folder)
        architecture = Architecture(checkpoint, auto_model, config, frozenset(), frozenset(), pooling=sidecar.pooling)
        plain = build_model(architecture, "pretrained", seed=0)
        with loading(name), quiet_peft():
            model: nn.Module = show_convolutions(PeftModel.from_pretrained(plain, str(folder)))
    else:
        config = read_config(folder, name)
        with loading(name):
            model = auto_model.from_pretrained(
                folder, config=config, dtype=torch.float32, use_safetensors=True, trust_remote_code=False, local_files_only=True
            )
    processor = functions.load_processor(folder, name, model.config)
    if torch.accelerator.is_available():
        model.to(torch.accelerator.current_accelerator())
    return SavedModel(model.eval(), processor, sidecar)


def _read_sidecar(folder: Path, name: str) -> Sidecar:
    values = read_json(folder / SIDECAR_FILE)
    try:
        return Sidecar(**values if isinstance(values, dict) else {})
    except ConfigError as error:
        raise CheckpointError(f"{name}: {SIDECAR_FILE} is none of this version of the package ({error})") from None


def open_base(name: str, load_processor: Callable[[Path, str, PretrainedConfig], Any], local_files_only: bool = False) -> Checkpoint:
    """Open a checkpoint to train from; an adapter of ours is merged into its base, in a folder that goes with the process.

    Args:
        name: Hub id, local folder (of a model, a cell or a run of ours, too) or `embedded:NAME`.
        load_processor: The task's: folder, name and config -> tokenizer or image processor.
        local_files_only: Take a Hub id from the cache without asking the Hub.

    Raises:
        CheckpointError: It is nowhere, is incomplete, needs remote code, or is an adapter whose base cannot be found.
        InstallationError: An embedded checkpoint's package is not installed.
    """
    folder = find_checkpoint_folder(name, local_files_only)
    if not is_adapter(folder):
        # It is in the cache by now: asked again, the Hub might have another.
        return open_checkpoint(name, load_processor, local_files_only=True)
    check_folder(folder, name)
    if not (folder / SIDECAR_FILE).is_file():
        raise CheckpointError(
            f"checkpoint {name} is an adapter without its base model: merge it into the base (PEFT's merge_and_unload) and give that folder"
        )
    return replace(open_checkpoint(str(_merged(folder, sha256_of_weights(folder))), load_processor, True), name=name, origin=folder)


@functools.cache
def _merged(folder: Path, sha256: str) -> Path:
    """Write an adapter of ours, merged into its base, to a temporary folder; once for the same weights."""
    saved = load_saved(str(folder))
    merged = temporary_folder() / "merged"
    # On the CPU, where every machine merges to the same weights.
    save_model(saved.model.cpu().merge_and_unload(), saved.processor, saved.sidecar, merged)
    return merged


def _cache_only(name: str) -> bool:
    """Say whether a Hub id must come from the cache, because the Hub does not answer; a local name does not make us ask."""
    return not is_local_checkpoint(name) and not hub_answers()


def _find_base(folder: Path, sidecar: Sidecar) -> Path:
    """Find the folder of a checkpoint whose weights are those the adapter was trained on.

    Asked in turn: what the run's recipe names, from here and (its last parts) from the folders above the run, the embedded package, the
    cache or the Hub, and last the models of the runs beside it.

    Raises:
        CheckpointError: None of them has these weights.
    """
    for candidate in _base_candidates(folder, sidecar):
        try:
            base = find_checkpoint_folder(candidate, _cache_only(candidate), sidecar.base_revision)
            if sha256_of_weights(base) == sidecar.base_sha256:
                return base
        except (TransferError, OSError, ValueError, KeyError):
            # What is not there, or half there, is not the base.
            continue
    raise CheckpointError(
        f"cannot find the base of adapter {folder}: it was trained on {sidecar.base_checkpoint} (weights {sidecar.base_sha256[:12]}), "
        "which is neither where its run's recipe says, nor embedded, nor in the cache or on the Hub, nor in the runs beside it; move that "
        "run beside this one, or in Python give its folder: ht.load(folder, base=...)"
    )


def _base_candidates(folder: Path, sidecar: Sidecar) -> Iterator[str]:
    run_folder = run_folder_of(folder)
    if run_folder is not None:
        started_from = read_yaml(run_folder / RECIPE_FILE).get("checkpoint", "")
        if is_local_checkpoint(started_from):
            yield started_from
        # The run may have been started in another folder than we are in, or been moved with its base: what is the same of the path are its
        # last parts.
        parts = Path(started_from).parts
        tails = [Path(*parts[start:]) for start in range(len(parts))]
        yield from (str(path) for tail in tails for parent in run_folder.parents if (path := parent / tail).is_dir())
    for name, (_, _, hub_id) in EMBEDDED_CHECKPOINTS.items():
        if hub_id == sidecar.base_checkpoint:
            yield EMBEDDED + name
    # A path in it was put there by somebody else: ours holds an id, or a folder's name alone.
    if not sidecar.base_checkpoint.startswith((EMBEDDED, "/", "~")) and ".." not in Path(sidecar.base_checkpoint).parts:
        yield sidecar.base_checkpoint
    if run_folder is not None:
        # Or it was moved with those beside it.
        yield from (str(path) for path in sorted(run_folder.parent.glob(f"*/*/*/*/{MODEL_FOLDER}")) if path != folder)

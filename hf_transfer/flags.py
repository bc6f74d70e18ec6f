"""The flags of `run` and its like: argv and config files -> a recipe and what to run of it."""

import argparse
import math
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

from hf_transfer.data.hub import EMBEDDED, hub_answers, is_local_checkpoint, is_local_dataset, is_offline
from hf_transfer.disk import expanded
from hf_transfer.errors import ConfigError, did_you_mean, listed
from hf_transfer.files import RECIPE_FILE
from hf_transfer.recipe import DataConfig, Recipe, parse_yaml, read_yaml
from hf_transfer.recipe_files import load_recipe, recipe_names
from hf_transfer.run_settings import RECORDED, TRACKERS, check_arms

UNRECORDED = ("search_storage", "parallel", "tracker", "resume", "max_minutes")
"""Settings of a run that change nothing it finds."""

EMBEDDED_CHECKPOINT_OF = {
    "text-classification": EMBEDDED + "all-MiniLM-L6-v2",
    "token-classification": EMBEDDED + "all-MiniLM-L6-v2",
    "image-classification": EMBEDDED + "vit-cifar10",
}
"""Kind of task -> what `--embedded` starts from."""
EMBEDDED_RATES = {"image-classification": {"scratch": 3e-4, "head": 5e-2, "top": 1e-3, "lora": 3e-3, "full": 1e-3}}
"""Kind of task -> learning rates that suit its embedded checkpoint, where those of the recipes suit another size of model. Of three each,
those with the lowest validation loss on MNIST (budget 400, seed 0; CPU, 2026-11-20): scratch of 3e-4, 1e-3, 3e-3; head of 5e-3, 2e-2, 5e-2;
lora of 1e-3, 3e-3, 1e-2; full of 3e-4, 1e-3, 3e-3; top as full."""
EMBEDDED_CHANGES = {EMBEDDED + "vit": {"task.augmentation": "digits"}}
"""Embedded data -> what a recipe for other data must change to read it."""


class Parser(argparse.ArgumentParser):
    """An argument parser without abbreviations, whose mistakes are a `ConfigError`."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(allow_abbrev=False, **settings)

    def parse(self, arguments: Sequence[str]) -> argparse.Namespace:
        """Parse all arguments.

        Raises:
            ConfigError: A flag is unknown (suggests the nearest) or its value cannot be read.
        """
        flags, unknown = self.parse_known_args(arguments)
        if unknown:
            known = [option for action in self._actions for option in action.option_strings]
            what = "flag" if unknown[0].startswith("-") else "argument"
            raise ConfigError(f"unknown {what} '{unknown[0]}'{did_you_mean(unknown[0].split('=')[0], known) or '; --help lists the flags'}")
        return flags

    def error(self, message: str) -> NoReturn:
        """Raise what argparse found wrong as a `ConfigError`."""
        raise ConfigError(f"{message}; --help lists the flags")


def resolve(recipe: Recipe, flags: argparse.Namespace, defaults: Mapping[str, Any] | None = None) -> tuple[Recipe, dict[str, Any]]:
    """Apply a config file and flags to a recipe; where nothing of it needs the Hub, or the Hub does not answer, switch it off.

    Args:
        recipe: What to start from.
        flags: Of the command line.
        defaults: The `run` section of a YAML recipe; that of `--config` and the flags come over it.

    Returns:
        The recipe, and what to run of it: arguments of `api.run`.

    Raises:
        ConfigError: A flag or a field cannot be meant.
    """
    config = read_yaml(Path(flags.config)) if flags.config else {}
    given = {name: value for name in (*RECORDED, *UNRECORDED) if (value := getattr(flags, name, None)) is not None}
    chosen = {**(defaults or {}), **pop_run_section(config, flags.config), **given}
    recipe = apply_flags(with_config(recipe, config, flags), flags, chosen.get("arms"))
    set_offline(_needed_from_hub(recipe))
    return recipe, chosen


def named_recipe(flags: argparse.Namespace) -> tuple[Recipe, dict[str, Any]]:
    """Give the recipe that `NAME` and the flags ask for, and what to run of it; without a name, a run that is resumed has its own.

    Raises:
        ConfigError: There is none, or a flag cannot be meant.
    """
    if flags.name is None and flags.config is None and getattr(flags, "resume", None) and flags.output_dir:
        flags.config = str(expanded(flags.output_dir) / RECIPE_FILE)
        if not os.path.lexists(flags.config):
            raise ConfigError(f"there is no run in {flags.output_dir} to go on with; name a recipe ({listed(recipe_names())}) to begin one")
    if flags.name is None and flags.config is None:
        raise ConfigError(f"name a recipe ({listed(recipe_names())}), or a file with --config")
    if flags.name is not None and not flags.name.endswith((".yaml", ".yml")):
        return resolve(load_recipe(flags.name), flags)
    # A YAML file is a whole recipe with a `run` section of its own.
    file = flags.name or flags.config
    flags.config = flags.config if flags.name else None
    values = read_yaml(Path(file))
    defaults = pop_run_section(values, file)
    return resolve(Recipe.from_dict(values), flags, defaults)


def pop_run_section(config: dict[str, Any], name: str) -> dict[str, Any]:
    """Take the `run` section out of a config: flags that are no field of the recipe.

    Raises:
        ConfigError: It holds anything else.
    """
    section = config.pop("run", None) or {}
    if not isinstance(section, dict) or set(section) - set(RECORDED):
        found = listed(section) if isinstance(section, dict) else repr(section)
        raise ConfigError(f"{name}: `run` must be a mapping of {listed(RECORDED)}, found {found}")
    return {key: value for key, value in section.items() if value is not None}


def with_config(recipe: Recipe, config: Mapping[str, Any], flags: argparse.Namespace) -> Recipe:
    """Lay a config over a recipe, and swap in the data that `--dataset` or `--embedded` names.

    Another dataset has other columns and labels, so nothing that was said of the former one is carried over: what a config says
    of the data is kept only where it names no data of its own.
    """
    is_ours = recipe.name in recipe_names() and recipe.arms == load_recipe(recipe.name).arms
    if flags.embedded and is_ours and flags.checkpoint is None and "checkpoint" not in config:
        rates = EMBEDDED_RATES.get(recipe.task.kind, {})
        recipe = recipe.override({f"arms.{arm}.learning_rate": rate for arm, rate in rates.items() if arm in recipe.arms})
    data = config.get("data")
    source = _asked_source(recipe, flags) or (data.get("source") if isinstance(data, dict) else None)
    if source != recipe.data.source:
        recipe = recipe.override(EMBEDDED_CHANGES.get(source or "", {}))
    if isinstance(data, dict) and data.get("source"):
        return _swap_data(replace(recipe, data=DataConfig()).merge(config), flags)
    return _swap_data(recipe, flags).merge(config)


def _asked_source(recipe: Recipe, flags: argparse.Namespace) -> str | None:
    """Give the data that `--dataset` or `--embedded` names, or None."""
    if flags.dataset is None and flags.embedded and recipe.data.source is not None:
        return EMBEDDED + recipe.name
    return flags.dataset


def _swap_data(recipe: Recipe, flags: argparse.Namespace) -> Recipe:
    source = _asked_source(recipe, flags)
    if source is None or source == recipe.data.source:
        return recipe
    roles = {role: role for role in recipe.task.columns}
    return replace(recipe, data=DataConfig(source=source, columns=roles, drop_overlap=recipe.data.drop_overlap))


def apply_flags(recipe: Recipe, flags: argparse.Namespace, arms: Sequence[str] | None) -> Recipe:
    """Give the recipe that flags ask for; `--set` comes last.

    Args:
        recipe: With its data and config.
        flags: Of the command line.
        arms: The selected arms, which `--epochs` and `--learning-rate` apply to; None = the standard ones.

    Raises:
        ConfigError: A flag cannot be meant.
    """
    if flags.max_length is not None and not hasattr(recipe.task, "max_length"):
        raise ConfigError("--max-length is for texts, this recipe reads images: leave it out (the checkpoint says their size)")
    changes: dict[str, Any] = {}
    if flags.embedded:
        changes["checkpoint"] = EMBEDDED_CHECKPOINT_OF[recipe.task.kind]
    for flag, path in (
        ("checkpoint", "checkpoint"),
        ("dataset_config", "data.config"),
        ("batch_size", "training.batch_size"),
        ("max_length", "task.max_length"),
        ("precision", "training.precision"),
        ("save_every", "training.save_every"),
        ("save_minutes", "training.save_minutes"),
    ):
        if getattr(flags, flag, None) is not None:
            changes[path] = getattr(flags, flag)
    for flag in ("activation_checkpointing", "compile"):
        if getattr(flags, flag):
            changes[f"training.{flag}"] = True
    for flag, field in (("epochs", "num_epochs"), ("learning_rate", "learning_rate")):
        if (value := getattr(flags, flag)) is not None:
            if not 0 < value < math.inf:
                raise ConfigError(f"--{flag.replace('_', '-')}: expected a number above 0, found {value}")
            changes.update({f"arms.{arm}.{field}": getattr(flags, flag) for arm in check_arms(recipe, arms)})
    if flags.columns:
        changes["data.columns"] = recipe.data.columns | column_pairs(flags.columns)
    for path, text in _pairs(flags.set or [], "--set field=value"):
        try:
            changes[path] = parse_yaml(text, path)
        except ConfigError:
            raise ConfigError(f"--set {path}: '{text}' is no YAML value") from None
    return recipe.override(changes)


def column_pairs(words: Sequence[str] | None) -> dict[str, str]:
    """Give the role -> column that `--columns` names.

    Raises:
        ConfigError: A word is no pair, or a role is given twice.
    """
    pairs = _pairs(words or [], "--columns role=column")
    if twice := [(role, column) for role, column in pairs if dict(pairs)[role] != column]:
        raise ConfigError(f"--columns gives {twice[0][0]} twice: {twice[0][1]} and {dict(pairs)[twice[0][0]]}")
    return dict(pairs)


def add_run_flags(parser: argparse.ArgumentParser, recipe: Recipe | None) -> None:
    """Add the flags of `run`."""
    arms = f" ({', '.join(recipe.arms)})" if recipe else ""
    what = parser.add_argument_group("what to train")
    what.add_argument("--arms", nargs="+", metavar="ARM", help=f"arms of the recipe{arms}; default scratch head lora full")
    what.add_argument("--seeds", nargs="+", type=int, metavar="N", help="one training each; default 0")
    what.add_argument(
        "--budgets",
        nargs="+",
        metavar="ROWS",
        help="labelled rows an arm may use, for training and validation together; default all",
    )
    what.add_argument("--checkpoint", metavar="ID_OR_FOLDER", help="pretrained checkpoint instead of the recipe's; a run's model, too")
    what.add_argument(
        "--embedded",
        action="store_true",
        help="use the small data and checkpoint that come with the package (for images, at rates that suit it): no Hub needed",
    )
    data = parser.add_argument_group("data")
    data.add_argument(
        "--dataset",
        metavar="ID_OR_PATH",
        help="Hub id, file (CSV, TSV, JSONL, JSON, Parquet, CoNLL), folder of train / validation / test files, or of images (CLASS/x.png)",
    )
    data.add_argument("--dataset-config", metavar="C", help="configuration of a Hub dataset")
    data.add_argument("--columns", nargs="+", action="extend", metavar="ROLE=COLUMN", help="columns by role: text=review label=stars")
    data.add_argument("--max-test-rows", type=int, metavar="N", help="test on one fixed random sample of N rows")
    how = parser.add_argument_group("how to train")
    how.add_argument("--epochs", type=int, metavar="N", help="for every selected arm")
    how.add_argument("--batch-size", type=int, metavar="N", help="rows per update, over all processes")
    how.add_argument("--learning-rate", type=float, metavar="X", help="peak, for every selected arm")
    how.add_argument("--max-length", type=int, metavar="N", help="tokens a text is cut to")
    how.add_argument("--precision", metavar="P", help="auto, bf16, fp16 or fp32")
    how.add_argument(
        "--activation-checkpointing",
        action="store_true",
        help="less memory for more time: blocks run again in the backward (with dropout, other masks)",
    )
    how.add_argument("--compile", action="store_true", help="compile the blocks that train (torch.compile): a slow start")
    how.add_argument("--config", metavar="FILE.yaml", help="recipe fields laid over the recipe; a run's recipe.yaml repeats that run")
    how.add_argument(
        "--set",
        nargs="+",
        action="extend",
        metavar="FIELD=VALUE",
        help="any field of the recipe: arms.lora.lora.r=16 (repeatable)",
    )


def add_grid_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `run` that its like (`validate`, `tune`) have no use for."""
    cells = parser.add_argument_group("the run")
    cells.add_argument("--output-dir", metavar="DIR", help="run folder to write; default runs/NAME")
    cells.add_argument(
        "--resume",
        action="store_true",
        default=None,
        help="go on with the run in that folder: finished trainings stay, begun ones go on from their saved state; more arms, budgets or "
        "seeds may be asked for",
    )
    cells.add_argument(
        "--save-every", type=int, metavar="N", help="save the state of a training every N updates, for --resume; default none"
    )
    cells.add_argument("--save-minutes", type=float, metavar="M", help="save it every M minutes; default 10")
    cells.add_argument("--max-minutes", type=float, metavar="M", help="end after M minutes, the state saved; --resume goes on")
    cells.add_argument("--parallel", type=int, metavar="N", help="train N cells at once, each on a device of its own; default 1")
    cells.add_argument(
        "--search",
        type=int,
        metavar="N",
        help="try N settings of every arm at every budget first, and take those of the lowest validation loss",
    )
    cells.add_argument(
        "--search-storage", metavar="URL", help="database of the trials, which several machines may share; default a file of the run folder"
    )
    cells.add_argument("--tracker", metavar="T", help=f"log every training to {listed(TRACKERS)}, whichever is installed; default none")
    cells.add_argument("--private-data", action="store_true", default=None, help="write no text or image of the data into the run folder")
    cells.add_argument("--json", action="store_true", help="print the comparison as JSON instead of a table")


def _needed_from_hub(recipe: Recipe) -> list[str]:
    sources = ((recipe.checkpoint, is_local_checkpoint), (recipe.data.source or "", is_local_dataset))
    return [name for name, is_local in sources if name and not is_local(name)]


def set_offline(needed: Sequence[str]) -> None:
    """Before the first Hugging Face import: switch the Hub off where nothing is needed from it, or where it does not answer."""
    if is_offline() or (needed and hub_answers()):
        return
    if needed:
        print(f"the Hub does not answer: looking for {listed(needed)} in the cache", file=sys.stderr)
    os.environ["HF_HUB_OFFLINE"] = "1"


def _pairs(words: Sequence[str], form: str) -> list[tuple[str, str]]:
    for word in words:
        if "=" not in word or word.startswith("="):
            raise ConfigError(f"expected {form}, found '{word}'")
    return [(name, value) for name, _, value in (word.partition("=") for word in words)]

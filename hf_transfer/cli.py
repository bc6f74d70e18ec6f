"""The command line: argv -> api. `hf-transfer run NAME` and `accelerate launch recipes/NAME.py` take the same flags.

Exit codes: 0 done, 2 the user's mistake (one `error: ` sentence), 1 ours (a traceback), 130 interrupted.
"""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import yaml

import hf_transfer
from hf_transfer import api
from hf_transfer.data.hub import EMBEDDED, hub_answers, is_local_checkpoint, is_local_dataset, is_offline
from hf_transfer.errors import ConfigError, TransferError, check_no_name_clash, did_you_mean, listed
from hf_transfer.recipe import DataConfig, Recipe, read_yaml

RUN_DEFAULTS = {"arms", "budgets", "seeds", "max_test_rows"}
"""What a config file's `run` section may hold: flags that are no field of the recipe."""
VERBS = {"run": "train the arms of a recipe and compare them"}


def main(recipe: Recipe, argv: Sequence[str] | None = None) -> NoReturn:
    """Run a recipe with the flags of the command line, and exit: what a recipe file ends with."""

    def command() -> None:
        arguments = sys.argv[1:] if argv is None else list(argv)
        parser = _Parser(prog=Path(sys.argv[0]).name, description=f"Train the arms of the recipe '{recipe.name}' and compare them.")
        add_run_flags(parser, recipe)
        run(recipe, parser.parse(arguments))

    _exit(command)


def run_cli(argv: Sequence[str] | None = None) -> NoReturn:
    """Run the console script `hf-transfer`, and exit."""

    def command() -> None:
        arguments = sys.argv[1:] if argv is None else list(argv)
        parser = _Parser(
            prog="hf-transfer",
            description="Does transfer help on your labels, by how much, at what cost, and which way of tuning should you ship?",
        )
        parser.add_argument("--version", action="version", version=f"hf-transfer-recipes {hf_transfer.__version__}")
        parser.add_argument(
            "verb",
            metavar="VERB",
            help="; ".join(f"{verb}: {what}" for verb, what in VERBS.items()) + " (`hf-transfer run --help`)",
        )
        if not arguments or arguments[0].startswith("-"):
            parser.parse(arguments)
        verb, *rest = arguments
        if verb not in VERBS:
            raise ConfigError(f"no verb '{verb}', there are {listed(VERBS)}{did_you_mean(verb, VERBS)}")
        _run_verb(rest)

    _exit(command)


def run(recipe: Recipe, flags: argparse.Namespace, defaults: Mapping[str, Any] | None = None) -> None:
    """Apply a config file and flags to a recipe, run it and print the comparison.

    Args:
        recipe: What to start from.
        flags: Of the command line.
        defaults: The `run` section of a YAML recipe; that of `--config` and the flags come over it.

    Raises:
        TransferError: The user's mistake.
    """
    if flags.output_dir == "":
        raise ConfigError("--output-dir must not be empty")
    config = read_yaml(Path(flags.config)) if flags.config else {}
    given = {name: value for name in RUN_DEFAULTS if (value := getattr(flags, name)) is not None}
    chosen = {**(defaults or {}), **pop_run_section(config, flags.config), **given}
    recipe = apply_flags(with_config(recipe, config, flags), flags, chosen.get("arms"))
    _set_offline(recipe)
    comparison = api.run(recipe, output_dir=flags.output_dir, **chosen)
    if os.environ.get("RANK", "0") == "0":
        print(f"\n{comparison.table()}\n\nEverything is in {comparison.folder}", flush=True)


def pop_run_section(config: dict[str, Any], name: str) -> dict[str, Any]:
    """Take the `run` section out of a config: flags that are no field of the recipe.

    Raises:
        ConfigError: It holds anything else.
    """
    section = config.pop("run", None) or {}
    if not isinstance(section, dict) or set(section) - RUN_DEFAULTS:
        found = listed(section) if isinstance(section, dict) else repr(section)
        raise ConfigError(f"{name}: `run` must be a mapping of {listed(sorted(RUN_DEFAULTS))}, found {found}")
    return {key: value for key, value in section.items() if value is not None}


def with_config(recipe: Recipe, config: Mapping[str, Any], flags: argparse.Namespace) -> Recipe:
    """Lay a config over a recipe, and swap in the data that `--dataset` or `--embedded` names.

    Another dataset has other columns and labels, so nothing that was said of the former one is carried over: what a config says
    of the data is kept only where it names no data of its own.
    """
    data = config.get("data")
    if isinstance(data, dict) and data.get("source"):
        return _swap_data(recipe.merge(config), flags)
    return _swap_data(recipe, flags).merge(config)


def _swap_data(recipe: Recipe, flags: argparse.Namespace) -> Recipe:
    source = flags.dataset
    if source is None and flags.embedded and recipe.data.source is not None:
        source = EMBEDDED + recipe.name
    if source is None:
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
    changes: dict[str, Any] = {"checkpoint": api.EMBEDDED_TEXT_CHECKPOINT} if flags.embedded else {}
    for flag, path in (
        ("checkpoint", "checkpoint"),
        ("dataset_config", "data.config"),
        ("batch_size", "training.batch_size"),
        ("max_length", "task.max_length"),
        ("precision", "training.precision"),
    ):
        if getattr(flags, flag) is not None:
            changes[path] = getattr(flags, flag)
    for flag, field in (("epochs", "num_epochs"), ("learning_rate", "learning_rate")):
        if getattr(flags, flag) is not None:
            changes.update({f"arms.{arm}.{field}": getattr(flags, flag) for arm in api.check_arms(recipe, arms)})
    if flags.columns:
        changes["data.columns"] = recipe.data.columns | dict(_pairs(flags.columns, "--columns role=column"))
    for path, text in _pairs(flags.set or [], "--set field=value"):
        try:
            changes[path] = yaml.safe_load(text)
        except yaml.YAMLError:
            raise ConfigError(f"--set {path}: '{text}' is no YAML value") from None
    return recipe.override(changes)


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
    what.add_argument("--checkpoint", metavar="ID_OR_FOLDER", help="pretrained checkpoint instead of the recipe's")
    what.add_argument(
        "--embedded",
        action="store_true",
        help="use the small data and checkpoint that come with the package: no Hub needed",
    )
    data = parser.add_argument_group("data")
    data.add_argument(
        "--dataset",
        metavar="ID_OR_PATH",
        help="Hub id, file (CSV, TSV, JSONL, JSON, Parquet) or folder of train / validation / test files",
    )
    data.add_argument("--dataset-config", metavar="C", help="configuration of a Hub dataset")
    data.add_argument("--columns", nargs="+", metavar="ROLE=COLUMN", help="columns by role: text=review label=stars")
    data.add_argument("--max-test-rows", type=int, metavar="N", help="test on one fixed random sample of N rows")
    how = parser.add_argument_group("how to train")
    how.add_argument("--epochs", type=int, metavar="N", help="for every selected arm")
    how.add_argument("--batch-size", type=int, metavar="N", help="rows per update, over all processes")
    how.add_argument("--learning-rate", type=float, metavar="X", help="peak, for every selected arm")
    how.add_argument("--max-length", type=int, metavar="N", help="tokens a text is cut to")
    how.add_argument("--precision", metavar="P", help="auto, bf16, fp16 or fp32")
    how.add_argument("--config", metavar="FILE.yaml", help="recipe fields laid over the recipe; a run's recipe.yaml repeats that run")
    how.add_argument(
        "--set",
        nargs="+",
        action="extend",
        metavar="FIELD=VALUE",
        help="any field of the recipe: arms.lora.lora.r=16 (repeatable)",
    )
    parser.add_argument("--output-dir", metavar="DIR", help="run folder to write; default runs/NAME")


class _Parser(argparse.ArgumentParser):
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
        raise ConfigError(f"{message}; --help lists the flags")


def _run_verb(arguments: Sequence[str]) -> None:
    parser = _Parser(prog="hf-transfer run", description="Train the arms of a recipe and compare them.")
    known = api.recipe_names()
    parser.add_argument(
        "name",
        metavar="NAME",
        nargs="?",
        help=f"a recipe ({', '.join(known)}; text and ner are also for your own data), or a .py or .yaml file",
    )
    add_run_flags(parser, None)
    flags = parser.parse(arguments)
    if flags.name is None and flags.config is None:
        raise ConfigError(f"name a recipe ({listed(known)}), or a file with --config")
    if flags.name is not None and not flags.name.endswith((".yaml", ".yml")):
        run(api.load_recipe(flags.name), flags)
        return
    # A YAML file is a whole recipe with a `run` section of its own.
    file = flags.name or flags.config
    flags.config = flags.config if flags.name else None
    values = read_yaml(Path(file))
    defaults = pop_run_section(values, file)
    run(Recipe.from_dict(values), flags, defaults)


def _set_offline(recipe: Recipe) -> None:
    """Before the first Hugging Face import: switch the Hub off where nothing needs it, or where it does not answer."""
    needed = [
        name
        for name, is_local in ((recipe.checkpoint, is_local_checkpoint), (recipe.data.source or "", is_local_dataset))
        if name and not is_local(name)
    ]
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


def _exit(command: Any) -> NoReturn:
    try:
        check_no_name_clash()
        command()
    except TransferError as error:
        # Every process finds the same mistake; one says it.
        if os.environ.get("RANK", "0") == "0":
            print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted: the run folder keeps what was finished; start again into another with --output-dir", file=sys.stderr)
        sys.exit(130)
    sys.exit(0)

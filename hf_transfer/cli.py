"""The command line: argv -> api. `hf-transfer run NAME` and `accelerate launch recipes/NAME.py` take the same flags.

Exit codes: 0 done, 2 the user's mistake (one `error: ` sentence), 1 ours (a traceback), 130 interrupted.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import hf_transfer
from hf_transfer import api
from hf_transfer.data.hub import is_local_checkpoint
from hf_transfer.disk import expanded, write_text
from hf_transfer.errors import ConfigError, SharedTrainingError, TransferError, check_no_name_clash, did_you_mean, listed
from hf_transfer.files import REPORT_FILE
from hf_transfer.flags import Parser, add_grid_flags, add_run_flags, column_pairs, named_recipe, resolve, set_offline
from hf_transfer.recipe import Recipe
from hf_transfer.recipe_files import load_recipe, new_recipe, recipe_names


def main(recipe: Recipe, argv: Sequence[str] | None = None) -> NoReturn:
    """Run a recipe with the flags of the command line, and exit: what a recipe file ends with."""

    def command() -> None:
        arguments = sys.argv[1:] if argv is None else list(argv)
        parser = Parser(prog=Path(sys.argv[0]).name, description=f"Train the arms of the recipe '{recipe.name}' and compare them.")
        add_run_flags(parser, recipe)
        add_grid_flags(parser)
        flags = parser.parse(arguments)
        _run(*resolve(recipe, flags), flags)

    _exit(command)


def run_cli(argv: Sequence[str] | None = None) -> NoReturn:
    """Run the console script `hf-transfer`, and exit."""

    def command() -> None:
        arguments = sys.argv[1:] if argv is None else list(argv)
        parser = Parser(
            prog="hf-transfer",
            description="Does transfer help on your labels, by how much, at what cost, and which way of tuning should you ship?",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            epilog="verbs:\n"
            + "\n".join(f"  {verb:10}{what}" for verb, (_, what) in VERBS.items())
            + "\n\n`hf-transfer VERB --help` says more.",
        )
        parser.add_argument("--version", action="version", version=f"hf-transfer-recipes {hf_transfer.__version__}")
        parser.add_argument("verb", metavar="VERB", help=listed(VERBS))
        if not arguments or arguments[0].startswith("-"):
            parser.parse(arguments)
        verb, *rest = arguments
        if verb not in VERBS:
            raise ConfigError(f"no verb '{verb}', there are {listed(VERBS)}{did_you_mean(verb, VERBS)}")
        do, what = VERBS[verb]
        do(Parser(prog=f"hf-transfer {verb}", description=f"{what[0].upper()}{what[1:]}."), rest)

    _exit(command)


def _run_verb(parser: Parser, arguments: Sequence[str]) -> None:
    _add_name(parser)
    add_run_flags(parser, None)
    add_grid_flags(parser)
    flags = parser.parse(arguments)
    _run(*named_recipe(flags), flags)


def _validate_verb(parser: Parser, arguments: Sequence[str]) -> None:
    _add_name(parser)
    add_run_flags(parser, None)
    recipe, chosen = named_recipe(parser.parse(arguments))
    print(api.validate(recipe, **_cells(chosen)))


def _tune_verb(parser: Parser, arguments: Sequence[str]) -> None:
    _add_name(parser)
    add_run_flags(parser, None)
    parser.add_argument("--output", metavar="FILE.yaml", default="tuned.yaml", help="file to write, for --config; default tuned.yaml")
    flags = parser.parse(arguments)
    target = expanded(flags.output)
    _check_new_file(target)
    recipe, chosen = named_recipe(flags)
    found = api.tune(recipe, **_cells(chosen))
    print(found)
    if len(found.rates) == 1:
        raise ConfigError(f"every update fits into {found.best:,} {found.unit}, so all sizes are the same: nothing was written")
    write_text(target, f"# Fastest for arm {found.arm} on {found.device}.\ntraining:\n  micro_batch_tokens: {found.best}\n")
    print(f"written to {target}: run with --config {target}")


def _predict_verb(parser: Parser, arguments: Sequence[str]) -> None:
    parser.add_argument("model", metavar="MODEL", help="a run's folder (its recommended model), a cell's or a model's folder, or a Hub id")
    parser.add_argument("--input", metavar="FILE", required=True, help="CSV, TSV, JSONL or Parquet file to read")
    parser.add_argument("--output", metavar="FILE", required=True, help="file of such a kind to write; must not exist")
    parser.add_argument("--columns", nargs="+", action="extend", metavar="ROLE=COLUMN", help="columns by role: text=review")
    parser.add_argument("--precision", metavar="P", default="auto", help="auto (the default), bf16, fp16 or fp32")
    flags = parser.parse(arguments)
    columns = column_pairs(flags.columns)
    source, target = expanded(flags.input), expanded(flags.output)

    from hf_transfer.data.tables import check_tables

    # Before the model is loaded, which takes seconds.
    check_tables(source, target)
    # A local adapter may need its base from the Hub, which is only asked then.
    if not is_local_checkpoint(flags.model):
        set_offline([flags.model])
    try:
        print(api.load(flags.model).predict_file(source, target, columns, flags.precision))
    except KeyboardInterrupt:
        print(f"interrupted: {target} was not written", file=sys.stderr)
        sys.exit(130)


def _report_verb(parser: Parser, arguments: Sequence[str]) -> None:
    parser.add_argument("run", metavar="RUN", help="folder of a finished run")
    parser.add_argument("--format", metavar="F", default="html", help="html (the default: one page to open or send), md, csv or json")
    parser.add_argument(
        "--output", metavar="FILE", help=f"file to write, which must not exist; default RUN/{REPORT_FILE} for html, else shown"
    )
    flags = parser.parse(arguments)
    run = expanded(flags.run)
    target = expanded(flags.output) if flags.output else None
    if target is not None:
        _check_new_file(target)
    text = api.Comparison(run).report(flags.format)
    if target is None and flags.format != "html":
        print(text, end="")
        return
    target = target or run / REPORT_FILE
    write_text(target, text)
    print(f"written to {target}")


def _new_verb(parser: Parser, arguments: Sequence[str]) -> None:
    parser.add_argument("file", metavar="FILE.py", help="recipe file to write; must not exist")
    parser.add_argument("--from", dest="source", metavar="RECIPE", required=True, help=f"recipe to begin with: {listed(recipe_names())}")
    flags = parser.parse(arguments)
    path = new_recipe(flags.file, flags.source)
    print(f"{path} is yours to edit; then `hf-transfer validate {path}`, and `hf-transfer run {path}` or `accelerate launch {path}`")


def _ls_verb(parser: Parser, arguments: Sequence[str]) -> None:
    parser.parse(arguments)
    for name in recipe_names():
        recipe = load_recipe(name)
        data = recipe.data.source or "your own (--dataset)"
        print(f"{name}: {recipe.task.kind}; data {data}; checkpoint {recipe.checkpoint}")
        for arm, settings in recipe.arms.items():
            blocks = f" {settings.num_blocks} blocks" if settings.num_blocks else ""
            start = f"{settings.init}, {settings.tuning}{blocks}"
            print(f"  {arm:10}{start:26}learning rate {settings.learning_rate:g}, {settings.num_epochs} epochs")


VERBS: dict[str, tuple[Callable[[Parser, Sequence[str]], None], str]] = {
    "run": (_run_verb, "train the arms of a recipe and compare them"),
    "validate": (_validate_verb, "check a recipe, its data and its checkpoint without training, and say what was found"),
    "tune": (_tune_verb, "measure which size of micro-batch is fastest here, and write it to a file"),
    "report": (_report_verb, "write the report of a finished run, or show it as markdown, csv or json"),
    "predict": (_predict_verb, "label the rows of a file with a trained model"),
    "new": (_new_verb, "write a recipe of your own to edit, from one that there is"),
    "ls": (_ls_verb, "list the recipes and their arms"),
}
"""Verb -> what does it, and what it does."""


def _run(recipe: Recipe, chosen: dict[str, Any], flags: argparse.Namespace) -> None:
    """Run a recipe and print the comparison."""
    if flags.output_dir == "":
        raise ConfigError("--output-dir must not be empty")
    try:
        comparison = api.run(recipe, output_dir=flags.output_dir, **chosen)
    except KeyboardInterrupt as error:
        if _failed_before(error):
            raise
        if os.environ.get("RANK", "0") == "0":
            # A Ctrl-C ends who reads a pipe of ours, too.
            with suppress(BrokenPipeError):
                print(f"{str(error) or 'interrupted'}; --resume goes on from what was finished and saved", file=sys.stderr)
        _let_go_of_closed_streams()
        sys.exit(130)
    if os.environ.get("RANK", "0") == "0":
        if flags.json:
            print(json.dumps(comparison.values, indent=2, ensure_ascii=False), flush=True)
        else:
            print(f"\n{comparison.table()}\n\nEverything is in {comparison.folder}; open {comparison.folder / REPORT_FILE}", flush=True)
    if failed := comparison.failed:
        values = comparison.values
        tried = len(failed) + sum(entry["num_seeds"] for entry in values["arms"] if entry["metric"] == values["primary_metric"])
        raise SharedTrainingError(
            f"{len(failed)} of {tried} trainings failed, the table is of the others: --resume tries them again, with other settings if you "
            "give them"
        )


def _cells(chosen: dict[str, Any]) -> dict[str, Any]:
    """Give what says which cells are meant, out of the settings of a run."""
    return {name: chosen[name] for name in ("arms", "budgets", "seeds", "max_test_rows") if name in chosen}


def _add_name(parser: Parser) -> None:
    names = ", ".join(recipe_names())
    what = f"a recipe ({names}; text, ner and image take your own data, too), or a .py or .yaml file"
    parser.add_argument("name", metavar="NAME", nargs="?", help=what)


def _check_new_file(target: Path) -> None:
    """Refuse an output file that is there already, or that cannot be written.

    Raises:
        ConfigError: Why not.
    """
    if target.exists():
        raise ConfigError(f"{target} is there already: name another with --output, or remove it")
    if not target.parent.is_dir() or not os.access(target.parent, os.W_OK):
        raise ConfigError(f"{target.parent} is no folder that can be written to: name another file with --output")


def _share_cores() -> None:
    """Let threads that wait for each other give way soon, unless the environment says how long they shall stay awake.

    Beside one busy process on two cores training was 1.8 times as fast with it, predicting 1.6 times, and on quiet cores as fast (MiniLM,
    medians of two runs each in turn, AMD EPYC, 2026-11-20). Read by the OpenMP of torch's Linux builds when torch is imported.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")


def _exit(command: Any) -> NoReturn:
    _share_cores()
    try:
        check_no_name_clash()
        command()
    except KeyboardInterrupt as error:
        if failed := _failed_before(error):
            from hf_transfer.training.failing import leave

            leave(failed)
        print("interrupted", file=sys.stderr)
        _let_go_of_closed_streams()
        sys.exit(130)
    except Exception as error:
        if _is_one_of_several():
            from hf_transfer.training.failing import leave

            leave(error)
        if not isinstance(error, TransferError):
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    sys.exit(0)


def _let_go_of_closed_streams() -> None:
    """Write nothing more to who has gone, or Python ends with a code of its own (120): of `... | tee log` a Ctrl-C ends tee, too."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _is_one_of_several() -> bool:
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ


def _failed_before(interruption: KeyboardInterrupt) -> Exception | None:
    """Give what one of several processes had failed with when it was told to end; None where it had not.

    Where one is lost, the launcher ends the others while they find that out.
    """
    failed = interruption.__context__
    return failed if _is_one_of_several() and isinstance(failed, Exception) else None

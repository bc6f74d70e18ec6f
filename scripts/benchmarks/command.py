"""argv -> measurements, a table and JSON."""

import os
import shlex
import sys
import tempfile
import warnings
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cases import CASES, FEW_SHOT
from hf_transfer.data.hub import hub_answers
from hf_transfer.disk import write_json
from hf_transfer.errors import ConfigError, TransferError, did_you_mean, listed
from hf_transfer.flags import Parser


def main(argv: Sequence[str]) -> int:
    """Measure what the flags ask for, print the table, write JSON.

    Returns:
        The exit code: 0 done, 2 the user's mistake.
    """
    try:
        flags = _parse(argv)
        _prepare_process(flags)
        result = measure(flags, f"scripts/benchmark {shlex.join(argv)}".strip())
        from report import render

        print(render(result))
        if flags.json:
            write_json(Path(flags.json), result)
    except TransferError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def measure(flags: Namespace, command: str) -> dict[str, Any]:
    """Measure what the flags ask for; gives what JSON holds."""
    from comparison import Settings, compare
    from few_shot import compare_few_shot
    from hf_transfer.evidence.environment import describe_environment
    from hf_transfer.training.device import make_accelerator
    from material import Material, choose_names, copy_plain
    from memory import compare_memory
    from quality import compare_quality

    settings = Settings(flags.device)
    settings = settings.quickly() if flags.quick else settings
    given = {"num_rounds": flags.rounds, "num_updates": flags.updates}
    settings = Settings(**asdict(settings) | {name: value for name, value in given.items() if value is not None})
    dataset, checkpoint = choose_names(flags.dataset, flags.checkpoint)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        material = Material(dataset, checkpoint, copy_plain(checkpoint, folder / "plain"))
        result: dict[str, Any] = {
            "command": command,
            "date": datetime.now(UTC).date().isoformat(),
            # Others' work slows the side most that runs the smaller kernels, ours: its threads wait for each other more often.
            "load_average": os.getloadavg()[0],
            "environment": describe_environment(make_accelerator("auto")),
            "dataset": dataset,
            "checkpoint": checkpoint,
            "settings": asdict(settings),
            "cases": {},
        }
        for name in flags.cases:
            if name != FEW_SHOT:
                case = CASES[name].quickly() if settings.is_quick else CASES[name]
                result["cases"][name] = compare(case, material, settings, folder, _teller(name))
        if flags.memory:
            result["memory"] = compare_memory(material, settings, folder)
        if flags.quality:
            result["quality"] = compare_quality(material, settings, folder, _teller("quality"))
        # Last, as what setfit imports changes the process.
        if FEW_SHOT in flags.cases:
            result[FEW_SHOT.replace("-", "_")] = compare_few_shot(material, settings, folder, _teller(FEW_SHOT))
    return result


def _parse(argv: Sequence[str]) -> Namespace:
    names = [*CASES, FEW_SHOT]
    parser = Parser(prog="scripts/benchmark", description="Compare with Trainer, an Accelerate loop, setfit and pipeline, A B A B.")
    parser.add_argument("--cases", nargs="*", default=names, metavar="CASE", help=f"of {listed(names)}; default all")
    parser.add_argument("--rounds", type=int, metavar="N", help="counted rounds of every contender; default 5")
    parser.add_argument("--updates", type=int, metavar="N", help="updates of 32 rows in a round's epoch; default 8")
    parser.add_argument("--dataset", metavar="ID_OR_PATH", help="columns text and label; default 20 Newsgroups, or the embedded one")
    parser.add_argument("--checkpoint", metavar="ID_OR_FOLDER", help="default all-MiniLM-L6-v2")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="default cpu")
    parser.add_argument("--memory", action="store_true", help="also compare peak memory")
    parser.add_argument("--quality", action="store_true", help="also compare validation loss over three seeds")
    parser.add_argument("--quick", action="store_true", help="tiny: shows that the program runs, measures nothing")
    parser.add_argument("--json", metavar="FILE", help="write every number there")
    flags = parser.parse(argv)
    for name in flags.cases:
        if name not in names:
            raise ConfigError(f"no case '{name}', there are {listed(names)}{did_you_mean(name, names)}")
    for flag in ("rounds", "updates"):
        if getattr(flags, flag) is not None and getattr(flags, flag) < 1:
            raise ConfigError(f"--{flag}: expected a number above 0, found {getattr(flags, flag)}")
    return flags


def _prepare_process(flags: Namespace) -> None:
    """Before the first import of torch: show it the device asked for and no other, and switch an absent Hub off."""
    quiet = {"TOKENIZERS_PARALLELISM": "false", "DATASETS_VERBOSITY": "error", "TRANSFORMERS_VERBOSITY": "error"}
    os.environ.update({name: value for name, value in quiet.items() if name not in os.environ})
    if flags.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    else:
        # Trainer would share its batches among all the GPUs it sees.
        os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")
    if not hub_answers():
        os.environ["HF_HUB_OFFLINE"] = "1"
    # As on our command line, and for every contender.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    warnings.filterwarnings("ignore")
    import torch

    if flags.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: torch finds no GPU here; take --device cpu")


def _teller(name: str) -> Any:
    return lambda line: print(f"{name}  {line}", file=sys.stderr, flush=True)

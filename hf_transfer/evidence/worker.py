"""The process that trains cells for `workers`: `python -m hf_transfer.evidence.worker DESCRIPTOR`.

It reads lines of JSON from its standard input, the run first and then a cell each, and answers to each cell with a line to the descriptor.
It ends when its input does, so none outlives the process that started it.
"""

import json
import os
import queue
import signal
import sys
import threading
import traceback
from pathlib import Path
from typing import Any

from hf_transfer.errors import Interrupted, TransferError
from hf_transfer.evidence.attempt import PlannedCell, attempt_cell, quick_collections
from hf_transfer.evidence.study import prepare_study
from hf_transfer.recipe import Arm, Recipe
from hf_transfer.run_settings import RunSettings
from hf_transfer.training.device import make_accelerator
from hf_transfer.training.stopping import Stopping


def main() -> None:
    """Train cells until there is nobody who asks for them."""
    told: queue.Queue[Any] = queue.Queue()
    threading.Thread(target=_listen, args=(told,), daemon=True).start()
    # What others print goes to standard output; this is for answers alone.
    with os.fdopen(int(sys.argv[1]), "w", encoding="utf-8") as answers:

        def answer(**what: Any) -> None:
            print(json.dumps(what), file=answers, flush=True)

        try:
            job = told.get()
            recipe, settings = Recipe.from_dict(job["recipe"]), RunSettings(**job["settings"])
            accelerator = make_accelerator(recipe.training.precision)
            asked = (settings.arms, settings.budgets, settings.seeds, accelerator, settings.max_test_rows)
            with Stopping() as stopping, quick_collections():
                study = prepare_study(recipe, *asked, local_files_only=job["local_files_only"], stopping=stopping)
                while True:
                    cell = told.get()
                    planned = PlannedCell(cell["arm_name"], Arm(**cell["arm"]), cell["budget"], cell["seed"])
                    answer(failure=attempt_cell(study, planned, Path(job["run_folder"]), settings.tracker))
        except Interrupted as error:
            answer(interrupted=str(error))
        except TransferError as error:
            answer(refused=str(error), kind=type(error).__name__)
        except Exception:
            answer(traceback=traceback.format_exc())


def _listen(told: queue.Queue[Any]) -> None:
    """Read what is asked; at its end, end this process and all that it has forked, whatever they are doing."""
    # Not through sys.stdin: what this process forks would wait for its lock.
    rest = b""
    while part := os.read(0, 1 << 16):
        *lines, rest = (rest + part).split(b"\n")
        for line in lines:
            told.put(json.loads(line))
    os.killpg(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main()

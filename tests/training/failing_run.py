"""A run of several processes, one of which fails: `failing_run.py RANK FAULT RECIPE FLAGS...`."""

import os
import signal
import sys
import time
from typing import Any

import hf_transfer as ht
from hf_transfer.training import loop

rank, fault, recipe, *words = sys.argv[1:]
accumulate, num_updates = loop.accumulate, 0


def failing(*arguments: Any) -> float | None:
    global num_updates
    num_updates += 1
    if num_updates == 3:
        print(f"fails at {time.time()}", flush=True)
        if fault == "bug":
            raise ZeroDivisionError("planted")
        os.kill(os.getpid(), getattr(signal, fault))
    return accumulate(*arguments)


if os.environ["RANK"] == rank:
    if fault == "mistake":
        words += ["--dataset", "missing.csv"]
    else:
        loop.accumulate = failing
ht.main(ht.load_recipe(recipe), words)

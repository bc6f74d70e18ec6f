"""Several commands in one launch of several processes: starting them takes most of the time of a small run.

    accelerate launch ... tests/recipes/run_several.py COMMANDS.json

The file lists [recipe, words of its command line]. Only the main process is given the run folder of the command: the others get one
beside it, as on a machine of its own, where nothing may be written.
"""

import json
import os
import sys
from pathlib import Path

import hf_transfer as ht

for recipe, words in json.loads(Path(sys.argv[1]).read_text()):
    folder = words[words.index("--output-dir") + 1]
    if os.environ["RANK"] != "0":
        words[words.index("--output-dir") + 1] = f"{folder}-of-process-{os.environ['RANK']}"
    try:
        ht.main(ht.load_recipe(recipe), words)
    except SystemExit as end:
        if end.code:
            raise

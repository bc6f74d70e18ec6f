"""Runs a recipe with its models sharded over CPU processes: `accelerate launch --use_fsdp ... sharded_on_cpu.py RECIPE.py FLAGS`.

Accelerate 1.15 takes its own FSDP configuration on GPUs only; on a CPU it is passed over without a word. What stands in for it here is
`AcceleratorState` alone, told that it is sharded; preparing the model, wrapping its blocks, the optimizer's parameters, gradient
synchronisation, clipping and what is saved are Accelerate's own.
"""

import os
import runpy
import sys
from typing import Any

from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType


def shard_on_cpu() -> None:
    """Let Accelerate take its FSDP configuration on CPU processes, as it does on GPUs."""
    plain = AcceleratorState.__init__

    def promoted(state: AcceleratorState, *args: Any, fsdp_plugin: Any = None, **settings: Any) -> None:
        plain(state, *args, fsdp_plugin=fsdp_plugin, **settings)
        # As AcceleratorState.__init__ does for MULTI_GPU.
        if fsdp_plugin is not None and state.distributed_type is DistributedType.MULTI_CPU:
            if state.mixed_precision != "no":
                fsdp_plugin.set_mixed_precision(state.mixed_precision)
            state.fsdp_plugin = fsdp_plugin
            state.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP

    AcceleratorState.__init__ = promoted


if __name__ == "__main__":
    shard_on_cpu()
    assert os.environ["ACCELERATE_USE_FSDP"] == "true", "to be started by accelerate launch --use_fsdp"
    sys.argv = sys.argv[1:]
    runpy.run_path(sys.argv[0], run_name="__main__")

"""Tasks: a module of functions each, with the same names, so that whoever trains, predicts or saves need not know which task it is.

`AUTO_MODEL` and `PEFT_TASK_TYPE`; `read` (splits -> label names and examples), `encode` (inputs -> rows of ids), `collate` (rows ->
tensors), `row_losses` (logits, labels -> a loss a row), `probabilities` (logits -> class probabilities).
"""

from types import ModuleType

from hf_transfer.recipe import Task
from hf_transfer.tasks import text_classification

TASKS: dict[str, ModuleType] = {"text-classification": text_classification}


def functions_of(task: Task) -> ModuleType:
    """Give the module that does a task."""
    return TASKS[task.kind]

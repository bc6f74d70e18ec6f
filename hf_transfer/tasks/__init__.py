"""Tasks: a module of functions each, with the same names, so that whoever trains, predicts or saves need not know which task it is.

- `AUTO_MODEL`, `PEFT_TASK_TYPE`, `MANY_ITEMS` (a row has several labels)
- data: `choose_columns` (the roles it fills), `read` (splits -> label names and examples), `check_labels` (enough to learn from),
  `count_labels`
- model input: `prepare_tokenizer`, `encode` (inputs -> windows), `collate` (windows -> tensors), `long_input` (one of many tokens)
- training: `weights_by_class` (by name -> by class id), `item_shares` (what a row's items count), `describe_too_long`
- model output: `item_logits` (a row an item), `decode` (probabilities -> class ids)
- a trained model: `to_inputs` (what a user passes -> inputs), `to_answers` (probabilities -> what a user gets)
"""

from types import ModuleType
from typing import Any

from hf_transfer.tasks import text_classification, token_classification

TASKS: dict[str, ModuleType] = {"text-classification": text_classification, "token-classification": token_classification}


def functions_of(task: Any) -> ModuleType:
    """Give the module that does a task, by its config."""
    return TASKS[task.kind]

"""Tasks: a module of functions each, with the same names, so that whoever trains, predicts or saves need not know which task it is.

- `AUTO_MODEL`, `PEFT_TASK_TYPE`, `MANY_ITEMS` (a row has several labels), `READS_TEXTS_WHOLE` (one label for a text),
  `READS_FILES` (input is worth reading ahead)
- data: `choose_columns` (the roles it fills), `read` (a source -> label names and examples), `check_labels` (enough to learn from),
  `count_labels`, `measure` (lengths or sizes, for a person)
- one input, for a person: `show` (its `text`, `words` or `image`, a thumbnail), `to_text` (what it says, None for an image), `length_of`
  and `LENGTH_UNIT` (how long it is, in what)
- model input: `load_processor` (tokenizer or image processor), `encode` (inputs -> windows), `collate` (windows -> tensors), `augmenter`
  (the same at random, for training), `check_reach` and `describe_reach` (what a checkpoint can read), `probe_windows` (of the largest
  size), `describe_misfit`
- training: `weights_by_class` (by name -> by class id), `item_shares` (what a row's items count)
- model output: `item_logits` (a row an item), `decode` (probabilities -> class ids)
- a trained model: `to_inputs` (what a user passes -> inputs), `to_answers` (probabilities -> what a user gets); of a table, `input_roles`
  (the columns it is read from), `from_columns` (their values -> what a user would pass), `to_table` (answers -> columns)
"""

from types import ModuleType
from typing import Any

from hf_transfer.tasks import image_classification, text_classification, token_classification

TASKS: dict[str, ModuleType] = {
    "text-classification": text_classification,
    "token-classification": token_classification,
    "image-classification": image_classification,
}


def functions_of(task: Any) -> ModuleType:
    """Give the module that does a task, by its config."""
    return TASKS[task.kind]

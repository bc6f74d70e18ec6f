"""Does transfer help on your labels, by how much, at what cost, and which way of tuning should you ship?

    import hf_transfer as ht
    comparison = ht.run(ht.load_recipe("newsgroups"), arms=["scratch", "lora"], budgets=[128])
    print(comparison.table())

Names are imported when first used: `import hf_transfer` alone loads no torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hf_transfer.api import Comparison, Model, load, run, tune, validate
    from hf_transfer.cli import main
    from hf_transfer.errors import TransferError
    from hf_transfer.recipe import Arm, DataConfig, LoRA, Recipe, TrainingConfig
    from hf_transfer.recipe_files import load_recipe
    from hf_transfer.task_configs import Augmentation, ImageClassification, TextClassification, TokenClassification

__version__ = "0.1.0"

_HOME = {
    **dict.fromkeys(("Comparison", "Model", "load", "run", "tune", "validate"), "api"),
    "main": "cli",
    "TransferError": "errors",
    "load_recipe": "recipe_files",
    **dict.fromkeys(("Arm", "DataConfig", "LoRA", "Recipe", "TrainingConfig"), "recipe"),
    **dict.fromkeys(("Augmentation", "ImageClassification", "TextClassification", "TokenClassification"), "task_configs"),
}

__all__ = [
    "Arm",
    "Augmentation",
    "Comparison",
    "DataConfig",
    "ImageClassification",
    "LoRA",
    "Model",
    "Recipe",
    "TextClassification",
    "TokenClassification",
    "TrainingConfig",
    "TransferError",
    "load",
    "load_recipe",
    "main",
    "run",
    "tune",
    "validate",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'hf_transfer' has no attribute '{name}'")
    return getattr(importlib.import_module(f"hf_transfer.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]

"""What a search may change of an arm: values around the recipe's own."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from hf_transfer.recipe import Arm

Space = dict[str, tuple[float, float] | list[Any]]
"""Field of an arm, as `--set arms.NAME.FIELD` names it -> (low, high) of a range that is drawn from log-uniformly, or a list of choices."""
RATE_REACH = {
    # New parameters start from nothing, and a head's problem is nearly convex: it bears rates that would wreck a backbone.
    "head": (0.1, 30.0),
    "lora": (0.1, 10.0),
    # Pretrained weights that move lose what they know long before the loss diverges.
    "top": (0.1, 3.0),
    "full": (0.1, 3.0),
}
"""Tuning of a pretrained arm -> the lowest and the highest learning rate, as factors of the recipe's."""
SCRATCH_RATE_REACH = (0.1, 10.0)


def space_of(arm: Arm, possible_blocks: Sequence[int] = ()) -> Space:
    """Give the space that an arm is searched in.

    - `learning_rate`: log-uniform around the recipe's, as far each way as `RATE_REACH` says.
    - `num_epochs`: half, the same, or twice as many.
    - `weight_decay`: none, the recipe's, or ten times that (of none: 0.01 or 0.1).
    - `lora.r` of tuning "lora": half, the same, or twice; `lora_alpha` keeps its ratio to it.
    - `num_blocks` of tuning "top": half, the same, or twice, as far as the architecture has them.

    The recipe's own values are in it. A field with one choice is left out.

    Args:
        arm: The recipe's.
        possible_blocks: Of `blocks_around`, those that the architecture can do.
    """
    low, high = SCRATCH_RATE_REACH if arm.init == "scratch" else RATE_REACH[arm.tuning]
    space: Space = {
        "learning_rate": (arm.learning_rate * low, arm.learning_rate * high),
        "num_epochs": _half_same_double(arm.num_epochs),
        "weight_decay": [0.0, arm.weight_decay, 10 * arm.weight_decay] if arm.weight_decay else [0.0, 0.01, 0.1],
    }
    if arm.tuning == "lora":
        space["lora.r"] = _half_same_double(arm.lora.r)
    if len(possible_blocks) > 1:
        space["num_blocks"] = list(possible_blocks)
    return space


def blocks_around(arm: Arm) -> list[int]:
    """Give the numbers of last blocks worth a try, for tuning "top"; none for another."""
    return [] if arm.num_blocks is None else _half_same_double(arm.num_blocks)


def own_values(arm: Arm, space: Space) -> dict[str, Any]:
    """Give an arm's own value of each field of a space."""
    return {field: arm.lora.r if field == "lora.r" else getattr(arm, field) for field in space}


def arm_with(arm: Arm, values: dict[str, Any]) -> Arm:
    """Give an arm with values of a space in their fields."""
    changes = dict(values)
    if "lora.r" in changes:
        r = changes.pop("lora.r")
        changes["lora"] = replace(arm.lora, r=r, lora_alpha=arm.lora.lora_alpha * (r / arm.lora.r))
    return replace(arm, **changes)


def _half_same_double(number: int) -> list[int]:
    return sorted({max(1, number // 2), number, 2 * number})

"""What is compared: how each case trains, whom it is compared with, and how far ahead we mean to be."""

from dataclasses import dataclass, field, replace

from hf_transfer.recipe import Arm, Tuning

OURS = "hf_transfer"
BATCH_SIZE = 32
"""Rows an update, on every side."""
QUICK_LENGTH, QUICK_EPOCHS = 16, 2

PEERS = {
    "trainer": "Trainer as it comes",
    "trainer-bf16": "Trainer bf16",
    "trainer-bf16-grouped": "Trainer bf16 group_by_length",
    "accelerate-bf16": "Accelerate loop bf16",
    "pipeline": "pipeline(batch_size=32)",
}
"""Peer -> what it is called in the table."""
TRAINERS = ("trainer", "trainer-bf16", "trainer-bf16-grouped", "accelerate-bf16")


@dataclass(frozen=True)
class Case:
    """One comparison."""

    max_length: int
    """Tokens a text is cut to."""
    tuning: Tuning | None = "full"
    """None = nothing trains: texts are predicted."""
    learning_rate: float = 2e-4
    num_epochs: int = 1
    peers: tuple[str, ...] = TRAINERS
    targets: dict[str, float] = field(default_factory=dict)
    """Peer -> how many times its seconds ours should be."""
    share_target: float | None = None
    """Of the matrix-product rate, what our useful FLOP rate should be."""

    @property
    def arm(self) -> Arm:
        """Give the arm that trains; of a case that predicts, the one whose model does."""
        return Arm(tuning=self.tuning or "full", learning_rate=self.learning_rate, num_epochs=self.num_epochs)

    def quickly(self) -> "Case":
        """Give the same case in tiny: it shows that the program runs, and measures nothing."""
        return replace(self, max_length=min(self.max_length, QUICK_LENGTH), num_epochs=min(self.num_epochs, QUICK_EPOCHS))


CASES = {
    "full-512": Case(512, targets={"trainer-bf16": 6.0, "trainer": 9.0}),
    "full-256": Case(256, targets={"trainer-bf16": 2.2, "trainer": 3.6}, share_target=0.55),
    "lora-256": Case(256, "lora", learning_rate=1e-3, targets={"trainer-bf16": 2.2, "trainer": 3.6}),
    "head-256": Case(256, "head", learning_rate=1e-3, num_epochs=10, targets={"trainer-bf16": 18.0, "trainer": 25.0}),
    "predict-512": Case(512, None, peers=("pipeline",), targets={"pipeline": 5.0}),
}
FEW_SHOT = "few-shot"

MEMORY_CASE = "full-512"
MEMORY_TARGETS = {"trainer-bf16": 0.5, "trainer": 0.4}
"""Peer -> share of its peak memory that ours should be at most."""
QUALITY_CASE, QUALITY_PEER, QUALITY_BUDGET, QUALITY_EPOCHS, QUALITY_SEEDS = "full-256", "trainer-bf16", 500, 6, (0, 1, 2)


def precision_of(contender: str, ours: str) -> str:
    """Give the precision a contender multiplies in: peers as they come or as their name says, ours as "auto" chooses.

    Args:
        contender: One of a case's.
        ours: What "auto" means on this hardware.
    """
    if contender == OURS:
        return ours
    return "fp32" if contender in ("trainer", "pipeline") else "bf16"

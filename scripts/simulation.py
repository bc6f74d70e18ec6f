"""Do the intervals hold what they promise? Runs of two arms whose true gain is planted, analysed as a comparison analyses them.

An arm is right about a row where a latent score is above 0: the arm's skill + the row's ease (common to both arms) + what the row is to
this arm + the seed's luck + the rest, all normal. So the true mean over seeds and rows is known exactly.
"""

import argparse
import itertools
from dataclasses import dataclass

import numpy as np
from scipy import stats

from hf_transfer.evaluation.metrics import METRICS, Predictions
from hf_transfer.evidence.statistics import estimate, row_values

ACCURACY = 0.75
"""Of the baseline."""
EASE_SD, ARM_EASE_SD = 1.0, 0.5
"""Of the row for both arms, and for one of them, where the rest has 1."""
SEEDS, ROWS, SEED_SDS = (3, 5), (500, 2000, 7500), (0.0, 0.005, 0.01, 0.02, 0.04)
GAIN = 0.05
CLASSES = np.array([0.5, 0.3, 0.15, 0.05])
"""Shares of the classes, for macro-F1."""


@dataclass(frozen=True)
class Rates:
    """Shares of simulated runs."""

    covered: float
    """Whose interval holds the true gain."""
    helps: float
    """Whose gain is above 0 with p < 0.05."""


def draw_hits(num_seeds: int, num_rows: int, seed_sd: float, gain: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draw which rows the baseline and the arm get right with each seed.

    Args:
        num_seeds: S.
        num_rows: B.
        seed_sd: Standard deviation of an arm's accuracy over seeds.
        gain: True gain of the arm.
        rng: Draws them.

    Returns:
        Two (S, B) of bool.
    """
    rest = np.sqrt(1 + EASE_SD**2 + ARM_EASE_SD**2)
    luck_sd = seed_sd / stats.norm.pdf(stats.norm.ppf(ACCURACY)) * rest
    spread = np.hypot(rest, luck_sd)
    ease = EASE_SD * rng.standard_normal(num_rows, dtype=np.float32)
    hits = []
    for accuracy in (ACCURACY, ACCURACY + gain):
        of_rows = ease + ARM_EASE_SD * rng.standard_normal(num_rows, dtype=np.float32)
        luck = luck_sd * rng.standard_normal((num_seeds, 1), dtype=np.float32)
        noise = rng.standard_normal((num_seeds, num_rows), dtype=np.float32)
        hits.append(stats.norm.ppf(accuracy) * spread + of_rows + luck + noise > 0)
    return hits[0], hits[1]


def macro_f1_values(hits: np.ndarray, references: np.ndarray) -> np.ndarray:
    """Give what each row adds to macro-F1, (S, B): a miss takes the next class for it."""
    values = []
    for of_seed in hits:
        predictions = np.where(of_seed, references, (references + 1) % len(CLASSES))
        probabilities = np.eye(len(CLASSES), dtype=np.float32)[predictions]
        predicted = Predictions(
            [str(name) for name in range(len(CLASSES))], references, predictions, probabilities, np.arange(len(references) + 1)
        )
        values.append(row_values(METRICS["text-classification"], predicted)["f1_macro"])
    return np.stack(values)


def simulate(num_seeds: int, num_rows: int, seed_sd: float, gain: float, num_runs: int, macro_f1: bool = False) -> Rates:
    """Simulate runs of one design; arguments as of `draw_hits`. Of macro-F1 the true gain is known where it is 0."""
    rng = np.random.default_rng([num_seeds, num_rows, round(1e4 * seed_sd), round(1e4 * gain), macro_f1])
    covered = helps = 0
    for _ in range(num_runs):
        baseline, arm = draw_hits(num_seeds, num_rows, seed_sd, gain, rng)
        if macro_f1:
            references = rng.choice(len(CLASSES), p=CLASSES, size=num_rows)
            found = estimate(macro_f1_values(arm, references) - macro_f1_values(baseline, references))
        else:
            found = estimate(arm.astype(np.float64) - baseline)
        covered += found.ci_low <= gain <= found.ci_high
        helps += found.p_value < 0.05 and found.mean > 0
    return Rates(covered / num_runs, helps / num_runs)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--runs", type=int, default=1000, metavar="N", help="simulated runs of each design; default 1000")
    num_runs = parser.parse_args().runs
    print(f"{num_runs:,} runs of each design; covered at a true gain of 0 / of {GAIN:g}, helps at 0; sd: of an arm's accuracy over seeds\n")
    print("| seeds | test rows | " + " | ".join(f"sd {seed_sd:g}" for seed_sd in SEED_SDS) + " |")
    print("|---|---|" + "---|" * len(SEED_SDS))
    for num_seeds, num_rows in itertools.product(SEEDS, ROWS):
        cells = []
        for seed_sd in SEED_SDS:
            null, real = (simulate(num_seeds, num_rows, seed_sd, gain, num_runs) for gain in (0.0, GAIN))
            cells.append(f"{100 * null.covered:.1f} / {100 * real.covered:.1f}, {100 * null.helps:.1f}")
        print(f"| {num_seeds} | {num_rows:,} | " + " | ".join(cells) + " |", flush=True)
    for num_seeds in SEEDS:
        cells = []
        for seed_sd in SEED_SDS:
            null = simulate(num_seeds, ROWS[0], seed_sd, 0.0, num_runs // 4, macro_f1=True)
            cells.append(f"{100 * null.covered:.1f}, {100 * null.helps:.1f}")
        print(f"| {num_seeds} | {ROWS[0]:,}, macro-F1 | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()

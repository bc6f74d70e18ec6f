import numpy as np
import pytest

from hf_transfer.training.plan import UpdatePlan


def plan(num_rows: int = 53, num_processes: int = 1, max_tokens: int = 200, seed: int = 0, batch_size: int = 8) -> UpdatePlan:
    rng = np.random.default_rng(9)
    weights = rng.random(num_rows).astype(np.float32) + 0.1
    return UpdatePlan(
        rng.integers(2, 120, num_rows),
        weights,
        batch_size,
        num_epochs=2,
        max_tokens=max_tokens,
        seed=seed,
        num_processes=num_processes,
    )


@pytest.mark.parametrize("num_processes", [1, 2, 3, 11])
@pytest.mark.parametrize("max_tokens", [1, 200, 10_000])
def test_every_row_counts_once_an_epoch(num_processes: int, max_tokens: int) -> None:
    made = plan(num_processes=num_processes, max_tokens=max_tokens)
    assert (made.updates_per_epoch, made.num_updates) == (7, 14)
    for epoch in range(2):
        counted = np.zeros(53)
        for update in range(epoch * 7, epoch * 7 + 7):
            shares = [made.micro_batches(update, process) for process in range(num_processes)]
            assert len({len(share) for share in shares}) == 1, "every process runs as many micro-batches"
            assert len(shares[0]) >= 1
            seen = np.zeros(53)
            for micro_batch in (micro_batch for share in shares for micro_batch in share):
                windows = micro_batch.windows
                assert len(windows) == 1 or len(windows) * made.lengths[windows].max() <= max_tokens
                if not micro_batch.is_filler:
                    seen[windows] += 1
                assert set(windows) <= set(made.rows_of(update)), "a filler is a row of the update"
            assert np.array_equal(np.flatnonzero(seen), np.sort(made.rows_of(update)))
            counted += seen
            assert made.epoch_of(update) == epoch
        assert (counted == 1).all()


def test_the_rows_of_an_update_do_not_depend_on_processes_or_tokens() -> None:
    for update in range(14):
        expected = plan().rows_of(update)
        assert np.array_equal(plan(num_processes=3, max_tokens=64).rows_of(update), expected)
        assert plan().weight_of(update) == pytest.approx(plan().weights[expected].sum())


def test_seeds_and_epochs_shuffle_anew() -> None:
    orders = [np.concatenate([plan(seed=seed).rows_of(epoch * 7 + update) for update in range(7)]) for seed in (0, 1) for epoch in (0, 1)]
    assert len({tuple(order) for order in orders}) == 4
    assert all(sorted(order) == list(range(53)) for order in orders)


def test_dropout_seeds_differ_between_micro_batches_and_updates() -> None:
    made = plan(max_tokens=150)
    seeds = [made.dropout_seed(update, micro_batch) for update in range(14) for micro_batch in made.micro_batches(update, 0)]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)


@pytest.mark.parametrize("num_processes", [1, 2, 3])
def test_all_windows_of_a_row_are_in_its_update_and_count_once(num_processes: int) -> None:
    rng = np.random.default_rng(4)
    row_of_window = np.repeat(np.arange(20), rng.integers(1, 30, 20))
    lengths = rng.integers(2, 50, len(row_of_window))
    made = UpdatePlan(lengths, rng.random(len(lengths)), 6, 2, 100, seed=0, num_processes=num_processes, row_of_window=row_of_window)
    assert (made.num_rows, made.updates_per_epoch) == (20, 4)
    for epoch in range(2):
        counted = np.zeros(len(lengths))
        for update in range(epoch * 4, epoch * 4 + 4):
            windows = made.windows_of(update)
            assert set(row_of_window[windows]) == set(made.rows_of(update))
            shares = [made.micro_batches(update, process) for process in range(num_processes)]
            assert len({len(share) for share in shares}) == 1
            real = [micro_batch.windows for share in shares for micro_batch in share if not micro_batch.is_filler]
            assert np.array_equal(np.sort(np.concatenate(real)), np.sort(windows))
            assert all(len(piece) == 1 or len(piece) * lengths[piece].max() <= 100 for piece in real)
            assert made.weight_of(update) == pytest.approx(made.weights[windows].sum())
            np.add.at(counted, windows, 1)
        assert (counted == 1).all()


def test_balanced_epochs_hold_every_class_alike() -> None:
    classes = np.repeat([0, 1, 2], [70, 25, 5])
    made = UpdatePlan(np.full(100, 9), np.ones(100), 16, 30, 100, seed=1, balance=classes)
    assert (made.num_rows, made.updates_per_epoch) == (100, 7)
    drawn = np.zeros(100)
    for epoch in range(30):
        rows = np.concatenate([made.rows_of(update) for update in range(epoch * 7, epoch * 7 + 7)])
        assert len(rows) == 100
        counts = np.bincount(classes[rows])
        assert counts.max() - counts.min() <= 1
        repeats = np.bincount(rows, minlength=100)
        for name in range(3):
            assert np.ptp(repeats[classes == name]) <= 1, "no row is favoured within its class"
        drawn += repeats
    assert (drawn > 0).all(), "what one epoch leaves out, another holds"
    again = UpdatePlan(np.full(100, 9), np.ones(100), 16, 30, 100, seed=1, num_processes=2, balance=classes)
    assert all(np.array_equal(made.rows_of(update), again.rows_of(update)) for update in (0, 50, 209))

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from hf_transfer.data.batches import cut, deal, pad
from hf_transfer.errors import TrainingError
from hf_transfer.training.accumulation import halve_micro_batches
from hf_transfer.training.plan import MicroBatch, UpdatePlan

lengths = st.lists(st.integers(0, 40) | st.integers(0, 2000), min_size=1, max_size=40).map(lambda found: np.array(found, dtype=np.int64))


@st.composite
def plans(draw: st.DrawFn) -> UpdatePlan:
    """Draw rows, of one window or several, and how they are cut and dealt."""
    row_of_window = None
    if draw(st.booleans()):
        num_windows = draw(st.lists(st.integers(1, 5), min_size=1, max_size=20))
        row_of_window = np.repeat(np.arange(len(num_windows)), num_windows)
        made = draw(st.lists(st.integers(1, 300), min_size=len(row_of_window), max_size=len(row_of_window)).map(np.array))
    else:
        made = draw(lengths)
    num_rows = len(made) if row_of_window is None else int(row_of_window[-1]) + 1
    batch_size = draw(st.integers(1, 30))
    return UpdatePlan(
        made,
        np.array(draw(st.lists(st.floats(0.1, 10), min_size=len(made), max_size=len(made)))),
        batch_size=batch_size,
        num_epochs=draw(st.integers(1, 2)),
        max_tokens=draw(st.none() | st.integers(1, 3000)),
        seed=draw(st.integers(0, 2**32 - 1)),
        num_processes=draw(st.integers(1, 5)),
        row_of_window=row_of_window,
        least_rows=draw(st.integers(1, min(3, batch_size))),
        balance=draw(st.none() | st.lists(st.integers(0, 3), min_size=num_rows, max_size=num_rows).map(np.array)),
    )


def micro_batches(plan: UpdatePlan, update: int) -> list[list[MicroBatch]]:
    return [plan.micro_batches(update, process) for process in range(plan.num_processes)]


def check_update(plan: UpdatePlan, update: int) -> None:
    """Every window of the update once, nothing over budget, as many micro-batches on every process."""
    shares = micro_batches(plan, update)
    assert len({len(share) for share in shares}) == 1
    assert len(shares[0]) >= 1
    windows = plan.windows_of(update)
    forwarded = [micro_batch for share in shares for micro_batch in share]
    real = [micro_batch.windows for micro_batch in forwarded if not micro_batch.is_filler]
    assert np.array_equal(np.sort(np.concatenate(real)), np.sort(windows))
    for micro_batch in forwarded:
        assert set(micro_batch.windows) <= set(windows)
        held = plan.lengths[micro_batch.windows]
        assert len(held) == 1 or plan.max_tokens is None or len(held) * held.max() <= plan.max_tokens
    assert plan.weight_of(update) == float(plan.weights[windows].sum())


@given(plan=plans())
def test_every_row_is_in_every_epoch_once(plan: UpdatePlan) -> None:
    per_epoch = plan.updates_per_epoch
    assert plan.num_updates == per_epoch * plan.num_epochs
    for epoch in range(plan.num_epochs):
        updates = range(epoch * per_epoch, (epoch + 1) * per_epoch)
        rows = [plan.rows_of(update) for update in updates]
        assert all(plan.epoch_of(update) == epoch for update in updates)
        assert all(len(held) == plan.batch_size for held in rows[:-1])
        assert min(plan.least_rows, plan.num_rows) <= len(rows[-1]) < plan.batch_size + plan.least_rows
        counted = np.bincount(np.concatenate(rows), minlength=plan.num_rows)
        assert counted.sum() == plan.num_rows
        if plan.balance is None:
            assert (counted == 1).all()
        else:
            of_class = np.bincount(plan.balance, weights=counted)[np.unique(plan.balance)]
            assert of_class.max() - of_class.min() <= 1, "every class alike"
            assert all(np.ptp(counted[plan.balance == name]) <= 1 for name in np.unique(plan.balance)), "no row more than another"
        if plan.balance is None:
            for update in updates:
                check_update(plan, update)


@given(plan=plans(), others=plans())
def test_rows_of_an_update_depend_on_seed_and_batch_size_alone(plan: UpdatePlan, others: UpdatePlan) -> None:
    same = UpdatePlan(
        plan.lengths,
        plan.weights,
        plan.batch_size,
        plan.num_epochs,
        others.max_tokens,
        plan.seed,
        others.num_processes,
        plan.row_of_window,
        plan.least_rows,
        plan.balance,
    )
    for update in (0, plan.num_updates - 1, 0):
        assert np.array_equal(plan.rows_of(update), same.rows_of(update))
        assert plan.partners_of(update) == same.partners_of(update)


@given(plan=plans(), data=st.data())
def test_halved_micro_batches_hold_the_same_update(plan: UpdatePlan, data: st.DataObject) -> None:
    update = data.draw(st.integers(0, plan.num_updates - 1))
    before = sum(map(len, micro_batches(plan, update)))
    windows = plan.windows_of(update)
    # A row that is drawn twice in an update is no case for counting it once.
    repeats = len(set(windows)) < len(windows)
    for _ in range(20):
        largest = max(len(piece.windows) for share in micro_batches(plan, update) for piece in share)
        try:
            halved = halve_micro_batches(plan, update, "arm")
        except TrainingError:
            assert largest == 1 or plan.max_tokens is None
            return
        assert plan.max_tokens is not None and halved.max_tokens is not None and halved.max_tokens <= max(1, plan.max_tokens // 2)
        assert np.array_equal(halved.windows_of(update), windows)
        if not repeats:
            check_update(halved, update)
        after = sum(map(len, micro_batches(halved, update)))
        assert after >= before
        plan, before = halved, after
    raise AssertionError("halving comes to an end")


@given(lengths=lengths | st.just(np.zeros(0, dtype=np.int64)), num_processes=st.integers(1, 9))
def test_deal_gives_each_row_to_one_process_and_none_too_much(lengths: np.ndarray, num_processes: int) -> None:
    shares = deal(lengths, num_processes)
    assert len(shares) == num_processes
    assert sorted(np.concatenate(shares)) == list(range(len(lengths)))
    loads = [int(lengths[share].sum()) for share in shares]
    assert max(loads) - min(loads) <= lengths.max(initial=0), "longest first leaves no more than one row between them"


@given(lengths=lengths, max_tokens=st.integers(1, 5000))
def test_cut_holds_each_row_once_and_no_piece_is_over_budget(lengths: np.ndarray, max_tokens: int) -> None:
    pieces = cut(lengths, max_tokens)
    assert sorted(np.concatenate(pieces)) == list(range(len(lengths)))
    longest = [int(lengths[piece].max()) for piece in pieces]
    assert longest == sorted(longest, reverse=True)
    for piece, following in zip(pieces, [*pieces[1:], None], strict=True):
        size = max(1, lengths[piece].max())
        assert len(piece) == 1 or len(piece) * size <= max_tokens
        if following is not None:
            assert (len(piece) + 1) * size > max_tokens, "the next one would not fit"


@given(rows=st.lists(st.lists(st.integers(0, 2**31 - 1), max_size=9), min_size=1, max_size=6), value=st.integers(0, 9))
def test_padding_is_behind_and_masked(rows: list[list[int]], value: int) -> None:
    ids, mask = pad([np.array(row, dtype=np.int32) for row in rows], value)
    assert ids.shape == mask.shape == (len(rows), max(map(len, rows)))
    for row, padded, real in zip(rows, ids, mask, strict=True):
        assert padded.tolist() == row + [value] * (len(padded) - len(row))
        assert real.tolist() == [1] * len(row) + [0] * (len(padded) - len(row))
    assert torch.from_numpy(ids).dtype == torch.int64

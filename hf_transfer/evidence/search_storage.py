"""Where the trials of a search are kept, and which comes next: Optuna (Akiba et al. 2019, arXiv 1907.10902) over a database."""

import hashlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy
from optuna.trial import FrozenTrial, TrialState

from hf_transfer.errors import ConfigError, InstallationError, RunFolderError, first_line
from hf_transfer.evidence.search_space import Space

NUM_RANDOM = 5
"""Trials drawn at random before TPE (Bergstra et al. 2011) has anything to learn from: its usual 10 would be all of a small search."""
PLACE = "place"
"""Attribute of a finished trial: its place in the order of finishing. The clocks of several machines may be hours apart."""
SQLITE_WAIT_SECONDS = 60
"""That one process waits for another to write to the same file."""


DRIVERS = {"psycopg2": "psycopg2-binary", "MySQLdb": "mysqlclient"}
"""Module of a driver -> its package, where the names differ."""
FAILURES = (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.OptunaError, OSError, RuntimeError)


@dataclass(frozen=True)
class Trial:
    """One training of a search."""

    number: int
    """From 0, the recipe's own values, in the order of finishing."""
    params: dict[str, Any]
    validation_loss: float | None
    """None = it diverged."""
    seconds: float


class Trials:
    """The trials of one arm at one budget, in a database that other processes may work on at the same time.

    N trials count: the one with the recipe's own values, and the first N - 1 others that finish. Whoever works here asks for another until
    they are there, so one that dies holds up nobody; the trials that finish after them are not looked at.
    """

    def __init__(self, storage: optuna.storages.RDBStorage, name: str, space: Space, own: dict[str, Any], num_trials: int) -> None:
        """Open the trials, or begin them.

        Args:
            storage: From `open_storage`.
            name: Of what is searched: trials of one name are comparable.
            space: What may change.
            own: The recipe's values.
            num_trials: N.
        """
        self._name, self._space, self._own, self._num_trials = name, space, own, num_trials
        self._storage = storage
        self._asked: optuna.Trial | None = None
        with _working(storage.url):
            self._study = optuna.create_study(
                storage=storage, study_name=name, sampler=_Fixed(own), direction="minimize", load_if_exists=True
            )

    def give_up_running(self) -> None:
        """Mark as failed what a process that is dead had begun: for a database that nobody else works on."""
        with _working(self._storage.url):
            for trial in self._study.get_trials(states=(TrialState.RUNNING,)):
                self._study.tell(trial.number, state=TrialState.FAIL)

    def ask(self) -> tuple[int, dict[str, Any]] | None:
        """Give the number and the values of the trial to train next; None where all that count are there.

        What it draws depends on the finished trials and its number only, so that a search that was killed goes on with the same trials.
        """
        with _working(self._storage.url):
            if len(self._counted()) == self._num_trials:
                return None
            trial = self._asked = self._study.ask()
            earlier = [other for other in self._study.get_trials(deepcopy=False) if other.number < trial.number]
            # The recipe's own values come first; last of all, again, where the process that began with them is not done, or dead.
            number = sum(other.state != TrialState.FAIL for other in earlier)
            is_own = number == 0 or len(self._finished_others()) >= self._num_trials - 1
            seed = int.from_bytes(hashlib.sha256(f"{self._name} {number}".encode()).digest()[:4])
            tpe = optuna.samplers.TPESampler(seed=seed, n_startup_trials=NUM_RANDOM, multivariate=False)
            self._study.sampler = _Fixed(self._own) if is_own else tpe
            for field, bounds in self._space.items():
                if isinstance(bounds, tuple):
                    trial.suggest_float(field, *bounds, log=True)
                else:
                    trial.suggest_categorical(field, bounds)
            return number, trial.params

    def tell(self, validation_loss: float) -> None:
        """Keep the loss of the trial asked for last; infinity where it diverged."""
        assert self._asked is not None
        with _working(self._storage.url):
            places = [trial.user_attrs[PLACE] for trial in self._complete()]
            self._asked.set_user_attr(PLACE, max(places, default=0) + 1)
            self._study.tell(self._asked, validation_loss)

    def close(self) -> None:
        """Let go of the database."""
        self._storage.remove_session()
        self._storage.engine.dispose()

    def finished(self) -> list[Trial]:
        """Give the trials that count, the recipe's own first."""
        with _working(self._storage.url):
            return [
                Trial(
                    number,
                    trial.params,
                    None if trial.value == float("inf") else trial.value,
                    trial.duration.total_seconds() if trial.duration else 0.0,
                )
                for number, trial in enumerate(self._counted())
            ]

    def _counted(self) -> list[FrozenTrial]:
        own = [trial for trial in self._complete() if trial.params == self._own]
        return [*own[:1], *self._finished_others()[: self._num_trials - 1]]

    def _finished_others(self) -> list[FrozenTrial]:
        return [trial for trial in self._complete() if trial.params != self._own]

    def _complete(self) -> list[FrozenTrial]:
        complete = self._study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        return sorted(complete, key=lambda trial: (trial.user_attrs[PLACE], trial.number))


class _Fixed(optuna.samplers.BaseSampler):
    """Draws what it was given."""

    def __init__(self, values: dict[str, Any]) -> None:
        self._values = values

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, Any]:
        """Draw nothing together."""
        return {}

    def sample_relative(self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, Any]) -> dict[str, Any]:
        """Draw nothing together."""
        return {}

    def sample_independent(self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: Any) -> Any:
        """Give the value of one field."""
        return self._values[param_name]


def describe_trials(trials: list[Trial]) -> dict[str, Any]:
    """Give `trials` and `chosen` of `search.json`: the least validation loss, the earlier of equals (all diverged: the recipe's own)."""
    best = min(trials, key=lambda trial: float("inf") if trial.validation_loss is None else trial.validation_loss)
    chosen = {"number": best.number, "params": best.params, "validation_loss": best.validation_loss}
    return {"trials": [asdict(trial) for trial in trials], "chosen": chosen}


def file_url(path: Path) -> str:
    """Give the URL of a database file."""
    return f"sqlite:///{path.resolve()}"


def open_storage(url: str) -> optuna.storages.RDBStorage:
    """Open a database of trials, with its tables made.

    Args:
        url: `sqlite:///FILE`, `postgresql://USER:PASSWORD@HOST/NAME`, or another that SQLAlchemy knows.

    Raises:
        ConfigError: It is no such URL, or cannot be opened.
        InstallationError: What speaks to such a database is not installed.
    """
    try:
        dialect = sqlalchemy.make_url(url).get_backend_name()
    except (sqlalchemy.exc.ArgumentError, ValueError):
        scheme = f"{url.split('://')[0]}://..." if "://" in url else repr(url)
        raise ConfigError(
            f"search_storage must be the URL of a database (sqlite:///trials.db, postgresql://USER:PASSWORD@HOST/NAME), found {scheme}"
        ) from None
    options: dict[str, Any] = {"pool_pre_ping": True}
    if dialect == "sqlite":
        options["connect_args"] = {"timeout": SQLITE_WAIT_SECONDS}
    for is_last in (False, True):
        try:
            with _quiet():
                return optuna.storages.RDBStorage(url, engine_kwargs=options)
        except sqlalchemy.exc.NoSuchModuleError:
            raise ConfigError(f"search_storage: SQLAlchemy knows no database '{dialect}': take sqlite, postgresql or mysql") from None
        except ImportError as error:
            driver = getattr(error.__cause__, "name", None) or "its driver"
            raise InstallationError(
                f"search_storage {without_password(url)} needs the Python package of {dialect}, and {driver} is not installed: "
                f"pip install {DRIVERS.get(driver, driver)}"
            ) from None
        except FAILURES as error:
            # Another process may be making the same tables in this moment.
            if is_last:
                raise ConfigError(f"search_storage {without_password(url)} cannot be opened: {_reason(error, url)}") from None
            time.sleep(1)
    raise AssertionError


def without_password(url: str) -> str:
    """Give a database's URL for people and files to read: no password, and no options, which may hold one."""
    return sqlalchemy.make_url(url).set(query={}).render_as_string(hide_password=True)


@contextmanager
def _working(url: str) -> Iterator[None]:
    """Work on a database.

    Raises:
        RunFolderError: It does not answer any more.
    """
    try:
        with _quiet():
            yield
    except FAILURES as error:
        raise RunFolderError(
            f"the search storage {without_password(url)} failed: {_reason(error, url)}; --resume goes on with its trials"
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep what Optuna tells of its own doings off the terminal: a run tells of its trials itself."""
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(level)


def _reason(error: BaseException, url: str) -> str:
    """Give a library's message in a line without the password, which a driver may repeat."""
    # Optuna wraps SQLAlchemy's error, and that the driver's, which says what is wrong.
    while (inner := getattr(error, "orig", None) or error.__cause__) is not None:
        error = inner
    line = first_line(error)
    password = sqlalchemy.make_url(url).password
    return line.replace(str(password), "***") if password else line

"""Where studies are kept: an SQLite file, another database, or a journal file."""

import importlib.util
import os
import random
import sqlite3
import time
from contextlib import contextmanager
from functools import partial

from deeplearning_tutorial.parameters import check_writable

_JOURNAL = "journal:"
# Seconds to wait for a database file that another process is writing.
_SQLITE_TIMEOUT = 60
# Seconds for all tables to be made.
_CREATION_TIMEOUT = 30


def require_optuna():
    """Import Optuna; raise ImportError that says how to install it."""
    try:
        import optuna
    except ImportError as error:
        raise ImportError(
            'tuning needs Optuna; install it with pip install "deeplearning_tutorial[tune]", '
            'or from a clone pip install -e ".[tune]"'
        ) from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


@contextmanager
def open_storage(url, create=True):
    """Open where studies are kept, and close it in the end.

    Parameters
    ----------
    url : str or path
        ``journal:PATH`` for a journal file, else a database as SQLAlchemy names it, such as
        ``sqlite:///PATH`` or ``postgresql://USER@HOST/DATABASE``; or a Path, an SQLite file of any name.
    create : bool
        Whether a file that is missing is made.

    Yields
    ------
    optuna.storages.BaseStorage

    Raises
    ------
    ValueError
        If the URL cannot be read.
    OSError
        If a file is missing, or cannot be written, or there is no database.
    ImportError
        If the database's driver is not installed.
    """
    optuna = require_optuna()
    if not isinstance(url, str):
        _check_file(os.fspath(url), create)
        connect = partial(sqlite3.connect, url, timeout=_SQLITE_TIMEOUT, check_same_thread=False)
        with _open_database("sqlite://", str(url), {"creator": connect}, is_sqlite=True) as storage:
            yield storage
        return
    url, shown = _normalised(url)
    if url.startswith(_JOURNAL):
        path = url.removeprefix(_JOURNAL).removeprefix("//")
        _check_file(path, create)
        yield optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(path))
        return
    import sqlalchemy

    try:
        address = sqlalchemy.make_url(url)
    except (sqlalchemy.exc.ArgumentError, ValueError):
        raise ValueError(
            f"storage={shown!r} is no URL; use e.g. sqlite:///study.db or journal:study.log"
        ) from None
    if "?" in url and not address.query:
        raise ValueError(f"storage={shown!r}: what follows the ? is no name=value; leave it out")
    options, is_sqlite = {}, address.get_backend_name() == "sqlite"
    if is_sqlite:
        in_memory = address.query.get("mode") == "memory"
        _check_file("" if in_memory else (address.database or "").removeprefix("file:"), create)
        options["connect_args"] = {"timeout": _SQLITE_TIMEOUT}
    # Optuna fills in what stands between braces.
    url = url.replace("{", "{{").replace("}", "}}")
    with _open_database(url, address.render_as_string(), options, is_sqlite) as storage:
        yield storage


def _normalised(url):
    """Return a URL with a scheme that is known, and the URL that may be shown, without a password."""
    scheme, colon, rest = url.partition(":")
    scheme = scheme.lower()
    if scheme in ("postgres", "postgresql"):
        # SQLAlchemy knows one name only, and of several drivers takes the older.
        scheme = "postgresql" if importlib.util.find_spec("psycopg2") else "postgresql+psycopg"
    _secret, at, address = rest.rpartition("@")
    return f"{scheme}{colon}{rest}" if colon else url, f"{scheme}:***@{address}" if at else url


@contextmanager
def _open_database(url, shown, options, is_sqlite):
    """Open a database by Optuna; ``options`` are those of SQLAlchemy's ``create_engine``."""
    import optuna
    import sqlalchemy

    # A trial may outlast what a server grants a silent connection, so none is kept.
    options = options | {"poolclass": sqlalchemy.pool.NullPool}
    storage = None
    give_up = time.monotonic() + _CREATION_TIMEOUT
    while storage is None:
        try:
            storage = optuna.storages.RDBStorage(url, engine_kwargs=options)
        except ImportError as error:
            driver = getattr(error.__cause__ or error, "name", None) or "a driver"
            raise ImportError(
                f"storage={shown} needs {driver}, which is not installed; install it, or name a driver "
                "that is, as in mysql+pymysql://"
            ) from error
        except (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
            cause = str(error.__cause__ or error).strip()
            is_there = "already exists" in cause or isinstance(error, sqlalchemy.exc.IntegrityError)
            if is_there and time.monotonic() < give_up:
                # Several workers begin a study at the same moment, and another one makes the tables.
                time.sleep(random.uniform(0.1, 0.5))
                continue
            advice = ""
            if isinstance(error, sqlalchemy.exc.NoSuchModuleError):
                advice = "; use e.g. sqlite:///study.db, postgresql://user@host/database or journal:study.log"
            told = f"storage={shown} cannot be opened: {cause.splitlines()[0]}{advice}"
            raise OSError(told) from error
    try:
        if is_sqlite:
            _lock_whole_transactions(storage.engine)
        yield storage
    finally:
        storage.remove_session()
        storage.engine.dispose()


def open_study(storage, name, settings=None, defaults=None):
    """Find a study, or make it.

    Parameters
    ----------
    storage : optuna.storages.BaseStorage
    name : str
    settings : dict of str to dict, optional
        What makes results comparable; JSON can hold it. A study keeps what it was made with, unless all
        its trials failed. Without ``settings`` it must exist.
    defaults : dict, optional
        What an argument was that did not exist when the study began, as JSON has it.

    Returns
    -------
    optuna.Study

    Raises
    ------
    ValueError
        If there is none, or it was made with other settings.
    """
    optuna = require_optuna()
    if settings is None:
        names = optuna.get_all_study_names(storage)
        if name not in names:
            there = ", ".join(names) or "none"
            raise ValueError(f"study={name!r} is not in this storage; there: {there}")
        return optuna.load_study(study_name=name, storage=storage)
    study = optuna.create_study(study_name=name, storage=storage, load_if_exists=True)
    trials = study.get_trials(deepcopy=False)
    begun_with = _completed(study, settings, defaults or {})
    if begun_with not in ({}, settings) and trials and all(trial.state.name == "FAIL" for trial in trials):
        # Nothing came of what it began with, yet Optuna would go on to demand the same choices.
        optuna.delete_study(study_name=name, storage=storage)
        study = optuna.create_study(study_name=name, storage=storage, load_if_exists=True)
    if not study.user_attrs:
        study.set_user_attr("settings", settings)
    there = _completed(study, settings, defaults or {})
    differences = [
        f"{kind} {key} is {there.get(kind, {}).get(key)!r} there and {settings.get(kind, {}).get(key)!r} here"
        for kind in {**settings, **there}
        for key in {**settings.get(kind, {}), **there.get(kind, {})}
        if there.get(kind, {}).get(key) != settings.get(kind, {}).get(key)
    ]
    if differences:
        raise ValueError(
            f"study={name!r} goes on with what it began with: {'; '.join(differences)}. "
            "Give the same, or another study to start anew"
        )
    return study


def _completed(study, here, defaults):
    """Return the settings of a study, with the defaults of arguments that did not exist when it began."""
    there = study.user_attrs.get("settings", {})
    new = here.get("fixed", {}).keys() & defaults.keys() - there.get("search", {}).keys()
    completed = {"fixed": {name: defaults[name] for name in new} | there.get("fixed", {})}
    return there and there | completed


def _check_file(path, create):
    if not path or path == ":memory:":
        raise ValueError("storage has no file; use e.g. sqlite:///study.db or journal:study.log")
    if not create and not os.path.exists(path):
        raise FileNotFoundError(f"storage: there is no file {path!r}; begin a study, or give its storage")
    check_writable(path, "storage")


def _lock_whole_transactions(engine):
    """Have SQLite lock a database before a transaction reads, or two workers take the same trial."""
    import sqlalchemy

    def connect(connection, record):
        connection.isolation_level = None

    def begin(connection):
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    # Connections made so far do without.
    engine.dispose()
    sqlalchemy.event.listen(engine, "connect", connect)
    sqlalchemy.event.listen(engine, "begin", begin)

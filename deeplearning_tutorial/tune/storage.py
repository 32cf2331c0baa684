"""Open the storage of studies: an SQLite file, another database, or a journal file."""

import importlib.util
import os
import random
import sqlite3
import time
from contextlib import contextmanager
from functools import partial

from deeplearning_tutorial.training.checkpoint import current_names
from deeplearning_tutorial.training.parameters import check_writable

_JOURNAL = "journal:"
# Seconds to wait while another process writes to the database file.
_SQLITE_TIMEOUT = 60
# Seconds to wait while another process creates the tables.
_CREATION_TIMEOUT = 30


def require_optuna():
    """Import Optuna; raise ImportError with the command that installs it."""
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
    """Open a storage of studies, and close it on exit.

    Parameters
    ----------
    url : str or path
        ``journal:PATH`` for a journal file, otherwise a database URL of SQLAlchemy, such as
        ``sqlite:///PATH`` or ``postgresql://USER@HOST/DATABASE``; or a Path to an SQLite file of any name.
    create : bool
        Whether to create a missing file.

    Yields
    ------
    optuna.storages.BaseStorage

    Raises
    ------
    ValueError
        If the URL cannot be parsed.
    OSError
        If a file is missing or cannot be written, or the database cannot be opened.
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
    url, safe_url = _resolve_url(url)
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
            f"storage={safe_url!r} is not a URL; use e.g. sqlite:///study.db or journal:study.log"
        ) from None
    if "?" in url and not address.query:
        raise ValueError(f"storage={safe_url!r}: the text after ? is not name=value; remove it")
    options, is_sqlite = {}, address.get_backend_name() == "sqlite"
    if is_sqlite:
        in_memory = address.query.get("mode") == "memory"
        _check_file("" if in_memory else (address.database or "").removeprefix("file:"), create)
        options["connect_args"] = {"timeout": _SQLITE_TIMEOUT}
    # Optuna passes the URL to str.format.
    url = url.replace("{", "{{").replace("}", "}}")
    with _open_database(url, address.render_as_string(), options, is_sqlite) as storage:
        yield storage


def _resolve_url(url):
    """Return a URL with a scheme that SQLAlchemy knows, and one without the password, for messages."""
    scheme, colon, remainder = url.partition(":")
    scheme = scheme.lower()
    if scheme in ("postgres", "postgresql"):
        # SQLAlchemy knows only one of the names, and defaults to the older driver.
        scheme = "postgresql" if importlib.util.find_spec("psycopg2") else "postgresql+psycopg"
    _secret, at, address = remainder.rpartition("@")
    return f"{scheme}{colon}{remainder}" if colon else url, f"{scheme}:***@{address}" if at else url


@contextmanager
def _open_database(url, safe_url, options, is_sqlite):
    """Open a database with Optuna; ``options`` are those of SQLAlchemy's ``create_engine``."""
    import optuna
    import sqlalchemy

    # Do not pool connections: a trial may outlast the server's timeout for idle ones.
    options = options | {"poolclass": sqlalchemy.pool.NullPool}
    storage = None
    give_up = time.monotonic() + _CREATION_TIMEOUT
    while storage is None:
        try:
            storage = optuna.storages.RDBStorage(url, engine_kwargs=options)
        except ImportError as error:
            driver = getattr(error.__cause__ or error, "name", None) or "a driver"
            raise ImportError(
                f"storage={safe_url} needs {driver}, which is not installed; install it, or name an "
                "installed driver, as in mysql+pymysql://"
            ) from error
        except (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
            cause = str(error.__cause__ or error).strip()
            exists_already = "already exists" in cause or isinstance(error, sqlalchemy.exc.IntegrityError)
            if exists_already and time.monotonic() < give_up:
                # Several workers start at the same moment, and another one is creating the tables.
                time.sleep(random.uniform(0.1, 0.5))
                continue
            advice = ""
            if isinstance(error, sqlalchemy.exc.NoSuchModuleError):
                advice = "; use e.g. sqlite:///study.db, postgresql://user@host/database or journal:study.log"
            message = f"storage={safe_url} cannot be opened: {cause.splitlines()[0]}{advice}"
            raise OSError(message) from error
    try:
        if is_sqlite:
            _lock_whole_transactions(storage.engine)
        yield storage
    finally:
        storage.remove_session()
        storage.engine.dispose()


def open_study(storage, name, settings=None, defaults=None):
    """Load a study, or create it.

    Parameters
    ----------
    storage : optuna.storages.BaseStorage
    name : str
    settings : dict of str to dict, optional
        Everything that affects results, serialisable as JSON. A study keeps its original settings unless all
        its trials failed. If ``settings`` is omitted, the study must exist.
    defaults : dict, optional
        Values, as JSON, of arguments that may not have existed when the study began.

    Returns
    -------
    optuna.Study

    Raises
    ------
    ValueError
        If the study does not exist, or was created with other settings.
    """
    optuna = require_optuna()
    if settings is None:
        names = optuna.get_all_study_names(storage)
        if name not in names:
            existing = ", ".join(names) or "none"
            raise ValueError(f"study={name!r} is not in this storage; existing studies: {existing}")
        return optuna.load_study(study_name=name, storage=storage)
    study = optuna.create_study(study_name=name, storage=storage, load_if_exists=True)
    trials = study.get_trials(deepcopy=False)
    original = _completed(study, settings, defaults or {})
    if original not in ({}, settings) and trials and all(trial.state.name == "FAIL" for trial in trials):
        # The original settings gave no result, but Optuna would still require the same choices.
        optuna.delete_study(study_name=name, storage=storage)
        study = optuna.create_study(study_name=name, storage=storage, load_if_exists=True)
    if not study.user_attrs:
        study.set_user_attr("settings", settings)
    stored = _completed(study, settings, defaults or {})
    differences = []
    for kind in {**settings, **stored}:
        here, there = settings.get(kind, {}), stored.get(kind, {})
        differences += [
            f"{kind} {key} is {there.get(key)!r} there and {here.get(key)!r} here"
            for key in {**here, **there}
            if there.get(key) != here.get(key)
        ]
    if differences:
        raise ValueError(
            f"study={name!r} was created with other settings: {'; '.join(differences)}. "
            "Use the same settings, or another study"
        )
    return study


def _completed(study, settings, defaults):
    """Return a study's settings, with defaults for arguments that did not exist when it began."""
    stored = study.user_attrs.get("settings", {})
    if "fixed" in stored:
        script = stored.get("script", {}).get("name", "").rpartition(".")[2]
        current, fixed = current_names(script, stored["fixed"])
        if current == script:
            stored = stored | {"fixed": fixed}
    new = settings.get("fixed", {}).keys() & defaults.keys() - stored.get("search", {}).keys()
    completed = {"fixed": {name: defaults[name] for name in new} | stored.get("fixed", {})}
    return stored and stored | completed


def _check_file(path, create):
    if not path or path == ":memory:":
        raise ValueError("storage has no file; use e.g. sqlite:///study.db or journal:study.log")
    if not create and not os.path.exists(path):
        raise FileNotFoundError(f"storage: there is no file {path!r}; start a study, or give its storage")
    check_writable(path, "storage")


def _lock_whole_transactions(engine):
    """Make SQLite lock the database before a transaction reads, so that no two workers get the same trial."""
    import sqlalchemy

    def connect(connection, record):
        connection.isolation_level = None

    def begin(connection):
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    # Close existing connections, which lack these events.
    engine.dispose()
    sqlalchemy.event.listen(engine, "connect", connect)
    sqlalchemy.event.listen(engine, "begin", begin)

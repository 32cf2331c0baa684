import threading

import optuna
import pytest

from deeplearning_tutorial.tune.storage import open_storage, open_study, require_optuna

SETTINGS = {"search": {"rate": "0.1:0.5"}, "fixed": {"n_epochs": 3}}


@pytest.mark.parametrize(
    "url",
    [
        "sqlite:///{}/study.db",
        "SQLite:///{}/study.db",
        "sqlite:///{}/{{study}}.db",
        "sqlite:///file:{}/study.db?uri=true",
        "journal:{}/study.log",
        "journal://{}/study.log",
        "Journal:{}/what?now#1%3F.log",
    ],
)
def test_a_study_is_loaded_again_with_its_trials(tmp_path, url):
    url = url.format(tmp_path)
    with open_storage(url) as storage:
        study = open_study(storage, "lenet", SETTINGS)
        study.tell(study.ask(), 0.5)
    with open_storage(url, create=False) as storage:
        assert open_study(storage, "lenet").best_value == 0.5
        assert open_study(storage, "lenet", SETTINGS).best_value == 0.5
    assert [path.suffix for path in tmp_path.iterdir()] in ([".db"], [".log"])


@pytest.mark.parametrize(
    "name", ["what?now.db", "a#b.db", "100%3F.db", "{x}.db", "数.db", "a b&c=d.db", ":memory:.db"]
)
def test_a_path_is_an_sqlite_file_of_exactly_this_name(tmp_path, name):
    with open_storage(tmp_path / name) as storage:
        study = open_study(storage, "lenet", SETTINGS)
        study.tell(study.ask(), 0.5)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    with open_storage(tmp_path / name, create=False) as storage:
        assert open_study(storage, "lenet").best_value == 0.5


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "PostgreSQL", "postgresql+psycopg"])
def test_each_name_of_postgresql_is_accepted(scheme):
    pytest.importorskip("psycopg")
    # Nothing listens on port 1.
    with pytest.raises(OSError) as caught, open_storage(f"{scheme}://me:secret@127.0.0.1:1/x"):
        pass
    assert "me:***@127.0.0.1:1/x cannot be opened: connection failed" in str(caught.value)


def test_a_driver_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "MySQLdb", None)
    with pytest.raises(ImportError) as caught, open_storage("mysql://me:secret@127.0.0.1:1/x"):
        pass
    message = "storage=mysql://me:***@127.0.0.1:1/x needs MySQLdb, which is not installed; "
    message += "install it, or name an installed driver"
    assert str(caught.value).startswith(message)


def test_other_settings_are_rejected_with_the_differences(tmp_path):
    other = {"search": {"rate": "0.1:0.9"}, "fixed": {"n_epochs": 3, "seed": 1}}
    with open_storage(f"sqlite:///{tmp_path}/study.db") as storage:
        open_study(storage, "lenet", SETTINGS)
        with pytest.raises(ValueError) as caught:
            open_study(storage, "lenet", other)
        differences = "search rate is '0.1:0.5' there and '0.1:0.9' here; fixed seed is None there and 1 here"
        assert differences in str(caught.value)
        assert open_study(storage, "another", other).trials == []


def test_an_argument_newer_than_the_study_has_its_default(tmp_path):
    defaults = {"n_epochs": 9, "sizes": [2, 2], "rate": 0.3, "kind": "max"}
    with open_storage(f"journal:{tmp_path}/study.log") as storage:
        open_study(storage, "lenet", SETTINGS)
        now = SETTINGS | {"fixed": {"n_epochs": 3, "sizes": [2, 2], "data": "digits"}}
        message = "created with other settings: fixed data is None there and 'digits' here"
        with pytest.raises(ValueError, match=message):
            open_study(storage, "lenet", now, defaults)
        now["fixed"].pop("data")
        assert open_study(storage, "lenet", now, defaults).user_attrs["settings"] == SETTINGS
        now["fixed"]["sizes"] = [2, 3]
        with pytest.raises(ValueError, match=r"fixed sizes is \[2, 2\] there and \[2, 3\] here"):
            open_study(storage, "lenet", now, defaults)


@pytest.mark.parametrize("url", ["sqlite:///{}/study.db", "journal:{}/study.log"])
def test_a_study_whose_trials_all_failed_accepts_other_settings(tmp_path, url):
    with open_storage(url.format(tmp_path)) as storage:
        study = open_study(storage, "lenet", SETTINGS)
        trial = study.ask()
        trial.suggest_categorical("kind", ["plain", "wrong"])
        study.tell(trial, state=optuna.trial.TrialState.FAIL)
        assert len(open_study(storage, "lenet", SETTINGS).trials) == 1
        other = open_study(storage, "lenet", {"search": {"kind": "plain,right"}})
        assert other.trials == [] and other.user_attrs["settings"] == {"search": {"kind": "plain,right"}}
        trial = other.ask()
        trial.suggest_categorical("kind", ["plain", "right"])
        other.tell(trial, 0.5)
        with pytest.raises(ValueError, match="was created with other settings"):
            open_study(storage, "lenet", SETTINGS)


def test_the_error_for_a_missing_study_lists_the_existing_ones(tmp_path):
    with open_storage(f"journal:{tmp_path}/study.log") as storage:
        with pytest.raises(ValueError, match="study='lenet' is not in this storage; existing studies: none"):
            open_study(storage, "lenet")
        open_study(storage, "mlp", SETTINGS)
        with pytest.raises(ValueError, match="existing studies: mlp"):
            open_study(storage, "lenet")


@pytest.mark.parametrize(
    "url, kind, message",
    [
        ("study.db", ValueError, "storage='study.db' is not a URL; use e.g. sqlite:///study.db"),
        ("sqlite://", ValueError, "storage has no file"),
        ("journal:", ValueError, "storage has no file"),
        ("sqlite:///nowhere/study.db", OSError, "there is no folder 'nowhere'"),
        ("journal:nowhere/study.log", OSError, "there is no folder 'nowhere'"),
        ("nosuch://user@127.0.0.1/x", OSError, "cannot be opened: Can't load plugin"),
        ("redis://127.0.0.1", OSError, "; use e.g. sqlite:///study.db, postgresql://user@host/database or"),
        ("sqlite:study.db", ValueError, "storage='sqlite:study.db' is not a URL; use e.g. sqlite:///study.db"),
        ("sqlite://study.db", ValueError, "storage has no file; use e.g. sqlite:///study.db"),
        ("sqlite:///file:study?mode=memory&uri=true", ValueError, "storage has no file"),
        ("sqlite:///what?now", ValueError, "storage='sqlite:///what?now': the text after ? is not name"),
        ("postgresql://me:secret@127.0.0.1:port/x", ValueError, ":***@127.0.0.1:port/x' is not a URL"),
        ("mysql:/me:secret@127.0.0.1", ValueError, "storage='mysql:***@127.0.0.1' is not a URL"),
        ("", ValueError, "storage='' is not a URL"),
    ],
)
def test_an_invalid_storage_is_rejected(tmp_path, monkeypatch, url, kind, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(kind) as caught, open_storage(url):
        pass
    assert message in str(caught.value)


def test_messages_never_contain_a_password():
    # Nothing listens on port 1.
    with pytest.raises(OSError) as caught, open_storage("postgresql+psycopg://me:secret@127.0.0.1:1/x"):
        pass
    assert "me:***@127.0.0.1:1/x cannot be opened" in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("url", ["sqlite:///study.db", "journal:study.log"])
def test_opening_without_create_makes_no_file(tmp_path, monkeypatch, url):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="there is no file 'study"), open_storage(url, create=False):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("n", range(5))
def test_workers_may_create_a_study_at_the_same_moment(tmp_path, n):
    names = []
    ready = threading.Barrier(4)

    def begin():
        ready.wait()
        with open_storage(f"sqlite:///{tmp_path}/study.db") as storage:
            names.append(open_study(storage, "lenet", SETTINGS).study_name)

    threads = [threading.Thread(target=begin) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert names == ["lenet"] * 4


def test_a_waiting_trial_in_sqlite_is_started_by_only_one_worker(tmp_path):
    url = f"sqlite:///{tmp_path}/study.db"
    started = []
    with open_storage(url) as storage:
        study = open_study(storage, "lenet", SETTINGS)
        for n in range(20):
            study.enqueue_trial({"rate": n / 100})

        def start():
            # Each thread has its own connections, as a process has.
            with open_storage(url) as storage:
                study = open_study(storage, "lenet", SETTINGS)
                started.extend(study.ask().number for _ in range(5))

        threads = [threading.Thread(target=start) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(started) == list(range(20))


def test_without_optuna_the_message_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "optuna", None)
    with pytest.raises(ImportError, match=r'pip install "deeplearning_tutorial\[tune\]"'):
        require_optuna()

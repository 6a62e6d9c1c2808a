"""A search that is stopped and taken up again; the jobs are functions, so that only the search is tried."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

optuna = pytest.importorskip("optuna")
pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")

import hydra  # noqa: E402

from graft.cli import TRUSTED  # noqa: E402
from graft.config import conf_dir  # noqa: E402
from graft.config.registration import register  # noqa: E402
from graft.errors import ConfigError  # noqa: E402
from graft.learning.pruning import Judge, mark_pruned, open_storage  # noqa: E402
from graft.sweep import hooks as sweep_module  # noqa: E402

SPACE = ("model=vgg_mini", "data=digits", "strategy=scratch", "optimizer.lr=tag(log,interval(1e-4,1))",
         "optimizer.weight_decay=interval(0.0,0.1)", "augment=choice(none,basic)")  # fmt: skip


@pytest.fixture(autouse=True)
def errors_come_to_us(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")


def search(folder: Path, monkeypatch: pytest.MonkeyPatch, task: Callable[[Any], float | None], *words: str) -> None:
    """`train.py -m sweep=optuna WORDS`, with `task` in the place of training."""
    told = [*SPACE, f"paths.outputs={folder}", "sweep_name=it", "hydra.sweeper.sampler.n_startup_trials=1", *words]
    monkeypatch.setattr(sys, "argv", ["train.py", "-m", "sweep=optuna", *told])
    register()
    sweep_module.register()
    hydra.main(config_path=str(conf_dir()), config_name="train", execution_whitelist=TRUSTED)(task)()


def trials(folder: Path) -> list[Any]:
    return optuna.load_study(study_name="it", storage=f"sqlite:///{folder}/sweep/it/study.db").get_trials()


def told(folder: Path, state: str) -> list[tuple[dict[str, Any], float]]:
    return [(trial.params, trial.value) for trial in trials(folder) if trial.state.name == state]


def quality(config: Any) -> float:
    return float(1 - abs(config.optimizer.lr - 0.03) - config.optimizer.weight_decay)


def test_stopped_after_two_it_goes_on_to_four_as_if_it_had_never_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[float] = []

    def stopped(config: Any) -> float:
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(quality(config))
        return done[-1]

    with pytest.raises(KeyboardInterrupt):
        search(tmp_path / "a", monkeypatch, stopped, "hydra.sweeper.n_trials=4")
    assert [trial.state.name for trial in trials(tmp_path / "a")] == ["COMPLETE"] * 2 + ["RUNNING"]
    asked = trials(tmp_path / "a")[2].params
    search(tmp_path / "a", monkeypatch, quality, "hydra.sweeper.n_trials=4")
    states = [trial.state.name for trial in trials(tmp_path / "a")]
    assert states == ["COMPLETE"] * 2 + ["FAIL"] + ["COMPLETE"] * 2
    assert trials(tmp_path / "a")[3].params == asked, "what was under way is asked again"

    search(tmp_path / "b", monkeypatch, quality, "hydra.sweeper.n_trials=4")
    assert told(tmp_path / "a", "COMPLETE") == told(tmp_path / "b", "COMPLETE")


def test_a_finished_search_runs_nothing_more_and_a_longer_one_only_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[int] = []

    def counted(config: Any) -> float:
        ran.append(config.search.trial)
        return quality(config)

    for wanted in (2, 2, 3):
        search(tmp_path, monkeypatch, counted, f"hydra.sweeper.n_trials={wanted}")
    assert ran == [0, 1, 2]
    assert len({str(trial.params) for trial in trials(tmp_path)}) == 3, "the sampler does not begin anew"


def test_failed_trials_stop_nothing_and_do_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    search(tmp_path, monkeypatch, lambda config: None, "hydra.sweeper.n_trials=2")
    assert [trial.state.name for trial in trials(tmp_path)] == ["FAIL", "FAIL"]
    search(tmp_path, monkeypatch, quality, "hydra.sweeper.n_trials=2")
    assert [trial.state.name for trial in trials(tmp_path)] == ["FAIL", "FAIL", "COMPLETE", "COMPLETE"]


def test_hopeless_trials_are_pruned_and_marked_and_losses_are_minimized(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def trained(config: Any) -> float:
        judge, number = Judge(config.search, 5), config.search.trial
        for epoch in range(5):
            if judge.hopeless(1.0 if number < 2 else 2.0, epoch):
                mark_pruned(config.search)
                return 2.0
        return 1.0

    pruner = ("search.pruner=median", "search.startup_trials=2", "search.warmup_epochs=1")
    search(tmp_path, monkeypatch, trained, *pruner, "optimized_metric=val/loss", "hydra.sweeper.n_trials=4")
    assert [trial.state.name for trial in trials(tmp_path)] == ["COMPLETE", "COMPLETE", "PRUNED", "PRUNED"]
    assert sorted(trials(tmp_path)[2].intermediate_values) == [0, 1], "the second epoch is the first to be judged"
    study = optuna.load_study(study_name="it", storage=f"sqlite:///{tmp_path}/sweep/it/study.db")
    assert study.direction.name == "MINIMIZE"


def test_a_trial_taken_up_again_knows_what_it_had_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(config: Any) -> float:
        Judge(config.search, 5).hopeless(0.5, 0)
        raise KeyboardInterrupt

    def resumed(config: Any) -> float:
        Judge(config.search, 5).hopeless(0.75, 1)
        return 0.75

    with pytest.raises(KeyboardInterrupt):
        search(tmp_path, monkeypatch, killed, "hydra.sweeper.n_trials=1")
    search(tmp_path, monkeypatch, resumed, "hydra.sweeper.n_trials=1")
    assert trials(tmp_path)[1].intermediate_values == {0: 0.5, 1: 0.75}


def test_the_storage_may_be_a_journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"journal:///{tmp_path}/study.log"
    search(tmp_path, monkeypatch, quality, f"search.storage={url}", "hydra.sweeper.n_trials=2")
    study = optuna.load_study(study_name="it", storage=open_storage(url))
    assert [trial.state.name for trial in study.get_trials()] == ["COMPLETE", "COMPLETE"]


def test_two_processes_are_not_at_one_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nested(config: Any) -> float:
        with monkeypatch.context() as inner, pytest.raises(ConfigError, match="another process"):
            search(tmp_path, inner, quality, "hydra.sweeper.n_trials=1")
        return 1.0

    search(tmp_path, monkeypatch, nested, "hydra.sweeper.n_trials=1")


def test_a_storage_that_cannot_be_opened_is_said() -> None:
    with pytest.raises(ConfigError, match=r"search\.storage=nonsense://x"):
        open_storage("nonsense://x")

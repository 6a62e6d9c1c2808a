"""Optuna searches that are stopped and resumed; functions replace the training of each trial."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

optuna = pytest.importorskip("optuna")

import hydra  # noqa: E402

from graft.cli import TRUSTED  # noqa: E402
from graft.config import conf_dir  # noqa: E402
from graft.config.registration import register  # noqa: E402
from graft.errors import ConfigError, TrainingError  # noqa: E402
from graft.learning.pruning import TrialReporter, mark_pruned, open_storage  # noqa: E402
from graft.sweep import hooks as sweep_module  # noqa: E402

SPACE = ("model=vgg_mini", "data=digits", "strategy=scratch", "optimizer.lr=tag(log,interval(1e-4,1))",
         "optimizer.weight_decay=interval(0.0,0.1)", "augment=choice(none,basic)")  # fmt: skip


@pytest.fixture(autouse=True)
def errors_come_to_us(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")


def search(folder: Path, monkeypatch: pytest.MonkeyPatch, task: Callable[[Any], float | None], *words: str) -> None:
    """`train.py -m sweep=optuna WORDS`, with `task` in place of training."""
    startup = [] if any("sampler=" in word for word in words) else ["hydra.sweeper.sampler.n_startup_trials=1"]
    overrides = [*SPACE, f"paths.outputs={folder}", "sweep_name=it", *startup, *words]
    monkeypatch.setattr(sys, "argv", ["train.py", "-m", "sweep=optuna", *overrides])
    register()
    sweep_module.register()
    hydra.main(config_path=str(conf_dir()), config_name="train", execution_whitelist=TRUSTED)(task)()


def trials(folder: Path) -> list[Any]:
    return optuna.load_study(study_name="it", storage=f"sqlite:///{folder}/sweep/it/study.db").get_trials()


def results(folder: Path, state: str) -> list[tuple[dict[str, Any], float]]:
    return [(trial.params, trial.value) for trial in trials(folder) if trial.state.name == state]


def quality(config: Any) -> float:
    return float(1 - abs(config.optimizer.lr - 0.03) - config.optimizer.weight_decay)


def test_a_search_stopped_after_two_trials_resumes_with_the_same_trials(
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
    assert results(tmp_path / "a", "COMPLETE") == results(tmp_path / "b", "COMPLETE")


def test_a_finished_search_runs_nothing_more_and_a_longer_one_only_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[int] = []

    def counted(config: Any) -> float:
        ran.append(config.search.trial)
        return quality(config)

    for n_trials in (2, 2, 3):
        search(tmp_path, monkeypatch, counted, f"hydra.sweeper.n_trials={n_trials}")
    assert ran == [0, 1, 2]
    assert len({str(trial.params) for trial in trials(tmp_path)}) == 3, "the sampler does not start over"


def test_failed_trials_neither_stop_the_search_nor_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    search(tmp_path, monkeypatch, lambda config: None, "hydra.sweeper.n_trials=2")
    assert [trial.state.name for trial in trials(tmp_path)] == ["FAIL", "FAIL"]
    search(tmp_path, monkeypatch, quality, "hydra.sweeper.n_trials=2")
    assert [trial.state.name for trial in trials(tmp_path)] == ["FAIL", "FAIL", "COMPLETE", "COMPLETE"]


def test_trials_are_pruned_and_marked_and_losses_are_minimized(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def trained(config: Any) -> float:
        judge, number = TrialReporter(config.search, 5), config.search.trial
        for epoch in range(5):
            if judge.should_prune(1.0 if number < 2 else 2.0, epoch):
                mark_pruned(config.search)
                return 2.0
        return 1.0

    pruner = ("search.pruner=median", "search.startup_trials=2", "search.warmup_epochs=1")
    search(tmp_path, monkeypatch, trained, *pruner, "optimized_metric=val/loss", "hydra.sweeper.n_trials=4")
    assert [trial.state.name for trial in trials(tmp_path)] == ["COMPLETE", "COMPLETE", "PRUNED", "PRUNED"]
    assert sorted(trials(tmp_path)[2].intermediate_values) == [0, 1], "the second epoch is the first to be judged"
    study = optuna.load_study(study_name="it", storage=f"sqlite:///{tmp_path}/sweep/it/study.db")
    assert study.direction.name == "MINIMIZE"


def test_a_requeued_trial_keeps_its_reported_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(config: Any) -> float:
        TrialReporter(config.search, 5).should_prune(0.5, 0)
        raise KeyboardInterrupt

    def resumed(config: Any) -> float:
        TrialReporter(config.search, 5).should_prune(0.75, 1)
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


def test_a_second_process_of_the_same_search_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nested(config: Any) -> float:
        with monkeypatch.context() as inner, pytest.raises(ConfigError, match="another process"):
            search(tmp_path, inner, quality, "hydra.sweeper.n_trials=1")
        return 1.0

    search(tmp_path, monkeypatch, nested, "hydra.sweeper.n_trials=1")


def test_an_invalid_storage_is_reported() -> None:
    with pytest.raises(ConfigError, match=r"search\.storage=nonsense://x"):
        open_storage("nonsense://x")


def test_a_grid_search_visits_each_combination_once_also_when_it_is_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = ("hydra/sweeper/sampler=grid", "optimizer.lr=choice(0.1,0.01)", "optimizer.weight_decay=range(0.0,0.3,0.1)",
            "augment=none", "hydra.sweeper.n_trials=20")  # fmt: skip
    ran: list[tuple[float, float]] = []

    def stopped(config: Any) -> float:
        if len(ran) == 2:
            raise KeyboardInterrupt
        return counted(config)

    def counted(config: Any) -> float:
        ran.append((config.optimizer.lr, config.optimizer.weight_decay))
        return quality(config)

    with pytest.raises(KeyboardInterrupt):
        search(tmp_path, monkeypatch, stopped, *grid)
    for _ in range(2):
        search(tmp_path, monkeypatch, counted, *grid)
    assert sorted(ran) == [(rate, decay) for rate in (0.01, 0.1) for decay in (0.0, 0.1, 0.2)]


def test_any_sampler_by_its_target_and_a_batch_of_trials_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampler = ("hydra/sweeper/sampler=target", "hydra.sweeper.sampler._target_=optuna.samplers.BruteForceSampler",
               "optimizer.lr=choice(1,2,3)", "optimizer.weight_decay=0")  # fmt: skip
    running: list[int] = []

    def counted(config: Any) -> float:
        running.append(sum(trial.state.name == "RUNNING" for trial in trials(tmp_path)))
        return float(config.optimizer.lr)

    search(
        tmp_path, monkeypatch, counted, *sampler, "augment=none", "hydra.sweeper.n_trials=3", "hydra.sweeper.n_jobs=2"
    )
    assert {trial.params["optimizer.lr"] for trial in trials(tmp_path)} == {1, 2, 3}
    assert running == [2, 2, 1]


def test_an_argument_that_the_sampler_does_not_take_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="n_trees"):
        search(tmp_path, monkeypatch, quality, "+hydra.sweeper.sampler.n_trees=3", "hydra.sweeper.n_trials=1")


def test_more_failures_than_allowed_end_the_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TrainingError, match=r"1 of 1 trials failed.*max_failure_rate=0\.5"):
        search(tmp_path, monkeypatch, lambda config: None, "hydra.sweeper.max_failure_rate=0.5")
    assert [trial.state.name for trial in trials(tmp_path)] == ["FAIL"]


def test_a_search_without_a_storage_names_the_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="Choose sweep=optuna"):
        search(tmp_path, monkeypatch, quality, "search.storage=null")

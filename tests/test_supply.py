"""Dependencies are bounded and pinned, and Graft opens no connection unless it has to download."""

import os
import re
import socket
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from commands import QUICK, ROOT

import graft

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PINNED = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines())


def requirements() -> list[str]:
    extras = PROJECT["project"]["optional-dependencies"].values()
    everything = [*PROJECT["project"]["dependencies"], *(word for extra in extras for word in extra)]
    everything += PROJECT["build-system"]["requires"]
    return [word for word in everything if not word.startswith("graft-vision[")]


@pytest.mark.parametrize("requirement", sorted(set(requirements())))
def test_every_dependency_has_a_lower_and_an_upper_bound(requirement: str) -> None:
    assert re.fullmatch(r"[\w-]+(\[\w+\])?>=[\w.]+,<[\w.]+", requirement)


def test_the_pins_lie_within_the_bounds_and_in_order() -> None:
    packaging = pytest.importorskip("packaging.requirements")
    pinned = {name.lower().replace("_", "-"): version for name, version in PINNED.items()}
    missing = []
    for word in set(requirements()):
        requirement = packaging.Requirement(word)
        version = pinned.get(requirement.name.lower())
        if version is None:
            missing.append(requirement.name)
        else:
            assert requirement.specifier.contains(version, prereleases=True), word
    assert set(missing) <= {"hatchling", "hydra-ray-launcher"}
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    assert lines == sorted(lines)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_on_local_data_opens_no_connection(workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def refuse(*arguments: Any, **_: Any) -> None:
        asked.append(arguments)
        raise OSError("no network")

    def guarded(call: Callable[..., Any]) -> Callable[..., Any]:
        def only_local(self: socket.socket, *arguments: Any) -> Any:
            # Loader processes hand over their batches through a socket that is a file of this machine.
            return (call if self.family == socket.AF_UNIX else refuse)(self, *arguments)

        return only_local

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, guarded(getattr(socket.socket, name)))
    for name in ("getaddrinfo", "gethostbyname", "create_connection"):
        monkeypatch.setattr(socket, name, refuse)
    words = (
        *QUICK,
        "model.weights=bundled",
        "strategy=finetune",
        "logger=[tensorboard,csv]",
        f"data.num_workers={workers}",
    )
    run = graft.train(*words, folder=tmp_path / "run", echo=False)
    assert graft.predict(*sorted((ROOT / "docs" / "images").glob("*.webp"))[:1], f"checkpoint={run.folder}")
    assert asked == []


def test_telemetry_of_dependencies_is_disabled() -> None:
    asked = "import graft, os; print(os.environ['RAY_USAGE_STATS_ENABLED'], os.environ['HF_HUB_DISABLE_TELEMETRY'])"
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "HF_"))}
    switches = [
        subprocess.run(
            [sys.executable, "-c", asked], env=env, capture_output=True, text=True, check=True
        ).stdout.split()
        for env in (clean, {**clean, "RAY_USAGE_STATS_ENABLED": "1"})
    ]
    assert switches == [["0", "1"], ["1", "1"]]

"""Without a network the default command fails at once with advice, and embedded data sets train."""

from pathlib import Path

from commands import train

OFFLINE = {"http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9"}


def test_the_default_names_addresses_local_paths_and_an_offline_alternative(tmp_path: Path) -> None:
    done = train(tmp_path / "run", **OFFLINE, TORCH_HOME=str(tmp_path / "torch"))
    assert done.code == 1
    assert "Traceback" not in done.err
    for word in (
        "https://download.pytorch.org/tutorial/hymenoptera_data.zip",
        str(tmp_path / "data" / "hymenoptera_data"),
        "https://download.pytorch.org/models/vgg16-397923af.pth",
        str(tmp_path / "torch" / "hub" / "checkpoints" / "vgg16-397923af.pth"),
        "data=faces",
        "strategy=scratch",
        "graft train experiment=quickstart",
    ):
        assert word in done.err
    assert done.summary["status"] == "failed"
    assert not (tmp_path / "data").exists(), "nothing is made before it is known to be of use"


def test_the_quickstart_needs_no_network_and_learns_faces_from_ten(tmp_path: Path) -> None:
    done = train(tmp_path / "run", "experiment=quickstart", "seed=1", **OFFLINE, TORCH_HOME=str(tmp_path / "torch"))
    assert done.code == 0, done.err
    summary = done.summary
    assert sum(summary["data"]["counts"]["train"].values()) == 10
    assert sum(summary["data"]["counts"]["test"].values()) == 190
    assert summary["weights"]["sha256"]
    assert summary["metrics"]["test/acc"] > 0.85, "from random weights it is about 0.8"

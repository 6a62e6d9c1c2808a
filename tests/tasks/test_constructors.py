"""A part whose constructor refuses its arguments: one clear answer, before weights are read."""

from pathlib import Path

import pytest

import graft
from graft.errors import ConfigError

MODULE = """
import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import Logger
from torchmetrics import Metric
from torchvision.transforms import v2


class Loss(torch.nn.CrossEntropyLoss):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)


class Net(torch.nn.Linear):
    def __init__(self, num_classes, **kwargs):
        super().__init__(3, num_classes, **kwargs)


class Sgd(torch.optim.SGD):
    def __init__(self, params, lr, weight_decay=0.0, **kwargs):
        super().__init__(params, lr, **kwargs)


class Schedule(torch.optim.lr_scheduler.StepLR):
    def __init__(self, optimizer, **kwargs):
        super().__init__(optimizer, **kwargs)


class Count(Metric):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)


class Blur(v2.GaussianBlur):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)


class Hook(pl.callbacks.LearningRateMonitor):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)


class Log(pl.loggers.CSVLogger):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)


class Data(pl.LightningDataModule):
    def __init__(self, **kwargs):
        super().__init__()
        if kwargs:
            raise ValueError(f"unknown: {kwargs}")


def frozen(stages, names, **kwargs):
    raise ValueError(f"unknown: {kwargs}")


class Figure:
    def __init__(self, **kwargs):
        raise TypeError(f"unknown: {kwargs}")


def figure(predictions, classes, style):
    raise AssertionError("never called")
"""
REFUSED = {
    "loss": "loss=target loss._target_=refusing.Loss loss.label_smothing=0.1",
    "model": "model=target model._target_=refusing.Net model.baias=false strategy=scratch",
    "data": "data=target data._target_=refusing.Data data.speed=3",
    "freeze": "freeze._target_=refusing.frozen freeze.evry=2",
    "optimizer": "optimizer=target optimizer._target_=refusing.Sgd optimizer.momentm=0.9",
    "scheduler": "scheduler=target scheduler._target_=refusing.Schedule scheduler.step_siz=2",
    "metrics.count": "metrics.count._target_=refusing.Count metrics.count.dst_sync=true",
    "augment.transforms[0]": "augment.transforms=[{_target_:refusing.Blur,kernel_siz:3}]",
    "callbacks.hook": "callbacks.hook._target_=refusing.Hook callbacks.hook.logging_intervl=step",
    "logger.log": "logger.log._target_=refusing.Log logger.log.save_dirr=here",
    "views.figure": "tta=true views.figure._target_=refusing.figure views.figure.style={_target_:refusing.Figure,a:1}",
    "review.figures.own": (
        "review.figures.own._target_=refusing.figure review.figures.own.style={_target_:refusing.Figure,a:1}"
    ),
    "trainer.profiler": "+trainer.profiler=simpel",
}


@pytest.mark.parametrize("key", REFUSED)
def test_a_constructor_that_refuses_its_arguments_is_named_before_any_long_work(
    key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "refusing.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)

    def too_late(*_: object, **__: object) -> None:
        pytest.fail("the weights were read")

    monkeypatch.setattr("graft.tasks.build.load_weights", too_late)
    words = ["data=digits", "model=vgg_mini", "model.weights=bundled", "freeze=none", "review=none", "logger=csv"]
    names = {word.partition("=")[0] for word in REFUSED[key].split()}
    kept = [word for word in words if word.partition("=")[0] not in names]
    if key == "model":
        kept.remove("model.weights=bundled")
    with pytest.raises(ConfigError) as refused:
        graft.train(*kept, *REFUSED[key].split(), folder=tmp_path / "run", echo=False)
    assert str(refused.value).startswith(key)

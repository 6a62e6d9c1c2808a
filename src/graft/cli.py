"""The `graft` command: selects the task, imports nothing large, and prints mistakes without a stack trace."""

import errno
import itertools
import os
import re
import sys
import traceback
from collections.abc import Callable, Collection, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from graft import __version__
from graft.config.overrides import quote_literals
from graft.errors import AbortCommand, ConfigError, GraftError, did_you_mean, nearest, pip_install
from graft.system.compat import end_process
from graft.system.escaping import printable
from graft.system.files import DISK_FULL
from graft.system.signals import exit_on_second_signal
from graft.system.startup import SAFE_PATH

if TYPE_CHECKING:
    from omegaconf import DictConfig

TASKS = {
    "train": "train a network, keep its best checkpoint and test it",
    "advise": "before training: which network, how much of it, how accurate it will be, how long it takes",
    "lr_find": "find a learning rate for graft train, with the same overrides",
    "evaluate": "compute the metrics of a checkpoint on its own data set or another",
    "soup": "average the weights of several checkpoints of the same network",
    "predict": "predict the classes of images with a checkpoint or an ImageNet network",
    "export": "export a checkpoint as ONNX, torch.export or state dict, and compare it with the original",
    "improve": "find wrong labels and bad images, forecast what more images would buy, choose what to label next",
    "inspect": "check a data set for broken, duplicate and unbalanced images; exit code 1 on an error",
    "pack": "write a data set as shards, for training from a folder, a web server or S3",
    "compare": "compare all finished runs in a table",
}

TRUSTED = ["graft.*", "hydra.*", "hydra_plugins.*", "logging.*"]
"""Targets that Hydra may instantiate; any other `_target_` is data for it (see Hydra's execution whitelist)."""

EXTRAS = {"submitit": "slurm", "ray": "ray"}
"""Word in the name of a Hydra plugin -> the extra that installs it; `sweep` installs the others."""

UNWRITABLE = (
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP,
)  # fmt: skip
"""Error codes for a path that cannot be written for another reason than a full disk."""

OUTPUTS = "paths.outputs=FOLDER for all of them, or the key that names this one (hydra.run.dir, folder, output)"

USAGE = """graft: transfer learning on images

  graft TASK [key=value ...]      graft TASK --help shows every key and group

{tasks}

  graft train experiment=quickstart             offline, on embedded data and weights
  graft train model=vgg16 strategy=finetune     the default: VGG16 fine-tuned on ants and bees
  tensorboard --logdir outputs                  view the runs
"""


def program(task: str | None = None) -> NoReturn:
    """`main` as a whole program, which ends as soon as its work is done."""
    code: object = None
    try:
        main(task)
    except SystemExit as ending:
        code = ending.code
    end_process(code)


def main(task: str | None = None) -> None:
    """Run `task`, or the one named by the first argument.

    Exit codes: 0 success, 1 a mistake or a failed run (HYDRA_FULL_ERROR=1 prints the stack trace), 2 unknown task,
    130 interrupted.
    """
    if task is None:
        task = _task_from_arguments()
    os.environ[SAFE_PATH] = "1"  # for the processes of a sweep, whichever launcher starts them
    exit_on_second_signal()
    full_error = os.environ.get("HYDRA_FULL_ERROR") == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises errors instead of printing them
    try:
        refuse_recorded_options(sys.argv[1:])
        sys.argv[1:] = quote_literals(sys.argv[1:], task)
        _hydra_app(task)()
        sys.stdout.flush()
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # the reader, e.g. `| head`, has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except (Exception, AbortCommand) as raised:
        if full_error:
            raise
        cause = raised.error if isinstance(raised, AbortCommand) else raised
        sys.stderr.write(printable(explain(cause, task) or traceback.format_exc(), lines=True))
        sys.exit(1)


def _task_from_arguments() -> str:
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    name = name.replace("-", "_") if name.replace("-", "_") in TASKS else name
    if name in TASKS:
        sys.argv = [f"{sys.argv[0]}", *sys.argv[2:]]
        return name
    if name == "--version":
        print(f"graft {__version__}")
        sys.exit(0)
    if name in ("-h", "--help", "help"):
        print(usage())
        sys.exit(0)
    sys.stderr.write(f"graft: no task {name!r}.{nearest(name, TASKS, most=1)}\n\n{usage()}")
    sys.exit(2)


def refuse_recorded_options(words: Sequence[str]) -> None:
    """Refuse to use the recorded configuration in a run's `.hydra/` as options or as a command.

    It names modules to import and folders to write to, and may come from an untrusted source.

    Raises:
        ConfigError: names the folder and the way out.
    """
    for before, word in itertools.pairwise(["", *words]):
        option, _, value = word.partition("=")
        if option.startswith("--e") and "--experimental-rerun".startswith(option):
            raise ConfigError(
                f"{option}: a run's folder is not executed as a command: it names modules to import and folders to "
                "write to.\n"
                "Copy the overrides that you need from its .hydra/overrides.yaml; resume=RUN_FOLDER resumes a run."
            )
        named = f"{before} {word}" if before.startswith("-") else word
        options = named.startswith(("-c", "--config-")) or "hydra.searchpath" in option
        if options and ".hydra" in re.split(r"[^\w.-]+", f"{named} {os.path.realpath(value or word)}"):
            raise ConfigError(
                f"{named}: the recorded configuration in .hydra is not used as options, because it names modules to "
                "import and folders to write to.\nCopy what you need to your own folder, or give it as overrides."
            )


def usage() -> str:
    """Text of `graft --help`."""
    return USAGE.format(tasks="\n".join(f"  {name:<10}{what}" for name, what in TASKS.items()))


def _hydra_app(task: str) -> Callable[[], Any]:
    import hydra

    from graft.config import conf_dir
    from graft.config.registration import register

    register(task)
    if task == "train":
        import_module("graft.sweep.hooks").register()
    return hydra.main(config_path=str(conf_dir()), config_name=task, execution_whitelist=TRUSTED)(_runner(task))


def _runner(task: str) -> "Callable[[DictConfig], float | None]":
    """The function that Hydra calls; it imports the module of the task."""

    def run(config: "DictConfig") -> float | None:
        from hydra.core.hydra_config import HydraConfig
        from hydra.types import RunMode

        from graft.config.registration import SCHEMAS
        from graft.config.unknown_keys import refuse_unknown_keys

        multirun = HydraConfig.get().mode == RunMode.MULTIRUN
        module = "graft.sweep.job" if task == "train" and multirun else f"graft.tasks.{task}"
        try:
            refuse_unknown_keys(config, SCHEMAS[task])
            result: float | None = import_module(module).main(config)
        except Exception as error:
            if multirun or explain(error, task) is None:
                raise
            # Hydra prints "Error executing job with overrides: […]" before any Exception, but not before this one
            raise AbortCommand(error) from error
        return result

    return run


def explain(error: BaseException, task: str = "train") -> str | None:
    """Error message for a mistake of the user in `task`; None for an internal error, which needs a stack trace."""
    from hydra.errors import CompactHydraException, MissingConfigException
    from omegaconf.errors import OmegaConfBaseException

    if isinstance(error, GraftError):
        return f"{error}\n"
    if (full := _os_error_cause(error, DISK_FULL)) is not None:
        again = "resume=auto continues from the last checkpoint" if task == "train" else "run the command again"
        file = full.filename or ("the run's folder" if task == "train" else "the output of this command")
        return f"{file}: cannot be written ({full.strerror}).\nMake room; then {again}.\n"
    refused = _os_error_cause(error, UNWRITABLE)
    if refused is not None and refused.filename is not None:
        reason = f"{refused.filename}: cannot be opened or written ({refused.strerror})"
        return f"{reason}.\nGive another folder: {OUTPUTS}.\n"
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, option = _group_and_option(str(error.missing_cfg_file))
        options = list(error.options or _options(group))
        return (
            f"{group}={option}: there is no such {group or 'config'}."
            + (_suggest_option(group, option, options) or nearest(option, options, cutoff=0.5))
            + (f"\nThere are: {' '.join(sorted(options))}" if options else "")
            + "\n"
        )
    if unknown := re.match("Could not override '([^']+)'", str(error)):
        from graft.config.registration import SCHEMAS
        from graft.config.unknown_keys import no_such_key

        return f"{no_such_key(unknown[1], SCHEMAS[task])}\n"
    if "Unknown plugin class" in str(error):
        extra = next((extra for word, extra in EXTRAS.items() if word in str(error)), "sweep")
        return f"{error}\nIt is not installed: {pip_install(extra)}\n"
    if isinstance(error, CompactHydraException | OmegaConfBaseException):
        lines = [str(error)]
        if isinstance(error.__cause__, OmegaConfBaseException):
            lines.append(str(error.__cause__))
        hidden = ("full_key:", "object_type=", "reference_type=")
        shown = [line for text in lines for line in text.splitlines() if not line.strip().startswith(hidden)]
        return "\n".join(dict.fromkeys(shown)) + "\n"
    return None


def _group_and_option(file: str) -> tuple[str, str]:
    """Split "data//photos" into ("data", "/photos"): the group is the longest prefix that is a folder of conf/."""
    from graft.config import conf_dir

    parts = file.split("/")
    most = parts.index("") if "" in parts else len(parts) - 1  # an option that is an absolute path begins there
    depth = next((n for n in range(most, 0, -1) if (conf_dir() / "/".join(parts[:n])).is_dir()), 0)
    return ("/".join(parts[:depth]), "/".join(parts[depth:])) if depth else (file.rpartition("/")[0], parts[-1])


def _suggest_option(group: str, option: str, options: Sequence[str]) -> str:
    """Return " Did you mean …?" for an option that has no file: a network, an optimizer or a data set."""
    if group == "model":
        from graft.models import suggest_model

        return suggest_model(option, options)
    if group == "optimizer":
        from graft.config.optimizers import known_optimizers
        from graft.config.targets import find_package

        missing = "" if find_package("timm") else f" Those of timm need it: {pip_install('timm')}"
        return nearest(option, [*options, *known_optimizers()]) + missing
    if group == "data":
        from graft.data.sources import suggest_data

        return did_you_mean(filter(None, [suggest_data(option)]))
    return ""


def _os_error_cause(error: BaseException | None, codes: Collection[int]) -> OSError | None:
    """The first OSError with one of these codes in the chain of causes of `error`, because libraries wrap it."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in codes:
            return error
        error = error.__cause__ or error.__context__
    return None


def _options(group: str) -> list[str]:
    from graft.config import conf_dir

    return [file.stem for file in (conf_dir() / Path(group)).glob("*.yaml")] if group else []


if __name__ == "__main__":
    program()

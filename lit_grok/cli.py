"""The command line: what the keys may be, which replicas they ask for, and errors in one sentence.

PyTorch, Lightning and the results are imported by what needs them, so that help and typos do not wait for them.
"""

import itertools
import logging
import os
import re
import shlex
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from importlib.metadata import version
from io import StringIO
from pathlib import Path
from textwrap import indent
from types import NoneType
from typing import Annotated, Any, Literal, NoReturn

import yaml
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, InstantiationException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationKeyError, OmegaConfBaseException
from pydantic import Field
from tqdm import tqdm

from lit_grok import choices, schema
from lit_grok.choices import CONFIG_DIR
from lit_grok.files import ReadError, WriteError
from lit_grok.schema import RESUMABLE, Number, Seed, UsageError, check, meant, no_such, spelled

log = logging.getLogger("lit_grok")

EXIT_FAILED, EXIT_USAGE = 1, 2
#: What replicas may differ in: lists, whose product is trained at once.
REPLICATED = {
    "init_scale": Number,
    "weight_decay": Number,
    "seed": Annotated[Seed, Field(description="a whole number from 0 to 4294967295, a list, or a range such as 0:10")],
}
#: More replicas than this are not even listed; how many fit into memory depends on the network.
MOST_REPLICAS = 10**5


OmegaConf.register_new_resolver("task_keys", choices.task_keys, replace=True)

#: The directories that this process made for its runs.
_made: set[Path] = set()


class Refused(SystemExit):
    """The end of a job, and the line that says why."""

    def __init__(self, reason: str, code: int):
        super().__init__(code)
        self.reason = reason


def exit_with(message: str, code: int = EXIT_USAGE) -> NoReturn:
    """End with one line and this exit code."""
    reason = " ".join(str(message).split())
    sys.stderr.write(f"error: {reason}\n")
    raise Refused(reason, code)


@contextmanager
def bad_input(run_dir: str | Path) -> Iterator[None]:
    """While everything is still being built a refused value is the user's to correct; the directories made go again."""
    from lightning.fabric.utilities.exceptions import MisconfigurationException

    built = False
    try:
        yield
        built = True
    except InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, ValueError | MisconfigurationException):
            raise UsageError(str(cause)) from None
        key = re.search(r"full_key: (\S+)", str(error))
        if isinstance(cause, TypeError):
            raise UsageError(f"{key[1]}: {cause}" if key else str(cause)) from None
        raise (cause or error) from None
    except (ValueError, MisconfigurationException) as error:
        raise UsageError(str(error)) from None
    finally:
        if not built:
            for path in [path for path in (Path(run_dir), *Path(run_dir).parents) if path in _made]:
                with suppress(OSError):  # somebody has put something into it
                    path.rmdir()


@contextmanager
def writing(run_dir: str | Path) -> Iterator[None]:
    """Where a file cannot be written, say how to go on."""
    from lit_grok.results import has_checkpoint

    try:
        yield
    except WriteError as error:
        hint = (
            f"go on with: python train.py resume={run_dir}"
            if has_checkpoint(run_dir)
            else "start again: nothing was saved yet"
        )
        raise WriteError(f"{error}; what was written before is whole; once there is room, {hint}") from error


@contextmanager
def usage_errors() -> Iterator[None]:
    """Turn what bad input raises into one line; anything else is a bug and keeps its traceback."""
    try:
        yield
    except (UsageError, ReadError) as error:
        exit_with(str(error))
    except WriteError as error:
        exit_with(str(error), EXIT_FAILED)
    except OverrideParseException as error:
        how = "lists are written [1,2], without spaces, and special characters in quotes within quotes: 'KEY=\"a;b\"'"
        how = how if "=" in error.override else f"write {error.override}=VALUE, without spaces"
        exit_with(f"{error.override}: cannot be read as KEY=VALUE; {how}")
    except MissingConfigException as error:
        group, _, value = str(error.missing_cfg_file).rpartition("/")
        options = [o for o in error.options or [] if o]
        if not options:
            exit_with(str(error).splitlines()[0])
        exit_with(f"{group}={value}: unknown{meant(value, options)}; allowed: {', '.join(options)}")
    except yaml.MarkedYAMLError as error:
        file = error.problem_mark.name if error.problem_mark else "a configuration file"
        exit_with(f"{file}: not readable as YAML ({_problem(error)})")
    except (HydraException, OmegaConfBaseException) as error:
        exit_with(_composition(error))
    except ValueError as error:
        if not str(error).startswith("Config group override must be"):
            raise
        groups = "task, network, optimizer, callbacks, logger and trainer"
        exit_with(f"{str(error)[0].lower()}{str(error)[1:]}: {groups} take a name")


def _problem(error: yaml.MarkedYAMLError) -> str:
    mark = error.problem_mark
    return f"line {mark.line + 1}, column {mark.column + 1}: {error.problem}" if mark else str(error)


def check_arguments(arguments: Sequence[str]) -> None:
    """Refuse an option that is none of Hydra's: keys are written without dashes.

    Raises:
        UsageError: For the first such argument.
    """
    parser = get_args_parser()
    for argument in parser.parse_known_args(list(arguments))[1]:
        if not argument.startswith("-"):
            raise UsageError(f"{argument}: options such as -m and --config-dir=DIR stand before or behind all keys")
        options = [option for action in parser._actions for option in action.option_strings]
        instead = f"; write {argument.lstrip('-')}" if "=" in argument else meant(argument, options)
        raise UsageError(f"{argument}: no such option{instead}; keys are written KEY=VALUE, without dashes")


def _composition(error: Exception) -> str:
    """What Hydra does not make of the command line or of a file, in words of this project."""
    message = str(error)
    if missing := re.match(r"Could not (?:override|delete from config\.) '([^']+)'(?:\.| does not exist)", message):
        return _no_such_key(missing[1])
    if several := re.match(r"Ambiguous value for argument '(([^=]+)=(.*))'", message):
        what = "to train all at once" if several[2] in REPLICATED else "for a list"
        return (
            f"{several[1]}: write {several[2]}=[{several[3]}] {what}, "
            f"or -m {several[1]} to queue a run for each, one after the other"
        )
    if there := re.match(r"Could not append to config. An item is already at '([^']+)'", message):
        return f"+{there[1]}: it is there already: write {there[1]}=VALUE, without the plus"
    key = getattr(error, "full_key", None)
    if follows := re.match(r"Interpolation key '([^']+)' not found", message):
        return f"{key}: it follows the key {follows[1]}, which there is not"
    return f"{key}: {message.splitlines()[0]}" if key else message.splitlines()[0]


def _no_such_key(key: str) -> str:
    """Say which keys there are beside the one that is not, and which of them was meant."""
    arguments = [argument.split(",")[0] for argument in sys.argv[1:] if "=[" not in argument]  # of a sweep, the first
    if any(argument.startswith("resume=") for argument in arguments):
        return f"{key}: a resumed run keeps its configuration; only {', '.join(RESUMABLE)} may be given"
    config = choices.defaults(arguments)
    if OmegaConf.select(config, key, default=arguments) is not arguments:
        return f"{key}: there is no {key.split('.')[0]}, which ~{key.split('.')[0]} has taken out"
    path = key.split(".")[:-1]
    while path and not isinstance(OmegaConf.select(config, ".".join(path)), DictConfig):
        path = path[:-1]
    names = list(OmegaConf.select(config, ".".join(path)) if path else config)
    message = no_such(key, names, "".join(f"{part}." for part in path))
    for file in sorted((CONFIG_DIR / "task").glob("*.yaml")):
        task = f"task={file.stem}"
        others = choices.defaults([*(a for a in arguments if not a.startswith("task=")), task])
        if OmegaConf.select(others, key, default=arguments) is not arguments:
            return message.replace("no such key", f"no such key here, but with {task}")
    more = f"; for what its class takes besides, write +{key}=VALUE" if "_target_" in names else ""
    return f"{message}{more}"


def replicas(config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every replica that init_scale, seed and weight_decay ask for, as their product.

    Args:
        config: The resolved configuration.

    Returns:
        One mapping per replica: init_scale, seed, weight_decay, seed_init, seed_data, seed_order.

    Raises:
        UsageError: For an empty list, and for values that are negative, not finite or not whole seeds.

    Example:
        >>> both = replicas({"init_scale": [1, 10], "seed": "0:2", "weight_decay": 0, "seeds": {"data": 7}})
        >>> [(r["init_scale"], r["seed_init"], r["seed_data"]) for r in both]
        [(1.0, 0, 7), (1.0, 1, 7), (10.0, 0, 7), (10.0, 1, 7)]
    """
    scales, decays, seeds = (_listed(key, config[key]) for key in REPLICATED)
    _refuse_absurd("init_scale, weight_decay and seed", len(scales) * len(decays) * len(seeds))
    given = {k: v for k, v in (config.get("seeds") or {}).items() if v is not None}
    streams = {name: check(f"seeds.{name}", value, Seed) for name, value in given.items()}
    found = [
        {
            "init_scale": float(scale),
            "seed": seed,
            "weight_decay": float(decay),
            **{f"seed_{name}": streams.get(name, seed) for name in ("init", "data", "order")},
        }
        for scale, decay, seed in itertools.product(scales, decays, seeds)
    ]
    if len({tuple(replica.values()) for replica in found}) < len(found):
        lists = {"init_scale": scales, "weight_decay": decays, "seed": seeds}
        key, value = next((key, v) for key, values in lists.items() for v in values if values.count(v) > 1)
        raise UsageError(f"{key}={spelled(config[key])}: has {spelled(value)} twice")
    return found


def threads(asked: Literal["auto"] | int) -> int:
    """Number of threads to train on; ``auto`` is the physical cores that this process may use.

    Jobs that run side by side share them: joblib's evenly, and one of SLURM has the cores it asked for.
    """
    import joblib

    if asked != "auto":
        return asked
    cores = joblib.cpu_count(only_physical_cores=True)
    if not HydraConfig.initialized() or HydraConfig.get().mode is RunMode.RUN:
        return cores
    launcher = HydraConfig.get().launcher
    if (jobs := launcher.get("n_jobs")) is not None:
        return max(1, cores // jobs) if jobs > 0 else 1
    return min(cores, launcher.get("cpus_per_task") or cores)


def _listed(key: str, value: Any) -> list[Any]:
    items: list[Any] = []
    for item in value if isinstance(value, list | tuple) else [value]:
        ends = re.fullmatch(r"(\d+):(\d+)", item) if isinstance(item, str) else None
        if ends:
            first, end = int(ends[1]), int(ends[2])
            _refuse_absurd(f"{key}={item}", end - first)
            items += range(first, end)
        else:
            items.append(item)
    if not items:
        raise UsageError(f"{key}={spelled(value)}: an empty list; give at least one value")
    return [check(key, item, REPLICATED[key]) for item in items]


def _refuse_absurd(asked: str, count: int) -> None:
    if count > MOST_REPLICAS:
        raise UsageError(
            f"{asked}: {count} replicas; no more than {MOST_REPLICAS} train at once (-m and commas queue runs)"
        )


@contextmanager
def resolved(config: DictConfig, claim: Callable[[dict[str, Any]], Path]) -> Iterator[dict[str, Any]]:
    """The configuration of this run as plain containers, checked; that of an earlier run where it is resumed.

    The run's directory is made; for a dry run it is a temporary one, gone afterwards.

    Args:
        config: The configuration as it was composed.
        claim: Makes the run's directory, given the resolved configuration; `claim_fresh`, unless it is one of a sweep.
    """
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))  # for callbacks and networks in a file of the user's own
    checking: AbstractContextManager[None] = nullcontext()
    check("resume", config.resume, schema.Keys.__annotations__["resume"])
    if config.resume is None:
        written: Any = OmegaConf.to_container(config)
        try:
            plain: Any = OmegaConf.to_container(config, resolve=True)
        except InterpolationKeyError:
            _refuse_misfit()
            raise
        usual = choices.defaults(HydraConfig.get().overrides.task, besides=["experiment"])
        _refuse_contradictions(written, OmegaConf.to_container(usual))
        schema.check_keys(plain)
        _refuse_strangers(written)
    else:
        from lit_grok.resume import restoring, resumed

        plain = written = resumed(config)
        checking = restoring(plain["resume"])
    with checking:
        asked = replicas(plain)
        if "wandb" in str(plain["logger"].get("_target_")):
            _refuse_several_in_a_sweep(len(asked))
            # Before PyTorch: its classes search all modules there are, for 0.5 s afterwards.
            with suppress(ImportError):
                import wandb.sdk.launch  # noqa: F401
        schema.check_targets(plain, written)
        if config.resume is None and not choices.fits(plain):
            _refuse_misfit()
        _check_accelerator(plain["accelerator"])
    for name in ("lightning.pytorch", "lightning.fabric", "wandb"):  # imported by now, which sets their levels
        logging.getLogger(name).setLevel(logging.ERROR)
    run_dir, temporary = plain["run_dir"], None
    if HydraConfig.get().mode is RunMode.MULTIRUN and "group" in plain["logger"]:
        started = Path(HydraConfig.get().sweep.dir).name
        plain["logger"]["group"] = plain["logger"]["group"] or f"{plain['task']} {started}"
    if plain["dry_run"]:
        plain["callbacks"] = {k: v for k, v in plain["callbacks"].items() if k not in ("progress", "grok_time")}
        run_dir = temporary = _dry_run_directory(run_dir)
    elif not plain["resume"]:
        run_dir = str(claim(plain))
    plain["run_dir"] = plain["trainer"]["default_root_dir"] = run_dir
    try:
        yield plain
    finally:
        if temporary:
            shutil.rmtree(temporary)


def _refuse_misfit() -> None:
    """Refuse a network of another task, where one is chosen: the keys that it lacks there say less."""
    task, network = (HydraConfig.get().runtime.choices.get(group) for group in ("task", "network"))
    given: Any = OmegaConf.to_container(HydraConfig.get().overrides.task)  # as typed: one may follow what is not there
    if f"network={network}" in given:
        choices.refuse_misfit(str(task), str(network))


def _dry_run_directory(run_dir: str) -> str:
    """A directory on the disk that the run's own would be on."""
    there = next(path for path in (Path(run_dir), *Path(run_dir).parents) if path.is_dir())
    try:
        return tempfile.mkdtemp(prefix=".dry_run_", dir=there)
    except OSError as error:
        raise UsageError(f"run_dir={run_dir}: cannot be written ({error.strerror})") from None


def _refuse_strangers(written: dict[str, Any]) -> None:
    """Refuse a key at the top that nothing reads, such as ``+epoch=5``."""
    for override in HydraConfig.get().overrides.task:
        if several := re.fullmatch(r"(task|optimizer|logger|trainer)=\[(.*)\]", override):
            raise UsageError(f"{override}: one at a time; -m {several[1]}={several[2]} queues a run for each")
    read = {*re.findall(r"\$\{(\w+)", str(written)), *schema.Keys.__annotations__}
    for key in written.keys() - read:
        if key == "experiment" and isinstance(written[key], dict):
            raise UsageError("experiment: its file must begin with the line '# @package _global_'")
        raise UsageError(no_such(key, [known for known in written if known in read]))


def _refuse_contradictions(written: dict[str, Any], defaults: Any, path: tuple[str, ...] = ()) -> None:
    """Refuse ``trainer.max_epochs=5``, which the configuration makes the same as ``epochs``: that is the one to set."""
    for name in [name for name in written if name in defaults]:
        here, default = written[name], defaults[name]
        follows = re.fullmatch(r"\$\{(\w+)\}", default) if isinstance(default, str) and path else None
        if isinstance(here, dict) and isinstance(default, dict):
            _refuse_contradictions(here, default, (*path, name))
        elif follows and here != default:
            key = ".".join((*path, name))
            raise UsageError(f"{key}={spelled(here)}: always the same as {follows[1]}: set {follows[1]} instead")


def _refuse_several_in_a_sweep(count: int) -> None:
    """Refuse more than one replica under an agent of a W&B sweep: all would log into the one run that it made."""
    if os.environ.get("WANDB_SWEEP_ID") and (count > 1 or HydraConfig.get().mode is RunMode.MULTIRUN):
        raise UsageError(
            "init_scale, weight_decay and seed: the agent of a W&B sweep starts one replica at a time: "
            "give one value each, without -m, and the lists to the sweep (or choose logger=csv)"
        )


def _check_accelerator(name: str) -> None:
    from lightning.pytorch.accelerators import CPUAccelerator, CUDAAccelerator, MPSAccelerator

    kinds = {"cpu": CPUAccelerator, "gpu": CUDAAccelerator, "cuda": CUDAAccelerator, "mps": MPSAccelerator}
    allowed = ["auto", *(name for name, kind in kinds.items() if kind.is_available())]
    if name not in allowed:
        raise UsageError(f"accelerator={name}: not on this machine; allowed: {', '.join(allowed)}")


def names_its_directory() -> bool:
    """Whether the command says where the results go; the default name is that of the moment."""
    return any(o.startswith("run_dir=") for o in HydraConfig.get().overrides.task)


def claim_fresh(config: Mapping[str, Any]) -> Path:
    """Create the run's directory; where it exists the default name gets a counter and any other is refused."""
    run_dir, chosen = config["run_dir"], names_its_directory()
    names = (Path(run_dir if i == 0 else f"{run_dir}-{i}") for i in itertools.count())
    try:
        for path in names:
            missing = [parent for parent in path.parents if not parent.exists()]
            path.parent.mkdir(parents=True, exist_ok=True)
            _made.update(missing)
            try:
                path.mkdir()
                _made.add(path)
            except FileExistsError:
                if chosen and (not path.is_dir() or any(path.iterdir())):
                    raise UsageError(
                        f"run_dir={path}: exists and is not empty; choose another, or go on with resume={path}"
                    ) from None
                if not chosen:
                    continue
            tempfile.TemporaryFile(dir=path).close()
            return path
    except OSError as error:
        raise UsageError(f"run_dir={run_dir}: cannot be written ({error.strerror})") from None
    raise AssertionError("the names never end")


def log_to_console(job: str = "") -> None:
    """Send the project's own messages to the terminal, above the progress bar.

    Args:
        job: Stands before each line of them, where several jobs write to one terminal.
    """
    log.setLevel(logging.DEBUG)
    log.propagate = False
    log.handlers = [_Console(job)]


def log_to_file(run_dir: str | Path) -> None:
    """Keep the messages in the run's directory too, with what is too much for the console."""
    path = Path(run_dir) / "train.log"
    try:
        handler = _File(path)
    except OSError as error:
        raise WriteError(f"{path}: cannot be written ({error.strerror})") from error
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log.handlers = [log.handlers[0], handler]


class _File(logging.FileHandler):
    def handleError(self, record: logging.LogRecord) -> None:
        """A full disk is told by what cannot be saved, once."""


class _Console(logging.Handler):
    def __init__(self, job: str):
        super().__init__(logging.INFO)
        self._job = job

    def emit(self, record: logging.LogRecord) -> None:
        prefix = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
        text = indent(prefix + record.getMessage(), self._job)
        tqdm.write(text, file=sys.stderr if prefix else sys.stdout)
        sys.stdout.flush()


def provenance(config: Mapping[str, Any]) -> dict[str, str]:
    """What the results say of the run: task, title, versions, and the command line.

    The title names the first of the task's own keys, its size, and whatever else of them is not as usual.
    """
    others = {key: value for key, value in config.items() if key not in schema.Keys.__annotations__}
    own = [key for key, value in others.items() if not isinstance(value, dict | NoneType | bool) and value != "none"]
    usual = _usual(config["task"])
    own.sort(key=lambda key: list(usual).index(key) if key in usual else len(usual))
    own = own[:1] + [key for key in own[1:] if key not in usual or usual[key] != config[key]]
    packages = ("lit_grok", "torch", "lightning", "numpy", "numba")
    return {
        "task": config["task"],
        "title": ", ".join([config["task"], *(f"{key} = {spelled(config[key])}" for key in own)]),
        "versions": ", ".join(f"{name} {_version(name)}" for name in packages),
        "matmul_precision": config["trainer"].get("matmul_precision", "highest"),
        "command": shlex.join(["python", Path(sys.argv[0]).name, *sys.argv[1:]]),
    }


def _usual(task: str) -> dict[str, Any]:
    """What the files of a task, first, and of the networks set at the top level; a task of the user's own has none."""
    found: dict[str, Any] = {}
    for file in (CONFIG_DIR / "task" / f"{task}.yaml", *sorted((CONFIG_DIR / "network").glob("*.yaml"))):
        if file.exists():
            found |= {key: value for key, value in yaml.safe_load(file.read_text()).items() if key not in found}
    return found


def _version(package: str) -> str:
    if package == "lit_grok":  # imported from its checkout, as a rule, and not installed
        from lit_grok import __version__

        return __version__
    return version(package)


def table(records: Sequence[Mapping[str, Any]]) -> str:
    """What became of every replica, a line each; 80 columns are enough.

    Example:
        >>> record = {"init_scale": 10.0, "seed": 0, "weight_decay": 3e-5, "status": "grokked", "t_train": 12}
        >>> record |= {"t_test": 59, "train_accuracy": 1.0, "test_accuracy": 0.99987, "weight_norm": 31.4159}
        >>> print(table([record, record | {"seed": 1, "status": "memorised", "t_test": None}]))
                                                      train   test  weight
        init_scale  seed  status     t_train  t_test    acc    acc    norm
                10     0  grokked         12      59  1.000  1.000   31.42
                10     1  memorised       12       –  1.000  1.000   31.42
    """
    from rich.console import Console
    from rich.table import Table

    columns = {"init_scale": "init_scale", "seed": "seed"}
    if len({record["weight_decay"] for record in records}) > 1:
        columns["weight_decay"] = "weight\ndecay"
    columns |= {"status": "status", "t_train": "t_train", "t_test": "t_test"}
    columns |= {"train_accuracy": "train\nacc", "test_accuracy": "test\nacc", "weight_norm": "weight\nnorm"}
    found = Table(box=None, padding=(0, 2, 0, 0))
    for name, header in columns.items():
        found.add_column(header, justify="left" if name == "status" else "right", no_wrap=True)
    for record in records:
        found.add_row(*[cell(name, record[name]) for name in columns])
    Console(file=(text := StringIO()), width=1000).print(found)
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines())


def longer(records: Sequence[Mapping[str, Any]]) -> str:
    """Whether a run that is complete can go on.

    Example:
        >>> longer([{"epochs": 120, "stopped": True}])
        'a stopping rule has ended it after 120 epochs'
        >>> longer([{"epochs": 1000, "stopped": False}])
        'epochs=… makes it longer'
    """
    stopped = any(record.get("stopped") for record in records)
    return (
        f"a stopping rule has ended it after {records[0]['epochs']} epochs" if stopped else "epochs=… makes it longer"
    )


def cell(name: str, value: Any) -> str:
    """A number of a record as a table shows it: accuracies to three places, nothing as a dash."""
    if value is None:
        return "–"
    return f"{value:{'.3f' if name.endswith('accuracy') else '.4g'}}" if isinstance(value, float) else str(value)

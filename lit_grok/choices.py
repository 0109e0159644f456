"""What the files of the configuration's groups say: a task's keys, for the help, and the networks that fit a task."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationKeyError

from lit_grok.schema import UsageError, locate, spelled

CONFIG_DIR = Path(__file__).parents[1] / "configs"


def defaults(overrides: Sequence[str], besides: Sequence[str] = ()) -> DictConfig:
    """The configuration that the chosen files of the configs' groups make, without any other value that is given."""
    folders = {path.name for path in CONFIG_DIR.iterdir() if path.is_dir()}
    groups = folders - {"hydra", "sweep", *besides}  # Hydra's own files, and those of `wandb sweep`
    return composed([o for o in overrides if re.split(r"[=@/]", o.lstrip("+~"))[0] in groups and "=" in o])


def composed(overrides: Sequence[str]) -> DictConfig:
    """The configuration of a command line, within a run of train.py as well as outside of one."""
    if GlobalHydra.instance().is_initialized():
        return compose("train", overrides=list(overrides))
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        return compose("train", overrides=list(overrides))


def refuse_misfit(task: str, network: str) -> None:
    """Refuse a network that is another task's; of a task or a network of the user's own, only these themselves can say.

    Raises:
        UsageError: Naming the networks that fit.
    """
    ours = all((CONFIG_DIR / group / f"{name}.yaml").exists() for group, name in (("task", task), ("network", network)))
    if ours and network not in (fitting := fitting_networks(task)):
        raise UsageError(f"network={network}: this network is not for task={task}; allowed: {', '.join(fitting)}")


def fitting_networks(task: str) -> list[str]:
    """Names of the networks that fit a task of this project, as their files are."""
    found = []
    for file in sorted((CONFIG_DIR / "network").glob("*.yaml")):
        config = defaults([f"task={task}", f"network={file.stem}"])
        with suppress(InterpolationKeyError):  # one lacks a key that the other follows, such as P
            parts = ("network", "datamodule", "callbacks")
            if fits({part: OmegaConf.to_container(config[part], resolve=True) for part in parts}):
                found.append(file.stem)
    return found


def fits(config: Mapping[str, Any]) -> bool:
    """Whether the network has the sizes of the data, where both name them, and offers what the analyses need."""
    network, data = config["network"], config["datamodule"]
    if any(network[name] != data[name] for name in network.keys() & data.keys() - {"_target_"}):
        return False
    offers = locate(network["_target_"], "network._target_")
    analyses = [each for each in config["callbacks"].values() if isinstance(each, dict)]
    needs = [getattr(locate(each["_target_"], "callbacks"), "requires", ()) for each in analyses if "_target_" in each]
    return all(_may_offer(offers, protocol) for protocols in needs for protocol in protocols)


def _may_offer(network: Any, protocol: type) -> bool:
    try:
        return issubclass(network, protocol)
    except TypeError:  # it is a function, or attributes are asked for: only the network itself can say
        return True


def task_keys(_root_: DictConfig) -> str:
    """The keys that the files of the chosen task and network set, their values and what is said of them, as a text.

    What follows another key is left out. A resolver of OmegaConf's, for ``configs/hydra/help``.
    """
    choices = _root_.hydra.runtime.choices
    groups = ("task", "network", "optimizer", "callbacks")
    chosen = {group: choices.get(group) for group in groups if choices.get(group)}  # ~GROUP takes one out
    with_it = ", ".join(f"{group}={name}" for group, name in chosen.items() if group != "task")
    lines = [f"Keys of task={chosen.get('task')} ({with_it}), and their values"]
    folders = [Path(source.path) for source in _root_.hydra.runtime.config_sources if source.schema == "file"]
    rows: dict[str, tuple[str, str]] = {}
    for group in ("task", "network"):
        for folder in folders:
            if (file := folder / group / f"{chosen.get(group)}.yaml").exists():
                for key, comment in _keys(file.read_text(), group):
                    if _follows(_root_, key):  # perhaps what is not there
                        continue
                    value = OmegaConf.select(_root_, key, default=None)
                    if not isinstance(value, DictConfig):
                        rows[key] = _spelled(value), comment
    width, values = max(map(len, rows), default=0), max((len(value) for value, _ in rows.values()), default=0)
    values = min(values, 12)  # a longer value moves its comment
    lines += [f"  {key:<{width}}  {value:<{values}}  {comment}".rstrip() for key, (value, comment) in rows.items()]
    return "\n".join(lines)


def _keys(text: str, package: str) -> Iterator[tuple[str, str]]:
    """Dotted name and comment of every key of a file, but for the name of the task and what Hydra reads."""
    path: list[tuple[int, str]] = [] if text.startswith("# @package _global_") else [(-1, package)]
    for line in text.splitlines():
        found = re.match(r"( *)(\w+):([^#]*)(?:#\s*(.*))?$", line)
        if not found:
            continue
        indent = len(found[1])
        path = [(depth, name) for depth, name in path if depth < indent] + [(indent, found[2])]
        names = [name for _, name in path]
        if names[0] not in ("defaults", "task") and found[2] != "_target_":
            yield ".".join(names), found[4] or ""


def _follows(config: DictConfig, key: str) -> bool:
    parent, _, name = key.rpartition(".")
    node = OmegaConf.select(config, parent) if parent else config
    return OmegaConf.is_interpolation(node, name) or OmegaConf.is_missing(node, name)


def _spelled(value: Any) -> str:
    return spelled(OmegaConf.to_container(value) if OmegaConf.is_config(value) else value)

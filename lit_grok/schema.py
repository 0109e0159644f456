"""What every key of a configuration may hold: one schema, read off the constructors that the keys are passed to.

The keys at the top are typed here, in `Keys`. Any other belongs to an object: ``datamodule.shuffle`` goes to the
parameter ``shuffle`` of the class that ``datamodule._target_`` names, and that parameter's annotation is its type. A
class from elsewhere is checked by its own annotations, as far as it has any. What is only spelled otherwise is put
right: 1e3 for the whole number 1000, yes for true.
"""

import difflib
import inspect
import re
import traceback
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, MutableMapping, MutableSequence, Sequence
from functools import cache, reduce
from importlib import import_module
from operator import or_
from os import PathLike
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypedDict, Union, get_args, get_origin, get_type_hints

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, WrapValidator
from pydantic.fields import FieldInfo


class UsageError(Exception):
    """Bad input; its message names the key, the value and what is allowed."""


Count = Annotated[int, Field(ge=1, description="a whole number, 1 or more")]
Steps = Annotated[int, Field(ge=0, description="a whole number, 0 or more")]
Number = Annotated[float, Field(ge=0, allow_inf_nan=False, description="a finite number, 0 or more")]
Share = Annotated[float, Field(ge=0, le=1, description="a number between 0 and 1")]
Directory = Annotated[str, Field(min_length=1, description="a directory")]
Object = Annotated[dict[str, Any], Field(description="an object, such as {_target_: my_lab.MyClass}")]
Seed = Annotated[int, Field(ge=0, lt=2**32, description="a whole number from 0 to 4294967295")]


#: Keys in which a run and its continuation may differ.
RESUMABLE = ("epochs", "threads", "accelerator", "checkpoint_every")


class Keys(TypedDict):
    """The keys at the top; a task adds its own, which are checked where they are used.

    ``init_scale``, ``weight_decay`` and ``seed`` may be lists, which `lit_grok.cli.replicas` takes apart.
    """

    task: str
    init_scale: Any
    weight_decay: Any
    seed: Any
    seeds: dict[Literal["init", "data", "order"], Any] | None
    epochs: Count
    learning_rate: Number
    batch_size: Count | None
    warmup_steps: Steps
    loss: str
    label_noise: Share
    log_every: Count
    checkpoint_every: Count
    accelerator: str
    threads: Literal["auto"] | Count
    replicas_at_once: Literal["auto"] | Count | None
    run_dir: Directory
    resume: Directory | None
    dry_run: bool
    network: Object
    datamodule: Object
    module: Object
    optimizer: Object
    callbacks: dict[str, Any]
    logger: Object
    trainer: Object


def check_keys(config: dict[str, Any]) -> None:
    """Check the keys at the top, in place.

    Raises:
        UsageError: For the first that is missing or of another type.
    """
    for key, hint in get_type_hints(Keys, include_extras=True).items():
        if key not in config:
            raise UsageError(f"{key}: missing, and no run can do without it")
        config[key] = check(key, config[key], hint)


def check_targets(config: Mapping[str, Any], written: Mapping[str, Any]) -> None:
    """Check, in place, the arguments of every object that a configuration names with ``_target_``.

    Args:
        config: The resolved configuration.
        written: The same as it was written: where that says ``${P}``, the message names P.

    Raises:
        UsageError: For the first ``_target_`` that cannot be imported, the first argument of another type, and the
            first that a class does not have.
    """
    for name in ("network", "datamodule", "module", "optimizer", "logger", "trainer"):
        if "_target_" not in config[name]:
            raise UsageError(f"{name}: give {name}._target_, a class, and its arguments")
    for path, node in _nodes(config):
        key = ".".join(path)
        target = locate(node["_target_"], f"{key}._target_")
        known, others = parameters(target)
        for name in [name for name in node if name not in _HYDRAS]:
            if name in known:
                hint, default = known[name]
                if not (type(node[name]) is type(default) and node[name] == default):
                    typed = _typed_key((*path, name), written)
                    node[name] = check(typed, node[name], hint, strict=_is_ours(target))
            elif not others:
                raise UsageError(no_such(f"{key}.{name}", known, f"{key}."))


def check(key: str, value: Any, hint: Any, strict: bool = False) -> Any:
    """One value against the annotation of its parameter.

    Args:
        key: Its name, for the message.
        value: What it is, in numbers, strings, lists and mappings.
        hint: The annotation.
        strict: Whether to refuse what only an object can be; otherwise nobody knows what the class makes of it.

    Returns:
        The value, spelled as the annotation says.

    Raises:
        UsageError: Where it is something else.

    Example:
        >>> check("epochs", 1e3, int), check("datamodule.shuffle", "yes", bool)
        (1000, True)
        >>> check("network.hidden", 512, Sequence[int])
        Traceback (most recent call last):
        lit_grok.schema.UsageError: network.hidden=512: must be a list of whole numbers, such as [512]
    """
    if any(True for _ in _nodes(value)):  # an object, with a class of its own
        return value
    spellable = _spellable(hint)
    if spellable is None:
        if strict and value is not None:
            raise UsageError(f"{key}={spelled(value)}: must be an object: give {key}._target_")
        return value
    adapter = _adapter(spellable)
    try:
        return adapter.validate_python(value)
    except ValidationError:
        pass
    try:
        example = f", such as {spelled(adapter.validate_python([value]))}"
    except ValidationError:
        example = ""
    raise UsageError(f"{key}={spelled(value)}: must be {_described(spellable)}{example}")


@cache
def _adapter(hint: Any) -> TypeAdapter:
    return TypeAdapter(hint, config=ConfigDict(coerce_numbers_to_str=True))


def parameters(target: Any) -> tuple[dict[str, tuple[Any, Any]], bool]:
    """Annotation and default of everything that a class or function takes, by name, and whether it may take more.

    The ``**options`` of this project's constructors go on to the next one; nobody knows what others do with theirs.

    Example:
        >>> class Base:
        ...     def __init__(self, every: int = 1): ...
        >>> class Derived(Base):
        ...     def __init__(self, order: float, **options): ...
        >>> known, others = parameters(Derived)
        >>> list(known), others
        (['order', 'every'], False)
    """
    known: dict[str, tuple[Any, Any]] = {}
    is_class = isinstance(target, type)
    functions = [vars(c)["__init__"] for c in target.__mro__ if "__init__" in vars(c)] if is_class else [target]
    for function in functions:
        try:
            taken = list(inspect.signature(function).parameters.values())[is_class:]  # without self
            hints = get_type_hints(function, include_extras=True)
        except (TypeError, ValueError, NameError, AttributeError):  # not written in Python, or annotated in riddles
            return known, True
        for parameter in taken:
            if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
                known.setdefault(parameter.name, (hints.get(parameter.name, Any), parameter.default))
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in taken):
            return known, not is_class
        if not _is_ours(function):
            break
    return known, True


def locate(target: str, key: str) -> Any:
    """What a ``_target_`` names.

    Raises:
        UsageError: Where it cannot be imported: no such module, no such name in it, or an error in the module.
    """
    parts, found = target.split("."), None
    if not all(parts):
        raise UsageError(f"{key}={target}: not a dotted name such as my_lab.MyCallback")
    for i, part in enumerate(parts):
        name = ".".join(parts[: i + 1])
        try:
            found = getattr(found, part) if hasattr(found, part) else import_module(name)
        except Exception as error:
            raise UsageError(f"{key}={target}: {_why_not(name, found, error)}") from None
    if inspect.ismodule(found):
        raise UsageError(f"{key}={target}: this is a module: name a class in it")
    return found


def no_such(key: str, names: Collection[str], prefix: str = "") -> str:
    """A message for a key that is not: which of those that are was meant, and all of them.

    Example:
        >>> no_such("seeds.inti", ["init", "data"], "seeds.")
        'seeds.inti: no such key (did you mean seeds.init?); allowed: seeds.init, seeds.data'
    """
    name, dot, rest = key.removeprefix(prefix).partition(".")
    near = meant(name, names, f"{prefix}{{}}{dot}{rest}")
    return f"{key}: no such key{near}; allowed: {', '.join(f'{prefix}{name}' for name in names)}"


def meant(name: str, there: Iterable[str], written: str = "{}") -> str:
    """The nearest name there is, as a question and as it would be written; empty where none is near.

    Example:
        >>> meant("prunning", ["ipr", "pruning"])
        ' (did you mean pruning?)'
    """
    names = {other.lower(): other for other in there}
    close = difflib.get_close_matches(name.lower(), names, n=1)
    return f" (did you mean {written.format(names[close[0]])}?)" if close else ""


def spelled(value: Any) -> str:
    """A value as one types it on the command line.

    Example:
        >>> spelled([1, None, True, "a"])
        '[1,null,true,a]'
    """
    if isinstance(value, list | tuple):
        return f"[{','.join(map(spelled, value))}]"
    if isinstance(value, Mapping):
        return f"{{{','.join(f'{name}:{spelled(each)}' for name, each in value.items())}}}"
    return str(value).lower() if isinstance(value, bool) else "null" if value is None else str(value)


#: Keys of a mapping with a ``_target_`` that say how it is called and are not passed on.
_HYDRAS = ("_target_", "_partial_", "_convert_", "_recursive_", "_args_")

_LISTS = (list, tuple, set, frozenset, Sequence, MutableSequence, Collection, Iterable)
_MAPPINGS = (dict, Mapping, MutableMapping)


def _is_ours(thing: Any) -> bool:
    return str(getattr(thing, "__module__", "")).split(".")[0] in ("lit_grok", "callbacks", "datamodules")


def _nodes(tree: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    """Path and mapping of everything that has a ``_target_``."""
    if isinstance(tree, dict):
        if isinstance(tree.get("_target_"), str):
            yield path, tree
        for name, value in tree.items():
            yield from _nodes(value, (*path, str(name)))
    elif isinstance(tree, list):
        for i, value in enumerate(tree):
            yield from _nodes(value, (*path, str(i)))


def _typed_key(path: Sequence[str], written: Any) -> str:
    """The key that sets a value: its own, or the one that it is written to follow."""
    for name in path:
        if not isinstance(written, str):
            written = written[int(name) if isinstance(written, list) else name]
    follows = re.fullmatch(r"\$\{([\w.]+)\}", written) if isinstance(written, str) else None
    return follows[1] if follows else ".".join(path)


def _number(value: Any, validate: Callable[[Any], Any]) -> Any:
    """True is no number, though Python counts it as 1; a whole number stays one where any is asked for."""
    if isinstance(value, bool):
        raise ValueError("a truth value")
    number = validate(value)
    return value if isinstance(value, int) else number


def _spellable(hint: Any) -> Any:
    """What of an annotation can be written in a configuration: numbers, strings, lists, mappings; None for nothing."""
    base, arguments = get_origin(hint) or hint, get_args(hint)
    if base in (Any, object):
        return Any
    if base in (int, float):
        return Annotated[base, WrapValidator(_number)]
    if base in (bool, str, NoneType, Literal):
        return hint
    if base is Annotated:
        inner = _spellable(arguments[0])
        ours = [field for field in hint.__metadata__ if isinstance(field, FieldInfo)]
        return Annotated[inner, *ours] if ours and inner is not None else inner
    if base in (Union, UnionType):
        members = [spellable for each in arguments if (spellable := _spellable(each)) is not None]
        return Any if Any in members else reduce(or_, members) if set(members) - {NoneType} else None
    if base in _MAPPINGS:
        kinds = [_spellable(each) for each in arguments or (Any, Any)]
        return None if None in kinds else dict[kinds[0], kinds[1]]  # type: ignore[valid-type]
    if base in _LISTS:
        items = [_spellable(each) for each in arguments or (Any,) if each is not ...]
        return None if None in items else list[reduce(or_, items)]  # type: ignore[misc]
    if isinstance(base, type) and issubclass(base, PathLike):
        return str
    return None


_NAMES = {
    int: ("a whole number", "whole numbers"),
    float: ("a number", "numbers"),
    bool: ("true or false", "truth values"),
    str: ("a string", "strings"),
    NoneType: ("null", "nulls"),
    Any: ("anything", "values"),
}


def _described(hint: Any, plural: bool = False) -> str:
    """A spellable annotation in words."""
    base, arguments = get_origin(hint) or hint, get_args(hint)
    if base in _NAMES:
        return _NAMES[base][plural]
    if base is Annotated:
        said = [field.description for field in hint.__metadata__ if getattr(field, "description", None)]
        return said[0] if said else _described(arguments[0], plural)
    if base is Literal:
        return ("" if plural or len(arguments) == 1 else "one of ") + ", ".join(map(spelled, arguments))
    if base in (Union, UnionType):
        kinds = list(dict.fromkeys(_described(each, plural) for each in arguments))
        return " or ".join(kind for kind in kinds if kind != _NAMES[int][plural] or _NAMES[float][plural] not in kinds)
    if base is dict:
        return "mappings" if plural else "a mapping {KEY: VALUE}"
    return "lists" if plural else f"a list of {_described(arguments[0], plural=True)}"


def _why_not(name: str, owner: Any, error: Exception) -> str:
    """Why a dotted name cannot be had from its owner, a module or a class, or where there is none, be imported."""
    if not isinstance(error, ModuleNotFoundError):
        said = error.msg if isinstance(error, SyntaxError) else error
        return f"{name} cannot be imported: {_place(error)}: {type(error).__name__}: {said}"
    if error.name and not f"{name}.".startswith(f"{error.name}."):
        return f"{name} cannot be imported: it imports {error.name}, which is not installed"
    if owner is None:
        here = [path.stem for path in Path.cwd().glob("*.py")]
        return f"there is no module {name}, neither installed nor in this folder{meant(name, here)}"
    owner_name, _, part = name.rpartition(".")
    own = [other for other, each in vars(owner).items() if getattr(each, "__module__", "") == owner_name]
    names = list(getattr(owner, "__all__", own))
    near = meant(part, names) or f"; it has {', '.join(names[:20]) or 'nothing of its own'}"
    return f"{owner_name} has no {part}{near}"


def _place(error: BaseException) -> str:
    """File and line where an error was raised."""
    if isinstance(error, SyntaxError):
        return f"{error.filename}, line {error.lineno}"
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{last.filename}, line {last.lineno}"

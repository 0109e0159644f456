"""The data of the tasks, for replicas that are trained together."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datamodules.base import HasGrid, HasResiduePairs, ReplicaDataModule
    from datamodules.digits import DigitsDataModule
    from datamodules.ising import IsingDataModule
    from datamodules.modular_arithmetic import ModularArithmeticDataModule
    from datamodules.polygons import PolygonsDataModule

_HOMES = {
    "DigitsDataModule": "digits",
    "HasGrid": "base",
    "HasResiduePairs": "base",
    "ReplicaDataModule": "base",
    "IsingDataModule": "ising",
    "ModularArithmeticDataModule": "modular_arithmetic",
    "PolygonsDataModule": "polygons",
}

__all__ = [
    "DigitsDataModule",
    "HasGrid",
    "HasResiduePairs",
    "IsingDataModule",
    "ModularArithmeticDataModule",
    "PolygonsDataModule",
    "ReplicaDataModule",
]


def __getattr__(name: str) -> Any:
    # Imported when first asked for, so that the sampler beside them can be used without Lightning.
    if name in _HOMES:
        return getattr(import_module(f"datamodules.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'datamodules' has no attribute {name!r}")

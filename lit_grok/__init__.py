"""A PyTorch Lightning laboratory for grokking."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lit_grok.results import load_network, open_run, open_runs

__all__ = ["load_network", "open_run", "open_runs"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # Imported when first asked for: the command line answers help and typos before PyTorch and xarray are there.
    if name in __all__:
        from lit_grok import results

        return getattr(results, name)
    raise AttributeError(f"module 'lit_grok' has no attribute {name!r}")

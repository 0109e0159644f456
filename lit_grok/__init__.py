"""A PyTorch Lightning laboratory for grokking."""

from lit_grok.results import load_network, open_run, open_runs

__all__ = ["load_network", "open_run", "open_runs"]

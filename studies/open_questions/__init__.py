"""What *Grokking vs. Learning* (arXiv 2502.01739) and its readers have left open."""

"""*Grokking vs. Learning: Same Features, Different Encodings* (arXiv 2502.01739), by the numbers of its figures."""

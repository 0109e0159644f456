"""*Grokking vs. Learning: Same Features, Different Encodings* (Manning-Coe et al., arXiv 2502.01739), by figure number."""

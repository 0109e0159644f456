"""*Beyond Progress Measures* (arXiv 2504.03162), figure by figure."""

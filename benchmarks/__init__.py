"""What the project costs: ``python -m benchmarks`` measures it all."""

"""Arithmetic that is faster than PyTorch's own: whole training steps of one replica, compiled for the CPU.

A replica is a row of numbers. Everything here works on one row (its parameters, their gradient, the moments of its
optimiser), knows nothing of other replicas, and releases Python's lock, so that rows can be trained in threads and a
row ends up the same to the last bit whatever stands beside it.
"""

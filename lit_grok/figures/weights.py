"""Stub."""


def weights_development(*a):
    raise NotImplementedError

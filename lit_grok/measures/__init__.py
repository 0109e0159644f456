"""The science as pure functions of tensors, arrays and plain networks."""

"""A task outside the project's own folders, complete."""

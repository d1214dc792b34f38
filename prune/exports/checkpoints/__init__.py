"""Checkpoints of models whose layers differ, in forms that load without prune."""

"""Hydra configuration of the suite; ``config.yaml`` is the root."""

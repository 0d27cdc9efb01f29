"""Hydra's configuration of training runs."""

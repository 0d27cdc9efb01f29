"""tttLRM: explicit 3D Gaussians from posed views by test-time training.

A library of its own: it knows nothing of the benchmark suite in ``bench``.
"""

__version__ = "0.1.0"

"""Triton kernels of the accelerated model: matrix products with what follows them, and passes over tokens and pixels.

Only :mod:`tttlrm.accelerated` uses them; importing this package needs neither Triton nor a GPU.
"""

"""Teach a Stable Diffusion model new concepts in the spectral space of its weights, then combine them.

Import what you need from the modules; this file stays empty so that `--help` answers at once.
"""

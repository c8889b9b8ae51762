"""Builds the bundled base: art -> scenes -> VAE, CLIP, identity encoder -> UNet -> package data.

`python -m tools.toybox build` runs every stage in order; each stage checkpoints and resumes.
Nothing in here is imported by the library.
"""

"""From several concept files to one fused file. Run as `python -m fusion`."""

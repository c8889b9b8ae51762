"""From a folder of photos to one concept file."""

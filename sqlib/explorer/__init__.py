"""One network and a few images, explained while one looks: `explain` and explore.ipynb."""

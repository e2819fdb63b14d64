"""Scripts that draw workflows and pictures: `python3 dev.py tool` lists them."""

"""Tools on model files: each declares what it asks (`arguments`), and the command line and the page are made of that."""

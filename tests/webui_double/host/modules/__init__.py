"""The host's modules, as far as an extension and its tests ask for them."""

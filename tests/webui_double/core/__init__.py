"""What the double is made of besides the host's own modules: files of small models, and how it is started."""

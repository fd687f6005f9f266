"""Pictures and captions: what is found in a folder, how an example is made from it, and which examples a step sees."""

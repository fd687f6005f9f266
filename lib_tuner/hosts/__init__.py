"""Where the model lives: the standalone program here, the WebUI in a file of its own."""

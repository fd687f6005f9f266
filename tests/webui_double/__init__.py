"""A double of AUTOMATIC1111's WebUI 1.9.4 for tests: its `modules.*` and the Lora extension's `networks` on a small model, with their awkward behaviours."""

"""The probes, by what they ask about."""

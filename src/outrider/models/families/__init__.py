"""What the config of a family says about its network."""

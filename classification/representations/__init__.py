"""What representations hold: the parts of `classification.interpret`."""

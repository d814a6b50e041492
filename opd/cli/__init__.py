"""What a person types: one command per function, its options read from the settings and from the recipes themselves."""

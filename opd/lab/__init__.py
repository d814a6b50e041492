"""Small worlds in which everything can be checked exactly."""

"""Execute and time a model for real."""

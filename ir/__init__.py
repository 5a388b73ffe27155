"""What a model is and how to look at it. Imports nothing of the other rooms."""

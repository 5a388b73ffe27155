"""Replace one linear operator by a cheaper chain of them, where that is faster and the outputs hardly tell."""

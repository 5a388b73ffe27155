"""Measure a machine into the numbers of a cost estimate: small models, timed by node, and a fit of the formula."""

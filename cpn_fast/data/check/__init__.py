"""`cpn check-data`: a data set read once, with its problems and costs."""

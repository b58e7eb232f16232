"""`cpn evaluate`: masks or a run against ground truth."""

"""`cpn reproduce`: the paper's tables and figures on any source, the paper's figure beside ours."""

"""Reports on merges: the only package that knows both the theory and the merging."""

"""How anything of a report is computed once: pieces, their cache, processes and devices."""

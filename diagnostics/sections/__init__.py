"""The sections of a report: one file each, with its template beside it; ``table`` lists them."""

"""A search: what it may choose, who tries what, and what came out."""

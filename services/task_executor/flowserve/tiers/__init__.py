"""A rank's side of the relational tensor cache: blocks moved from tier to tier."""

"""Models by their hub ids: fetched once, checked, kept under the commit they came from."""

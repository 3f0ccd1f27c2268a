"""Generated from proto/deepflow/v1 by `make proto`; never edited by hand."""

"""Records that must survive: versioned values behind a generation marker."""

"""The TE-shell: what makes an engine a member of the cluster. Never imports torch."""

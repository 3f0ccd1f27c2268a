"""What a pod is made of here: the one place that knows who runs processes."""

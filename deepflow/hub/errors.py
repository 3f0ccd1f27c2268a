"""What keeps a model from being fetched; each message says how to mend it."""


class HubError(Exception):
    """The model is not here, and why."""


class Offline(HubError):
    """The hub cannot be reached, or is not to be."""


class BadAnswer(HubError):
    """The hub, or what stands between, said something that no hub says."""

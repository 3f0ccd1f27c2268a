"""How many tokens back each layer sees, itself included, as families write it; None = all."""

from deepflow.core.config_values import ConfigValues

LayerWindows = tuple[int | None, ...]
WINDOW_DEFAULT = 4096
_KINDS = ("full_attention", "sliding_attention")


def no_windows(config: ConfigValues, num_layers: int) -> LayerWindows:
    return (None,) * num_layers


def one_window(config: ConfigValues, num_layers: int) -> LayerWindows:
    """The same in every layer, unless it is null."""
    return (_sliding_window(config),) * num_layers


def windows_by_layer(config: ConfigValues, num_layers: int) -> LayerWindows:
    """Only with `use_sliding_window`: in the layers that `layer_types` names, else in the upper
    ones."""
    window = _sliding_window(config) if config.flag("use_sliding_window") else None
    kinds = config.get("layer_types")
    if kinds is None:
        first = config.get("max_window_layers", 28)
        if type(first) is not int or first < 0:
            raise config.error(f"max_window_layers must be an integer, 0 or more, not {first!r}")
        return tuple(None if layer < first else window for layer in range(num_layers))
    if not isinstance(kinds, list) or len(kinds) != num_layers:
        raise config.error(f"layer_types must be a list of {num_layers}, one a layer")
    for kind in kinds:
        if kind not in _KINDS:
            raise config.error(
                f"layer type {kind!r} is not supported; supported: {', '.join(_KINDS)}"
            )
    if window is None and "sliding_attention" in kinds:
        raise config.error(
            "layer_types names sliding_attention: that needs use_sliding_window and sliding_window"
        )
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)


def _sliding_window(config: ConfigValues) -> int | None:
    if config.get("sliding_window", WINDOW_DEFAULT) is None:
        return None
    return config.size("sliding_window", WINDOW_DEFAULT)

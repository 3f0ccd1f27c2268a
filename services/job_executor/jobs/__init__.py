"""Jobs: one stream a gateway, one job a request, one choice an answer."""

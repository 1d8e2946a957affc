"""The only modules that touch the network towards upstreams."""

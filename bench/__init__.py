"""What a token costs: this gateway beside a plain pass-through proxy, in one run on one machine (`make bench`)."""
